"""`pagoda chat`: a conversation in the terminal. Ctrl-C stops an answer, Ctrl-D the program."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import orjson
from rich.console import Console

from pagoda.cli.endpoint import open_endpoints, served_model
from pagoda.cli.options import with_settings
from pagoda.client import Endpoint, HttpError
from pagoda.config import EngineSettings
from pagoda.errors import ConfigError
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
    schema: Annotated[str | None, Setting("File with the JSON Schema that every answer is to obey.")] = None
    tools: Annotated[
        str | None, Setting("File with a JSON list of tools; what you type after a call is its result.")
    ] = None
    reasoning_effort: Annotated[str | None, Setting("How long to think before the answer: none, low, medium, …")] = None


@with_settings
def chat(engine: EngineSettings, chat: ChatSettings) -> None:
    """Talk to a model in the terminal. /help lists what can be typed besides words.

    MODEL is loaded here; with --url an OpenAI-compatible server answers instead.
    """
    console = Console(highlight=False)
    with open_endpoints(engine, chat.url, chat.api_key) as open_endpoint:
        talk = Conversation(chat, served_model(chat.url, chat.api_key, engine.model), _asked_form(chat))
        console.print(f"[dim]{chat.url or engine.model}: /help for help, Ctrl-D to leave[/]", soft_wrap=True)
        loop = asyncio.new_event_loop()
        try:
            for line in _lines(console):
                if not _run_command(line, talk, console):
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
    form: Mapping[str, Any] = field(default_factory=dict)  # fields that say what answers look like, and may call
    system: str | None = field(init=False)
    messages: list[dict[str, Any]] = field(init=False, default_factory=list)
    open_calls: list[str] = field(init=False, default_factory=list)  # ids of calls whose results are to come

    def __post_init__(self) -> None:
        self.system = self.settings.system

    def body(self, line: str) -> bytes:
        """The request that continues the conversation with `line`, the user's or the result of what was called."""
        leading = [{"role": "system", "content": self.system}] if self.system else []
        given: dict[str, Any] = {
            "model": self.model,
            "messages": [*leading, *self.messages, *self._turn(line)],
            "max_tokens": self.settings.max_tokens,
            "temperature": self.settings.temperature,
            "top_p": self.settings.top_p,
            "stream": True,
            "stream_options": {"include_usage": True},
            **self.form,
        }
        return orjson.dumps({name: value for name, value in given.items() if value is not None})

    def add(self, line: str, answer: ShownAnswer) -> None:
        message: dict[str, Any] = {"role": "assistant", "content": answer.text}
        if answer.calls:
            message["tool_calls"] = answer.calls
        self.messages += [*self._turn(line), message]
        self.open_calls = [call["id"] for call in answer.calls]

    def reset(self) -> None:
        self.messages.clear()
        self.open_calls.clear()

    def _turn(self, line: str) -> list[dict[str, Any]]:
        if not self.open_calls:
            return [{"role": "user", "content": line}]
        return [{"role": "tool", "tool_call_id": call, "content": line} for call in self.open_calls]


@dataclass(slots=True)
class ShownAnswer:
    """An answer as far as it has come, which is shown while it comes."""

    console: Console
    text: str = ""
    calls: list[dict[str, Any]] = field(default_factory=list)
    _thinking: bool = False

    def take(self, delta: Mapping[str, Any]) -> bool:
        """Show what a chunk brings. → whether that is anything"""
        thought, text = delta.get("reasoning_content"), delta.get("content")
        if thought:
            self._show(thought, style="dim")
            self._thinking = True
        if text:
            self._show("\n" if self._thinking else "")
            self._thinking = False
            self.text += text
            self._show(text)
        for piece in delta.get("tool_calls") or ():
            self._take_call(piece)
        return bool(thought or text or delta.get("tool_calls"))

    def _take_call(self, piece: Mapping[str, Any]) -> None:
        function = piece["function"]
        if piece.get("id"):
            named = {"name": function["name"], "arguments": ""}
            self.calls.append({"id": piece["id"], "type": "function", "function": named})
            self._show(f"\n{function['name']} ", style="cyan")
        self.calls[-1]["function"]["arguments"] += function.get("arguments", "")
        self._show(function.get("arguments", ""), style="cyan")

    def _show(self, text: str, style: str = "") -> None:
        self.console.print(text, end="", markup=False, soft_wrap=True, style=style)


def _asked_form(settings: ChatSettings) -> dict[str, Any]:
    """Fields of requests. Raises ConfigError where a file cannot be read."""
    form: dict[str, Any] = {"reasoning_effort": settings.reasoning_effort, "tools": _json_file(settings.tools)}
    if settings.tools is not None:
        form["parallel_tool_calls"] = False  # one line is typed, one call's result
    schema = _json_file(settings.schema)
    if schema is not None:
        form["response_format"] = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    return form


def _json_file(path: str | None) -> Any:
    if path is None:
        return None
    try:
        return orjson.loads(Path(path).read_bytes())
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None
    except orjson.JSONDecodeError as error:
        raise ConfigError(f"{path} is not JSON: {error}") from None


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


def _run_command(line: str, talk: Conversation, console: Console) -> bool:
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
            talk.reset()
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
    shown = ShownAnswer(console)

    async def ask() -> str:
        endpoint = open_endpoint()
        try:
            return await stream_answer(endpoint, talk.body(line), shown.take)
        finally:
            endpoint.close()

    task = loop.create_task(ask())
    loop.add_signal_handler(signal.SIGINT, task.cancel)
    try:
        facts = loop.run_until_complete(task)
    except asyncio.CancelledError:
        facts = "stopped"
        shown.calls.clear()  # the last one may be half a call
    except (HttpError, OSError) as error:
        console.print(f"error: {explain(error)}", style="red", markup=False)
        return
    finally:
        loop.remove_signal_handler(signal.SIGINT)
    talk.add(line, shown)
    console.print(f"\n[dim]{facts}[/]")
    if shown.calls:
        console.print("[dim]what you type next is the result[/]")


async def stream_answer(endpoint: Endpoint, body: bytes, take: Callable[[Mapping[str, Any]], bool]) -> str:
    """Stream the answer's deltas into `take`, which says whether it showed any; → how fast it was. Raises HttpError."""
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
            if take(choice["delta"]):
                last = time.perf_counter()
                first = last if not num_chunks else first
                num_chunks += 1
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
