"""Attention whose backward pass tells a listener, layer after layer from the last to the first."""

from dataclasses import replace
from functools import cached_property
from typing import Any, Literal, Protocol, TypeAlias, TypeVar, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from .calls import AttentionCall, compute_dtype
from .gradient_modes import GradientMode, half_of_gradient, holds_attention, nonzero_rows
from .kernels import attention_transposed, launches, sum_over_queries
from .listeners import PassedOn
from .relevance_row import (
    Collector,
    Gradients,
    SummingCollector,
    attention_backward,
    collect_whole,
    constant_attention_backward,
    fused_row,
    softened_backward,
    softmax_backward,
)

__all__ = ["DifferentiatedAttention", "Kernel", "LayerListener", "swaps", "tiles_fit"]

Kernel: TypeAlias = Literal["auto", "blocks", "fused", "triton"]
Result = TypeVar("Result", covariant=True)


@runtime_checkable
class LayerListener(Protocol[Result]):
    """Receives A and ∇A of each layer in the backward pass, last layer first."""

    only_complete: bool
    """Whether r · (∇A ⊙ A) is all that the listener wants of a layer, so that the fused backward can give it."""

    sums_queries: bool
    """Whether its collectors can do with one sum over the queries (`SummingCollector`), as a kernel forms it."""

    def collector(self, layer: int) -> Collector:
        """Returns the collector that receives the layer's blocks of A and ∇A."""
        ...

    def take(self, layer: int, collector: Collector) -> None:
        """Takes the layer's collector, once all blocks have been added."""
        ...

    def begin(self, readout: Float[Tensor, "images queries"]) -> None:
        """Begins a backward pass, for a map read at these queries of the last attention."""
        ...

    def result(self) -> Result:
        """Returns the result of the backward pass that has ended."""
        ...

    def current_row(self, layer: int) -> Float[Tensor, "images queries"]:
        """Returns the relevance row r as it enters the layer; asked for only where `only_complete`."""
        ...

    def take_update(self, layer: int, update: Float[Tensor, "images keys"]) -> None:
        """Takes (1/H) Σ_h r · (∇A_h ⊙ A_h), computed by the fused backward."""
        ...


# Walking the rows in blocks is faster from this factor fewer rows on.
MANY_TIMES_FEWER = 16

# What a tile of A, one of ∇A and their factors leave room for in registers and shared memory.
WIDEST = {torch.bfloat16: 256, torch.float16: 256, torch.float32: 128}

# From this number of keys on the fused sweeps are the faster: below, all heads of an image fit the cache in one block.
# Of causal attention blocks walk what is masked, too.
FROM_KEYS, FROM_KEYS_CAUSAL = 512, 256


def swaps(call: AttentionCall) -> bool:
    """Returns whether `attention_transposed` serves a call and is the faster: on a CPU, many keys, no mask, not in
    half.
    """
    one_kind = call.query.dtype == call.key.dtype == call.value.dtype
    return (
        call.query.device.type == "cpu"
        and min(call.queries, call.keys) >= (FROM_KEYS_CAUSAL if call.causal else FROM_KEYS)
        and call.mask is None
        and not (call.causal and call.queries != call.keys)
        and one_kind
        and call.query.dtype in (torch.float32, torch.float64)
        and call.query.shape[-1] == call.value.shape[-1]
        and hasattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu")
    )


def tiles_fit(call: AttentionCall, forced: bool = False) -> bool:
    """Returns whether the Triton kernel serves this call: no mask, one precision, no head wider than `WIDEST`.

    By itself it is chosen in half precision only: in float32 it would multiply without tensor cores, and PyTorch's
    products over blocks are the faster. `forced` takes it for float32 too, and on a CPU (under Triton's interpreter).
    """
    query, key, value = call.query, call.key, call.value
    if call.mask is not None or call.causal or not query.dtype == key.dtype == value.dtype:
        return False
    if max(query.shape[-1], value.shape[-1]) > WIDEST.get(query.dtype, 0) or 0 in (call.queries, call.keys):
        return False
    return (forced or (query.is_cuda and query.dtype != torch.float32)) and launches(call, forced)


def fused_by_default(call: AttentionCall, through_scores: bool) -> bool:
    """Returns whether the fused backward is the faster way here: on a GPU, and on a CPU where many tokens attend.

    Of causal attention that is held constant, blocks form all that is needed in fewer products.
    """
    return call.query.is_cuda or (swaps(call) and (through_scores or not call.causal))


class DifferentiatedAttention:
    """Fused attention forward; the backward pass yields A and ∇A block by block, for every gradient method.

    Layers before `start_layer` take no part: nothing is differentiated there. The first layer after it is where the
    backward pass ends: an anchor, a scalar that only makes autograd come that far, is what to differentiate by. Where
    layers do not follow from one another (`branches`), each has an anchor of its own. With `to_input` it goes on
    through all layers to the model's input, a leaf, and the listener is told of those from `start_layer` on.

    `kernel="blocks"` walks A in blocks of rows, which serves every rule and is the faster on a CPU of few tokens.
    Else gradients go through the fused backward wherever the listener needs no block: "triton" adds a kernel that sums
    over the queries what the listener wants, tile by tile; "fused" needs none, but only gives the complete gradient.
    "auto" takes the first of "triton", "fused" (where `fused_by_default`) and "blocks" that serves, as "triton" does on
    any device.
    """

    def __init__(
        self,
        listener: LayerListener[Any],
        gradient: GradientMode,
        start_layer: int = 0,
        kernel: Kernel = "auto",
        branches: bool = False,
        to_input: bool = False,
    ) -> None:
        self.listener = listener
        self.gradient: GradientMode = gradient
        self.through_scores = not holds_attention(gradient)
        self.softened = gradient == "gim"
        self.start_layer = start_layer
        self.kernel: Kernel = kernel
        self.layers = 0
        self.branches = branches
        self.to_input = to_input
        self.anchors: list[Tensor] = []
        self.keep = False

    @cached_property
    def before_start(self) -> "DifferentiatedAttention":
        """Returns the same for the layers before `start_layer`, of which nothing is wanted but what flows on."""
        return DifferentiatedAttention(
            PassedOn(), self.gradient, kernel="blocks", branches=self.branches, to_input=True
        )

    def attend(self, call: AttentionCall) -> Float[Tensor, "images heads queries value_width"]:
        if call.moving_bias:
            assert call.mask is not None
            # A bias made of queries (SAM), which the model holds in full: written out, its gradient passes, too.
            scores = call.query @ call.key.transpose(-1, -2) * call.scale + call.mask
            return self.normalise(scores) @ (half_of_gradient(call.value) if self.softened else call.value)
        layer = self._next_layer()
        if layer < self.start_layer:
            return self.before_start.attend(call) if self.to_input else call.output()
        anchor = self._anchor_for(layer, call.query)
        if layer == self.start_layer and not self.branches and not self.to_input:
            call = call.detached()
        fused = self.kernel == "fused" or (self.kernel != "blocks" and fused_by_default(call, self.through_scores))
        tiled = self.kernel in ("auto", "triton") and tiles_fit(call, forced=self.kernel == "triton")
        if self.softened:  # no kernel has another softmax backward than forward
            function = _BlockAttention
        elif tiled and self.listener.sums_queries:
            function = _TiledAttention
        elif fused and self.listener.only_complete:
            function = _FusedAttention
        else:
            function = _BlockAttention
        return function.apply(call.query, call.key, call.value, anchor, call, layer, self)  # pyright: ignore

    def normalise(
        self, scores: Float[Tensor, "images heads queries keys"]
    ) -> Float[Tensor, "images heads queries keys"]:
        layer = self._next_layer()
        if layer < self.start_layer:
            return self.before_start.normalise(scores) if self.to_input else torch.softmax(scores, dim=-1)
        anchor = self._anchor_for(layer, scores)
        if layer == self.start_layer and not self.branches and not self.to_input:
            scores = scores.detach()
        return _WrittenOutAttention.apply(scores, anchor, layer, self)  # pyright: ignore

    def backward(self, scalar: Float[Tensor, ""], keep: bool, leaf: Tensor | None = None) -> Tensor | None:
        """Sends the gradient of `scalar` through the layers, and returns that of the input, where `leaf` is given;
        `keep` the graph for another target.
        """
        if not self.anchors:
            raise RuntimeError("no attention has been differentiated in the forward pass")
        self.keep = keep
        wanted = self.anchors if leaf is None else [leaf, *self.anchors]
        found = torch.autograd.grad(scalar, wanted, retain_graph=keep, allow_unused=True)
        return None if leaf is None else found[0]

    def _next_layer(self) -> int:
        self.layers += 1
        return self.layers - 1

    def _anchor_for(self, layer: int, like: Tensor) -> Tensor | None:
        if layer != self.start_layer and not self.branches:
            return None
        self.anchors.append(torch.zeros((), device=like.device, requires_grad=True))
        return self.anchors[-1]


class _BlockAttention(Function):
    """Forward: the fused kernel. Backward: in blocks of rows, each shown to the listener's collector."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        anchor: Tensor | None,
        call: AttentionCall,
        layer: int,
        visitor: DifferentiatedAttention,
    ) -> Tensor:
        ctx.save_for_backward(query, key, value)
        ctx.rest = call.mask, call.causal, call.scale, call.windows
        ctx.layer, ctx.visitor = layer, visitor
        return call.output()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        call = AttentionCall(*ctx.saved_tensors, *ctx.rest)
        return *_by_blocks(ctx, call, grads[0]), None, None, None, None


def _by_blocks(ctx: Any, call: AttentionCall, grad_output: Tensor) -> Gradients:
    """The backward pass of one layer in blocks, told to the listener."""
    visitor: DifferentiatedAttention = ctx.visitor
    to_query, to_key, to_value = ctx.needs_input_grad[:3]
    if visitor.listener.only_complete and not visitor.through_scores:
        d_value, update = constant_attention_backward(call, grad_output, visitor.listener.current_row(ctx.layer))
        visitor.listener.take_update(ctx.layer, update)
        return Gradients(None, None, d_value if to_value else None)
    collector = visitor.listener.collector(ctx.layer)
    gradients = attention_backward(
        call,
        grad_output,
        collector,
        through_scores=visitor.through_scores and (to_query or to_key),
        through_value=to_value,
        softened=visitor.softened,
    )
    visitor.listener.take(ctx.layer, collector)
    return gradients


class _LocalGraph(Function):
    """Forward: the model's own fused kernel, in a small graph of its own that its backward is taken through."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        anchor: Tensor | None,
        call: AttentionCall,
        layer: int,
        visitor: DifferentiatedAttention,
    ) -> Tensor:
        wanted = visitor.through_scores and (query.requires_grad or key.requires_grad)
        with torch.enable_grad():
            local = replace(
                call,
                query=query.detach().requires_grad_(wanted),
                key=key.detach().requires_grad_(wanted),
                value=value.detach().requires_grad_(),
            )
            output = local.output()
        ctx.local = local, output
        ctx.layer, ctx.visitor = layer, visitor
        return output.detach()

    @staticmethod
    def flow(ctx: Any, grad_output: Tensor) -> list[Tensor | None]:
        """What flows on to query, key and value by the fused backward."""
        local, output = ctx.local
        tensors = local.query, local.key, local.value
        asked = [t.requires_grad and needed for t, needed in zip(tensors, ctx.needs_input_grad, strict=False)]
        wanted = [tensor for tensor, is_asked in zip(tensors, asked, strict=True) if is_asked]
        keep = ctx.visitor.keep
        flow = iter(torch.autograd.grad(output, wanted, grad_output, retain_graph=keep) if wanted else ())
        if not keep:
            del ctx.local
        return [next(flow) if is_asked else None for is_asked in asked]


class _TiledAttention(_LocalGraph):
    """Backward: the fused kernel's, and next to it the listener's sum over the queries, tile by tile."""

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        visitor: DifferentiatedAttention = ctx.visitor
        (grad_output,) = grads
        local, output = ctx.local
        collector = visitor.listener.collector(ctx.layer)
        assert isinstance(collector, SummingCollector)
        wanted, call = collector.query_sum(), local.detached()
        assert wanted is not None
        total = sum_over_queries(call, wanted, grad_output, output, forced=visitor.kernel == "triton")
        if total is None:
            attention_backward(call, grad_output, collector, through_scores=False, through_value=False)
        else:
            collector.take_sum(total)
        visitor.listener.take(ctx.layer, collector)
        return *_LocalGraph.flow(ctx, grad_output), None, None, None, None


class _FusedAttention(_LocalGraph):
    """Backward: the fused kernel's; Aᵀ (r ⊙ dO) next to it gives the row."""

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        visitor: DifferentiatedAttention = ctx.visitor
        (grad_output,) = grads
        local, output = ctx.local
        reached = nonzero_rows(grad_output)
        if reached.stop - reached.start <= local.queries // MANY_TIMES_FEWER:
            # Of few rows the blocks are the quicker: they are all that is walked.
            if not visitor.keep:
                del ctx.local
            return *_by_blocks(ctx, local.detached(), grad_output), None, None, None, None
        dtype = compute_dtype(grad_output.dtype)
        upstream = visitor.listener.current_row(ctx.layer)[:, None, :, None].to(dtype) * grad_output.to(dtype)
        d_value = attention_transposed(local.detached(), output, upstream) if swaps(local) else None
        update = _through_value(local, output, upstream) if d_value is None else fused_row(local.value, d_value)
        visitor.listener.take_update(ctx.layer, update.detach())
        return *_LocalGraph.flow(ctx, grad_output), None, None, None, None


def _through_value(call: AttentionCall, output: Tensor, upstream: Tensor) -> Float[Tensor, "images keys"]:
    """What r ⊙ dO adds to the row, by a fused backward of its own."""
    # Scaled to one per image: r ⊙ dO is tiny where many tokens share the readout, and float16 would lose it.
    largest = upstream.abs().amax(dim=(1, 2, 3), keepdim=True).clamp(min=torch.finfo(upstream.dtype).tiny)
    scaled = (upstream / largest).to(call.value.dtype)
    (d_value,) = torch.autograd.grad(output, call.value, scaled, retain_graph=True)
    return fused_row(call.value.detach(), d_value) * largest[:, 0, :, 0]


class _WrittenOutAttention(Function):
    """A softmax over scores that the model multiplies with V by itself: A and ∇A are available in full."""

    @staticmethod
    def forward(
        ctx: Any, scores: Tensor, anchor: Tensor | None, layer: int, visitor: DifferentiatedAttention
    ) -> Tensor:
        attention = torch.softmax(scores, dim=-1)
        ctx.save_for_backward(attention)
        ctx.layer, ctx.visitor = layer, visitor
        return attention

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        visitor: DifferentiatedAttention = ctx.visitor
        (attention,) = ctx.saved_tensors
        dtype = compute_dtype(attention.dtype)
        wide, gradient = attention.to(dtype), grads[0].to(dtype)
        collector = visitor.listener.collector(ctx.layer)
        collect_whole(collector, wide, gradient)
        visitor.listener.take(ctx.layer, collector)
        flows = visitor.through_scores and ctx.needs_input_grad[0]
        backward = softened_backward if visitor.softened else softmax_backward
        return backward(wide, gradient).to(attention.dtype) if flows else None, None, None, None
