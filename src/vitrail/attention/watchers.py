"""Finds the norms and the projections around attention by the functions that a model calls, without module names."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..errors import UnsupportedOperationError
from .calls import compute_dtype, without_autocast
from .modules import tokens_first
from .record import CallRecorder

__all__ = ["ATTENTION", "NORMS", "NormWatcher", "TokenTransformations", "ValueProjection"]

NORMS = {F.layer_norm, torch.layer_norm, F.rms_norm, torch.rms_norm}
ATTENTION = {F.scaled_dot_product_attention, F.multi_head_attention_forward}


class NormWatcher(TorchFunctionMode):
    """Keeps the output of the last token norm before the most recent attention.

    Enter it inside the tap's block: what it does not keep goes on to the tap. Norms of queries and keys have four
    dimensions and are skipped. `latest` is the last token norm so far, and `first` the first one since `begin`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.latest: Tensor | None = None
        self.first: Tensor | None = None
        self._begun = False
        self.before_attention: Tensor | None = None

    def begin(self) -> None:
        """Marks the beginning of a block: the next norm is its first."""
        self.first, self._begun = None, True

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in ATTENTION:
            self.before_attention = self.latest
        result = func(*args, **(kwargs or {}))
        if func in NORMS and result.dim() == 3:
            self.latest = result
            if self._begun and self.first is None:
                self.first = result
        return result


_SUMS = {torch.add, Tensor.add, Tensor.add_, Tensor.__add__, Tensor.__radd__, Tensor.__iadd__}
_ATTENDING = ATTENTION | {F.softmax, torch.softmax, Tensor.softmax}


class TokenTransformations(TorchFunctionMode):
    """Measures what the attention and the MLP of each block, residuals included, make of every token.

    Enter it inside the tap's block, with `enter_block` and `leave_block` at each block's input and output. A token x
    that becomes y has the weight ‖y‖ / ‖x‖ · softmax over the tokens of cos(x, y): `by_attention` and `by_mlp` hold
    them, block by block, `lengths` are ‖x‖ of the tokens that enter the first block, all (images, tokens). Between the
    two stands the first sum, after the attention, of the block's input and something.
    """

    def __init__(self, images: int, tokens: int) -> None:
        super().__init__()
        self.images, self.tokens = images, tokens
        self.lengths: Tensor | None = None
        self.by_attention: list[Tensor] = []
        self.by_mlp: list[Tensor] = []
        self._input = self._before = self._between = self._sum = None
        self._attended = self._added_to = False

    def enter_block(self, tokens: Tensor) -> Tensor:
        """Notes a block's input, and returns it."""
        # Copies, since a block may add to its tokens in place.
        self._input, self._before = tokens, self._in_order(tokens).clone()
        self._between, self._attended, self._added_to = None, False, False
        if self.lengths is None:
            self.lengths = self._before.norm(dim=2)
        return tokens

    def leave_block(self, tokens: Tensor) -> Tensor:
        """Measures the block whose output this is, and returns it.

        Raises:
            UnsupportedOperationError: where the attention is not added to the block's input before the MLP.
        """
        if self._before is None or self._between is None or not self._added_to:
            raise UnsupportedOperationError(
                f"block {len(self.by_mlp)} does not add its attention to the tokens before its MLP reads them, so the "
                "two cannot be told apart: use gae or complete"
            )
        between = self._in_order(self._between)
        self.by_attention.append(_transformation(self._before, between))
        self.by_mlp.append(_transformation(between, self._in_order(tokens)))
        self._input = self._before = self._between = self._sum = None
        return tokens

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if self._input is None:
            return result
        if func in _ATTENDING:
            self._attended = True
        elif self._attended and func in _SUMS and result.shape == self._input.shape:
            if self._between is None and any(one is self._input for one in args):
                self._sum, self._between = result, result.detach().clone()
            elif any(one is self._sum for one in args):
                self._added_to = True
        return result

    def _in_order(self, tokens: Tensor) -> Float[Tensor, "images tokens width"]:
        ordered = tokens_first(tokens.detach(), self.images, self.tokens)
        assert ordered is not None
        return ordered.to(compute_dtype(tokens.dtype))


def _transformation(
    before: Float[Tensor, "images tokens width"], after: Float[Tensor, "images tokens width"]
) -> Float[Tensor, "images tokens"]:
    ratio = after.norm(dim=2) / before.norm(dim=2).clamp(min=torch.finfo(before.dtype).tiny)
    return ratio * F.cosine_similarity(before, after, dim=2).softmax(dim=1)


# How much an attention's value and output projection scale every token: ‖z_j W_V W_O‖ / ‖z_j‖, found by watching.
#
# No module is asked for by name. What the attention reads, what it multiplies and where its answer goes show in the
# functions that the model calls: the input of the norm in front of it is z, the values stand in the call itself, and
# the next linear map, fed with the attention's output, is W_O.


_PRODUCTS = {torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, Tensor.bmm}
_SCALINGS = {torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__, Tensor.mul_, torch.multiply, Tensor.multiply}
_ARRANGING = {"__get__", "transpose", "permute", "reshape", "view", "contiguous", "flatten", "swapaxes", "size", "to"}
_MULTI_HEAD = inspect.signature(F.multi_head_attention_forward)


@dataclass
class _Watched:
    """One attention: what it read, its values, and where its output went."""

    tokens: Tensor | None = None
    values: Tensor | None = None
    output: Tensor | None = None
    weight: Tensor | None = None
    projected: Tensor | None = None
    scale: Tensor | None = None
    between: str = ""


class ValueProjection(TorchFunctionMode):
    """Keeps, for every attention that `recorder` sees, z, the values, W_O and the layer scale behind it.

    Enter it inside the tap's block. A model's own scaling of the projected values by one number per channel (layer
    scale) belongs to W_O.
    """

    def __init__(self, recorder: CallRecorder) -> None:
        super().__init__()
        self.recorder = recorder
        self._watched: list[_Watched] = []
        self._norm: tuple[Tensor, Tensor] | None = None
        self._read: list[Tensor] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        before = len(self.recorder.layers)
        result = func(*args, **kwargs)
        if len(self.recorder.layers) > before:
            self._attended(func, args, kwargs, result)
            return result
        self._note(func, result)
        if func in NORMS and result.dim() == 3:
            self._norm = args[0], result
        elif func is F.linear:
            weight = args[1] if len(args) > 1 else kwargs["weight"]
            self._linear(args[0] if args else kwargs["input"], weight, result)
        elif func in _PRODUCTS and len(args) == 2:
            self._product(args[0], args[1], result)
        elif func in _SCALINGS and len(args) == 2:
            self._scaling(args[0], args[1])
        return result

    def _attended(self, func: Callable[..., Any], args: tuple, kwargs: Mapping[str, Any], result: Any) -> None:
        watched = _Watched()
        layer = self.recorder.layers[-1]
        reads = self._read[-1] if self._read else None
        if func is F.multi_head_attention_forward:
            arguments = _MULTI_HEAD.bind(*args, **kwargs).arguments
            reads, watched.weight, watched.projected = arguments["key"], arguments["out_proj_weight"], result[0]
        if layer.call is not None:
            watched.values = layer.call.value
        watched.output = result[0] if isinstance(result, tuple) else result
        if reads is not None and self._norm is not None and _same(reads, self._norm[1]):
            reads = self._norm[0]
        watched.tokens = None if reads is None else reads.detach()
        self._watched.append(watched)
        self._read = []

    def _note(self, func: Callable[..., Any], result: Any) -> None:
        """Remembers the first operation behind an attention that does more than rearrange, for the message."""
        latest = self._watched[-1] if self._watched else None
        if latest is None or latest.output is None or latest.between or func is F.linear or func in _PRODUCTS:
            return
        name = getattr(func, "__name__", str(func))
        if isinstance(result, Tensor) and result.is_floating_point() and name not in _ARRANGING:
            latest.between = name

    def _linear(self, input: Tensor, weight: Tensor, result: Tensor) -> None:
        latest = self._watched[-1] if self._watched else None
        if latest is not None and latest.weight is None and latest.values is not None and latest.output is not None:
            if _rearranged(input, latest.output):
                latest.weight, latest.projected, latest.output = weight, result, None
            else:
                latest.output = None
        if input.dim() == 3:
            self._read.append(input)

    def _product(self, left: Tensor, right: Tensor, result: Tensor) -> None:
        latest = self._watched[-1] if self._watched else None
        if latest is not None and latest.values is None and latest.output is not None and _same(left, latest.output):
            latest.values, latest.output = right.detach(), result
            return
        if isinstance(right, Tensor) and right.dim() == 2:
            self._linear(left, right.transpose(0, 1), result)

    def _scaling(self, left: Any, right: Any) -> None:
        latest = self._watched[-1] if self._watched else None
        if latest is None or latest.projected is None or latest.scale is not None:
            return
        for value, scale in ((left, right), (right, left)):
            if _same(value, latest.projected) and isinstance(scale, Tensor) and scale.shape == value.shape[-1:]:
                latest.scale = scale.detach()

    @without_autocast
    def gain(self, number: int) -> Float[Tensor, "images keys"]:
        """Returns ‖z_j W_V W_O‖ / ‖z_j‖ for the tokens j that attention `number` reads.

        Raises:
            UnsupportedOperationError: where no linear map follows the attention directly, or its input was not seen.
        """
        values, weight = self._values_and_weight(number)
        images, _, keys, _ = values.shape
        tokens = self._watched[number].tokens
        if tokens is not None and tokens.dim() == 3 and tokens.shape[:2] == (keys, images) != (images, keys):
            tokens = tokens.transpose(0, 1)
        if tokens is None or tokens.shape[:2] != (images, keys):
            raise UnsupportedOperationError(
                f"what attention {number} reads is not {images} image(s) × {keys} tokens when it enters a linear map, "
                "so its tokens have no size to divide by: use bi_head"
            )
        written = values.transpose(1, 2).flatten(2) @ weight.T
        return written.norm(dim=-1) / tokens.to(written.dtype).norm(dim=-1)

    @without_autocast
    def norms(self, number: int) -> Float[Tensor, "images heads keys"]:
        """Returns ‖v_hj W_O,h‖ for every head h of attention `number` and the tokens j that it reads.

        Raises:
            UnsupportedOperationError: where no linear map follows the attention directly.
        """
        values, weight = self._values_and_weight(number)
        by_head = weight.unflatten(1, (values.shape[1], -1))
        return torch.einsum("bhkd,ohd->bhko", values, by_head).norm(dim=-1)

    def _values_and_weight(
        self, number: int
    ) -> tuple[Float[Tensor, "images heads keys width"], Float[Tensor, "out heads*width"]]:
        """Returns the values v and W_O of attention `number`, layer scale taken in."""
        watched, layer = self._watched[number], self.recorder.layers[number]
        if watched.values is None or watched.weight is None:
            raise UnsupportedOperationError(
                f"no linear map takes the output of attention {number} as it is ({watched.between or 'nothing'} stands "
                "behind it), so its tokens have no W_V W_O to weigh them by: use rollout or bi_head"
            )
        dtype = compute_dtype(watched.values.dtype)
        # One head of values that a written-out product broadcasts belongs to every head of the attention.
        values = watched.values.reshape(layer.images, -1, layer.keys, watched.values.shape[-1])
        values = values.expand(-1, layer.heads, -1, -1).to(dtype)
        weight = watched.weight.detach().to(dtype)
        return values, weight if watched.scale is None else watched.scale.to(dtype)[:, None] * weight


def _same(left: Any, right: Tensor) -> bool:
    return isinstance(left, Tensor) and left.untyped_storage().data_ptr() == right.untyped_storage().data_ptr()


def _rearranged(input: Tensor, output: Tensor) -> bool:
    """Whether the input of a linear map is an attention's output with its heads side by side, and nothing else."""
    if input.numel() != output.numel() or output.dim() != 4:
        return False
    joined = output.detach().transpose(1, 2).flatten(2)
    return any(torch.equal(input.detach().reshape(way.shape), way) for way in (joined, joined.transpose(0, 1)))
