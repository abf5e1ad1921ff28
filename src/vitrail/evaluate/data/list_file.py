"""List files: one row for each picture, or for each box of a picture."""

from pathlib import Path

from vitrail.errors import DataError
from vitrail.evaluate.data.annotations import merged, refuse_useless
from vitrail.evaluate.data.classes import Classes
from vitrail.evaluate.data.folders import Found
from vitrail.evaluate.data.pictures import Entry
from vitrail.evaluate.data.table import Row, read_table

__all__ = ["find_list"]


def find_list(path: Path, classes: Classes) -> Found:
    """The pictures of a CSV, TSV or Parquet table, whose paths are relative to the table's own folder.

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
        entries.append(merged(entry, told, classes, path.parent, notes))
    refuse_useless(path, [row for told in rows.values() for row in told], entries)
    missing = sum(not entry.path.is_file() for entry in entries)
    if missing == len(entries):
        raise DataError(
            f"none of the {missing} files of {path} exists, {entries[0].path} the first of them; "
            f"paths are relative to the list's own folder"
        )
    return entries, notes
