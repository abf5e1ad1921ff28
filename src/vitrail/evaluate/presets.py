"""Protocols as papers have them, by name: which are asked, with which options, and how images and classes come."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from ..errors import OptionError

__all__ = ["PRESETS", "Preset", "find_preset"]


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
        summary="Accuracy on the true class of a picture beside a guide while patches go black, with the controls "
        "that tell how much of it is knowing where the guide is; wants images of two classes, such as mosaics.",
        source="Cui, Fan, Chen, Transformer Interpretability from Perspective of Attention and Gradient, Fig. 12",
    ),
)

PRESETS: Mapping[str, Preset] = MappingProxyType({preset.name: preset for preset in _ALL})


def find_preset(name: str) -> Preset:
    """The preset of that name.

    Raises:
        OptionError: for an unknown preset.

    Example:
        >>> find_preset("rise").protocols["deletion"]["fill"]
        'zero'
    """
    if name not in PRESETS:
        raise OptionError(f"no preset is called {name!r}; there are {', '.join(PRESETS)}")
    return PRESETS[name]
