"""The presets name protocols and options that exist, and nobody can change them."""

from dataclasses import FrozenInstanceError

import pytest

from vitrail.errors import OptionError
from vitrail.evaluate.plan import PRESETS, find_preset
from vitrail.metrics import PROTOCOLS, find_protocol


@pytest.mark.parametrize("name", PRESETS)
def test_each_names_options_that_its_protocols_have(name):
    preset = find_preset(name)
    assert preset.name == name
    assert preset.target in ("label", "predicted")
    assert preset.fit in ("model", "squash")
    assert preset.interpolation in (None, "bilinear", "bicubic")
    assert preset.summary.endswith(".")
    assert preset.source
    for protocol, options in preset.protocols.items():
        info = find_protocol(protocol, options)
        for option, value in options.items():
            assert type(value) is type(info.options[option])


def test_they_are_what_their_papers_have():
    assert list(PRESETS) == ["chefer", "bi", "rise", "tis", "seed", "gridpg", "idsds", "funnybirds"]
    perturbation = {name: PRESETS[name].protocols["perturbation"] for name in ("chefer", "bi")}
    assert {name: options["auc"] for name, options in perturbation.items()} == {"chefer": "mean9", "bi": "bi"}
    assert all((options["unit"], options["fill"]) == ("pixel", "black") for options in perturbation.values())
    fills = {
        name: {p: PRESETS[name].protocols[p]["fill"] for p in ("insertion", "deletion")} for name in ("rise", "tis")
    }
    assert fills == {
        "rise": {"insertion": "blur", "deletion": "zero"},
        "tis": {"insertion": "blur", "deletion": "blur"},
    }
    assert PRESETS["tis"].protocols["deletion"]["skip"] == 1
    assert PRESETS["seed"].target == "label"


def test_they_cannot_be_changed():
    preset = find_preset("bi")
    with pytest.raises(FrozenInstanceError):
        preset.target = "label"
    with pytest.raises(TypeError):
        preset.protocols["perturbation"] = {}
    with pytest.raises(TypeError):
        preset.protocols["perturbation"]["auc"] = "mean9"
    with pytest.raises(TypeError):
        PRESETS["bi"] = preset


def test_an_unknown_name_is_refused():
    with pytest.raises(OptionError, match="no preset is called 'paper'; there are chefer, bi, rise, tis, seed, gr"):
        find_preset("paper")
    assert "perturbation" in PROTOCOLS
