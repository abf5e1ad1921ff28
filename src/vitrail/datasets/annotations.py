"""Labels, boxes and masks from files of their own, put to the pictures that they name, and list files."""

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

from vitrail.datasets.image_folders import Entry, Found
from vitrail.datasets.label_resolver import Classes, counted, listed
from vitrail.datasets.tables import Row, read_table, refuse_fractions
from vitrail.errors import DataError

__all__ = ["add_boxes", "add_labels", "add_masks", "find_list"]


def _merged(entry: Entry, rows: Sequence[Row], classes: Classes, folder: Path, notes: list[str]) -> Entry:
    """A picture with what rows tell of it; the first class named counts, and only the boxes of that class."""
    word = next((row.word for row in rows if row.word), None)
    if entry.label is None and word is not None:
        entry = replace(entry, label=classes.find(word), word=word)
    boxes = []
    for row in rows:
        other = None if row.word is None else classes.find(row.word)
        if row.box is None or (other is not None and entry.label is not None and other != entry.label):
            continue
        if row.box[2] <= row.box[0] or row.box[3] <= row.box[1]:
            notes.append(f"{entry.source}: a box without area is left out ({', '.join(f'{v:g}' for v in row.box)})")
            continue
        boxes.append(row.box)
    mask = next((row.mask for row in rows if row.mask), None)
    return replace(
        entry,
        boxes=tuple(dict.fromkeys([*entry.boxes, *boxes])),
        mask=entry.mask if mask is None else folder / mask,
    )


def add_labels(entries: Sequence[Entry], table: Path, classes: Classes, notes: list[str]) -> list[Entry]:
    """Returns the classes that a table names; the pictures that it does not name are left out.

    Raises:
        DataError: when the table cannot be read, has no column of classes, or names none of the pictures.
    """
    rows = read_table(table)
    if not any(row.word for row in rows):
        raise DataError(f"{table} has no column of classes (class_index, wnid, label, class_name …)")
    found = _by_picture(entries, rows, table)
    kept = [replace(entry, label=None, word=None) for entry in entries if entry.source in found]
    if len(kept) < len(entries):
        notes.append(f"left out: {counted(len(entries) - len(kept), 'picture')} that {table} does not name")
    return [_merged(entry, found[entry.source], classes, table.parent, notes) for entry in kept]


def add_boxes(entries: Sequence[Entry], path: Path, classes: Classes, notes: list[str]) -> list[Entry]:
    """Boxes from a table, from the localisation challenge's "PredictionString", or from a folder of Pascal's XML files.

    A picture whose class is not known yet has that of its first box.

    Raises:
        DataError: when they cannot be read, hold no box, or name none of the pictures.
    """
    rows = _xml_folder(path, {entry.path.stem for entry in entries}) if path.is_dir() else read_table(path)
    if not any(row.box for row in rows):
        raise DataError(
            f"{path} holds no box: give the columns x_min, y_min, x_max, y_max, a PredictionString, or XML files"
        )
    found = _by_picture(entries, rows, path)
    if len(found) < len(entries):
        notes.append(f"without a box in {path}: {len(entries) - len(found)} of {counted(len(entries), 'picture')}")
    told = [
        _merged(entry, found[entry.source], classes, path.parent, notes) if entry.source in found else entry
        for entry in entries
    ]
    _refuse_useless(path, [row for some in found.values() for row in some], told)
    return told


def _refuse_useless(path: Path, rows: Sequence[Row], entries: Sequence[Entry]) -> None:
    """Refuses boxes of which none can be used.

    Raises:
        DataError: saying why.
    """
    boxes = [row.box for row in rows if row.box is not None]
    if not boxes or any(entry.boxes for entry in entries):
        return
    flat = sum(right <= left or bottom <= top for left, top, right, bottom in boxes)
    raise DataError(
        f"{path}: none of its {counted(len(boxes), 'box', 'boxes')} can be used: {flat} without area (a box is left, "
        f"top, right, bottom, not width and height), {len(boxes) - flat} of another class than their picture"
    )


def add_masks(entries: Sequence[Entry], folder: Path, notes: list[str]) -> list[Entry]:
    """Returns the mask of each picture: the file of a folder with its place and stem, or with its stem alone.

    Raises:
        DataError: when the folder is missing or has a mask for none of the pictures.
    """
    if not folder.is_dir():
        raise DataError(f"the folder of masks {folder} {'is no folder' if folder.exists() else 'does not exist'}")
    masks: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in (".png", ".bmp", ".gif", ".tif", ".tiff"):
            masks.setdefault(path.stem, path)
            masks[path.relative_to(folder).with_suffix("").as_posix()] = path
    found = [
        replace(entry, mask=masks.get(Path(entry.source).with_suffix("").as_posix()) or masks.get(entry.path.stem))
        for entry in entries
    ]
    without = sum(entry.mask is None for entry in found)
    if without == len(found):
        raise DataError(
            f"{folder} holds no mask of any of the {without} pictures: a mask is a PNG file of its picture's stem, "
            f"such as {entries[0].path.stem}.png"
        )
    if without:
        notes.append(f"without a mask in {folder}: {without} of {counted(len(found), 'picture')}")
    return found


def find_list(path: Path, classes: Classes) -> Found:
    """Returns the pictures of a CSV, TSV or Parquet table, whose paths are relative to the table's own folder.

    Raises:
        DataError: when the table cannot be read, or none of its files exists.
    """
    rows: dict[str, list[Row]] = {}
    for row in read_table(path):
        rows.setdefault(row.file, []).append(row)
    notes: list[str] = []
    entries = []
    for file, told in rows.items():
        entry = Entry(path.parent / file, Path(file).as_posix())
        entries.append(_merged(entry, told, classes, path.parent, notes))
    _refuse_useless(path, [row for told in rows.values() for row in told], entries)
    missing = sum(not entry.path.is_file() for entry in entries)
    if missing == len(entries):
        raise DataError(
            f"none of the {missing} files of {path} exists, {entries[0].path} the first of them; "
            f"paths are relative to the list's own folder"
        )
    return entries, notes


def _by_picture(entries: Sequence[Entry], rows: Sequence[Row], told: Path) -> dict[str, list[Row]]:
    """The rows of each picture, which they name by its place in the data, its file name, or its stem."""
    places: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        places[Path(row.file).as_posix()].append(row)
    names: dict[str, list[Row]] = defaultdict(list)
    for place, some in places.items():
        for name in dict.fromkeys((Path(place).name, Path(place).stem)):
            names[name] += some
    namesakes = Counter(entry.path.name for entry in entries)
    found: dict[str, list[Row]] = {}
    for entry in entries:
        exact = places.get(entry.source) or places.get(entry.path.as_posix())
        loose = names.get(entry.path.name) or names.get(entry.path.stem)
        if exact is None and loose and namesakes[entry.path.name] > 1:
            raise DataError(
                f"{told} names {entry.path.name}, and {namesakes[entry.path.name]} pictures are called so "
                f"({entry.source} one of them): name them by their paths in the data"
            )
        if exact or loose:
            found[entry.source] = exact or loose or []
    if not found:
        raise DataError(
            f"{told} names none of the {len(entries)} pictures: it begins with {listed(list(places), 3)}, "
            f"the pictures with {listed([entry.source for entry in entries], 3)}"
        )
    return found


def _xml_folder(folder: Path, stems: set[str]) -> list[Row]:
    rows: list[Row] = []
    for path in sorted(folder.rglob("*.xml")):
        if path.stem in stems:
            rows += _xml(path)
    if not rows:
        raise DataError(f"{folder} holds no XML file of a picture of the data (the stems must agree)")
    refuse_fractions(folder, rows)
    return rows


def _xml(path: Path) -> list[Row]:
    try:
        return [
            Row(
                path.stem,
                one.findtext("name"),
                (_side(one, "xmin"), _side(one, "ymin"), _side(one, "xmax"), _side(one, "ymax")),
            )
            for one in ElementTree.parse(path).getroot().findall("object")
        ]
    except (OSError, ElementTree.ParseError, ValueError) as error:
        raise DataError(f"{path} cannot be read as Pascal's XML: {error}") from error


def _side(one: ElementTree.Element, name: str) -> float:
    side = float(one.findtext(f"bndbox/{name}", ""))
    if not math.isfinite(side):
        raise ValueError(f"{name} is {side}")
    return side
