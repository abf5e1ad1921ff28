"""Quantus (Hedström et al. 2023) calls an `explain_func(model, inputs, targets, **kwargs)`; this makes one."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..models.vision_model import VisionModel
from ..models.wrapping import wrap
from .attributions import attributions, model_for

__all__ = ["quantus_explainer"]


def quantus_explainer(
    model: VisionModel | nn.Module | None = None, method: str = "complete", *, upsample: bool = True, **options: Any
) -> Callable[..., np.ndarray]:
    """Returns an explainer for any metric of Quantus: its `explain_func`.

    Args:
        model: what knows the tokens' layout, where the bare module does not tell it; by default the module that Quantus
            hands over is wrapped. In either case it is the module handed over that is explained: metrics that draw
            weights anew hand over changed copies.
        method: a name from `vitrail.list_methods()`.
        upsample: bilinearly to the size of the inputs, which most metrics need; otherwise the patches' own grid.
        **options: as for `vitrail.explain`; Quantus' own `explain_func_kwargs` override them, `method` among them. A
            `device` among those is ignored: the model's own counts.

    Returns:
        A callable (model, inputs, targets, **kwargs) → float array (images, 1, height, width), raw and signed. The
        inputs are normalised, channels first. Several metrics of Quantus take absolute values, or divide by the
        maximum, unless they are given `abs=False` and `normalise=False`.

    Raises:
        VitrailError: when called, as `vitrail.explain` does.

    Example:
        >>> import vitrail
        >>> model = vitrail.load("bestiary")
        >>> explain_func = quantus_explainer(model, method="complete", gradient="libra")
        >>> explain_func(model.module, np.zeros((2, 3, 96, 96), dtype=np.float32) + 0.1, np.array([3, 5])).shape
        (2, 1, 96, 96)
    """
    bound = None if model is None else model if isinstance(model, VisionModel) else wrap(model)
    fixed = {"method": method, "upsample": upsample, **options}
    last: tuple[Any, VisionModel] | None = None  # a metric asks about one module many times

    def explain_func(model: Any = None, inputs: Any = None, targets: Any = None, **kwargs: Any) -> np.ndarray:
        nonlocal last
        kwargs.pop("device", None)
        if last is None or last[0] is not model:
            last = model, model_for(bound, model)
        images = inputs if isinstance(inputs, Tensor) else torch.from_numpy(np.ascontiguousarray(inputs))
        wanted = None if targets is None else torch.as_tensor(targets).reshape(-1)
        return attributions(last[1], images, wanted, **{**fixed, **kwargs}).numpy(force=True)

    return explain_func
