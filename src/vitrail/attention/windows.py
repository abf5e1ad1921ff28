"""Calls of attention whose windows, images and heads share dimensions, brought into (windows, heads, tokens, width).

Which dimensions are which is told by the labels of the tokens while a model is followed, and by its token graph later.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import UnsupportedAttentionError
from .calls import AnyCall, AttentionCall
from .token_graph import TokenGraph

__all__ = [
    "GraphVisitor",
    "call_by_windows",
    "group_dimensions",
    "in_four_dimensions",
    "join_windows",
    "part_windows",
    "scores_in_four_dimensions",
]


def group_dimensions(tokens: Float[Tensor, "*groups queries"]) -> tuple[int, ...]:
    """Returns the leading dimensions that count windows and images; along the others, the heads, the tokens are
    the same.
    """
    leading = range(tokens.dim() - 1)
    return tuple(one for one in leading if tokens.shape[one] > 1 and bool((tokens != tokens.narrow(one, 0, 1)).any()))


def in_four_dimensions(attend: Callable[[AttentionCall], Tensor], groups: Sequence[int], call: AnyCall) -> Tensor:
    """Runs attention of more dimensions as (groups, heads, tokens, width), and gives its output back as it was."""
    if call.mask is not None or call.grouped:
        raise UnsupportedAttentionError("attention in more than four dimensions with a mask or grouped queries")
    scale = call.query.shape[-1] ** -0.5 if call.scale is None else call.scale
    query, key, value = (_arranged(one, groups) for one in (call.query, call.key, call.value))
    output = attend(AttentionCall(query, key, value, None, call.causal, scale))
    return _as_before(output, groups, call.query.shape[:-2])


def scores_in_four_dimensions(
    normalise: Callable[[Tensor], Tensor], groups: Sequence[int], scores: Float[Tensor, "*groups queries keys"]
) -> Float[Tensor, "*groups queries keys"]:
    """Gives `normalise` scores of more dimensions as (groups, heads, queries, keys), and its result back as it was."""
    return _as_before(normalise(_arranged(scores, groups)), groups, scores.shape[:-2])


def _order(groups: Sequence[int], leading: int) -> list[int]:
    """The dimensions that count groups, then those that count heads, then the last two."""
    return [*groups, *(one for one in range(leading) if one not in groups), leading, leading + 1]


def _arranged(
    tensor: Float[Tensor, "*leading rows width"], groups: Sequence[int]
) -> Float[Tensor, "groups heads rows width"]:
    arranged = tensor.permute(_order(groups, tensor.dim() - 2))
    outer, inner = arranged.shape[: len(groups)], arranged.shape[len(groups) : -2]
    return arranged.reshape(outer.numel(), inner.numel(), *tensor.shape[-2:])


def _as_before(
    arranged: Float[Tensor, "groups heads rows width"], groups: Sequence[int], leading: Sequence[int]
) -> Float[Tensor, "*leading rows width"]:
    order = _order(groups, len(leading))
    spread = arranged.reshape(*(leading[one] for one in order[:-2]), *arranged.shape[-2:])
    return spread.permute(torch.tensor(order).argsort().tolist())


def part_windows(
    joined: Float[Tensor, "images windows_and_heads rows width"], heads: int, within: int
) -> Float[Tensor, "windows heads rows width"]:
    """Returns a tensor in which windows and heads share dimensions, (windows, heads, `within` windows), with them
    apart.
    """
    return joined.reshape(-1, heads, within, *joined.shape[-2:]).transpose(1, 2).flatten(0, 1)


def join_windows(apart: Float[Tensor, "windows heads rows width"], within: int, like: Tensor) -> Tensor:
    """Returns a tensor as it was before `part_windows`, its first two dimensions those of `like`."""
    return apart.unflatten(0, (-1, within)).transpose(1, 2).reshape(*like.shape[:2], *apart.shape[-2:])


def call_by_windows(call: AttentionCall, heads: int, within: int) -> AttentionCall:
    """Returns a call with windows and heads apart."""
    mask = call.mask
    if mask is not None:
        mask = mask.reshape((1,) * (4 - mask.dim()) + tuple(mask.shape))
        if mask.shape[:2] != (1, 1):
            mask = part_windows(mask.expand(call.images, call.heads, *mask.shape[2:]), heads, within)
    query, key, value = (part_windows(one, heads, within) for one in (call.query, call.key, call.value))
    return replace(call, query=query, key=key, value=value, mask=mask)


class GraphVisitor:
    """Brings attention to `inner` with windows and heads apart; the graph says which dimensions are which."""

    def __init__(self, inner: Any, graph: TokenGraph) -> None:
        self.inner, self.graph = inner, graph
        self.calls = 0

    def attend(self, call: AttentionCall) -> Tensor:
        joined = self.graph.joined.get(self.calls)
        self.calls += 1
        apart = replace(call if joined is None else call_by_windows(call, *joined), windows=True)
        output = self.inner.attend(apart)
        return output if joined is None else join_windows(output, joined[1], call.query)

    def normalise(self, scores: Tensor) -> Tensor:
        joined = self.graph.joined.get(self.calls)
        self.calls += 1
        if joined is None:
            return self.inner.normalise(scores)
        return join_windows(self.inner.normalise(part_windows(scores, *joined)), joined[1], scores)

    def attend_any(self, call: AnyCall) -> Tensor:
        """Computes attention over the last two of any number of dimensions."""
        return in_four_dimensions(self.attend, self.graph.arrangement[self.calls], call)

    def normalise_any(self, scores: Float[Tensor, "*groups queries keys"]) -> Float[Tensor, "*groups queries keys"]:
        """Computes probabilities over the last of any number of dimensions."""
        return scores_in_four_dimensions(self.normalise, self.graph.arrangement[self.calls], scores)
