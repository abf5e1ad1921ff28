"""What a model must not be doing while it is explained."""

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from ..errors import TrainingModeError

__all__ = ["refuse_training"]


def refuse_training(module: nn.Module) -> None:
    """Refuse a model whose answer is random, which learns statistics while it answers, or which recomputes its blocks.

    Gradient checkpointing (timm's `set_grad_checkpointing`) runs the blocks a second time in the backward pass, where
    their attention would no longer be seen.

    Raises:
        TrainingModeError: naming the first such module and the remedy.
    """
    for name, part in module.named_modules():
        what = f"{name or 'the model'} ({type(part).__name__})"
        if getattr(part, "grad_checkpointing", False) is True:
            raise TrainingModeError(
                f"{what} recomputes its blocks in the backward pass, which hides their attention; call "
                "model.set_grad_checkpointing(False) first"
            )
        if part.training and (_drops(part) or isinstance(part, _BatchNorm)):
            raise TrainingModeError(
                f"the model is in training mode: {what} would make its answer random or change the model; call "
                "model.eval() first"
            )


def _drops(part: nn.Module) -> bool:
    if isinstance(part, _DropoutNd):
        return part.p > 0
    if not type(part).__name__.endswith(("DropPath", "StochasticDepth", "PatchDropout")):
        return False
    rate = next((getattr(part, name) for name in ("drop_prob", "p", "prob") if hasattr(part, name)), 0.0)
    return float(rate or 0.0) > 0
