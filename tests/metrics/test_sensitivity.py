"""Max-sensitivity against a literal version, and against Captum on the same changes of the image."""

import numpy as np
import pytest
import torch
from families import FAMILIES
from metrics.asking import ask, case, summary

import vitrail
from vitrail.bridges import CaptumAttribution
from vitrail.errors import OptionError
from vitrail.metrics.robustness.max_sensitivity import boxed_noise, sensitivities


def test_the_distance_as_a_literal_loop():
    generator = np.random.default_rng(0)
    original, perturbed = generator.normal(size=(4, 4)), generator.normal(size=(5, 4, 4))
    size = sum(value**2 for row in original for value in row) ** 0.5
    expected = [
        sum((a - b) ** 2 for a, b in zip(one.flat, original.flat, strict=True)) ** 0.5 / size for one in perturbed
    ]
    found = sensitivities(torch.from_numpy(original), torch.from_numpy(perturbed))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)
    flat = sensitivities(torch.zeros(4, 4), torch.from_numpy(perturbed).float())
    np.testing.assert_allclose(flat.numpy(), np.linalg.norm(perturbed.reshape(5, -1), axis=1), rtol=1e-6)


def test_noise_fills_its_box_and_is_the_same_however_many_are_drawn():
    image = torch.zeros(3, 16, 16)
    radius = torch.tensor([0.1, 0.2, 0.4])
    noise = boxed_noise(image, 8, radius, torch.Generator().manual_seed(5))
    largest = noise.abs().amax((0, 2, 3))
    assert bool((largest <= radius).all())
    assert bool((largest > 0.99 * radius).all())
    assert noise.mean().abs() < 0.01
    again = torch.Generator().manual_seed(5)
    parts = torch.cat([boxed_noise(image, count, radius, again) for count in (3, 5)])
    torch.testing.assert_close(parts, noise, rtol=0, atol=0)


def test_the_protocol_agrees_with_captum_on_the_same_changes():
    metrics = pytest.importorskip("captum.metrics")
    model, images = FAMILIES["timm_vit"].model(), FAMILIES["timm_vit"].images(1)
    whole = vitrail.explain(model, images, 3, method="complete").scores[0]
    one = case(images[0], target=3, seed=11)
    seen = []

    def explain(question):
        seen.append(question.images)
        return vitrail.explain(model, question.images, list(question.targets), method="complete").scores

    found = {row.measure: row.value for row in ask("max_sensitivity", one, whole, explain, samples=12, radius=0.05)}
    assert [len(some) for some in seen] == [10, 2]
    changed = torch.cat(seen)
    assert float((changed - images).abs().max()) <= 0.0501

    attribute = CaptumAttribution(model, "complete").attribute
    theirs = metrics.sensitivity_max(
        attribute, images, lambda _: changed, n_perturb_samples=12, target=3, upsample=False
    )
    assert found["largest"] == pytest.approx(float(theirs), rel=1e-5)
    assert 0 < found["mean"] < found["largest"]
    table = summary("max_sensitivity", [ask("max_sensitivity", one, whole, explain)])
    assert table["max-sensitivity"].better == -1


def test_a_radius_in_pixels_is_divided_by_the_deviation_of_each_channel():
    seen = []

    def explain(question):
        seen.append(question.images)
        return torch.ones(len(question.images), 4, 4)

    white = (1.0, 3.0, 7.0)  # black is −1: the deviations are 1/2, 1/4, 1/8
    found = ask("max_sensitivity", case(white=white), torch.ones(4, 4), explain, space="pixels", radius=0.5, samples=4)
    assert [row.value for row in found] == [0.0, 0.0]
    reach = seen[0].abs().amax((0, 2, 3))
    torch.testing.assert_close(reach, torch.tensor([1.0, 2.0, 4.0]), rtol=0.01, atol=0)
    assert bool((reach <= torch.tensor([1.0, 2.0, 4.0])).all())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 0}, "samples=0 and radius=0.02 must be 1 or more and above 0"),
        ({"radius": -1}, "samples=10 and radius=-1 must be"),
        ({"space": "bytes"}, "space='bytes' is unknown; choose one of normalised, pixels"),
        ({"space": "pixels"}, "needs a model whose preprocessing is known"),
    ],
)
def test_what_makes_no_sense_is_refused(options, message):
    with pytest.raises(OptionError, match=message):
        ask("max_sensitivity", case(), torch.ones(4, 4), lambda q: torch.ones(len(q.images), 4, 4), **options)
