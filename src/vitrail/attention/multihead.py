"""`nn.MultiheadAttention` opened: its own code, run so that the attention inside it can be seen."""

import inspect
import types
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["bound_arguments", "run_multi_head_attention"]

_SIGNATURE = inspect.signature(F.multi_head_attention_forward)


def bound_arguments(args: tuple, kwargs: dict[str, Any], **changed: Any) -> dict[str, Any]:
    """The arguments of a call of `F.multi_head_attention_forward` by name, defaults filled in, some `changed`."""
    arguments = _SIGNATURE.bind(*args, **kwargs)
    arguments.apply_defaults()
    return {**arguments.arguments, **changed}


def run_multi_head_attention(attend: Callable[..., Tensor], args: tuple, kwargs: dict[str, Any]) -> Any:
    """Run `F.multi_head_attention_forward` with `attend` in the place of `scaled_dot_product_attention`.

    PyTorch hands this function to a `TorchFunctionMode` as one call and does not reveal the attention in it, so its own
    code object is run with globals in which nothing is overridden but the attention. Where the caller wants the
    attention weights too, they are computed by the original code beside it, without gradients.
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
