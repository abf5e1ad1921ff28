"""Positive and negative perturbation as the released script of Transformer-Explainability goes about it.

Batch by batch and share by share, the images are copied, the pixels that `topk` names are set to black, the copies are
normalised, and the model is asked; every measure goes to the processor by itself. The script is run once for each way,
and each run asks for the unperturbed images again. Nothing in it switches gradients off, and its batch is of 16 images
unless it is told otherwise; `batch=1` and `gradients=False` are the slower and the quicker reading.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

__all__ = ["official_loop"]

SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


def official_loop(
    model: Callable[[Tensor], Tensor],
    pixels: Tensor,
    maps: Tensor,
    labels: Tensor,
    *,
    batch: int = 16,
    gradients: bool = True,
    mean: Sequence[float] = (0.5, 0.5, 0.5),
    std: Sequence[float] = (0.5, 0.5, 0.5),
) -> np.ndarray:
    """Hits of the true class, positive and negative way × nine shares × images.

    `model` gives logits of normalised images and keeps them on its device; `pixels` (images, 3, height, width) go from
    0 to 1; `maps` (images, height, width) are as large as the images; `labels` (images) are the true classes.
    """
    middle, spread = (torch.tensor(one, dtype=pixels.dtype, device=pixels.device).view(3, 1, 1) for one in (mean, std))
    found = np.zeros((2, len(SHARES), len(pixels)))
    with torch.set_grad_enabled(gradients):
        for way, sign in enumerate((1, -1)):
            for start in range(0, len(pixels), batch):
                some = slice(start, start + batch)
                images, scores, truth = pixels[some], sign * maps[some].flatten(1), labels[some]
                before = model((images - middle) / spread)
                _measures(before, before, truth)
                for step, share in enumerate(SHARES):
                    highest = scores.topk(int(scores.shape[1] * share), dim=-1).indices
                    flat = images.clone().flatten(2)
                    flat.scatter_(2, highest[:, None].repeat(1, flat.shape[1], 1), 0.0)
                    after = model((flat.view_as(images) - middle) / spread)
                    found[way, step, some] = _measures(after, before, truth)[0]
    return found


def _measures(after: Tensor, before: Tensor, truth: Tensor) -> list[np.ndarray]:
    """The script's four numbers of each image, each fetched from the device by itself."""
    probabilities = after.softmax(dim=1)
    second = probabilities.detach().topk(2, dim=1).values[:, 1]
    own = probabilities.gather(1, truth[:, None])[:, 0]
    numbers = [
        (after.detach().argmax(dim=1) == truth).double(),
        (own / second).log(),
        after.detach().amax(dim=1) - before.detach().amax(dim=1),
        probabilities.detach().amax(dim=1) - before.softmax(dim=1).amax(dim=1),
    ]
    return [one.detach().cpu().numpy() for one in numbers]
