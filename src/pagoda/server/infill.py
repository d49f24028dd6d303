"""Prompts that ask for what stands between two texts: a model's own tokens mark its parts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from pagoda.errors import RequestError

# What models call the tokens before the prefix, before the suffix and before what is asked for; and before the name of
# a repository and of a file, where they have them.
FAMILIES: tuple[tuple[str, str, str, str | None, str | None], ...] = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|repo_name|>", "<|file_sep|>"),  # Qwen-Coder
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", None, "<|file_separator|>"),  # CodeGemma
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", None, None),
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>", "<repo_name>", "<file_sep>"),  # StarCoder 2
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>", None, None),  # Granite, StarCoder
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>", None, None),  # SantaCoder
    ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>", None, None),  # DeepSeek
    ("<|code_prefix|>", "<|code_suffix|>", "<|code_middle|>", None, None),  # GLM
)
REPOSITORY = "myproject"  # the name that llama-server gives one


class FimTokenizer(Protocol):
    """What finding the tokens needs of a tokenizer."""

    def encode(self, text: str, *, add_special: bool = True, parse_special: bool = False) -> list[int]: ...

    def token_bytes(self, token_id: int) -> bytes: ...


@dataclass(frozen=True, slots=True)
class ExtraFile:
    """What stands elsewhere in the project."""

    name: str
    text: str


@dataclass(frozen=True, slots=True)
class Infill:
    """Texts before and after what is asked for, and other files."""

    prefix: str
    suffix: str
    files: tuple[ExtraFile, ...] = ()


@dataclass(frozen=True, slots=True)
class FimTokens:
    """Ids of a model's tokens for filling in the middle."""

    prefix: int
    suffix: int
    middle: int
    repository: int | None
    file: int | None

    def prompt(self, asked: Infill, encode: Callable[[str], list[int]]) -> list[int]:
        """The prompt less BOS, its parts in llama-server's order. `encode` adds nothing. RequestError: no files."""
        ids: list[int] = []
        if asked.files:
            if self.file is None:
                raise RequestError(
                    "this model has no token before further files: leave input_extra out", param="input_extra"
                )
            ids += [] if self.repository is None else [self.repository, *encode(f"{REPOSITORY}\n")]
            for file in asked.files:
                ids += [self.file, *encode(f"{file.name}\n"), *encode(file.text)]
            ids += [self.file, *encode("filename\n")]
        ids += [self.prefix, *encode(asked.prefix), self.suffix, *encode(asked.suffix), self.middle]
        return ids


def find_fim_tokens(tokenizer: FimTokenizer) -> FimTokens | None:
    """The tokens by their names; None: the model has none."""

    def id_of(name: str | None) -> int | None:
        if name is None:
            return None
        ids = tokenizer.encode(name, add_special=False, parse_special=True)
        return ids[0] if len(ids) == 1 and tokenizer.token_bytes(ids[0]) == name.encode() else None

    for names in FAMILIES:
        prefix, suffix, middle, repository, file = (id_of(name) for name in names)
        complete = (names[3] is None or repository is not None) and (names[4] is None or file is not None)
        if prefix is not None and suffix is not None and middle is not None and complete:
            return FimTokens(prefix, suffix, middle, repository, file)
    return None
