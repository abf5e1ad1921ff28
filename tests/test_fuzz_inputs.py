"""Random pipelines and random files: the user's own pixels and places, or one clear error."""

import io
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision import transforms as v1
from torchvision.transforms import InterpolationMode, functional, v2

from vitrail.errors import ImageError, ModelError
from vitrail.images import read_image
from vitrail.models.preprocess_adapters import adapt

FUZZ = settings(
    deadline=None,
    derandomize=True,
    phases=(Phase.explicit, Phase.generate),  # shrinking takes longer than the search
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
MODES = [InterpolationMode.NEAREST, InterpolationMode.BILINEAR, InterpolationMode.BICUBIC]
Step = Callable[[Any], Any]

sides = st.integers(20, 48)


@st.composite
def resizings(draw: st.DrawFn, kit: Any) -> Step:
    mode = draw(st.sampled_from(MODES))
    antialias = draw(st.booleans())
    kind = draw(st.sampled_from(["shorter", "box", "bounded"]))
    if kind == "box":
        return kit.Resize((draw(sides), draw(sides)), mode, antialias=antialias)
    shorter = draw(sides)
    longest = shorter + draw(st.integers(1, 40)) if kind == "bounded" else None
    return kit.Resize(shorter, mode, max_size=longest, antialias=antialias)


def middle_steps(kit: Any) -> st.SearchStrategy[Step]:
    """What pipelines have besides resizing: cropping, padding, greys, and a few that no map can be laid over."""
    return st.one_of(
        st.builds(kit.CenterCrop, st.tuples(sides, sides)),
        st.builds(kit.Pad, st.integers(0, 6), st.sampled_from([0, 128, 255])),
        st.just(kit.Grayscale(3)),
        st.sampled_from([functional.hflip, functional.vflip, functional.autocontrast, functional.invert]),
        st.sampled_from([kit.RandomHorizontalFlip(0.5), kit.RandomCrop(20, pad_if_needed=True)]),
    )


@st.composite
def pipelines(draw: st.DrawFn) -> Step:
    kit: Any = draw(st.sampled_from([v1, v2]))
    steps: list[Step] = [draw(resizings(kit)), *draw(st.lists(middle_steps(kit), max_size=2))]
    if draw(st.booleans()):
        steps.append(kit.CenterCrop(draw(sides)))
    to_tensor: list[Step] = [v1.ToTensor()] if kit is v1 else [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
    at = draw(st.sampled_from([0, len(steps)]))  # before or after the geometry
    steps[at:at] = to_tensor
    normal = st.sampled_from([([0.5], [0.5]), ([0.48, 0.45, 0.4], [0.23, 0.22, 0.25]), ([0.0] * 3, [1 / 255] * 3)])
    steps += [kit.Normalize(*draw(normal)) for _ in range(draw(st.integers(0, 2)))]
    if draw(st.booleans()):
        steps = [kit.Compose(steps[:2]), *steps[2:]]
    return kit.Compose(steps)


def noise(size: tuple[int, int]) -> Image.Image:
    return Image.fromarray(np.random.default_rng(sum(size)).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def same_pixels_and_places(transform: Step, size: tuple[int, int]) -> None:
    try:
        found = adapt(transform)
        ours = found(noise(size))
    except (ModelError, ImageError):
        return
    torch.manual_seed(0)
    assert (ours - transform(noise(size))).abs().max() <= 1e-6
    mask = np.zeros((size[1], size[0]), dtype=bool)
    mask[size[1] // 3 : 2 * size[1] // 3, size[0] // 3 : 2 * size[0] // 3] = True
    black, white, marked = (
        transform(Image.fromarray(np.repeat(one[..., None] * np.uint8(255), 3, axis=2))).mean(dim=0)
        for one in (np.zeros_like(mask), np.ones_like(mask), mask)
    )
    truth = ((marked - black) > 0.5 * (white - black).max()).numpy()
    try:
        seen = found.seen_mask(mask)
    except (ModelError, ImageError):
        return
    # A pixel of the input, or of the picture where that is the coarser, may lie on either side of the outline.
    allowed = 2 * sum(truth.shape) * max(1, truth.shape[0] / size[1], truth.shape[1] / size[0])
    assert (truth ^ seen).sum() <= allowed
    if 0 < truth.sum() < truth.size:
        for axis in (0, 1):
            lines = [np.flatnonzero(one.any(axis=axis)) for one in (truth, seen)]
            assert all(len(one) for one in lines)
            tolerance = 1 + truth.shape[1 - axis] / size[axis]
            assert abs(lines[0][0] - lines[1][0]) <= tolerance
            assert abs(lines[0][-1] - lines[1][-1]) <= tolerance


pytestmark = pytest.mark.filterwarnings("ignore:Anti-alias option is always applied:UserWarning")
sizes = st.tuples(st.integers(24, 120), st.integers(24, 120))


@settings(FUZZ, max_examples=12)
@given(pipelines(), sizes)
def test_any_pipeline_gives_the_users_pixels_or_an_error(transform: Step, size: tuple[int, int]):
    same_pixels_and_places(transform, size)


@pytest.mark.slow
@settings(FUZZ, max_examples=150)
@given(pipelines(), sizes)
def test_many_pipelines_give_the_users_pixels_or_an_error(transform: Step, size: tuple[int, int]):
    same_pixels_and_places(transform, size)


FORMATS = ["PNG", "JPEG", "TIFF", "GIF", "BMP", "WEBP", "PPM", "JPEG2000", "AVIF", "ICO", "TGA", "PCX", "EPS"]


@st.composite
def files(draw: st.DrawFn) -> bytes:
    """A file of any format and mode, whole, cut short, or with some bytes changed."""
    mode = draw(st.sampled_from(["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I", "F", "I;16", "YCbCr"]))
    width, height = draw(st.tuples(st.integers(1, 20), st.integers(1, 20)))
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    picture = picture.convert("L").convert("I").convert("I;16") if mode == "I;16" else picture.convert(mode)
    buffer = io.BytesIO()
    kind = draw(st.sampled_from(FORMATS))
    try:
        with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
            picture.save(buffer, kind)
    except (OSError, ValueError, KeyError):  # a mode that the format has not
        return b""
    content = bytearray(buffer.getvalue())
    places = draw(st.lists(st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255)), max_size=6))
    for place, value in places:
        content[place] = value
    return bytes(content[: draw(st.integers(1, len(content)))] if draw(st.booleans()) else content)


def rgb_or_error(content: bytes) -> None:
    try:
        picture = read_image(content, max_pixels=1_000_000, notes=[])
    except ImageError:
        return
    assert picture.mode == "RGB"
    assert picture.width * picture.height > 0


@settings(FUZZ, max_examples=150)
@given(files())
def test_any_file_is_a_picture_or_an_error(content: bytes):
    rgb_or_error(content)


@pytest.mark.slow
@settings(FUZZ, max_examples=3000)
@given(files())
def test_many_files_are_pictures_or_errors(content: bytes):
    rgb_or_error(content)


@st.composite
def arrays(draw: st.DrawFn) -> np.ndarray:
    dtype = draw(st.sampled_from("bool u1 i1 u2 i2 u4 i4 u8 i8 f2 f4 f8 c8 U3 O >i4 >f4".split()))  # noqa: SIM905
    shape = draw(st.lists(st.integers(0, 6), max_size=5))
    values = np.random.default_rng(len(shape)).random(shape) * draw(st.sampled_from([0.5, 1, 2, 200, 4000, 65535, 1e9]))
    return np.asarray(values - draw(st.sampled_from([0, 0, 1]))).astype(dtype)


@settings(FUZZ, max_examples=150)
@given(arrays())
def test_any_array_is_a_picture_of_its_own_levels_or_an_error(array: np.ndarray):
    try:
        picture = np.asarray(read_image(array, notes=[]))
    except ImageError:
        return
    assert picture.dtype == np.uint8
    assert picture.shape[2] == 3
    values = np.squeeze(array).astype(np.float64)
    if array.ndim == 2 and array.dtype.kind in "iuf" and values.size > 1:
        # Grey: one scale for the whole picture, so that what is brighter stays so.
        order = np.argsort(values.ravel(), kind="stable")
        assert (np.diff(picture[..., 0].ravel()[order].astype(int)) >= 0).all()
