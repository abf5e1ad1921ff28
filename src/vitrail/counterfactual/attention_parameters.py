"""Attention maps as the parameters of an optimisation: how a map A follows from what is varied, θ.

none      A = θ                   neither normalised nor kept positive
clamp     A = θ, θ ← max(θ, 0)    after each step: no negative attention, rows of any sum
softmax   A = softmax(θ) by rows  each row stays a distribution; θ starts at log A

A gradient with respect to A becomes one with respect to θ by `pull_back`. For the softmax this is A ⊙ (∇A − Σ A ⊙ ∇A),
the centred gradient times attention.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from ..attention.relevance_row import centre
from ..errors import OptionError, UnsupportedAttentionError

__all__ = ["CONSTRAINTS", "Constraint", "find_constraint"]

Map: TypeAlias = Float[Tensor, "images heads queries keys"]


@dataclass(frozen=True)
class Constraint:
    """One way to vary attention: where θ starts, the attention it stands for, its gradient, and what keeps it valid."""

    name: str
    start: Callable[[Map], Map]
    attention: Callable[[Map], Map]
    pull_back: Callable[[Map, Map], Map]
    project: Callable[[Map], Map]


def _same(tensor: Map) -> Map:
    return tensor


def _through(attention: Map, gradient: Map) -> Map:
    del attention
    return gradient


def _no_negatives(parameter: Map) -> Map:
    return parameter.clamp(min=0)


def _logarithm(attention: Map) -> Map:
    """θ = log A, where a zero (a masked key) counts as the smallest positive number.

    Raises:
        UnsupportedAttentionError: for a row without attention, which no softmax can give.
    """
    empty = int((attention.sum(dim=-1) == 0).sum())
    if empty:
        raise UnsupportedAttentionError(
            f"{empty} of {attention[..., 0].numel()} rows of an attention map are zero (all keys masked), which no "
            'softmax can give: use constraint=None or "clamp"'
        )
    return attention.clamp_min(torch.finfo(attention.dtype).tiny).log()


def _softmax(parameter: Map) -> Map:
    return parameter.softmax(dim=-1)


def _softmax_gradient(attention: Map, gradient: Map) -> Map:
    return attention * centre(attention, gradient)


CONSTRAINTS: dict[str, Constraint] = {
    "none": Constraint("none", _same, _same, _through, _same),
    "clamp": Constraint("clamp", _same, _same, _through, _no_negatives),
    "softmax": Constraint("softmax", _logarithm, _softmax, _softmax_gradient, _same),
}


def find_constraint(name: str | None) -> Constraint:
    """The constraint of that name; None is "none".

    Raises:
        OptionError: for a name that is not one.

    Example:
        >>> softmax = find_constraint("softmax")
        >>> attention = torch.tensor([[[[0.25, 0.75]]]])
        >>> softmax.attention(softmax.start(attention))
        tensor([[[[0.2500, 0.7500]]]])
    """
    known = CONSTRAINTS.get("none" if name is None else name)
    if known is None:
        raise OptionError(f"constraint={name!r} is not known; choose one of {', '.join(CONSTRAINTS)}")
    return known
