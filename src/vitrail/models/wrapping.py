"""Taking a module as its user has it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ModelError
from .class_names import ClassNames, named
from .recipes import adapt
from .sources import SOURCES, Known
from .vision_model import VisionModel

__all__ = ["wrap"]


def wrap(
    module: nn.Module,
    *,
    preprocess: Any = None,
    class_names: ClassNames | None = None,
    name: str | None = None,
    readout: str | int | Sequence | Tensor | None = None,
    prefix: int | None = None,
    grid: tuple[int, int] | None = None,
    logits_from: Callable[[Any], Tensor] | None = None,
    forward_options: Mapping[str, Any] | None = None,
    output: str | None = None,
) -> VisionModel:
    """Make any module that takes images and returns logits explainable, without touching it.

    Modules of timm, Hugging Face, torchvision and open_clip bring their preprocessing and class names along. Compiled
    and data parallel modules are replaced by the module inside, whose attention can be seen. The other arguments are
    the fields of `VisionModel`; what is left out is worked out.

    `preprocess` may also be a torchvision transform (as timm's `create_transform` makes them) or a Hugging Face image
    processor, and `class_names` a mapping from index to name. `output` says what the model's numbers are: "logits",
    "multilabel" (logits or sigmoids of labels that do not exclude each other), "probabilities", "log_probabilities",
    "scores" (free numbers) or "embedding". Probabilities and single numbers are recognised, all else is taken for
    logits.

    Raises:
        OptionError: for another word as `output`.
        ModelError: for TorchScript, whose attention is hidden, for what is no module, and for what cannot be read as
            preprocessing.

    Example:
        >>> wrap(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), class_names=["cat", "dog"]).class_index("dog")
        1
    """
    if isinstance(module, VisionModel):
        raise ModelError("this is a VisionModel already; change a field of it with dataclasses.replace")
    if not isinstance(module, nn.Module):
        raise ModelError(f'a torch.nn.Module is needed, not {type(module).__name__}; load("timm/…") takes names')
    module = _inner(module)
    known = _recognise(module)
    return VisionModel(
        module=module,
        name=name or type(module).__name__,
        preprocess=adapt(preprocess) if preprocess is not None else known.preprocess,
        class_names=named(class_names) if class_names is not None else known.class_names,
        guessed=frozenset() if class_names is not None else frozenset({"class_names"}),
        readout=readout,
        prefix=prefix,
        grid=grid,
        logits_from=logits_from,
        forward_options=dict(forward_options if forward_options is not None else known.forward_options),
        output=output or (known.output if logits_from is None else None),
        metadata={"source": "wrap", "module": f"{type(module).__module__}.{type(module).__qualname__}"},
    )


def _inner(module: nn.Module) -> nn.Module:
    """The user's own module inside what `torch.compile` and data parallel training put around it."""
    while True:
        if isinstance(module, torch.jit.ScriptModule):
            raise ModelError("TorchScript hides the attention inside; wrap the module that it was made from")
        compiled = getattr(module, "_orig_mod", None)
        if isinstance(compiled, nn.Module):
            module = compiled
        elif isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            module = module.module
        else:
            return module


def _recognise(module: nn.Module) -> Known:
    for source in SOURCES.values():
        if source.recognise is not None and (known := source.recognise(module)) is not None:
            return known
    return Known()
