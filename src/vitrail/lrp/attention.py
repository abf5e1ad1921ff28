"""Attention under relevance rules: R_A of every layer, shown block by block next to the gradient G = ∇A."""

from dataclasses import replace
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from ..attention.calls import AttentionCall, blocks, probabilities
from ..attention.relevance_row import Collector, Gradients, attention_backward, collect_whole, softmax_backward
from ..errors import UnsupportedOperationError
from .operations import Precision, Walk

__all__ = ["RelevanceListener", "RelevantAttention", "attention_relevance", "narrowed"]

Result = TypeVar("Result", covariant=True)


@runtime_checkable
class RelevanceListener(Protocol[Result]):
    """Is told R_A and G of every layer in the relevance's walk, last layer first."""

    def begin(self, readout: Float[Tensor, "images queries"]) -> None: ...

    def collector(self, layer: int) -> Collector | None:
        """Returns the collector that receives the layer's blocks, with R_A in the place of A, and G; None for none."""
        ...

    def take(self, layer: int, collector: Collector) -> None: ...

    def result(self) -> Result: ...


def attention_relevance(
    call: AttentionCall,
    output: Float[Tensor, "images heads queries value_width"],
    relevance: Float[Tensor, "images heads queries value_width"],
    upstream: Float[Tensor, "images heads queries value_width"] | None,
    collector: Collector | None,
    precision: Precision,
    *,
    flows: bool,
) -> Gradients:
    """Returns both products of attention by the z-rule, half to each operand (Chefer, Gur, Wolf 2021).

    With S = R / (A V): R_A = A ⊙ (S Vᵀ) / 2 and R_V = V ⊙ (Aᵀ S) / 2. R_A passes the softmax as it is, and with
    T = R_A / (Q Kᵀ): R_Q = Q ⊙ (T K) / 2 and R_K = K ⊙ (Tᵀ Q) / 2. `upstream` is the gradient at A V, from which
    G = ∇A = dO Vᵀ. A mask or a bias on the scores takes no relevance, as the bias of a linear layer does not.

    Products are in the type that `precision` has for them; the divisors A V and Q Kᵀ, which come near zero, in that of
    the model's forward pass.
    """
    divide = precision.divide
    narrow = narrowed(call, precision.products)
    share = divide(relevance, output).to(precision.products)
    if collector is not None:
        collector.begin(call.images, call.heads, call.keys, narrow.query)
    totals = [torch.zeros_like(tensor) for tensor in (narrow.query, narrow.key, narrow.value)] if flows else []
    for block in blocks(call):
        some = block.images, block.heads
        rows = *some, block.rows
        attention = probabilities(narrow, block)
        value = narrow.value[some].transpose(-1, -2)
        of_attention = (share[rows] @ value).mul_(attention).mul_(0.5)
        if collector is not None:
            gradient = torch.zeros_like(of_attention) if upstream is None else upstream[rows].to(value.dtype) @ value
            collector.add(block, of_attention, gradient)
        if flows:
            scores = call.query[rows] @ call.key[some].transpose(-1, -2)
            of_scores = divide(of_attention, scores).to(precision.products)
            totals[0][rows] = of_scores @ narrow.key[some]
            totals[1][some] += of_scores.transpose(-1, -2) @ narrow.query[rows]
            totals[2][some] += attention.transpose(-1, -2) @ share[rows]
    if not flows:
        return Gradients(None, None, None)
    operands = narrow.query, narrow.key, narrow.value
    return Gradients(*(total.mul_(operand).mul_(0.5) for total, operand in zip(totals, operands, strict=True)))


def narrowed(call: AttentionCall, dtype: torch.dtype) -> AttentionCall:
    """Returns the call with its queries, keys and values in that type."""
    return replace(call, query=call.query.to(dtype), key=call.key.to(dtype), value=call.value.to(dtype))


def refuse_moving_bias(call: AttentionCall) -> None:
    """Refuses attention whose bias depends on the image: relevance that goes through it would be lost.

    Raises:
        UnsupportedOperationError: naming methods that need none of this.
    """
    if call.moving_bias:
        raise UnsupportedOperationError(
            "the attention has a bias that depends on the image (relative positions times queries, as in SAM), which "
            "has no rule; use complete, gae or gradcam"
        )


class RelevantAttention:
    """The visitor under the rules of Chefer, Gur, Wolf: tells a listener R_A and G of the layers from `first` on.

    `anchor` is what to walk to when nothing before the layer `first` is wanted; with `to_pixels` the graph goes on to
    the image. `through_scores=False` is the gradient mode in which the attention is constant; the relevance passes the
    scores all the same.
    """

    def __init__(
        self, walk: Walk, listener: RelevanceListener[Any] | None, first: int, *, through_scores: bool, to_pixels: bool
    ) -> None:
        self.walk = walk
        self.listener = listener
        self.first = first
        self.through_scores = through_scores
        self.to_pixels = to_pixels
        self.layers = 0
        self.anchor: Tensor | None = None
        self.upstream: dict[int, Tensor] = {}

    def attend(self, call: AttentionCall) -> Float[Tensor, "images heads queries value_width"]:
        refuse_moving_bias(call)
        layer = self._next_layer()
        if layer < self.first and not self.to_pixels:
            return call.output()
        anchor = self._anchor_for(layer, call.query)
        if layer == self.first and not self.to_pixels:
            call = call.detached()
        return _Attention.apply(call.query, call.key, call.value, anchor, call, layer, self)  # pyright: ignore

    def normalise(
        self, scores: Float[Tensor, "images heads queries keys"]
    ) -> Float[Tensor, "images heads queries keys"]:
        layer = self._next_layer()
        if layer < self.first and not self.to_pixels:
            return torch.softmax(scores, dim=-1)
        anchor = self._anchor_for(layer, scores)
        if layer == self.first and not self.to_pixels:
            scores = scores.detach()
        return _WrittenOut.apply(scores, anchor, layer, self)  # pyright: ignore

    def collector(self, layer: int) -> Collector | None:
        return None if self.listener is None or layer < self.first else self.listener.collector(layer)

    def take(self, layer: int, collector: Collector | None) -> None:
        if self.listener is not None and collector is not None:
            self.listener.take(layer, collector)

    def _next_layer(self) -> int:
        self.layers += 1
        return self.layers - 1

    def _anchor_for(self, layer: int, like: Tensor) -> Tensor | None:
        if layer != self.first:
            return None
        self.anchor = torch.zeros((), device=like.device, dtype=like.dtype, requires_grad=True)
        return self.anchor


class _Attention(Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        anchor: Tensor | None,
        call: AttentionCall,
        layer: int,
        visitor: RelevantAttention,
    ) -> Tensor:
        output = call.output()
        ctx.save_for_backward(query, key, value, output)
        ctx.rest = call.mask, call.causal, call.scale
        ctx.layer, ctx.visitor = layer, visitor
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *flows: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        visitor: RelevantAttention = ctx.visitor
        query, key, value, output = ctx.saved_tensors
        call = AttentionCall(query, key, value, *ctx.rest)
        needed = any(ctx.needs_input_grad[:3])
        if not visitor.walk.relevance:
            visitor.upstream[ctx.layer] = flows[0]
            to_query, to_key, to_value = ctx.needs_input_grad[:3]
            shares = attention_backward(
                narrowed(call, visitor.walk.precision.products),
                flows[0],
                through_scores=visitor.through_scores and (to_query or to_key),
                through_value=to_value,
            )
            return *shares, None, None, None, None
        collector = visitor.collector(ctx.layer)
        upstream = visitor.upstream.pop(ctx.layer, None)
        shares = attention_relevance(call, output, flows[0], upstream, collector, visitor.walk.precision, flows=needed)
        visitor.take(ctx.layer, collector)
        return *shares, None, None, None, None


class _WrittenOut(Function):
    """A softmax that the model multiplies with V by itself: what comes back is G in one walk and R_A in the other."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, anchor: Tensor | None, layer: int, visitor: RelevantAttention) -> Tensor:
        attention = torch.softmax(scores, dim=-1)
        ctx.save_for_backward(attention)
        ctx.layer, ctx.visitor = layer, visitor
        return attention

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *flows: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        visitor: RelevantAttention = ctx.visitor
        (attention,) = ctx.saved_tensors
        if not visitor.walk.relevance:
            visitor.upstream[ctx.layer] = flows[0]
            through = visitor.through_scores and ctx.needs_input_grad[0]
            return softmax_backward(attention, flows[0]) if through else None, None, None, None
        collector = visitor.collector(ctx.layer)
        gradient = visitor.upstream.pop(ctx.layer, None)
        if collector is not None:
            collect_whole(collector, flows[0], torch.zeros_like(attention) if gradient is None else gradient)
        visitor.take(ctx.layer, collector)
        return flows[0] if ctx.needs_input_grad[0] else None, None, None, None
