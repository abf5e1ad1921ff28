"""Records attention: the calls of every layer, whole maps inside the graph, and rows multiplied by recorded maps."""

from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from .calls import AttentionCall, blocks, compute_dtype, probabilities, without_autocast
from .differentiate import tiles_fit
from .kernels import row_of_attention

__all__ = [
    "CallRecorder",
    "DenseRecorder",
    "RecordedLayer",
    "each_head_times_attention",
    "row_times_attention",
    "rows_times_attention",
]


@dataclass(frozen=True, eq=False)
class RecordedLayer:
    """One layer's attention: a call from which the probabilities can be formed again, or these themselves."""

    call: AttentionCall | None
    attention: Float[Tensor, "images heads queries keys"] | None

    @property
    def queries(self) -> int:
        return self.call.queries if self.call is not None else self._whole.shape[-2]

    @property
    def keys(self) -> int:
        return self.call.keys if self.call is not None else self._whole.shape[-1]

    @property
    def images(self) -> int:
        return self.call.images if self.call is not None else self._whole.shape[0]

    @property
    def heads(self) -> int:
        return self.call.heads if self.call is not None else self._whole.shape[1]

    def probabilities(self) -> Float[Tensor, "images heads queries keys"]:
        """Returns the layer's whole attention: images · heads · queries · keys numbers."""
        return probabilities(self.call) if self.call is not None else self._whole

    @property
    def _whole(self) -> Tensor:
        assert self.attention is not None
        return self.attention


@dataclass
class CallRecorder:
    """Keeps queries and keys of every layer, detached: memory in proportion to the tokens, not to their square.

    Stands alone for methods without a gradient, or in front of another visitor (`inner`) that answers the calls.
    """

    inner: Any = None
    layers: list[RecordedLayer] = field(default_factory=list)

    def attend(self, call: AttentionCall) -> Float[Tensor, "images heads queries value_width"]:
        self.layers.append(RecordedLayer(call.detached(), None))
        return call.output() if self.inner is None else self.inner.attend(call)

    def normalise(
        self, scores: Float[Tensor, "images heads queries keys"]
    ) -> Float[Tensor, "images heads queries keys"]:
        attention = torch.softmax(scores, dim=-1) if self.inner is None else self.inner.normalise(scores)
        self.layers.append(RecordedLayer(None, attention.detach()))
        return attention


@dataclass
class DenseRecorder:
    """Keeps every layer's whole attention map A inside the graph, so that ∂s/∂A can be asked for.

    Holds layers · images · heads · tokens² numbers: for methods that need whole maps, and for checks.

    Example:
        >>> from vitrail.attention.tap import Tap
        >>> recorder = DenseRecorder()
        >>> layer = torch.nn.MultiheadAttention(8, 2, batch_first=True)
        >>> x = torch.randn(1, 5, 8)
        >>> with Tap(recorder, images=1):
        ...     output, _ = layer(x, x, x, need_weights=False)
        >>> recorder.maps[0].shape
        torch.Size([1, 2, 5, 5])
        >>> recorder.gradients(output.sum())[0].shape
        torch.Size([1, 2, 5, 5])
    """

    maps: list[Float[Tensor, "images heads queries keys"]] = field(default_factory=list)

    def attend(self, call: AttentionCall) -> Float[Tensor, "images heads queries value_width"]:
        attention = self._keep(probabilities(call))
        return (attention.to(call.value.dtype) @ call.value).to(call.value.dtype)

    def normalise(
        self, scores: Float[Tensor, "images heads queries keys"]
    ) -> Float[Tensor, "images heads queries keys"]:
        return self._keep(torch.softmax(scores, dim=-1))

    def gradients(
        self, scalar: Float[Tensor, ""], keep: bool = False
    ) -> list[Float[Tensor, "images heads queries keys"]]:
        """Returns ∇A of every layer for a scalar of the model's output; zero where it does not reach."""
        gradients = torch.autograd.grad(scalar, self.maps, retain_graph=keep, allow_unused=True)
        return [torch.zeros_like(a) if g is None else g for a, g in zip(self.maps, gradients, strict=True)]

    def _keep(self, attention: Tensor) -> Tensor:
        if torch.is_grad_enabled() and not attention.requires_grad:
            attention.requires_grad_()
        self.maps.append(attention)
        return attention


# Rows through the product of recorded attention maps, without forming any of them whole.


def row_times_attention(
    row: Float[Tensor, "images queries"],
    layer: RecordedLayer,
    head_weights: Float[Tensor, "images heads"] | None = None,
) -> Float[Tensor, "images keys"]:
    """Returns r · Σ_h w_h A_h of one recorded layer; `head_weights` sum to one and default to the mean over heads."""
    return rows_times_attention(row[:, None], layer, head_weights)[:, 0]


@without_autocast
def rows_times_attention(
    rows: Float[Tensor, "images rows queries"],
    layer: RecordedLayer,
    head_weights: Float[Tensor, "images heads"] | None = None,
) -> Float[Tensor, "images rows keys"]:
    """Returns R · Σ_h w_h A_h of one recorded layer, for several rows of each image."""
    weights = head_weights
    if weights is None:
        weights = rows.new_full((layer.images, layer.heads), 1 / layer.heads)
    if layer.call is None:
        attention = layer.probabilities()
        dtype = compute_dtype(attention.dtype)
        return rows.to(dtype) @ torch.einsum("bh,bhqk->bqk", weights.to(dtype), attention.to(dtype))
    if rows.shape[1] == 1 and tiles_fit(layer.call):
        by_head = row_of_attention(layer.call, rows[:, 0])
        if by_head is not None:
            return torch.einsum("bh,bhk->bk", weights.to(by_head), by_head).to(rows.dtype)[:, None]
    total = rows.new_zeros(*rows.shape[:2], layer.keys)
    for block in blocks(layer.call):
        attention = probabilities(layer.call, block)
        fused = torch.einsum("bh,bhqk->bqk", weights[block.images, block.heads].to(attention.dtype), attention)
        total[block.images] += (rows[block.images, :, block.rows].to(attention.dtype) @ fused).to(total.dtype)
    return total


def each_head_times_attention(
    rows: Float[Tensor, "images heads queries"], layer: RecordedLayer
) -> Float[Tensor, "images heads keys"]:
    """Returns r_h · A_h for every head h by itself."""
    attention = layer.probabilities()
    return torch.einsum("bhq,bhqk->bhk", rows.to(attention.dtype), attention)
