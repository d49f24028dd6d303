"""What a setting is: a dataclass field that says its type, default, limits and help, and parses itself from text.

    threads: Annotated[int, Setting("Compute threads.", minimum=0)] = 0

Text from flags and the environment and values from TOML files are parsed by the same rules.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pagoda.errors import ConfigError

BOOLS = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
UNITS = {"": 1, "b": 1} | {
    letter + suffix: base ** (i + 1)
    for i, letter in enumerate("kmgt")
    for suffix, base in (("", 1000), ("b", 1000), ("i", 1024), ("ib", 1024))
}


@dataclass(frozen=True, slots=True)
class Setting:
    """What a field says about itself besides its type and default; rides in `Annotated`."""

    help: str
    flag: str | None = None  # default: the field's name with hyphens
    minimum: float | None = None
    maximum: float | None = None
    size: bool = False  # bytes; takes "4GiB" too
    positional: bool = False
    secret: bool = False  # never empty: who sets it to nothing meant to set it to something
    verbatim: bool = False  # of many: commas are part of a value
    also: tuple[str, ...] = ()  # other spellings of the flag, on the command line alone


@dataclass(frozen=True, slots=True)
class Settings:
    """Base of all settings classes."""

    table: ClassVar[str] = ""  # TOML table, and infix of the environment variables; "": the top


@dataclass(frozen=True, slots=True)
class Field:
    """One setting, ready to be parsed: its place in the class, in files and in the environment."""

    name: str
    key: str  # flag without the dashes, and key in TOML files
    env: str
    type: Any  # bool, int, float, str, Path, or for a choice str
    choices: tuple[str, ...]
    optional: bool
    many: bool  # a tuple of `type`
    default: Any
    about: Setting

    def parse(self, value: object, where: str) -> Any:
        """The value in the field's type, from text or a TOML value. ConfigError names `where` and the value."""
        if not self.many:
            return self._parse_one(value, where)
        if self.about.verbatim:
            given = value if isinstance(value, (list, tuple)) else [value]
            return tuple(self._parse_one(part, where) for part in given)
        parts = value.split(",") if isinstance(value, str) else value if isinstance(value, (list, tuple)) else [value]
        flat = [piece for part in parts for piece in (part.split(",") if isinstance(part, str) else [part])]
        return tuple(self._parse_one(part.strip() if isinstance(part, str) else part, where) for part in flat)

    def _parse_one(self, value: object, where: str) -> Any:
        try:
            parsed = _convert(self.type, value, size=self.about.size)
        except ValueError as error:
            raise ConfigError(f"{where}: {value!r} is not {error}{_service_link(value)}") from None
        if self.about.secret and not str(parsed).strip():
            raise ConfigError(f"{where} is empty: give a key, or leave it out to ask for none")
        if self.choices and parsed not in self.choices:
            raise ConfigError(f"{where}: {value!r} is not one of {', '.join(self.choices)}")
        least, most = self.about.minimum, self.about.maximum
        if (least is not None and parsed < least) or (most is not None and parsed > most):
            low, high = (None if limit is None else f"{limit:.12g}" for limit in (least, most))
            limits = f"at least {low}" if most is None else f"between {low} and {high}"
            raise ConfigError(f"{where}: {value} is out of range, must be {limits}")
        return parsed


def _service_link(value: object) -> str:
    if isinstance(value, str) and value.startswith("tcp://"):
        return " (Kubernetes sets this for a Service named pagoda: put enableServiceLinks: false in the pod's spec)"
    return ""


def _convert(kind: Any, value: object, *, size: bool) -> Any:
    """`value` as `kind`; a ValueError says what it should have been."""
    if kind is bool:
        if isinstance(value, bool):
            return value
        if isinstance(value, str) and value.lower() in BOOLS:
            return BOOLS[value.lower()]
        raise ValueError("true or false")
    if isinstance(value, bool) or not isinstance(value, (str, int, float, Path)):
        raise ValueError({int: "a whole number", float: "a number"}.get(kind, "text"))
    if size and isinstance(value, str):
        return parse_size(value)
    if kind is int:
        return _convert_int(value)
    if kind is float:
        try:
            number = float(value)  # type: ignore[arg-type]
        except (ValueError, TypeError):
            raise ValueError("a number") from None
        if number != number:
            raise ValueError("a number")
        return number
    if not isinstance(value, (str, Path)):
        raise ValueError("text")
    return kind(value)


def _convert_int(value: object) -> int:
    try:
        if isinstance(value, (int, str)):
            return int(value)
    except ValueError:
        pass
    raise ValueError("a whole number")


def parse_size(text: str) -> int:
    """Bytes of "4GiB", "512 MB", "1.5Gi" or "1024". Raises ValueError."""
    number = text.strip().lower().rstrip("kmgtib ")
    unit = text.strip().lower()[len(number) :].strip()
    try:
        size = int(float(number) * UNITS[unit])
    except (ValueError, KeyError, OverflowError):
        size = -1
    if size < 0:
        raise ValueError("a size such as 4GiB, 512MB or 1048576")
    return size


def fields(cls: type[Settings]) -> tuple[Field, ...]:
    """The settings that a class holds, in order."""
    hints = typing.get_type_hints(cls, include_extras=True)
    return tuple(_describe(cls, field, hints[field.name]) for field in dataclasses.fields(cls))


def _describe(cls: type[Settings], field: dataclasses.Field[Any], hint: Any) -> Field:
    about = Setting("")
    if typing.get_origin(hint) is Annotated:
        hint, about = typing.get_args(hint)
    args = typing.get_args(hint)
    optional = isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union
    if optional:
        (hint,) = (arg for arg in args if arg is not type(None))
    many = typing.get_origin(hint) is tuple
    if many:
        hint = typing.get_args(hint)[0]
    choices = typing.get_args(hint) if typing.get_origin(hint) is Literal else ()
    key = about.flag or field.name.replace("_", "-")
    env = "_".join(filter(None, ("PAGODA", cls.table, key))).replace("-", "_").upper()
    default = field.default_factory() if callable(field.default_factory) else field.default
    return Field(field.name, key, env, str if choices else hint, choices, optional, many, default, about)
