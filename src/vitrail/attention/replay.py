"""The beginning of a forward pass played again instead of computed, when only the end of the model has changed.

A model that is given the same images calls the same functions in the same order, whatever its modules look like. So the
results of all calls up to some attention are kept, and a second pass is handed them one after the other; from that
attention on it is computed anew. Both passes share one graph for the backward pass.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["DivergedError", "Replay"]


class DivergedError(Exception):
    """The second pass has called something else than the first, so there is nothing to hand it."""


class Replay(TorchFunctionMode):
    """Keeps the results of all calls before the attention `last`, and plays them again.

    Enter it inside the tap's block, so that it sees a call before the tap does. `mark(layer)` is to be called while an
    attention runs: a pass can be taken up again there.
    """

    def __init__(self, last: int) -> None:
        super().__init__()
        self.last = last
        self._calls: list[tuple[Callable[..., Any], Any]] = []
        self._marks: dict[int, tuple[int, list[int]]] = {}
        self._recording = True
        self._position = self._until = 0

    def mark(self, layer: int) -> None:
        """Marks that attention `layer` has been reached in the first pass."""
        if self._recording:
            self._marks[layer] = len(self._calls), self._versions(len(self._calls))
            self._recording = layer < self.last

    def rewind(self, layer: int) -> bool:
        """Replays everything before attention `layer` in the next pass; returns False where that has changed.

        A model that adds in place (x += …) behind that attention has written over what the next pass would read.
        """
        self._recording = False
        position, versions = self._marks[layer]
        self._position = self._until = 0
        if self._versions(position) != versions:
            return False
        self._until = position
        return True

    def forget(self) -> None:
        """Replays nothing in the next pass."""
        self._position = self._until = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if self._position < self._until:
            known, result = self._calls[self._position]
            if known != func:  # getters of attributes are made anew for every call, and equal
                raise DivergedError(f"{func} where the first pass called {known}")
            self._position += 1
            return list(result) if type(result) is list else result
        result = func(*args, **(kwargs or {}))
        if self._recording:
            self._calls.append((func, list(result) if type(result) is list else result))
        return result

    def _versions(self, position: int) -> list[int]:
        return [tensor._version for _, result in self._calls[:position] for tensor in _tensors(result)]


def _tensors(result: Any) -> Iterator[Tensor]:
    if isinstance(result, Tensor):
        yield result
    elif isinstance(result, tuple | list):
        for item in result:
            yield from _tensors(item)
