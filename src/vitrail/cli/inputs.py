"""Which image files are meant, and what the files made from each are called."""

import glob
import logging
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from vitrail.errors import NotAnImageError, OptionError
from vitrail.files import try_folder

__all__ = ["OVERLAY", "Destination", "Found", "OutputNames", "destination", "find_images", "formats_of", "slug"]

# What ends in one of these or as an image does is meant as a file, whether or not the command at hand writes such.
ENDINGS = {f".{kind}" for kind in ("pdf", "svg", "html", "md", "tex", "csv", "json", "safetensors", "mp4", "txt")}
OVERLAY = "overlay"  # the kind of result that is a .jpg, too

_log = logging.getLogger("vitrail")

MANY = 100  # images, from which on a figure of each would take longer and more room than anybody wants
LONGEST = 100  # bytes of a stem or of a class in a file name, of which most systems allow 255


@dataclass(frozen=True)
class Found:
    """Holds an image file, and its place in the output folder: its path below the searched folder, without suffix."""

    path: Path
    place: Path


def find_images(
    arguments: Sequence[str], *, leave_out: Path | None = None
) -> tuple[list[Found], list[tuple[str, Exception]]]:
    """Returns all images that files, folders (searched recursively) and patterns name, each once, in a stable order.

    An existing file is taken whatever its suffix; in folders the suffix decides, links are followed, and hidden files
    and the folder `leave_out`, where results go, are skipped. The second list holds the arguments that name nothing,
    each with its error. Files in folders that could be pictures and are not read are counted in one log line.
    """
    from vitrail.images import READABLE, skipped, walk_images

    found: dict[str, Found] = {}
    failures: list[tuple[str, Exception]] = []
    others: Counter[str] = Counter()
    for argument in arguments:
        paths = [Path(argument)]
        if not paths[0].exists() and glob.has_magic(argument):
            paths = [Path(match) for match in sorted(glob.glob(argument, recursive=True))]  # noqa: PTH207  (absolute too)
            if not paths:
                failures.append((argument, NotAnImageError("no file matches this pattern")))
        for path in paths:
            if not path.is_dir():
                found.setdefault(os.path.realpath(path), Found(path, Path(path.stem)))
                continue
            inside, unread = walk_images(path, refuse=partial(_cannot_enter, failures), leave_out=leave_out)
            others += unread
            if not inside and not any(argument == str(path) for argument, _ in failures):
                failures.append((str(path), NotAnImageError(f"no image in this folder (suffixes {READABLE})")))
            for one in inside:
                found.setdefault(os.path.realpath(one), Found(one, one.relative_to(path).with_suffix("")))
    if (line := skipped(others)) is not None:
        _log.warning("%s", line)
    return list(found.values()), failures


def _cannot_enter(failures: list[tuple[str, Exception]], error: OSError) -> None:
    failures.append((str(error.filename), NotAnImageError(f"this folder cannot be read: {error.strerror}")))


@dataclass(frozen=True)
class Destination:
    """Holds the folder of the results, or one file whose stem other kinds of result share, and the requested kinds."""

    folder: Path
    file: Path | None = None
    formats: tuple[str, ...] = ()

    @property
    def leave_out(self) -> Path | None:
        """Returns the folder in which no images are searched: that of the results, unless a single file is written."""
        return self.folder if self.file is None else None


def destination(
    output: Path, writes: Sequence[str] = (), asked: Sequence[str] = (), option: str = "--output"
) -> Destination:
    """Reads `--output` (or `option`): a file where it has the suffix of one, else a folder, tried at once.

    `writes` are the suffixes that the command can give a single file, none where it always writes several; `asked` are
    the kinds named by `--format`.

    Raises `OptionError` for a file that cannot be meant, `OutputFileError` where nothing can be written.
    """
    from vitrail.images import SUFFIXES

    kind = output.suffix.lower().removeprefix(".").replace("jpeg", "jpg")
    if output.is_dir() or output.suffix.lower() not in ENDINGS | SUFFIXES:
        return Destination(try_folder(output), None, tuple(asked))
    if kind not in writes:
        endings = ", ".join(f".{one}" for one in writes)
        instead = f", or a file that ends in {endings}" if writes else ": several files are written"
        raise OptionError(f"{option} {output} cannot be a single .{kind} file; name a folder{instead}")
    if asked and kind not in [one.replace(OVERLAY, "jpg") for one in asked]:
        raise OptionError(f"{option} {output} ends in .{kind}, and --format asks for {', '.join(asked)}: leave one out")
    if output.exists() and not output.is_file():
        raise OptionError(f"{option} {output} is not a regular file: name another")
    return Destination(try_folder(output.parent), output, tuple(asked) or (kind,))


def formats_of(asked: tuple[str, ...], images: int) -> tuple[str, ...]:
    """Returns the kinds of file that are written: those asked for, else by the number of images."""
    return asked or (("png",) if images <= MANY else (OVERLAY, "safetensors"))


class OutputNames:
    """Names the results `<folder>/<stem>.<what>.<suffix>`: each name once, and never that of an input image.

    With `file` the only image's results go there, those of other kinds next to it. Raises `OptionError` for more
    images.
    """

    def __init__(self, folder: Path, images: Sequence[Found], file: Path | None = None) -> None:
        if file is not None and len(images) > 1:
            raise OptionError(f"--output {file} is one file, and there are {len(images)} images: name a folder")
        self.folder = folder
        self.file = file
        self._images = {_key(image.path) for image in images}
        self._stems: dict[Path, Path] = {}
        taken: set[str] = set()
        # Images whose stem is theirs alone keep it, whatever comes before them in the list.
        namesakes = Counter(_fold(image.place) for image in images)
        for image in sorted(images, key=lambda one: namesakes[_fold(one.place)] > 1):
            first = stem = Path(*map(_cut, image.place.parts))
            number = 1
            while _fold(stem) in taken:
                number += 1
                stem = first.with_name(f"{first.name}-{number}")
            taken.add(_fold(stem))
            self._stems[image.path] = stem

    def path(self, image: Found, what: str, suffix: str, part: str = "") -> Path:
        """Returns the path of the result called `what` of this image; `part` tells several of a kind apart."""
        end = f".{part}" if part else ""
        if self.file is not None:
            same = self.file.suffix.lower().removeprefix(".").replace("jpeg", "jpg") == suffix and not part
            path = self.file if same else self.file.with_name(f"{self.file.stem}{end}.{suffix}")
            if _key(path) in self._images:
                raise OptionError(f"--output {path} is the image itself: name another file")
            return path
        what += end
        stem = self.folder / self._stems[image.path]
        path, number = stem.with_name(f"{stem.name}.{what}.{suffix}"), 1
        while _key(path) in self._images:
            number += 1
            path = stem.with_name(f"{stem.name}.{what}-{number}.{suffix}")
        return path


def slug(name: str) -> str:
    """Returns a class name as part of a file name: lower case, letters and digits of any script, hyphens between.

    >>> slug("African elephant"), slug("crane (134)"), slug("jack-o'-lantern")
    ('african-elephant', 'crane-134', 'jack-o-lantern')
    """
    return _cut(re.sub(r"[\W_]+", "-", name.lower()).strip("-")) or "unnamed"


def _cut(name: str) -> str:
    """Returns the name in printable characters, cut to `LONGEST` bytes."""
    name = "".join(c if c.isprintable() else "_" for c in name)
    return os.fsencode(name)[:LONGEST].decode(errors="ignore") if len(os.fsencode(name)) > LONGEST else name


def _fold(path: Path) -> str:
    return str(path).casefold()  # two names that differ in case alone are one on many disks


def _key(path: Path) -> str:
    return os.path.normcase(os.path.realpath(path))
