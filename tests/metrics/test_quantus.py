"""Pixel flipping and region perturbation against the package Quantus on the same inputs."""

import warnings

import numpy as np
import pytest
import torch
from protocol_driver import by_measure, case_of, drive
from torch import nn

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Quantus' own imports, not ours
    quantus = pytest.importorskip("quantus")

SIDE = 24


def tiny(classes: int = 5) -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3, stride=2), nn.GELU(), nn.Flatten(), nn.Linear(4 * 11 * 11, classes)]
    return nn.Sequential(*layers).eval()


def batch(count: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Images, pixel maps without ties, and classes that need not be those predicted."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(count, 3, SIDE, SIDE, generator=generator)
    maps = torch.stack([torch.randperm(SIDE * SIDE, generator=generator).view(SIDE, SIDE) for _ in range(count)])
    return images, maps.float() - SIDE * SIDE / 3, torch.tensor([0, 3, 4])[:count]


def theirs(metric: str, baseline: str | float, **options: object) -> np.ndarray:
    images, maps, classes = batch()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = getattr(quantus, metric)(
            perturb_baseline=baseline,
            abs=False,
            normalise=False,
            disable_warnings=True,
            display_progressbar=False,
            return_aggregate=False,
            **options,
        )
        scores = made(
            model=tiny(), x_batch=images.numpy(), y_batch=classes.numpy(), a_batch=maps[:, None].numpy(), device="cpu"
        )
    return np.array(scores)


def ours(protocol: str, measure: str, **options: object) -> np.ndarray:
    model, found = tiny(), []
    for image, scores, asked in zip(*batch(), strict=True):
        with torch.no_grad():
            logits = model(image[None])[0]
        case = case_of(image, logits, target=int(asked))
        found.append(by_measure(drive(protocol, case, scores, model, **options))[measure])
    return np.array(found)


@pytest.mark.parametrize(
    ("fill", "baseline"), [("lowest", "black"), ("highest", "white"), ("zero", 0.0), ("black", -1.0)]
)
@pytest.mark.parametrize("step", [4, 32])
def test_pixel_flipping_is_that_of_quantus(fill, baseline, step):
    expected = theirs("PixelFlipping", baseline, features_in_step=3 * step)
    found = ours("pixel_flipping", "morf.probability", step=step, fill=fill)
    assert found.shape == (3, SIDE * SIDE // step)
    np.testing.assert_allclose(found, expected, rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize("order", ["morf", "lerf"])
@pytest.mark.parametrize(("fill", "baseline"), [("lowest", "black"), ("highest", "white"), ("zero", 0.0)])
@pytest.mark.parametrize(("size", "regions"), [(8, 100), (4, 20)])
def test_region_perturbation_is_that_of_quantus(order, fill, baseline, size, regions):
    expected = theirs("RegionPerturbation", baseline, patch_size=size, regions_evaluation=regions, order=order)
    found = ours("region_perturbation", f"{order}.drop", size=size, regions=regions, order=order, fill=fill)
    assert found.shape == (3, min(regions, (SIDE // size) ** 2))
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-7)
