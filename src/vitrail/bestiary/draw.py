"""From a scene to pixels and masks, with matplotlib's anti-aliased Agg rasteriser driven directly.

Agg gives the coverage of a part in three inks at once (red: base, green: accent, blue: dark and outline); colour, light
and shadow are then arithmetic on small windows, and the same coverage decides which part owns a pixel.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from jaxtyping import Bool, Float, Float32, UInt8
from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.transforms import Affine2D
from PIL import Image, ImageFilter

from vitrail.bestiary import backdrop
from vitrail.bestiary.anatomy import outlines
from vitrail.bestiary.backdrop import HERE, Spot
from vitrail.bestiary.scene import Backdrop, Creature, Light, Scene
from vitrail.bestiary.shapes import Palette, Rgb, Shape, motion
from vitrail.bestiary.species import BestiaryError

INKS: Mapping[str, Rgb] = MappingProxyType(
    {"base": (1.0, 0.0, 0.0), "accent": (0.0, 1.0, 0.0), "dark": (0.0, 0.0, 1.0)}
)
HOME = motion(*HERE, 1.0)
WHITE: Rgb = (0.98, 0.97, 0.94)


@dataclass(frozen=True)
class CreatureView:
    """What is seen of one creature: a mask per drawn part, their union, its box (left, top, right, bottom)."""

    parts: Mapping[str, Bool[np.ndarray, "height width"]]
    mask: Bool[np.ndarray, "height width"]
    box: tuple[int, int, int, int]


@dataclass(frozen=True)
class Rendered:
    """A drawn scene: the image, and for each creature what is seen of it, occlusion taken into account."""

    image: UInt8[np.ndarray, "height width 3"]
    creatures: tuple[CreatureView, ...]


def render(scene: Scene, size: int = 96) -> Rendered:
    """Draws a scene at `size` by `size` pixels: uint8 image (size, size, 3) and Boolean masks (size, size).

    Raises `BestiaryError` for a size below 16.

    >>> from vitrail.bestiary import sample_scene
    >>> render(sample_scene("single", seed=0), size=64).image.shape
    (64, 64, 3)
    """
    if size < 16:
        raise BestiaryError(f"a scene cannot be drawn at {size} px: 16 is the least")
    canvas = Canvas(size, scene.light)
    canvas.landscape(scene.backdrop)
    owners = [canvas.creature(creature) for creature in scene.creatures]
    for thing in scene.occluders:
        shapes, inks = backdrop.occluder(thing.form, thing.x, thing.y, thing.size, thing.seed, scene.backdrop.theme)
        canvas.part(shapes, HOME, np.array(inks), reach=0.25 * thing.size, owner=0)
    return Rendered(canvas.finish(), tuple(_view(canvas.owner, parts) for parts in owners))


def _view(owner: np.ndarray, owned: list[tuple[str, int]]) -> CreatureView:
    masks: dict[str, np.ndarray] = {}
    for slot, number in owned:
        mask = owner == number
        masks[slot] = masks[slot] | mask if slot in masks else mask
    union = np.logical_or.reduce(list(masks.values())) if masks else np.zeros(owner.shape, dtype=bool)
    rows, columns = np.flatnonzero(union.any(axis=1)), np.flatnonzero(union.any(axis=0))
    box = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1) if len(rows) else (0, 0, 0, 0)
    return CreatureView(MappingProxyType(masks), union, box)


class Canvas:
    """RGB planes in [0, 1] being painted from the back to the front, and for each pixel the number of its owner."""

    def __init__(self, size: int, light: Light) -> None:
        self.size = size
        self.light = light
        self.image: Float32[np.ndarray, "3 size size"] = np.zeros((3, size, size), dtype=np.float32)
        self.owner = np.zeros((size, size), dtype=np.int16)
        self._agg = RendererAgg(size, size, 72)
        self._buffer = np.asarray(self._agg.buffer_rgba())
        self._pen = self._agg.new_gc()
        self._pen.set_antialiased(True)
        self._pen.set_snap(False)  # snapping to pixels would make the picture depend on the size
        self._pen.set_joinstyle("round")
        self._line = 0.011 * size
        self._numbers = 0

    def landscape(self, land: Backdrop) -> None:
        """Paints sky, hills and plants at once in plain colours, then gives them their grain."""
        self._buffer[..., 3] = 255
        self._buffer[..., :3] = 255 * backdrop.gradient(land.theme, self.size).transpose(1, 2, 0)
        self._pen.set_linewidth(0)

        def fill(shapes: list[Shape], inks: tuple[Rgb, Rgb, Rgb], opacity: float = 1.0, spot: Spot = HERE) -> None:
            colour = dict(zip(INKS, inks, strict=True))
            x, y, angle, size = spot
            onto = self._pixels(*motion(x, y, angle, size, 1.0))
            for shape in shapes:
                self._agg.draw_path(self._pen, shape.path, onto, (*colour[shape.ink], opacity))

        backdrop.paint(land.theme, land.seed, land.clutter, fill, land.hidden)
        grain = backdrop.texture(land.seed, self.size)
        self.image = self._buffer[..., :3].transpose(2, 0, 1).astype(np.float32) * (1 / 255)
        self.image *= 1 + 0.05 * grain

    def creature(self, creature: Creature) -> list[tuple[str, int]]:
        """Paints one creature and returns (slot, owner number) of what was painted."""
        place = creature.placement
        moves = motion(place.x, place.y, place.angle, place.scale, place.flip)
        owned: list[tuple[str, int]] = []
        hide: tuple[slice, slice, np.ndarray] | None = None
        for slot, shapes in outlines(creature.family, creature.drawn, creature.pose):
            self._numbers += 1
            owned.append((slot, self._numbers))
            reach = place.scale * (0.2 if slot == "body" else 0.11)
            clip = hide if slot == "coat" else None
            window = self.part(shapes, moves, _inks(slot, creature.palette), reach, self._numbers, clip)
            if slot == "body":
                hide = window
        return owned

    def part(
        self,
        shapes: Sequence[Shape],
        moves: tuple[np.ndarray, np.ndarray],
        colours: Float[np.ndarray, "3 3"],
        reach: float,
        owner: int,
        clip: tuple[slice, slice, np.ndarray] | None = None,
    ) -> tuple[slice, slice, np.ndarray] | None:
        """Paints shapes with light and a soft shadow `reach` deep, and returns their window and its base coverage."""
        radius = max(1, round(0.5 * reach * self.size))
        if clip is None:
            found = self._cover(shapes, moves, pad=2 * radius + 2)
        else:
            # A coat is ink on the skin: it lies in the window of the body, without relief or shadow of its own.
            found = self._cover(shapes, moves, window=clip[:2])
        if found is None:
            return None
        rows, columns, inks = found
        if clip is not None:
            inks = inks * clip[2]
        cover = inks.sum(axis=0)
        np.minimum(cover, 1.0, out=cover)
        paint = (colours.T.astype(np.float32) @ inks.reshape(3, -1)).reshape(inks.shape)
        below = self.image[:, rows, columns]
        if clip is None:
            soft = _blurred(cover, radius)
            lx, ly = np.cos(self.light.angle), np.sin(self.light.angle)
            # The blurred silhouette is read as a height: its slope towards the light brightens, away from it darkens.
            slope = np.zeros_like(soft)
            slope[:, 1:-1] += lx * (soft[:, :-2] - soft[:, 2:])
            slope[1:-1] += ly * (soft[2:] - soft[:-2])
            paint *= np.clip(1 + self.light.relief * radius * 1.5 * slope, 0.5, 1.45)
            below = below * (1 - 0.3 * soft * (1 - cover))
        self.image[:, rows, columns] = below * (1 - cover) + paint
        self.owner[rows, columns][cover > 0.5] = owner
        return rows, columns, np.minimum(inks[0] + inks[1], 1.0)

    def finish(self) -> UInt8[np.ndarray, "size size 3"]:
        """Lights the whole image and rounds it to bytes."""
        light = self.light
        t = np.linspace(-1, 1, self.size, dtype=np.float32)
        dim = 0.5 * light.vignette * t**2
        over = light.gain * (1 + 0.09 * np.cos(light.angle) * t) - dim
        down = -0.09 * light.gain * np.sin(light.angle) * t - dim
        warm = np.array([1 + 0.05 * light.warmth, 1.0, 1 - 0.05 * light.warmth], dtype=np.float32)
        lit = self.image * (255 * (over[None, :] + down[:, None]))
        lit *= warm[:, None, None]
        lit += 0.5
        np.clip(lit, 0, 255, out=lit)
        return np.ascontiguousarray(lit.astype(np.uint8).transpose(1, 2, 0))

    def _pixels(self, matrix: np.ndarray, origin: np.ndarray) -> Affine2D:
        full = np.identity(3)
        full[:2, :2], full[:2, 2] = matrix.T * self.size, origin * self.size
        return Affine2D(full)

    def _cover(
        self,
        shapes: Sequence[Shape],
        moves: tuple[np.ndarray, np.ndarray],
        pad: int = 0,
        window: tuple[slice, slice] | None = None,
    ) -> tuple[slice, slice, Float32[np.ndarray, "3 height width"]] | None:
        """Rasterises shapes moved into image units; returns the window that they touch and its coverage in
        three inks.
        """
        size = self.size
        onto = self._pixels(*moves)
        if window is None:
            matrix, origin = moves
            every = (np.concatenate([shape.path.vertices for shape in shapes]) @ matrix + origin) * size
            left, low = np.floor(every.min(axis=0)).astype(int) - pad
            right, high = np.ceil(every.max(axis=0)).astype(int) + pad
            window = slice(max(0, size - high), max(0, size - low)), slice(max(0, left), max(0, right))
            if window[0].start >= min(window[0].stop, size) or window[1].start >= min(window[1].stop, size):
                return None
        part = self._buffer[window]
        part[...] = (0, 0, 0, 255)
        self._pen.set_foreground((0.0, 0.0, 1.0, 1.0), isRGBA=True)
        for shape in shapes:
            self._pen.set_linewidth(self._line if shape.outlined else 0)
            self._agg.draw_path(self._pen, shape.path, onto, INKS[shape.ink])
            if shape.outlined and len(shape.polygons) > 1:
                # Filling once more without the line leaves an outline around the union only: the polygons are fused.
                self._pen.set_linewidth(0)
                self._agg.draw_path(self._pen, shape.path, onto, INKS[shape.ink])
        return *window, part[..., :3].transpose(2, 0, 1).astype(np.float32) * np.float32(1 / 255)


def _blurred(cover: Float32[np.ndarray, "height width"], radius: int) -> Float32[np.ndarray, "height width"]:
    image = Image.fromarray((cover * 255).astype(np.uint8))
    blurred = image.filter(ImageFilter.BoxBlur(radius)).filter(ImageFilter.BoxBlur(max(1, radius // 2)))
    return np.asarray(blurred).astype(np.float32) * np.float32(1 / 255)


def _inks(slot: str, palette: Palette) -> Float[np.ndarray, "3 3"]:
    """Returns the colours of the inks base, accent and dark of a part."""
    skin, ornament, mark, outline = palette
    first, second = {
        "tail": (skin, ornament),
        "legs": (skin, ornament),
        "head": (skin, ornament),
        "body": (skin, ornament),
        "coat": (mark, mark),
        "eyes": (WHITE, skin),
    }.get(slot, (ornament, mark))
    return np.array((first, second, outline))
