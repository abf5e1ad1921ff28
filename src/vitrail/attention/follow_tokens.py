"""Follows tokens through a model's own operations: which token each element of an activation belongs to.

Every storage that carries tokens has a second one next to it with a label per element, so that views need no rule.
Operations that rearrange act on the labels themselves; those that look at one token keep its label; those that join
several make a new token, whose parents are noted (`Merge`); attention is intercepted (`Attend`). Nothing is asked about
the architecture. An operation without a rule is refused by name.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from ..errors import PackedBatchError, UnsupportedAttentionError
from .token_graph import Merge, Step

__all__ = ["MIXED", "NONE", "TokenFollower", "Tokens"]

NONE, MIXED, CODE = 0.0, -1.0, 2.0**26
"""The label of what comes from no token, and of a mixture of many tokens that is no token itself (qᵀk over tokens)."""

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
    "rot90"
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
_RESAMPLING = {
    "upsample_bilinear2d", "_upsample_bilinear2d_aa", "upsample_bicubic2d", "_upsample_bicubic2d_aa"
}
_SOFTMAX = {
    "_softmax", "_log_softmax", "_safe_softmax"
}
_NEUTRAL = {
    "eq", "ne", "lt", "le", "gt", "ge", "isnan", "isinf", "any", "all", "argmax", "argmin", "argsort", "zeros_like",
    "ones_like", "full_like", "new_zeros", "new_ones", "new_empty", "new_full", "empty_like", "rand_like",
    "randn_like", "bernoulli", "_assert_async", "item", "_local_scalar_dense", "sym_size", "is_nonzero", "equal",
    "bitwise_not", "logical_not", "isfinite", "numel", "detach", "alias", "resize",
    "_assert_tensor_metadata"
}
_VIEWS = {"as_strided", "squeeze", "unsqueeze", "transpose", "t", "swapaxes", "resize", "detach"}
# fmt: on


@dataclass
class Tokens:
    """The tokens found so far, by their labels: parents, where they lie, which image they are of, what they are.

    `y`, `x` are the centre in pixels (NaN: of no place); `branch` marks what an attention has written and nothing has
    been added to; `sums` holds the parts of tokens that are sums of others.
    """

    y: list[Tensor] = field(default_factory=lambda: [torch.full((1,), torch.nan, dtype=torch.float64)])
    x: list[Tensor] = field(default_factory=lambda: [torch.full((1,), torch.nan, dtype=torch.float64)])
    image: list[Tensor] = field(default_factory=lambda: [torch.full((1,), -1)])
    branch: list[Tensor] = field(default_factory=lambda: [torch.zeros(1, dtype=torch.bool)])
    count: int = 1
    known: dict[bytes, int] = field(default_factory=dict)
    sums: dict[int, dict[int, float]] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)
    attended: bool = False

    def add(self, y: Tensor, x: Tensor, image: Tensor, branch: bool | Tensor) -> Tensor:
        """Returns the labels of new tokens."""
        labels = torch.arange(self.count, self.count + len(y))
        self.y.append(y)
        self.x.append(x)
        self.image.append(image)
        self.branch.append(branch if isinstance(branch, Tensor) else torch.full((len(y),), branch))
        self.count += len(y)
        return labels

    def settle(self) -> None:
        """Joins what was added to one tensor each."""
        for name in ("y", "x", "image", "branch"):
            parts = getattr(self, name)
            if len(parts) > 1:
                setattr(self, name, [torch.cat(parts)])

    def of(self, name: str) -> Tensor:
        """Returns one property of all tokens, by label."""
        self.settle()
        return getattr(self, name)[0]


class TokenFollower(TorchDispatchMode):
    """Within the block, labels follow the tokens of `image`, a batch that must keep its images apart.

    Raises:
        UnsupportedAttentionError: at an operation without a rule, or one that no rule covers, by its name.
        PackedBatchError: where tokens of two images are joined.
    """

    def __init__(self, image: Float[Tensor, "images channels height width"]) -> None:
        super().__init__()
        self.tokens = Tokens()
        self.notes: dict[str, None] = {}
        self.resting = False
        self._labels: dict[int, tuple[StorageWeakRef, list[Tensor]]] = {}
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
        entry = self._labels.get(tensor.untyped_storage()._cdata)
        if entry is None or entry[0].expired():
            return None
        return [flat.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset()) for flat in entry[1]]

    def mark(self, tensor: Tensor, *labels: Tensor) -> None:
        """Gives a tensor its labels; what views share its storage have them, too."""
        storage = tensor.untyped_storage()
        entry = self._labels.get(storage._cdata)
        if entry is None or entry[0].expired() or len(entry[1]) != len(labels):
            size = storage.nbytes() // tensor.element_size()
            zeros = [torch.zeros(size, dtype=torch.float64, device=tensor.device) for _ in labels]
            entry = StorageWeakRef(storage), zeros
            self._labels[storage._cdata] = entry
        for flat, given in zip(entry[1], labels, strict=True):
            flat.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset()).copy_(given.expand(tensor.shape))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        result = func(*args, **kwargs)
        if self.resting:
            return result
        with self.rest():
            given = [one for one in _tensors((args, kwargs)) if self.labels(one) is not None]
            if given:
                self._follow(func, args, kwargs, result)
            elif isinstance(result, Tensor) and args and result is args[0] and self.labels(result) is not None:
                self.mark(result, torch.zeros(()))
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
        elif plain in _POOLING:
            self._pool(args, kwargs, first)
        elif plain in ("_adaptive_avg_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d"):
            self._adaptive_pool(args[0], first)
        elif plain in _RESAMPLING:
            self._resample(func, args, kwargs, first)
        elif plain in _REDUCING:
            self._reduce(plain, args, kwargs, result)
        else:
            raise UnsupportedAttentionError(
                f"the tokens are moved by the operation {name}, which has no rule to follow them by"
            )

    def _rearrange(self, func: Any, args: tuple, kwargs: dict[str, Any], result: Any) -> None:
        """The same operation on the labels; what has none gets zeros."""
        chosen = [one for one in _tensors((args, kwargs)) if not one.is_floating_point() and self.labels(one)]
        name = func.overloadpacket.__name__
        if chosen and name.rstrip("_") != "where":
            raise UnsupportedAttentionError(f"{name} moves tokens to places that hang on the image")
        if "index_put" in name and (args[3:4] == (True,) or kwargs.get("accumulate")):
            raise UnsupportedAttentionError("index_put adds tokens up, which has no rule")
        if chosen:  # like the larger of two: which it is hangs on the image
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
                    swapped = [swap(one) for one in args]
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
            total = sides[0]
            for side, raw in zip(sides[1:], [one for one in found if len(one) > number][1:], strict=True):
                total = self._join(total, side, name, raw[number].numel() < total.numel())
            parts.append(total)
        return parts

    def _join(self, left: Tensor, right: Tensor, name: str, broadcast: bool) -> Tensor:
        """The label of every element of a sum or product of two."""
        joined = torch.where(left == NONE, right, left)
        clash = (left != right) & (left != NONE) & (right != NONE)
        if not bool(clash.any()):
            return joined
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
        if name not in ("add", "sub", "rsub", "maximum", "minimum", "lerp"):
            # A product of a token with what is made of several: a gate, which scales and moves nothing.
            alone_left, alone_right = pairs[:, 0].unique().numel(), pairs[:, 1].unique().numel()
            kept = pairs[:, 0] if alone_left >= alone_right else pairs[:, 1]
        else:
            kept = self._sums(pairs.long()).double()
        joined = joined.clone()
        joined[clash] = kept.to(inverse.device)[inverse]
        return joined

    def _sums(self, pairs: Tensor) -> Tensor:
        """The tokens that are sums of two: what one attention wrote is added whole, other tokens are averaged."""
        tokens = self.tokens
        branch = tokens.of("branch").tolist()
        made: list[tuple[int, dict[int, float], dict[int, float], bool]] = []
        out = torch.zeros(len(pairs), dtype=torch.long)
        next_label = tokens.count
        for row, (a, b) in enumerate(pairs.tolist()):
            parts = {**tokens.sums.get(a, {a: 1.0}), **tokens.sums.get(b, {b: 1.0})}
            single = next((one for one in (a, b) if set(tokens.sums.get(one, {one: 1.0})) == set(parts)), None)
            if single is not None:
                out[row] = single
                continue
            if branch[a] or branch[b]:
                weights = {a: 1.0, b: 1.0}
            else:
                others = [one for one in parts if not branch[one]]
                weights = {one: 1.0 / len(others) if one in others else 1.0 for one in parts}
            key = repr(sorted(weights.items())).encode()
            if key not in tokens.known:
                tokens.known[key] = next_label
                made.append((next_label, parts, weights, branch[a] and branch[b]))
                next_label += 1
            out[row] = tokens.known[key]
        if made:
            self._make([weights for _, _, weights, _ in made], torch.tensor([written for *_, written in made]))
            tokens.sums.update({label: parts for label, parts, _, _ in made})
        return out

    def _make(self, parents: list[dict[int, float]], branch: Tensor) -> Tensor:
        """New tokens by their parents and the parents' weights."""
        child = torch.tensor([row for row, one in enumerate(parents) for _ in one])
        parent = torch.tensor([label for one in parents for label in one])
        weight = torch.tensor([value for one in parents for value in one.values()], dtype=torch.float64)
        written = self.tokens.of("branch")[parent].double()
        residual = torch.zeros(len(parents), dtype=torch.float64).index_add_(0, child, written) > 0
        return self._make_flat(child, parent, weight, len(parents), branch, residual)

    def _make_flat(
        self, child: Tensor, parent: Tensor, weight: Tensor, count: int, branch: Tensor, residual: Tensor | None = None
    ) -> Tensor:
        tokens = self.tokens
        image = tokens.of("image")[parent]
        of_child = torch.full((count,), -1).scatter_reduce_(0, child, image, "amax")
        if bool(((image != of_child[child]) & (image >= 0)).any()):
            raise PackedBatchError(
                "the model joins tokens of several images of a batch; explain one image at a time, with batch_size=1"
            )
        places = []
        for name in ("y", "x"):
            at = tokens.of(name)[parent]
            placed = ~at.isnan()
            share = torch.zeros(count, dtype=torch.float64).index_add_(0, child[placed], weight[placed])
            total = torch.zeros(count, dtype=torch.float64).index_add_(0, child[placed], (weight * at)[placed])
            places.append(total / share)  # NaN where no parent has a place
        labels = tokens.add(places[0], places[1], of_child, branch)
        with_residual = torch.zeros_like(child, dtype=torch.bool) if residual is None else residual[child]
        for flag in with_residual.unique().tolist():
            on = with_residual == flag
            tokens.steps.append(Merge(labels[child[on]], parent[on], weight[on], flag))
        return labels

    def merge(self, rows: Float[Tensor, "rows parents"]) -> Float[Tensor, " rows"]:
        """Returns one label for each row: the only one in it, or a new token made of all, each as often as it
        occurs.
        """
        device, rows = rows.device, rows.cpu()
        low = torch.where(rows == NONE, torch.inf, rows).amin(dim=1)
        high = rows.amax(dim=1)
        mixed = (rows == MIXED).any(dim=1)
        single = torch.where(mixed, MIXED, torch.where(low.isinf(), NONE, high))
        several = (low != high) & ~low.isinf() & ~mixed
        if not bool(several.any()):
            return single.to(device)
        chosen, often = _columns(rows[several])
        unique, inverse = torch.unique(chosen, dim=0, return_inverse=True)
        prefix = b"" if bool((often == often[0]).all()) else often.numpy().tobytes()
        keys = [prefix + row.tobytes() for row in unique.numpy()]
        new = [at for at, key in enumerate(keys) if key not in self.tokens.known]
        if new:
            fresh = unique[new]
            child, at = (fresh != NONE).nonzero(as_tuple=True)
            parent, weight = fresh[child, at].long(), often[at]
            weight = weight / torch.zeros(len(new), dtype=torch.float64).index_add_(0, child, weight)[child]
            other = torch.zeros(len(new), dtype=torch.long).index_add_(
                0, child, (~self.tokens.of("branch")[parent]).long()
            )
            labels = self._make_flat(child, parent, weight, len(new), other == 0)
            self.tokens.known.update((keys[at], int(label)) for at, label in zip(new, labels, strict=True))
        found = torch.tensor([self.tokens.known[key] for key in keys], dtype=torch.float64)
        single = single.clone()
        single[several] = found[inverse]
        return single.to(device)

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
            self._check_keys(lefts[1], rights)
            return
        if rights is not None and len(rights) == 2:
            self.mark(result, rights[0][..., :1, :].expand(result.shape))
            return
        rows = None if lefts is None else self._contract(lefts[0])
        columns = None if rights is None else self._contract(rights[0].transpose(-1, -2))
        if rows is not None and columns is not None:
            mixed = bool((rows[0] == MIXED).any() or (columns[0] == MIXED).any())
            if rows[1] and columns[1] and not mixed:
                self.mark(
                    result, rows[0][..., None].expand(result.shape), columns[0][..., None, :].expand(result.shape)
                )
            else:
                self.mark(result, torch.full(result.shape, MIXED, dtype=torch.float64))
        elif rows is not None:
            found = rows[0] if rows[1] else self._merge_last(lefts[0] if lefts else rows[0])
            self.mark(result, found[..., None].expand(result.shape))
        elif columns is not None:
            assert rights is not None
            found = columns[0] if columns[1] else self._merge_last(rights[0].transpose(-1, -2))
            self.mark(result, found[..., None, :].expand(result.shape))

    def _contract(self, labels: Tensor) -> tuple[Tensor, bool]:
        """The label along the last dimension, and whether there is but one."""
        low = torch.where(labels == NONE, torch.inf, labels).amin(dim=-1)
        high = labels.amax(dim=-1)
        alone = bool(((low == high) | low.isinf()).all())
        mixed = (labels == MIXED).any(dim=-1)
        return torch.where(mixed, MIXED, torch.where(low.isinf(), NONE, high)), alone

    def _merge_last(self, labels: Tensor) -> Tensor:
        return self.merge(labels.reshape(-1, labels.shape[-1])).reshape(labels.shape[:-1])

    def _check_keys(self, keys: Tensor, values: list[Tensor] | None) -> None:
        if values is None or len(values) != 1:
            raise UnsupportedAttentionError("attention probabilities are multiplied with what carries no tokens")
        value, alone = self._contract(values[0])
        key = keys[..., 0, :]
        if not alone or bool(((value != key) & (value != NONE) & (key != NONE)).any()):
            raise UnsupportedAttentionError("attention reads its values from other tokens than its keys")

    def _convolve(self, args: tuple, result: Tensor) -> None:
        given, weight, stride, padding, dilation, transposed = args[0], args[1], args[3], args[4], args[5], args[6]
        labels = self.labels(given)
        if labels is None or (self.labels(weight) is not None):
            raise UnsupportedAttentionError("a convolution whose weights are made of tokens has no rule")
        if len(labels) == 2 and tuple(weight.shape[2:]) == (1, 1) and all(self._same_channels(one) for one in labels):
            self.mark(result, *(one[:, :1].expand(result.shape) for one in labels))  # heads are mixed, token by token
            return
        if transposed:
            raise UnsupportedAttentionError("a transposed convolution moves the tokens, which has no rule")
        kernel = tuple(weight.shape[2:])
        if result.dim() == 3:
            at = (1, *kernel), (1, *stride), (0, *padding), (1, *dilation)
            self.mark(result, self._local([one[:, :, None] for one in labels], *at, result[:, :, None])[:, :, 0])
        elif result.dim() == 5:
            self.mark(result, self._along_time(labels, kernel, stride, padding, dilation, result))
        else:
            self.mark(result, self._local(labels, kernel, stride, padding, dilation, result))

    def _along_time(
        self, given: list[Tensor], kernel: Any, stride: Any, padding: Any, dilation: Any, result: Tensor
    ) -> Tensor:
        """The labels of a convolution whose kernels lie side by side in time, height and width, as those of patches."""
        if tuple(kernel) != tuple(stride) or any(padding) or set(dilation) != {1} or len(given) == 2:
            raise UnsupportedAttentionError("a convolution over time whose kernels overlap has no rule")
        (labels,) = given
        for at, size in enumerate(kernel):
            labels = labels.unfold(2 + at, size, size)
        rows = labels.movedim(1, -1).flatten(4)
        return self._merge_last(rows)[:, None].expand(result.shape)

    def _local(
        self, labels: list[Tensor], kernel: Any, stride: Any, padding: Any, dilation: Any, result: Tensor
    ) -> Tensor:
        """The labels of what slides over a grid: the same where it stays on it, else a token made of its support."""
        grid = self._grid(labels)
        height, width = result.shape[-2:]
        if tuple(stride) == (1, 1) and grid.shape[-2:] == result.shape[-2:]:
            if tuple(kernel) != (1, 1) and self.tokens.attended:
                self.notes[
                    "Convolutions mix neighbouring tokens between its attentions; the map follows the attentions alone."
                ] = None
            return grid.expand(result.shape)
        # With ceil_mode the last window juts out.
        beyond = [
            max(0, (size - 1) * step + gap * (extent - 1) + 1 - have - 2 * margin)
            for size, step, gap, extent, have, margin in zip(
                (height, width), stride, dilation, kernel, grid.shape[-2:], padding, strict=True
            )
        ]
        grid = F.pad(grid, (0, beyond[1], 0, beyond[0]))
        columns = F.unfold(grid, tuple(kernel), tuple(dilation), tuple(padding), tuple(stride))
        return self._merge_last(columns.transpose(1, 2)).view(-1, 1, height, width).expand(result.shape)

    def _same_channels(self, labels: Tensor) -> bool:
        return bool((labels == labels[:, :1]).all())

    def _grid(self, labels: list[Tensor]) -> Float[Tensor, "images 1 rows cols"]:
        """One label for each place, whose channels are joined."""
        if len(labels) == 2:
            raise UnsupportedAttentionError("neighbouring attention scores are joined, which has no rule")
        (given,) = labels
        return given[:, :1] if self._same_channels(given) else self._merge_last(given.movedim(1, -1))[:, None]

    def _resample(self, func: Any, args: tuple, kwargs: dict[str, Any], result: Tensor) -> None:
        """Tokens between others: made of those that the interpolation weighs above zero."""
        labels = self.labels(args[0])
        assert labels is not None
        weights = []
        for at, size in enumerate(args[0].shape[-2:]):
            unit = torch.eye(size, dtype=torch.float64).view(size, 1, *((size, 1) if at == 0 else (1, size)))
            spread = func(unit.expand(size, 1, *args[0].shape[-2:]).contiguous(), *args[1:], **kwargs)
            weights.append((spread[:, 0, :, 0] if at == 0 else spread[:, 0, 0]).T)
        self.mark(result, self._between(self._grid(labels)[:, 0], *weights)[:, None].expand(result.shape))

    def _between(
        self,
        grid: Float[Tensor, "images rows cols"],
        vertical: Float[Tensor, "new_rows rows"],
        horizontal: Float[Tensor, "new_cols cols"],
    ) -> Float[Tensor, "images new_rows new_cols"]:
        """The labels of a grid whose places are weighted means of another's, rows and columns by themselves."""
        if bool((grid == MIXED).any()):
            raise UnsupportedAttentionError("a mixture of all tokens is resampled, which has no rule")
        device, grid = grid.device, grid.cpu()
        (y_share, y), (x_share, x) = (
            one.clamp(min=0).topk(int((one > 0).sum(dim=1).max()), dim=1) for one in (vertical, horizontal)
        )
        share = (y_share[:, None, :, None] * x_share[:, None]).flatten(2)
        parents = grid[:, y[:, None, :, None], x[:, None]].flatten(3)
        share = torch.where(parents == NONE, 0.0, share.expand(parents.shape))
        low = torch.where(share > 0, parents, torch.inf).amin(dim=-1)
        high = torch.where(share > 0, parents, NONE).amax(dim=-1)
        found = high.clone()
        several = low < high
        if bool(several.any()):
            share, parents = share[several], parents[several]
            child, at = (share > 0).nonzero(as_tuple=True)
            parent, weight = parents[child, at].long(), (share / share.sum(dim=-1, keepdim=True))[child, at]
            whole = torch.ones(len(share), dtype=torch.bool)
            whole[child[~self.tokens.of("branch")[parent]]] = False
            found[several] = self._make_flat(child, parent, weight, len(share), whole).double()
        return found.to(device)

    def _pool(self, args: tuple, kwargs: dict[str, Any], result: Tensor) -> None:
        labels = self.labels(args[0])
        assert labels is not None
        given = [*args[1:], *([None] * 4)]
        kernel, stride, padding = _pair(given[0]), _pair(given[1] or given[0]), _pair(given[2] or 0)
        self.mark(result, self._local(labels, kernel, stride, padding, (1, 1), result))

    def _adaptive_pool(self, given: Tensor, result: Tensor) -> None:
        labels = self.labels(given)
        assert labels is not None
        rows, columns = given.shape[-2] // result.shape[-2], given.shape[-1] // result.shape[-1]
        if given.shape[-2] % result.shape[-2] or given.shape[-1] % result.shape[-1]:  # windows that overlap
            weights = [
                F.adaptive_avg_pool1d(torch.eye(old, dtype=torch.float64), new).T
                for old, new in zip(given.shape[-2:], result.shape[-2:], strict=True)
            ]
            grid = self._grid(labels)[:, 0]
            self.mark(result, self._between(grid, *weights)[:, None].expand(result.shape))
            return
        if (rows, columns) == (1, 1):
            self.mark(result, labels[0])
            return
        self.mark(result, self._local(labels, (rows, columns), (rows, columns), (0, 0), (1, 1), result))

    def _reduce(self, name: str, args: tuple, kwargs: dict[str, Any], result: Any) -> None:
        labels = self.labels(args[0])
        assert labels is not None
        shape, target = labels[0].shape, next(iter(_tensors(result)))
        at = 2 if name in ("norm", "linalg_vector_norm") else 1
        dims = args[at] if len(args) > at else kwargs.get("dim")
        dims = (
            list(range(len(shape))) if dims is None or dims == [] else [dims] if isinstance(dims, int) else list(dims)
        )
        dims = [one % len(shape) for one in dims]
        if len(labels) == 2:
            raise UnsupportedAttentionError(f"attention scores are reduced by {name}, which has no rule")
        kept = [one for one in range(len(shape)) if one not in dims]
        rows = labels[0].permute(*kept, *dims).reshape(*[shape[one] for one in kept], -1)
        found = self._merge_last(rows).reshape(target.shape)
        for tensor in _tensors(result):
            if tensor.is_floating_point():
                self.mark(tensor, found)


def _columns(rows: Float[Tensor, "rows parents"]) -> tuple[Float[Tensor, "rows runs"], Float[Tensor, " runs"]]:
    """Rows without repeats along them (the channels of one token), and how long each run was; sorted if all alike."""
    starts = torch.cat([torch.ones(1, dtype=torch.bool), (rows[:, 1:] != rows[:, :-1]).any(dim=0)]).nonzero()[:, 0]
    often = torch.diff(starts, append=torch.tensor([rows.shape[1]])).double()
    runs = rows[:, starts]
    return (runs.sort(dim=1).values if bool((often == often[0]).all()) else runs), often


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[-1]) if value else (0, 0)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from _tensors(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _tensors(one)
