"""Which drafters an engine has: a row each, and a draft model where one is given, or the model's own head."""

from __future__ import annotations

from collections.abc import Callable

from pagoda.config import EngineSettings
from pagoda.engine.drafters import Drafter
from pagoda.engine.speculation.draft_model import DraftModelDrafter
from pagoda.engine.speculation.mtp import MtpDrafter
from pagoda.engine.speculation.ngram import NgramDrafter
from pagoda.engine.speculation.prediction import PredictionDrafter
from pagoda.engine.speculation.shared_suffix import SharedSuffixDrafter
from pagoda.errors import ConfigError

DRAFTERS: dict[str, Callable[[], Drafter]] = {  # in the order in which they are asked
    "prediction": PredictionDrafter,
    "ngram": NgramDrafter,
    "shared_suffix": SharedSuffixDrafter,
}


def check_speculation(settings: EngineSettings) -> None:
    """Raises ConfigError for what cannot be."""
    speculation, names = settings.speculation, (*DRAFTERS, MtpDrafter.name, DraftModelDrafter.name)
    unknown = [name for name in speculation if name not in (*names, "auto", "off")]
    if unknown or (len(speculation) > 1 and {"auto", "off"} & set(speculation)):
        raise ConfigError(
            f"--speculation: {','.join(speculation)!r} is neither auto nor off nor a list of {', '.join(names)}"
        )
    if DraftModelDrafter.name in speculation and settings.draft_model is None:
        raise ConfigError("--speculation draft needs --draft-model, a smaller model of the same vocabulary")
    if {DraftModelDrafter.name, MtpDrafter.name} <= set(speculation):
        raise ConfigError("--speculation draft and mtp guess the same way: take one of them")
    if settings.draft_format is not None and settings.draft_model is None:
        raise ConfigError(f"--draft-format {settings.draft_format} needs --draft-model, whose weights it is for")


def wants_draft_model(settings: EngineSettings) -> bool:
    """Whether the draft model is to be loaded."""
    return settings.draft_model is not None and bool({"auto", DraftModelDrafter.name} & set(settings.speculation))


def wants_head(settings: EngineSettings) -> bool:
    """Whether the model's own head is to be loaded, if it has one: where it is named, or nobody says otherwise."""
    is_alone = settings.draft_model is None
    return MtpDrafter.name in settings.speculation or (is_alone and "auto" in settings.speculation)


def choose_drafters(speculation: tuple[str, ...], *, asynchronous: bool) -> tuple[Drafter, ...]:
    """The drafters that `--speculation` names, but for those that compute. auto: all of them, but none on a device that
    computes by itself, where steps are planned ahead instead.
    """
    if speculation == ("auto",):
        return () if asynchronous else tuple(make() for make in DRAFTERS.values())
    return tuple(make() for name, make in DRAFTERS.items() if name in speculation)
