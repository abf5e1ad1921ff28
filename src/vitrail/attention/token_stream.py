"""The stream of tokens through an unmodified model: where it can be cut, and what each block leaves in it.

A call of PyTorch is a waist when everything that is computed of the image later goes through its result alone. In a
Vision Transformer these are the sums of the residual stream: the tokens with their positions in front of the first
block, and the tokens that each block leaves. They are found by watching which call uses which tensor; no module is
known by name.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Float
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from .tap import Tap
from .watchers import NORMS

__all__ = ["Place", "StreamWatcher", "TokenStream", "name_of", "tensors_in"]


@dataclass(frozen=True)
class Place:
    """A call in a forward pass: its index among those that give a tensor, its function, and the axis of tokens."""

    number: int
    function: Callable[..., Any]
    axis: int


@dataclass(frozen=True, eq=False)
class TokenStream:
    """What one pass of one image showed. None where the model has no such place.

    `entry` is the last waist before the first attention, `ending` the first one after the last attention; `blocks` are
    the residual streams after each block, `norm` what the last norm before the last block's attention gave.
    """

    entry: Place | None
    ending: Place | None
    blocks: tuple[Float[Tensor, "tokens width"] | None, ...]
    norm: Float[Tensor, "tokens width"] | None


@dataclass(eq=False)
class _Call:
    function: Callable[..., Any]
    sources: frozenset[int]
    axis: int | None
    attends: bool
    output: Tensor | None = None
    norm: Tensor | None = None


@dataclass(eq=False)
class StreamWatcher(TorchFunctionMode):
    """Notes which call uses what; enter it inside the block of `tap`. One image at a time, without gradients."""

    tap: Tap
    tokens: int
    image: Tensor
    _calls: list[_Call] = field(default_factory=list)
    _norm: Tensor | None = None

    def __post_init__(self) -> None:
        super().__init__()
        # Which call gave a tensor that depends on the image; −1 is the image itself.
        self._giver = WeakTensorKeyDictionary()
        self._giver[self.image] = -1

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        before = self.tap.attention_calls
        result = func(*args, **kwargs)
        outputs = list(tensors_in(result))
        if not outputs:
            return result
        given = list(tensors_in((args, kwargs)))
        sources = frozenset(self._giver[tensor] for tensor in given if tensor in self._giver)
        call = _Call(func, sources, None, self.tap.attention_calls > before)
        self._calls.append(call)
        if call.attends:
            call.norm = self._norm
        if not sources:
            return result
        axis = self._axis(outputs[0]) if len(outputs) == 1 else None
        # An operation that returns its input (dropout at rest) makes nothing new; one in place (`x += y`) does.
        same = any(outputs[0] is tensor for tensor in given)
        if axis is not None and (not same or _in_place(func)):
            call.axis = axis
            if func in NORMS:
                self._norm = outputs[0]
            elif len(sources) > 1:
                call.output = outputs[0]
        for output in outputs:
            if not same or call.axis is not None:
                self._giver[output] = len(self._calls) - 1
        return result

    def stream(self, self_attentions: int, attentions: int) -> TokenStream:
        """Returns the observed stream, given the number of attention calls that the logits depend on, pooling ones
        included.
        """
        waists = list(self._waists())
        at = [number for number, call in enumerate(self._calls) if call.attends][:attentions]
        entry = next((number for number in reversed(waists) if number < at[0]), None)
        last = at[self_attentions - 1]
        ending = next((number for number in waists if number > at[-1]), None) if at[-1] == last else None
        blocks = []
        for number, here in enumerate(at[:self_attentions]):
            until = at[number + 1] if number + 1 < len(at) else len(self._calls)
            outputs = (self._calls[n].output for n in waists if here < n < until)
            sums = [output for output in outputs if output is not None]
            blocks.append(self._tokens_first(sums[-1]) if sums else None)
        norm = self._calls[last].norm
        return TokenStream(
            None if entry is None else self._place(entry),
            None if ending is None else self._place(ending),
            tuple(blocks),
            None if norm is None else self._tokens_first(norm),
        )

    def _waists(self) -> Iterator[int]:
        """Calls whose result is all tokens, and of which, or of later ones, every later call is made."""
        oldest = len(self._calls)
        waists = []
        for number in reversed(range(len(self._calls))):
            call = self._calls[number]
            if call.axis is not None and oldest >= number:
                waists.append(number)
            oldest = min([oldest, *call.sources])
        return reversed(waists)

    def _place(self, number: int) -> Place:
        call = self._calls[number]
        assert call.axis is not None
        return Place(number, call.function, call.axis)

    def _axis(self, tensor: Tensor) -> int | None:
        shape = tensor.shape
        if tensor.dim() != 3 or sorted(shape[:2]) != sorted((1, self.tokens)) or not tensor.is_floating_point():
            return None
        return 1 if shape[1] == self.tokens else 0

    def _tokens_first(self, tensor: Tensor) -> Tensor:
        return tensor.detach().squeeze(1 - (self._axis(tensor) or 0))


def _in_place(function: Callable[..., Any]) -> bool:
    """`x += y`, and `x.add_(y)`, which some write for it."""
    name = name_of(function)
    return name.startswith("__i") or (name.endswith("_") and not name.endswith("__"))


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Returns the tensors in a nest of tuples, lists and dictionaries."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from tensors_in(item)
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_in(item)


def name_of(function: Callable[..., Any]) -> str:
    """Returns the name of one of PyTorch's functions, or "?" for a nameless one."""
    return getattr(function, "__name__", "?")
