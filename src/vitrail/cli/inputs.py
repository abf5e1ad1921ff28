"""Which image files are meant, and what the files made from each are called."""

import glob
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from vitrail.errors import NotAnImageError
from vitrail.images import READABLE, SUFFIXES

__all__ = ["Found", "OutputNames", "find_images", "slug"]

LONGEST = 100  # bytes of a stem or of a class in a file name, of which most systems allow 255


@dataclass(frozen=True)
class Found:
    """An image file, and its place below the output folder: the path inside the folder it was found in, no suffix."""

    path: Path
    place: Path


def find_images(
    arguments: Sequence[str], *, leave_out: Path | None = None
) -> tuple[list[Found], list[tuple[str, Exception]]]:
    """All images that files, folders (searched to the bottom) and wildcard patterns name, each once, in a stable order.

    An existing file is taken whatever its suffix; in folders the suffix decides, and hidden files and the folder
    `leave_out`, where results go, are passed over. Second come the arguments that name nothing, each with its error.
    """
    found: dict[str, Found] = {}
    failures: list[tuple[str, Exception]] = []
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
            inside = list(_walk(path, leave_out, failures))
            if not inside and not any(argument == str(path) for argument, _ in failures):
                failures.append((str(path), NotAnImageError(f"no image in this folder (suffixes {READABLE})")))
            for one in inside:
                found.setdefault(os.path.realpath(one), Found(one, one.relative_to(path).with_suffix("")))
    return list(found.values()), failures


def _walk(folder: Path, leave_out: Path | None, failures: list[tuple[str, Exception]]) -> Iterator[Path]:
    def cannot_enter(error: OSError) -> None:
        failures.append((str(error.filename), NotAnImageError(f"this folder cannot be read: {error.strerror}")))

    for parent, folders, files in os.walk(folder, onerror=cannot_enter):
        outside = [name for name in folders if not name.startswith(".")]
        if leave_out is not None:
            results = os.path.realpath(leave_out)
            outside = [name for name in outside if os.path.realpath(Path(parent, name)) != results]
        folders[:] = sorted(outside)
        for name in sorted(files):
            if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES:
                yield Path(parent, name)


class OutputNames:
    """Names of results: `<folder>/<stem>.<what>.<suffix>`, none for two images, none that is itself an image's."""

    def __init__(self, folder: Path, images: Sequence[Found]) -> None:
        self.folder = folder
        self._images = {_key(image.path) for image in images}
        self._stems: dict[Path, Path] = {}
        taken: set[str] = set()
        # Images whose stem is theirs alone keep it, whatever comes before them in the list.
        namesakes = Counter(_fold(image.place) for image in images)
        for image in sorted(images, key=lambda one: namesakes[_fold(one.place)] > 1):
            stem = image.place.with_name(_cut(image.place.name))
            number = 1
            while _fold(stem) in taken:
                number += 1
                stem = image.place.with_name(f"{_cut(image.place.name)}-{number}")
            taken.add(_fold(stem))
            self._stems[image.path] = stem

    def path(self, image: Found, what: str, suffix: str) -> Path:
        """Where the result called `what` of this image goes."""
        stem = self.folder / self._stems[image.path]
        path, number = stem.with_name(f"{stem.name}.{what}.{suffix}"), 1
        while _key(path) in self._images:
            number += 1
            path = stem.with_name(f"{stem.name}.{what}-{number}.{suffix}")
        return path


def slug(name: str) -> str:
    """A class name as part of a file name: lower case, letters and digits of any script, hyphens between.

    >>> slug("African elephant"), slug("crane (134)"), slug("jack-o'-lantern")
    ('african-elephant', 'crane-134', 'jack-o-lantern')
    """
    return _cut(re.sub(r"[\W_]+", "-", name.lower()).strip("-")) or "unnamed"


def _cut(name: str) -> str:
    return os.fsencode(name)[:LONGEST].decode(errors="ignore") if len(os.fsencode(name)) > LONGEST else name


def _fold(path: Path) -> str:
    return str(path).casefold()  # two names that differ in case alone are one on many disks


def _key(path: Path) -> str:
    return os.path.normcase(os.path.realpath(path))
