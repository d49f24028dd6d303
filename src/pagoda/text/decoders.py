"""What tokens become, by the decoder that a tokenizer.json states, for one token and for streams of them."""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any

from tokenizers import Tokenizer as Pipeline
from tokenizers.models import BPE

from pagoda.text import decoder_steps as steps
from pagoda.text.decoder_steps import Emit, Step
from pagoda.text.vocabulary import DecoderRun, byte_level, raw_bytes

State = Mapping[str, Any]  # a decoder as tokenizer.json writes it
Open = Callable[[Emit], Step]
Change = Callable[[str], str]

_CACHED_TOKENS = 1 << 18  # more than any vocabulary has


class DecoderChain:
    """A decoder of `tokenizers`, as steps that a stream can run through."""

    def __init__(self, decoder: Any | None) -> None:
        """`decoder` is a pipeline's, None for a pipeline that has none (its tokens stand with spaces between them)."""
        self._open: list[Open] = []  # a step each
        self._inside: list[Change] = []  # what each step makes of a token that others stand before and after
        self._has_bytes = self._is_byte_level = False
        self._spell = lru_cache(_CACHED_TOKENS)(byte_level)
        if decoder is None:
            self._add(steps.Spaced, lambda piece: " " + piece)
        else:
            self._compile(list(_flat(json.loads(decoder.__getstate__()))))

    def open(self) -> DecoderRun:
        """The state of a new text."""
        return ByteLevelRun(self._spell) if len(self._open) == 1 and self._is_byte_level else ChainRun(self._open)

    def token_bytes(self, token: str) -> bytes:
        """The bytes that a token of this spelling adds within a text."""
        for change in self._inside:
            token = change(token)
            byte = steps.byte_value(token) if self._has_bytes else None
            if byte is not None:
                return bytes([byte])
        return byte_level(token) if self._is_byte_level else raw_bytes(token)

    @property
    def has_byte_tokens(self) -> bool:
        """Whether tokens like <0x0A> stand for bytes."""
        return self._has_bytes

    def _add(self, step: Open, inside: Change) -> None:
        self._open.append(step)
        self._inside.append(inside)

    def _compile(self, states: Sequence[State]) -> None:
        fused = False
        for n, state in enumerate(states):
            if state["type"] == "Fuse":
                fused = True
            elif state["type"] == "ByteLevel" and not fused:
                self._add(partial(steps.ByteLevel, spell=self._spell), _same)
                self._is_byte_level = fused = True
            elif state["type"] == "ByteFallback" and not fused:
                self._add(steps.ByteFallback, _same)
                self._has_bytes = True
            elif not (self._add_fused(state) if fused else self._add_piecewise(state, first=n == 0)):
                self._add_held(states[n:], fused)
                return

    def _add_piecewise(self, state: State, first: bool) -> bool:
        """Adds a step that sees the tokens apart. False for one that is not known here."""
        kind = state["type"]
        if kind in ("Replace", "Strip"):
            change = _change(state)
            change = lru_cache(_CACHED_TOKENS)(change) if first else change
            self._add(partial(steps.Map, change=change), change)
        elif kind == "Metaspace":
            mark, prepended = state["replacement"], state["prepend_scheme"] != "never"
            self._add(partial(steps.Metaspace, mark=mark, prepended=prepended), lambda piece: piece.replace(mark, " "))
        elif kind == "WordPiece":
            prefix, cleanup = state["prefix"], state["cleanup"]
            clean = steps.clean_up if cleanup else _same
            self._add(partial(steps.WordPiece, prefix=prefix, cleanup=cleanup),
                      lambda piece: clean(steps.word_piece(piece, prefix)))  # fmt: skip
        elif kind == "BPEDecoder":
            suffix = state["suffix"]
            self._add(partial(steps.BPEDecoder, suffix=suffix), lambda piece: piece.replace(suffix, " "))
        elif kind == "CTC":
            options = {"pad": state["pad_token"], "delimiter": state["word_delimiter_token"]}
            options["cleanup"] = state["cleanup"]
            self._add(partial(steps.CTC, **options), partial(steps.ctc, **options))
        else:
            return False
        return True

    def _add_fused(self, state: State) -> bool:
        """Adds a step that sees the whole text as one token. False for one that cannot work on a part of it."""
        kind = state["type"]
        if kind == "Strip":
            options = {name: state[name] for name in ("content", "start", "stop")}
            self._add(partial(steps.TextStrip, **options), _same)
        elif kind == "Replace" and state["pattern"].get("String"):
            self._add_text_replace(state["pattern"]["String"], state["content"])
        elif kind == "BPEDecoder" and state["suffix"]:
            self._add_text_replace(state["suffix"], "")
        elif kind == "Metaspace":
            space = " " if state["prepend_scheme"] == "never" else ""
            self._add_text_replace(state["replacement"], space)
        elif kind == "WordPiece" and not state["cleanup"]:
            pass  # the only token is the first one
        else:
            return False
        return True

    def _add_held(self, states: Sequence[State], fused: bool) -> None:
        decoder = _decoder(states)
        self._add(partial(steps.Held, decoder=decoder, fused=fused), lambda piece: str(decoder.decode([piece])))

    def _add_text_replace(self, pattern: str, content: str) -> None:
        self._add(partial(steps.TextReplace, pattern=pattern, content=content),
                  lambda piece: piece.replace(pattern, content))  # fmt: skip


class ChainRun:
    """The steps of a decoder within one text."""

    def __init__(self, make_steps: Sequence[Open]) -> None:
        self._out: list[str] = []
        self._push: Emit = self._out.append
        self._steps: list[Step] = []  # first to last
        for make in reversed(make_steps):
            self._steps.insert(0, make(self._push))
            self._push = self._steps[0].push

    def push(self, token: str) -> str:
        """The text that is certain now."""
        self._push(token)
        out = self._out
        if len(out) == 1:
            return out.pop()
        return self._take() if out else ""

    def finish(self) -> str:
        """What was held back."""
        for step in self._steps:
            step.finish()
        return self._take()

    def prime(self, tokens: Sequence[str]) -> None:
        """Takes tokens that stand before the text and are not shown with it."""
        for token in tokens:
            self._push(token)
        for step in self._steps:
            step.forget()
        self._out.clear()

    def _take(self) -> str:
        text = "".join(self._out)
        self._out.clear()
        return text


class ByteLevelRun:
    """The same for ByteLevel alone, the decoder of most models, in fewer calls."""

    def __init__(self, spell: Callable[[str], bytes]) -> None:
        self._spell = spell
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode

    def push(self, token: str) -> str:
        return self._decode(self._spell(token))

    def finish(self) -> str:
        return self._decode(b"", final=True)

    def prime(self, tokens: Sequence[str]) -> None:
        for token in tokens:
            self.push(token)


def _same(piece: str) -> str:
    return piece


def _flat(state: State) -> Iterator[State]:
    """The steps of a decoder, those of sequences among them."""
    if state["type"] == "Sequence":
        for inner in state["decoders"]:
            yield from _flat(inner)
    else:
        yield state


def _change(state: State) -> Change:
    """What Replace or Strip makes of a token."""
    if state["type"] == "Strip":
        return partial(steps.strip, content=state["content"], start=state["start"], stop=state["stop"])
    pattern, content = state["pattern"].get("String"), state["content"]
    if pattern:
        return lambda piece: piece.replace(pattern, content)
    decoder = _decoder([state])  # its regular expressions are not Python's
    return lambda piece: str(decoder.decode([piece]))


def _decoder(states: Sequence[State]) -> Any:
    """The decoder of `tokenizers` with these steps. The library reads the JSON of whole pipelines only."""
    pipeline = json.loads(Pipeline(BPE()).to_str())
    pipeline["decoder"] = {"type": "Sequence", "decoders": list(states)}
    return Pipeline.from_str(json.dumps(pipeline)).decoder
