"""The one point of interception: every attention of an unmodified model passes here, inside a `with` block.

A `TorchFunctionMode` sees each PyTorch function that the model calls. It hands attention to a visitor, takes the
parameters out of the gradient (only activations are differentiated), and applies the gradient mode. The model itself
is not touched: no hooks, no attribute, no copy. Compiled models run in their plain form meanwhile (`eager`), and
`nn.MultiheadAttention` runs its own code with the attention inside it visible (`run_multi_head_attention`).
"""

import inspect
import sys
import threading
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..errors import MovingTokensError, PackedBatchError, TrainingModeError, UnsupportedAttentionError
from .calls import AnyCall, AttentionCall, from_scaled_dot_product
from .gradient_modes import GradientMode, gim_rules, half_of_gradient, holds_attention, libra_rules, linear

__all__ = ["OTHER_WAY", "PRODUCTS", "Tap", "Visitor", "bound_arguments", "eager", "run_multi_head_attention"]

_LOCK = threading.Lock()
_INSIDE = 0
_STANCE = ExitStack()


@contextmanager
def eager() -> Iterator[None]:
    """Within the block, whatever `torch.compile` made runs its plain form; afterwards the compiled one again.

    The stance is one for all threads, so the first to enter sets it and the last to leave restores it. Where nothing
    has imported the compiler, nothing can be compiled, and it is not imported here either.
    """
    if "torch._dynamo" not in sys.modules:
        yield
        return
    global _INSIDE
    with _LOCK:
        if _INSIDE == 0:
            _STANCE.enter_context(torch.compiler.set_stance("force_eager"))
        _INSIDE += 1
    try:
        yield
    finally:
        with _LOCK:
            _INSIDE -= 1
            if _INSIDE == 0:
                _STANCE.close()


_SIGNATURE = inspect.signature(F.multi_head_attention_forward)


def bound_arguments(args: tuple, kwargs: dict[str, Any], **changed: Any) -> dict[str, Any]:
    """Returns the arguments of a call of `F.multi_head_attention_forward` by name, defaults filled in, some
    `changed`.
    """
    arguments = _SIGNATURE.bind(*args, **kwargs)
    arguments.apply_defaults()
    return {**arguments.arguments, **changed}


def run_multi_head_attention(attend: Callable[..., Tensor], args: tuple, kwargs: dict[str, Any]) -> Any:
    """Runs `F.multi_head_attention_forward` with `attend` in the place of `scaled_dot_product_attention`.

    PyTorch hands this function to a `TorchFunctionMode` as one call and does not reveal the attention in it, so its own
    code object is run with globals in which nothing is overridden but the attention. Where the caller wants the
    attention weights too, they are computed by the original code next to it, without gradients.
    """
    namespace = dict(F.multi_head_attention_forward.__globals__)
    namespace["has_torch_function"] = lambda *_: False
    namespace["scaled_dot_product_attention"] = attend
    opened = types.FunctionType(
        F.multi_head_attention_forward.__code__,
        namespace,
        argdefs=F.multi_head_attention_forward.__defaults__,
    )
    opened.__kwdefaults__ = F.multi_head_attention_forward.__kwdefaults__
    arguments = bound_arguments(args, kwargs)
    output, _ = opened(**bound_arguments(args, kwargs, need_weights=False))
    if not arguments["need_weights"]:
        return output, None
    with torch.no_grad():
        _, weights = F.multi_head_attention_forward(**arguments)
    return output, weights


# What a model can be asked whose tokens cannot be followed; the first look at it names the layer.
OTHER_WAY = 'method="gradcam" with layer=, a layer whose output is a grid, needs none of this'

PRODUCTS = (torch.matmul, torch.bmm, torch.einsum, Tensor.matmul, Tensor.bmm, Tensor.__matmul__)


@runtime_checkable
class AnyAttention(Protocol):
    """A visitor that lets attention pass in any number of dimensions, windows among them."""

    def attend_any(self, call: AnyCall) -> Tensor:
        """Returns the output of attention over the last two dimensions."""
        ...

    def normalise_any(self, scores: Float[Tensor, "*groups queries keys"]) -> Float[Tensor, "*groups queries keys"]:
        """Returns the probabilities of attention that a model writes out in more than four dimensions."""
        ...


@runtime_checkable
class Visitor(Protocol):
    """Stands at the tap: gives every attention its output, in the order of the layers."""

    def attend(self, call: AttentionCall) -> Float[Tensor, "images heads queries value_width"]:
        """Returns the output of attention, for a call that reached `scaled_dot_product_attention`."""
        ...

    def normalise(
        self, scores: Float[Tensor, "images heads queries keys"]
    ) -> Float[Tensor, "images heads queries keys"]:
        """Returns the probabilities, for attention that a model writes out as a softmax over scores."""
        ...


class Tap(TorchFunctionMode):
    """Within the block, attention is given to `visitor` and gradients follow `gradient`.

    `images` is the number of images that the model is given: from it, calls that merge batch and heads are told apart.
    Once `layers` attentions have been called, the model's linear layers go back only through the tokens that a gradient
    reaches: there they may be few. The first `chain` attentions must keep the images apart.

    Raises:
        TrainingModeError: when attention is called with dropout.
        PackedBatchError: when one of them joins images.
    """

    def __init__(
        self,
        visitor: Visitor,
        images: int,
        gradient: GradientMode = "full",
        layers: int | None = None,
        chain: int | None = None,
    ) -> None:
        super().__init__()
        self.chain = (layers or 0) if chain is None else chain
        self.visitor = visitor
        self.images = images
        self.patch_grids: list[tuple[int, int]] = []
        self.attention_calls = 0
        self.other_softmax: list[tuple[tuple[int, ...], int | None]] = []
        self.products = 0
        self._ones = False
        self._summary: tuple[Tensor, Tensor, Tensor] | None = None
        self._rules: dict[Callable[..., Any], Callable[..., Any]] = {
            F.scaled_dot_product_attention: self._attend,
            F.multi_head_attention_forward: self._multi_head,
            F.softmax: partial(self._softmax, F.softmax),
            torch.softmax: partial(self._softmax, torch.softmax),
            Tensor.softmax: partial(self._softmax, Tensor.softmax),
            torch.special.softmax: partial(self._softmax, torch.special.softmax),
            F.dropout: partial(_refuse_dropout, F.dropout),
            torch.dropout: partial(_refuse_dropout, torch.dropout),
            F.conv2d: partial(self._convolve, F.conv2d),
            torch.conv2d: partial(self._convolve, torch.conv2d),
            F.pad: self._pad,
            **{function: partial(self._multiply, function) for function in PRODUCTS},
        }
        if layers is not None:
            self._rules[F.linear] = partial(self._linear, layers)
        if gradient == "libra":
            self._rules |= libra_rules()
        elif gradient == "gim":
            self._rules |= gim_rules()
        self._constant_attention = holds_attention(gradient)
        self._halves_values = gradient == "gim"
        self._written_out: Tensor | None = None

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name == "__get__" or name == "__set__":
            return _constant_view(func(*args, **(kwargs or {})), args)
        # Weights are distinguished in place, and only they and lists cost a call: every function of a model passes
        # here.
        args = tuple(
            [
                _without_gradient(item)
                if type(item) in (list, tuple) or (isinstance(item, Tensor) and item.is_leaf and item.requires_grad)
                else item
                for item in args
            ]
        )
        kwargs = {key: _without_gradient(value) for key, value in kwargs.items()} if kwargs else {}
        return self._rules.get(func, func)(*args, **kwargs)

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        if dropout_p > 0:
            raise TrainingModeError(
                f"attention {self.attention_calls} drops {dropout_p:.0%} of its links at random, so no two maps would "
                "agree: call model.eval() first"
            )
        if attn_mask is not None and self._constant_attention:
            attn_mask = attn_mask.detach()  # a bias that depends on the image, as in SAM
        if query.dim() not in (3, 4) and isinstance(self.visitor, AnyAttention):
            output = self.visitor.attend_any(AnyCall(query, key, value, attn_mask, is_causal, scale, enable_gqa))
            self.attention_calls += 1
            return output
        if query.dim() not in (3, 4):
            raise MovingTokensError(
                f"attention {self.attention_calls} works on tensors of {query.dim()} dimensions {tuple(query.shape)}: "
                f"attention within windows of a pyramid (Hiera) is not supported; {OTHER_WAY}"
            )
        call = from_scaled_dot_product(self.images, query, key, value, attn_mask, is_causal, scale, enable_gqa)
        self._check_images(call.images)
        output = self.visitor.attend(call)
        self.attention_calls += 1
        return output.reshape(*query.shape[:-1], value.shape[-1])

    def _multi_head(self, *args: Any, **kwargs: Any) -> Any:
        return run_multi_head_attention(self._attend, args, kwargs)

    def _softmax(
        self, function: Callable[..., Tensor], input: Tensor, dim: int | None = None, *args: Any, **kwargs: Any
    ) -> Tensor:
        if input.dim() > 4 and dim in (-1, input.dim() - 1) and isinstance(self.visitor, AnyAttention):
            dtype = kwargs.get("dtype") or next((a for a in args if isinstance(a, torch.dtype)), None)
            output = self.visitor.normalise_any(input if dtype is None else input.to(dtype))
            self._written_out = output if self._halves_values else None
            self.attention_calls += 1
            return output
        if not self._is_attention(input, dim):
            self.other_softmax.append((tuple(input.shape), dim))
            return function(input, dim, *args, **kwargs)
        dtype = kwargs.get("dtype") or next((a for a in args if isinstance(a, torch.dtype)), None)
        # Three dimensions merge images and heads; in four, more rows than images are windows, and stay apart.
        scores = input if input.dim() == 4 else input.unflatten(0, (self.images, -1))
        scores = scores if dtype is None else scores.to(dtype)
        self._check_images(scores.shape[0])
        output = self.visitor.normalise(scores)
        self._written_out = output if self._halves_values else None
        self.attention_calls += 1
        return output.reshape(input.shape)

    def _check_images(self, images: int) -> None:
        if self.attention_calls < self.chain and images < self.images:
            raise PackedBatchError(
                f"attention {self.attention_calls} runs over {images} sequence(s) for a batch of {self.images} images: "
                "the model joins the images of a batch in one sequence (as Pixtral and Qwen2-VL do); explain one image "
                "at a time, with batch_size=1 or in calls of their own"
            )

    def _is_attention(self, scores: Tensor, dim: int | None) -> bool:
        """Whether a softmax is attention written out: over the keys of (images, heads, queries, keys).

        Three dimensions count only when queries and keys are as many: others are gates over experts and the like.
        """
        if dim not in (-1, scores.dim() - 1) or scores.dim() not in (3, 4):
            return False
        if scores.dim() == 4:  # fewer than the images are given are packed, and windows a multiple
            return scores.shape[0] < self.images or not scores.shape[0] % self.images
        return not scores.shape[0] % self.images and scores.shape[-1] == scores.shape[-2] > 1

    def _linear(self, layers: int, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        # In front of it all rows are reached, and all columns but where a layer gives queries and keys as well, which a
        # constant attention reaches by its values alone: elsewhere a look at each gradient would be for nothing. Such a
        # layer is told from an MLP's by its width; a miss costs only time.
        joint = self._constant_attention and weight.shape[-1] < weight.shape[0] <= 3 * weight.shape[-1]
        return (linear if joint or self.attention_calls >= layers else F.linear)(input, weight, bias)

    def _multiply(self, function: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        # Weights have no gradient here: a product of two tensors that have one is attention of some form.
        self.products += sum(isinstance(one, Tensor) and one.requires_grad for one in args) > 1
        if self._written_out is not None:
            args = self._with_values_halved(args)
        if not self._ones or [one.dim() if isinstance(one, Tensor) else 0 for one in args] != [4, 4]:
            return function(*args, **kwargs)
        left, right = args
        if self._summary is not None and right is self._summary[0] and bool((left >= 0).all()):
            return self._linear_attention(left, *self._summary[1:])
        output = function(*args, **kwargs)
        if bool((right[..., -1] == 1).all()) and bool((left >= 0).all()):
            self._summary = output, left, right
        return output

    def _linear_attention(
        self,
        query: Float[Tensor, "images heads queries width"],
        key: Float[Tensor, "images heads width keys"],
        value: Float[Tensor, "images heads keys value_width_and_one"],
    ) -> Float[Tensor, "images heads queries value_width_and_one"]:
        """Computes q (kᵀ [v, 1]), which the model will divide by its last column, with the attention in sight.

        That is A = q kᵀ / Σ q kᵀ, where q and k are not negative; the softmax of the logarithm is this quotient.
        """
        if self._halves_values:
            raise UnsupportedAttentionError(
                f'gradient="gim" softens the softmax of attention, and attention {self.attention_calls} is linear and '
                "has none; take another gradient"
            )
        scores = query @ key
        scores = scores.detach() if self._constant_attention else scores
        self._check_images(len(scores))
        total = scores.sum(dim=-1, keepdim=True)
        attention = self.visitor.normalise(scores.clamp(min=torch.finfo(scores.dtype).tiny).log())
        self.attention_calls += 1
        return torch.cat([attention @ value[..., :-1] * total, total], dim=-1)

    def _pad(self, *args: Any, **kwargs: Any) -> Tensor:
        # Linear attention appends a column of ones to the values, whose sum its output is divided by.
        self._ones |= kwargs.get("value", args[3] if len(args) > 3 else None) == 1
        return F.pad(*args, **kwargs)

    def _with_values_halved(self, args: tuple) -> tuple:
        """The factors of A V, if it is this product, half of the gradient to V (that to A is `normalise`'s matter)."""
        assert self._written_out is not None
        memory = self._written_out.untyped_storage().data_ptr()
        attention = [isinstance(one, Tensor) and one.untyped_storage().data_ptr() == memory for one in args]
        if not any(attention):
            return args
        self._written_out = None
        pairs = zip(args, attention, strict=True)
        return tuple(one if is_a or not isinstance(one, Tensor) else half_of_gradient(one) for one, is_a in pairs)

    def _convolve(self, function: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        output = function(*args, **kwargs)
        if self.attention_calls == 0:
            self.patch_grids.append((output.shape[-2], output.shape[-1]))
        return output


def _refuse_dropout(
    function: Callable[..., Tensor], input: Tensor, p: float = 0.5, *args: Any, **kwargs: Any
) -> Tensor:
    training = args[0] if args else kwargs.get("training", kwargs.get("train", True))
    if training and p > 0:
        raise TrainingModeError(
            f"the model calls dropout({p}) in training mode, so no two maps would agree: call model.eval() first"
        )
    return function(input, p, *args, **kwargs)


def _constant_view(result: Any, args: tuple) -> Any:
    """A transposed weight (`weight.T`) is as constant as the weight, though it comes by attribute and not by a call."""
    if not isinstance(result, Tensor) or not result.requires_grad or not args or result is args[0]:
        return result
    return result.detach() if isinstance(args[0], Tensor) and args[0].is_leaf else result


def _without_gradient(argument: Any) -> Any:
    """A parameter as a constant: leaves that ask for a gradient are weights, never activations."""
    if isinstance(argument, Tensor):
        return argument.detach() if argument.requires_grad and argument.is_leaf else argument
    if type(argument) in (list, tuple):
        return type(argument)(_without_gradient(item) for item in argument)
    return argument
