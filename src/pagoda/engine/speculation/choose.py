"""Which drafters an engine has: a row each."""

from __future__ import annotations

from collections.abc import Callable

from pagoda.engine.drafters import Drafter
from pagoda.engine.speculation.ngram import NgramDrafter
from pagoda.engine.speculation.prediction import PredictionDrafter
from pagoda.engine.speculation.shared_suffix import SharedSuffixDrafter
from pagoda.errors import ConfigError

DRAFTERS: dict[str, Callable[[], Drafter]] = {  # in the order in which they are asked
    "prediction": PredictionDrafter,
    "ngram": NgramDrafter,
    "shared_suffix": SharedSuffixDrafter,
}


def choose_drafters(speculation: tuple[str, ...], *, asynchronous: bool) -> tuple[Drafter, ...]:
    """The drafters that `--speculation` names. auto: all of them, but none on a device that computes by itself, where
    steps are planned ahead instead. Raises ConfigError.
    """
    unknown = [name for name in speculation if name not in (*DRAFTERS, "auto", "off")]
    if unknown or (len(speculation) > 1 and {"auto", "off"} & set(speculation)):
        raise ConfigError(
            f"--speculation: {','.join(speculation)!r} is neither auto nor off nor a list of {', '.join(DRAFTERS)}"
        )
    if speculation == ("auto",):
        return () if asynchronous else tuple(make() for make in DRAFTERS.values())
    return tuple(make() for name, make in DRAFTERS.items() if name in speculation)
