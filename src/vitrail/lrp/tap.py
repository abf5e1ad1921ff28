"""The tap under relevance rules: every function of the model that meets an activation has a rule, or is refused.

It differs from the engine's tap in three ways. It runs the model in the rules' own precision, whatever the model's:
each weight is converted where it is used, and the model keeps its own. It knows functions by name: those with a rule,
and those that only move numbers about. And it refuses all others, naming the function and the module at work.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..attention.modules import running_module
from ..attention.tap import PRODUCTS, Tap, Visitor, bound_arguments, run_multi_head_attention
from ..errors import UnsupportedOperationError

__all__ = ["Call", "RelevanceTap", "Rules"]

# Functions that only move numbers about: relevance moves with them, as a gradient does.
RESHAPE_OPS = frozenset(
    [
        "__getitem__",
        "__pos__",
        "_unsafe_view",
        "adjoint",
        "alias",
        "as_strided",
        "as_subclass",
        "broadcast_to",
        "cat",
        "chunk",
        "clone",
        "column_stack",
        "concat",
        "concatenate",
        "contiguous",
        "detach",
        "diagonal",
        "dstack",
        "expand",
        "expand_as",
        "flatten",
        "flip",
        "gather",
        "hsplit",
        "hstack",
        "index_select",
        "masked_fill",
        "masked_select",
        "moveaxis",
        "movedim",
        "narrow",
        "pad",
        "permute",
        "pixel_shuffle",
        "pixel_unshuffle",
        "positive",
        "ravel",
        "repeat",
        "repeat_interleave",
        "requires_grad_",
        "reshape",
        "reshape_as",
        "roll",
        "rot90",
        "select",
        "split",
        "split_with_sizes",
        "squeeze",
        "stack",
        "swapaxes",
        "swapdims",
        "t",
        "take_along_dim",
        "tensor_split",
        "tile",
        "transpose",
        "tril",
        "triu",
        "unbind",
        "unflatten",
        "unfold",
        "unsqueeze",
        "view",
        "view_as",
        "vsplit",
        "vstack",
        "where",
    ]
)
# These also change the type, which the rules' own precision overrides.
CAST_OPS = frozenset(["bfloat16", "cpu", "cuda", "double", "float", "half", "to", "type", "type_as"])

# `x += y` comes as one of these. They have rules that make a new tensor, which `x` then names.
_IN_PLACE = frozenset(["__iadd__", "__imul__", "__isub__", "__itruediv__", "add_", "mul_", "sub_", "div_"])


class Call:
    """One call of a function by the model, its arguments in the rules' precision."""

    def __init__(self, tap: "RelevanceTap", function: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> None:
        self.tap = tap
        self.function = function
        self.name = _name(function)
        self.args = args
        self.kwargs = kwargs

    def plain(self) -> Any:
        """Returns the function as it is: what autograd does with it is what relevance does."""
        return self.function(*self.args, **self.kwargs)

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        return self.args[position] if len(self.args) > position else self.kwargs.get(name, default)

    def refuse(self, why: str = "") -> UnsupportedOperationError:
        return self.tap.refusal(self.name, why)


Rules: TypeAlias = Mapping[str, Callable[[Call], Any]]


class RelevanceTap(Tap):
    """Within the block the model runs in `dtype`, and each function that meets an activation follows its rule.

    `method` and `instead` are named in the error: the method that has no rule, and what to use in its place.

    Raises:
        UnsupportedOperationError: for a function without a rule; the message names it and the module.
    """

    def __init__(
        self,
        visitor: Visitor,
        images: int,
        rules: Rules,
        dtype: torch.dtype,
        model: nn.Module,
        method: str,
        instead: str,
    ) -> None:
        super().__init__(visitor, images)
        self.attention = set(self._rules) - {F.dropout, torch.dropout, F.conv2d, torch.conv2d, *PRODUCTS}
        self.rules = rules
        self.dtype = dtype
        self.model = model
        self.method = method
        self.instead = instead
        self.swaps_images = False
        self._suspended = False
        self._overwritten: list[Tensor] = []

    def refusal(self, name: str, why: str = "") -> UnsupportedOperationError:
        """Returns the error for a function without a rule, at the module at work."""
        running = running_module(self.model)
        module = (running and running[0]) or type(self.model).__name__
        return UnsupportedOperationError(
            f"{self.method} has no rule for {name}() in module {module!r}"
            + (f" ({why})" if why else "")
            + f"; use {self.instead} for this model"
        )

    def refuse_overwritten(self, name: str, values: Any) -> None:
        """Refuses to read what shares its memory with a tensor that the model has changed in place since.

        Raises:
            UnsupportedOperationError: naming the function that reads it.
        """
        if self._overwritten:
            changed = {tensor.untyped_storage().data_ptr() for tensor in self._overwritten}
            if any(tensor.untyped_storage().data_ptr() in changed for tensor in _tensors(values)):
                raise self.refusal(name, "it reads a tensor that the model has since changed in place")

    def images_dimension(self, tensor: Tensor) -> int:
        """Returns the dimension of an activation that counts the images: 0, or 1 in models that put the tokens
        first.
        """
        first, second = tensor.shape[0] == self.images, tensor.dim() > 2 and tensor.shape[1] == self.images
        if first and not (second and self.swaps_images and self.images > 1):
            return 0
        if second and not first:
            return 1
        raise self.refusal(
            "add",
            f"which dimension of {tuple(tensor.shape)} tells {self.images} images apart cannot be told: another "
            "batch_size may help",
        )

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if self._suspended:
            return func(*args, **(kwargs or {}))
        name = _name(func)
        if name in ("__get__", "__set__"):
            return _constant(func(*args, **(kwargs or {})), args)
        args, kwargs = self._prepared(args, dict(kwargs or {}))
        if name in CAST_OPS:
            return self._cast(func, args, kwargs)
        if name in ("dropout", "native_dropout"):
            # Outside training it is the identity; within, the engine's tap refuses it.
            return self._rules[F.dropout](*args, **kwargs)
        self._watch_order(name, args, kwargs)
        met = [tensor for tensor in _tensors((args, kwargs)) if tensor.requires_grad]
        self.refuse_overwritten(name, (args, kwargs))
        for tensor in met:
            operation = getattr(tensor, "vitrail_operation", None)
            if operation is not None and func is not F.multi_head_attention_forward:
                operation.uses += 1
        if func in self.attention:
            return self._met_attention(func, name, args, kwargs)
        if not met:
            return func(*args, **kwargs)
        return self._met_activation(Call(self, func, args, kwargs))

    def _met_activation(self, call: Call) -> Any:
        name = call.name
        if name in self.rules:
            result = self.rules[name](call)
        else:
            if name == "__setitem__" or (name.endswith("_") and not name.endswith("__")):
                raise self.refusal(name, "it changes a tensor in place")
            result = call.plain()
            if name not in RESHAPE_OPS and any(tensor.requires_grad for tensor in _tensors(result)):
                raise self.refusal(name)
        if name in _IN_PLACE or call.kwargs.get("inplace"):
            # The model continues with the new tensor; should it read the old one by another name, it is refused.
            self._overwritten.append(call.args[0])
        return result

    def _met_attention(self, func: Callable[..., Any], name: str, args: tuple, kwargs: dict[str, Any]) -> Any:
        if func is F.multi_head_attention_forward:
            return self._multi_head(*args, **kwargs)
        if name == "softmax":
            kwargs.pop("dtype", None)
            args = tuple(a for a in args if not isinstance(a, torch.dtype))
            scores, dim = args[0], args[1] if len(args) > 1 else kwargs.get("dim")
            if not self._is_attention(scores, dim):
                if scores.requires_grad:
                    raise self.refusal(name, f"over {tuple(scores.shape)}, which is no attention")
                return func(*args, **kwargs)
        output = self._rules[func](*args, **kwargs)
        output.vitrail_attention = name == "softmax"
        return output

    def _multi_head(self, *args: Any, **kwargs: Any) -> Any:
        """Runs its code under this tap too: its projections are linear layers like others."""
        arguments = bound_arguments(args, kwargs)

        def attend(*args: Any, **kwargs: Any) -> Tensor:
            # What the visitor does is not the model's.
            self._suspended = True
            try:
                return self._attend(*args, **kwargs)
            finally:
                self._suspended = False

        with self:
            output, _ = run_multi_head_attention(attend, (), bound_arguments(args, kwargs, need_weights=False))
        if not arguments["need_weights"]:
            return output, None
        with torch.no_grad():
            return output, F.multi_head_attention_forward(**arguments)[1]

    def _cast(self, func: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
        """Follows a change of device only; floating point types are the rules' own."""
        tensor, *rest = args
        if tensor.dtype != self.dtype:
            return func(*args, **kwargs)
        for value in (*rest, *kwargs.values()):
            if isinstance(value, torch.dtype) and not value.is_floating_point:
                return func(*args, **kwargs)
            if isinstance(value, torch.device | str | Tensor) and not (
                isinstance(value, str) and value[:6] == "torch."
            ):
                return tensor.to(value.device if isinstance(value, Tensor) else value)
        return func(*args, **kwargs) if _name(func) in ("cpu", "cuda") else tensor

    def _prepared(self, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        """Parameters as constants, and all in the rules' precision where anything is."""
        convert = any(tensor.dtype == self.dtype for tensor in _tensors((args, kwargs)))

        def prepare(value: Any) -> Any:
            if isinstance(value, Tensor):
                value = value.detach() if value.requires_grad and value.is_leaf else value
                return _converted(value, self.dtype) if convert and value.is_floating_point() else value
            return type(value)(prepare(item) for item in value) if type(value) in (list, tuple) else value

        return tuple(prepare(value) for value in args), {key: prepare(value) for key, value in kwargs.items()}

    def _watch_order(self, name: str, args: tuple, kwargs: dict[str, Any]) -> None:
        """Notes whether the model ever puts its tokens before its images."""
        if name in ("transpose", "permute", "swapaxes", "swapdims", "movedim", "moveaxis") and args[0].dim() == 3:
            order = tuple(args[1]) if isinstance(args[1:2], tuple) and type(args[1]) in (list, tuple) else args[1:]
            self.swaps_images |= bool(kwargs) or set(order[:2]) <= {0, 1, -3, -2}


def _name(function: Callable[..., Any]) -> str:
    return getattr(function, "__name__", str(function))


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [tensor for item in value for tensor in _tensors(item)] if isinstance(value, list | tuple) else []


def _converted(value: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns the tensor in that type, which knows the one that it was made from."""
    result = value.to(dtype)
    if result is not value and type(value) in (Tensor, nn.Parameter):
        result.vitrail_source = value  # pyright: ignore[reportAttributeAccessIssue]
    return result


def _constant(result: Any, args: tuple) -> Any:
    """Treats a transposed weight (`weight.T`) as constant, like the weight."""
    if not isinstance(result, Tensor) or not result.requires_grad or not args or result is args[0]:
        return result
    return result.detach() if isinstance(args[0], Tensor) and args[0].is_leaf else result
