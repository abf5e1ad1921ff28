"""Modules reached by their name or their place, and what they are given or return, for the time of a block.

Attention is found by function; a layer that a person names, or the blocks of a model, can only be found as modules.
The hooks are taken off when the block ends, also after an exception. They act in the thread that put them there: a
module may be asked by several at once, and none may see or replace what passes in another.
"""

import difflib
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from ..errors import OptionError

__all__ = ["See", "at_input", "at_output", "find_module", "running_module", "tokens_first"]

See: TypeAlias = Callable[[Tensor], Tensor]


def find_module(root: nn.Module, name: str) -> nn.Module:
    """Returns the module of that dotted name, as `named_modules` has it.

    Raises:
        OptionError: when there is none, with the names nearest to it.

    Example:
        >>> find_module(nn.Sequential(nn.Linear(2, 3), nn.GELU()), "1")
        GELU(approximate='none')
    """
    modules = dict(root.named_modules())
    if name in modules and name:
        return modules[name]
    names = [known for known in modules if known]
    near = difflib.get_close_matches(name, names, n=5, cutoff=0.4)
    hint = f"near it: {', '.join(near)}" if near else f"there are {', '.join(names[:5])} and so on"
    raise OptionError(f"layer={name!r} is no module of this model; {hint}")


@contextmanager
def at_output(module: nn.Module, see: See) -> Iterator[None]:
    """Within the block, the first tensor that the module returns passes through `see`, which may replace it."""
    thread = threading.get_ident()

    def hook(_part: nn.Module, _args: Any, output: Any) -> Any:
        if threading.get_ident() != thread:
            return None
        with torch._C.DisableTorchFunction():
            return _through(output, see)

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def at_input(module: nn.Module, see: See) -> Iterator[None]:
    """Within the block, the first tensor that the module is given passes through `see`, which may replace it."""
    thread = threading.get_ident()

    # Another thread that runs the module may find the hook before PyTorch has noted that it takes keywords.
    def hook(
        _part: nn.Module, args: tuple, kwargs: dict[str, Any] | None = None
    ) -> tuple[tuple, dict[str, Any]] | None:
        if threading.get_ident() != thread or kwargs is None:
            return None
        with torch._C.DisableTorchFunction():
            if any(isinstance(argument, Tensor) for argument in args):
                return _through(args, see), kwargs
            return args, _through(kwargs, see)

    handle = module.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _through(values: Any, see: See) -> Any:
    """The same structure, with its first floating point tensor passed through `see`."""
    if isinstance(values, Tensor):
        return see(values)
    items = values.items() if isinstance(values, Mapping) else enumerate(values) if _is_row(values) else ()
    for key, value in items:
        if isinstance(value, Tensor) and value.is_floating_point():
            seen = see(value)
            if isinstance(values, Mapping):
                return type(values)(**{**values, key: seen})  # an output object of Hugging Face keeps its kind
            return type(values)(seen if index == key else old for index, old in enumerate(values))
    return values


def _is_row(values: Any) -> bool:
    return type(values) in (tuple, list)


def tokens_first(tensor: Tensor, images: int, tokens: int) -> Tensor | None:
    """Returns a (images, tokens, width) view of a tensor in that order or with the tokens first; None for any other
    shape.
    """
    if tensor.dim() != 3 or not tensor.is_floating_point():
        return None
    if tensor.shape[:2] == (images, tokens):
        return tensor
    return tensor.transpose(0, 1) if tensor.shape[:2] == (tokens, images) else None


def running_module(root: nn.Module) -> tuple[str, nn.Module] | None:
    """Returns the dotted name and the innermost module of `root` whose forward is running, None where none is.

    Example:
        >>> class Part(nn.Module):
        ...     def forward(self, model):
        ...         return running_module(model)[0]
        >>> model = nn.Sequential(nn.Identity(), Part())
        >>> model[1](model)
        '1'
    """
    names = {id(part): name for name, part in root.named_modules()}
    frame = sys._getframe(1)
    while frame is not None:
        part = frame.f_locals.get("self")
        if isinstance(part, nn.Module) and id(part) in names:
            return names[id(part)], part
        frame = frame.f_back
    return None
