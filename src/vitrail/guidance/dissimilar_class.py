"""Which class a guide should show: one that the model holds for as unlike the target as any."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from ..errors import TargetError

__all__ = ["dissimilar_class", "poles"]


def poles(likeness: Float[Tensor, "classes classes"]) -> tuple[int, int]:
    """The two classes least like each other.

    Example:
        >>> import torch
        >>> poles(torch.tensor([[1.0, 0.2, -0.4], [0.2, 1.0, 0.3], [-0.4, 0.3, 1.0]]))
        (0, 2)
    """
    first, second = divmod(int(likeness.argmin()), len(likeness))
    return min(first, second), max(first, second)


def dissimilar_class(likeness: Float[Tensor, "classes classes"], targets: Sequence[int]) -> int:
    """The class to guide with: of the model's two poles the one less like the targets, so that two drawings do for all.

    Where that pole is itself among the targets, the class least like all of them is taken.

    Raises:
        TargetError: when no class is left.

    Example:
        >>> import torch
        >>> dissimilar_class(torch.tensor([[1.0, 0.2, -0.4], [0.2, 1.0, 0.3], [-0.4, 0.3, 1.0]]), [1])
        0
    """
    nearest = likeness[:, list(targets)].amax(dim=1)
    best = min(poles(likeness), key=lambda index: float(nearest[index])) if len(likeness) > 1 else 0
    if best not in targets:
        return best
    left = [index for index in range(len(likeness)) if index not in targets]
    if not left:
        raise TargetError(
            f"the model's {len(likeness)} class(es) are all targets, so no class is left that a guide could show"
        )
    return min(left, key=lambda index: float(nearest[index]))
