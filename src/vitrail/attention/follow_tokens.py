"""Follows tokens through a model's own operations: which token each element of an activation belongs to.

Every storage that carries tokens has a label per element next to it, so that views need no rule; labels that do not
change along a dimension, as those of a token's channels, are stored once. Operations that rearrange act on the labels
themselves; those that look at one token keep its label; those that join several make a new token, whose parents are
noted (`Merge`); attention is intercepted (`Attend`). Nothing is asked about the architecture. An operation without a
rule is refused by name.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ..errors import PackedBatchError, UnsupportedAttentionError
from .labels import Labels, once
from .token_grids import convolved, overlaps, pooled, pooled_to, resampled
from .tokens import MIXED, NONE, OF_VALUES, Tokens

__all__ = ["TokenFollower"]

CODE = 2.0**26  # more than there are labels
# fmt: off
_ELEMENTWISE = {
    "add", "sub", "rsub", "mul", "div", "neg", "exp", "expm1", "log", "log1p", "sqrt", "rsqrt", "square", "pow",
    "gelu", "silu", "relu", "relu6", "sigmoid", "tanh", "erf", "clamp", "clamp_min", "clamp_max", "hardtanh",
    "hardswish", "hardsigmoid", "leaky_relu", "elu", "mish", "softplus", "abs", "minimum", "maximum", "lerp",
    "addcmul", "addcdiv", "reciprocal", "dropout", "native_dropout", "masked_fill", "threshold", "sin", "cos",
    "prelu", "_prelu_kernel", "celu", "selu", "nan_to_num", "sign", "fmod", "remainder", "xlogy", "hypot"
}
_REARRANGING = {
    "clone", "copy", "contiguous", "_to_copy", "cat", "stack", "roll", "flip", "index", "index_select", "gather",
    "constant_pad_nd", "repeat", "im2col", "pixel_shuffle", "pixel_unshuffle", "native_channel_shuffle",
    "channel_shuffle", "where", "slice_scatter", "select_scatter", "index_put", "repeat_interleave",
    "lift_fresh_copy", "tril", "triu", "reflection_pad2d", "replication_pad2d", "unfold_copy", "masked_select",
    "view_copy", "permute_copy", "expand_copy", "upsample_nearest2d", "_upsample_nearest_exact2d", "_unsafe_index",
    "rot90", "masked_scatter"
}
_NORMS = {
    "native_layer_norm", "native_batch_norm", "_native_batch_norm_legit_no_training", "_native_batch_norm_legit",
    "cudnn_batch_norm", "native_group_norm", "_fused_rms_norm"
}
_REDUCING = {
    "mean", "sum", "amax", "amin", "max", "min", "norm", "linalg_vector_norm", "var", "std", "var_mean", "std_mean",
    "logsumexp", "prod"
}
_POOLING = {
    "avg_pool2d", "max_pool2d_with_indices", "max_pool2d"
}
_ADAPTIVE = {
    "_adaptive_avg_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d"
}
_GRIDS = _POOLING | _ADAPTIVE | {
    "col2im", "upsample_bilinear2d", "_upsample_bilinear2d_aa", "upsample_bicubic2d", "_upsample_bicubic2d_aa"
}
_SOFTMAX = {
    "_softmax", "_log_softmax", "_safe_softmax"
}
_NEUTRAL = {
    "zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_empty", "new_full", "empty_like", "rand_like",
    "randn_like", "bernoulli"
}
_VIEWS = {"as_strided", "squeeze", "unsqueeze", "transpose", "t", "swapaxes", "resize", "detach"}
# fmt: on


class TokenFollower(TorchDispatchMode):
    """Within the block, labels follow the tokens of `image`, a batch that must keep its images apart.

    Raises:
        UnsupportedAttentionError: at an operation without a rule, or one that no rule covers, by its name.
        PackedBatchError: where tokens of two images are joined.
    """

    def __init__(self, image: Float[Tensor, "images channels height width"]) -> None:
        super().__init__()
        self.tokens = Tokens()
        self.resting = False
        self._labels = Labels()
        images, _, height, width = image.shape
        place = torch.arange(images * height * width, dtype=torch.float64)
        within = place.remainder(height * width)
        labels = self.tokens.add(
            within.div(width, rounding_mode="floor") + 0.5,
            within.remainder(width) + 0.5,
            place.div(height * width, rounding_mode="floor").long(),
            False,
        )
        self.pixels = (height, width)
        self.mark(image, labels.double().view(images, 1, height, width).expand(image.shape))

    @contextmanager
    def rest(self) -> Iterator[None]:
        """Within the block, operations are not followed."""
        before, self.resting = self.resting, True
        try:
            yield
        finally:
            self.resting = before

    def labels(self, tensor: Tensor) -> list[Tensor] | None:
        """Returns the labels of a tensor: one tensor of its shape, or of scores two (query, key); None where it
        has none.
        """
        return self._labels.of(tensor)

    def mark(self, tensor: Tensor, *labels: Tensor) -> None:
        """Gives a tensor its labels; what views share its storage have them, too."""
        self._labels.mark(tensor, *labels)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        result = func(*args, **kwargs)
        if self.resting:
            return result
        with self.rest():
            if any(self._labels.has(one) and not _keeps_all(func, one) for one in _tensors((args, kwargs))):
                self._follow(func, args, kwargs, result)
        return result

    def _follow(self, func: Any, args: tuple, kwargs: dict[str, Any], result: Any) -> None:
        name = func.overloadpacket.__name__
        plain = name[:-1] if name.endswith("_") and not name.startswith("_") else name
        first = next(iter(_tensors(result)), None)
        if first is None:
            return
        shared = first.untyped_storage()._cdata in {t.untyped_storage()._cdata for t in _tensors((args, kwargs))}
        view = shared and (not name.endswith("_") or plain in _VIEWS)
        for tensor in _tensors(result):
            if not tensor.is_floating_point() and not view:
                # Numbers and conditions read from tokens: what they choose depends on the image.
                self.mark(tensor, torch.full((), MIXED))
        if not first.is_floating_point() or view:
            return  # the labels of a view lie in the storage that it shares
        if plain in ("sort", "topk"):
            self._order(plain, args, kwargs, first)
            return
        if plain in _NEUTRAL:
            return
        if plain in _REARRANGING:
            self._rearrange(func, args, kwargs, result)
        elif plain in _ELEMENTWISE:
            given = [one for one in _tensors((args, kwargs)) if one.is_floating_point()]
            self.mark(first, *self._joined(given, first, plain))
        elif plain in _NORMS or plain in _SOFTMAX or plain in ("cumsum", "glu"):
            self._keep(plain, args, kwargs, first)
        elif plain in ("mm", "bmm", "addmm", "baddbmm", "linear"):
            self._product(plain, args, first)
        elif plain in ("convolution", "_convolution"):
            self._convolve(args, first)
        elif plain in _GRIDS:
            labels, size = self._of_tokens(args[0], plain), first.shape[-2:]
            if plain == "col2im":
                found = overlaps(self.tokens, labels, *args[1:])
            elif plain in _POOLING:
                found = pooled(self.tokens, labels, *args[1:5], dilated=plain.startswith("max"), size=size)
            elif plain in _ADAPTIVE:
                found = pooled_to(self.tokens, labels, size)
            else:
                found = resampled(self.tokens, labels, lambda grid: func(grid, *args[1:], **kwargs))
            self.mark(first, found.expand(first.shape))
        elif plain in _REDUCING:
            self._reduce(plain, args, kwargs, result)
        else:
            raise UnsupportedAttentionError(
                f"the tokens are moved by the operation {name}, which has no rule to follow them by"
            )

    def _rearrange(self, func: Any, args: tuple, kwargs: dict[str, Any], result: Any) -> None:
        """The same operation on the labels; what has none gets zeros."""
        chosen = [
            one
            for one in _tensors((args, kwargs))
            if not one.is_floating_point() and self._labels.has(one) and not _keeps_all(func, one)
        ]
        name = func.overloadpacket.__name__
        if chosen and name.rstrip("_") != "where":
            raise UnsupportedAttentionError(f"{name} moves tokens to places that depend on the image")
        if "index_put" in name and (args[3:4] == (True,) or kwargs.get("accumulate")):
            raise UnsupportedAttentionError("index_put adds tokens up, which has no rule")
        if chosen:  # like the larger of two: which it is depends on the image
            self.mark(result, *self._joined(list(args[1:]), result, "maximum"))
            return
        depth = max(len(self.labels(one) or ()) for one in _tensors((args, kwargs)) if one.is_floating_point())
        kwargs = {key: value for key, value in kwargs.items() if key not in ("dtype", "layout", "device", "pin_memory")}
        if name in ("_to_copy", "clone", "contiguous"):
            self.mark(result, *(self.labels(args[0]) or ()))
            return
        for number in range(depth):

            def swap(value: Any, number: int = number) -> Any:
                if isinstance(value, Tensor):
                    found = self.labels(value) if value.is_floating_point() else None
                    if found is not None:
                        return found[min(number, len(found) - 1)]
                    return torch.zeros_like(value, dtype=torch.float64) if value.is_floating_point() else value
                if type(value) in (list, tuple):
                    return type(value)(swap(one) for one in value)
                return value

            swapped = [swap(one) for one in args]
            if name == "constant_pad_nd":
                swapped = swapped[:2]
            if name.endswith("_"):  # in place: the labels lie where the result's do
                if self.labels(result) is None:
                    self.mark(result, *(torch.zeros(()) for _ in range(depth)))
                swapped[0] = self._labels.written_out(result)[number]
                func(*swapped, **kwargs)
            else:
                self._mark_part(result, number, depth, func(*swapped, **kwargs))

    def _mark_part(self, result: Any, number: int, depth: int, labels: Any) -> None:
        for tensor, found in zip(_tensors(result), _tensors(labels), strict=True):
            parts = self.labels(tensor) or [torch.zeros_like(tensor, dtype=torch.float64)] * depth
            parts = [found if at == number else part.clone() for at, part in enumerate(parts)]
            self.mark(tensor, *parts)

    def _order(self, name: str, args: tuple, kwargs: dict[str, Any], values: Tensor) -> None:
        """Numbers in order: those of one token stay its own, those of several are of any; scores are no tokens."""
        labels = self.labels(args[0])
        if labels is None or len(labels) == 2:
            return
        at = 2 if name == "topk" else 1
        dim = kwargs.get("dim", args[at] if len(args) > at else -1)
        found, alone = self._contract(labels[0].movedim(dim, -1))
        self.mark(values, (found if alone else torch.full_like(found, MIXED)).unsqueeze(dim).expand(values.shape))

    def _keep(self, name: str, args: tuple, kwargs: dict[str, Any], result: Tensor) -> None:
        labels = self.labels(args[0])
        if labels is None:
            return
        if name in ("cumsum", "glu"):
            dim = kwargs.get("dim", args[1] if len(args) > 1 else -1)
            if name == "glu":
                labels = [one.chunk(2, dim)[0] for one in labels]
            elif not all(self._contract(one.movedim(dim, -1))[1] for one in labels):
                raise UnsupportedAttentionError("cumsum joins every token with those before it, which has no rule")
        self.mark(result, *labels)

    def _joined(self, given: list[Tensor], result: Tensor, name: str) -> list[Tensor]:
        """The labels of an element-wise operation on several tensors."""
        found = [labels for one in given if (labels := self.labels(one)) is not None]
        depth = max(len(one) for one in found)
        parts = []
        for number in range(depth):
            sides = [one[number].expand(result.shape) for one in found if len(one) > number]
            if number == 1 and len(sides) > 1:
                sides = self._one_set_of_keys([one[0].expand(result.shape) for one in found if len(one) > 1], sides)
            total = sides[0]
            for side in sides[1:]:
                total = self._join(total, side, name)
            parts.append(total)
        return parts

    def _one_set_of_keys(self, written: list[Tensor], keys: list[Tensor]) -> list[Tensor]:
        """The keys of attention probabilities that are added up, where some tell what those of the others are."""
        told = [one for one in keys if not _of_values(one)]
        for of, one in zip(written, keys, strict=True):
            if told and _of_values(one):
                self._close(of, one, told[0][..., 0, :])
        return told or keys

    def _join(self, left: Tensor, right: Tensor, name: str) -> Tensor:
        """The label of every element of a sum or product of two."""
        shape = left.shape
        left, right = torch.broadcast_tensors(once(left), once(right))
        joined = torch.where(left == NONE, right, left)
        clash = (left != right) & (left != NONE) & (right != NONE)
        if not bool(clash.any()):
            return joined.expand(shape)
        # Both labels in one number, which float64 holds exactly; channels of one token follow each other.
        code, runs = torch.unique_consecutive(left[clash] * CODE + right[clash], return_inverse=True)
        code, inverse = torch.unique(code, return_inverse=True)
        inverse, code = inverse[runs], code.cpu()
        pairs = torch.stack([torch.div(code, CODE, rounding_mode="floor"), code.remainder(CODE)], dim=1)
        if bool(((left == MIXED) | (right == MIXED)).any()):
            raise UnsupportedAttentionError(
                "tokens are joined with a mixture of all of them (linear attention, tokens in an order of their own), "
                "which has no attention matrix"
            )
        adds = name in ("add", "sub", "rsub", "maximum", "minimum", "lerp")
        kept = (self.tokens.sums if adds else self.tokens.products)(pairs.long())
        joined[clash] = kept.double().to(inverse.device)[inverse]
        return joined.expand(shape)

    def _product(self, name: str, args: tuple, result: Tensor) -> None:
        left, right = args[-2:] if name in ("mm", "bmm") else args[1:3] if name != "linear" else (args[0], args[1].T)
        lefts, rights = self.labels(left), self.labels(right)
        if name in ("addmm", "baddbmm") and self.labels(args[0]) is not None:
            raise UnsupportedAttentionError(f"tokens are added to a product by {name}, which has no rule")
        if lefts is not None and len(lefts) == 2:
            sides = [self._contract(one) for one in lefts]
            if all(alone for _, alone in sides) and rights is None:  # heads are mixed, token by token
                self.mark(result, *(one[..., None].expand(result.shape) for one, _ in sides))
                return
            self.mark(result, lefts[0][..., :1].expand(result.shape))
            self._check_keys(lefts, rights)
            return
        if rights is not None and len(rights) == 2:
            self.mark(result, rights[0][..., :1, :].expand(result.shape))
            turned = None if lefts is None else [one.transpose(-1, -2) for one in lefts]
            self._check_keys([one.transpose(-1, -2) for one in rights], turned)
            return
        rows = None if lefts is None else self._contract(lefts[0])
        columns = None if rights is None else self._contract(rights[0].transpose(-1, -2))
        if rows is not None and columns is not None:
            self._check_images(rows[0], columns[0])
            mixed = bool((rows[0] == MIXED).any() or (columns[0] == MIXED).any())
            if rows[1] and columns[1] and not mixed:
                self.mark(
                    result, rows[0][..., None].expand(result.shape), columns[0][..., None, :].expand(result.shape)
                )
            else:
                self.mark(result, torch.full(result.shape, MIXED, dtype=torch.float64))
        elif rows is not None:
            assert lefts is not None
            self.mark(result, self.tokens.merge(lefts[0])[..., None].expand(result.shape))
        elif columns is not None:
            assert rights is not None
            self.mark(result, self.tokens.merge(rights[0].transpose(-1, -2))[..., None, :].expand(result.shape))

    def _check_images(self, rows: Tensor, columns: Tensor) -> None:
        """Refuses a product of what is made of one image with what is made of another."""
        image = self.tokens.of("image")
        row, column = (image[one.clamp(min=0).long().cpu()] for one in (once(rows), once(columns)))
        joined = row[..., :, None] != column[..., None, :]
        if bool((joined & (row[..., :, None] >= 0) & (column[..., None, :] >= 0)).any()):
            raise PackedBatchError("the model multiplies tokens of several images of a batch with each other")

    def _contract(self, labels: Tensor) -> tuple[Tensor, bool]:
        """The label along the last dimension, and whether there is but one."""
        shape, labels = labels.shape[:-1], once(labels)
        low = torch.where(labels == NONE, torch.inf, labels).amin(dim=-1)
        high = labels.amax(dim=-1)
        alone = bool(((low == high) | low.isinf()).all())
        mixed = (labels == MIXED).any(dim=-1)
        return torch.where(mixed, MIXED, torch.where(low.isinf(), NONE, high)).expand(shape), alone

    def _check_keys(self, attention: list[Tensor], values: list[Tensor] | None) -> None:
        """Refuses probabilities that are multiplied with other tokens than their keys; which may say what these are."""
        if values is None or len(values) != 1:
            raise UnsupportedAttentionError("attention probabilities are multiplied with what carries no tokens")
        (value, alone), (written, key) = self._contract(values[0]), attention
        if alone and _of_values(key):
            self._close(written, key, value)
            return
        key = key[..., 0, :]
        if not alone or bool(((value != key) & (value != NONE) & (key != NONE)).any()):
            raise UnsupportedAttentionError("attention reads its values from other tokens than its keys")

    def _close(self, written: Tensor, key: Tensor, values: Tensor) -> None:
        """Says of an attention whose keys are not known what they are: the tokens of the values."""
        call = int(OF_VALUES - key[(0,) * key.dim()])
        leading = written.shape[:-2]
        asked, found = written[..., 0], values.expand(*leading, values.shape[-1])
        self.tokens.close(call, *(one.reshape(-1, one.shape[-1]).cpu() for one in (asked, found)))

    def _convolve(self, args: tuple, result: Tensor) -> None:
        given, weight, stride, padding, dilation, transposed = args[0], args[1], args[3], args[4], args[5], args[6]
        padding = tuple(padding) * (weight.dim() - 2) if len(padding) == 1 else padding  # of padding="valid"
        labels = self.labels(given)
        if labels is None or self.labels(weight) is not None:
            raise UnsupportedAttentionError("a convolution whose weights are made of tokens has no rule")
        kernel = tuple(weight.shape[2:])
        if len(labels) == 2:
            if kernel != (1, 1) or any(bool((one != one[:, :1]).any()) for one in labels):
                raise UnsupportedAttentionError("neighbouring attention scores are joined, which has no rule")
            self.mark(result, *(one[:, :1].expand(result.shape) for one in labels))  # heads are mixed, token by token
            return
        found = convolved(self.tokens, labels[0], kernel, stride, padding, dilation, transposed, result.shape)
        self.mark(result, found.expand(result.shape))

    def _of_tokens(self, given: Tensor, name: str) -> Tensor:
        """The labels of what are tokens, and not attention scores."""
        labels = self.labels(given)
        if labels is None or len(labels) == 2:
            raise UnsupportedAttentionError(f"attention scores are joined by {name}, which has no rule")
        return labels[0]

    def _reduce(self, name: str, args: tuple, kwargs: dict[str, Any], result: Any) -> None:
        target, shape = next(iter(_tensors(result))), args[0].shape
        at = 2 if name in ("norm", "linalg_vector_norm") else 1
        dims = args[at] if len(args) > at else kwargs.get("dim")
        dims = (
            list(range(len(shape))) if dims is None or dims == [] else [dims] if isinstance(dims, int) else list(dims)
        )
        dims = [one % len(shape) for one in dims]
        scores = self.labels(args[0])
        if scores is not None and len(scores) == 2 and dims == [len(shape) - 1]:
            self.mark(target, scores[0][..., 0].reshape(target.shape))  # what probabilities of a query are divided by
            return
        given = once(self._of_tokens(args[0], name))
        if name == "sum" and len(dims) == 1 and self.tokens.side_by_side(given.movedim(dims[0], 0)):
            total, *others = given.movedim(dims[0], 0)
            for one in others:
                total = self._join(total, one, "add")
            self.mark(target, total.expand([n for at, n in enumerate(shape) if at != dims[0]]).reshape(target.shape))
            return
        kept = [one for one in range(len(shape)) if one not in dims]
        rows = given.permute(*kept, *dims).reshape(*[given.shape[one] for one in kept], -1)
        found = self.tokens.merge(rows).expand([shape[one] for one in kept]).reshape(target.shape)
        for tensor in _tensors(result):
            if tensor.is_floating_point():
                self.mark(tensor, found)


def _keeps_all(func: Any, choice: Tensor) -> bool:
    """Whether a tensor that was read from the image says that everything is kept, which moves nothing."""
    return func.overloadpacket.__name__ == "index" and choice.dtype == torch.bool and bool(choice.all())


def _of_values(key: Tensor) -> bool:
    """Whether the keys of probabilities are those of the values."""
    return bool((once(key) <= OF_VALUES).all())


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from _tensors(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _tensors(one)
