"""Our methods called by Captum's own metrics, and what the bridge for Quantus gives without it."""

import numpy as np
import pytest
import torch
from families import FAMILIES

import vitrail
from vitrail.bridges import CaptumAttribution, quantus_explainer
from vitrail.errors import ModelError, OptionError, TargetCountError, TargetError, UnknownMethodError
from vitrail.metrics.robustness.max_sensitivity import boxed_noise

FAMILY = FAMILIES["timm_vit"]


def _expected(images, target, method="complete"):
    return vitrail.explain(FAMILY.model(), images, target, method=method).upsample(FAMILY.image_size)[:, None]


# -- Captum -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [3, torch.tensor(3), torch.tensor([3]), torch.tensor([3, 5]), [3, 5], None])
def test_attributions_are_the_raw_map_enlarged(target):
    images = FAMILY.images(2)
    wanted = int(target) if isinstance(target, torch.Tensor) and target.numel() == 1 else target
    found = CaptumAttribution(FAMILY.model(), "complete").attribute(images, target=target)
    torch.testing.assert_close(found, _expected(images, wanted), rtol=0, atol=0)
    assert found.shape == (2, 1, *FAMILY.image_size)
    assert bool((found < 0).any())  # signs are kept
    assert not found.requires_grad


def test_it_answers_in_the_form_in_which_it_is_asked():
    images, attribution = FAMILY.images(1), CaptumAttribution(FAMILY.model().module, "gae")
    (inside,) = attribution((images,), target=2)
    torch.testing.assert_close(inside, _expected(images, 2, "gae"), rtol=0, atol=0)
    assert attribution.attribute(images, target=2, upsample=False).shape == (1, 1, *FAMILY.grid)
    other = attribution.attribute(images, target=2, method="complete")
    torch.testing.assert_close(other, _expected(images, 2), rtol=0, atol=0)
    with torch.no_grad():
        torch.testing.assert_close(attribution(images, target=2), inside, rtol=0, atol=0)
    assert attribution(images.double(), target=2).dtype == torch.float64
    assert attribution.forward_func is FAMILY.model().module
    assert (attribution.has_convergence_delta(), attribution.multiplies_by_inputs) == (False, False)
    pixels = CaptumAttribution(FAMILY.model(), "lrp").attribute(images, target=2)
    assert pixels.shape == (1, 1, *FAMILY.image_size)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"inputs": (FAMILY.images(1),) * 2}, OptionError, "one tensor of images, or a tuple of one"),
        ({"baselines": 0}, OptionError, "baselines= is not used"),
        ({"additional_forward_args": (1,)}, OptionError, "additional_forward_args= is not used.*forward_options"),
        ({"target": (1, 2)}, TargetError, r"target=\(1, 2\) names places in an output of several dimensions"),
        ({"target": [(1, 2)]}, TargetError, "names places in an output of several dimensions"),
        ({"target": torch.ones(1, 2)}, TargetError, r"tensor of shape \(1, 2\); give one class, or one per image"),
        ({"target": [1, 2]}, TargetCountError, "target lists 2 for 1 image"),
        ({"method": "magic"}, UnknownMethodError, "no method is called 'magic'"),
    ],
)
def test_what_captum_allows_and_a_vit_does_not_is_refused(given, error, message):
    with pytest.raises(error, match=message):
        CaptumAttribution(FAMILY.model()).attribute(**({"inputs": FAMILY.images(1)} | given))


def test_captum_s_metrics_take_it_for_one_of_theirs():
    metrics = pytest.importorskip("captum.metrics")
    model, images, target = FAMILY.model(), FAMILY.images(2), torch.tensor([3, 5])
    attribution = CaptumAttribution(model)
    noise = boxed_noise(images[0], 6, 0.1, torch.Generator().manual_seed(0))
    # Three samples of the first image, then three of the second.
    found = metrics.sensitivity_max(
        attribution.attribute, images, lambda repeated: repeated + noise, n_perturb_samples=3, target=target
    )
    whole = _expected(images, [3, 5]).double()
    moved = _expected(images.repeat_interleave(3, 0) + noise, [3] * 3 + [5] * 3).double()
    ratio = (moved - whole.repeat_interleave(3, 0)).flatten(1).norm(dim=1) / whole.flatten(1).norm(
        dim=1
    ).repeat_interleave(3)
    np.testing.assert_allclose(found.numpy(), ratio.reshape(2, 3).amax(1).numpy(), rtol=1e-4)

    def change(inputs):
        return noise, inputs - noise

    scores = attribution.attribute(images, target=target).expand_as(images)  # infidelity wants equal shapes
    found = metrics.infidelity(
        lambda some: model.logits(some), change, images, scores, target=target, n_perturb_samples=3
    )
    with torch.no_grad():
        wide = images.repeat_interleave(3, 0)
        wanted = target.repeat_interleave(3)[:, None]
        fall = (model.logits(wide) - model.logits(wide - noise)).gather(1, wanted)[:, 0].double()
    promised = (scores.repeat_interleave(3, 0).double() * noise).flatten(1).sum(1)
    np.testing.assert_allclose(found.numpy(), (promised - fall).square().reshape(2, 3).mean(1).numpy(), rtol=1e-4)


def test_captum_s_wrappers_take_it_for_one_of_theirs():
    attr = pytest.importorskip("captum.attr")
    from captum.attr import visualization
    from captum.attr._utils.stat import Mean

    images, target = FAMILY.images(2), torch.tensor([3, 5])
    attribution = CaptumAttribution(FAMILY.model())
    tunnel = attr.NoiseTunnel(attribution)
    assert tunnel.multiplies_by_inputs is False
    assert tunnel.has_convergence_delta() is False
    for packed in (images, (images,)):
        for targets in (target, 3, [3, 5]):
            torch.manual_seed(0)
            found = tunnel.attribute(packed, nt_type="smoothgrad", nt_samples=3, stdevs=0.1, target=targets)
            found = found[0] if isinstance(packed, tuple) else found
            torch.manual_seed(0)
            noisy = images.repeat_interleave(3, 0) + torch.normal(0, torch.full((6, *images.shape[1:]), 0.1))
            each = _expected(noisy, [3] * 6 if isinstance(targets, int) else [3] * 3 + [5] * 3)
            torch.testing.assert_close(found, each.unflatten(0, (2, 3)).mean(1))
    partial = tunnel.attribute(images, nt_type="vargrad", nt_samples=3, nt_samples_batch_size=2, target=target)
    assert partial.shape == (2, 1, *images.shape[2:])
    torch.testing.assert_close(tunnel.attribute(images, nt_samples=2, stdevs=0.0), attribution.attribute(images))
    summary = attr.ClassSummarizer([Mean()])
    summary.update(attribution.attribute(images, target=target), [3, 5])
    torch.testing.assert_close(summary.class_summaries[5][0]["mean"], _expected(images, [3, 5])[1])
    coarse = attribution.attribute(images, target=target, upsample=False)
    finer = attr.LayerAttribution.interpolate(coarse, tuple(images.shape[2:]), "bilinear")
    torch.testing.assert_close(finer, _expected(images, [3, 5]))
    figure, _ = visualization.visualize_image_attr(
        finer[0].permute(1, 2, 0).numpy(), sign="all", use_pyplot=False, show_colorbar=True
    )
    assert figure.axes


# -- Quantus ----------------------------------------------------------------------------------------------------------


def test_an_explainer_gives_signed_arrays_of_the_images_size():
    images = FAMILY.images(2)
    for explain_func in (quantus_explainer(), quantus_explainer(FAMILY.model()), quantus_explainer(method="gae")):
        found = explain_func(FAMILY.model().module, images.numpy(), np.array([3, 5]), method="complete", device="cuda")
        assert isinstance(found, np.ndarray)
        np.testing.assert_array_equal(found, _expected(images, [3, 5]).numpy())
        again = explain_func(
            model=FAMILY.model().module, inputs=images, targets=torch.tensor([[3], [5]]), method="complete"
        )
        np.testing.assert_array_equal(again, found)
    small = quantus_explainer(FAMILY.model(), upsample=False)(None, images.numpy(), [3, 5])
    assert small.shape == (2, 1, *FAMILY.grid)


def test_the_module_that_is_handed_over_is_the_one_explained():
    images = FAMILY.images(1)
    other = FAMILY.build()
    with torch.no_grad():
        other.head.weight.neg_()
    explain_func = quantus_explainer(FAMILY.model())
    expected = {}
    for module in (FAMILY.model().module, other, FAMILY.model().module):
        found = explain_func(module, images.numpy(), np.array([3]))
        np.testing.assert_array_equal(found, expected.setdefault(module, found))
        np.testing.assert_array_equal(found, quantus_explainer()(module, images.numpy(), np.array([3])))
    assert not np.array_equal(*expected.values())


def test_without_a_model_there_is_nothing_to_explain():
    with pytest.raises(ModelError, match="there is no model to explain: give one to the bridge"):
        quantus_explainer()(None, FAMILY.images(1).numpy(), np.array([3]))
