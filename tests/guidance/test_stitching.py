"""Stitching and the way back, on pictures whose every patch is known."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import vitrail
from vitrail.errors import LayoutError, OptionError
from vitrail.guidance.stitching import FITS, LAYOUTS, crop_map, fit_picture, plan_stitch, stitch, to_grid

EVERY = [(layout, side) for layout, sides in LAYOUTS.items() for side in sides]


def numbered(rows: int, cols: int, patch: tuple[int, int]) -> torch.Tensor:
    """A picture whose every patch is one number of its own, counted from 1."""
    numbers = torch.arange(1, rows * cols + 1, dtype=torch.float64).reshape(1, 1, rows, cols)
    return numbers.repeat_interleave(patch[0], 2).repeat_interleave(patch[1], 3)


def patch_means(picture: torch.Tensor, patch: tuple[int, int]) -> torch.Tensor:
    return torch.nn.functional.avg_pool2d(picture, patch)[0, 0]


@settings(deadline=None, max_examples=60)
@given(
    where=st.sampled_from(EVERY),
    fit=st.sampled_from(FITS),
    rows=st.integers(2, 9),
    cols=st.integers(2, 9),
    patch=st.sampled_from([(4, 4), (4, 6)]),
)
def test_the_cropped_map_is_the_original_and_nothing_else(where, fit, rows, cols, patch):
    """A map with 1 where the original's pixels are, −1 where the guide's are and 0 elsewhere comes back all ones."""
    plan = plan_stitch(*where, fit, grid=(rows, cols), patch=patch)
    size = (1, 1, rows * patch[0], cols * patch[1])
    whole = stitch(torch.ones(size), -torch.ones(size), plan)
    assert whole.shape[-2:] == plan.size
    scores = patch_means(whole, patch)
    own = crop_map(scores, plan)
    assert torch.equal(own, torch.ones_like(own))
    assert (scores == 1).sum() == own.numel()
    assert plan.original.rows == plan.guide.rows
    assert plan.original.cols == plan.guide.cols
    theirs = crop_map(scores, plan, part="guide")
    assert (theirs == -1).sum() == own.numel()


@pytest.mark.parametrize(("layout", "side"), [pair for pair in EVERY if pair[0] in ("wide", "tall")])
def test_wide_and_tall_keep_every_pixel(layout, side):
    photo, guide = torch.randn(2, 3, 12, 8), torch.randn(2, 3, 12, 8)
    plan = plan_stitch(layout, side, "squash", grid=(3, 2), patch=(4, 4))
    whole = stitch(photo, guide, plan)
    for box, picture in ((plan.original, photo), (plan.guide, guide)):
        rows, cols = box.slices(plan.patch)
        assert torch.equal(whole[..., rows, cols], picture)


def test_crop_keeps_the_middle_in_its_own_pixels():
    photo = numbered(4, 4, (4, 4))
    plan = plan_stitch("side", "right", "crop", grid=(4, 4), patch=(4, 4))
    whole = stitch(photo, photo, plan)
    # Two whole patches of four are shown: those in the middle.
    assert patch_means(whole, (4, 4)).tolist() == [[2, 3, 2, 3], [6, 7, 6, 7], [10, 11, 10, 11], [14, 15, 14, 15]]
    assert crop_map(patch_means(whole, (4, 4)), plan).tolist() == [[2, 3], [6, 7], [10, 11], [14, 15]]


def test_pad_keeps_the_shape_in_whole_patches():
    plan = plan_stitch("side", "left", "pad", grid=(14, 14))
    assert (plan.shown.top, plan.shown.left, plan.shown.rows, plan.shown.cols) == (3, 0, 7, 7)
    stacked = plan_stitch("stack", "bottom", "pad", grid=(14, 14))
    assert (stacked.shown.top, stacked.shown.left, stacked.shown.rows, stacked.shown.cols) == (7, 3, 7, 7)


def test_an_odd_grid_leaves_its_middle_to_neither():
    plan = plan_stitch("side", "left", "squash", grid=(3, 5), patch=(4, 4))
    whole = stitch(torch.ones(1, 3, 12, 20), torch.ones(1, 3, 12, 20), plan)
    assert (plan.original.cols, plan.guide.left, plan.guide.cols) == (2, 3, 2)
    assert whole[0, 0, 0].tolist() == [1.0] * 8 + [0.0] * 4 + [1.0] * 8


def test_stitching_after_normalisation_is_stitching_before():
    """The published order: resize, concatenate the pixels, normalise. Equal up to the rounding of 8-bit pixels."""
    preprocess = vitrail.Preprocess(size=(64, 64), resize=None)
    rng = np.random.default_rng(0)
    smooth = [Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize((64, 64)) for _ in range(2)]
    joined = Image.new("RGB", (64, 64))
    for place, picture in enumerate(smooth):
        joined.paste(picture.resize((32, 64), Image.Resampling.BICUBIC), (32 * place, 0))
    expected = preprocess.normalise(joined)
    plan = plan_stitch("side", "left", "squash", grid=(4, 4))
    found = stitch(*(preprocess.normalise(picture)[None] for picture in smooth), plan)[0]
    assert (found - expected).abs().max() < 2 / 255 / min(preprocess.std)


def test_resampling_stays_within_the_pictures_values():
    checkered = numbered(2, 2, (8, 8)).expand(1, 3, 16, 16)
    squeezed = fit_picture(checkered, (2, 1), "squash", (8, 8))
    assert squeezed.shape == (1, 3, 16, 8)
    assert squeezed.min() >= 1
    assert squeezed.max() <= 4


def test_a_map_on_another_grid_keeps_its_values():
    assert to_grid(torch.tensor([[1.0], [3.0]]), (2, 2)).tolist() == [[1.0, 1.0], [3.0, 3.0]]
    assert to_grid(torch.tensor([[1.0, 5.0]]), (2, 2)).tolist() == [[1.0, 5.0], [1.0, 5.0]]
    odd = to_grid(torch.tensor([[2.0, 5.0]]), (1, 3))
    torch.testing.assert_close(odd, torch.tensor([[2.0, 3.5, 5.0]]))  # the middle is half of each
    torch.testing.assert_close(to_grid(odd, (1, 3)), odd)


def test_what_cannot_be_stitched():
    with pytest.raises(OptionError, match="layout='diagonal' of a guide is not known; choose one of side, stack, wide"):
        plan_stitch("diagonal", "left", "squash", grid=(4, 4))
    with pytest.raises(OptionError, match="side='top' is no place for the original in layout='wide'; choose left or"):
        plan_stitch("wide", "top", "squash", grid=(4, 4))
    with pytest.raises(OptionError, match="fit='stretch' of a guide is not known; choose one of squash, crop, pad"):
        plan_stitch("side", "left", "stretch", grid=(4, 4))
    with pytest.raises(LayoutError, match="a grid of 4×1 patches cannot be halved for layout='side'"):
        plan_stitch("side", "left", "squash", grid=(4, 1))
    plan = plan_stitch("side", "left", "squash", grid=(4, 4))
    with pytest.raises(LayoutError, match=r"a map of \(3, 4\) patches is not that of a stitch of \(4, 4\)"):
        crop_map(torch.zeros(3, 4), plan)
