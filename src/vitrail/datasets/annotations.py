"""Annotations: tables (CSV, TSV, Parquet), XML files and masks, put to the pictures that they name; and list files."""

import csv
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from vitrail.datasets.image_folders import Found, PictureFile
from vitrail.datasets.label_resolver import LabelResolver, counted, listed
from vitrail.errors import DataError, how_to_install

__all__ = ["SUFFIXES", "AnnotationRow", "add_boxes", "add_labels", "add_masks", "find_list", "read_table"]

SUFFIXES = (".csv", ".tsv", ".txt", ".parquet")
FILES = ("file", "path", "filename", "file_name", "image", "imageid", "source")
CLASSES = ("class_index", "wnid", "label", "class", "class_name", "index", "name", "target")
BOXES = (("x_min", "y_min", "x_max", "y_max"), ("xmin", "ymin", "xmax", "ymax"), ("left", "top", "right", "bottom"))
PREDICTIONS = "predictionstring"


@dataclass(frozen=True)
class AnnotationRow:
    """What one line tells of a picture: its file, what its class is called, a box, a mask's file."""

    file: str
    word: str | None = None
    box: tuple[float, float, float, float] | None = None
    mask: str | None = None


def read_table(path: Path) -> list[AnnotationRow]:
    """Returns the rows of a table; one that lists several boxes in a "PredictionString" becomes several.

    Raises:
        DataError: when it cannot be read, has no column that names files, holds no row, or a box that is no numbers.
    """
    header, lines = _parquet(path) if path.suffix.lower() == ".parquet" else _text(path)
    columns = {name.strip().lower(): name for name in header}
    file = next((columns[name] for name in FILES if name in columns), None)
    if file is None:
        listed = ", ".join(header) or "none"
        raise DataError(f"{path} has no column that names files ({', '.join(FILES)}); its columns are {listed}")
    if not lines:
        raise DataError(f"{path} holds no row below its header")
    words = [columns[name] for name in CLASSES if name in columns]
    corners = next(([columns[one] for one in names] for names in BOXES if all(n in columns for n in names)), None)
    mask, predictions = columns.get("mask"), columns.get(PREDICTIONS)
    rows: list[AnnotationRow] = []
    for number, line in enumerate(lines, start=2):
        name = _word(line.get(file))
        if not name:
            raise DataError(f"{path}, row {number}: the column {file} is empty")
        if predictions is not None:
            rows += _predicted(name, _word(line.get(predictions)), f"{path}, row {number}")
            continue
        word = next((found for column in words if (found := _word(line.get(column)))), None)
        box = None if corners is None else _box([_word(line.get(one)) for one in corners], f"{path}, row {number}")
        rows.append(AnnotationRow(name, word, box, None if mask is None else _word(line.get(mask)) or None))
    _refuse_fractions(path, rows)
    return rows


def _refuse_fractions(path: Path, rows: Sequence[AnnotationRow]) -> None:
    """Refuses boxes that are all within the first pixel, which nobody means.

    Raises:
        DataError: saying that boxes are in pixels.
    """
    sides = [side for row in rows if row.box is not None for side in row.box]
    if sides and max(sides) <= 1:
        raise DataError(
            f"{path}: these look like fractions of the picture, since no coordinate of a box is above 1; boxes are in "
            "pixels: multiply x by the picture's width and y by its height"
        )


def _text(path: Path) -> tuple[list[str], list[dict[str, Any]]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as lines:
            first = lines.readline()
            lines.seek(0)
            reader = csv.DictReader(lines, delimiter="\t" if "\t" in first else ",")
            return list(reader.fieldnames or ()), list(reader)
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist") from error
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as a table: {error}") from error


def _parquet(path: Path) -> tuple[list[str], list[dict[str, Any]]]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise DataError(f"{path} needs pyarrow to be read: {how_to_install('evaluate')}") from error
    if not path.exists():
        raise DataError(f"{path} does not exist")
    try:
        table = parquet.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path} cannot be read as Parquet: {error}") from error
    return table.column_names, table.to_pylist()


def _word(value: Any) -> str:
    # A column of whole numbers with gaps comes out of pandas as floats.
    if isinstance(value, float):
        return "" if value != value else str(int(value)) if value.is_integer() else str(value)
    return "" if value is None else str(value).strip()


def _box(corners: Sequence[str], where: str) -> tuple[float, float, float, float] | None:
    if not any(corners):
        return None
    try:
        left, top, right, bottom = map(float, corners)
    except ValueError as error:
        raise DataError(f"{where}: a box is four numbers of pixels, not {', '.join(corners)}") from error
    if not all(map(math.isfinite, (left, top, right, bottom))):
        raise DataError(f"{where}: a box is four numbers of pixels, not {', '.join(corners)}")
    return left, top, right, bottom


def _predicted(name: str, text: str, where: str) -> Iterator[AnnotationRow]:
    """The boxes of one picture as "n01751748 111 108 441 193 n…", the form of the localisation challenge."""
    parts = text.split()
    if not parts or len(parts) % 5:
        raise DataError(f"{where}: {len(parts)} words are not a multiple of five (class, left, top, right, bottom)")
    for start in range(0, len(parts), 5):
        yield AnnotationRow(name, parts[start], _box(parts[start + 1 : start + 5], where))


# -- put to the pictures -----------------------------------------------------------------------------------------------


def _merged(
    entry: PictureFile, rows: Sequence[AnnotationRow], classes: LabelResolver, folder: Path, notes: list[str]
) -> PictureFile:
    """A picture with what rows tell of it; the first class named counts, and only the boxes of that class.

    `labels` has all the classes named, where they are several.
    """
    word = next((row.word for row in rows if row.word), None)
    named = dict.fromkeys(index for row in rows if row.word and (index := classes.find(row.word)) is not None)
    if len(named) > 1:
        entry = replace(entry, labels=tuple(named))
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


def add_labels(
    entries: Sequence[PictureFile], table: Path, classes: LabelResolver, notes: list[str]
) -> list[PictureFile]:
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


def add_boxes(
    entries: Sequence[PictureFile], path: Path, classes: LabelResolver, notes: list[str]
) -> list[PictureFile]:
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


def _refuse_useless(path: Path, rows: Sequence[AnnotationRow], entries: Sequence[PictureFile]) -> None:
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


def add_masks(entries: Sequence[PictureFile], folder: Path, notes: list[str]) -> list[PictureFile]:
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


def find_list(path: Path, classes: LabelResolver) -> Found:
    """Returns the pictures of a CSV, TSV or Parquet table, whose paths are relative to the table's own folder.

    Raises:
        DataError: when the table cannot be read, or none of its files exists.
    """
    rows: dict[str, list[AnnotationRow]] = {}
    for row in read_table(path):
        rows.setdefault(row.file, []).append(row)
    notes: list[str] = []
    entries = []
    for file, told in rows.items():
        entry = PictureFile(path.parent / file, Path(file).as_posix())
        entries.append(_merged(entry, told, classes, path.parent, notes))
    _refuse_useless(path, [row for told in rows.values() for row in told], entries)
    missing = sum(not entry.path.is_file() for entry in entries)
    if missing == len(entries):
        raise DataError(
            f"none of the {missing} files of {path} exists, {entries[0].path} the first of them; "
            f"paths are relative to the list's own folder"
        )
    return entries, notes


def _by_picture(
    entries: Sequence[PictureFile], rows: Sequence[AnnotationRow], told: Path
) -> dict[str, list[AnnotationRow]]:
    """The rows of each picture, which they name by its place in the data, its file name, or its stem."""
    places: dict[str, list[AnnotationRow]] = defaultdict(list)
    for row in rows:
        places[Path(row.file).as_posix()].append(row)
    names: dict[str, list[AnnotationRow]] = defaultdict(list)
    for place, some in places.items():
        for name in dict.fromkeys((Path(place).name, Path(place).stem)):
            names[name] += some
    namesakes = Counter(entry.path.name for entry in entries)
    found: dict[str, list[AnnotationRow]] = {}
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


def _xml_folder(folder: Path, stems: set[str]) -> list[AnnotationRow]:
    rows: list[AnnotationRow] = []
    for path in sorted(folder.rglob("*.xml")):
        if path.stem in stems:
            rows += _xml(path)
    if not rows:
        raise DataError(f"{folder} holds no XML file of a picture of the data (the stems must agree)")
    _refuse_fractions(folder, rows)
    return rows


def _xml(path: Path) -> list[AnnotationRow]:
    try:
        return [
            AnnotationRow(
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
