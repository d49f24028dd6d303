"""A layer that counts what is asked for, and what is turned away because too much is waiting."""

from __future__ import annotations

from pagoda.errors import OverloadedError
from pagoda.observe.metrics import Metrics
from pagoda.server.call import Call, DeltaStream, Serve


class Counted:
    """The layer, just outside of the one that turns away."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    async def __call__(self, call: Call, serve: Serve) -> DeltaStream:
        """Raises what the layers inside raise."""
        try:
            stream = await serve(call)
        except OverloadedError:
            self._metrics.server.http_rejected.add("queue_full")
            raise
        for request in call.requests:
            self._metrics.record_params(request.params)
        return stream
