"""The listening socket, taken before anything slow happens: a busy port is known at once."""

from __future__ import annotations

import errno
import resource
import socket

from pagoda.errors import ConfigError

OTHER_FILES = 256  # than connections that a server opens
UNSENT_BYTES = (
    32 * 1024
)  # of an answer that the operating system takes beyond what is under way: who reads slowly shows


def bind(host: str, port: int) -> socket.socket:
    """A bound TCP socket; port 0 takes any free one. Raises ConfigError that says what to change."""
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        sock = socket.socket(family, kind, proto)
    except socket.gaierror as error:
        raise ConfigError(f"--host {host}: {error.strerror}") from None
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if hasattr(socket, "TCP_NOTSENT_LOWAT"):  # connections inherit it
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)
    try:
        sock.bind(address)
    except OSError as error:
        sock.close()
        raise ConfigError(_why(error, host, port)) from None
    return sock


def _why(error: OSError, host: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} on {host} is in use: stop what uses it, or choose another with --port"
    if error.errno == errno.EACCES:
        return f"port {port} needs privileges: choose one above 1023 with --port"
    return f"cannot listen on {host}:{port}: {error.strerror}"


def url(sock: socket.socket) -> str:
    """Where a client on this machine reaches it."""
    host, port = sock.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def allow_connections(num_connections: int) -> None:
    """Raise the limit on open files, where it is lower than so many connections and the files of a server need."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = num_connections + OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
