"""Two ways down a slope, as PyTorch takes them (`torch.optim`), on plain tensors and with nothing hidden.

sgd     θ ← θ − η g
adam    m ← β₁ m + (1 − β₁) g,  v ← β₂ v + (1 − β₂) g²,  θ ← θ − η (m / (1 − β₁ᵗ)) / (√(v / (1 − β₂ᵗ)) + ε)

PyTorch's own classes load its compiler, which takes seconds, before they take the first step.
"""

import math
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from ..errors import OptionError

__all__ = ["OPTIMISERS", "Moments", "Optimiser", "Tensors", "find_optimiser"]

BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-8  # Kingma and Ba 2015, and PyTorch's defaults

Tensors: TypeAlias = tuple[Tensor, ...]
# What an optimiser remembers of each parameter, by name: nothing for SGD.
Moments: TypeAlias = dict[str, Tensors]
Optimiser: TypeAlias = Callable[[Tensors, Tensors, Moments, int, float], tuple[Tensors, Moments]]


def sgd(parameters: Tensors, gradients: Tensors, moments: Moments, number: int, rate: float) -> tuple[Tensors, Moments]:
    """Plain gradient descent; the new parameters, and nothing to remember."""
    del number
    return tuple(p - rate * g for p, g in zip(parameters, gradients, strict=True)), moments


def adam(
    parameters: Tensors, gradients: Tensors, moments: Moments, number: int, rate: float
) -> tuple[Tensors, Moments]:
    """Adam (Kingma and Ba 2015); the new parameters and moments. `number` counts the steps from 1."""
    zeros = tuple(torch.zeros_like(p) for p in parameters)
    old_first, old_second = moments.get("first", zeros), moments.get("second", zeros)
    first = tuple(torch.lerp(m, g, 1 - BETA_1) for m, g in zip(old_first, gradients, strict=True))
    second = tuple(BETA_2 * v + (1 - BETA_2) * g * g for v, g in zip(old_second, gradients, strict=True))
    step, scale = rate / (1 - BETA_1**number), math.sqrt(1 - BETA_2**number)
    moved = tuple(
        p - step * m / (v.sqrt() / scale + EPSILON) for p, m, v in zip(parameters, first, second, strict=True)
    )
    return moved, {"first": first, "second": second}


OPTIMISERS: dict[str, Optimiser] = {"sgd": sgd, "adam": adam}


def find_optimiser(name: str) -> Optimiser:
    """The optimiser of that name.

    Raises:
        OptionError: for a name that is not one.
    """
    if name not in OPTIMISERS:
        raise OptionError(f"optimiser={name!r} is not known; choose one of {', '.join(OPTIMISERS)}")
    return OPTIMISERS[name]
