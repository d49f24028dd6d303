"""A layer that gives no answer whose model has changed meanwhile: bytes written into its file make nonsense of weights.

The server looks at the files twice a second and stops; this layer looks once more before each end of an answer.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

from pagoda.errors import EngineError
from pagoda.server.call import Call, DeltaStream, Serve
from pagoda.types import Delta


class Intact:
    """The layer. `changed` says what has become of the model's files; None: nothing."""

    def __init__(self, changed: Callable[[], str | None]) -> None:
        self._changed = changed

    async def __call__(self, call: Call, serve: Serve) -> DeltaStream:
        """Raises EngineError."""
        self.check()
        return IntactStream(self, await serve(call))

    def check(self) -> None:
        change = self._changed()
        if change is not None:
            raise EngineError(change)


class IntactStream:
    """Passes deltas through, as long as the files are what they were."""

    def __init__(self, layer: Intact, stream: DeltaStream) -> None:
        self._layer = layer
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[list[Delta]]:
        async for deltas in self._stream:
            if any(delta.finish_reason is not None for delta in deltas):
                self._layer.check()
            yield deltas

    def close(self) -> None:
        self._stream.close()
