"""Relevance maps of one or two streams, carried through the attentions of a forward pass in their order."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from .rules import cross_attention, self_attention

__all__ = ["Asked", "Maps", "propagate"]


@dataclass(frozen=True, eq=False)
class Asked:
    """One attention: which stream asked which, its averaged heads, and the earlier attentions it was computed from."""

    queries: str
    keys: str
    weights: Float[Tensor, "batch queries keys"]
    after: frozenset[int] = frozenset()


@dataclass(frozen=True, eq=False)
class Maps:
    """What is relevant to a stream's tokens: its own tokens (less the identity), and the other stream's."""

    added: Float[Tensor, "batch own own"]
    cross: Float[Tensor, "batch own other"]


def propagate(attentions: Sequence[Asked], sizes: Mapping[str, int]) -> dict[str, Maps]:
    """Returns the maps of every stream after all attentions; `sizes` counts the tokens of one stream or two.

    Every attention reads both streams' maps as they stood after the last attention of each that it was computed from,
    and adds to those of the stream that asks. So the two directions of a co-attention layer, computed side by side,
    both read the maps from before the layer, as the paper has it; and a decoder, which its encoder never asks, reads
    the encoder's last.

    Example:
        >>> import torch
        >>> once = Asked("text", "image", torch.ones(1, 2, 3))
        >>> propagate([once], {"text": 2, "image": 3})["text"].cross.shape
        torch.Size([1, 2, 3])
    """
    like = attentions[0].weights
    names = list(sizes)
    other = {name: next((n for n in names if n != name), name) for name in names}
    # How the maps of each stream stood before its first attention (−1) and after each.
    history: dict[str, dict[int, Maps]] = {
        name: {
            -1: Maps(
                like.new_zeros(len(like), sizes[name], sizes[name]),
                like.new_zeros(len(like), sizes[name], sizes[other[name]]),
            )
        }
        for name in names
    }
    for index, asked in enumerate(attentions):
        own, others = (_seen(history[name], asked.after) for name in (asked.queries, asked.keys))
        if asked.queries == asked.keys:
            added, cross = self_attention(asked.weights, own.added, own.cross)
        else:
            added, cross = cross_attention(asked.weights, own.added, others.added, others.cross)
        latest = _latest(history[asked.queries])
        history[asked.queries][index] = Maps(latest.added + added, latest.cross + cross)
    return {name: _latest(stood) for name, stood in history.items()}


def _seen(stood: Mapping[int, Maps], after: frozenset[int]) -> Maps:
    return stood[max((index for index in stood if index in after), default=-1)]


def _latest(stood: Mapping[int, Maps]) -> Maps:
    return stood[max(stood)]
