"""Quantus' own metrics called with our explainer, beside our measures of the same maps."""

import warnings

import numpy as np
import pytest
import torch
from families import FAMILIES

import vitrail
from vitrail.bridges import quantus_explainer
from vitrail.metrics.localisation.energy import energy_share
from vitrail.metrics.localisation.pointing import pointing_hit
from vitrail.metrics.robustness.max_sensitivity import sensitivities

FAMILY = FAMILIES["timm_vit"]
# Importing Quantus takes as long as the rest of this folder.
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def quantus():
    with warnings.catch_warnings():
        # Docstrings of Quantus 0.6 hold "\e": a warning the first time that Python compiles them.
        warnings.filterwarnings("ignore", "invalid escape sequence", DeprecationWarning)
        warnings.filterwarnings("ignore", "invalid escape sequence", SyntaxWarning)
        return pytest.importorskip("quantus")


@pytest.fixture(scope="module")
def question():
    images = FAMILY.images(6)
    boxes = torch.zeros(6, 1, 64, 64, dtype=torch.bool)
    for number, box in enumerate(boxes[:, 0]):
        box[4 * number : 4 * number + 30, 8 : 8 + 5 * number + 10] = True
    maps = vitrail.explain(FAMILY.model(), images, list(range(6))).upsample((64, 64))
    given = {
        "model": FAMILY.model().module,
        "x_batch": images.numpy(),
        "y_batch": np.arange(6),
        "s_batch": boxes.numpy(),
        "explain_func": quantus_explainer(FAMILY.model()),
        "channel_first": True,
    }
    return given, maps, boxes[:, 0]


def plain(quantus, name, **options):
    """A metric that keeps signs and scale, and says nothing."""
    given = {"abs": False, "normalise": False, "disable_warnings": True, "display_progressbar": False}
    return getattr(quantus, name)(**(given | options))


def test_the_pointing_game(quantus, question):
    given, maps, boxes = question
    ours = [pointing_hit(one, box, largest=1) for one, box in zip(maps, boxes, strict=True)]
    # At the border several enlarged pixels are equally high: for Quantus one inside is enough, we take their share.
    assert plain(quantus, "PointingGame")(**given) == [hit > 0 for hit in ours]
    alone = [int((one == one.max()).sum()) == 1 for one in maps]
    assert {hit for hit, only in zip(ours, alone, strict=True) if only} <= {0.0, 1.0}
    assert {0.0, 1.0} <= set(ours)


@pytest.mark.parametrize("sign", ["absolute", "positive"])
def test_the_energy_game_under_both_its_names(quantus, question, sign):
    given, maps, boxes = question
    ours = [energy_share(one, box, sign) for one, box in zip(maps, boxes, strict=True)]
    explain_func = given["explain_func"]
    if sign == "positive":
        given = {**given, "explain_func": lambda **asked: explain_func(**asked).clip(min=0)}
    mass = plain(quantus, "RelevanceMassAccuracy", abs=True)(**given)
    np.testing.assert_allclose(mass, ours, rtol=1e-4)
    inside = plain(quantus, "AttributionLocalisation", abs=True, positive_attributions=False)(**given)
    np.testing.assert_allclose(inside, ours, rtol=1e-4)


def test_max_sensitivity(quantus, question):
    given, maps, _ = question
    given = {key: value for key, value in given.items() if key != "s_batch"}
    seen = []

    def noise(arr, indices, **_):
        changed = arr + np.random.default_rng(len(seen)).uniform(-0.2, 0.2, arr.shape).astype(np.float32)
        seen.append(torch.from_numpy(changed.reshape(6, 3, 64, 64)))
        return changed

    found = plain(quantus, "MaxSensitivity", nr_samples=3, perturb_func=noise)(**given)
    moved = [vitrail.explain(FAMILY.model(), images, list(range(6))).upsample((64, 64)) for images in seen]
    ours = [float(sensitivities(maps[i], torch.stack([one[i] for one in moved])).max()) for i in range(6)]
    assert len(seen) == 3
    np.testing.assert_allclose(found, ours, rtol=1e-4)
