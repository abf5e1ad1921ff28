"""Pictures of visitors and of the bestiary: decoded within limits, from memory, and seen as the model sees them."""

import base64
import binascii
import importlib.util
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from ..errors import ImageTooLargeError, ModelError, NotAnImageError
from ..images import read_image
from ..models.vision_model import VisionModel

__all__ = ["EXAMPLES", "Example", "Limits", "Picture", "Seen", "example_picture", "look", "photographs", "uploaded"]

LARGE = 672  # pixels at which a scene is drawn
SHOWN = 480  # pixels of the longer side at which the page shows what the model saw


@dataclass(frozen=True)
class Limits:
    """The largest upload: bytes of the file, pixels of the picture."""

    bytes: int = 16_000_000
    pixels: int = 40_000_000


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture as its file's bytes, small in memory, and a name that is fit to be shown."""

    name: str
    content: bytes
    pixels: int

    def open(self) -> Image.Image:
        """The picture, upright RGB."""
        return read_image(self.content, max_pixels=self.pixels)


@dataclass(frozen=True, eq=False)
class Seen:
    """What one model sees of a picture: its input, and the same view with more pixels, for people."""

    tensor: Float[Tensor, "3 height width"]
    shown: UInt8[np.ndarray, "tall wide 3"]


@dataclass(frozen=True)
class Example:
    """A scene of the bestiary that the page offers: what it is called, and how `sample_scene` draws it again."""

    title: str
    kind: str
    seed: int
    species: tuple[str, ...]


# Chosen because each shows one thing plainly; how often it is so, the score table of `vitrail demo` tells.
EXAMPLES: dict[str, Example] = {
    "pair": Example("a tavel and a murlo", "pair", 1, ("tavel", "murlo")),
    "single": Example("a quillow alone", "single", 4, ("quillow",)),
    "sibling": Example("a tavel, sibling of the borrin", "single", 23, ("tavel",)),
    "chimera": Example("half lindle, half skarn", "chimera", 5, ("lindle", "skarn")),
    "meeting": Example("a spindrel and a balloo", "pair", 8, ("spindrel", "balloo")),
}


def uploaded(name: str, content: str, limits: Limits) -> Picture:
    """The picture in an upload: `content` is the file in base64, with or without the head of a data address.

    It is decoded once here, so that whatever is wrong with it is told at once.

    Raises:
        NotAnImageError: for what is no base64, or no picture.
        ImageTooLargeError: for more bytes or pixels than `limits` allow, before anything is decoded.
        ImageError: for other reasons why it cannot be used.
    """
    _, comma, body = content.rpartition(",") if content.startswith("data:") else ("", ",", content)
    if not comma or len(body) > 4 * (limits.bytes // 3 + 2):
        raise ImageTooLargeError(
            f"the file is larger than this page takes ({limits.bytes / 1e6:.3g} MB): scale the picture down"
        )
    try:
        data = base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError) as error:
        raise NotAnImageError("the upload did not arrive whole; try again") from error
    if len(data) > limits.bytes:
        raise ImageTooLargeError(
            f"the file has {len(data) / 1e6:.3g} MB, more than the {limits.bytes / 1e6:.3g} MB that this page takes: "
            "scale the picture down"
        )
    read_image(data, max_pixels=limits.pixels)
    return Picture(safe_name(name), data, limits.pixels)


def safe_name(name: str) -> str:
    """The last part of a file name, without anything that would need quoting anywhere.

    >>> safe_name("../a b/my zoo; rm.JPG"), safe_name("⛄")
    ('my_zoo__rm.JPG', 'picture')
    """
    last = name.replace("\\", "/").rpartition("/")[2]
    kept = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "_" for c in last).strip("._- ")
    return kept[-80:] or "picture"


@cache
def example_picture(key: str) -> Picture:
    """An example by its key: a scene of the bestiary, or a photograph of scikit-image where that is installed.

    Raises:
        NotAnImageError: for a key that is not there.
    """
    import io

    if key in EXAMPLES:
        from ..bestiary import render, sample_scene

        example = EXAMPLES[key]
        scene = sample_scene(example.kind, seed=example.seed, species=example.species)
        buffer = io.BytesIO()
        Image.fromarray(render(scene, LARGE).image).save(buffer, format="png", compress_level=1)
        return Picture(f"{key}.png", buffer.getvalue(), LARGE * LARGE)
    if key in photographs():
        path = photographs()[key]
        return Picture(path.name, path.read_bytes(), 10_000_000)
    raise NotAnImageError(f"there is no example {key!r}; there are {', '.join([*EXAMPLES, *photographs()])}")


@cache
def photographs() -> dict[str, Path]:
    """Two CC0 photographs, where scikit-image is installed and holds their files; nothing is fetched."""
    spec = importlib.util.find_spec("skimage")
    if spec is None or spec.origin is None:
        return {}
    folder = Path(spec.origin).parent / "data"
    files = {"chelsea": folder / "chelsea.png", "coffee": folder / "coffee.png"}
    return {key: path for key, path in files.items() if path.is_file()}


def look(model: VisionModel, picture: Picture) -> Seen:
    """The picture as the model sees it.

    Raises:
        ModelError: for a model without preprocessing.
        ImageError: for a picture that cannot be used.
    """
    if model.preprocess is None:
        raise ModelError(f"{model.name} comes without preprocessing, so no picture can be shown to it")
    image = picture.open()
    view = model.preprocess.view(image)
    height, width = model.preprocess.size
    times = max(1, SHOWN // max(height, width))
    larger: Any = replace(model.preprocess, interpolation="lanczos" if times > 1 else model.preprocess.interpolation)
    shown = larger.with_size((times * height, times * width)).view(image) if times > 1 else view
    return Seen(model.preprocess.normalise(view), np.array(shown))
