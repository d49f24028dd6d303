"""Tensors that are made when they are asked for, and not kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from pagoda.types import RawTensor


class LazyTensors(Mapping[str, RawTensor]):
    """For each of `names`, what `make` gives."""

    def __init__(self, names: Iterable[str], make: Callable[[str], RawTensor]) -> None:
        self._names = dict.fromkeys(names)
        self._make = make

    def __getitem__(self, name: str) -> RawTensor:
        if name not in self._names:
            raise KeyError(name)
        return self._make(name)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
