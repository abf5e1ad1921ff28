"""The linear view against Pillow: exactly where Pillow works in floating point, to within rounding where in bytes."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.autograd.functional import vjp

from vitrail import Preprocess
from vitrail.counterfactual.resample import linear_view, resize_weights

PILLOW = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
# A byte is rounded twice; after the first time the second mean still spreads by the sum of |weights|.
ROUNDING = {"nearest": 0.001, "bilinear": 1.01, "bicubic": 1.15, "lanczos": 1.25}

VIEWS = {
    "cropped": {"size": (224, 224), "resize": 256},
    "odd crop": {"size": (61, 50), "resize": 64},
    "squashed": {"size": (96, 128)},
    "box covered": {"size": (64, 80), "resize": (70, 90)},
    "box squashed": {"size": (64, 80), "resize": (64, 80), "crop_mode": "squash"},
    "border": {"size": (64, 64), "resize": (64, 64), "crop_mode": "border", "fill": (10, 200, 30)},
    "padded": {"size": (225, 224), "resize": 70, "fill": (9, 9, 9)},
}


def photograph(height: int, width: int) -> np.ndarray:
    """Coarse blotches: a cubic kernel overshoots at them, but not beyond black and white."""
    generator = np.random.default_rng(height)
    blotches = generator.integers(50, 200, (height // 3, width // 3, 3), dtype=np.uint8)
    return np.array(Image.fromarray(blotches).resize((width, height)))


@pytest.mark.parametrize("interpolation", PILLOW)
@pytest.mark.parametrize(("length", "new_length"), [(500, 341), (50, 256), (50, 75), (64, 96), (1000, 37), (40, 40)])
def test_weights_are_pillows(interpolation, length, new_length):
    line = np.random.default_rng(0).random((1, length), dtype=np.float32)
    theirs = np.array(Image.fromarray(line).resize((new_length, 1), PILLOW[interpolation]))[0]
    ours = resize_weights(length, new_length, interpolation) @ torch.from_numpy(line[0]).double()
    np.testing.assert_allclose(ours.numpy(), theirs, atol=2e-6)


@pytest.mark.parametrize("interpolation", PILLOW)
@pytest.mark.parametrize("name", VIEWS)
@pytest.mark.parametrize("size", [(150, 200), (201, 133), (64, 50)])
def test_the_view_is_pillows_but_for_rounding(interpolation, name, size):
    preprocess = Preprocess(interpolation=interpolation, **VIEWS[name])
    picture = photograph(*size)
    bytes_ = np.array(preprocess.view(Image.fromarray(picture))).astype(float)
    pixels = torch.from_numpy(picture).permute(2, 0, 1).double() / 255
    linear = 255 * linear_view(preprocess, *size, dtype=torch.float64)(pixels).permute(1, 2, 0).numpy()
    assert np.abs(linear - bytes_).max() < ROUNDING[interpolation]


def test_back_is_the_gradient():
    view = linear_view(Preprocess(size=(20, 30), resize=25), 41, 52, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(3, 41, 52, dtype=torch.float64, generator=generator)
    upstream = torch.randn(3, 20, 30, dtype=torch.float64, generator=generator)
    torch.testing.assert_close(view.back(upstream), vjp(view, pixels, upstream)[1])


def test_what_is_cropped_away_has_no_gradient():
    view = linear_view(Preprocess(size=(40, 40), resize=40), 40, 100)
    back = view.back(torch.ones(3, 40, 40))
    assert (back[..., :30] == 0).all()
    assert (back[..., 30:70] == 1).all()
    assert (back[..., 70:] == 0).all()
