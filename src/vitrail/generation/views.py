"""Views: which part of which image each pixel shows that a vision-language model is given, and one map made of them.

Processors cut an image into tiles and give the whole image along (LLaVA-NeXT, Idefics3, InternVL), pad it, or cut it
into patches of its own size (Qwen2-VL). A view is a grid of pixels with one place in its image: the whole image, or all
its tiles side by side. Scores are known at the cells of each view; they are put together on the finest of them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from ..errors import OptionError, UnsupportedAttentionError

__all__ = ["Grid", "Places", "Tiles", "View", "pictures_of", "places_of", "put_together"]

Tiles = tuple[int, int] | Sequence[tuple[int, int]] | None

ALIKE = 1.2  # tiles in another order must differ this many times as much from the whole image to be told apart


@dataclass(frozen=True)
class View:
    """A canvas of pixels or patches, and its box (top, left, bottom, right) in parts of its image's height and width.

    A box that reaches beyond 0 and 1 is padded.
    """

    image: int
    canvas: tuple[int, int]
    box: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)


@dataclass(frozen=True, eq=False)
class Places:
    """The views of all images, and for every pixel (or patch) of `pixel_values` its view and its place on the canvas.

    `view` is −1 where a pixel belongs to none; the three have the shape of `pixel_values` without channels, or one
    entry per patch.
    """

    views: tuple[View, ...]
    view: Int[Tensor, "*pixels"]
    y: Float[Tensor, "*pixels"]
    x: Float[Tensor, "*pixels"]

    @property
    def images(self) -> int:
        return 1 + max(view.image for view in self.views)


class Grid(NamedTuple):
    """Tokens as rows and columns of a view: numbers of tokens, and the height, width and first edge of a cell on the
    canvas.
    """

    view: int
    tokens: Int[Tensor, "rows cols"]
    cell: tuple[float, float] = (0.0, 0.0)
    start: tuple[float, float] = (0.0, 0.0)


# -- which pixel is where --------------------------------------------------------------------------------------------


def places_of(config: Any, inputs: Mapping[str, Any], tiles: Tiles = None, tokens: Sequence[int] = ()) -> Places:
    """Returns the places of all pixels that a processor gave.

    Args:
        config: the model's.
        inputs: the processor's mapping.
        tiles: rows and columns of tiles, of each image, where the inputs do not say them; (1, 1) for an image that is
            one tile.
        tokens: lengths of the unbroken runs of image tokens in the sequence.

    Raises:
        OptionError: where the inputs hold no image, or tiles whose arrangement cannot be told.
        UnsupportedAttentionError: for inputs of another form.
    """
    pixels = inputs.get("pixel_values")
    if not isinstance(pixels, Tensor):
        raise OptionError(
            f"the inputs hold no image (no pixel_values, only {', '.join(sorted(inputs))}): give image=, or inputs= as "
            "the processor makes them of an image"
        )
    if pixels.dim() == 2 and "image_grid_thw" in inputs:
        return _patches(inputs["image_grid_thw"], _merge_size(config))
    if pixels.dim() not in (4, 5):
        raise UnsupportedAttentionError(
            f"pixel_values of shape {tuple(pixels.shape)} are neither images, tiles of images nor patches with "
            "image_grid_thw: nothing tells where each of them lies"
        )
    if pixels.dim() == 5 and "image_sizes" in inputs and getattr(config, "image_grid_pinpoints", None):
        return _pinpoints(config, pixels, inputs["image_sizes"])
    stacked = pixels.reshape(-1, *pixels.shape[-3:])
    counts = _tiles_per_image(config, pixels, tiles, tokens)
    return _tiled(pixels, stacked, counts, tiles, _real(inputs, pixels))


def _merge_size(config: Any) -> int:
    return int(getattr(getattr(config, "vision_config", config), "spatial_merge_size", 1))


def _patches(grid: Int[Tensor, "images three"], merge: int) -> Places:
    """Patches in blocks of merge × merge that become one token, as Qwen2-VL's processor orders them."""
    views, number, ys, xs = [], [], [], []
    for image, (frames, rows, cols) in enumerate(grid.tolist()):
        if frames != 1:
            raise UnsupportedAttentionError(f"image {image} has {frames} frames: videos have no map of one image")
        blocks = rows // merge, merge, cols // merge, merge
        for axes, shape in ((ys, (rows, 1)), (xs, (1, cols))):
            place = torch.arange(max(shape), dtype=torch.float64).view(shape) + 0.5
            axes.append(place.expand(rows, cols).reshape(blocks).transpose(1, 2).flatten())
        number.append(torch.full((rows * cols,), image))
        views.append(View(image, (rows, cols)))
    return Places(tuple(views), torch.cat(number), torch.cat(ys), torch.cat(xs))


def _pinpoints(config: Any, pixels: Tensor, sizes: Tensor) -> Places:
    """LLaVA-NeXT's tiles: the whole image as a square, then the tiles of the best of some resolutions, padded."""
    from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape

    side = pixels.shape[-1]
    views: list[View] = []
    view, y, x = _blank(pixels)
    for image, (height, width) in enumerate(torch.as_tensor(sizes).tolist()):
        _lay(view[image, :1], y[image, :1], x[image, :1], len(views), (1, 1))
        views.append(View(image, (side, side)))
        rows, cols = get_anyres_image_grid_shape((height, width), config.image_grid_pinpoints, side)
        if pixels.shape[1] < 1 + rows * cols:
            continue  # several images are given whole, each as one tile
        _lay(view[image, 1:], y[image, 1:], x[image, 1:], len(views), (rows, cols))
        scale = min(rows * side / height, cols * side / width)
        beyond = [(full / (scale * size) - 1) / 2 for full, size in ((rows * side, height), (cols * side, width))]
        box = -beyond[0], -beyond[1], 1 + beyond[0], 1 + beyond[1]
        views.append(View(image, (rows * side, cols * side), box))
    return Places(tuple(views), view, y, x)


def _tiles_per_image(config: Any, pixels: Tensor, tiles: Tiles, runs: Sequence[int]) -> list[int]:
    """How many tiles each image has."""
    count = pixels.shape[:-3].numel()
    if tiles is not None:
        return [1 if (rows, cols) == (1, 1) else rows * cols + 1 for rows, cols in _pairs(tiles)]
    if pixels.dim() == 5:
        return [count]  # Idefics3: the tiles of all images in one row; of several images tiles= must say which
    if getattr(config, "model_type", "") == "internvl" and runs and sum(runs) % count == 0:
        each = sum(runs) // count
        if not any(run % each for run in runs):
            return [run // each for run in runs]
    return [1] * count


def _pairs(tiles: Tiles) -> list[tuple[int, int]]:
    assert tiles is not None
    pairs: list[Any] = [tiles] if isinstance(tiles[0], int) else list(tiles)
    return [(int(rows), int(cols)) for rows, cols in pairs]


def _real(inputs: Mapping[str, Any], pixels: Tensor) -> Tensor:
    """Height and width of each tile that are no padding."""
    full = torch.tensor(pixels.shape[-2:]).expand(pixels.shape[:-3].numel(), 2)
    mask = inputs.get("pixel_attention_mask")
    if isinstance(mask, Tensor):
        return torch.stack([mask.bool().any(dim=one).sum(dim=-1).flatten().cpu() for one in (-1, -2)], dim=1)
    sizes = inputs.get("image_sizes")
    return torch.as_tensor(sizes).cpu().view(-1, 2) if sizes is not None and pixels.dim() == 4 else full


def _tiled(pixels: Tensor, stacked: Tensor, counts: list[int], tiles: Tiles, real: Tensor) -> Places:
    height, width = pixels.shape[-2:]
    if sum(counts) != len(stacked):
        raise OptionError(
            f"tiles={tiles} make {sum(counts)} tiles (rows × columns and the whole image, for each image), but "
            f"pixel_values hold {len(stacked)}"
        )
    views: list[View] = []
    view, y, x = (one.view(-1, *one.shape[-2:]) for one in _blank(pixels))
    first = 0
    for image, count in enumerate(counts):
        some = slice(first, first + count)
        if count > 1:
            given = None if tiles is None else _pairs(tiles)[image]
            rows, cols = given or _arrangement(stacked[some])
            _lay(view[some][:-1], y[some][:-1], x[some][:-1], len(views), (rows, cols))
            views.append(View(image, (rows * height, cols * width)))
        _lay(view[some][-1:], y[some][-1:], x[some][-1:], len(views), (1, 1))
        below, right = (
            full / max(1, int(size)) for full, size in zip((height, width), real[first + count - 1], strict=True)
        )
        views.append(View(image, (height, width), (0.0, 0.0, below, right)))
        first += count
    shape = *pixels.shape[:-3], height, width
    return Places(tuple(views), view.view(shape), y.view(shape), x.view(shape))


def _blank(pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    shape = *pixels.shape[:-3], *pixels.shape[-2:]
    nowhere = torch.full(shape, torch.nan, dtype=torch.float64)
    return torch.full(shape, -1), nowhere, nowhere.clone()


def _lay(view: Tensor, y: Tensor, x: Tensor, number: int, arrangement: tuple[int, int]) -> None:
    """Lays tiles row by row on one canvas, in place."""
    height, width = view.shape[-2:]
    rows, cols = arrangement
    for tile in range(rows * cols):
        view[tile] = number
        y[tile] = (tile // cols * height + torch.arange(height) + 0.5)[:, None]
        x[tile] = (tile % cols * width + torch.arange(width) + 0.5)[None]


def _arrangement(tiles: Float[Tensor, "tiles channels height width"]) -> tuple[int, int]:
    """Rows and columns of tiles, of which the last is the whole image: those that look like it.

    Raises:
        OptionError: where none or several do.
    """
    parts, whole = tiles[:-1].float(), tiles[-1].float()
    count = len(parts)
    found = []
    for rows in (one for one in range(1, count + 1) if count % one == 0):
        grid = parts.view(rows, count // rows, *parts.shape[1:]).permute(2, 0, 3, 1, 4)
        mosaic = grid.reshape(1, parts.shape[1], rows * parts.shape[2], -1)
        small = F.interpolate(mosaic, whole.shape[-2:], mode="area")[0]
        found.append((float((small - whole).abs().mean()), (rows, count // rows)))
    found.sort()
    if len(found) > 1 and found[1][0] <= ALIKE * found[0][0]:
        ways = " or ".join(f"{rows} x {cols}" for _, (rows, cols) in found)
        raise OptionError(
            f"an image comes in {count} tiles and as a whole, and nothing tells whether they lie {ways}: say it by "
            "tiles=(rows, columns)"
        )
    return found[0][1]


# -- one map of all views --------------------------------------------------------------------------------------------


def put_together(
    scores: Float[Tensor, "questions tokens"], grids: Sequence[Grid], places: Places
) -> tuple[Float[Tensor, "questions _ _"], ...]:
    """Returns one map for each image, on its finest grid; what other views of it have is spread over the same area.

    Cells that are padding are left out. Otherwise the sum of a map is that of its tokens' scores.
    """
    found = []
    for image in range(places.images):
        own = [grid for grid in grids if places.views[grid.view].image == image]
        finest = max(own, key=lambda grid: (grid.cell[0] > 0, grid.tokens.numel(), places.views[grid.view].canvas))
        edges = [_edges(finest, places.views[finest.view], axis) for axis in (0, 1)]
        if edges[0] is None or edges[1] is None:  # of no place: learnt queries, say
            found.append(torch.cat([scores[:, grid.tokens.flatten()] for grid in own], dim=1)[:, None])
            continue
        inside = [_inside(one) for one in edges]
        rows, cols = (one[kept] for one, kept in zip(edges, inside, strict=True) if one is not None)
        total = scores[:, finest.tokens[inside[0]][:, inside[1]]]
        for grid in own:
            if grid is finest:
                continue
            down, right = (_edges(grid, places.views[grid.view], axis) for axis in (0, 1))
            part = scores[:, grid.tokens]
            if down is None or right is None:  # of no place, so of all
                total = total + part.sum(dim=(1, 2), keepdim=True) / (total.shape[1] * total.shape[2])
            else:
                total = total + _overlap(down, rows).to(part) @ part @ _overlap(right, cols).to(part).T
        found.append(total)
    return tuple(found)


def _edges(grid: Grid, view: View, axis: int) -> Float[Tensor, "cells two"] | None:
    """First and last edge of every row (or column) in parts of the image; None where the tokens have no place."""
    if not grid.cell[axis]:
        return None
    first = grid.start[axis] + grid.cell[axis] * torch.arange(grid.tokens.shape[axis], dtype=torch.float64)
    low, high = view.box[axis], view.box[axis + 2]
    return low + (high - low) * torch.stack([first, first + grid.cell[axis]], dim=1) / view.canvas[axis]


def _inside(edges: Float[Tensor, "cells two"] | None) -> Tensor:
    assert edges is not None
    middle = edges.mean(dim=1)
    return (middle > 0) & (middle < 1)


def _overlap(of: Float[Tensor, "cells two"], on: Float[Tensor, "new two"]) -> Float[Tensor, "new cells"]:
    """Which part of each cell lies on each new one; columns sum to one, or to zero outside of all."""
    low, high = (torch.stack([f.expand(len(on), -1), o.expand(-1, len(of))]) for f, o in
                 ((of[None, :, 0], on[:, None, 0]), (of[None, :, 1], on[:, None, 1])))  # fmt: skip
    length = (high.amin(dim=0) - low.amax(dim=0)).clamp(min=0)
    return length / length.sum(dim=0, keepdim=True).clamp(min=torch.finfo(length.dtype).tiny)


# -- the picture under the map ---------------------------------------------------------------------------------------


def pictures_of(
    pixels: Tensor, places: Places, mean: Sequence[float], std: Sequence[float], patch: int | None = None
) -> tuple[UInt8[Tensor, "_ _ 3"], ...]:
    """Returns what the model was shown of each image, in colours: its largest view without padding.

    `patch` is the side of the patches that `pixel_values` are, where they are patches.
    """
    pixels = pixels.detach().float().cpu()
    factor, offset = (torch.tensor(one, dtype=torch.float32).view(-1, 1, 1) for one in (std, mean))
    found = []
    for image in range(places.images):
        numbers = [number for number, view in enumerate(places.views) if view.image == image]
        number = max(numbers, key=lambda one: (places.views[one].canvas[0] * places.views[one].canvas[1], -one))
        view = places.views[number]
        rows, cols = view.canvas
        here = places.view == number
        y, x = (one[here].floor().long() for one in (places.y, places.x))
        if patch is not None:
            parts = pixels[here].view(len(y), 3, -1, patch, patch)[:, :, 0]
            canvas = torch.zeros(rows, cols, 3, patch, patch)
            canvas[y, x] = parts
            picture = canvas.permute(2, 0, 3, 1, 4).reshape(3, rows * patch, cols * patch)
        else:
            picture = torch.zeros(3, rows, cols)
            picture[:, y, x] = pixels.movedim(-3, 0)[:, here]
        top, left, bottom, right = view.box
        ends = [
            (round(-low / (high - low) * size), round((1 - low) / (high - low) * size))
            for low, high, size in ((top, bottom, picture.shape[1]), (left, right, picture.shape[2]))
        ]
        picture = picture[:, slice(*ends[0]), slice(*ends[1])]
        coloured = ((picture * factor + offset) * 255).round().clamp(0, 255).to(torch.uint8)
        found.append(coloured.permute(1, 2, 0).contiguous())
    return tuple(found)
