"""The CAM family: maps made of one layer's features a and the gradient g = ∂s/∂a there (patches p, channels c).

The layer is the last block's first norm, or any module named by `layer=`. All give the sum before the last step of most
papers, max(·, 0), so that the map keeps its sign; `relu=True` takes that step.
"""

from collections.abc import Callable
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from .context import AttributionContext
from .features import features_and_gradients, features_of, on_all_tokens
from .registry import register_method

__all__ = ["eigencam", "gradcam", "gradcam_plus_plus", "hirescam", "layercam", "xgradcam"]

Matrix: TypeAlias = Float[Tensor, "images patches width"]


@register_method(
    "gradcam",
    signed=True,
    class_specific=True,
    uses_gradient=True,
    passes="1F 1B",
    reference="Selvaraju et al. 2017, Eq. 1–2",
    accepts=("compete",),
)
def gradcam(
    context: AttributionContext, *, layer: str | None = None, relu: bool = False
) -> Float[Tensor, "images targets tokens"]:
    """Grad-CAM: features weighted by their mean gradient, Σ_c w_c a_c with w_c = mean_p g_c."""
    return _cam(context, layer, relu, lambda a, g: (g.mean(dim=1, keepdim=True) * a).sum(dim=2))


@register_method(
    "gradcam_plus_plus",
    signed=True,
    class_specific=True,
    uses_gradient=True,
    passes="1F 1B",
    reference="Chattopadhyay et al. 2018, Eq. 19",
    accepts=("compete",),
)
def gradcam_plus_plus(
    context: AttributionContext, *, layer: str | None = None, relu: bool = False, epsilon: float = 1e-6
) -> Float[Tensor, "images targets tokens"]:
    """Grad-CAM++: as Grad-CAM with w_c = Σ_p α g⁺, α = g² / (2g² + (Σ_p a) g³ + ε).

    The paper's α has no ε and assumes features that are never negative; those of a ViT are, so that its divisor crosses
    zero. `epsilon` is that of the common code; gradients of a ViT are so small that it decides much of the map.
    """

    def rule(a: Matrix, g: Matrix) -> Float[Tensor, "images patches"]:
        alpha = g.square() / (2 * g.square() + a.sum(dim=1, keepdim=True) * g**3 + epsilon)
        weights = (torch.where(g == 0, 0.0, alpha) * g.clamp(min=0)).sum(dim=1, keepdim=True)
        return (weights * a).sum(dim=2)

    return _cam(context, layer, relu, rule)


@register_method(
    "xgradcam",
    signed=True,
    class_specific=True,
    uses_gradient=True,
    passes="1F 1B",
    reference="Fu et al. 2020",
    accepts=("compete",),
)
def xgradcam(
    context: AttributionContext, *, layer: str | None = None, relu: bool = False, epsilon: float = 1e-7
) -> Float[Tensor, "images targets tokens"]:
    """XGrad-CAM: as Grad-CAM with the gradient weighted by the features, w_c = Σ_p g a / (Σ_p a + ε)."""

    def rule(a: Matrix, g: Matrix) -> Float[Tensor, "images patches"]:
        weights = (g * a).sum(dim=1, keepdim=True) / (a.sum(dim=1, keepdim=True) + epsilon)
        return (weights * a).sum(dim=2)

    return _cam(context, layer, relu, rule)


@register_method(
    "hirescam",
    signed=True,
    class_specific=True,
    uses_gradient=True,
    passes="1F 1B",
    reference="Draelos and Carin 2020",
    accepts=("compete",),
)
def hirescam(
    context: AttributionContext, *, layer: str | None = None, relu: bool = False
) -> Float[Tensor, "images targets tokens"]:
    """HiResCAM: gradient times features, patch by patch, Σ_c g_c a_c."""
    return _cam(context, layer, relu, lambda a, g: (g * a).sum(dim=2))


@register_method(
    "layercam",
    signed=True,
    class_specific=True,
    uses_gradient=True,
    passes="1F 1B",
    reference="Jiang et al. 2021",
    accepts=("compete",),
)
def layercam(
    context: AttributionContext, *, layer: str | None = None, relu: bool = False
) -> Float[Tensor, "images targets tokens"]:
    """LayerCAM: positive gradient times features, Σ_c g⁺_c a_c; negative where such features are negative."""
    return _cam(context, layer, relu, lambda a, g: (g.clamp(min=0) * a).sum(dim=2))


@register_method(
    "eigencam",
    signed=False,
    class_specific=False,
    uses_gradient=False,
    passes="1F",
    reference="Muhammad and Yeasin 2020",
)
def eigencam(
    context: AttributionContext, *, layer: str | None = None, relu: bool = False, centre: bool = True
) -> Float[Tensor, "images targets tokens"]:
    """Eigen-CAM: the features along their first principal direction, a v₁; the same for every class.

    v₁ is the first right singular vector of the features less their mean over the patches, as in the common code; of
    the features as they are with `centre=False`, as in the paper. Its sign means nothing, and is chosen such that the
    largest score is positive.
    """
    features = features_of(context, layer)
    if centre:
        features = features - features.mean(dim=1, keepdim=True)
    direction = torch.linalg.svd(features, full_matrices=False).Vh[:, :1]
    along = (features * direction).sum(dim=2)
    farthest = along.gather(1, along.abs().argmax(dim=1, keepdim=True))
    return on_all_tokens(_rectified(along * farthest.sign(), relu), context.layout)[:, None]


def _cam(
    context: AttributionContext,
    layer: str | None,
    relu: bool,
    rule: Callable[[Matrix, Matrix], Float[Tensor, "images patches"]],
) -> Float[Tensor, "images targets tokens"]:
    values, gradients = features_and_gradients(context, layer)
    maps = [on_all_tokens(_rectified(rule(values, gradient), relu), context.layout) for gradient in gradients]
    return torch.stack(maps, dim=1)


def _rectified(scores: Float[Tensor, "images patches"], relu: bool) -> Float[Tensor, "images patches"]:
    return scores.clamp(min=0) if relu else scores
