"""The CAM family: maps made of one layer's features a and the gradient g = ∂s/∂a there (patches p, channels c).

The layer is the last block's first norm, or any module named by `layer=`. All give the sum before the last step of most
papers, max(·, 0), so that the map keeps its sign; `relu=True` takes that step.

Nothing before the layer is differentiated, so a layer near the end costs little more than a forward pass.
"""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import NamedTuple, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from ..attention.calls import compute_dtype
from ..attention.modules import at_input, at_output, find_module, tokens_first
from ..attention.visitors import LeafAttention
from ..attention.watchers import NormWatcher
from ..errors import NoSignalError, OptionError, UnsupportedOperationError
from ..models.blocks import blocks_of
from ..models.layout import TokenLayout
from .context import AttributionContext
from .registry import register_method

__all__ = [
    "Features",
    "cdam",
    "eigencam",
    "features_and_gradients",
    "features_of",
    "finercam",
    "gradcam",
    "gradcam_plus_plus",
    "hirescam",
    "layercam",
    "on_all_tokens",
    "patches_of",
    "xgradcam",
]


class Features(NamedTuple):
    """A layer's output at the patches, and the gradient of the objective there for each target."""

    values: Float[Tensor, "images patches width"]
    gradients: list[Float[Tensor, "images patches width"]]


Scalars: TypeAlias = Callable[[Float[Tensor, "images classes"]], Iterable[Float[Tensor, ""]]]


def features_and_gradients(context: AttributionContext, layer: str | None, scalars: Scalars | None = None) -> Features:
    """Runs a forward pass, and per target a backward pass that ends at the layer: a module's name, or the default.

    `scalars` are differentiated in the place of the context's questions. The default layer is the last block's first
    norm. (At the last block's output the patches of a model that reads its class token have no gradient at all.)

    Raises:
        OptionError: for a name that the model does not have, or a module whose output is no features of the patches.
        NoSignalError: when nothing that the objective reads comes from the patches' features there.
    """
    seen: list[Tensor] = []
    visitor, watchers, images = _reaching(context, layer, seen)
    logits = context.graph(visitor, *watchers, images=images)
    output = _last(seen, context, layer)
    gradients = []
    asked = (context.scalar(logits, number) for number in range(context.questions))
    for scalar in asked if scalars is None else scalars(logits):
        (gradient,) = torch.autograd.grad(scalar, [output], retain_graph=True, allow_unused=True)
        gradient = torch.zeros_like(output) if gradient is None else gradient
        gradients.append(patches_of(gradient, context.layout, len(context.images), layer))
        _refuse_silence(gradients[-1], layer)
    return Features(patches_of(output.detach(), context.layout, len(context.images), layer), gradients)


def features_of(context: AttributionContext, layer: str | None) -> Float[Tensor, "images patches width"]:
    """Runs a forward pass without gradients; raises as `features_and_gradients` does."""
    seen: list[Tensor] = []
    visitor, watchers, _ = _reaching(context, layer, seen)
    context.forward(visitor, *watchers)
    return patches_of(_last(seen, context, layer), context.layout, len(context.images), layer)


def _reaching(
    context: AttributionContext, layer: str | None, seen: list[Tensor]
) -> tuple[LeafAttention, list[AbstractContextManager], Tensor]:
    """Returns the visitor and watchers that put the layer's output into `seen`, inside a graph that begins
    shortly before.
    """
    if layer is not None:
        module = find_module(context.model.module, layer)

        def leaf(output: Tensor) -> Tensor:
            seen.append(output.detach().requires_grad_(torch.is_grad_enabled()))
            return seen[-1].clone()  # which the tap does not take for a weight

        return LeafAttention(context.gradient), [at_output(module, leaf)], context.images
    last = context.layout.layers - context.layout.pools - 1
    norms = NormWatcher()

    def reached(number: int) -> None:
        # A block that normalises first does so before anything else; queries and keys may be normalised after that.
        # One that normalises last takes what the block before it has normalised.
        output = norms.latest if norms.first is None else norms.first
        if number == last and output is not None:
            seen.append(output)

    def begins(tokens: Tensor) -> Tensor:
        norms.begin()
        return tokens

    block = blocks_of(context.model, context.images, context.layout)[last]
    watchers: list[AbstractContextManager] = [norms] if block is None else [norms, at_input(block, begins)]

    # The graph begins at the attention before, or for want of one at the images; the sum is no leaf, so the tap takes
    # it for an activation.
    images = context.images if last or not torch.is_grad_enabled() else context.images.detach().requires_grad_() + 0
    return LeafAttention(context.gradient, {last - 1}, reached), watchers, images


def _last(seen: list[Tensor], context: AttributionContext, layer: str | None) -> Tensor:
    if seen:
        return seen[-1]
    if layer is not None:
        raise OptionError(
            f"layer={layer!r} is a module of this model, but returns no tensor when an image is explained: it is not "
            "called, or called by another way than its forward"
        )
    raise UnsupportedOperationError(
        f"{context.model.name} calls no layer norm on its tokens before its last attention (it may be written out by "
        "hand): name a module with layer="
    )


def patches_of(
    tensor: Tensor, layout: TokenLayout, images: int, layer: str | None
) -> Float[Tensor, "images patches width"]:
    """Returns the patches' part of a layer's output, in float32 (float64 for float64).

    Takes tokens with or without the prefix, images first or tokens first, and maps (images, width, rows, columns) or
    (images, rows, columns, width).

    Raises:
        OptionError: for any other shape.
    """
    tensor = tensor.to(compute_dtype(tensor.dtype))
    grid = (layout.rows, layout.cols)
    if tensor.dim() == 4 and tensor.shape[0] == images and layout.order is None:
        if tensor.shape[2:] == grid:
            return tensor.flatten(2).transpose(1, 2)
        if tensor.shape[1:3] == grid:
            return tensor.flatten(1, 2)
    for count in dict.fromkeys((layout.tokens, len(layout.readout), layout.patches)):
        tokens = tokens_first(tensor, images, count)
        if tokens is not None and count >= layout.patches:
            first = 0 if count == layout.patches else layout.prefix
            return tokens[:, first : first + layout.patches]
    raise OptionError(
        f"layer={layer!r} gives a tensor of shape {tuple(tensor.shape)}, which holds no features of the "
        f"{layout.rows}×{layout.cols} patches after {layout.prefix} other token(s): name a layer inside the blocks"
    )


def on_all_tokens(patches: Float[Tensor, "*maps patches"], layout: TokenLayout) -> Float[Tensor, "*maps tokens"]:
    """Returns maps of the patches as rows over all tokens, zero at the prefix."""
    return torch.nn.functional.pad(patches, (layout.prefix, 0))


def _refuse_silence(gradient: Float[Tensor, "images patches width"], layer: str | None) -> None:
    silent = (gradient == 0).all(dim=2).all(dim=1)
    if bool(silent.any()) and layer is not None:
        raise NoSignalError(
            f"the gradient at layer={layer!r} is zero at every patch of image {silent.nonzero()[:, 0].tolist()[0]}: "
            "after it, what the objective reads no longer comes from the patches (as behind the last attention of a "
            "model that reads its class token); name a layer before that attention, or leave layer= out"
        )


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
    return _cam(context, layer, relu, _gradcam)


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
    return _cam(context, layer, relu, _hirescam)


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
    "cdam",
    signed=True,
    class_specific=True,
    uses_gradient=True,
    passes="1F 1B",
    reference="Brocki et al. 2024",
    accepts=("compete",),
)
def cdam(context: AttributionContext, *, layer: str | None = None) -> Float[Tensor, "images targets tokens"]:
    """CDAM: how relevant each token that enters the last attention is, Σ_c T_c ∂s/∂T_c; HiResCAM at that layer.

    With a function as the target, such as the likeness to a concept's embedding, it explains the concept.
    """
    return _cam(context, layer, False, _hirescam)


@register_method(
    "finercam",
    signed=True,
    class_specific=True,
    uses_gradient=True,
    passes="1F 1B",
    reference="Zhang et al. 2025",
)
def finercam(
    context: AttributionContext,
    *,
    layer: str | None = None,
    relu: bool = False,
    references: int = 3,
    alpha: float = 1.0,
    variant: str = "paper",
) -> Float[Tensor, "images targets tokens"]:
    """Finer-CAM: Grad-CAM of the target's logit less α times those of the most similar classes.

    Similar are the `references` classes whose logits are the nearest to the target's, or the one that `against` names.
    `variant="paper"` takes the mean of the maps against each; "released" weighs the classes by their probability, and
    differentiates that, too.
    """
    if variant not in ("paper", "released"):
        raise OptionError(f"variant={variant!r} is none of paper, released")
    if references < 1 or not alpha >= 0:
        raise OptionError(f"references={references} must be 1 or more, and alpha={alpha} 0 or more")
    against = context.against
    if context.objective != ("logit" if against is None else "difference"):
        raise OptionError("finercam has an objective of its own, made of logits: leave objective= out, or use gradcam")
    singly = relu and variant == "paper"  # max(·, 0) of each map, before the mean

    def scalars(logits: Float[Tensor, "images classes"]) -> Iterable[Float[Tensor, ""]]:
        if context.targets.functions is not None or logits.shape[1] < 2:
            raise OptionError("finercam compares classes: with target= a function, or a single number, use gradcam")
        wide = logits if logits.dtype == torch.float64 else logits.float()
        for number in range(context.targets.index.shape[1]):
            target = context.targets.index[:, number, None].to(logits.device)
            own = wide.gather(1, target)[:, 0]
            if against is None:
                distance = (wide - own[:, None]).detach().abs().scatter(1, target, torch.inf)
                similar = distance.topk(min(references, logits.shape[1] - 1), dim=1, largest=False).indices
            else:
                similar = against.index[:, number, None].to(logits.device)
            others = wide.gather(1, similar)
            if singly:
                yield from (own[:, None] - alpha * others).sum(dim=0).unbind()
            elif variant == "released":
                weights = wide.softmax(dim=1).gather(1, similar)
                differences = (weights * (own[:, None] - alpha * others)).sum(dim=1)
                yield (differences / (weights.sum(dim=1) + 1e-9)).sum()
            else:
                yield (own - alpha * others.mean(dim=1)).sum()

    values, gradients = features_and_gradients(context, layer, scalars)
    maps = torch.stack([_gradcam(values, gradient) for gradient in gradients], dim=1)
    targets = context.targets.index.shape[1]
    maps = _rectified(maps, relu).unflatten(1, (targets, -1)).mean(dim=2)
    return on_all_tokens(maps, context.layout)


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


def _gradcam(values: Matrix, gradient: Matrix) -> Float[Tensor, "images patches"]:
    return (gradient.mean(dim=1, keepdim=True) * values).sum(dim=2)


def _hirescam(values: Matrix, gradient: Matrix) -> Float[Tensor, "images patches"]:
    return (gradient * values).sum(dim=2)


def _rectified(scores: Float[Tensor, "*maps patches"], relu: bool) -> Float[Tensor, "*maps patches"]:
    return scores.clamp(min=0) if relu else scores
