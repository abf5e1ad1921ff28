"""Maps in the form that evaluation packages want: one channel, as large as the image, signs kept."""

from dataclasses import replace
from typing import Any

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate, pad

from ..errors import ModelError
from ..explain import explain
from ..models.vision_model import VisionModel
from ..models.wrapping import wrap
from ..targets import Wanted

__all__ = ["attributions", "model_for"]


def attributions(
    model: VisionModel,
    images: Float[Tensor, "images channels height width"],
    target: Wanted,
    *,
    upsample: bool = True,
    **question: Any,
) -> Float[Tensor, "images 1 high wide"]:
    """Returns the raw maps, one channel each, bilinearly enlarged to the images' size unless `upsample` is False.

    `question` is what else `vitrail.explain` takes: method, against, gradient, batch_size and so on; its errors are
    raised.

    Example:
        >>> import torch, vitrail
        >>> attributions(vitrail.load("bestiary"), torch.randn(1, 3, 96, 96), 3).shape
        torch.Size([1, 1, 96, 96])
    """
    scores = explain(model, images, target, **question).scores[:, None]
    if not upsample:
        return scores
    size, covered = images.shape[-2:], model.tiled(images).shape[-2:]
    large = interpolate(scores, size=tuple(covered), mode="bilinear", align_corners=False)
    # What the model does not see counts for nothing, and what it pads is no pixel of the image.
    return pad(large, (0, size[1] - covered[1], 0, size[0] - covered[0]))


def model_for(bound: VisionModel | None, module: Any) -> VisionModel:
    """Returns the model to explain: the module that is handed over, with what the bound model knows of its tokens.

    Packages hand over the module itself, or a copy that they have changed (with weights drawn anew, say); it is the one
    that counts.

    Raises:
        ModelError: where there is neither.
    """
    if isinstance(module, VisionModel):
        return module
    if bound is not None:
        return bound if module is None or module is bound.module else replace(bound, module=module)
    if module is None:
        raise ModelError("there is no model to explain: give one to the bridge, or a module when it is called")
    return wrap(module)
