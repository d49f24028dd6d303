"""A forward pass as data: its ops in the order in which the model stated them, a node each, instead of numbers."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from pagoda.backends.base import ForwardModel, Ops
from pagoda.types import RawTensor

# How wide an op's value is, by its arguments; of others it is as wide as their first input.
COLUMNS: Mapping[str, Callable[[Mapping[str, Any]], int]] = {
    "attention": lambda arguments: int(arguments["spec"].num_heads * arguments["spec"].value_dim),
    "embed": lambda arguments: int(arguments["table"].shape[1]),
    "given": lambda arguments: int(arguments["columns"]),
    "columns": lambda arguments: int(arguments["heads"] * arguments["count"]),
    "head_linear": lambda arguments: int(
        arguments["weight"].shape[0] * (arguments["kept"] + arguments["weight"].shape[1])
    ),
    "linear": lambda arguments: int(arguments["weight"].shape[0]),
    "logits": lambda arguments: int(arguments["weight"].shape[0]),
    "mix_streams": lambda arguments: int(
        arguments["coefficients"].columns // arguments["streams"] * (arguments["x"].columns // arguments["streams"])
    ),
    "delta_rule": lambda arguments: int(arguments["spec"].num_v_heads * arguments["spec"].v_dim),
    "selective_scan": lambda arguments: int(arguments["spec"].inner_size),
}


@dataclass(eq=False, slots=True)
class Node:
    """One op and the value it makes, `columns` wide.

    op: its name in `Ops`. arguments: what it was called with, by name, defaults included; values are nodes.
    users: the later ops that read the value, an op that reads it twice two times.
    """

    op: str
    arguments: dict[str, Any] = field(repr=False)  # a node's repr would else be its whole past, many times over
    columns: int
    index: int
    users: list[Node] = field(default_factory=list, repr=False)

    def __getitem__(self, argument: str) -> Any:
        return self.arguments[argument]

    @property
    def inputs(self) -> tuple[Node, ...]:
        return tuple(value for value in self.arguments.values() if isinstance(value, Node))

    @property
    def only_user(self) -> Node | None:
        return self.users[0] if len(self.users) == 1 else None

    @property
    def tensors(self) -> Iterator[RawTensor]:
        """The weights that the op names."""
        for value in self.arguments.values():
            for part in value if isinstance(value, tuple) else (value,):
                if isinstance(part, RawTensor):
                    yield part


class Trace:
    """`Ops` that record: any op of the protocol becomes one of `nodes`."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []

    def __getattr__(self, op: str) -> Callable[..., Node]:
        if op.startswith("_") or not hasattr(Ops, op):
            raise AttributeError(f"there is no op {op!r}")
        signature = inspect.signature(getattr(Ops, op))

        def record(*args: Any, **options: Any) -> Node:
            bound = signature.bind(self, *args, **options)
            bound.apply_defaults()
            return self._record(op, {name: value for name, value in bound.arguments.items() if name != "self"})

        return record

    def _record(self, op: str, arguments: dict[str, Any]) -> Node:
        node = Node(op, arguments, 0, len(self.nodes))
        node.columns = COLUMNS[op](arguments) if op in COLUMNS else node.inputs[0].columns
        for value in node.inputs:
            value.users.append(node)
        self.nodes.append(node)
        return node


def record(model: ForwardModel) -> list[Node]:
    """The ops of the model's forward pass."""
    trace = Trace()
    model.forward(cast(Ops, trace))
    return trace.nodes
