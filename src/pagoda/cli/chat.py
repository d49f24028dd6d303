"""`pagoda chat`: a conversation in the terminal. Ctrl-C stops an answer, Ctrl-D the program."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any

import orjson
from rich.console import Console

from pagoda.cli.endpoint import open_endpoints, served_model
from pagoda.cli.options import with_settings
from pagoda.client import Endpoint, HttpError
from pagoda.config import EngineSettings
from pagoda.settings import Setting, Settings

HELP = """/help            this list
/reset           forget the conversation
/system TEXT     set the system prompt and forget the conversation; without TEXT: show it
/quit            leave; so does Ctrl-D
Ctrl-C           stop the answer"""


@dataclass(frozen=True, slots=True)
class ChatSettings(Settings):
    """Flags of `pagoda chat`."""

    table = "chat"

    url: Annotated[str | None, Setting("Talk to this server instead of loading a model.")] = None
    api_key: Annotated[str | None, Setting("Key to send to the server.")] = None
    system: Annotated[str | None, Setting("System prompt.")] = None
    max_tokens: Annotated[int | None, Setting("Longest answer; until the context is full by default.", minimum=1)] = (
        None
    )
    temperature: Annotated[float, Setting("0: always the likeliest token.", minimum=0)] = 0.7
    top_p: Annotated[float, Setting("Choose among the likeliest tokens of this total.", minimum=0.01, maximum=1)] = 0.95


@with_settings
def chat(engine: EngineSettings, chat: ChatSettings) -> None:
    """Talk to a model in the terminal. /help lists what can be typed besides words.

    MODEL is loaded here; with --url an OpenAI-compatible server answers instead.
    """
    console = Console(highlight=False)
    with open_endpoints(engine, chat.url, chat.api_key) as open_endpoint:
        talk = Conversation(chat, served_model(chat.url, chat.api_key, engine.model))
        console.print(f"[dim]{chat.url or engine.model}: /help for help, Ctrl-D to leave[/]", soft_wrap=True)
        loop = asyncio.new_event_loop()
        try:
            for line in _lines(console):
                if not _obey(line, talk, console):
                    break
                if not line.startswith("/"):
                    _answer(loop, open_endpoint, talk, line, console)
        finally:
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()


@dataclass(slots=True)
class Conversation:
    """The messages so far, and how to ask for the next. `model` is None for the only one that there is."""

    settings: ChatSettings
    model: str | None
    system: str | None = field(init=False)
    messages: list[dict[str, str]] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        self.system = self.settings.system

    def body(self, line: str) -> bytes:
        """The request that continues the conversation with `line`."""
        leading = [{"role": "system", "content": self.system}] if self.system else []
        given: dict[str, Any] = {
            "model": self.model,
            "messages": [*leading, *self.messages, {"role": "user", "content": line}],
            "max_tokens": self.settings.max_tokens,
            "temperature": self.settings.temperature,
            "top_p": self.settings.top_p,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        return orjson.dumps({name: value for name, value in given.items() if value is not None})

    def add(self, line: str, answer: str) -> None:
        self.messages += [{"role": "user", "content": line}, {"role": "assistant", "content": answer}]


def _lines(console: Console) -> Iterator[str]:
    """What the user types, blank lines left out, until the end of input."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  # line editing, and the lines typed before on the arrow keys
    prompt = "\n> " if sys.stdin.isatty() else ""
    while True:
        try:
            line = input(prompt).strip()
        except EOFError:
            return
        except KeyboardInterrupt:
            console.print("\n[dim]/quit or Ctrl-D to leave[/]")
            continue
        if line:
            yield line


def _obey(line: str, talk: Conversation, console: Console) -> bool:
    """Run a command line that begins with /. → False to leave the program"""
    command, _, text = line.partition(" ")
    match command:
        case "/quit" | "/exit":
            return False
        case "/help":
            console.print(HELP, markup=False)
        case "/system" if not text.strip():
            console.print(talk.system or "there is no system prompt", markup=False)
        case "/system" | "/reset":
            talk.system = text.strip() if command == "/system" else talk.system
            talk.messages.clear()
            console.print("[dim]a new conversation[/]")
        case _ if line.startswith("/"):
            console.print(f"no such command: {command}; /help lists what there is", style="red", markup=False)
    return True


def _answer(
    loop: asyncio.AbstractEventLoop,
    open_endpoint: Callable[[], Endpoint],
    talk: Conversation,
    line: str,
    console: Console,
) -> None:
    """Ask, print the answer while it comes, and keep it, even when Ctrl-C cut it short."""
    printed: list[str] = []

    def show(text: str) -> None:
        printed.append(text)
        console.print(text, end="", markup=False, soft_wrap=True)

    async def ask() -> str:
        endpoint = open_endpoint()
        try:
            return await stream_answer(endpoint, talk.body(line), show)
        finally:
            endpoint.close()

    task = loop.create_task(ask())
    loop.add_signal_handler(signal.SIGINT, task.cancel)
    try:
        facts = loop.run_until_complete(task)
    except asyncio.CancelledError:
        facts = "stopped"
    except (HttpError, OSError) as error:
        console.print(f"error: {explain(error)}", style="red", markup=False)
        return
    finally:
        loop.remove_signal_handler(signal.SIGINT)
    talk.add(line, "".join(printed))
    console.print(f"\n[dim]{facts}[/]")


async def stream_answer(endpoint: Endpoint, body: bytes, show: Callable[[str], None]) -> str:
    """Stream the answer into `show`; says how fast it was. Raises HttpError."""
    start = time.perf_counter()
    first = last = start
    num_chunks = 0
    tokens = None
    async for data in endpoint.events("/v1/chat/completions", body):
        event = orjson.loads(data)
        if "error" in event:
            raise HttpError(event["error"].get("message", "the answer broke off"))
        if event.get("usage"):
            tokens = event["usage"]["completion_tokens"]
        for choice in event.get("choices", ()):
            if text := choice["delta"].get("content"):
                last = time.perf_counter()
                first = last if not num_chunks else first
                num_chunks += 1
                show(text)
    return describe_speed(num_chunks if tokens is None else tokens, first - start, last - first)


def describe_speed(num_tokens: int, ttft: float, decode: float) -> str:
    """How fast an answer was, in words; times are in seconds."""
    speed = f", {(num_tokens - 1) / decode:.1f} tokens/s" if num_tokens > 1 and decode > 0 else ""
    return f"{num_tokens} tokens{speed}, first after {1000 * ttft:.0f} ms"


def explain(error: Exception) -> str:
    """What a server's error says, without its JSON; and what to do where the context is full."""
    body: Any = None
    if isinstance(error, HttpError) and error.body:
        with contextlib.suppress(orjson.JSONDecodeError):
            body = orjson.loads(error.body)
    stated = body.get("error") if isinstance(body, dict) else None
    if not isinstance(stated, dict):
        return str(error)
    hint = " /reset begins a new conversation." if stated.get("code") == "context_length_exceeded" else ""
    return f"{stated.get('message', error)}{hint}"
