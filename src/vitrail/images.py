"""Opening pictures of every kind that people have, always as upright 8-bit RGB, or saying why not."""

import logging
from io import BytesIO
from os import PathLike, fspath
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageOps

from .errors import ImageError, ImageTooLargeError, NotAnImageError, TruncatedImageError
from .silence import silenced

__all__ = ["MAX_PIXELS", "READABLE", "SUFFIXES", "read_image"]

MAX_PIXELS = 178_956_970  # where Pillow itself refuses: 512 MiB as RGB

# What is taken for a picture where a folder is searched; a file that is named is opened whatever its suffix.
READABLE = "avif bmp gif jfif jp2 jpeg jpg pbm pgm png pnm ppm tif tiff webp"
SUFFIXES = frozenset(f".{suffix}" for suffix in READABLE.split())

_log = logging.getLogger("vitrail")

_SIGNATURES = {
    b"\x89PNG": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"GIF8": "GIF",
    b"II*\x00": "TIFF",
    b"MM\x00*": "TIFF",
    b"RIFF": "WebP",
    b"BM": "BMP",
}


def read_image(
    source: str | PathLike | Image.Image | np.ndarray | bytes | BinaryIO, *, max_pixels: int = MAX_PIXELS
) -> Image.Image:
    """Open a picture as upright RGB with 8 bits per channel.

    `source` is a path, the bytes of a file, an open binary file, a PIL image, or a uint8 array of height x width
    (grey), height x width x 3 (RGB) or x 4 (RGBA). Transparent pixels are laid over white, the camera's orientation
    is applied, 16-bit grey is scaled (not clipped), floating point grey counts to 1, 255 or 65535, whichever holds its
    values, and of an animation the first frame is taken, with a warning in the log. What is given is never changed.

    Raises:
        NotAnImageError: for what is missing, empty, a folder, or no picture.
        TruncatedImageError: for a file that ends early or is damaged.
        ImageTooLargeError: above `max_pixels`, before anything is decoded.
        ImageError: for arrays and pixel formats whose black and white are not known.

    Example:
        >>> read_image(np.zeros((20, 30), dtype=np.uint8)).size
        (30, 20)
    """
    if isinstance(source, np.ndarray):
        return _from_array(source, max_pixels)
    if isinstance(source, Image.Image):
        return _decode(source, "the PIL image", max_pixels)
    if isinstance(source, bytes | bytearray | memoryview):
        return _from_file(BytesIO(source), "the image bytes", max_pixels)
    if isinstance(source, str | PathLike):
        label = str(fspath(source))
        with _open_file(label) as file:
            return _from_file(file, label, max_pixels)
    if hasattr(source, "read"):
        return _from_file(source, str(getattr(source, "name", "the image file")), max_pixels)
    kind = f"{type(source).__module__}.{type(source).__qualname__}".removeprefix("builtins.")
    raise ImageError(f"an image is a path, bytes, an open file, a PIL image or a uint8 array, not {kind}")


def _open_file(label: str) -> BinaryIO:
    if label.startswith(("http://", "https://")):
        raise NotAnImageError(f"{label} is an address, and Vitrail fetches no pictures; download it and give the file")
    path = Path(label)
    if not path.exists():
        raise NotAnImageError(f"{label} does not exist")
    if path.is_dir():
        raise NotAnImageError(f"{label} is a folder, not an image file")
    if not path.is_file():
        raise NotAnImageError(f"{label} is not a regular file")
    try:
        return path.open("rb")
    except OSError as error:
        raise ImageError(f"{label} could not be opened: {error.strerror}") from error


def _from_file(file: Any, label: str, max_pixels: int) -> Image.Image:
    try:
        start = file.tell()
        head = file.read(16)
        file.seek(start)
    except (OSError, ValueError, AttributeError) as error:
        raise ImageError(f"{label} cannot be read back and forth ({error}); give its bytes") from error
    if not isinstance(head, bytes):
        raise ImageError(f"{label} was opened as text; open it in binary mode")
    if not head:
        raise NotAnImageError(f"{label} is empty")
    try:
        # What they warn of, size and damage, is told by errors here.
        with silenced(Image.DecompressionBombWarning), silenced(UserWarning, module="PIL"):
            image = Image.open(file)
    except Image.DecompressionBombError as error:
        raise ImageTooLargeError(f"{label}: {error} Scale the picture down") from error
    except Exception as error:  # of Pillow's forty decoders each has its own way to fail
        kind = next((name for signature, name in _SIGNATURES.items() if head.startswith(signature)), None)
        if kind is not None:
            reason = f"{label} begins as a {kind} file, but its header is cut short or damaged"
            raise TruncatedImageError(reason) from error
        raise NotAnImageError(f"{label} is no image that Pillow can read; it begins with {head!r}") from error
    with image:
        if (frames := _frames(image)) > 1:
            _log.warning("%s holds %d frames; the first is used", label, frames)
        return _decode(image, label, max_pixels)


def _from_array(array: np.ndarray, max_pixels: int) -> Image.Image:
    shape = " x ".join(map(str, array.shape)) or "()"
    if array.dtype != np.uint8:
        raise ImageError(
            f"an array of {array.dtype} ({shape}) is no picture of 8 bits per channel; scale it to 0…255 and convert "
            "it with .astype(numpy.uint8), or give the model's own normalised input as a float tensor"
        )
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)):
        remedy = ""
        if array.ndim == 3 and array.shape[0] in (3, 4):
            remedy = "; move the channels to the end with .transpose(1, 2, 0)"
        elif array.ndim == 4:
            remedy = "; give the images of a batch as a list"
        raise ImageError(f"an array of {shape} is not height x width, height x width x 3 or height x width x 4{remedy}")
    if array.size == 0:
        raise ImageError(f"an array of {shape} has no pixels")
    return _decode(Image.fromarray(np.ascontiguousarray(array)), "the array", max_pixels)


def _decode(image: Image.Image, label: str, max_pixels: int) -> Image.Image:
    width, height = image.size
    if width * height > max_pixels:
        raise ImageTooLargeError(
            f"{label} has {width} x {height} = {width * height} pixels, more than the limit of {max_pixels}; "
            "scale it down, or raise max_pixels if you trust it"
        )
    if width * height == 0:
        raise ImageError(f"{label} has no pixels ({width} x {height})")
    try:
        image.load()
    except Image.DecompressionBombError as error:
        raise ImageTooLargeError(f"{label}: {error} Scale the picture down") from error
    except MemoryError:
        raise
    except Exception as error:  # as above
        raise TruncatedImageError(f"{label} ends before its pixels do, or is damaged: {error}") from error
    return _to_rgb(_upright(image, label), label)


def _frames(image: Image.Image) -> int:
    """The frames of an animation or pages of a document; the extras in the MPO files of phones do not count."""
    try:
        return 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
    except Exception:  # a file that is cut short later than its first frame, which is all that is wanted
        return 1


def _upright(image: Image.Image, label: str) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception as error:  # a damaged EXIF block makes Pillow raise almost anything, and the pixels are whole
        _log.warning("%s: its orientation could not be read (%s), so it is used as stored", label, error)
        return image


def _to_rgb(image: Image.Image, label: str) -> Image.Image:
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        return Image.fromarray(_grey_levels(np.asarray(image), label)).convert("RGB")
    try:
        if not image.has_transparency_data:
            return image.convert("RGB")
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    except ValueError as error:
        reason = f"{label} has the pixel format {image.mode}, which Pillow cannot make RGB; convert it first"
        raise ImageError(reason) from error


def _grey_levels(values: np.ndarray, label: str) -> np.ndarray:
    """Levels 0 to 255 of deeper grey: integers count to 65535, floats to 1, 255 or 65535, whichever holds them."""
    low, high = float(values.min()), float(values.max())
    if not np.isfinite([low, high]).all():
        raise ImageError(f"{label} holds pixels that are NaN or infinite")
    if low < 0 or high > 65535:
        raise ImageError(
            f"{label} holds pixel values from {low:g} to {high:g}, and which of them is black or white is not known; "
            "scale it to 0…255 and save it with 8 bits"
        )
    integers = values.dtype.kind in "iu"
    top = 65535 if integers else next(limit for limit in (1, 255, 65535) if high <= limit)
    return np.round(values.astype(np.float64) * (255 / top)).astype(np.uint8)
