"""The images on the straight way from nothing to the picture, and the gradients that are averaged along it.

The integrated methods ask the same question of α x for several α between 0 and 1. In the model's own input space 0 is
the mean colour of its normalisation. The class is that of the picture itself, at every α.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..attention.listeners import LayerGradients, RowGradientListener
from ..attention.record import CallRecorder, RecordedLayer, rows_times_attention
from ..attention.watchers import ValueProjection
from ..errors import NoSignalError, OptionError, UnsupportedOperationError
from ..objectives import OBJECTIVES
from .context import AttributionContext
from .registry import register_method

__all__ = [
    "IntegratedGradients",
    "Rows",
    "bi_head",
    "bi_token",
    "compares_quotients",
    "integrated_gradients",
    "points",
    "runs_along",
    "settle_objective",
    "tam",
]

# Tokens that go through the model at once. A CPU is quickest while the activations of a block stay in its cache.
TOKENS_PER_PASS = {"cpu": 2**10, "cuda": 2**15}


def points(steps: int) -> list[float]:
    """Returns equally spaced points from 0 to 1 with `steps` steps between them, the picture itself (1) first.

    Example:
        >>> points(4)
        [1.0, 0.0, 0.25, 0.5, 0.75]
    """
    return [1.0, *(step / steps for step in range(steps))]


def runs_along(
    context: AttributionContext, factors: Sequence[float], per_pass: int | None = None
) -> Iterator[tuple[Int[Tensor, " rows"], AttributionContext]]:
    """Runs over α x for every image x and every α in `factors`, with the image's number for each of their rows.

    `per_pass` rows go together; by default as many as `TOKENS_PER_PASS` lets.
    """
    if per_pass is None:
        per_pass = max(1, TOKENS_PER_PASS["cuda" if context.images.is_cuda else "cpu"] // context.layout.tokens)
    pairs = [(image, factor) for image in range(len(context.images)) for factor in factors]
    for start in range(0, len(pairs), per_pass):
        some = pairs[start : start + per_pass]
        index = torch.tensor([image for image, _ in some], device=context.images.device)
        scale = torch.tensor([factor for _, factor in some], dtype=torch.float64).to(context.images)
        yield index, context.at(context.images[index] * scale[:, None, None, None], index)


def compares_quotients(context: AttributionContext) -> bool:
    """Returns whether the objective is a quotient of logits, which may lose its meaning somewhere along the path."""
    return isinstance(context.objective, str) and OBJECTIVES[context.objective].positive_only


def settle_objective(context: AttributionContext, logits: Iterator[tuple[Int[Tensor, " rows"], Tensor]]) -> None:
    """Takes the plain difference for every image on whose path a quotient of logits would lose its meaning.

    A mean of quotients and differences would be of neither. `logits` are those at all points of the path, after the
    pictures' own (`context.logits`) are known.
    """
    targets = context.targets.index
    context.by_difference = torch.zeros(targets.shape, dtype=torch.bool, device=context.images.device)
    for index, values in logits:
        row = context.at(context.images[index], index)
        for number in range(targets.shape[1]):
            replaced = row.objective_values(values, number)[1]
            context.by_difference[index[replaced], number] = True


class Rows(NamedTuple):
    """The queries of the last attention that the map is read at, and their weights."""

    queries: Int[Tensor, " rows"]
    weights: Float[Tensor, " rows"]

    @classmethod
    def of(cls, context: AttributionContext, dino: bool = False) -> "Rows":
        """Returns the rows of the model's readout; with `dino`, that of the class token and the mean of the patches'
        rows.

        Raises:
            UnsupportedOperationError: when the last attention does not look at the tokens themselves.
        """
        layout = context.layout
        if layout.pools > 1:
            raise UnsupportedOperationError(
                f"the last {layout.pools} of {layout.layers} attentions of {context.model.name} pool the tokens one "
                "after the other, so the last one weighs pools and no patches: use gae or complete"
            )
        weights = context.readout_row()[0]
        if dino:
            if layout.pools:
                raise UnsupportedOperationError(
                    f"dino=True reads the rows of the class token and the patches, but the last attention of "
                    f"{context.model.name} pools them with {len(weights)} queries of its own: leave dino out"
                )
            weights = torch.zeros_like(weights)
            weights[layout.prefix : layout.prefix + layout.patches] = 1 / layout.patches
            if layout.prefix:
                weights[0] += 1
        queries = weights.nonzero()[:, 0]
        return cls(queries, weights[queries])

    def read(self, maps: Float[Tensor, "images rows tokens"]) -> Float[Tensor, "images tokens"]:
        """Returns Σ_i r_i M_i: the weighted sum of the rows' maps."""
        return torch.einsum("r,brk->bk", self.weights.to(maps.dtype), maps)

    def identity(self, context: AttributionContext) -> Float[Tensor, "images rows queries"]:
        """Returns one row of the identity matrix for each of the queries."""
        eye = torch.eye(len(context.readout), device=context.images.device, dtype=self.weights.dtype)
        return eye[self.queries].expand(len(context.images), -1, -1)


class IntegratedGradients(NamedTuple):
    """F, for each target, and what else the pass over the pictures themselves showed."""

    by_target: list[Float[Tensor, "images rows tokens"]]
    layers: list[RecordedLayer]
    pictures: list[LayerGradients]


def integrated_gradients(
    context: AttributionContext,
    rows: Rows,
    samples: int,
    *,
    head_importance: bool = False,
    recorder: CallRecorder | None = None,
    watcher: AbstractContextManager[Any] | None = None,
) -> IntegratedGradients:
    """Returns F = E_h[(mean_α ∇A_h(α x))⁺] of the last layer, at the queries `rows`.

    The pass at α = 1 is that over the pictures: it also records every layer's attention, and with `head_importance`
    goes back to the context's first layer; `watcher` is entered inside its tap. All other passes are differentiated no
    further than the last attention.
    """
    if samples < 2:
        raise OptionError(f"samples={samples}: the mean from a grey image to the picture needs these two at least")
    _, *others = points(samples - 1)
    last = context.layout.layers - 1
    if compares_quotients(context):
        _settle_on_images(context, others)
    recorder = recorder or CallRecorder()
    listener = RowGradientListener(last, rows.queries, head_importance)
    first = context.first_layer if head_importance else last
    pictures = context.differentiate(listener, recorder, first_layer=first, watcher=watcher)
    totals = [heard.gradient.clone() for heard in pictures]
    for index, there in runs_along(context, others):
        heard = there.differentiate(RowGradientListener(last, rows.queries), first_layer=last)
        for total, one in zip(totals, heard, strict=True):
            total.index_add_(0, index, one.gradient)
    feedback = [(total / samples).clamp(min=0).mean(dim=1) for total in totals]
    for matrix in feedback:
        if not bool(matrix.flatten(1).any(dim=1).all()):
            raise NoSignalError(
                f"the objective has no positive gradient at attention {last} in the row(s) that are read there: the "
                "head does not look at the token of readout=, or nothing in the image speaks for the class"
            )
    return IntegratedGradients(feedback, recorder.layers[: last + 1], pictures)


def _settle_on_images(context: AttributionContext, others: Sequence[float]) -> None:
    def passes() -> Iterator[tuple[Int[Tensor, " rows"], Tensor]]:
        everyone = torch.arange(len(context.images), device=context.images.device)
        yield everyone, context.logits
        for index, there in runs_along(context, others):
            there.forward(CallRecorder())
            yield index, there.logits

    context.forward(CallRecorder())
    settle_objective(context, passes())


# TAM, transition attention maps (Yuan, Li, Xiong, Cao, Yang 2021).
#
# The states of a Markov chain are the tokens. From the last layer's attention at the readout the chain walks back, and
# the state is weighed with the gradient of the last layer, averaged along the way from a grey image to the picture:
#
#     u = E_h[A^L] at the readout;   u ← u + u E_h[A^l]   for l = L−1 … start_layer
#     W = E_h[( (1/K) Σ_α ∇A^L(α x) )⁺] at the readout,   α = 0 … 1 in K steps
#     map = u ⊙ W


@register_method(
    "tam",
    signed=False,
    class_specific=True,
    uses_gradient=True,
    passes="20F, 20B of the last block",
    reference="Yuan et al. 2021",
    accepts=("start_layer",),
    start_layer=4,
)
def tam(context: AttributionContext, *, samples: int = 20) -> Float[Tensor, "images targets tokens"]:
    """Attention followed back from the readout, times the last layer's positive gradient averaged from grey to image.

    `samples` is K, both ends included.
    """
    rows = Rows.of(context)
    first = context.first_layer
    feedback = integrated_gradients(context, rows, samples)
    *before, last = feedback.layers
    state = rows_times_attention(rows.identity(context), last)
    for layer in reversed(before[first:]):
        state = state + rows_times_attention(state, layer)
    return torch.stack([rows.read(state * weight) for weight in feedback.by_target], dim=1)


# Beyond Intuition (Chen, Li, Yu, Dou, Qiao, TMLR 2023): perception of the tokens times feedback from the decision.
#
#     map = (P ⊙ F) at the readout
#     P = ∏ (I + Ā^l),  later layers on the left, from start_layer
#     F = E_h[( (1/K) Σ_α ∇A^L(α x) )⁺],  α = 0 … 1 in K steps
#
# head by head (BI-H):    Ā = Σ_h θ_h A_h,  θ_h = I_h / Σ_h I_h,  I_h = mean_ij |A_hᵀ ∇A_h| token by token (BI-T):  Ā =
# E_h[A] · diag(‖z_j W_V W_O‖ / ‖z_j‖)


@register_method(
    "bi_head",
    signed=False,
    class_specific=True,
    uses_gradient=True,
    passes="20F, 1B, 19B of the last block",
    reference="Chen et al. 2023, BI-H",
    accepts=("start_layer",),
    start_layer=3,
)
def bi_head(
    context: AttributionContext, *, samples: int = 20, dino: bool = False
) -> Float[Tensor, "images targets tokens"]:
    """Attention with heads weighed by I_h = mean |A_hᵀ∇A_h|, times the last layer's positive integrated gradient.

    `samples` is K, both ends included. `dino` reads the class token's row and the mean of the patches' rows.
    """
    rows = Rows.of(context, dino)
    first = context.first_layer
    feedback = integrated_gradients(context, rows, samples, head_importance=True)
    maps = []
    for weight, heard in zip(feedback.by_target, feedback.pictures, strict=True):
        row = rows.identity(context)
        for number in reversed(range(first, context.layout.layers)):
            layer = feedback.layers[number]
            row = _grow(row, rows_times_attention(row, layer, _shares(heard.importance[number], number)))
        maps.append(rows.read(row * weight))
    return torch.stack(maps, dim=1)


@register_method(
    "bi_token",
    signed=False,
    class_specific=True,
    uses_gradient=True,
    passes="20F, 20B of the last block",
    reference="Chen et al. 2023, BI-T",
    accepts=("start_layer",),
    start_layer=5,
)
def bi_token(
    context: AttributionContext, *, samples: int = 20, dino: bool = False
) -> Float[Tensor, "images targets tokens"]:
    """Attention with tokens weighed by ‖z W_V W_O‖/‖z‖, times the last layer's positive integrated gradient.

    z is a token before the block's norm, W_V its value (bias included), W_O the output projection (bias left out, layer
    scale taken in). `samples` is K, both ends included. `dino` reads the class token's row and the mean of the
    patches' rows.
    """
    rows = Rows.of(context, dino)
    first = context.first_layer
    recorder = CallRecorder()
    projection = ValueProjection(recorder)
    feedback = integrated_gradients(context, rows, samples, recorder=recorder, watcher=projection)
    row = rows.identity(context)
    for number in reversed(range(first, context.layout.layers)):
        seen = rows_times_attention(row, feedback.layers[number])
        row = _grow(row, seen * projection.gain(number)[:, None].to(seen.dtype))
    return torch.stack([rows.read(row * weight) for weight in feedback.by_target], dim=1)


def _grow(
    row: Float[Tensor, "images rows queries"], update: Float[Tensor, "images rows keys"]
) -> Float[Tensor, "images rows keys"]:
    """Returns r (I + Ā); where a few queries pool the tokens, r Ā, because no identity joins them to the tokens."""
    return row + update if row.shape == update.shape else update


def _shares(importance: Float[Tensor, "images heads"], layer: int) -> Float[Tensor, "images heads"]:
    """Returns θ_h = I_h / Σ_h I_h."""
    total = importance.sum(dim=1, keepdim=True)
    if bool((total == 0).any()):
        raise NoSignalError(f"the objective has no gradient at attention {layer}, so its heads cannot be weighed")
    return importance / total
