"""Tokens that the files beside a tokenizer.json add to it or mark as control tokens, as transformers 5 reads them.

tokenizer_config.json lists tokens in `added_tokens_decoder`. Where it has no such list, special_tokens_map.json goes
before its settings, and added_tokens.json lists tokens. Tokens that settings name as `eos_token` and the like, or list
in `extra_special_tokens`, are control tokens in either case.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as Pipeline

from pagoda.errors import FormatError
from pagoda.text.json_file import read_json

_FLAGS = ("single_word", "lstrip", "rstrip", "normalized")
_ROLES = tuple(f"{role}_token" for role in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))  # in this order
_LISTS = ("additional_special_tokens", "extra_special_tokens")  # the older name, and that of transformers 5


def read_settings(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json, with special_tokens_map.json over it where that one counts."""
    settings = read_json(folder / "tokenizer_config.json")
    if "added_tokens_decoder" not in settings:
        settings |= read_json(folder / "special_tokens_map.json")
    return settings


def add_tokens(pipeline: Pipeline, folder: Path, settings: Mapping[str, Any], num_rows: int | None) -> set[str]:
    """Adds the tokens to the pipeline, and returns the texts of all its control tokens.

    `num_rows` is the number of tokens that the model knows: a token beyond it, which could not be embedded, stays
    text. Raises FormatError for files that do not hold tokens.
    """
    own = {token.content: token for token in pipeline.get_added_tokens_decoder().values()}
    control = {text for text, token in own.items() if token.special}
    next_id = _next_id(pipeline)
    added = []
    for token in _wanted(pipeline, folder, settings):
        if pipeline.token_to_id(token.content) is None:
            if num_rows is not None and next_id >= num_rows:
                continue
            next_id += 1
        if token.special:
            control.add(token.content)
        if token.content not in own or _flags(token) != _flags(own[token.content]):
            added.append(token)
    pipeline.add_tokens(added)
    return control


def control_text(value: Any) -> str | None:
    """The text of a token that settings name: a string, or an object with its `content`."""
    text = value.get("content") if isinstance(value, Mapping) else value
    return text if isinstance(text, str) else None


def _wanted(pipeline: Pipeline, folder: Path, settings: Mapping[str, Any]) -> list[AddedToken]:
    """The tokens to add, in the order that gives them their ids."""
    own = {i: token for i, token in pipeline.get_added_tokens_decoder().items() if token.content}
    named = dict(_named(settings))
    extra = dict(_extra(settings))
    if "added_tokens_decoder" in settings:
        listed = _listed(settings["added_tokens_decoder"], folder / "tokenizer_config.json")
    else:
        listed = {**_from_map(folder / "added_tokens.json", {*named, *extra}), **own}
    listed = {i: as_special(token) if token.content in named else token for i, token in listed.items()}
    known = {token.content for token in (*own.values(), *listed.values())}
    others = [token for text, token in (*named.items(), *extra.items()) if text not in known]
    return [*(listed[i] for i in sorted(listed)), *others]


def _named(settings: Mapping[str, Any]) -> Iterator[tuple[str, AddedToken]]:
    """Control tokens that have a role: `eos_token` and the like, those of `extra_special_tokens` as an object."""
    own = [key for key in settings if key.endswith("_token") and key not in _ROLES]
    for key in (*_ROLES, *own):
        yield from _control(settings.get(key))
    roles = _extra_tokens(settings)
    for value in roles.values() if isinstance(roles, Mapping) else ():
        yield from _control(value)


def _extra(settings: Mapping[str, Any]) -> Iterator[tuple[str, AddedToken]]:
    """Control tokens without a role."""
    tokens = _extra_tokens(settings)
    for value in tokens if isinstance(tokens, list) else ():
        yield from _control(value)


def _extra_tokens(settings: Mapping[str, Any]) -> Any:
    old, new = (settings.get(name) for name in _LISTS)
    return new or old


def _control(value: Any) -> Iterator[tuple[str, AddedToken]]:
    text = control_text(value)
    if text:
        flags = {name: bool(value[name]) for name in _FLAGS if name in value} if isinstance(value, Mapping) else {}
        yield text, AddedToken(text, special=True, **flags)


def as_special(token: AddedToken) -> AddedToken:
    """The token as a control token."""
    return AddedToken(token.content, **{**_flags(token), "special": True})


def _flags(token: AddedToken) -> dict[str, bool]:
    return {name: getattr(token, name) for name in (*_FLAGS, "special")}


def _listed(value: Any, path: Path) -> dict[int, AddedToken]:
    """`added_tokens_decoder`: tokens by their ids, written as text."""
    try:
        return {int(i): AddedToken(**token) for i, token in value.items() if token["content"]}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise FormatError(f"added_tokens_decoder does not map ids to tokens: {error}", path=str(path)) from error


def _from_map(path: Path, control: set[str]) -> dict[int, AddedToken]:
    """added_tokens.json: ids by the texts of tokens."""
    ids = read_json(path)
    if not all(isinstance(i, int) for i in ids.values()):
        raise FormatError("does not map texts to ids", path=str(path))
    special = {text: text in control for text in ids if text}
    return {ids[text]: AddedToken(text, special=known, normalized=not known) for text, known in special.items()}


def _next_id(pipeline: Pipeline) -> int:
    """The id that the pipeline gives to the next token that is not in its vocabulary."""
    own = pipeline.get_vocab_size(with_added_tokens=False)
    return max([own, *(i + 1 for i in pipeline.get_added_tokens_decoder() if i >= own)])
