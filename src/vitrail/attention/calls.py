"""One call of attention as a value, and the attention probabilities that it stands for."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import wraps
from typing import NamedTuple, ParamSpec, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

__all__ = [
    "AnyCall",
    "AttentionCall",
    "Block",
    "blocks",
    "compute_dtype",
    "from_scaled_dot_product",
    "probabilities",
    "without_autocast",
]

P = ParamSpec("P")
R = TypeVar("R")

# Elements of one block of probabilities: about a core's cache on a CPU, and large enough to keep a GPU busy.
BLOCK_ELEMENTS = {"cpu": 2**20, "cuda": 2**27}
# Elements of the probabilities of one image up to which a CPU takes several at a time.
SMALL = 2**16


@dataclass(frozen=True, eq=False)
class AttentionCall:
    """What reached `scaled_dot_product_attention`, with the batch and the heads apart.

    `mask` is boolean (True where a query may attend) or additive, and broadcasts to (images, heads, queries, keys).
    `windows` says that the images are windows, many and small.
    """

    query: Float[Tensor, "images heads queries width"]
    key: Float[Tensor, "images heads keys width"]
    value: Float[Tensor, "images heads keys value_width"]
    mask: Tensor | None
    causal: bool
    scale: float
    windows: bool = False

    @property
    def images(self) -> int:
        return self.query.shape[0]

    @property
    def heads(self) -> int:
        return self.query.shape[1]

    @property
    def queries(self) -> int:
        return self.query.shape[2]

    @property
    def keys(self) -> int:
        return self.key.shape[2]

    @property
    def moving_bias(self) -> bool:
        """Returns whether a bias on the scores depends on the image, as relative positions times queries in SAM."""
        return self.mask is not None and self.mask.requires_grad

    def output(self) -> Float[Tensor, "images heads queries value_width"]:
        """Returns the attention's output by the fused kernel that the plain model would use."""
        return F.scaled_dot_product_attention(
            self.query, self.key, self.value, attn_mask=self.mask, is_causal=self.causal, scale=self.scale
        )

    def detached(self) -> "AttentionCall":
        """Returns the same call cut off from autograd."""
        mask = None if self.mask is None else self.mask.detach()
        return replace(self, query=self.query.detach(), key=self.key.detach(), value=self.value.detach(), mask=mask)


class AnyCall(NamedTuple):
    """What reached `scaled_dot_product_attention` in more than four dimensions: attention over the last two.

    `grouped` says that fewer keys than queries have heads of their own.
    """

    query: Float[Tensor, "*groups queries width"]
    key: Float[Tensor, "*groups keys width"]
    value: Float[Tensor, "*groups keys value_width"]
    mask: Tensor | None
    causal: bool
    scale: float | None
    grouped: bool

    def output(self) -> Float[Tensor, "*groups queries value_width"]:
        """Returns the attention's output by PyTorch's own function."""
        return F.scaled_dot_product_attention(
            self.query, self.key, self.value, self.mask, 0.0, self.causal, scale=self.scale, enable_gqa=self.grouped
        )


def from_scaled_dot_product(
    images: int,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> AttentionCall:
    """Reads the arguments of `scaled_dot_product_attention`, three-dimensional and grouped-query ones included.

    A call on (images · heads, tokens, width) is distinguished from one on (images, tokens, width) by the number of
    `images` that the model was given.
    """
    q, k, v = (_with_heads(tensor, images) for tensor in (query, key, value))
    if enable_gqa and k.shape[1] != q.shape[1]:
        k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
        v = v.repeat_interleave(q.shape[1] // v.shape[1], dim=1)
    if k.shape[:2] != q.shape[:2] or v.shape[:2] != q.shape[:2]:
        # Heads or images that share keys by broadcasting (multi-query attention).
        leading = torch.broadcast_shapes(q.shape[:2], k.shape[:2], v.shape[:2])
        q, k, v = (tensor.expand(*leading, *tensor.shape[2:]) for tensor in (q, k, v))
    if attn_mask is not None and attn_mask.dim() == 3:
        # With three-dimensional queries a mask merges images and heads as they do; with four it is one per head.
        merged = query.dim() == 3 and attn_mask.shape[0] > 1
        attn_mask = attn_mask.reshape(q.shape[0], -1, *attn_mask.shape[1:]) if merged else attn_mask[None]
    return AttentionCall(q, k, v, attn_mask, is_causal, query.shape[-1] ** -0.5 if scale is None else scale)


def _with_heads(tensor: Tensor, images: int) -> Tensor:
    if tensor.dim() == 4:
        return tensor
    leading = tensor.shape[:-2].numel()
    first = images if leading % images == 0 else leading
    return tensor.reshape(first, leading // first, *tensor.shape[-2:])


def without_autocast(function: Callable[P, R]) -> Callable[P, R]:
    """Runs a function in the precision that it asks for, also inside a user's `torch.autocast`."""

    @wraps(function)
    def plain(*args: P.args, **kwargs: P.kwargs) -> R:
        with ExitStack() as stack:
            for device in ("cpu", "cuda"):
                if torch.is_autocast_enabled(device):
                    stack.enter_context(torch.autocast(device, enabled=False))
            return function(*args, **kwargs)

    return plain


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Returns the precision in which probabilities and relevance are formed: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


@dataclass(frozen=True)
class Block:
    """A rectangle of an attention call: some images, some heads, some query rows, all keys."""

    images: slice
    heads: slice
    rows: slice


def blocks(call: AttentionCall, of_rows: slice | None = None) -> Iterator[Block]:
    """Cuts a call, or those of its rows, into blocks that fit `BLOCK_ELEMENTS`.

    The rows of one set of heads follow each other.
    """
    of_rows = of_rows or slice(0, call.queries)
    device = "cuda" if call.query.is_cuda else "cpu"
    budget = BLOCK_ELEMENTS[device]
    rows = min(of_rows.stop - of_rows.start, max(16, budget // call.keys))
    heads = min(call.heads, max(1, budget // (rows * call.keys)))
    # On a CPU one image at a time: its heads are strided views, which a product over several images would copy. Windows
    # are so small that they are copied for less than what walking them one by one costs.
    small = call.windows and heads == call.heads and rows * heads * call.keys <= SMALL
    images = 1 if device == "cpu" and not small else min(call.images, max(1, budget // (heads * rows * call.keys)))
    for image in range(0, call.images, images):
        for head in range(0, call.heads, heads):
            for row in range(of_rows.start, of_rows.stop, rows):
                yield Block(
                    slice(image, min(image + images, call.images)),
                    slice(head, min(head + heads, call.heads)),
                    slice(row, min(row + rows, of_rows.stop)),
                )


@without_autocast
def probabilities(call: AttentionCall, block: Block | None = None) -> Float[Tensor, "images heads rows keys"]:
    """Returns the attention A = softmax(q kᵀ · scale + mask) of a block (default: of the whole call), rows summing to
    one.

    Formed in float32, or in float64 where the model runs in float64. A row whose keys are all masked is zero, as the
    fused kernels have it.
    """
    block = block or Block(slice(0, call.images), slice(0, call.heads), slice(0, call.queries))
    dtype = compute_dtype(call.query.dtype)
    query = call.query[block.images, block.heads, block.rows].to(dtype)
    key = call.key[block.images, block.heads].to(dtype)
    scores = (query * call.scale) @ key.transpose(-1, -2)
    if call.mask is None and not call.causal:
        return torch.softmax(scores, dim=-1)
    if call.mask is not None:
        full = call.mask.expand(call.images, call.heads, call.queries, call.keys)
        mask = full[block.images, block.heads, block.rows]
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask.to(dtype)
    if call.causal:
        row = torch.arange(block.rows.start, block.rows.stop, device=scores.device)[:, None]
        scores = scores.masked_fill(torch.arange(call.keys, device=scores.device) > row, -torch.inf)
    attention = torch.softmax(scores, dim=-1)
    if call.mask is None:
        return attention  # a causal row has the first key at least
    return torch.where(torch.isneginf(scores).all(dim=-1, keepdim=True), 0.0, attention)
