"""Max-sensitivity (Yeh et al. 2019): how far the map moves when the image hardly does.

    max over samples of  ‖ e(x + δ) − e(x) ‖_F / ‖ e(x) ‖_F ,      δ uniform in a box of ±radius

Numbers are comparable only between equal radii, sample counts and spaces. Englebert et al. (TIS) take Captum's 10
samples of radius 0.02 on the normalised image; the default of Quantus is 200 samples of radius 0.2.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from ...errors import OptionError
from ..aggregation import Curves, Statistic
from ..protocol import AttributionQuery, Case, Evaluation, Measured, check_one_of, register_protocol

__all__ = ["SPACES", "boxed_noise", "max_sensitivity", "sensitivities"]

SPACES = ("normalised", "pixels")
TOGETHER = 10  # changed images at a time: those of many cases wait side by side in memory


def sensitivities(
    original: Float[Tensor, "rows cols"], perturbed: Float[Tensor, "samples rows cols"]
) -> Float[Tensor, " samples"]:
    """Returns the relative distance of each perturbed map from the original; for an original of zeros the plain
    distance.

    The largest is the max-sensitivity of Yeh et al., as `captum.metrics.sensitivity_max` has it.

    Example:
        >>> sensitivities(torch.tensor([[3.0, 4.0]]), torch.tensor([[[3.0, 4.0]], [[0.0, 0.0]]])).tolist()
        [0.0, 1.0]
    """
    distance = (perturbed - original).flatten(1).norm(dim=1)
    size = original.norm()
    return distance / torch.where(size == 0, torch.ones_like(size), size)


def boxed_noise(
    image: Float[Tensor, "channels height width"],
    samples: int,
    radius: float | int | Float[Tensor, " channels"],
    generator: torch.Generator,
) -> Float[Tensor, "samples channels height width"]:
    """Returns δ, uniform in ±radius (one number, or one per channel), the same for the same generator.

    Raises:
        OptionError: for fewer than one sample, or a radius that is not above 0.

    Example:
        >>> noise = boxed_noise(torch.zeros(3, 4, 4), 2, 0.02, torch.Generator().manual_seed(0))
        >>> noise.shape, bool((noise.abs() <= 0.02).all())
        (torch.Size([2, 3, 4, 4]), True)
    """
    width = torch.as_tensor(radius, dtype=torch.float32).reshape(-1, 1, 1)
    if samples < 1 or bool((width <= 0).any()):
        raise OptionError(f"samples={samples} and radius={radius} must be 1 or more and above 0")
    # Each sample is drawn by itself, on the CPU: the same numbers wherever and with however many others.
    drawn = [torch.rand(image.shape, generator=generator, dtype=torch.float32) for _ in range(samples)]
    return ((2 * torch.stack(drawn) - 1) * width).to(image)


def summarise_sensitivity(curves: Curves, **_: object) -> dict[str, Statistic]:
    """Returns the means over images of the largest and of the mean sensitivity; both better low."""
    return {
        "max-sensitivity": Statistic.mean(curves.single("largest"), -1),
        "mean sensitivity": Statistic.mean(curves.single("mean"), -1),
    }


@register_protocol(
    "max_sensitivity", summarise=summarise_sensitivity, reference="Yeh et al. 2019; Englebert et al. 2023"
)
def max_sensitivity(
    case: Case,
    scores: Float[Tensor, "rows cols"],
    *,
    samples: int = 10,
    radius: float | int = 0.02,
    space: str = "normalised",
) -> Evaluation:
    """How far the map of the same class moves when the image is changed by a little uniform noise.

    `radius`: half the width of the noise, in the units of `space`: of the model's "normalised" input, or of "pixels"
    from 0 to 1. The defaults are Captum's, which TIS uses; those of Quantus are samples=200, radius=0.2.
    """
    check_one_of("space", space, SPACES)
    width: float | int | Tensor = radius
    if space == "pixels":
        if case.white is None:
            raise OptionError('space="pixels" needs a model whose preprocessing is known; use space="normalised"')
        width = radius * (torch.tensor(case.white) - torch.tensor(case.black))
    generator = case.generator()
    found = []
    for start in range(0, max(samples, 1), TOGETHER):
        count = min(TOGETHER, samples - start)
        images = case.image + boxed_noise(case.image, count, width, generator)
        maps = yield AttributionQuery(images, [case.target] * count)
        found.append(sensitivities(scores.double(), maps.to(scores.device).double()))
    moved = torch.cat(found)
    return [Measured("largest", None, float(moved.max())), Measured("mean", None, float(moved.mean()))]
