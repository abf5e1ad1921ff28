"""The methods by name: their traits, costs and options, what may be asked of each, and the choice of several."""

import difflib
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

from torch import Tensor

from ..attention.gradient_modes import GradientMode, check_gradient_mode
from ..errors import OptionError, UnknownMethodError
from ..objectives import Objective, objective_name
from ..targets import Wanted

__all__ = [
    "GROUPS",
    "METHODS",
    "Chosen",
    "MethodInfo",
    "choose_methods",
    "find_method",
    "list_methods",
    "passes_of",
    "register_method",
]


@dataclass(frozen=True)
class MethodInfo:
    """What is known of a method without running it.

    `signed`: scores below zero mean evidence against. `class_specific`: the map depends on the target. `passes`:
    forward (F) and backward (B) passes. `level`: "patch" or "pixel". `uses_gradient`: whether `gradient=` means
    anything. `text`: whether it also serves models of text, which it does where it goes by attention alone.
    `follows`: whether it follows tokens through windows and pyramids (`TokenLayout.graph`).
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
    follows: bool = False
    objectives: tuple[str, str] | None = None
    differentiates: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    gradient: GradientMode = "full"
    competes: bool = False

    def default_objective(self, compares: bool) -> str | None:
        """Returns the objective where none is named; None for the common one (see `objectives.default_objective`)."""
        return None if self.objectives is None else self.objectives[compares]

    def with_options(self, options: Mapping[str, Any]) -> "MethodInfo":
        """Returns the method's properties with these options."""
        if any(options.get(name) in values for name, values in self.differentiates.items()):
            return replace(self, class_specific=True, uses_gradient=True, passes=f"{self.passes} 1B")
        return self

    @property
    def reads_layer(self) -> bool:
        """Returns whether the method looks at the features of one layer, which may be named, and at nothing else."""
        return self.options.get("layer", 0) is None

    @property
    def options(self) -> dict[str, Any]:
        """Returns the method's own keyword options and their defaults."""
        parameters = list(inspect.signature(self.function).parameters.values())[1:]
        return {parameter.name: parameter.default for parameter in parameters}

    def first_layer(self, layers: int) -> int:
        """Returns the method's own `start_layer` for a model of that number of layers.

        Authors state it for a ViT-B of twelve blocks; a shallower model leaves out the same share of its blocks.

        Example:
            >>> [find_method("tam", {}).first_layer(layers) for layers in (3, 6, 12, 24)]
            [1, 2, 4, 4]
        """
        return min(self.start_layer, self.start_layer * layers // 12)

    def is_signed(self, options: dict[str, Any]) -> bool:
        """Returns whether scores below zero mean evidence against under these options: with `relu` there are none.

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
    follows: bool = False,
    objectives: tuple[str, str] | None = None,
    differentiates: Mapping[str, tuple[Any, ...]] | None = None,
    gradient: GradientMode = "full",
    competes: bool = False,
) -> Callable[[Callable], Callable]:
    """Registers a function (context, **options) -> relevance of all tokens, (images, targets, tokens), under `name`.

    A method of level "pixel" gives (images, targets, height, width) of the model's input instead.

    The first line of its docstring is the summary that the command line and the documentation show. `accepts` names
    those of `explain`'s common options, beyond the question itself, that the method heeds: "start_layer", "centred",
    "compete" (it asks about `AttributionContext.questions` scalars), "resolution" (it differentiates once, by
    `AttributionContext.differentiate`); `start_layer` is then its default for twelve
    blocks, counted from 0 (see `MethodInfo.first_layer`). `text` says that the method heeds padding
    (`AttributionContext.real`) and asks nothing of pixels or patches; `follows` that it goes by
    `AttributionContext.relevance_row`, or by the layout's token graph where there is one. `objectives`,
    `differentiates`, `gradient` and `competes` are as in `MethodInfo`.
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
            follows,
            objectives,
            dict(differentiates or {}),
            gradient,
            competes,
        )
        return function

    return register


def list_methods() -> list[MethodInfo]:
    """Returns all methods, in the order in which they were registered.

    Example:
        >>> "complete" in [info.name for info in list_methods() if info.signed]
        True
    """
    return list(METHODS.values())


def find_method(name: str, options: dict[str, Any]) -> MethodInfo:
    """Returns the method of that name or alias, once it is sure that it takes these options.

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


class Setup(NamedTuple):
    """What is settled of a question before any image is looked at."""

    info: MethodInfo
    objective: str
    gradient: GradientMode
    compete: bool


def settle(
    method: str = "complete",
    *,
    against: Wanted = None,
    objective: Objective | None = None,
    gradient: GradientMode | str | None = None,
    compete: bool | None = None,
    centred: bool = False,
    start_layer: int | None = None,
    batch_size: int | None = None,
    guided: bool = False,
    **options: Any,
) -> Setup:
    """Checks the words of a question, and fills in the defaults of the method, or of one that is `guided`.

    Raises:
        UnknownMethodError, UnknownObjectiveError, ObjectiveError, OptionError: for words that do not go together.
    """
    info = find_method(method, options)
    if not info.class_specific and (against is not None or objective is not None):
        raise OptionError(f"{info.name} is the same for every class: against= and objective= mean nothing to it")
    label = objective_name(objective or info.default_objective(against is not None), against)
    usual = gradient is None and not guided
    mode = check_gradient_mode(gradient if gradient is not None else info.gradient if usual else "full")
    _check_options(info, mode, centred, start_layer, batch_size)
    if compete:
        _check_competition(info, label, options)
    elif compete is None:
        compete = usual and info.competes and label == "logit" and not options.get("identity")
    return Setup(info, label, mode, compete)


def _check_options(
    info: MethodInfo, gradient: str, centred: bool, start_layer: int | None, batch_size: int | None
) -> None:
    if gradient != "full" and not info.uses_gradient:
        raise OptionError(f"gradient={gradient!r} changes nothing for {info.name}, which uses no gradient")
    if centred and "centred" not in info.accepts:
        raise OptionError(f"centred=True is not defined for {info.name}")
    if start_layer and "start_layer" not in info.accepts:
        raise OptionError(f"start_layer={start_layer} is not defined for {info.name}")
    if batch_size is not None and (not isinstance(batch_size, int) or batch_size < 1):
        raise OptionError(f"batch_size={batch_size!r} must be 1 or more")


def _check_competition(info: MethodInfo, objective: str, options: dict[str, Any]) -> None:
    if "compete" not in info.accepts:
        able = ", ".join(one.name for one in list_methods() if "compete" in one.accepts)
        raise OptionError(f"compete=True is not defined for {info.name}; these take it: {able}")
    if objective != "logit":
        raise OptionError(
            f"compete=True subtracts the maps of rival classes from the map of a logit, not of {objective}: leave "
            "compete=, or against= and objective=, out"
        )
    if options.get("identity"):
        raise OptionError(
            "identity=True adds the same to every patch, which hides where classes compete: leave one out"
        )


FEW = 4  # passes, forward and backward together
SILENT = {"and", "the", "of", "part", "first", "last", "block", "blocks", "block's"}  # they say which part of a pass


@dataclass(frozen=True)
class Chosen:
    """A method, and the gradient mode in which it is asked; None for the mode of all."""

    info: MethodInfo
    gradient: str | None = None

    @property
    def label(self) -> str:
        """Returns the method's name, with the gradient mode where one was named: "complete:libra"."""
        return self.info.name if self.gradient is None else f"{self.info.name}:{self.gradient}"


def passes_of(info: MethodInfo) -> int | None:
    """Passes of a method together, a pass through some blocks counted as a whole one; None where they are not fixed.

    Example:
        >>> passes_of(METHODS["complete"])
        2
    """
    count = 0
    for word in re.split(r"[\s,+]+", info.passes.strip()):
        found = re.fullmatch(r"(\d*)(F|B|LRP)", word)  # LRP: a backward pass by other rules
        if found:
            count += int(found[1] or 1)
        elif word not in SILENT:
            return None
    return count


# No group stands for these, which take minutes on every image: they must be named.
SINGLY = {"mda"}
# What can stand for several methods, each by what the registry knows of them.
GROUPS: dict[str, Callable[[MethodInfo], bool]] = {
    "all": lambda _: True,
    "fast": lambda info: (passes_of(info) or FEW + 1) <= FEW,
    "signed": lambda info: info.signed,
    "unsigned": lambda info: not info.signed,
    "class": lambda info: info.class_specific,
    "gradient": lambda info: info.uses_gradient,
    "patch": lambda info: info.level == "patch",
    "pixel": lambda info: info.level == "pixel",
}


def choose_methods(names: str | Sequence[str] = "all") -> list[Chosen]:
    """Returns the methods that are named, each once, in the order in which they are named.

    Args:
        names: names or aliases of methods, or groups: "all", "fast" (at most four passes in all), "signed", "unsigned",
            "class" (the map depends on the class), "gradient" (gradient= means something), "patch", "pixel" (the map's
            level); mda, which takes minutes, belongs to none. Several in one word are separated by commas; "-name" or
            "-group" takes methods out again; a gradient mode may follow a colon, as in "complete:libra".

    Raises:
        UnknownMethodError: for a name that is neither a method nor a group.
        OptionError: when no method is left, and for a gradient mode that means nothing.

    Example:
        >>> [one.label for one in choose_methods("raw,gae,complete:libra,-raw")]
        ['gae', 'complete:libra']
    """
    words = [names] if isinstance(names, str) else names
    chosen: dict[str, Chosen] = {}
    for word in (part.strip() for text in words for part in text.split(",")):
        if not word:
            continue
        name, _, mode = word.removeprefix("-").partition(":")
        if word.startswith("-"):
            out = {one.name for one in _named(name)}
            chosen = {label: one for label, one in chosen.items() if one.info.name not in out}
            continue
        gradient = check_gradient_mode(mode) if mode else None
        for info in _named(name):
            if gradient is not None and gradient != "full" and not info.uses_gradient:
                raise OptionError(f"{word}: {info.name} uses no gradient, so {gradient!r} changes nothing")
            one = Chosen(info, gradient)
            chosen.setdefault(one.label, one)
    if not chosen:
        raise OptionError(f"methods={names!r} names no method; there are {', '.join(METHODS)}, and {', '.join(GROUPS)}")
    return list(chosen.values())


def _named(name: str) -> list[MethodInfo]:
    """Returns the methods of a group, or the one of that name."""
    if name in GROUPS and name not in METHODS:
        return [info for info in list_methods() if GROUPS[name](info) and info.name not in SINGLY]
    return [find_method(name, {})]
