"""An importance matrix from calibration text: what every linear of the model reads is squared and summed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from pagoda.formats.checkpoint import Checkpoint
from pagoda.models.registry import load_model
from pagoda.quantize.calibration.forward import run_sample
from pagoda.quantize.calibration.imatrix import Entry, Imatrix
from pagoda.quantize.calibration.layers import column_sums
from pagoda.quantize.calibration.linear_source import PlainWeights
from pagoda.quantize.calibration.sample import model_sample
from pagoda.quantize.calibration.values import LinearCall, SampleValue
from pagoda.quantize.settings import QuantizeSettings
from pagoda.types import FloatArray


class SquaredInputs(PlainWeights):
    """The model as it is, while sums of squares of what its linears read are kept, by the file's names."""

    def __init__(self, done: Callable[[int], None]) -> None:
        self.entries: dict[str, Entry] = {}
        self._done = done

    def weights(self, x: SampleValue, calls: Sequence[LinearCall]) -> list[FloatArray]:
        entry = Entry.of(*column_sums(x, 2))
        self.entries |= {call.weight.name: entry for call in calls}
        self._done(len(self.entries))
        return super().weights(x, calls)


def collect_imatrix(
    checkpoint: Checkpoint,
    names: Mapping[str, str],
    settings: QuantizeSettings,
    progress: Callable[[str, int, int | None], None],
    say: Callable[[str], None],
) -> Imatrix:
    """The importance matrix of a model over the calibration text that `settings` name.

    `names` gives the GGUF name of each of the file's tensors. Raises what `model_sample` raises.
    """
    decoder = load_model(checkpoint)
    sample = model_sample(checkpoint, settings, decoder.max_context, progress)
    windows, tokens = sample.windows.shape
    say(f"importance matrix from {windows} windows of {tokens} tokens ({settings.calibration})")
    matrices = [matrix for block in decoder.blocks for matrix in block.matrices]
    source = SquaredInputs(lambda done: progress("importance matrix", done, len(matrices)))
    run_sample(decoder, sample.windows, source, settings.device, say)
    found: dict[str, list[Entry]] = {}
    for matrix in matrices:
        found.setdefault(names[matrix.part_of or matrix.name], []).append(source.entries[matrix.name])
    entries = {name: Entry.stacked(each) if "_exps." in name else each[0] for name, each in found.items()}
    return Imatrix(entries, f"auto ({settings.calibration})", (settings.calibration,), windows, tokens)
