"""The methods by name: what each is, what it costs, which options it takes."""

import difflib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from torch import Tensor

from ..attention.gradient_modes import GradientMode
from ..errors import OptionError, UnknownMethodError

__all__ = ["METHODS", "MethodInfo", "find_method", "list_methods", "register_method"]


@dataclass(frozen=True)
class MethodInfo:
    """What is known of a method without running it.

    `signed`: scores below zero mean evidence against. `class_specific`: the map depends on the target. `passes`:
    forward (F) and backward (B) passes. `level`: "patch" or "pixel". `uses_gradient`: whether `gradient=` means
    anything. `text`: whether it also serves models of text, which it does where it goes by attention alone.
    `objectives` are what is asked without and with a class to compare with, where that is not the logit and
    the difference. With the options that `differentiates` lists (name -> values) the method uses the gradient of a
    target. `gradient` is its mode where none is named, and `competes` whether the map of a logit is then that of
    class competition.
    """

    name: str
    function: Callable[..., Tensor] = field(repr=False)
    signed: bool
    class_specific: bool
    uses_gradient: bool
    passes: str
    level: Literal["patch", "pixel"]
    summary: str
    reference: str
    aliases: tuple[str, ...] = ()
    accepts: frozenset[str] = frozenset()
    start_layer: int = 0
    text: bool = False
    objectives: tuple[str, str] | None = None
    differentiates: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    gradient: GradientMode = "full"
    competes: bool = False

    def default_objective(self, compares: bool) -> str | None:
        """The objective where none is named; None for the common one (see `objectives.default_objective`)."""
        return None if self.objectives is None else self.objectives[compares]

    def with_options(self, options: Mapping[str, Any]) -> "MethodInfo":
        """What is known of the method with these options."""
        if any(options.get(name) in values for name, values in self.differentiates.items()):
            return replace(self, class_specific=True, uses_gradient=True, passes=f"{self.passes} 1B")
        return self

    @property
    def reads_layer(self) -> bool:
        """Whether the method looks at the features of one layer, which may be named, and at nothing else."""
        return self.options.get("layer", 0) is None

    @property
    def options(self) -> dict[str, Any]:
        """The method's own keyword options and their defaults."""
        parameters = list(inspect.signature(self.function).parameters.values())[1:]
        return {parameter.name: parameter.default for parameter in parameters}

    def first_layer(self, layers: int) -> int:
        """The method's own `start_layer` for a model of that number of layers.

        Authors state it for a ViT-B of twelve blocks; a shallower model leaves out the same share of its blocks.

        Example:
            >>> [find_method("tam", {}).first_layer(layers) for layers in (3, 6, 12, 24)]
            [1, 2, 4, 4]
        """
        return min(self.start_layer, self.start_layer * layers // 12)

    def is_signed(self, options: dict[str, Any]) -> bool:
        """Whether scores below zero mean evidence against under these options: with `relu` there are none.

        Example:
            >>> info = find_method("gradcam", {})
            >>> info.is_signed({}), info.is_signed({"relu": True})
            (True, False)
        """
        if "relu" in self.options and self.class_specific:
            return not options.get("relu", self.options["relu"])
        return self.signed


METHODS: dict[str, MethodInfo] = {}


def register_method(
    name: str,
    *,
    signed: bool,
    class_specific: bool,
    uses_gradient: bool,
    passes: str,
    reference: str,
    level: Literal["patch", "pixel"] = "patch",
    aliases: tuple[str, ...] = (),
    accepts: tuple[str, ...] = (),
    start_layer: int = 0,
    text: bool = False,
    objectives: tuple[str, str] | None = None,
    differentiates: Mapping[str, tuple[Any, ...]] | None = None,
    gradient: GradientMode = "full",
    competes: bool = False,
) -> Callable[[Callable], Callable]:
    """Register a function (context, **options) -> relevance of all tokens, (images, targets, tokens), under `name`.

    A method of level "pixel" gives (images, targets, height, width) of the model's input instead.

    The first line of its docstring is the summary that the command line and the documentation show. `accepts` names
    those of `explain`'s common options, beyond the question itself, that the method heeds: "start_layer", "centred",
    "compete" (it asks about `AttributionContext.questions` scalars); `start_layer` is then its default for twelve
    blocks, counted from 0 (see `MethodInfo.first_layer`). `text` says that the method heeds padding
    (`AttributionContext.real`) and asks nothing of pixels or patches. `objectives`, `differentiates`, `gradient` and
    `competes` are as in `MethodInfo`.
    """

    def register(function: Callable) -> Callable:
        summary = (function.__doc__ or "").strip().splitlines()[0]
        METHODS[name] = MethodInfo(
            name,
            function,
            signed,
            class_specific,
            uses_gradient,
            passes,
            level,
            summary,
            reference,
            aliases,
            frozenset(accepts),
            start_layer,
            text,
            objectives,
            dict(differentiates or {}),
            gradient,
            competes,
        )
        return function

    return register


def list_methods() -> list[MethodInfo]:
    """All methods, in the order in which they were registered.

    Example:
        >>> "complete" in [info.name for info in list_methods() if info.signed]
        True
    """
    return list(METHODS.values())


def find_method(name: str, options: dict[str, Any]) -> MethodInfo:
    """The method of that name or alias, once it is sure that it takes these options.

    Raises:
        UnknownMethodError: when no method is called so.
        OptionError: for an option that the method does not know.
    """
    for info in METHODS.values():
        if name == info.name or name in info.aliases:
            unknown = sorted(set(options) - set(info.options))
            if unknown:
                takes = ", ".join(info.options) or "no options of its own"
                raise OptionError(f"method {name!r} does not know {', '.join(unknown)}; it takes {takes}")
            return info.with_options(options)
    # Hyphens, capitals and letters that were mistaken: attn-gradcam, GradCAM, complet.
    known = {word: info.name for info in METHODS.values() for word in (info.name, *info.aliases)}
    near = difflib.get_close_matches(str(name).lower().replace("-", "_"), known, n=2, cutoff=0.6)
    meant = f"did you mean {' or '.join(dict.fromkeys(known[one] for one in near))}? " if near else ""
    raise UnknownMethodError(f"no method is called {name!r}; {meant}there are {', '.join(METHODS)}")
