"""Taking a module as its user has it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from inspect import Parameter, signature
from typing import Any

import torch
import torch.optim.swa_utils
from torch import Tensor, nn

from ..errors import ModelError
from .class_names import ClassNames, named
from .preprocess import Preprocess
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

    `preprocess` may be the transform that the model is evaluated with: of torchvision (v1 and v2), timm, open_clip or
    Albumentations, any function from a PIL image, tensor or array to the model's input, or a Hugging Face image
    processor. `class_names` may be a mapping from index to name. `output` says what the model's numbers are: "logits",
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
    known = _recognise(_wrapped(module))
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


def _wrapped(module: nn.Module) -> nn.Module:
    """The library's module inside an average of weights or a set of adapters, which take and give what it does."""
    if isinstance(module, torch.optim.swa_utils.AveragedModel):
        return _wrapped(module.module)
    if any(base.__module__.startswith("peft.") and base.__name__ == "PeftModel" for base in type(module).__mro__):
        inner = getattr(module, "get_base_model", lambda: module)()
        return inner if isinstance(inner, nn.Module) else module
    return module


def _recognise(module: nn.Module) -> Known:
    """What the module's library tells of it, or of the one module inside that holds all of its parameters.

    PeftModel, AveragedModel, Lightning modules and `nn.Sequential(vit, nn.Softmax())` are such wrappers.
    """
    inside: nn.Module | None = module
    while inside is not None:
        for source in SOURCES.values():
            if source.recognise is not None and (known := source.recognise(inside)) is not None:
                return known if inside is module else _through(module, inside, known)
        inside = _only_child(inside)
    return Known()


def _hands_on(wrapper: nn.Module, inside: nn.Module, preprocess: Preprocess) -> bool:
    """Whether the module inside is given the very images that the wrapper is given; it is stopped before it runs."""
    like = next(iter(inside.parameters()), torch.empty(0))
    rows, cols = preprocess.size
    probe = torch.rand(1, preprocess.channels, rows, cols).to(like)

    def stop(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        raise _ReachedError([*args, *kwargs.values()])

    handle = inside.register_forward_pre_hook(stop, with_kwargs=True)
    try:
        with torch.no_grad():
            wrapper(probe)
    except _ReachedError as reached:
        given = [one for one in reached.args[0] if isinstance(one, Tensor)]
        return any(one is probe or (not one.is_meta and torch.equal(one, probe)) for one in given)
    except Exception:  # whatever a wrapper's own code raises: then it is not one that only hands on
        return False
    finally:
        handle.remove()
    return False


class _ReachedError(Exception):
    """The module inside is about to run."""


def _only_child(module: nn.Module) -> nn.Module | None:
    """The child that holds all parameters, if there is one."""
    holders = [child for child in module.children() if next(child.parameters(), None) is not None]
    own = next(module.parameters(recurse=False), None)
    return holders[0] if len(holders) == 1 and own is None else None


def _through(wrapper: nn.Module, inside: nn.Module, known: Known) -> Known:
    """The same without the forward options that the wrapper's own forward does not take.

    A wrapper that does something to the images before it hands them on (which normalises them itself, say) would see
    them prepared twice: it comes without preprocessing.
    """
    if known.preprocess is not None and not _hands_on(wrapper, inside, known.preprocess):
        known = replace(known, preprocess=None)
    taken = signature(wrapper.forward).parameters.values()
    if any(one.kind is Parameter.VAR_KEYWORD for one in taken):
        return known
    names = {one.name for one in taken}
    return replace(known, forward_options={k: v for k, v in known.forward_options.items() if k in names})
