"""What a run does, in full: methods, protocols and their options, the class explained, and how images are fed.

Presets are plans as papers have them, by name.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from types import MappingProxyType
from typing import Any

from ..errors import OptionError
from ..methods import find_method
from ..methods.registry import choose_methods
from ..metrics import find_protocol
from ..metrics.protocol import check_one_of

__all__ = ["FITS", "PRESETS", "TARGETS", "EvaluationPlan", "Preset", "find_preset", "make_plan"]

TARGETS = ("label", "predicted")
FITS = ("model", "squash")


@dataclass(frozen=True, kw_only=True)
class EvaluationPlan:
    """All that decides the numbers of a run, apart from the model and the data; plain values that JSON can hold.

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
        """Returns the plan as plain JSON values."""
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
) -> EvaluationPlan:
    """Returns a plan from names; what is not said is as the preset has it, and "bi" is the preset where no protocol is
    named.

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
    plan = EvaluationPlan(
        methods=ways,
        protocols=measures,
        preset=preset,
        target=target or (known.target if known else "predicted"),
        fit=fit or (known.fit if known else "model"),
        interpolation=interpolation or (known.interpolation if known and not fit else None),
        **rest,
    )
    check_one_of("target", plan.target, TARGETS)
    check_one_of("fit", plan.fit, FITS)
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


# -- presets -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Preset:
    """What stands behind a name.

    `protocols` holds the options of each protocol, and what is not named there is as the protocol has it. `target` is
    the class that is explained, "label" or "predicted". `fit`: "model", the model's own preprocessing, or "squash", the
    whole picture to the model's size, with `interpolation` (None: the model's own). `summary` is a sentence on what is
    done, `source` where that is known from.
    """

    name: str
    protocols: Mapping[str, Mapping[str, Any]] = field(hash=False)
    target: str
    fit: str
    interpolation: str | None
    summary: str
    source: str


def _options(**options: Any) -> Mapping[str, Any]:
    return MappingProxyType(options)


def _protocols(**protocols: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
    return MappingProxyType(protocols)


_ALL = (
    Preset(
        name="chefer",
        protocols=_protocols(perturbation=_options(unit="pixel", fill="black", auc="mean9")),
        target="predicted",
        fit="squash",
        interpolation="bilinear",
        summary="Accuracy on the true class while 10 % … 90 % of the pixels go black by the predicted class's map, and "
        "the mean of the nine, since the released script makes no area of them.",
        source="Chefer, Gur, Wolf 2021 (CVPR), pertubation_eval_from_hdf5.py of Transformer-Explainability",
    ),
    Preset(
        name="bi",
        protocols=_protocols(perturbation=_options(unit="pixel", fill="black", auc="bi")),
        target="predicted",
        fit="squash",
        interpolation="bilinear",
        summary="The same accuracies and the only area that was released for them: a trapezoid from the untouched "
        "image to 0 at the empty one.",
        source="Chen et al. 2023 (TMLR, Beyond Intuition), transformerinterp",
    ),
    Preset(
        name="rise",
        protocols=_protocols(
            insertion=_options(step=224, fill="blur", score="probability", target="predicted", skip=0),
            deletion=_options(step=224, fill="zero", score="probability", target="predicted", skip=0),
        ),
        target="predicted",
        fit="squash",
        interpolation="bilinear",
        summary="The predicted class's probability while 224 pixels a step appear on a blurred image, or turn to the "
        "grey of the training data's mean.",
        source="Petsiuk, Das, Saenko 2018 (BMVC), evaluation.py of RISE",
    ),
    Preset(
        name="tis",
        protocols=_protocols(
            insertion=_options(step=224, fill="blur", score="probability", target="explained", skip=1),
            deletion=_options(step=224, fill="blur", score="probability", target="explained", skip=1),
            pointing=_options(tolerance=0, largest=0.5),
            max_sensitivity=_options(samples=10, radius=0.02, space="normalised"),
        ),
        target="predicted",
        fit="squash",
        interpolation="bilinear",
        summary="Insertion and deletion both against the blurred image, 224 scores from the first step on; the "
        "pointing game without objects of half the image or more; Captum's max-sensitivity.",
        source="Englebert et al. 2023 (ICCV workshops), Transformer_Input_Sampling",
    ),
    Preset(
        name="seed",
        protocols=_protocols(stitched_perturbation=_options(fill="black", auc="bi")),
        target="label",
        fit="squash",
        interpolation=None,
        summary="Accuracy on the true class of an image next to a guide while patches go black, with the controls "
        "that tell how much of it is knowing where the guide is; wants images of two classes, such as mosaics.",
        source="Cui, Fan, Chen, Transformer Interpretability from Perspective of Attention and Gradient, Fig. 12",
    ),
    Preset(
        name="gridpg",
        protocols=_protocols(gridpg=_options(enlarge="patch"), difull=_options(enlarge="patch")),
        target="label",
        fit="model",
        interpolation=None,
        summary="The share of positive relevance in the cell of its class, with cells connected by attention and with "
        "cells disconnected; wants mosaics, best of pictures that the model is sure of.",
        source="Rao, Böhle, Schiele 2022 (CVPR), Attribution-Evaluation",
    ),
    Preset(
        name="idsds",
        protocols=_protocols(idsds=_options(cells=4, fill="zero", target="explained", score="output")),
        target="label",
        fit="model",
        interpolation=None,
        summary="Spearman's correlation of the scores of 16 cells with the drops of the class's output when each is "
        "deleted; in-domain for a model trained with such deletions, as `bestiary/deletion`.",
        source="Hesse, Schaub-Meyer, Roth 2024 (NeurIPS), idsds",
    ),
    Preset(
        name="funnybirds",
        protocols=_protocols(funnybirds=_options(dilation=5)),
        target="label",
        fit="model",
        interpolation=None,
        summary="Part by part on drawn scenes: completeness, correctness and contrastivity, and the protocols that "
        "they are made of.",
        source="Hesse, Schaub-Meyer, Roth 2023 (ICCV), funnybirds-framework",
    ),
)

PRESETS: Mapping[str, Preset] = MappingProxyType({preset.name: preset for preset in _ALL})


def find_preset(name: str) -> Preset:
    """Returns the preset of that name.

    Raises:
        OptionError: for an unknown preset.

    Example:
        >>> find_preset("rise").protocols["deletion"]["fill"]
        'zero'
    """
    if name not in PRESETS:
        raise OptionError(f"no preset is called {name!r}; there are {', '.join(PRESETS)}")
    return PRESETS[name]
