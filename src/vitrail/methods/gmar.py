"""GMAR: rollout with heads weighted by the norm of their gradient (Jo, Jang, Park, ICIP 2025).

Per block l: w_h = ‖∇A_h‖_p / Σ_h ‖∇A_h‖_p over the head's whole matrix, Ā = Σ_h w_h A_h + α I, each row divided by its
sum, later blocks multiplied on the left, the readout's row read. The authors' released script does something else in
every step (it reads one head, wrapped over the diagonals, and depends on no gradient), so it is no reference; its
choices that do mean something are options here.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from ..attention.calls import compute_dtype
from ..attention.listeners import HeadNormListener
from ..attention.record import CallRecorder, RecordedLayer, row_times_attention
from ..attention.relevance_row import add_update
from ..attention.tap import Tap, eager
from ..attention.visitors import LeafAttention
from ..attention.watchers import NormWatcher
from ..errors import NoSignalError, OptionError
from .context import AttributionContext
from .registry import register_method

__all__ = ["gmar_l1", "gmar_l2"]


@register_method(
    "gmar_l1",
    signed=False,
    class_specific=True,
    uses_gradient=True,
    passes="1F 1B",
    reference="Jo, Jang, Park 2025, L1",
    accepts=("start_layer", "compete"),
    text=True,
)
def gmar_l1(
    context: AttributionContext,
    *,
    alpha: float = 1.0,
    residual: str = "rollout",
    order: str = "left",
    shared_weights: bool = False,
    grad_at: str = "attention",
    discard_ratio: float = 0.0,
) -> Float[Tensor, "images targets tokens"]:
    """Rollout with heads weighted by Σ|∇A_h|.

    `alpha` weighs the residual. `residual="rollout"` puts it into each factor, row-normalised; "paper" adds it after
    each product, R ← A_w R + α I. `order="right"` multiplies later blocks on the right. `shared_weights` takes the last
    block's head weights for all; `grad_at="last_ln"` takes them, for all blocks, from the gradient at the last block's
    first norm, its channels cut into as many groups as heads. `discard_ratio` zeroes that share of each fused matrix,
    the lowest.
    """
    return _gmar(context, 1, alpha, residual, order, shared_weights, grad_at, discard_ratio)


@register_method(
    "gmar_l2",
    signed=False,
    class_specific=True,
    uses_gradient=True,
    passes="1F 1B",
    reference="Jo, Jang, Park 2025, L2",
    accepts=("start_layer", "compete"),
    text=True,
)
def gmar_l2(
    context: AttributionContext,
    *,
    alpha: float = 1.0,
    residual: str = "rollout",
    order: str = "left",
    shared_weights: bool = False,
    grad_at: str = "attention",
    discard_ratio: float = 0.0,
) -> Float[Tensor, "images targets tokens"]:
    """Rollout with heads weighted by (Σ ∇A_h²)^½; options as for gmar_l1."""
    return _gmar(context, 2, alpha, residual, order, shared_weights, grad_at, discard_ratio)


def _gmar(
    context: AttributionContext,
    norm: int,
    alpha: float,
    residual: str,
    order: str,
    shared_weights: bool,
    grad_at: str,
    discard_ratio: float,
) -> Float[Tensor, "images targets tokens"]:
    _check("residual", residual, ("rollout", "paper"))
    _check("order", order, ("left", "right"))
    _check("grad_at", grad_at, ("attention", "last_ln"))
    if order == "right" and context.layout.pools:
        raise OptionError("order='right' has no meaning for a head that pools its tokens by attention: use 'left'")
    if not alpha >= 0:
        raise OptionError(f"alpha={alpha} weighs the residual: it must be 0 or more")
    if not 0 <= discard_ratio < 1:
        raise OptionError(f"discard_ratio={discard_ratio} is the share of links to drop: it must lie in [0, 1)")
    if discard_ratio and context.real is not None:
        raise OptionError("discard_ratio takes a share of all links, padding's too: explain these texts one by one")
    recorder = CallRecorder()
    if grad_at == "last_ln":
        norms_by_target = [
            dict.fromkeys(
                range(context.layout.layers),
                _norms_of_channel_groups(gradient[:, context.layout.prefix :], context, norm),
            )
            for gradient in _gradients_at_last_norm(context, recorder)
        ]
    else:
        norms_by_target = context.differentiate(HeadNormListener(norm, context.real), recorder)
    rows = []
    for norms in norms_by_target:
        used = range(context.first_layer, context.layout.layers)
        weights = all_head_weights({index: norms[used[-1] if shared_weights else index] for index in used})
        layers = [(recorder.layers[index], weights[index]) for index in used]
        walk = _paper_residual if residual == "paper" else _rollout_residual
        rows.append(walk(context.readout_row(), layers, alpha, order, discard_ratio))
    return torch.stack(rows, dim=1)


Layers = list[tuple[RecordedLayer, Float[Tensor, "images heads"]]]


def head_weights(norms: Float[Tensor, "images heads"], layer: int) -> Float[Tensor, "images heads"]:
    """Returns w_h = ‖∇A_h‖ / Σ_h ‖∇A_h‖.

    Raises:
        NoSignalError: when no head of the layer has any gradient.
    """
    return all_head_weights({layer: norms})[layer]


def all_head_weights(norms: dict[int, Float[Tensor, "images heads"]]) -> dict[int, Float[Tensor, "images heads"]]:
    """Returns `head_weights` of many layers; whether all have a gradient is asked once, since the answer waits for a
    GPU.
    """
    totals = {layer: of_heads.sum(dim=1, keepdim=True) for layer, of_heads in norms.items()}
    silent = torch.stack([(total == 0).any() for total in totals.values()]).tolist()
    for layer, is_silent in zip(norms, silent, strict=True):
        if is_silent:
            raise NoSignalError(f"the objective has no gradient at attention {layer}, so its heads cannot be weighted")
    return {layer: of_heads / totals[layer] for layer, of_heads in norms.items()}


def _rollout_residual(
    row: Float[Tensor, "images queries"], layers: Layers, alpha: float, order: str, discard_ratio: float
) -> Float[Tensor, "images tokens"]:
    """Returns the row of ∏ Ā with Ā = (A_w + α I), each row divided by its sum."""
    for layer, weights in reversed(layers) if order == "left" else layers:
        if layer.queries != layer.keys:
            row = row_times_attention(row, layer, weights)
        elif discard_ratio:
            fused = _fused(layer, weights, discard_ratio)
            total = fused.sum(dim=-1) + alpha
            row = row / torch.where(total == 0, 1.0, total)
            row = torch.einsum("bq,bqk->bk", row, fused) + alpha * row
        else:
            # The weights sum to one and so do the rows of every A_h: the row sum of A_w + α I is 1 + α.
            row = add_update(alpha * row, row_times_attention(row, layer, weights)) / (1 + alpha)
    return row


def _paper_residual(
    row: Float[Tensor, "images queries"], layers: Layers, alpha: float, order: str, discard_ratio: float
) -> Float[Tensor, "images tokens"]:
    """Returns the row of R after R ← A_w R + α I (left) or R ← R A_w + α I (right), from R = I."""

    def times(row: Tensor, layer: RecordedLayer, weights: Tensor) -> Tensor:
        if not discard_ratio:
            return row_times_attention(row, layer, weights)
        return torch.einsum("bq,bqk->bk", row, _fused(layer, weights, discard_ratio))

    if order == "right":
        readout = row
        for layer, weights in layers:
            row = times(row, layer, weights) + alpha * readout
        return row
    # Read from the last block: r R_l = (r A_w) R_{l-1} + α r, so what is left of r at each block adds α r to the sum.
    added: Tensor | float = 0.0
    for layer, weights in reversed(layers):
        added = added + alpha * row if layer.queries == layer.keys else added
        row = times(row, layer, weights)
    return row + added


def _fused(
    layer: RecordedLayer, weights: Float[Tensor, "images heads"], discard_ratio: float
) -> Float[Tensor, "images queries keys"]:
    """Returns A_w = Σ_h w_h A_h with the lowest entries zeroed; whole, because the lowest are sought among all."""
    attention = layer.probabilities()
    fused = torch.einsum("bh,bhqk->bqk", weights.to(attention.dtype), attention)
    flat = fused.flatten(1)
    dropped = int(flat.shape[1] * discard_ratio)
    if dropped:
        flat.scatter_(1, flat.topk(dropped, dim=1, largest=False).indices, 0.0)
    return fused


def _norms_of_channel_groups(
    gradient: Float[Tensor, "images patches width"], context: AttributionContext, norm: int
) -> Float[Tensor, "images heads"]:
    """Returns the norm, over the patches, of each of as many groups of channels as there are heads (the
    authors' script).
    """
    groups = gradient.to(compute_dtype(gradient.dtype)).unflatten(2, (context.layout.heads, -1))
    return groups.norm(p=norm, dim=(1, 3))


def _check(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise OptionError(f"{name}={value!r} is none of {', '.join(allowed)}")


def _gradients_at_last_norm(
    context: AttributionContext, recorder: CallRecorder
) -> list[Float[Tensor, "images tokens width"]]:
    """Returns the gradient, per question, at the norm in front of the last attention; `recorder` sees the
    layers.
    """
    if not isinstance(context.images, Tensor):  # of texts the graph begins at the first attention, not at pixels
        raise OptionError("grad_at='last_ln' is for pictures: take grad_at='attention' for texts")
    watcher = NormWatcher()
    recorder.inner = LeafAttention(context.gradient)
    gradients = []
    with torch.enable_grad():
        # The sum is no leaf, so the tap takes it for an activation and the whole graph is built.
        images = context.images.detach().requires_grad_() + 0
        with eager(), Tap(recorder, len(context.images), context.gradient, context.layout.layers), watcher:
            logits = context.model.logits(images)
        context.logits = logits.detach()
        at = watcher.before_attention
        if at is None:
            raise OptionError(
                "grad_at='last_ln', but this model calls no layer norm before its last attention, "
                "or writes that attention out by hand"
            )
        for number in range(context.questions):
            (gradient,) = torch.autograd.grad(context.scalar(logits, number), [at], retain_graph=True)
            gradients.append(gradient)
    return gradients
