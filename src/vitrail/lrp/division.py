"""How a rule divides relevance by what it is shared out over, R / Z, where Z comes near zero."""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import OptionError

__all__ = ["Divide", "Precision", "divide", "find_precision", "stabilised_divide"]

Divide: TypeAlias = Callable[[Tensor, Tensor], Tensor]

# The part of a row's root mean square below which a divisor counts as small, in the stabilised division.
SMALL = 0.01


def divide(relevance: Float[Tensor, "..."], total: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """R / (Z + 1e-9), and zero where Z is zero (as in the code of Chefer, Gur, Wolf).

    Near Z = 0 the quotient is as large as it comes out, so that its digits need float64.
    """
    quotient = relevance / (total + 1e-9)
    if int(torch.count_nonzero(total)) == total.numel():
        return quotient
    return quotient.masked_fill_(total == 0, 0.0)


def stabilised_divide(relevance: Float[Tensor, "..."], total: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """R Z / (Z² + δ²), with δ a fixed part of the root mean square of Z along its last dimension.

    Equal to R / Z where Z is large, and bounded by R / 2δ where it is small: float32 is then enough. What is lost of
    the relevance is what R / Z would have blown up.
    """
    square = total.square()
    floor = square.mean(dim=-1, keepdim=True) * SMALL**2 + torch.finfo(total.dtype).tiny
    return relevance * total / (square + floor)


class Precision(NamedTuple):
    """The type that the model runs in under relevance rules, and how these divide.

    `divides_clones`: whether relevance that comes from several readers of x is x Σ_k R_k / x, as in the authors' code,
    or Σ_k R_k, which is the same but where x is next to nothing.
    """

    dtype: torch.dtype
    divide: Divide
    divides_clones: bool


_PRECISIONS = {
    "float64": Precision(torch.float64, divide, True),
    "stabilised": Precision(torch.float32, stabilised_divide, False),
}


def find_precision(name: str, device: torch.device) -> Precision:
    """The precision of that name, on a device that has it.

    Raises:
        OptionError: for any other name than "float64" and "stabilised", and for float64 where the device has none.
    """
    if name not in _PRECISIONS:
        raise OptionError(
            f"precision={name!r} is none of {', '.join(_PRECISIONS)}: float64 runs the rules as they are written, "
            "stabilised runs them in float32 with divisors kept away from zero"
        )
    if device.type == "mps" and _PRECISIONS[name].dtype == torch.float64:
        raise OptionError(
            f"{device.type} has no float64, which the rules run in: move the model to the CPU, or take "
            "precision='stabilised'"
        )
    return _PRECISIONS[name]
