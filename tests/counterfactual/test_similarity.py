"""The measures against scikit-image's."""

import math

import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from vitrail.counterfactual.rewrite_result import similarity


@pytest.mark.parametrize("noise", [1, 10, 60])
def test_measures_are_scikit_images(noise):
    generator = np.random.default_rng(noise)
    one = np.repeat(np.repeat(generator.integers(0, 256, (8, 9, 3)), 5, 0), 5, 1).astype(np.uint8)
    other = np.clip(one + generator.integers(-noise, noise + 1, one.shape), 0, 255).astype(np.uint8)
    found = similarity(one, other)
    assert found.psnr == pytest.approx(peak_signal_noise_ratio(one, other))
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "channel_axis": 2}
    assert found.ssim == pytest.approx(structural_similarity(one, other, data_range=255, **options), abs=1e-9)
    change = (one.astype(float) - other) / 255
    assert found.linf == pytest.approx(np.abs(change).max())
    assert found.l2 == pytest.approx(np.linalg.norm(change))


def test_equal_and_tiny_pictures():
    picture = np.full((5, 40, 3), 7, dtype=np.uint8)
    found = similarity(picture, picture)
    assert (found.linf, found.l2, found.psnr) == (0, 0, math.inf)
    assert math.isnan(found.ssim)
    assert similarity(np.repeat(picture, 3, 0), np.repeat(picture, 3, 0)).ssim == pytest.approx(1)
