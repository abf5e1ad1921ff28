"""Images of visitors and examples: decoded from memory within limits, and preprocessed for the model."""

import hashlib
import io
from collections.abc import Collection
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.resources import files

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps
from torch import Tensor

from ..errors import ImageTooLargeError, ModelError, NotAnImageError
from ..images import read_image
from ..models.vision_model import VisionModel

__all__ = [
    "EXAMPLES",
    "SCENES",
    "Example",
    "Limits",
    "Picture",
    "Seen",
    "example_picture",
    "look",
    "offered",
    "uploaded",
]

LARGE = 672  # pixels at which a scene is drawn
JOINED = 448  # pixels a side of photographs that are joined side by side
SHOWN = 480  # pixels of the longer side at which the page shows what the model saw


@dataclass(frozen=True)
class Limits:
    """Holds the limits of an upload: bytes of the file, pixels of the image."""

    bytes: int = 16_000_000
    pixels: int = 40_000_000


@dataclass(frozen=True, eq=False)
class Picture:
    """Holds an image as the bytes of its file, and a name that is safe to show.

    `file` is the name of the visitor's own file, for the code that the page gives to copy.
    """

    name: str
    content: bytes
    pixels: int
    file: str = ""

    @cached_property
    def key(self) -> str:
        """Returns the image's key in a link: a hash of its file."""
        return hashlib.sha256(self.content).hexdigest()[:16]

    def open(self) -> Image.Image:
        """Returns the decoded image, upright, in RGB."""
        return read_image(self.content, max_pixels=self.pixels)


@dataclass(frozen=True, eq=False)
class Seen:
    """Holds the input of one model, and the same view with more pixels for display."""

    tensor: Float[Tensor, "3 height width"]
    shown: UInt8[np.ndarray, "tall wide 3"]


@dataclass(frozen=True)
class Example:
    """Describes an example image of the page, and how it is generated.

    Each entry of `objects` lists the class names that a model may have for one object; two objects are contrasted.
    The picture is a scene of the bestiary (`kind` and `seed` of `sample_scene`), or photographs side by side.
    """

    title: str
    objects: tuple[tuple[str, ...], ...]
    kind: str = ""
    seed: int = 0
    files: tuple[str, ...] = ()

    @property
    def species(self) -> tuple[str, ...]:
        """Returns the creatures of a scene."""
        return tuple(names[0] for names in self.objects)

    def known(self, names: Collection[str]) -> bool:
        """Returns whether a model with these class names has a class for every object in the image."""
        return all(any(name in names for name in words) for words in self.objects)


CAT, COFFEE = ("tabby", "Egyptian cat", "tiger cat"), ("espresso", "cup", "coffee mug")

# Chosen because each shows one thing plainly; how often it is so, the score table of `vitrail demo` tells.
EXAMPLES: dict[str, Example] = {
    "pair": Example("a tavel and a murlo", (("tavel",), ("murlo",)), "pair", 1),
    "single": Example("a quillow alone", (("quillow",),), "single", 4),
    "sibling": Example("a tavel, sibling of the borrin", (("tavel",),), "single", 23),
    "chimera": Example("half lindle, half skarn", (("lindle",), ("skarn",)), "chimera", 5),
    "meeting": Example("a spindrel and a balloo", (("spindrel",), ("balloo",)), "pair", 8),
    "cat-and-coffee": Example("a cat and a coffee", (CAT, COFFEE), files=("chelsea", "coffee")),
    "cat": Example("a cat", (CAT,), files=("chelsea",)),
    "coffee": Example("a coffee", (COFFEE,), files=("coffee",)),
}

SCENES = tuple(key for key, example in EXAMPLES.items() if example.kind)


def offered(model: VisionModel) -> tuple[str, ...]:
    """Returns the examples for a model: those it has classes for, else the photographs; the first opens the page."""
    names = {model.class_name(index) for index in range(len(model.class_names or ()))}
    known = tuple(key for key, example in EXAMPLES.items() if example.known(names))
    return known or tuple(key for key, example in EXAMPLES.items() if example.files)


def uploaded(name: str, content: bytes | None, limits: Limits) -> Picture:
    """Decodes an uploaded file; `content` is None where the browser kept it back as too large.

    It is decoded once here, so that whatever is wrong with it is reported at once.

    Raises:
        NotAnImageError: for what is no picture.
        ImageTooLargeError: for more bytes or pixels than `limits` allow, before anything is decoded.
        ImageError: for other reasons why it cannot be used.
    """
    if content is None or len(content) > limits.bytes:
        raise ImageTooLargeError(
            f"the file is larger than this page takes ({limits.bytes / 1e6:.3g} MB): scale the picture down"
        )
    read_image(content, max_pixels=limits.pixels)
    shown = safe_name(name)
    return Picture(shown, content, limits.pixels, "".join(c for c in name if c.isprintable())[-200:] or shown)


def safe_name(name: str) -> str:
    """Returns the last part of a file name, without characters that need quoting.

    >>> safe_name("../a b/my zoo; rm.JPG"), safe_name("⛄")
    ('my_zoo__rm.JPG', 'picture')
    """
    last = name.replace("\\", "/").rpartition("/")[2]
    kept = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "_" for c in last).strip("._- ")
    return kept[-80:] or "picture"


@cache
def example_picture(key: str) -> Picture:
    """Returns an example by its key: a scene of the bestiary, or photographs of the package.

    Raises:
        NotAnImageError: for a key that is not there.

    >>> example_picture("cat-and-coffee").open().size
    (448, 448)
    """
    if key not in EXAMPLES:
        raise NotAnImageError(f"there is no example {key!r}; there are {', '.join(EXAMPLES)}")
    example = EXAMPLES[key]
    if example.kind:
        from ..bestiary import render, sample_scene

        scene = sample_scene(example.kind, seed=example.seed, species=example.species)
        image = Image.fromarray(render(scene, LARGE).image)
    else:
        parts = [_photograph(name) for name in example.files]
        side, wide = JOINED, JOINED // len(parts)
        image = parts[0] if len(parts) == 1 else Image.new("RGB", (side, side))
        for place, part in enumerate(parts if len(parts) > 1 else ()):
            image.paste(ImageOps.fit(part, (wide, side), Image.Resampling.BICUBIC), (place * wide, 0))
    buffer = io.BytesIO()
    image.save(buffer, format="png", compress_level=1)
    return Picture(f"{key}.png", buffer.getvalue(), LARGE * LARGE)


def _photograph(name: str) -> Image.Image:
    return read_image(files("vitrail.app").joinpath("examples", f"{name}.jpg").read_bytes())


def look(model: VisionModel, picture: Picture) -> Seen:
    """Returns the image as the model sees it.

    Raises:
        ModelError: for a model without preprocessing.
        ImageError: for a picture that cannot be used.
    """
    if model.preprocess is None:
        raise ModelError(f"{model.name} comes without preprocessing, so no picture can be shown to it")
    image = picture.open()
    times = max(1, SHOWN // max(model.preprocess.size))
    return Seen(model.preprocess(image), np.array(model.preprocess.enlarged(image, times)))
