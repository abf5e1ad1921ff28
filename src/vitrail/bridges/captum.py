"""Vitrail's methods in Captum's manner (Kokhlikyan et al. 2020): attribute(inputs, target=…), tensors in and out."""

from collections.abc import Callable
from functools import wraps
from typing import Any

from torch import Tensor, nn

from ..errors import OptionError, TargetError
from ..models.vision_model import VisionModel
from .attributions import attributions, model_for

__all__ = ["CaptumAttribution"]


def _wrapped(attribute: Callable[..., Any]) -> Callable[..., Any]:
    """Returns the method with the `__wrapped__` that Captum's logging gives its own, and by which `NoiseTunnel`
    calls it.
    """

    @wraps(attribute)
    def logged(self: "CaptumAttribution", *args: Any, **options: Any) -> Any:
        return attribute(self, *args, **options)

    return logged


class CaptumAttribution:
    """A method of Vitrail that can stand where one of Captum's `Attribution` classes is expected.

    Args:
        model: from `vitrail.load` or `vitrail.wrap`; a bare module is wrapped.
        method: a name from `vitrail.list_methods()`.
        **options: as for `vitrail.explain`; `attribute` may override them.

    Example:
        >>> import torch, vitrail
        >>> attribution = CaptumAttribution(vitrail.load("bestiary"), "complete", gradient="libra")
        >>> attribution.attribute(torch.randn(2, 3, 96, 96), target=3).shape
        torch.Size([2, 1, 96, 96])
    """

    def __init__(self, model: VisionModel | nn.Module, method: str = "complete", **options: Any) -> None:
        self.model = model_for(None, model)
        self.options = {"method": method, **options}

    @property
    def forward_func(self) -> nn.Module:
        """Returns the module whose answer is explained."""
        return self.model.module

    @property
    def multiplies_by_inputs(self) -> bool:
        """Returns False: scores are of patches, neither of inputs nor of changes of them."""
        return False

    def has_convergence_delta(self) -> bool:
        """Returns False: scores do not sum to the logit."""
        return False

    @_wrapped
    def attribute(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        baselines: Any = None,
        target: Any = None,
        additional_forward_args: Any = None,
        *,
        upsample: bool = True,
        **options: Any,
    ) -> Tensor | tuple[Tensor, ...]:
        """Returns raw, signed scores of a batch of normalised images.

        Args:
            inputs: (images, channels, height, width), or a tuple of that one tensor, as Captum's metrics give it.
            baselines: none: no method here compares with one in this form.
            target: a class for all images, or one for each; None for the predicted one.
            additional_forward_args: none; give them to `vitrail.wrap` as `forward_options`.
            upsample: bilinearly to the images' size; otherwise the patches' own grid.
            **options: as for `vitrail.explain`.

        Returns:
            (images, 1, height, width), of the inputs' type and on their device; in a tuple if the inputs were. It goes
            with the inputs' channels as it is; `captum.metrics.infidelity` wants it `.expand_as(inputs)`.

        Raises:
            OptionError: for baselines, additional arguments, or more than one input tensor.
            TargetError: for targets of several dimensions, which Captum has for other outputs than classes.
            VitrailError: as `vitrail.explain` does.
        """
        images, packed = (inputs[0], True) if isinstance(inputs, tuple) and len(inputs) == 1 else (inputs, False)
        if not isinstance(images, Tensor):
            raise OptionError("attribute() takes one tensor of images, or a tuple of one; a ViT has no other inputs")
        if baselines is not None:
            raise OptionError("baselines= is not used: no method here compares with a baseline given as a tensor")
        if additional_forward_args is not None:
            raise OptionError("additional_forward_args= is not used: give vitrail.wrap(…, forward_options={…})")
        found = attributions(self.model, images, _classes(target), upsample=upsample, **{**self.options, **options})
        found = found.to(images.device, images.dtype)
        return (found,) if packed else found

    __call__ = attribute


def _classes(target: Any) -> Any:
    """Returns the target as `vitrail.explain` takes it: one number for all images, or a list of one for each."""
    if isinstance(target, Tensor):
        if target.dim() > 1:
            raise TargetError(f"target is a tensor of shape {tuple(target.shape)}; give one class, or one per image")
        return int(target) if target.numel() == 1 else target
    if isinstance(target, tuple) or (isinstance(target, list) and any(isinstance(one, tuple) for one in target)):
        raise TargetError(f"target={target!r} names places in an output of several dimensions; logits have one")
    return target
