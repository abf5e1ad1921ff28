"""Taking a module as its user has it."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from inspect import Parameter, signature
from typing import Any

import torch
import torch.optim.swa_utils
from torch import Tensor, nn
from torch.export import ExportedProgram

from ..errors import ModelError
from .class_names import ClassNames, named
from .loading import SOURCES, Recognised
from .preprocess import Preprocess
from .preprocess_adapters import adapt
from .vision_model import VisionModel

__all__ = ["wrap"]

_log = logging.getLogger("vitrail")


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
    """Makes any module that takes images and returns logits explainable, without touching it.

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
    if isinstance(module, ExportedProgram):
        raise ModelError("an exported program hides the attention inside; wrap the module that it was made from")
    if not isinstance(module, nn.Module):
        raise ModelError(f'a torch.nn.Module is needed, not {type(module).__name__}; load("timm/…") takes names')
    module = _inner(module)
    known = _recognise(_wrapped(module), ask_preprocess=preprocess is None)
    told = known.output if output is None and logits_from is None else None  # by a library, not by the user
    guessed = {"class_names": class_names is None, "output": told is not None}
    return VisionModel(
        module=module,
        name=name or type(module).__name__,
        preprocess=adapt(preprocess) if preprocess is not None else known.preprocess,
        class_names=named(class_names) if class_names is not None else known.class_names,
        guessed=frozenset(name for name, left_out in guessed.items() if left_out),
        readout=readout,
        prefix=prefix,
        grid=grid,
        logits_from=logits_from,
        forward_options=dict(forward_options if forward_options is not None else known.forward_options),
        output=output or told,
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


def _recognise(module: nn.Module, *, ask_preprocess: bool) -> Recognised:
    """What the module's library tells of it, or of the one module inside that holds all of its parameters.

    PeftModel, AveragedModel, Lightning modules and `nn.Sequential(vit, nn.Softmax())` are such wrappers.
    """
    inside: nn.Module | None = module
    while inside is not None:
        for _, source in sorted(SOURCES.items()):
            if source.recognise is not None and (known := source.recognise(inside)) is not None:
                if known.preprocess is not None and ask_preprocess and _prepares_itself(module, inside, known):
                    _log.warning(
                        "%s changes the images before %s sees them, so its library's preprocessing was left out: it "
                        "might be done twice; give your own with preprocess=",
                        *(type(module).__name__, "its first layer" if inside is module else type(inside).__name__),
                    )
                    known = replace(known, preprocess=None)
                return known if inside is module else _through(module, known)
        inside = _only_child(inside)
    return Recognised()


def _prepares_itself(module: nn.Module, inside: nn.Module, known: Recognised) -> bool:
    """Whether the images are changed (normalised, say) on their way to the library's module or to its first layer."""
    assert known.preprocess is not None
    if inside is not module and _hands_on(module, inside, known.preprocess, {}) is not True:
        return True
    stem = next((part for part in inside.modules() if isinstance(part, nn.Conv2d)), None)
    options = known.forward_options if inside is module else {}
    return stem is not None and _hands_on(module, stem, known.preprocess, options) is False


def _hands_on(wrapper: nn.Module, inside: nn.Module, preprocess: Preprocess, options: Mapping[str, Any]) -> bool | None:
    """Whether the module inside is given the very images that the wrapper is given; it is stopped before it runs.

    None where it is not reached, or given something of another shape.
    """
    like = next(iter(inside.parameters()), torch.empty(0))
    rows, cols = preprocess.size
    probe = torch.rand(1, preprocess.channels, rows, cols, generator=torch.Generator().manual_seed(0)).to(like)

    def stop(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        raise _ReachedError([*args, *kwargs.values()])

    handle = inside.register_forward_pre_hook(stop, with_kwargs=True)
    try:
        with torch.no_grad():
            wrapper(probe, **options)
    except _ReachedError as reached:
        given = [one for one in reached.args[0] if isinstance(one, Tensor) and one.shape == probe.shape]
        if not given or (given[0] is not probe and probe.is_meta):
            return None
        return any(one is probe or torch.equal(one, probe) for one in given)
    except Exception:  # whatever a wrapper's own code raises
        return None
    finally:
        handle.remove()
    return None


class _ReachedError(Exception):
    """The module inside is about to run."""


def _only_child(module: nn.Module) -> nn.Module | None:
    """The child that holds all parameters, if there is one."""
    holders = [child for child in module.children() if next(child.parameters(), None) is not None]
    own = next(module.parameters(recurse=False), None)
    return holders[0] if len(holders) == 1 and own is None else None


def _through(wrapper: nn.Module, known: Recognised) -> Recognised:
    """The same without the forward options that the wrapper's own forward does not take."""
    taken = signature(wrapper.forward).parameters.values()
    if any(one.kind is Parameter.VAR_KEYWORD for one in taken):
        return known
    names = {one.name for one in taken}
    return replace(known, forward_options={k: v for k, v in known.forward_options.items() if k in names})
