"""Tables of pictures: CSV, TSV or Parquet, with the names that people give to the columns."""

import csv
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitrail.errors import DataError, how_to_install

__all__ = ["SUFFIXES", "Row", "read_table", "refuse_fractions"]

SUFFIXES = (".csv", ".tsv", ".txt", ".parquet")
FILES = ("file", "path", "filename", "file_name", "image", "imageid", "source")
CLASSES = ("class_index", "wnid", "label", "class", "class_name", "index", "name", "target")
BOXES = (("x_min", "y_min", "x_max", "y_max"), ("xmin", "ymin", "xmax", "ymax"), ("left", "top", "right", "bottom"))
PREDICTIONS = "predictionstring"


@dataclass(frozen=True)
class Row:
    """What one line tells of a picture: its file, what its class is called, a box, a mask's file."""

    file: str
    word: str | None = None
    box: tuple[float, float, float, float] | None = None
    mask: str | None = None


def read_table(path: Path) -> list[Row]:
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
    rows: list[Row] = []
    for number, line in enumerate(lines, start=2):
        name = _word(line.get(file))
        if not name:
            raise DataError(f"{path}, row {number}: the column {file} is empty")
        if predictions is not None:
            rows += _predicted(name, _word(line.get(predictions)), f"{path}, row {number}")
            continue
        word = next((found for column in words if (found := _word(line.get(column)))), None)
        box = None if corners is None else _box([_word(line.get(one)) for one in corners], f"{path}, row {number}")
        rows.append(Row(name, word, box, None if mask is None else _word(line.get(mask)) or None))
    refuse_fractions(path, rows)
    return rows


def refuse_fractions(path: Path, rows: Sequence[Row]) -> None:
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


def _predicted(name: str, text: str, where: str) -> Iterator[Row]:
    """The boxes of one picture as "n01751748 111 108 441 193 n…", the form of the localisation challenge."""
    parts = text.split()
    if not parts or len(parts) % 5:
        raise DataError(f"{where}: {len(parts)} words are not a multiple of five (class, left, top, right, bottom)")
    for start in range(0, len(parts), 5):
        yield Row(name, parts[start], _box(parts[start + 1 : start + 5], where))
