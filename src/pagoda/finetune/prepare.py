"""A run's model and data, opened and read, before anything is trained and without torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pagoda.errors import ConfigError, UnsupportedError
from pagoda.finetune.data.dataset import DataSet, load_data
from pagoda.finetune.data.render import Renderer
from pagoda.finetune.schedule import Schedule, make_schedule
from pagoda.finetune.settings import FinetuneSettings
from pagoda.formats.checkpoint import Checkpoint, open_checkpoint
from pagoda.models.registry import fallback_template, load_model
from pagoda.sources import LocalModel
from pagoda.text.load import chat_template_or_reason
from pagoda.text.tokenizer import Tokenizer, load_tokenizer

Progress = Callable[[str, int, int | None], None]
USUAL_LENGTH = 2048


@dataclass(frozen=True, slots=True)
class Prepared:
    """A run's model and data, before anything is trained."""

    model: LocalModel
    checkpoint: Checkpoint
    tokenizer: Tokenizer
    data: DataSet
    settings: FinetuneSettings
    max_length: int

    @property
    def schedule(self) -> Schedule:
        return make_schedule(self.settings, len(self.data.train))


def prepare(
    model: LocalModel, settings: FinetuneSettings, progress: Progress = lambda what, done, total: None
) -> Prepared:
    """Open the model and read the data. Raises what `open_checkpoint`, `load_model` and `load_data` raise."""
    checkpoint = open_checkpoint(model.path)
    tokenizer = load_tokenizer(checkpoint)
    template, why = chat_template_or_reason(checkpoint, tokenizer, fallback_template(checkpoint))
    decoder = load_model(checkpoint)
    if decoder.is_hybrid:
        raise UnsupportedError(f"{model.name} has recurrent layers, which are not trained here")
    context = decoder.max_context
    max_length = settings.max_length or min(USUAL_LENGTH, context)
    if max_length > context:
        raise ConfigError(f"--max-length {max_length}: the model's context is {context} tokens")
    data = load_data(
        settings.data,
        Renderer(tokenizer, template, why),
        max_length=max_length,
        too_long=settings.too_long,
        held_out=settings.held_out,
        held_out_paths=settings.held_out_data,
        seed=settings.seed,
        progress=progress,
    )
    return Prepared(model, checkpoint, tokenizer, data, settings, max_length)
