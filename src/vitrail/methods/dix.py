"""DIX and IIA (Barkan, Elisha and others 2023): attention and its gradient along a path through the attention itself.

Block b's attention is replaced by α A for α = k/K, k = 0 … K. Later blocks follow from it, and for every block l

    M^l = E_h[ mean_α (A^l_α ⊙ ∇A^l_α)⁺ ],   Ā^l = rows of (I + M^l) divided by their sums,
    map_b = Ā^L … Ā^1 at the readout.

DIX (CIKM 2023) adds the maps of the last block and of the one before it. IIA (ICCV 2023) takes the last block alone,
and its mean goes over a second path too, β x from a grey image to the picture.
"""

from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..attention.record import CallRecorder
from ..attention.replay import DivergedError, Replay
from ..attention.tap import Tap, eager
from ..attention.visitors import DenseAttention
from ..errors import OptionError, UnsupportedOperationError
from .context import AttributionContext
from .integrated_gradients import compares_quotients, points, runs_along, settle_objective
from .registry import register_method

__all__ = ["dix", "iia"]

# One matrix (images, queries, keys) a layer; a layer that pools the tokens has queries of its own.
Maps = list[Float[Tensor, "images _ _"]]

# Bytes of maps and activations that one pass may hold.
BYTES_PER_PASS = {"cpu": 2**30, "cuda": 2**33}


@register_method(
    "dix",
    signed=False,
    class_specific=True,
    uses_gradient=True,
    passes="2F, 22 × (last blocks F, all B)",
    reference="Barkan et al. 2023, DIX",
    accepts=("start_layer",),
)
def dix(
    context: AttributionContext, *, samples: int = 10, variant: str = "paper", identity: bool = False
) -> Float[Tensor, "images targets tokens"]:
    """Positive attention times gradient, averaged while the last two blocks' attention grows from nothing; both added.

    `samples` is K: K + 1 points. `variant="released"` puts the last block's attention into the block before it too, as
    the authors' code does; "paper" takes that block's own. `identity` keeps the identity's own share of the row.
    """
    _check(samples, variant)
    last = context.layout.layers - 1
    if last == 0:
        raise UnsupportedOperationError(f"{context.model.name} has one attention, and dix needs two: use iia")
    blocks = [(last, last), (last - 1, last if variant == "released" else last - 1)]
    by_block = _integrate(context, blocks, [1.0], points(samples))
    return sum((_rollout(context, maps, identity) for maps in by_block), torch.zeros(()).to(context.readout_row()))


@register_method(
    "iia",
    signed=False,
    class_specific=True,
    uses_gradient=True,
    passes="7F, 36 × (last block F, all B)",
    reference="Barkan et al. 2023, IIA",
    accepts=("start_layer",),
)
def iia(
    context: AttributionContext, *, samples: int | None = None, variant: str = "released", identity: bool = False
) -> Float[Tensor, "images targets tokens"]:
    """DIX of the last block alone, averaged on the way from a grey image to the picture as well.

    `samples` is n: n + 1 points on each of the two paths. Paper and code agree but for n: 5 in the code
    (`variant="released"`), 10 in the paper ("paper"), at more than three times the cost. `identity` as for dix.
    """
    if samples is None:
        samples = 10 if variant == "paper" else 5
    _check(samples, variant)
    last = context.layout.layers - 1
    (maps,) = _integrate(context, [(last, last)], points(samples), points(samples))
    return _rollout(context, maps, identity)


class Pass(NamedTuple):
    """Logits, and the attention of every layer that they depend on, both in the graph where one is built."""

    logits: Float[Tensor, "images classes"]
    maps: list[Float[Tensor, "images _ _ _"]]


class Rerun:
    """The forward pass, which can be taken up again at any attention of `layers`.

    Whether gradients flow is as where it is made and used. Not thread-safe, and to be dropped with its graph.
    """

    def __init__(self, context: AttributionContext, layers: Collection[int]) -> None:
        if context.gradient == "gim":
            raise OptionError("gradient='gim' is not defined for maps that are put in: use 'full', 'leaf' or 'libra'")
        self._run = context
        self._replay = Replay(last=max(layers))
        self.first = self._forward(
            DenseAttention(context.first_layer, context.gradient != "full", reached=self._replay.mark)
        )

    def again(self, layer: int, attention: Float[Tensor, "images heads queries keys"]) -> Pass:
        """Returns the pass with `attention` in the place of layer `layer`'s own, which leads no gradient to it."""
        context, given = self._run, {layer: attention.detach()}
        if self._replay.rewind(layer):
            try:
                end = self._forward(DenseAttention(context.first_layer, context.gradient != "full", given, count=layer))
            except DivergedError:
                self._replay.forget()
            else:
                return Pass(end.logits, self.first.maps[:layer] + end.maps)
        return self._forward(DenseAttention(context.first_layer, context.gradient != "full", given))

    def _forward(self, visitor: DenseAttention) -> Pass:
        context = self._run
        # What is replayed calls no attention: the tap counts from the layer on that the visitor begins with.
        with (
            eager(),
            Tap(visitor, len(context.images), context.gradient, context.layout.layers - visitor.count),
            self._replay,
        ):
            logits = context.model.logits(context.images)
        context.check_calls(visitor.count, logits)
        return Pass(logits, [visitor.maps[layer] for layer in sorted(visitor.maps) if layer < context.layout.layers])


def _check(samples: int, variant: str) -> None:
    if samples < 1:
        raise OptionError(f"samples={samples}: the path from no attention to the model's own needs a step at least")
    if variant not in ("paper", "released"):
        raise OptionError(f"variant={variant!r} is neither 'paper' nor 'released'")


def _integrate(
    context: AttributionContext, blocks: Sequence[tuple[int, int]], scales: Sequence[float], factors: Sequence[float]
) -> list[list[Maps]]:
    """Returns M^l for each (block, source of its attention), each target and each layer from the context's first on.

    The mean goes over β x for β in `scales`, and over α A for α in `factors`.
    """
    _check_pools(context)
    layers = range(context.first_layer, context.layout.layers)
    context.forward(CallRecorder())
    if compares_quotients(context):
        settle_objective(context, _logits_along(context, blocks, scales, factors))
    targets = range(context.targets.index.shape[1])
    for number in targets:
        context.scalar(context.logits, number)
    count = len(scales) * len(factors)
    totals: list[list[list[Tensor | None]]] = [[[None] * len(layers) for _ in targets] for _ in blocks]
    for index, there in runs_along(context, scales, _rows_per_pass(context)):
        with torch.enable_grad():
            rerun = Rerun(there, [block for block, _ in blocks])
            for number, (block, source) in enumerate(blocks):
                own = rerun.first.maps[source].detach()
                for factor in factors:
                    _add(totals[number], index, there, rerun.again(block, factor * own), len(context.images), count)
        del rerun
    return [[[total for total in maps if total is not None] for maps in by_target] for by_target in totals]


def _add(
    totals: list[list[Tensor | None]],
    index: Int[Tensor, " rows"],
    context: AttributionContext,
    end: Pass,
    images: int,
    count: int,
) -> None:
    """Adds E_h[(A ⊙ ∇A)⁺] / count of one pass to the images' totals."""
    maps = end.maps[context.first_layer :]
    for number, total in enumerate(totals):
        scalar = context.scalar(end.logits, number)
        gradients = torch.autograd.grad(scalar, maps, retain_graph=True, allow_unused=True)
        for layer, (attention, gradient) in enumerate(zip(maps, gradients, strict=True)):
            if gradient is None:
                gradient = torch.zeros_like(attention)
            part = (attention.detach() * gradient).clamp_(min=0).mean(dim=1) / count
            known = total[layer]
            known = part.new_zeros(images, *part.shape[1:]) if known is None else known
            total[layer] = known.index_add_(0, index, part)


def _logits_along(
    context: AttributionContext, blocks: Sequence[tuple[int, int]], scales: Sequence[float], factors: Sequence[float]
) -> Iterator[tuple[Int[Tensor, " rows"], Tensor]]:
    for index, there in runs_along(context, scales, _rows_per_pass(context)):
        with torch.no_grad():
            rerun = Rerun(there, [block for block, _ in blocks])
            yield index, rerun.first.logits
            for block, source in blocks:
                for factor in factors:
                    yield index, rerun.again(block, factor * rerun.first.maps[source]).logits


def _rollout(
    context: AttributionContext, by_target: list[Maps], identity: bool
) -> Float[Tensor, "images targets tokens"]:
    """Returns the readout's row of ∏ Ā^l, less the identity's own share of it unless that is asked for."""
    rows = []
    for maps in by_target:
        own, added = context.readout_row(), torch.zeros_like(context.readout_row())
        for matrix in reversed(maps):
            if matrix.shape[-1] != matrix.shape[-2]:
                # A few queries pool the tokens: no identity joins them to the tokens, and none is added.
                added = torch.einsum("bq,bqk->bk", own + added, matrix)
                own = torch.zeros_like(added)
                continue
            sums = 1 + matrix.sum(dim=-1)
            own, added = own / sums, added / sums
            added = added + torch.einsum("bq,bqk->bk", own + added, matrix)
        rows.append(own + added if identity else added)
    return torch.stack(rows, dim=1)


def _rows_per_pass(context: AttributionContext) -> int:
    """Returns the number of images per pass: that of `runs_along`, and no more than fit `BYTES_PER_PASS`."""
    layout = context.layout
    device = "cuda" if context.images.is_cuda else "cpu"
    # Of each layer about five maps live at a time, and twenty activations of the model's width, guessed at 64 a head.
    numbers = layout.layers * layout.heads * layout.tokens * (5 * layout.tokens + 20 * 64)
    size = 8 if context.images.dtype == torch.float64 else 4
    return max(1, min(BYTES_PER_PASS[device] // (numbers * size), 5 if device == "cpu" else 64))


def _check_pools(context: AttributionContext) -> None:
    if context.layout.pools > 1:
        raise UnsupportedOperationError(
            f"the last {context.layout.pools} of {context.layout.layers} attentions of {context.model.name} pool the "
            "tokens one after the other, and scaling the last of them reaches pools and no patches: use gae or complete"
        )
