"""What a run does, in full: methods, protocols and their options, the class asked about, and how images are fed."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ..errors import OptionError
from ..methods import find_method
from ..methods.registry import choose_methods
from ..metrics import find_protocol
from .presets import find_preset

__all__ = ["FITS", "TARGETS", "Plan", "make_plan"]

TARGETS = ("label", "predicted")
FITS = ("model", "squash")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All that decides the numbers of a run, beside the model and the data; plain values that JSON can hold.

    `methods` and `protocols` go by name and hold the options of each (methods as "complete:libra" where a gradient mode
    is named). `target` is the class that is explained, "label" or "predicted"; `fit` how pictures come to the model's
    size: its own way, or "squash"ed whole with `interpolation`. `block` images are measured and written together,
    `batch` rows go through the model together, on `threads` threads; maps are kept of the first `keep` images.
    """

    methods: Mapping[str, Mapping[str, Any]]
    protocols: Mapping[str, Mapping[str, Any]]
    preset: str | None = None
    target: str = "predicted"
    fit: str = "model"
    interpolation: str | None = None
    seed: int = 0
    block: int = 16
    batch: int = 32
    threads: int = 1
    keep: int = 500
    notes: tuple[str, ...] = field(default=())

    def describe(self) -> dict[str, Any]:
        """The plan as plain JSON values."""
        return asdict(self)


def make_plan(
    methods: str | Sequence[str],
    protocols: Sequence[str] = (),
    *,
    preset: str | None = None,
    method_options: Mapping[str, Mapping[str, Any]] | None = None,
    protocol_options: Mapping[str, Mapping[str, Any]] | None = None,
    target: str | None = None,
    fit: str | None = None,
    interpolation: str | None = None,
    **rest: Any,
) -> Plan:
    """A plan from names; what is not said is as the preset has it, and "bi" is the preset where no protocol is named.

    `methods` as `vitrail.compare` takes them. `method_options` go by the method's name and count in all its gradient
    modes; `protocol_options` by the protocol's. `rest`: `seed`, `block`, `batch`, `threads`, `keep`.

    Raises:
        UnknownMethodError, UnknownProtocolError: for unknown names.
        OptionError: for options that a method or protocol does not have, or those of one that takes no part.

    Example:
        >>> plan = make_plan("gae,complete:libra", preset="bi")
        >>> list(plan.methods), list(plan.protocols), plan.fit
        (['gae', 'complete:libra'], ['perturbation'], 'squash')
    """
    if preset is None and not protocols:
        preset = "bi"
    known = find_preset(preset) if preset is not None else None
    names = list(protocols) or list(known.protocols if known else ())
    chosen = choose_methods(methods)
    asked_methods, asked_protocols = dict(method_options or {}), dict(protocol_options or {})
    _none_left("methods", asked_methods, [one.info.name for one in chosen])
    _none_left("protocols", asked_protocols, names)
    ways = {}
    for one in chosen:
        options = dict(asked_methods.get(one.info.name, {}))
        find_method(one.info.name, options)
        ways[one.label] = options
    measures = {}
    for name in names:
        options = dict(known.protocols.get(name, {}) if known else {}) | dict(asked_protocols.get(name, {}))
        info = find_protocol(name, options)
        measures[name] = {key: _plain(options.get(key, default)) for key, default in info.options.items()}
    plan = Plan(
        methods=ways,
        protocols=measures,
        preset=preset,
        target=target or (known.target if known else "predicted"),
        fit=fit or (known.fit if known else "model"),
        interpolation=interpolation or (known.interpolation if known and not fit else None),
        **rest,
    )
    for word, value, words in (("target", plan.target, TARGETS), ("fit", plan.fit, FITS)):
        if value not in words:
            raise OptionError(f"{word}={value!r} is unknown; choose one of {', '.join(words)}")
    for word in ("block", "batch", "threads"):
        if getattr(plan, word) < 1:
            raise OptionError(f"{word}={getattr(plan, word)} must be 1 or more")
    return plan


def _none_left(what: str, options: Mapping[str, Any], names: Sequence[str]) -> None:
    foreign = [name for name in options if name not in names]
    if foreign:
        raise OptionError(f"options are given for {', '.join(foreign)}, but the {what} are {', '.join(names)}")


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
