"""Which attention of a forward pass was computed from which: read from autograd's graph, without running it."""

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

__all__ = ["depends_on"]


def depends_on(maps: Sequence[Tensor]) -> list[frozenset[int]]:
    """Returns, for every tensor, the indices of the earlier ones from which it was computed, directly or not.

    The tensors stand in the order in which they were computed, all of them in one graph.

    Example:
        >>> import torch
        >>> a = torch.ones(2, requires_grad=True)
        >>> b = torch.ones(2, requires_grad=True)
        >>> [sorted(found) for found in depends_on([a, b, a * 2])]
        [[], [], [0]]
    """
    found: list[frozenset[int]] = []
    at: dict[Any, int] = {}
    for index, tensor in enumerate(maps):
        direct = set(_nearest(tensor.grad_fn, at)) if tensor.grad_fn is not None else set()
        found.append(frozenset(direct.union(*(found[before] for before in direct))))
        at[tensor if tensor.grad_fn is None else tensor.grad_fn] = index
    return found


def _nearest(start: Any, known: dict[Any, int]) -> Iterator[int]:
    """Returns the known nodes that are reached from `start` without passing through another known one."""
    seen, todo = {start}, [start]
    while todo:
        for node, _ in todo.pop().next_functions:
            # A leaf is no node itself: what leads to it holds it as its variable.
            place = getattr(node, "variable", node)
            if node is None or node in seen:
                continue
            seen.add(node)
            if place in known:
                yield known[place]
            else:
                todo.append(node)
