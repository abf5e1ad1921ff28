"""What a model must not be doing while it is explained, and what is said of it when its own code fails."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from copy import deepcopy
from inspect import signature
from traceback import walk_tb
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from ..errors import ForwardError, ModelError, NoAttentionError, TrainingModeError, UnsupportedAttentionError

__all__ = ["model_errors", "ran_out", "refuse_replaced", "refuse_training", "takes_no_images"]

_EXPORTED = re.compile(r"aten\.\w*(attention|softmax)")

# What PyTorch says, and what helps.
_REMEDIES = (
    ("Inference tensors", "something in it comes from torch.inference_mode(): use torch.no_grad() there instead"),
    ("inference tensor", "something in it comes from torch.inference_mode(): use torch.no_grad() there instead"),
    ("on the same device", "its parts lie on several devices: bring them to one with module.to(device)"),
    ("is on meta", "some of its weights were never loaded"),
    ("meta tensor", "some of its weights were never loaded"),
    ("Checkpoint", "it recomputes its blocks in the backward pass: turn gradient checkpointing off"),
    ("Guard failed", "an exported program takes only the shapes it was made with: give the module it was made from"),
    ("Expected input", "an exported program takes only the shapes it was made with: give the module it was made from"),
    ("Float8", "8-bit floats cannot be computed with here: bring it to another type with module.to(torch.bfloat16)"),
    ("same dtype", "its weights are of several types: bring them to one with module.float()"),
    ("to have the same", "its weights are of several types: bring them to one with module.float()"),
)

# How PyTorch words it where it has no exception of its own for it: on the CPU, on Apple's GPUs, in cuBLAS.
_OUT_OF_MEMORY = ("can't allocate memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


def ran_out(error: BaseException) -> bool:
    """Returns whether the error says that memory has run out, on any device.

    Example:
        >>> ran_out(torch.OutOfMemoryError()), ran_out(RuntimeError("DefaultCPUAllocator: can't allocate memory"))
        (True, True)
        >>> ran_out(RuntimeError("shapes disagree"))
        False
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _OUT_OF_MEMORY)


@contextmanager
def model_errors(name: str, module: nn.Module, images: bool = True) -> Iterator[None]:
    """In this block, whatever a model's own code raises becomes a `ForwardError` that names the part and the cause.

    `images` says that it was given images, and not texts.
    Vitrail's own errors pass, and so does memory that has run out, which may be answered by a smaller batch.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, NoAttentionError | UnsupportedAttentionError) and (cause := patched(module)):
            raise type(error)(f"{error}; {cause}") from error
        if type(error).__module__.partition(".")[0] == "vitrail" or ran_out(error):
            raise
        said = (str(error).strip().splitlines() or [""])[0][:300]
        remedy = next(
            (remedy for words, remedy in _REMEDIES if words in str(error) or words in type(error).__name__),
            takes_no_images(module, error) if images else "",
        )
        clauses = [f"{_part(module, error.__traceback__)} raised {type(error).__name__}{f': {said}' if said else ''}"]
        clauses += [remedy] if remedy else []
        clauses += [cause] if (cause := patched(module)) else []
        raise ForwardError(f"{name} cannot be run: {'; '.join(clauses)}") from error


def takes_no_images(module: nn.Module, error: Exception) -> str:
    """Returns the other arguments of a module's forward, where they explain its error, and the remedy; else ""."""
    try:
        names = list(signature(module.forward).parameters)
    except (TypeError, ValueError):  # a forward that is no Python
        return ""
    first, by_name = names[0] if names else "", "wrap it in a module whose forward(images) calls it by name, as in"
    if "spatial_shapes" in names:
        return (
            "it takes patches that its processor cuts out, and not images: wrap it in a module whose forward(images) "
            "cuts them and gives pixel_attention_mask and spatial_shapes along"
        )
    if first == "input_values":
        return f"it takes spectrograms: {by_name} model(input_values=images[:, 0])"
    if first == "input_ids" and "pixel_values" in names:
        return f"it takes texts first: {by_name} model(pixel_values=images, input_ids=…)"
    if first == "input_ids":
        return "it takes whole numbers that stand for words or colours, and no gradient leads from them to an image"
    if first == "pixel_values_videos" or "expected 5, got 4" in str(error):
        return f"it takes videos: {by_name} model({first}=images.unflatten(1, (-1, 3))), which makes frames of channels"
    return ""


def _part(module: nn.Module, traceback: TracebackType | None) -> str:
    """The innermost part of the module in which an error was raised, by name and kind."""
    names = {id(part): name for name, part in module.named_modules()}
    found, kind = "", type(module).__name__
    for frame, _ in walk_tb(traceback):
        part = frame.f_locals.get("self")
        if isinstance(part, nn.Module) and id(part) in names:
            found, kind = names[id(part)], type(part).__name__
    return f"its part {found} ({kind})" if found else f"its forward ({kind})"


def patched(module: nn.Module) -> str:
    """Returns whose code has replaced a part's `forward` in this process, and the remedy; "" where none has.

    Libraries that replace methods of other libraries' classes do so for every model of the process.
    """
    for kind, _ in _replaced(module):
        return (
            f"{kind.forward.__module__} has replaced the forward of {kind.__name__} in this process: explain the model "
            "in a process where it has not"
        )
    return ""


def _rounds_its_input(part: nn.Linear) -> bool:
    """Whether a layer whose weight is another library's tensor passes no gradient on to its input."""
    weight = part.weight.detach()
    if type(weight) is torch.Tensor:
        return False
    with suppress(Exception), torch.enable_grad():  # a tensor that does not bear being asked is no reason to refuse
        probe = torch.ones(1, part.in_features, dtype=weight.dtype, device=weight.device, requires_grad=True)
        return not nn.functional.linear(probe, weight).requires_grad
    return False


def _replaced(module: nn.Module) -> list[tuple[type[nn.Module], nn.Module]]:
    """The classes whose forward another library has replaced, each with a part of that class."""
    found = []
    for kind, part in {type(part): part for part in module.modules()}.items():
        owners = {base.__module__.partition(".")[0] for base in kind.__mro__}
        author = getattr(kind.forward, "__module__", None) or ""
        if author and author.partition(".")[0] not in owners and not author.startswith(("torch.", "vitrail")):
            found.append((kind, part))
    return found


def refuse_replaced(module: nn.Module, run: Callable[[], object]) -> None:
    """Refuses a module with a part whose forward another library has replaced by one with another gradient.

    Libraries for LRP do so (LXT, HiLRP), and leave the numbers as they are. The gradient is compared with differences
    of the part's output, at what it is given when `run` sends something through the module.

    Raises:
        ModelError: naming the class, and whose code has replaced it.
    """
    given: dict[type[nn.Module], tuple[nn.Module, tuple, dict[str, Any]]] = {}

    def note(part: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        given.setdefault(type(part), (part, args, kwargs))

    handles = [
        part.register_forward_pre_hook(note, with_kwargs=True)
        for kind, _ in _replaced(module)
        for part in module.modules()
        if type(part) is kind
    ]
    if not handles:
        return
    try:
        with torch.no_grad():
            run()
    finally:
        for handle in handles:
            handle.remove()
    for kind, (part, args, kwargs) in given.items():
        if (off := _off(part, args, kwargs)) > 0.01:
            raise ModelError(
                f"{kind.forward.__module__} has replaced the forward of {kind.__name__} in this process by one whose "
                f"gradient is not the derivative ({off:.0%} off), as libraries for LRP do, so every map would be "
                "another: explain the model in a process where it has not"
            )


def _off(part: nn.Module, args: tuple, kwargs: dict[str, Any]) -> float:
    """How far a part's gradient is from the differences of its output (relative); 0 where neither can be had."""
    names: list[Any] = [*range(len(args)), *kwargs]
    values = [one.double() if _is_float(one) else one for one in (*args, *kwargs.values())]
    at = next((i for i, one in enumerate(values) if _is_float(one)), None)
    if at is None:
        return 0.0
    generator = torch.Generator().manual_seed(0)

    def draw(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like.device)

    def call(value: Tensor) -> Tensor:
        now = [*values[:at], value, *values[at + 1 :]]
        found = copy(*now[: len(args)], **dict(zip(names[len(args) :], now[len(args) :], strict=True)))
        return next(one for one in (found if isinstance(found, tuple | list) else [found]) if _is_float(one))

    try:
        copy = deepcopy(part).double()
        with torch.enable_grad():
            point = values[at].detach().clone().requires_grad_()
            output = call(point)
            weights, gradient = draw(output), torch.zeros_like(point)
            if output.requires_grad:
                (gradient,) = torch.autograd.grad((output * weights).sum(), point)
        with torch.no_grad():
            steps = [1e-5 * values[at].std() * draw(point) for _ in range(8)]
            seen = torch.stack([((call(point + step) - call(point - step)) * weights).sum() / 2 for step in steps])
            said = torch.stack([(gradient * step).sum() for step in steps])
    except Exception:  # whatever a foreign forward does when it is called apart
        return 0.0
    return float((said - seen).norm() / seen.norm().clamp(min=torch.finfo(torch.float64).tiny))


def _is_float(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def refuse_training(module: nn.Module) -> None:
    """Refuses a model whose answer is random, which learns statistics while it answers, or which recomputes its blocks.

    Gradient checkpointing (timm's `set_grad_checkpointing`, Hugging Face's in training mode) runs the blocks a second
    time in the backward pass, where their attention would no longer be seen. Weights that cannot take part in a
    gradient at all are refused too.

    Raises:
        TrainingModeError: naming the first such module and the remedy.
        ModelError: for weights without numbers, of integers, or made under `torch.inference_mode()`.
    """
    for name, part in module.named_modules():
        if _is_set(part, "grad_checkpointing"):
            raise TrainingModeError(
                f"{_called(name, part)} recomputes its blocks in the backward pass, which hides their attention; call "
                "model.set_grad_checkpointing(False) first"
            )
        if part.training and _is_set(part, "gradient_checkpointing"):
            raise TrainingModeError(
                f"{_called(name, part)} recomputes its blocks in the backward pass, which hides their attention; call "
                "model.gradient_checkpointing_disable() or model.eval() first"
            )
        if part.training and (_drops(part) or isinstance(part, _BatchNorm)):
            raise TrainingModeError(
                f"the model is in training mode: {_called(name, part)} would make its answer random or change the "
                "model; call model.eval() first"
            )
        if reason := _no_gradient(part):
            raise ModelError(f"{_called(name, part)} cannot be explained: {reason}")


def _is_set(part: nn.Module, flag: str) -> bool:
    # Not by getattr(part, …), which a module answers by an error: this runs for every part in every call.
    return vars(part).get(flag, getattr(type(part), flag, False)) is True


def _called(name: str, part: nn.Module) -> str:
    return f"{name or 'the model'} ({type(part).__name__})"


def _no_gradient(part: nn.Module) -> str:
    """Why no gradient goes through a part's own weights, and what to do; "" where it does."""
    if type(part).__module__.startswith(("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized")):
        return "quantized layers have no gradient; give the model from before torch.ao.quantization"
    if isinstance(part, GraphModule) and any(_EXPORTED.match(str(node.target)) for node in part.graph.nodes):
        return "the attention of an exported program is called beneath PyTorch's functions; give the module it is from"
    # Not by named_parameters(): this runs for every part in every call.
    for name, weight in (*part._parameters.items(), *part._buffers.items()):
        if weight is None:
            continue
        if weight.is_meta:
            return f"its {name} is on the meta device and holds no numbers; load the weights first"
        if weight.is_inference():
            return (
                f"its {name} was made under torch.inference_mode(); build and load the model outside of it, or under "
                "torch.no_grad()"
            )
        if isinstance(part, nn.Linear) and name == "weight" and _rounds_its_input(part):
            return (
                f"it rounds what goes in, which has no gradient (its weight is {type(weight).__module__}."
                f"{type(weight).__name__}); quantize the weights alone, or give the model from before"
            )
        if weight.is_floating_point() and weight.dtype.itemsize == 1:
            return f"its {name} is {weight.dtype}; bring the model to a wider type, as with model.to(torch.bfloat16)"
    return ""


def _drops(part: nn.Module) -> bool:
    if isinstance(part, _DropoutNd):
        return part.p > 0
    if not type(part).__name__.endswith(("DropPath", "StochasticDepth", "PatchDropout")):
        return False
    rate = next((getattr(part, name) for name in ("drop_prob", "p", "prob") if hasattr(part, name)), 0.0)
    return float(rate or 0.0) > 0
