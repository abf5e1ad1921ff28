"""Fewer tokens in an unmodified model: the sequence really cut, or the dropped tokens' keys masked.

Both give the logits of the model that had never seen the dropped patches, positions kept: outside attention every
token goes its own way, so a token that no token attends to, and that the head leaves out of its mean, is not there.
Cutting is what makes it cheap; masking is slower but asks nothing of the model but its attention.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..errors import UnsupportedOperationError
from .calls import AttentionCall
from .tap import Tap
from .token_stream import Place, name_of, tensors_in

__all__ = ["Selection", "masked_keys", "masked_links", "shortened"]

_CONVOLUTIONS = {torch.conv2d, F.conv2d}
_MEANS = {torch.mean, Tensor.mean}
# Where a table with a row for every token (rotary positions) meets the tokens.
_ELEMENTWISE = {"add", "sub", "mul", "multiply", "__add__", "__radd__", "__sub__", "__mul__", "__rmul__"}


@dataclass(frozen=True, eq=False)
class Selection:
    """Which tokens are kept, row by row of a batch: every other token than the patches, and as many patches in each
    row.

    `patches` counts from the first patch, ascending; `first` and `total` say where the grid lies among all tokens.
    """

    patches: Int[Tensor, "rows kept"]
    first: int
    total: int
    grid: int

    @property
    def rows(self) -> int:
        return self.patches.shape[0]

    def tokens(self) -> Int[Tensor, "rows kept_tokens"]:
        """Indices among all tokens, ascending: the prefix, the kept patches, whatever follows the grid."""
        device = self.patches.device
        before = torch.arange(self.first, device=device).expand(self.rows, -1)
        after = torch.arange(self.first + self.grid, self.total, device=device).expand(self.rows, -1)
        return torch.cat([before, self.patches + self.first, after], dim=1)

    def mask(self) -> Bool[Tensor, "rows tokens"]:
        """Returns a mask that is true for the tokens that are kept."""
        mask = torch.zeros(self.rows, self.total, dtype=torch.bool, device=self.patches.device)
        return mask.scatter(1, self.tokens(), True)


@contextmanager
def shortened(selection: Selection, entry: Place, ending: Place | None) -> Iterator[None]:
    """Within the block the model's tokens are cut to `selection` at `entry`, as the blocks receive them.

    Positions that are added within the blocks (attention biases, rotary tables) are cut alike. From `ending` on, where
    given, only the tokens in front of the patches are kept: for heads that read no others.

    Raises:
        UnsupportedOperationError: when the model does not take another number of tokens.
    """
    visitor = _KeptAttention(selection)
    with Tap(visitor, selection.rows), _Cut(selection, entry, ending):
        yield


@contextmanager
def masked_keys(
    selection: Selection, attentions: int, reads_patches: bool, erased_at: Place | None = None
) -> Iterator[None]:
    """Within the block no token attends to the dropped tokens, and means over tokens after the last attention skip
    them.

    With `erased_at` they are also set to zero there, as a check: where only attention mixes tokens, nothing changes.

    Raises:
        UnsupportedOperationError: when a head that reads the patches (`reads_patches`) takes no mean of them.
    """
    tap = Tap(_MaskedKeys(selection.mask()[:, None, None, :]), selection.rows)
    means = _KeptMean(selection, tap, attentions)
    with tap, means, nullcontext() if erased_at is None else _Erase(selection, erased_at):
        yield
    if reads_patches and not means.taken:
        raise UnsupportedOperationError(
            "the head reads the patches otherwise than by their mean, so dropped patches cannot be left out of it; "
            "mask pixels instead (vit_cx)"
        )


@contextmanager
def masked_links(allowed: Bool[Tensor, "tokens tokens"], images: int) -> Iterator[None]:
    """Within the block a token (row) attends only to those (columns) that it is `allowed` to, whatever its scores."""
    with Tap(_MaskedKeys(allowed[None, None]), images):
        yield


class _KeptAttention:
    """Attention among the kept tokens, with the model's attention bias cut to them."""

    def __init__(self, selection: Selection) -> None:
        self.index = selection.tokens()
        self.total = selection.total
        self.calls = 0

    def attend(self, call: AttentionCall) -> Float[Tensor, "images heads queries value_width"]:
        kept = self.index.shape[1]
        if call.keys != kept:
            raise UnsupportedOperationError(
                f"attention {self.calls} sees {call.keys} keys though {kept} tokens were kept: "
                "the model does not take another number of tokens"
            )
        self.calls += 1
        if call.mask is None or call.mask.shape[-1] != self.total:
            return call.output()
        mask = call.mask.reshape((1,) * (4 - call.mask.dim()) + call.mask.shape)
        mask = torch.take_along_dim(mask, self.index[:, None, None, :], dim=-1)
        if mask.shape[-2] == self.total:
            mask = torch.take_along_dim(mask, self.index[:, None, :, None], dim=-2)
        return replace(call, mask=mask).output()

    def normalise(
        self, scores: Float[Tensor, "images heads queries keys"]
    ) -> Float[Tensor, "images heads queries keys"]:
        self.calls += 1
        return torch.softmax(scores, dim=-1)


class _MaskedKeys:
    """Attention that gives weight to the kept keys alone, the same for all queries or for each its own."""

    def __init__(self, kept: Bool[Tensor, "rows 1 queries tokens"]) -> None:
        self.kept = kept

    def attend(self, call: AttentionCall) -> Float[Tensor, "images heads queries value_width"]:
        if call.keys != self.kept.shape[-1]:  # a pooling after the pooling, of its queries
            return call.output()
        if call.mask is None:
            mask = self.kept
        elif call.mask.dtype == torch.bool:
            mask = call.mask & self.kept
        else:
            mask = call.mask.masked_fill(~self.kept, -torch.inf)
        return replace(call, mask=mask).output()

    def normalise(
        self, scores: Float[Tensor, "images heads queries keys"]
    ) -> Float[Tensor, "images heads queries keys"]:
        if scores.shape[-1] == self.kept.shape[-1]:
            scores = scores.masked_fill(~self.kept, -torch.inf)
        return torch.softmax(scores, dim=-1)


class _Cut(TorchFunctionMode):
    """Puts shorter sequences in the place of what two calls give."""

    def __init__(self, selection: Selection, entry: Place, ending: Place | None) -> None:
        super().__init__()
        self.selection, self.index = selection, selection.tokens()
        self.entry, self.ending = entry, ending
        self.calls = -1

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if self.calls >= self.entry.number and name_of(func) in _ELEMENTWISE and len(args) == 2:
            args = self._align(*args)
        if func in _CONVOLUTIONS and _repeats(args[0]):
            # One image in every row: its patches are embedded once.
            result = func(args[0][:1], *args[1:], **(kwargs or {})).expand(len(args[0]), -1, -1, -1)
        else:
            result = func(*args, **(kwargs or {}))
        if next(tensors_in(result), None) is None:
            return result
        self.calls += 1
        if self.calls == self.entry.number:
            self._check(self.entry, func)
            return _take(result, self.index, self.entry.axis)
        if self.ending is not None and self.calls == self.ending.number:
            self._check(self.ending, func)
            return result.narrow(self.ending.axis, 0, self.selection.first)
        return result

    def _check(self, place: Place, func: Callable[..., Any]) -> None:
        if name_of(func) != name_of(place.function):
            raise UnsupportedOperationError(
                f"call {place.number} of the forward pass was {name_of(place.function)} and is {name_of(func)} now: "
                "the model does not run the same way twice"
            )

    def _align(self, left: Any, right: Any) -> tuple[Any, Any]:
        """Cut a table with a row for every token, or every patch, to those of the tokens it meets."""
        tables = isinstance(left, Tensor) and isinstance(right, Tensor) and min(left.dim(), right.dim()) >= 2
        if not tables or left.shape[-2] == right.shape[-2]:
            return left, right
        return self._rows(left, right.shape[-2]), self._rows(right, left.shape[-2])

    def _rows(self, table: Tensor, beside: int) -> Tensor:
        for index, full in ((self.index, self.selection.total), (self.selection.patches, self.selection.grid)):
            if table.shape[-2] == full and beside == index.shape[1] != full:
                wide = table.reshape((1,) * (4 - table.dim()) + table.shape)
                taken = torch.take_along_dim(wide, index[:, None, :, None], dim=-2)
                return taken[:, 0] if table.dim() == 3 else taken
        return table


class _Erase(TorchFunctionMode):
    """Sets the dropped tokens to zero at one place."""

    def __init__(self, selection: Selection, place: Place) -> None:
        super().__init__()
        self.kept, self.place, self.calls = selection.mask(), place, -1

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if next(tensors_in(result), None) is None:
            return result
        self.calls += 1
        if self.calls != self.place.number:
            return result
        return result * (self.kept if self.place.axis == 1 else self.kept.T)[..., None].to(result.dtype)


class _KeptMean(TorchFunctionMode):
    """Means over tokens after the last attention are taken over the kept ones; enter it inside the tap's block."""

    def __init__(self, selection: Selection, tap: Tap, attentions: int) -> None:
        super().__init__()
        self.tap, self.attentions = tap, attentions
        mask, first = selection.mask(), selection.first
        self.masks = {selection.total: mask, selection.grid: mask[:, first : first + selection.grid]}
        self.taken = False

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _MEANS and self.tap.attention_calls >= self.attentions:
            tokens, dim = args[0], args[1] if len(args) > 1 else kwargs.get("dim")
            keepdim = args[2] if len(args) > 2 else kwargs.get("keepdim", False)
            dim = dim[0] if isinstance(dim, tuple | list) and len(dim) == 1 else dim
            if tokens.dim() == 3 and dim in (0, 1, -2, -3) and tokens.shape[dim] in self.masks:
                mask = self.masks[tokens.shape[dim]]
                axis = dim % 3
                if tokens.shape[1 - axis] == len(mask):
                    self.taken = True
                    weights = (mask if axis == 1 else mask.T)[..., None].to(tokens.dtype)
                    return (tokens * weights).sum(axis, keepdim=keepdim) / weights.sum(axis, keepdim=keepdim)
        return func(*args, **kwargs)


def _repeats(images: Tensor) -> bool:
    return images.dim() == 4 and len(images) > 1 and images.stride(0) == 0


def _take(tokens: Tensor, index: Int[Tensor, "rows kept"], axis: int) -> Tensor:
    rows = torch.arange(len(index), device=index.device)[:, None]
    return tokens[rows, index] if axis == 1 else tokens.transpose(0, 1)[rows, index].transpose(0, 1)
