"""The methods written out slowly, in float64, with every N×N matrix in plain sight. Shares no code with `vitrail`.

Attention is captured by putting a Python function in the place of PyTorch's own for the time of one forward pass.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GELU, SILU = F.gelu, F.silu


@dataclass
class Captured:
    """Logits, the attention A of every layer (in the graph), for one forward pass."""

    logits: Tensor
    maps: list[Tensor] = field(default_factory=list)

    def gradients(self, scalar: Tensor) -> list[Tensor]:
        grads = torch.autograd.grad(scalar, self.maps, retain_graph=True, allow_unused=True)
        return [torch.zeros_like(a) if g is None else g for a, g in zip(self.maps, grads, strict=True)]


def capture(module: nn.Module, images: Tensor, gradient: str = "full") -> Captured:
    """Run a module (which is changed) in float64 with written-out attention; `gradient` by its definition."""
    maps: list[Tensor] = []

    def keep(attention: Tensor) -> Tensor:
        if gradient in ("leaf", "libra"):
            attention = attention.detach()
        if not attention.requires_grad:
            attention.requires_grad_()
        maps.append(attention)
        return attention

    def sdpa(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
        assert dropout_p == 0
        assert not is_causal
        scores = query @ key.transpose(-2, -1) * (query.shape[-1] ** -0.5 if scale is None else scale)
        if attn_mask is not None:
            scores = scores.masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
        if gradient == "gim":
            return plain_matmul(keep(softened(scores)), halved(value))
        return keep(plain_softmax(scores, -1)) @ value

    plain_softmax = torch.softmax
    tensor_softmax = Tensor.softmax

    plain_matmul, written_out = Tensor.__matmul__, []

    def softmax(self, dim=None, *args, **kwargs):
        if gradient == "gim" and self.dim() == 4:
            written_out.append(keep(softened(self)))
            return written_out[-1]
        result = tensor_softmax(self, dim, *args, **kwargs)
        return (
            keep(result) if result.dim() >= 4 or (result.dim() == 3 and result.shape[1] == result.shape[2]) else result
        )

    def matmul(a, b):
        return plain_matmul(a, halved(b) if any(a is one for one in written_out) else b)

    def softened(scores):
        """A, whose gradient is that of the softmax at twice the temperature; a quarter of it flows on."""
        slope = Slope.apply(scores, tensor_softmax(scores.detach() / 2, -1))
        return tensor_softmax(scores, -1).detach() + slope

    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(F, "scaled_dot_product_attention", sdpa))
        stack.enter_context(mock.patch.object(Tensor, "softmax", softmax))
        if gradient == "gim":
            stack.enter_context(mock.patch.object(Tensor, "__matmul__", matmul))
            stack.enter_context(held_constants(gates=False))
        if gradient == "libra":
            stack.enter_context(held_constants())
            for part in module.modules():
                # Some modules have taken PyTorch's function itself as an attribute when they were built.
                for name, value in list(vars(part).items()):
                    if value is GELU or value is SILU:
                        part.__dict__[name] = F.gelu if value is GELU else F.silu
                    elif isinstance(value, partial) and value.func is GELU:
                        part.__dict__[name] = partial(F.gelu, **value.keywords)
        # PyTorch's encoder layers have a path of their own that computes attention elsewhere.
        fast = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        stack.callback(torch.backends.mha.set_fastpath_enabled, fast)
        output = module.double()(images.double())
    logits = output if isinstance(output, Tensor) else getattr(output, "logits", None)
    if logits is None:
        logits = output[0]
    return Captured(logits, maps)


class Slope(torch.autograd.Function):
    """Zero, with a quarter of the gradient of a softmax whose rows are given, by its Jacobian."""

    @staticmethod
    def forward(ctx, scores, rows):
        ctx.save_for_backward(rows)
        return torch.zeros_like(scores)

    @staticmethod
    def backward(ctx, gradient):
        (rows,) = ctx.saved_tensors
        jacobian = torch.diag_embed(rows) - rows[..., :, None] * rows[..., None, :]
        return torch.einsum("...ij,...j->...i", jacobian, gradient) / 4, None


def halved(x: Tensor) -> Tensor:
    return x / 2 + (x - x / 2).detach()


@contextlib.contextmanager
def held_constants(gates: bool = True) -> Iterator[None]:
    """LayerNorm's deviation and the gates of activations constant; a product of two activations passes half to each.

    Without `gates` the activations are differentiated, and no product inside of one (x σ(1.702 x)) is such a product.
    """

    def layer_norm(x, normalized_shape, weight=None, bias=None, eps=1e-5):
        deviation = (x.var(-1, unbiased=False, keepdim=True) + eps).sqrt().detach()
        y = (x - x.mean(-1, keepdim=True)) / deviation
        y = y if weight is None else y * weight
        return y if bias is None else y + bias

    def gelu(x, approximate="none"):
        if approximate == "none":
            return x * (0.5 * (1 + torch.erf(x / 2**0.5))).detach()
        return x * (0.5 * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))).detach()

    def silu(x, inplace=False):
        return x * plain_sigmoid(x).detach()

    plain_sigmoid = torch.sigmoid
    plain_mul = Tensor.__mul__

    def sigmoid(x):
        return plain_sigmoid(x).detach()

    def mul(a, b):
        product = plain_mul(a, b)
        activations = isinstance(b, Tensor) and a.grad_fn is not None and b.grad_fn is not None
        # QuickGELU is the only activation that is written out here.
        inside = not gates and activations and "Sigmoid" in str(b.grad_fn)
        if activations and a.dim() == 3 and b.dim() == 3 and a.shape == b.shape and not inside:
            halved = product / 2
            return halved + (product - halved).detach()
        return product

    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(F, "layer_norm", layer_norm))
        if gates:
            stack.enter_context(mock.patch.object(F, "gelu", gelu))
            stack.enter_context(mock.patch.object(F, "silu", silu))
            stack.enter_context(mock.patch.object(torch, "sigmoid", sigmoid))
            stack.enter_context(mock.patch.object(Tensor, "sigmoid", sigmoid))
        stack.enter_context(mock.patch.object(Tensor, "__mul__", mul))
        yield


def readout(kind: str, prefix: int, patches: int, queries: int) -> Tensor:
    """The row that the head reads, by the family's own declaration."""
    row = torch.zeros(queries, dtype=torch.float64)
    if kind == "class":
        row[0] = 1
    elif kind == "distilled":
        row[:2] = 0.5
    elif kind == "mean":
        row[prefix:] = 1 / patches
    elif kind == "class+mean":
        row[0] = 0.5
        row[prefix:] = 0.5 / patches
    elif kind == "pool":
        row[0] = 1
    return row


def product(maps: list[Tensor], prefix: int, row: Tensor) -> Tensor:
    """The row of (I + B^L) … (I + B^1) less the row of I, at the patches; a pooling layer has no identity."""
    total = None
    for b in maps:
        if b.shape[-1] != b.shape[-2]:
            total = b @ total
            continue
        eye = torch.eye(b.shape[-1], dtype=b.dtype).expand_as(b)
        total = eye if total is None else total
        total = total + b @ total
    read = torch.einsum("q,bqk->bk", row, total)
    if maps[-1].shape[-1] == maps[-1].shape[-2]:
        read = read - row
    return read[:, prefix:]


def complete(a: list[Tensor], g: list[Tensor], prefix: int, row: Tensor) -> Tensor:
    """Eq. 5."""
    return product([(gl * al).mean(1) for al, gl in zip(a, g, strict=True)], prefix, row)


def gae(a: list[Tensor], g: list[Tensor], prefix: int, row: Tensor) -> Tensor:
    """Eq. 4."""
    return product([(gl * al).clamp(min=0).mean(1) for al, gl in zip(a, g, strict=True)], prefix, row)


def absolute(a: list[Tensor], g: list[Tensor], prefix: int, row: Tensor) -> Tensor:
    """Eq. 6."""
    return product([(gl.abs() * al).mean(1) for al, gl in zip(a, g, strict=True)], prefix, row)


def centred(a: list[Tensor], g: list[Tensor], prefix: int, row: Tensor) -> Tensor:
    """Eq. 5 with the gradient centred: B = E_h[A ⊙ (G − rowsum(A ⊙ G))]."""
    maps = [(al * (gl - (al * gl).sum(-1, keepdim=True))).mean(1) for al, gl in zip(a, g, strict=True)]
    return product(maps, prefix, row)


def raw(a: list[Tensor], prefix: int, row: Tensor) -> Tensor:
    """E_h A of the last layer."""
    return torch.einsum("q,bqk->bk", row, a[-1].mean(1))[:, prefix:]


def rollout(a: list[Tensor], prefix: int, row: Tensor) -> Tensor:
    """Ā = (I + E_h A) / 2, later layers on the left."""
    total = None
    for al in a:
        mean = al.mean(1)
        if mean.shape[-1] != mean.shape[-2]:
            total = mean @ total
            continue
        eye = torch.eye(mean.shape[-1], dtype=mean.dtype).expand_as(mean)
        factor = mean + eye
        factor = factor / factor.sum(-1, keepdim=True)
        total = factor if total is None else factor @ total
    return torch.einsum("q,bqk->bk", row, total)[:, prefix:]


def gmar(a: list[Tensor], g: list[Tensor], prefix: int, row: Tensor, p: int, alpha: float = 1.0) -> Tensor:
    """Ā = Σ_h w_h A_h + α I, rows normalised, w_h = ‖G_h‖_p / Σ_h ‖G_h‖_p."""
    total = None
    for al, gl in zip(a, g, strict=True):
        norm = gl.abs().pow(p).sum((2, 3)).pow(1 / p)
        weights = norm / norm.sum(1, keepdim=True)
        fused = (weights[:, :, None, None] * al).sum(1)
        if fused.shape[-1] != fused.shape[-2]:
            total = fused @ total
            continue
        factor = fused + alpha * torch.eye(fused.shape[-1], dtype=fused.dtype)
        factor = factor / factor.sum(-1, keepdim=True)
        total = factor if total is None else factor @ total
    return torch.einsum("q,bqk->bk", row, total)[:, prefix:]
