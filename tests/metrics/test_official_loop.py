"""The benchmark's other side gives the released script's hits, so that what is timed is the same work."""

import numpy as np
import pytest
import torch

from benchmarks.perturbation import official_loop
from vitrail.metrics.maps import enlarged


@pytest.mark.parametrize(("images", "batch"), [(slice(3, 4), 16), pytest.param(slice(0, 8), 3, marks=pytest.mark.slow)])
def test_the_loop_s_hits_are_those_of_the_released_script(shared, vit_tiny, images, batch):
    with np.load(shared / "oracles" / "perturbation_tattr_protocol.npz") as held:
        pixels = torch.from_numpy(held["images_uint8"][images]).permute(0, 3, 1, 2).float() / 255
        maps = enlarged(torch.from_numpy(held["gae_top/maps"][images]), (224, 224))
        labels = torch.from_numpy(held["labels"][images])
        expected = np.stack([held[f"gae_top/{way}/hits"][:, images] for way in ("pos", "neg")])
    found = official_loop(vit_tiny.logits, pixels, maps, labels, batch=batch, gradients=False)
    assert found.shape == (2, 9, len(labels))
    assert np.array_equal(found, expected)
