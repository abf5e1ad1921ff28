"""Pixels and masks."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitrail.bestiary import BestiaryError, render, sample_scene
from vitrail.bestiary.scene import KINDS


@given(st.sampled_from(sorted(KINDS)), st.integers(0, 2**32 - 1), st.sampled_from([16, 48, 96, 131]))
@settings(max_examples=15, deadline=None)
def test_masks_are_disjoint_and_fill_the_box(kind, seed, size):
    drawn = render(sample_scene(kind, seed), size)
    assert drawn.image.shape == (size, size, 3)
    assert drawn.image.dtype == np.uint8
    everything = np.zeros((size, size), dtype=int)
    for view in drawn.creatures:
        for mask in view.parts.values():
            everything += mask
        assert (np.logical_or.reduce(list(view.parts.values())) == view.mask).all()
        left, top, right, bottom = view.box
        inside = np.zeros_like(view.mask)
        inside[top:bottom, left:right] = True
        assert not (view.mask & ~inside).any()
        assert view.mask[top].any()
        assert view.mask[:, left].any()
        assert view.mask[bottom - 1].any()
        assert view.mask[:, right - 1].any()
    assert everything.max() == 1


def test_drawing_is_deterministic_and_leaves_nothing_behind():
    scene = sample_scene("pair", seed=9)
    first = render(scene, 96)
    render(sample_scene("single", seed=10), 96)
    second = render(scene, 96)
    assert (first.image == second.image).all()


def test_the_same_scene_at_another_size_is_the_same_picture():
    scene = sample_scene("single", seed=12)
    small, large = render(scene, 64), render(scene, 256)
    shrunk = large.image.reshape(64, 4, 64, 4, 3).mean(axis=(1, 3))
    assert np.abs(shrunk - small.image).mean() < 6
    both = large.creatures[0].mask[2::4, 2::4] & small.creatures[0].mask
    either = large.creatures[0].mask[2::4, 2::4] | small.creatures[0].mask
    assert both.sum() / either.sum() > 0.85


def test_a_size_that_is_too_small_is_refused():
    with pytest.raises(BestiaryError, match="cannot be drawn at 8 px: 16 is the least"):
        render(sample_scene("single", seed=0), 8)


def test_the_telling_part_is_never_wholly_hidden():
    for seed in range(25):
        scene = sample_scene("single", seed=seed)
        view = render(scene, 96).creatures[0]
        assert all(view.parts[slot].sum() > 15 for slot in ("crown", "tail", "wings", "shell") if slot in view.parts), (
            seed
        )
