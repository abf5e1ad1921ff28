"""Folders of pictures: one folder per class, pictures side by side, or pictures and masks in two folders."""

from pathlib import Path

from vitrail.errors import DataError
from vitrail.evaluate.data.classes import Classes
from vitrail.evaluate.data.pictures import Entry
from vitrail.evaluate.data.wording import counted, listed
from vitrail.images import READABLE, skipped, walk_images

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
    found, left = _walk(folder, empty)
    for path in found:
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
    notes = [f"without any picture: {counted(len(empty), 'class folder')}, {listed(empty)}"] if empty else []
    return entries, notes + ([left] if left is not None else [])


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


def _walk(folder: Path, empty: list[str]) -> tuple[list[Path], str | None]:
    """Every picture, in the order of names, and a sentence on what was skipped; into `empty` go the folders right below
    that hold none."""
    if not folder.exists():
        raise DataError(f"{folder} does not exist")

    def refuse(error: OSError) -> None:
        raise DataError(f"the folder {error.filename} cannot be read: {error.strerror}") from error

    found, others = walk_images(folder, refuse=refuse)
    full = {path.relative_to(folder).parts[0] for path in found}
    below = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    empty += [name for name in below if name not in full]
    return found, skipped(others)
