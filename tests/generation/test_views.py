"""Where each pixel lies that a processor gives, and the one map that is made of several views of an image."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vitrail.errors import OptionError, UnsupportedAttentionError
from vitrail.generation.views import Grid, Places, View, pictures_of, places_of, put_together

HEIGHT, WIDTH = 90, 150
PINPOINTS = [[32, 64], [64, 32], [64, 64], [96, 32], [32, 96]]
QWEN = SimpleNamespace(vision_config=SimpleNamespace(spatial_merge_size=2))


def ramp() -> Image.Image:
    """A picture that says where it is: red grows to the right, green downwards."""
    right, down = np.linspace(0, 255, WIDTH), np.linspace(0, 255, HEIGHT)
    picture = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
    picture[..., 0], picture[..., 1] = right[None], down[:, None]
    return Image.fromarray(picture)


PROCESSORS: dict[str, tuple[str, dict[str, Any], Any, int | None, list[int]]] = {
    "llava_next": (
        "LlavaNextImageProcessor",
        {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}, "image_grid_pinpoints": PINPOINTS},
        SimpleNamespace(image_grid_pinpoints=PINPOINTS),
        None,
        [],
    ),
    "llava_onevision": (
        "LlavaOnevisionImageProcessor",
        {"size": {"height": 32, "width": 32}, "image_grid_pinpoints": [*PINPOINTS, [64, 96]]},
        SimpleNamespace(image_grid_pinpoints=[*PINPOINTS, [64, 96]]),
        None,
        [],
    ),
    "idefics3": (
        "Idefics3ImageProcessor",
        {"size": {"longest_edge": 128}, "max_image_size": {"longest_edge": 32}},
        SimpleNamespace(),
        None,
        [],
    ),
    "internvl": (
        "GotOcr2ImageProcessor",
        {"size": {"height": 32, "width": 32}, "crop_to_patches": True, "min_patches": 1, "max_patches": 12},
        SimpleNamespace(model_type="internvl"),
        None,
        [7 * 4],
    ),
    "qwen2_vl": (
        "Qwen2VLImageProcessor",
        {"patch_size": 8, "merge_size": 2, "min_pixels": 256, "max_pixels": 16384},
        QWEN,
        8,
        [],
    ),
    "pixtral": (
        "PixtralImageProcessor",
        {"size": {"longest_edge": 64}, "patch_size": {"height": 8, "width": 8}},
        SimpleNamespace(),
        None,
        [],
    ),
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_the_picture_that_a_processor_cut_up_is_put_together(name: str) -> None:
    transformers = pytest.importorskip("transformers")
    kind, options, config, patch, runs = PROCESSORS[name]
    processor = getattr(transformers, kind)(**options)
    inputs = dict(processor(images=[ramp()], return_tensors="pt"))
    places = places_of(config, inputs, None, runs)
    (picture,) = pictures_of(inputs["pixel_values"], places, processor.image_mean, processor.image_std, patch)
    height, width = picture.shape[:2]
    assert abs(width / height - WIDTH / HEIGHT) < 0.25 * WIDTH / HEIGHT
    right, down = torch.linspace(0, 255, width), torch.linspace(0, 255, height)
    wrong = (picture[..., 0] - right[None]).abs().max(), (picture[..., 1] - down[:, None]).abs().max()
    assert float(max(wrong)) < 9  # of 255


def one_image(*views: View) -> Places:
    return Places(views, torch.zeros(1, dtype=torch.long), torch.zeros(1), torch.zeros(1))


def test_a_coarse_view_is_spread_over_the_same_area() -> None:
    whole, tiles = View(0, (4, 4)), View(0, (4, 8))
    grids = [
        Grid(0, torch.arange(4).view(2, 2), (2.0, 2.0), (0.0, 0.0)),
        Grid(1, 4 + torch.arange(8).view(2, 4), (2.0, 2.0), (0.0, 0.0)),
    ]
    scores = torch.zeros(1, 12)
    scores[0, 1] = 1.0  # the whole image's upper right
    scores[0, 4] = 0.5  # the tiles' upper left
    (found,) = put_together(scores, grids, one_image(whole, tiles))
    assert found[0].tolist() == [[0.5, 0.0, 0.5, 0.5], [0.0, 0.0, 0.0, 0.0]]


def test_padding_is_left_out_and_nothing_else() -> None:
    padded = View(0, (8, 4), (-0.5, 0.0, 1.5, 1.0))  # two of eight rows above, and two below
    whole = View(0, (3, 3))
    grids = [
        Grid(0, torch.arange(32).view(8, 4), (1.0, 1.0), (0.0, 0.0)),
        Grid(1, 32 + torch.arange(9).view(3, 3), (1.0, 1.0), (0.0, 0.0)),
    ]
    scores = torch.rand(2, 41)
    (found,) = put_together(scores, grids, one_image(padded, whole))
    assert found.shape == (2, 4, 4)
    torch.testing.assert_close(found.sum(dim=(1, 2)), scores[:, 8:24].sum(dim=1) + scores[:, 32:].sum(dim=1))


def test_tokens_of_no_place_are_one_row_or_everywhere() -> None:
    queries = Grid(0, torch.arange(3)[None])
    (alone,) = put_together(torch.tensor([[1.0, 2.0, 3.0]]), [queries], one_image(View(0, (4, 4))))
    assert alone.tolist() == [[[1.0, 2.0, 3.0]]]
    grid = Grid(0, 1 + torch.arange(4).view(2, 2), (2.0, 2.0), (0.0, 0.0))
    mean = Grid(0, torch.zeros(1, 1, dtype=torch.long))
    (both,) = put_together(torch.tensor([[4.0, 0.0, 0.0, 0.0, 1.0]]), [mean, grid], one_image(View(0, (4, 4))))
    assert both.tolist() == [[[1.0, 1.0], [1.0, 2.0]]]


def test_tiles_that_do_not_tell_their_order_are_refused() -> None:
    grey = {"pixel_values": torch.full((1, 7, 3, 8, 8), 0.5)}
    with pytest.raises(OptionError, match=r"tiles=\(rows, columns\)"):
        places_of(SimpleNamespace(), grey)
    assert places_of(SimpleNamespace(), grey, (2, 3)).views[0].canvas == (16, 24)
    with pytest.raises(OptionError, match="make 10 tiles"):
        places_of(SimpleNamespace(), grey, (3, 3))
    video = {"pixel_values": torch.zeros(8, 6), "image_grid_thw": torch.tensor([[2, 2, 2]])}
    with pytest.raises(UnsupportedAttentionError, match="2 frames"):
        places_of(QWEN, video)
