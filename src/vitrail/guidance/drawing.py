"""A guide that the model draws itself: gradient ascent on a class's logit, from noise. No picture is needed."""

from collections.abc import Sequence
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate

from ..methods.context import Progress
from ..models.readiness import refuse_training
from ..models.vision_model import VisionModel
from .stitching import Stitch

__all__ = ["STEPS", "draw_guide"]

STEPS = 120
CELL = 8  # pixels of the coarse grid: 28 × 14 cells for a half of 224 × 112
COARSE_RATE, FINE_RATE = 0.15, 0.03  # Adam's steps, before the sigmoid

Key = tuple[object, ...]
_DRAWN: WeakKeyDictionary[torch.nn.Module, dict[Key, Tensor]] = WeakKeyDictionary()


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
    """A picture, normalised, in which the model sees class `index`, as large as the guide's half of `plans`.

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


def _weights(module: torch.nn.Module) -> tuple[int, ...]:
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
