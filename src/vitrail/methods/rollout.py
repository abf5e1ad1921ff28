"""Attention multiplied through the layers, alone or times its gradient; the map is the readout's row at the patches.

`raw`, `rollout` and `norm_rollout` are made of attention alone: one forward pass, the same for every class, never
negative. `gae`, `complete` and `absolute` take one backward pass per target, too, and multiply
Ā^l = I + E_h[f(∇A^l) ⊙ A^l]; they differ in what f does with the sign of the gradient. The formulas stand in
`attention.relevance_row`. `tokentm` also weighs each token by what attention and MLP make of it.

With a gradient, the identity's own share of the row is left out unless `identity=True`. For a class token it lies
outside the patches and changes nothing. For a head that reads the mean of P patches it is the same 1/P on every patch,
hundreds of times larger than what the layers add: a signed map would be red everywhere.
"""

from contextlib import ExitStack
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from ..attention.calls import Block
from ..attention.listeners import BlockListener
from ..attention.modules import at_input, at_output
from ..attention.record import CallRecorder, RecordedLayer, each_head_times_attention, row_times_attention
from ..attention.relevance_row import Collector, add_update
from ..attention.token_graph import rollout_row
from ..attention.watchers import TokenTransformations, ValueProjection
from ..errors import OptionError, UnsupportedOperationError
from .context import AttributionContext, required_blocks
from .registry import register_method

__all__ = ["absolute", "complete", "gae", "norm_rollout", "raw", "rollout", "tokentm"]


@register_method(
    "raw",
    signed=False,
    class_specific=False,
    uses_gradient=False,
    passes="1F",
    reference="Abnar & Zuidema 2020",
    text=True,
    follows=True,
)
def raw(context: AttributionContext) -> Float[Tensor, "images targets tokens"]:
    """The last layer's attention at the readout, averaged over heads: E_h[A^L]."""
    layers, graph = context.record(), context.layout.graph
    if graph is not None:
        row = context.readout_row()
        rows = [part * rollout_row(graph, layers, row, only=call) for call, part in graph.last_calls.items()]
        return torch.stack(rows).sum(dim=0)[:, None]
    return row_times_attention(context.readout_row(), layers[-1])[:, None]


@register_method(
    "rollout",
    signed=False,
    class_specific=False,
    uses_gradient=False,
    passes="1F",
    reference="Abnar & Zuidema 2020",
    accepts=("start_layer",),
    text=True,
    follows=True,
)
def rollout(
    context: AttributionContext, *, row_normalise: bool = True, heads: str = "mean"
) -> Float[Tensor, "images targets tokens"]:
    """Attention multiplied through the layers with the residual: Ā = (I + E_h[A]) / 2.

    Rows of I + E_h[A] sum to 2, so `row_normalise=False` (Eq. 1–3 of Cui, Fan, Chen) is the same map times 2 per layer.
    `heads="each"` follows every head by itself, A_h through A_h, and takes the mean of their maps at the end (the
    rollout in TAM's released code).
    """
    if heads not in ("mean", "each"):
        raise OptionError(f"heads={heads!r} is neither 'mean' nor 'each'")
    layers, graph = context.record(), context.layout.graph
    row = context.readout_row()
    if graph is not None:
        if heads == "each":
            raise UnsupportedOperationError("heads='each' follows a head from layer to layer, not through windows")
        return rollout_row(graph, layers, row, halve=row_normalise, first=context.first_layer)[:, None]
    if heads == "each":
        return _each_head(row, layers[context.first_layer :], row_normalise)[:, None]
    for layer in reversed(layers[context.first_layer :]):
        pooled = layer.queries != layer.keys
        row = add_update(row, row_times_attention(row, layer))
        row = row / 2 if row_normalise and not pooled else row
    return row[:, None]


def _each_head(
    row: Float[Tensor, "images queries"], layers: list[RecordedLayer], row_normalise: bool
) -> Float[Tensor, "images tokens"]:
    """Returns E_h[ row · ∏ (I + A_h) / 2 ]."""
    counts = sorted({layer.heads for layer in layers})
    if len(counts) > 1:
        raise UnsupportedOperationError(
            f"heads='each' follows a head from layer to layer, but this model's layers have {counts} heads: use 'mean'"
        )
    rows = row[:, None].expand(-1, counts[0], -1)
    for layer in reversed(layers):
        update = each_head_times_attention(rows, layer)
        if layer.queries == layer.keys:
            update = (rows + update) / 2 if row_normalise else rows + update
        rows = update
    return rows.mean(dim=1)


@register_method(
    "norm_rollout",
    signed=False,
    class_specific=False,
    uses_gradient=False,
    passes="1F",
    reference="Kobayashi et al. 2020, followed through the layers",
    accepts=("start_layer",),
)
def norm_rollout(context: AttributionContext) -> Float[Tensor, "images targets tokens"]:
    """Rollout of attention weighted by the length of what it moves: E_h[A_hij ‖v_hj W_O,h‖], rows normalised."""
    recorder = CallRecorder()
    projection = ValueProjection(recorder)
    context.forward(recorder, projection)
    row = context.readout_row()
    for number in reversed(range(context.first_layer, context.layout.layers)):
        layer = recorder.layers[number]
        weighted = torch.einsum("bhqk,bhk->bqk", layer.probabilities(), projection.norms(number))
        sums = weighted.sum(dim=2).clamp(min=torch.finfo(weighted.dtype).tiny)  # zero where every key is masked
        update = torch.einsum("bq,bqk->bk", row / sums, weighted)
        row = (row + update) / 2 if layer.queries == layer.keys else update
    return row[:, None]


@register_method(
    "gae",
    aliases=("positive",),
    signed=False,
    class_specific=True,
    uses_gradient=True,
    passes="1F 1B",
    reference="Chefer, Gur, Wolf 2021 (Eq. 4 of Cui, Fan, Chen)",
    accepts=("start_layer", "centred", "compete", "resolution"),
    text=True,
    follows=True,
)
def gae(
    context: AttributionContext, *, identity: bool = False, clamp: str = "head"
) -> Float[Tensor, "images targets tokens"]:
    """Positive gradient: Ā = I + E_h[(∇A)⁺ ⊙ A]; what speaks against the class is dropped.

    `clamp="mean"` drops it after the mean over heads, Ā = I + (E_h[∇A ⊙ A])⁺, as the re-implementations in Beyond
    Intuition (`generate_genattr`) and vit-explain do: the numbers printed there for GAE are of that map.
    """
    if clamp not in ("head", "mean"):
        raise OptionError(f"clamp={clamp!r} is neither 'head' nor 'mean'")
    return _relevance(context, "positive", identity, clamp_mean=clamp == "mean")


@register_method(
    "complete",
    signed=True,
    class_specific=True,
    uses_gradient=True,
    passes="1F 1B",
    reference="Cui, Fan, Chen, Eq. 5; class competition: Vitrail",
    accepts=("start_layer", "centred", "compete", "resolution"),
    text=True,
    follows=True,
    gradient="libra",
    competes=True,
)
def complete(context: AttributionContext, *, identity: bool = False) -> Float[Tensor, "images targets tokens"]:
    """Complete gradient: Ā = I + E_h[∇A ⊙ A]; signed, red for the class and blue against it."""
    return _relevance(context, "complete", identity)


@register_method(
    "absolute",
    signed=False,
    class_specific=True,
    uses_gradient=True,
    passes="1F 1B",
    reference="Cui, Fan, Chen, Eq. 6",
    accepts=("start_layer", "centred", "compete", "resolution"),
    text=True,
    follows=True,
)
def absolute(context: AttributionContext, *, identity: bool = False) -> Float[Tensor, "images targets tokens"]:
    """Absolute gradient: Ā = I + E_h[|∇A| ⊙ A]; how much the logit depends on a patch, either way."""
    return _relevance(context, "absolute", identity)


def _relevance(
    context: AttributionContext, rule: str, identity: bool, clamp_mean: bool = False
) -> Float[Tensor, "images targets tokens"]:
    rows = torch.stack(context.differentiate(context.relevance_row(rule, clamp_mean)), dim=1)
    if context.layout.graph is not None:
        return rows + context.layout.graph.remainder.to(rows) if identity else rows
    readout = context.readout_row()[:, None]
    # A head that pools by attention has queries of its own, and no identity joins them to the tokens.
    return rows + readout if identity and not context.layout.pools else rows


@register_method(
    "tokentm",
    signed=False,
    class_specific=True,
    uses_gradient=True,
    passes="1F 1B",
    reference="Wu et al. 2024, as in LibraGrad",
    accepts=("compete", "resolution"),
)
def tokentm(context: AttributionContext, *, identity: bool = False) -> Float[Tensor, "images targets tokens"]:
    """TokenTM: GAE with tokens weighted by how attention and MLP change their length and direction."""
    transformations = TokenTransformations(len(context.images), context.layout.block_tokens)
    with ExitStack() as stack:
        for block in required_blocks(context):
            stack.enter_context(at_input(block, transformations.enter_block))
            stack.enter_context(at_output(block, transformations.leave_block))
        rows = context.differentiate(TransformedRow(transformations, identity), watcher=transformations)
    return torch.stack(rows, dim=1)


@dataclass
class ProductOfMeans:
    """Collects r · (E_h[A] ⊙ E_h[(∇A)⁺]): two whole matrices per image."""

    row: Float[Tensor, "images queries"]
    heads: int = field(init=False)
    attention: Float[Tensor, "images queries keys"] = field(init=False)
    gradient: Float[Tensor, "images queries keys"] = field(init=False)
    every_row = False

    def begin(self, images: int, heads: int, keys: int, like: Tensor) -> None:
        del like
        self.heads = heads
        self.attention = self.row.new_zeros(images, self.row.shape[1], keys)
        self.gradient = torch.zeros_like(self.attention)

    def add(self, block: Block, attention: Tensor, gradient: Tensor) -> None:
        self.attention[block.images, block.rows] += attention.sum(dim=1).to(self.row.dtype)
        self.gradient[block.images, block.rows] += gradient.clamp(min=0).sum(dim=1).to(self.row.dtype)

    def result(self) -> Float[Tensor, "images keys"]:
        return (self.row[:, None] @ (self.attention * self.gradient))[:, 0] / self.heads**2


class TransformedRow(BlockListener):
    """Keeps the readout's row of ∏ (I + W_mlp)(I + E_h[A] W_attention ⊙ E_h[(∇A)⁺]) · ‖x‖; see `RelevanceRow`.

    W are diagonal, so that each scales the columns of what stands in front of it.
    """

    def __init__(self, transformations: TokenTransformations, identity: bool) -> None:
        self.transformations, self.keeps_identity = transformations, identity

    def begin(self, readout: Float[Tensor, "images queries"]) -> None:
        self._identity, self._added = readout, torch.zeros_like(readout)

    def collector(self, layer: int) -> ProductOfMeans:
        if layer < len(self.transformations.by_mlp):
            grown = 1 + self.transformations.by_mlp[layer]
            self._identity, self._added = self._identity * grown, self._added * grown
        return ProductOfMeans(self._identity + self._added)

    def take(self, layer: int, collector: Collector) -> None:
        assert isinstance(collector, ProductOfMeans)
        update = collector.result()
        if layer < len(self.transformations.by_attention):
            self._added = self._added + update * self.transformations.by_attention[layer]
        else:  # a few queries pool the tokens: no residual, and no MLP of the tokens
            self._identity, self._added = torch.zeros_like(update), update

    def result(self) -> Float[Tensor, "images tokens"]:
        lengths = self.transformations.lengths
        assert lengths is not None
        return (self._identity + self._added if self.keeps_identity else self._added) * lengths
