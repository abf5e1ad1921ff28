"""How alike the model holds two classes to be, read from its classifier."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .vision_model import VisionModel

__all__ = ["class_likeness", "class_rows"]

PROBES = 16


@torch.no_grad()
def class_likeness(model: VisionModel, size: tuple[int, int, int], classes: int) -> Float[Tensor, "classes classes"]:
    """How alike the model holds two classes to be, from −1 to 1: the cosine between their rows of the classifier.

    The classifier is the last linear layer with as many outputs as there are classes; what all its rows share is taken
    out first. A model without one is asked about `PROBES` pictures of coarse noise: then likeness is the correlation of
    the classes' logits over these.
    """
    rows = class_rows(model, classes)
    if rows is None:
        generator = torch.Generator().manual_seed(0)
        coarse = torch.randn(PROBES, size[0], 8, 8, generator=generator)
        noise = nn.functional.interpolate(coarse, size=size[1:], mode="bilinear", align_corners=False)
        rows = model.logits(noise).cpu().double().T
        rows = _directions(rows - rows.mean(dim=1, keepdim=True))
    return (rows.double() @ rows.double().T).cpu()


def class_rows(model: VisionModel, classes: int) -> Float[Tensor, "classes width"] | None:
    """The classifier's rows without what all share, each of length 1; None where no linear classifier can be read.

    They stay on a GPU where the model does: on the CPU, a thousand classes take as long as a GPU takes for ten images.
    """
    heads = [part for part in model.module.modules() if isinstance(part, nn.Linear) and part.out_features == classes]
    if not heads:
        return None
    weight = heads[-1].weight.detach()
    try:
        rows = torch.as_tensor(weight if weight.is_cuda else weight.cpu())
        return _directions(rows if rows.dtype == torch.float64 else rows.float())
    except (NotImplementedError, RuntimeError, TypeError):  # quantized by a library whose tensors know few operations
        return None


def _directions(rows: Float[Tensor, "classes width"]) -> Float[Tensor, "classes width"]:
    rows = rows - rows.mean(dim=0)
    return rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-12)
