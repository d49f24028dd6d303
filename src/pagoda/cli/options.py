"""Flags come from settings classes, so that a setting is stated once.

    @with_settings
    def serve(engine: EngineSettings, server: ServerSettings) -> None: ...

is a typer command with a flag for each field of both classes, and `--config FILE`. Parameters that are not
settings stay what typer makes of them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from dataclasses import MISSING
from pathlib import Path
from typing import Annotated, Any

import typer

from pagoda.adapter_settings import AdapterSettings
from pagoda.config import check_environment, load_settings
from pagoda.kv_settings import KVSettings
from pagoda.settings import Field, Settings, fields

CONFIG_HELP = "TOML file with settings, a line each: threads = 4. By default ./pagoda.toml, if there is one."


# Settings that a command does not read which asks for no adapter, and one that sends no prompt again.
ADAPTERS = tuple(name for name in AdapterSettings.__dataclass_fields__ if name not in KVSettings.__dataclass_fields__)
OFFLOAD = ("kv_offload", "kv_host_memory_bytes", "kv_offload_key")


def with_settings(
    function: Callable[..., Any], *, only: Collection[str] | None = None, without: Collection[str] = ()
) -> Callable[..., Any]:
    """Give a command the flags of every settings class among its parameters, and `--config`.

    A parameter called `config` gets the file that was named. Of the fields those alone get a flag that the command
    reads: `only` these, or all but those `without`. A file that it shares with another command may hold the others.
    """
    # Not typing.get_type_hints: Python 3.10's hides what is annotated in an Optional where the default is None.
    parameters = inspect.signature(function, eval_str=True).parameters
    hints = {name: p.annotation for name, p in parameters.items()}
    classes = {name: hint for name, hint in hints.items() if inspect.isclass(hint) and issubclass(hint, Settings)}
    kept = [p for name, p in parameters.items() if name not in classes and name != "config"]

    def command(*, config: Path | None = None, **values: Any) -> Any:
        for field in positional:
            values[field.name] = values.pop(_also(field)) or values[field.name]
        settings = {
            name: load_settings(cls, {f.name: values.pop(f.name, None) for f in fields(cls)}, config=config)
            for name, cls in classes.items()
        }
        for warning in check_environment(classes.values()):
            typer.secho(f"warning: {warning}", fg=typer.colors.YELLOW, err=True)
        if "config" in parameters:
            values["config"] = config
        return function(**settings, **values)

    every = [field for cls in classes.values() for field in fields(cls)]
    listed = [field for field in every if field.name not in without and (only is None or field.name in only)]
    positional = [field for field in listed if field.about.positional]
    options = [_parameter(field) for field in listed] + [_hidden_flag(field) for field in positional]
    first = [p for p in kept if not _takes_the_rest(p)]
    last = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in kept if _takes_the_rest(p)]
    _disguise(command, function, [*first, *options, *last, _config_parameter()])
    return command


def _parameter(field: Field) -> inspect.Parameter:
    """The flag of one setting. It stays text, or None: `load_settings` parses every source alike."""
    about = field.about
    text = f"{about.help} [default: {_shown(field)}]" if _shown(field) else about.help
    common: dict[str, Any] = {"help": text, "metavar": _metavar(field), "show_default": False}
    hint: Any
    if about.positional:
        hint = Annotated[str | None, typer.Argument(**common)]
    elif field.type is bool:
        names = f"--{field.key}/--no-{field.key}"
        hint = Annotated[bool | None, typer.Option(names, help=text, show_default=False)]
    else:
        shape = list[str] if field.many and field.type is str else str
        flags = [f"--{name}" for name in (field.key, *about.also)]
        hint = Annotated[shape | None, typer.Option(*flags, **common)]
    return inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=hint)


def _takes_the_rest(parameter: inspect.Parameter) -> bool:
    """Whether it is an argument of which there may be many, which comes after those that are settings."""
    about = getattr(parameter.annotation, "__metadata__", ())
    return any(isinstance(one, typer.models.ArgumentInfo) for one in about) and "list" in str(parameter.annotation)


def _also(field: Field) -> str:
    return f"{field.name}_flag"


def _hidden_flag(field: Field) -> inspect.Parameter:
    """`--model NAME` means the same as NAME, as with every other setting."""
    hint = Annotated[str | None, typer.Option(f"--{field.key}", hidden=True)]
    return inspect.Parameter(_also(field), inspect.Parameter.KEYWORD_ONLY, default=None, annotation=hint)


def _metavar(field: Field) -> str:
    if field.about.positional:
        return field.key.upper()
    if field.choices:
        return "|".join(field.choices)
    path = "FOLDER" if field.name.endswith("dir") else "FILE"
    kind = "SIZE" if field.about.size else {int: "INT", float: "NUMBER", Path: path}.get(field.type, "TEXT")
    return f"{kind},..." if field.many and field.type is not str else kind


def _shown(field: Field) -> str:
    """The default as help shows it; empty where it says nothing."""
    default = field.default
    if default is None or default is MISSING or default is False or default in ((), ""):
        return ""
    if default is True:
        return "yes"
    if field.about.size:
        return f"{default / 2**20:g}MiB"
    return ",".join(map(str, default)) if field.many else str(default)


def _config_parameter() -> inspect.Parameter:
    hint = Annotated[Path | None, typer.Option("--config", help=CONFIG_HELP, metavar="FILE", show_default=False)]
    return inspect.Parameter("config", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=hint)


def _disguise(command: Callable[..., Any], function: Callable[..., Any], params: list[inspect.Parameter]) -> None:
    """Make typer see `function` with `params`."""
    command.__name__ = function.__name__
    command.__doc__ = function.__doc__
    command.__module__ = function.__module__
    command.__annotations__ = {p.name: p.annotation for p in params}
    command.__signature__ = inspect.Signature(params)  # type: ignore[attr-defined]
