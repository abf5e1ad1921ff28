"""Grad-ECLIP: the values that the last attention gathers, weighted by the gradient at its output (Zhao et al. 2024).

With o = A V before the output projection, g_q = ∂s/∂o_q at the queries q that the head reads (the class token), and
λ_qj = cos(query_q, key_j) brought to 0…1 over the patches j, a "loosened" attention that is not as peaked as A:

    map_j = max(0, Σ_q Σ_c g_qc v_jc λ_qj)
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..attention.calls import AttentionCall, compute_dtype
from ..attention.modules import at_input, running_module
from ..attention.visitors import LeafAttention
from ..attention.watchers import ATTENTION, NORMS
from ..errors import OptionError, UnsupportedOperationError
from ..models.blocks import blocks_of
from .cam import on_all_tokens
from .context import AttributionContext
from .registry import register_method

__all__ = ["grad_eclip"]

HEADS = ("true", "merged")
SIMILARITIES = ("full", "per_head", "none")


@register_method(
    "grad_eclip",
    signed=False,
    class_specific=True,
    uses_gradient=True,
    passes="1F 1B",
    reference="Zhao et al. 2024",
    accepts=("compete",),
)
def grad_eclip(
    context: AttributionContext, *, heads: str = "true", similarity: str = "full", relu: bool = True
) -> Float[Tensor, "images targets tokens"]:
    """Grad-ECLIP: gradient at the last attention's output times its values, where keys are like the query.

    `heads="true"` explains the model as it is. `heads="merged"` is the authors' released forward for ViT classifiers:
    the last attention has one head of the whole width, and the residual around it carries the normalised tokens. That
    is another model, whose logits may name another class; the logits that are returned are the true model's, at the
    cost of a second forward pass. `similarity` takes λ over the whole width ("full"), head by head ("per_head"), or
    leaves it out ("none"). `relu=False` keeps the sign.
    """
    if heads not in HEADS:
        raise OptionError(f"heads={heads!r} is none of {', '.join(HEADS)}")
    if similarity not in SIMILARITIES:
        raise OptionError(f"similarity={similarity!r} is none of {', '.join(SIMILARITIES)}")
    if heads == "merged":
        visitor, logits = _merged_forward(context)
    else:
        visitor = _LastAttention(context)
        logits = context.graph(visitor)
    call, output = visitor.call, visitor.output
    assert call is not None
    assert output is not None
    read = context.readout_row()[0] != 0
    dtype = compute_dtype(output.dtype)
    query, key, value = (side_by_side(t.to(dtype)) for t in (call.query, call.key, call.value))
    patches = slice(context.layout.prefix, context.layout.prefix + context.layout.patches)
    split = call.heads if similarity == "per_head" else 1
    likeness = similarity_of(query[:, read], key[:, patches], split)
    maps = []
    for number in range(context.questions):
        (gradient,) = torch.autograd.grad(context.scalar(logits, number), [output], retain_graph=True)
        weights = None if similarity == "none" else likeness
        scores = weighted_values(gradient.to(dtype)[:, read], value[:, patches], weights, split)
        maps.append(on_all_tokens(scores.clamp(min=0) if relu else scores, context.layout))
    return torch.stack(maps, dim=1)


def side_by_side(heads: Float[Tensor, "images heads tokens width"]) -> Float[Tensor, "images tokens channels"]:
    """Returns the heads' channels side by side, as the output projection takes them."""
    return heads.transpose(1, 2).flatten(2)


def similarity_of(
    query: Float[Tensor, "images queries channels"], key: Float[Tensor, "images patches channels"], heads: int
) -> Float[Tensor, "images heads queries patches"]:
    """Returns λ: the cosine of query and key, brought to 0…1 over the patches; 1 everywhere where all are alike."""
    query, key = (F.normalize(t.unflatten(2, (heads, -1)), dim=3).transpose(1, 2) for t in (query, key))
    cosine = query @ key.transpose(2, 3)
    low, high = cosine.amin(dim=3, keepdim=True), cosine.amax(dim=3, keepdim=True)
    return torch.where(high > low, (cosine - low) / (high - low), 1.0)


def weighted_values(
    gradient: Float[Tensor, "images queries channels"],
    value: Float[Tensor, "images patches channels"],
    likeness: Float[Tensor, "images heads queries patches"] | None,
    heads: int,
) -> Float[Tensor, "images patches"]:
    """Returns Σ_q Σ_h λ_hqj ⟨g_hq, v_hj⟩."""
    gradient, value = (t.unflatten(2, (heads, -1)).transpose(1, 2) for t in (gradient, value))
    product = gradient @ value.transpose(2, 3)
    return (product if likeness is None else product * likeness).sum(dim=(1, 2))


class _LastAttention(LeafAttention):
    """Makes the last attention's output a leaf, its heads side by side, and keeps the call; `merged` to one head."""

    def __init__(self, context: AttributionContext, merged: bool = False) -> None:
        super().__init__(context.gradient)
        self.context, self.last, self.merged = context, context.layout.layers - 1, merged
        self.call: AttentionCall | None = None
        self.output: Tensor | None = None

    def attend(self, call: AttentionCall) -> Float[Tensor, "images heads queries value_width"]:
        if self.count != self.last:
            return super().attend(call)
        self._next()
        self.call = (self._one_head(call) if self.merged else call).detached()
        self.output = side_by_side(self.call.output()).requires_grad_()
        return self.output.unflatten(2, (call.heads, -1)).transpose(1, 2)

    def normalise(
        self, scores: Float[Tensor, "images heads queries keys"]
    ) -> Float[Tensor, "images heads queries keys"]:
        if self.count == self.last:
            raise UnsupportedOperationError(
                "grad_eclip needs queries, keys and values of the last attention, but "
                f"{_running(self.context.model.module)} writes it out as a softmax over scores, where they "
                "cannot be told: use gradcam, complete or gae, or let the module call scaled_dot_product_attention"
            )
        return super().normalise(scores)

    def _one_head(self, call: AttentionCall) -> AttentionCall:
        """Returns the call with one head of the whole width, at the true heads' scale as the authors have it."""
        mask = call.mask
        if mask is not None and mask.dim() == 4 and mask.shape[1] > 1:
            raise UnsupportedOperationError(
                f"heads='merged' cannot merge the {call.heads} heads of attention {self.last} in "
                f'{_running(self.context.model.module)}: each has a bias of its own; use heads="true"'
            )
        parts = {"query": call.query, "key": call.key, "value": call.value}
        return replace(call, **{name: side_by_side(part)[:, None] for name, part in parts.items()})


def _merged_forward(context: AttributionContext) -> tuple[_LastAttention, Tensor]:
    """Returns the authors' forward; the logits stay the true model's."""
    last = context.layout.layers - 1
    block = None if context.layout.pools else blocks_of(context.model, context.images, context.layout)[last]
    norm = _NormalisedResidual()
    if block is not None:
        context.forward(LeafAttention("full"), norm, at_input(block, norm.enter_block))
    if block is None or norm.call is None:
        raise UnsupportedOperationError(
            f"heads='merged' is the authors' forward of a block that normalises its tokens before its attention, and "
            f'attention {last} of {context.model.name} is in none that can be found: use heads="true"'
        )
    own = context.logits
    visitor = _LastAttention(context, merged=True)
    logits = context.graph(visitor, norm, at_input(block, norm.enter_block))
    context.logits = own
    return visitor, logits


class _NormalisedResidual(TorchFunctionMode):
    """In a first pass notes a block's first norm; in the next gives the block its tokens already normalised by it."""

    def __init__(self) -> None:
        super().__init__()
        self.call: tuple[Callable[..., Tensor], tuple, dict[str, Any]] | None = None
        self._waiting = False

    def enter_block(self, tokens: Tensor) -> Tensor:
        self._waiting = True
        if self.call is None:
            return tokens
        norm, args, kwargs = self.call
        return norm(tokens, *args, **kwargs).detach()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in ATTENTION:
            self._waiting = False
        elif func in NORMS and self._waiting:
            self._waiting = False
            if self.call is not None:
                return args[0]
            self.call = func, args[1:], dict(kwargs or {})
        return func(*args, **(kwargs or {}))


def _running(root: nn.Module) -> str:
    """Returns the name and class of the module that is running, for messages."""
    running = running_module(root)
    return type(root).__name__ if running is None else f"{running[0] or 'the model'} ({type(running[1]).__name__})"
