"""Folders of pictures: one folder per class, pictures side by side, or pictures and masks in two folders."""

import os
from collections import Counter
from pathlib import Path

from vitrail.errors import DataError
from vitrail.evaluate.data.classes import Classes
from vitrail.evaluate.data.pictures import Entry
from vitrail.evaluate.data.wording import counted, listed
from vitrail.images import READABLE, SUFFIXES

__all__ = ["Found", "called", "find_folder"]

Found = tuple[list[Entry], list[str]]


def find_folder(folder: Path, classes: Classes) -> Found:
    """Every picture below a folder; its class is that of the first folder on its way, or of its own name.

    A folder is called by a WordNet id, a name or an index; a file by a WordNet id or a name, numbered or not. What is
    in a folder of no class keeps the folder's name as its `word`.

    Raises:
        DataError: for a folder that is missing, cannot be read, or holds no picture.
    """
    entries: list[Entry] = []
    empty: list[str] = []
    labels: dict[str, int | None] = {}
    for path in _walk(folder, empty):
        source = path.relative_to(folder)
        if len(source.parts) == 1:
            label, word = called(path.stem, classes), None
        else:
            word = source.parts[0]
            if word not in labels:
                labels[word] = classes.find(word)
            label = labels[word]
        # A name that is no UTF-8 could be written nowhere.
        name = source.as_posix().encode(errors="surrogateescape").decode(errors="backslashreplace")
        entries.append(Entry(path, name, label, word))
    if not entries:
        raise DataError(f"{folder} holds no picture (suffixes {READABLE})")
    return entries, [f"without any picture: {counted(len(empty), 'class folder')}, {listed(empty)}"] if empty else []


def called(stem: str, classes: Classes) -> int | None:
    """The class that a file's own name tells: "n02391049_zebra", "bald_eagle", "zebra-12".

    Example:
        >>> classes = Classes(("horse", "bald eagle"))
        >>> [called(stem, classes) for stem in ("bald_eagle-3", "horse", "1", "IMG_1")]
        [1, 0, None, None]
    """
    for word in (stem, stem.rstrip("0123456789").rstrip("_- "), _without_synset(stem)):
        if word and not word.isdecimal() and (found := classes.find(word)) is not None:
            return found
    return None


def _without_synset(stem: str) -> str:
    head, _, rest = stem.partition("_")
    return rest if len(head) == 9 and head[1:].isdecimal() else ""


def _walk(folder: Path, empty: list[str]) -> list[Path]:
    """Every picture, in the order of names; into `empty` go the folders right below that hold none."""
    if not folder.exists():
        raise DataError(f"{folder} does not exist")

    def refuse(error: OSError) -> None:
        raise DataError(f"the folder {error.filename} cannot be read: {error.strerror}") from error

    found: list[Path] = []
    below: Counter[str] = Counter()
    direct: list[str] = []
    entered: set[str] = set()
    for parent, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        real = os.path.realpath(parent)
        if real in entered:  # a link that leads back up
            folders[:] = []
            continue
        entered.add(real)
        direct = direct or (folders[:] if Path(parent) == folder else [])
        inside = [name for name in sorted(files) if Path(name).suffix.lower() in SUFFIXES and not name.startswith(".")]
        found += [Path(parent, name) for name in inside]
        if Path(parent) != folder:
            below[Path(parent).relative_to(folder).parts[0]] += len(inside)
    empty += [name for name in direct if not below[name]]
    return found
