"""Checks the words of a question, before any image is looked at, and fills in the defaults."""

from typing import Any, NamedTuple

from .attention.gradient_modes import GradientMode, check_gradient_mode
from .errors import OptionError
from .methods import MethodInfo, find_method, list_methods
from .objectives import Objective, objective_name
from .targets import Wanted

__all__ = ["Setup", "settle"]


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
