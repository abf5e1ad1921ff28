"""Which part of a model is at work, told from the calls under way and not from hooks."""

import sys

from torch import nn

__all__ = ["module_at_work"]


def module_at_work(model: nn.Module) -> str:
    """The name of the innermost module of `model` whose call is under way, "" being the model itself.

    Example:
        >>> class Part(nn.Module):
        ...     def forward(self, model):
        ...         return module_at_work(model)
        >>> model = nn.Sequential(nn.Identity(), Part())
        >>> model[1](model)
        '1'
    """
    names = {id(module): name for name, module in model.named_modules()}
    frame = sys._getframe(1)
    while frame is not None:
        caller = frame.f_locals.get("self")
        if isinstance(caller, nn.Module) and id(caller) in names:
            return names[id(caller)]
        frame = frame.f_back
    return ""
