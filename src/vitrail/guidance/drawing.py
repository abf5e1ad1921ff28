"""A guide that the model draws itself: gradient ascent on a class's logit, from noise. No picture is needed.

The class is one that the model holds for as unlike the target as any (`dissimilar_class`).
"""

from collections.abc import Sequence
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import interpolate

from ..errors import TargetError
from ..methods.context import Progress
from ..models.readiness import refuse_training
from ..models.vision_model import VisionModel
from ..objectives import class_rows, directions
from ..provenance import Stitch

__all__ = ["STEPS", "class_likeness", "dissimilar_class", "draw_guide", "poles"]

STEPS = 120
PROBES = 16  # pictures of noise, which a model without a classifier is asked about
CELL = 8  # pixels of the coarse grid: 28 × 14 cells for a half of 224 × 112
COARSE_RATE, FINE_RATE = 0.15, 0.03  # Adam's steps, before the sigmoid

Key = tuple[object, ...]
_DRAWN: WeakKeyDictionary[nn.Module, dict[Key, Tensor]] = WeakKeyDictionary()


@torch.no_grad()
def class_likeness(model: VisionModel, size: tuple[int, int, int], classes: int) -> Float[Tensor, "classes classes"]:
    """Returns the similarity of two classes to the model, from −1 to 1: the cosine of their rows of the classifier.

    The classifier is the last linear layer with as many outputs as there are classes; what all its rows share is taken
    out first. A model without one is asked about `PROBES` pictures of coarse noise: then likeness is the correlation of
    the classes' logits over these.
    """
    rows = class_rows(model, classes)
    if rows is None:
        generator = torch.Generator().manual_seed(0)
        coarse = torch.randn(PROBES, size[0], 8, 8, generator=generator)
        noise = interpolate(coarse, size=size[1:], mode="bilinear", align_corners=False)
        rows = model.logits(noise).cpu().double().T
        rows = directions(rows - rows.mean(dim=1, keepdim=True))
    return (rows.double() @ rows.double().T).cpu()


def poles(likeness: Float[Tensor, "classes classes"]) -> tuple[int, int]:
    """Returns the two classes least like each other.

    Example:
        >>> poles(torch.tensor([[1.0, 0.2, -0.4], [0.2, 1.0, 0.3], [-0.4, 0.3, 1.0]]))
        (0, 2)
    """
    first, second = divmod(int(likeness.argmin()), len(likeness))
    return min(first, second), max(first, second)


def dissimilar_class(likeness: Float[Tensor, "classes classes"], targets: Sequence[int]) -> int:
    """Returns the class to guide with: of the model's two poles the one less like the targets, so that two drawings do
    for all.

    Where that pole is itself among the targets, the class least like all of them is taken.

    Raises:
        TargetError: when no class is left.

    Example:
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


@torch.inference_mode(False)
def draw_guide(
    model: VisionModel,
    index: int,
    plans: Sequence[Stitch],
    *,
    channels: int = 3,
    seed: int = 0,
    steps: int = STEPS,
    progress: Progress | None = None,
) -> Float[Tensor, "channels height width"]:
    """Returns a picture, normalised, in which the model sees class `index`, as large as the guide's half of `plans`.

    It is optimised where it will lie: in the guide's half, the other half being the mean colour; over all `plans` (both
    sides, say) at once. The pixels are a sigmoid of a coarse grid of colours plus fine detail, so they stay within what
    a picture can show; both are moved by Adam for `steps` steps. The same model, class, seed and plans give the same
    picture. It is kept for as long as the module lives and its weights are not written to. `progress` is called with
    ("drawing a guide", steps done, steps) before each step.

    Raises:
        TrainingModeError: as `explain` does.
    """
    key = (index, tuple(plans), channels, seed, steps, str(model.device), str(model.dtype), _weights(model.module))
    known = _DRAWN.setdefault(model.module, {})
    if key not in known:
        refuse_training(model.module)
        known[key] = _draw(model, index, plans, channels, seed, steps, progress)
    return known[key].clone()


def _weights(module: nn.Module) -> tuple[int, ...]:
    """Which weights these are, and how often each was written to: training in between makes a new drawing."""
    tensors = (*module.parameters(), *module.buffers())
    return tuple(number for t in tensors if not t.is_inference() for number in (t.data_ptr(), t._version))


def _draw(
    model: VisionModel,
    index: int,
    plans: Sequence[Stitch],
    channels: int,
    seed: int,
    steps: int,
    progress: Progress | None,
) -> Float[Tensor, "channels height width"]:
    half, patch = plans[0].guide, plans[0].patch
    size = (half.rows * patch[0], half.cols * patch[1])
    darkest, brightest = _range(model, channels)
    generator = torch.Generator().manual_seed(seed)
    cells = (max(1, size[0] // CELL), max(1, size[1] // CELL))
    coarse = (0.5 * torch.randn(1, channels, *cells, generator=generator)).to(model.device, torch.float32)
    fine = (0.05 * torch.randn(1, channels, *size, generator=generator)).to(model.device, torch.float32)
    parts = [coarse.requires_grad_(), fine.requires_grad_()]
    rates = [{"params": [coarse], "lr": COARSE_RATE}, {"params": [fine], "lr": FINE_RATE}]
    optimiser = torch.optim.Adam(rates, foreach=False)

    def picture() -> Tensor:
        share = (interpolate(coarse, size=size, mode="bilinear", align_corners=False) + fine).sigmoid()
        return darkest + (brightest - darkest) * share

    with torch.enable_grad():
        for step in range(steps):
            if progress is not None:
                progress("drawing a guide", step, steps)
            inputs = torch.cat([_in_place(picture(), plan) for plan in plans])
            loss = -model.logits(inputs)[:, index].float().mean()
            # Asked for by name: gradients of the weights are neither computed nor left behind.
            for part, gradient in zip(parts, torch.autograd.grad(loss, parts), strict=True):
                part.grad = gradient
            optimiser.step()
    return picture().detach()[0].to(model.dtype)


def _in_place(picture: Tensor, plan: Stitch) -> Tensor:
    rows, cols = plan.guide.slices(plan.patch)
    around = (cols.start, plan.size[1] - cols.stop, rows.start, plan.size[0] - rows.stop)
    return torch.nn.functional.pad(picture, around)


def _range(model: VisionModel, channels: int) -> tuple[Tensor, Tensor]:
    """Black and white as the model takes them; −2 and 2 where its normalisation is not known."""
    if model.preprocess is None or channels != model.preprocess.channels:
        ends = torch.full((channels, 1, 1), 2.0, device=model.device)
        return -ends, ends
    colours = (model.preprocess.mean, model.preprocess.std)
    mean, std = (torch.tensor(values, device=model.device)[:, None, None] for values in colours)
    return -mean / std, (1 - mean) / std
