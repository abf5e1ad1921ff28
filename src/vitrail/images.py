"""Opening pictures of every kind that people have, always as upright 8-bit RGB, or saying why not."""

import logging
import os
import re
from collections import Counter
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
from PIL import Image, ImageOps, TiffImagePlugin

from .errors import (
    ImageError,
    ImageTooLargeError,
    NotAnImageError,
    TruncatedImageError,
    UnsupportedImageError,
    silenced,
)

__all__ = ["MAX_PIXELS", "READABLE", "SUFFIXES", "PictureLike", "read_image", "skipped", "walk_images"]

PictureLike: TypeAlias = (
    str | os.PathLike[str] | Image.Image | np.ndarray | bytes | bytearray | memoryview | BinaryIO | BytesIO
)

MAX_PIXELS = 178_956_970  # where Pillow itself refuses: 512 MiB as RGB

# What is taken for a picture where a folder is searched; a file that is named is opened whatever its suffix.
READABLE = "avif bmp gif jfif jp2 jpeg jpg pbm pgm png pnm ppm tif tiff webp"
_HEIF = (".heic", ".heif")
if find_spec("pillow_heif") is not None:
    READABLE = f"{READABLE} heic heif"
SUFFIXES = frozenset(f".{suffix}" for suffix in READABLE.split())

# Files that lie in folders of pictures and are not pictures.
_OTHER = (
    "cfg csv db html ini json jsonl lock log mat md npy npz parquet pt pth py safetensors sh toml tsv txt xml yaml yml "
    "zip"
)
_OTHERS = frozenset(f".{suffix}" for suffix in _OTHER.split())

_log = logging.getLogger("vitrail")

_SIGNATURES = {
    b"\x89PNG": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"GIF8": "GIF",
    b"II*\x00": "TIFF",
    b"MM\x00*": "TIFF",
    b"RIFF": "WEBP",
    b"BM": "BMP",
}
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
# What Pillow's decoders say of files that are whole and beyond them.
_UNSUPPORTED = re.compile(
    r"unsupported|not supported|not available|not installed|unknown|unable to locate|cannot handle", re.I
)

_TOPS = (255, 4095, 65535)  # white in pictures of 8, 12 and 16 bits


def read_image(source: PictureLike, *, max_pixels: int = MAX_PIXELS, notes: list[str] | None = None) -> Image.Image:
    """Opens a picture as upright RGB with 8 bits per channel.

    `source` is a path, the bytes of a file, an open binary file, a PIL image, or an array of height x width (grey, also
    with an axis of 1), height x width x 3 (RGB) or x 4 (RGBA). Transparent pixels are laid over white, the camera's
    orientation is applied, and of an animation the first frame is taken. Deeper integers are scaled, not clipped, by
    the range that their values show: white is 255, 4095 or 65535, whichever holds them; floating point arrays go from
    0 to 1, and floating point files to 1 or one of these. What is not plain of this goes into the list `notes`, or
    without one into the log. What is given is never changed.

    Raises:
        NotAnImageError: for what is missing, empty, a folder, or no picture.
        TruncatedImageError: for a file that ends early or is damaged.
        UnsupportedImageError: for a picture of a kind that cannot be read here.
        ImageTooLargeError: above `max_pixels`, before anything is decoded.
        ImageError: for arrays and pixel formats whose black and white are not known.

    Example:
        >>> read_image(np.zeros((20, 30), dtype=np.uint8)).size
        (30, 20)
    """
    reader = _Reader("the picture", max_pixels, notes)
    if isinstance(source, np.ndarray):
        reader.label = "the array"
        return reader.from_array(source)
    if isinstance(source, Image.Image):
        reader.label = "the PIL image"
        return reader.decode(source)
    if isinstance(source, bytes | bytearray | memoryview):
        reader.label = "the image bytes"
        return reader.from_file(BytesIO(source))
    if isinstance(source, str | os.PathLike):
        reader.label = os.fsdecode(source)
        with _open_file(reader.label) as file:
            return reader.from_file(file)
    if hasattr(source, "read"):
        reader.label = str(getattr(source, "name", "the image file"))
        return reader.from_file(source)
    kind = f"{type(source).__module__}.{type(source).__qualname__}".removeprefix("builtins.")
    raise ImageError(f"an image is a path, bytes, an open file, a PIL image or an array of pixels, not {kind}")


def walk_images(
    folder: Path, *, refuse: Callable[[OSError], None], leave_out: Path | None = None
) -> tuple[list[Path], Counter[str]]:
    """Returns the pictures below a folder in the order of their names, and how many other files there are of each
    suffix.

    The suffix decides what is a picture. Links are followed, each folder once; hidden files and the folder `leave_out`
    are skipped. `refuse` is called with the error of a folder that cannot be read.
    """
    found: list[Path] = []
    others: Counter[str] = Counter()
    entered = set() if leave_out is None else {os.path.realpath(leave_out)} - {os.path.realpath(folder)}
    for parent, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        real = os.path.realpath(parent)
        if real in entered:  # the results, or a link that leads to where the walk has been
            folders[:] = []
            continue
        entered.add(real)
        for name in sorted(name for name in files if not name.startswith(".")):
            suffix = Path(name).suffix.lower()
            if suffix in SUFFIXES:
                found.append(Path(parent, name))
            else:
                others[suffix] += 1
    return found, others


def skipped(others: Counter[str]) -> str | None:
    """Returns one sentence on the other files that could be images too, and what reads them; None without any.

    Example:
        >>> skipped(Counter({".psd": 2, ".txt": 3}))
        '2 files were skipped: 2 .psd (convert them to PNG or JPEG)'
    """
    doubtful = {suffix: count for suffix, count in sorted(others.items()) if suffix not in _OTHERS}
    if not doubtful:
        return None
    heif, other = (
        ", ".join(f"{n} {suffix or 'without a suffix'}" for suffix, n in doubtful.items() if (suffix in _HEIF) == asked)
        for asked in (True, False)
    )
    parts = [f"{heif} (to read them: pip install pillow-heif)"] if heif else []
    parts += [f"{other} (convert them to PNG or JPEG)"] if other else []
    total = sum(doubtful.values())
    return f"{total} {'file was' if total == 1 else 'files were'} skipped: {', '.join(parts)}"


def _open_file(label: str) -> BinaryIO:
    if label.startswith(("http://", "https://")):
        raise NotAnImageError(f"{label} is an address, and Vitrail fetches no pictures; download it and give the file")
    if "\0" in label:
        raise NotAnImageError(f"{label!r} holds a NUL character, and no file name can")
    path = Path(label)
    try:
        if not path.exists():
            raise NotAnImageError(f"{label} does not exist")
        if path.is_dir():
            raise NotAnImageError(f"{label} is a folder, not an image file")
        if not path.is_file():
            raise NotAnImageError(f"{label} is not a regular file (a pipe, socket or device): read it into one first")
        return path.open("rb")
    except OSError as error:
        raise ImageError(f"{label} could not be opened: {error.strerror}") from error


class _Reader:
    """Reads one picture; `label` is its name in errors and notes."""

    def __init__(self, label: str, max_pixels: int, notes: list[str] | None) -> None:
        self.label, self.max_pixels, self.notes = label, max_pixels, notes

    def note(self, text: str) -> None:
        if self.notes is None:
            _log.warning("%s %s", self.label, text)
        else:
            self.notes.append(f"the picture {text}")

    def from_file(self, file: Any) -> Image.Image:
        label = self.label
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
        if head[4:8] == b"ftyp" and head[8:12] in _HEIF_BRANDS:
            self._learn_heif()
        try:
            # What they warn of, size and damage, is told by errors here.
            with silenced(Image.DecompressionBombWarning), silenced(UserWarning, module="PIL"):
                image = Image.open(file)
        except Image.DecompressionBombError as error:
            raise ImageTooLargeError(f"{label}: {error} Scale the picture down") from error
        except MemoryError:
            raise
        except Exception as error:  # of Pillow's forty decoders each has its own way to fail
            raise self._unread(file, start, head) from error
        with image:
            if (frames := _frames(image)) > 1:
                self.note(f"holds {frames} frames; the first is used")
            return self.decode(image)

    def _learn_heif(self) -> None:
        try:
            pillow_heif = import_module("pillow_heif")
        except ImportError as error:
            reason = (
                f"{self.label} is a HEIC picture; to read it: pip install pillow-heif, or convert it to PNG or JPEG"
            )
            raise UnsupportedImageError(reason) from error
        pillow_heif.register_heif_opener()

    def _unread(self, file: Any, start: int, head: bytes) -> ImageError:
        """Returns why Pillow could not open the file: its first bytes, and its decoder's message."""
        kind = next((name for signature, name in _SIGNATURES.items() if head.startswith(signature)), None)
        if kind is None:
            return NotAnImageError(f"{self.label} is no image that Pillow can read; it begins with {head!r}")
        said = ""
        try:
            file.seek(start)
            with silenced(UserWarning, module="PIL"):
                Image.OPEN[kind][0](file, self.label)
        except Exception as error:  # as above
            said = str(error)
        if _UNSUPPORTED.search(said):
            kind = f"{kind} file{_samples(file, start)}"
            return UnsupportedImageError(
                f"{self.label} is not supported: a {kind} ({said}); convert it to PNG or JPEG of 8 bits"
            )
        return TruncatedImageError(f"{self.label} begins as a {kind} file, but its header is cut short or damaged")

    def from_array(self, array: np.ndarray) -> Image.Image:
        shape = " x ".join(map(str, array.shape)) or "()"
        if array.ndim == 3 and array.shape[2] == 1:
            array = array[..., 0]
        elif array.ndim == 3 and array.shape[0] == 1 and array.shape[2] not in (3, 4):
            array = array[0]
        if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)):
            remedy = ""
            if array.ndim == 3 and array.shape[0] in (3, 4):
                remedy = "; move the channels to the end with .transpose(1, 2, 0)"
            elif array.ndim == 4:
                remedy = "; give the images of a batch as a list"
            raise ImageError(
                f"an array of {shape} is not height x width, height x width x 3 or height x width x 4{remedy}"
            )
        if array.size == 0:
            raise ImageError(f"an array of {shape} has no pixels")
        if array.shape[0] * array.shape[1] > self.max_pixels:
            raise self._too_large(array.shape[1], array.shape[0])
        if array.dtype.kind in "iu" and array.dtype != np.uint8:
            array = self._levels(array)
        elif array.dtype.kind == "f" and array.min() >= 0 and array.max() <= 1:
            array = np.round(array.astype(np.float64) * 255).astype(np.uint8)
        if array.dtype != np.uint8:
            raise ImageError(
                f"an array of {array.dtype} ({shape}) is no picture of whole numbers, nor of fractions from 0 to 1; "
                "scale it to 0…255 and convert it with .astype(numpy.uint8), or give the model's own normalised input "
                "as a float tensor"
            )
        return self.decode(Image.fromarray(np.ascontiguousarray(array)))

    def decode(self, image: Image.Image) -> Image.Image:
        width, height = image.size
        if width * height > self.max_pixels:
            raise self._too_large(width, height)
        if width * height == 0:
            raise ImageError(f"{self.label} has no pixels ({width} x {height})")
        if _is_preview(image):
            raise UnsupportedImageError(
                f"{self.label} is not supported: it begins with a small preview, as the raw files of cameras do; "
                "convert it to PNG or JPEG"
            )
        deep = any(";16" in str(tile) for tile in getattr(image, "tile", ())) and len(image.getbands()) > 1
        try:
            with silenced(UserWarning, module="PIL"):
                image.load()
        except Image.DecompressionBombError as error:
            raise ImageTooLargeError(f"{self.label}: {error} Scale the picture down") from error
        except MemoryError:
            raise
        except Exception as error:  # as above
            if _UNSUPPORTED.search(str(error)):
                how = "install Ghostscript, or " if "Ghostscript" in str(error) else ""
                raise UnsupportedImageError(
                    f"{self.label} is not supported: {error}; {how}convert it to PNG or JPEG"
                ) from error
            raise TruncatedImageError(f"{self.label} ends before its pixels do, or is damaged: {error}") from error
        return self._to_rgb(self._upright(image), deep)

    def _too_large(self, width: int, height: int) -> ImageTooLargeError:
        return ImageTooLargeError(
            f"{self.label} has {width} x {height} = {width * height} pixels, more than the limit of {self.max_pixels}; "
            "scale it down, or raise max_pixels if you trust it"
        )

    def _upright(self, image: Image.Image) -> Image.Image:
        try:
            return ImageOps.exif_transpose(image)
        except Exception as error:  # a damaged EXIF block makes Pillow raise almost anything, and the pixels are whole
            self.note(f"is used as stored: its orientation could not be read ({error})")
            return image

    def _to_rgb(self, image: Image.Image, deep: bool) -> Image.Image:
        if image.mode.startswith("I;16") or image.mode in ("I", "F"):
            return Image.fromarray(self._levels(np.asarray(image))).convert("RGB")
        if deep and 0 < _brightest(image) <= 15:
            raise UnsupportedImageError(
                f"{self.label} is not supported: colours of 12 bits or fewer in a file of 16, of which Pillow keeps "
                "the upper 8; convert it to PNG or JPEG of 8 bits"
            )
        try:
            if not image.has_transparency_data:
                return image.convert("RGB")
            rgba = image.convert("RGBA")
            white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
            return Image.alpha_composite(white, rgba).convert("RGB")
        except ValueError as error:
            reason = f"{self.label} has the pixel format {image.mode}, which Pillow cannot make RGB; convert it first"
            raise ImageError(reason) from error

    def _levels(self, values: np.ndarray) -> np.ndarray:
        """Levels 0 to 255 of deeper pixels: white is what their values show, 255, 4095 or 65535, for floats also 1."""
        low, high = float(values.min()), float(values.max())
        if not np.isfinite([low, high]).all():
            raise ImageError(f"{self.label} holds pixels that are NaN or infinite")
        if low < 0 or high > 65535:
            raise ImageError(
                f"{self.label} holds pixel values from {low:g} to {high:g}, and which of them is black or white is not "
                "known; scale it to 0…255 and save it with 8 bits"
            )
        whole = values.dtype.kind in "iu"
        top = next(limit for limit in (_TOPS if whole else (1, *_TOPS)) if high <= limit)
        if high > 0 and top != (65535 if whole and values.dtype.itemsize == 2 else 1):
            self.note(f"has values up to {high:g}, so {top} is taken for white")
        return np.round(values.astype(np.float64) * (255 / top)).astype(np.uint8)


def _brightest(image: Image.Image) -> int:
    colours = [band for band in image.getbands() if band != "A"]
    return int(np.asarray(image)[..., : len(colours)].max())


def _samples(file: Any, start: int) -> str:
    """Returns a description of a TIFF's pixels; nothing where it is unknown, or for other files."""
    try:
        file.seek(start)
        tags = TiffImagePlugin.ImageFileDirectory_v2(file.read(8))
        file.seek(tags.next)
        tags.load(file)
        bits, kind = tags.get(258, (1,)), tags.get(339, (1,))
        words = {1: "", 2: "signed ", 3: "floating point "}
        return f" of {tags.get(277, 1)} {words.get(kind[0], '')}samples of {bits[0]} bits"
    except Exception:  # only a detail of an error
        return ""


def _is_preview(image: Image.Image) -> bool:
    """Returns whether the first page of a TIFF says that it is a smaller copy of another."""
    try:
        return bool(int(getattr(image, "tag_v2", {}).get(254, 0)) & 1)
    except Exception:  # a damaged tag
        return False


def _frames(image: Image.Image) -> int:
    """Returns the frames of an animation or pages of a document; the extras in the MPO files of phones do not count."""
    try:
        return 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
    except Exception:  # a file that is cut short later than its first frame, which is all that is wanted
        return 1
