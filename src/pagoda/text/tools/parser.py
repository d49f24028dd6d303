"""The machine below every tool-call parser: it looks for the beginnings of calls, and can take back what it has read.

A reader of calls is a generator that asks for characters (`yield from parser.next()`). As long as it has not announced
a call it may raise `NotACall`: then its first character is text, and the rest is looked at again. Blank space where
text and calls meet belongs to neither.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Literal

from pagoda.text.tools.base import ArgumentsPiece, CallStart, Event, TextPiece

Reading = Generator[None, str, None]  # what a reader is
ReadingChar = Generator[None, str, str]

END = ""  # what `next` gives when there is no more
BLANK = " \t\r\n"


class NotACall(Exception):
    """What was read is text."""


@dataclass(frozen=True, slots=True)
class Trigger:
    """What a call may begin with. `read` takes what follows it. No trigger begins another one."""

    text: str
    read: Callable[[CallParser], Reading]
    where: Literal["anywhere", "line", "start"] = "anywhere"  # start: only blank space stands before it


class CallParser:
    """A `ToolParser` with the triggers of one format."""

    def __init__(self, triggers: Sequence[Trigger]) -> None:
        self._triggers = triggers
        self._firsts = {trigger.text[0] for trigger in triggers}
        self._again: deque[str] = deque()  # characters to be read once more
        self._taken: list[str] = []  # characters read since the last that became text
        self._blank = ""  # at the end of the text so far: belongs to it if more text follows
        self._after_call = False  # nothing but blank space since the last call
        self._line_start = self._text_start = True
        self._ended = False
        self._announced = False  # the reader at work has said that a call begins
        self._events: list[Event] = []
        self._kind: type[TextPiece] | type[ArgumentsPiece] = TextPiece
        self._parts: list[str] = []  # of the event that is being put together
        self._machine = self._run()
        next(self._machine)

    def push(self, text: str) -> list[Event]:
        for char in text:
            self._machine.send(char)
        return self._take_events()

    def finish(self) -> list[Event]:
        try:
            while True:
                self._machine.send(END)
        except StopIteration:
            pass
        if not self._after_call and self._blank:
            self._add(TextPiece(self._blank))
        return self._take_events()

    # For readers

    def next(self) -> ReadingChar:
        """The next character, END when there is none."""
        char = self._again.popleft() if self._again else (yield)
        if char:
            self._taken.append(char)
        else:
            self._ended = True
        return char

    def back(self, count: int = 1) -> None:
        """Read the last characters once more."""
        for _ in range(count):
            self._again.appendleft(self._taken.pop())

    def next_solid(self) -> ReadingChar:
        """The next character that is not blank."""
        while (char := (yield from self.next())) and char in BLANK:
            pass
        return char

    def expect(self, text: str) -> Reading:
        """Read `text`. Raises NotACall where something else stands."""
        for wanted in text:
            if (yield from self.next()) != wanted:
                raise NotACall

    def skip(self, text: str) -> Generator[None, str, bool]:
        """Read blank space and `text`, if that stands there; otherwise read nothing. → whether it did"""
        before = len(self._taken)
        read = yield from self.next_solid()
        while read != text and read and text.startswith(read):
            char = yield from self.next()
            if not char:
                break
            read += char
        if read != text:
            self.back(len(self._taken) - before)
        return read == text

    def announce(self, name: str) -> None:
        """A call begins: from here on nothing is taken back."""
        self._announced = True
        self._blank = ""
        self._add(CallStart(name))

    def arguments(self, text: str) -> None:
        """More of the arguments. Of an answer that was cut off in the middle of them, nothing is made up."""
        if not self._ended:
            self._add(ArgumentsPiece(text))

    # The machine

    def _run(self) -> Reading:
        while char := (yield from self.next()):
            if char not in self._firsts:
                self._text(char)
                continue
            trigger = yield from self._trigger(char)
            if trigger is not None:
                yield from self._read(trigger)

    def _trigger(self, held: str) -> Generator[None, str, Trigger | None]:
        """The trigger that begins with the character read last; None: none does, and that character is text."""
        possible = [t for t in self._triggers if self._may_begin(t) and t.text.startswith(held)]
        while possible:
            if possible[0].text == held:
                return possible[0]
            char = yield from self.next()
            held += char
            possible = [t for t in possible if char and t.text.startswith(held)]
        self._stay_text()
        return None

    def _may_begin(self, trigger: Trigger) -> bool:
        return trigger.where == "anywhere" or (self._line_start if trigger.where == "line" else self._text_start)

    def _read(self, trigger: Trigger) -> Reading:
        self._announced = False
        try:
            yield from trigger.read(self)
        except NotACall:
            if not self._announced:
                self._stay_text()
                return
        self._taken.clear()
        self._after_call = self._line_start = self._text_start = True

    def _stay_text(self) -> None:
        """The first character since the last text is text; what follows it is looked at again."""
        self.back(len(self._taken) - 1)
        self._text(self._taken[0])

    def _text(self, char: str) -> None:
        self._taken.clear()
        self._line_start = char == "\n" or (self._line_start and char in BLANK)
        if char in BLANK:
            self._blank += char
            return
        self._text_start = False
        self._add(TextPiece(char if self._after_call else self._blank + char))
        self._blank, self._after_call = "", False

    def _add(self, event: Event) -> None:
        """Append, as part of the last event where they are of one kind."""
        if isinstance(event, CallStart) or not self._parts or type(event) is not self._kind:
            self._join_parts()
        if isinstance(event, CallStart):
            self._events.append(event)
        else:
            self._kind = type(event)
            self._parts.append(event.text)

    def _join_parts(self) -> None:
        if self._parts:
            self._events.append(self._kind("".join(self._parts)))
            self._parts = []

    def _take_events(self) -> list[Event]:
        self._join_parts()
        events, self._events = self._events, []
        return events
