"""What photographs show, as far as their names tell: a table, the folder's name, or the file's own."""

import csv
import re
from collections.abc import Sequence
from pathlib import Path

from ..datasets.open import evenly
from ..errors import ExperimentError, TargetError
from ..models.vision_model import VisionModel

__all__ = ["evenly", "labels_by_name", "labels_in_table"]

FILES = ("file", "filename", "image", "path")
CLASSES = ("class_index", "index", "label", "class", "class_name", "name", "target")


def labels_in_table(model: VisionModel, table: Path) -> dict[str, int]:
    """File names and class indices of a CSV table, whose header names a file column and a class column.

    Classes are indices or names; of several rows of one file the first counts.

    Raises:
        ExperimentError: when the table cannot be read or has no such columns.
        TargetError: for a class that is not the model's.
    """
    try:
        with table.open(newline="", encoding="utf-8") as lines:
            rows = list(csv.DictReader(lines))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ExperimentError(f"labels={table} cannot be read: {error}") from error
    header = list(rows[0]) if rows else []
    file = next((name for name in FILES if name in header), None)
    kind = next((name for name in CLASSES if name in header), None)
    if file is None or kind is None:
        raise ExperimentError(
            f"labels={table} needs a column for the file ({', '.join(FILES)}) and one for the class "
            f"({', '.join(CLASSES)}); it has {', '.join(map(str, header)) or 'no row'}"
        )
    found: dict[str, int] = {}
    for row in rows:
        word = (row[kind] or "").strip()
        found.setdefault(Path(row[file] or "").name, model.class_index(int(word) if word.isdecimal() else word))
    return found


def labels_by_name(model: VisionModel, paths: Sequence[Path]) -> dict[Path, int]:
    """The class of each file whose folder, or whose own name, is that of one of the model's classes.

    A leading WordNet number is ignored, as in n02391049_zebra.JPEG.

    Example:
        >>> import torch, vitrail
        >>> model = vitrail.wrap(torch.nn.Identity(), class_names=("horse", "bald eagle"))
        >>> labels_by_name(model, [Path("horse/1.png"), Path("x/n01614925_bald_eagle.JPEG"), Path("x/y.png")])
        {PosixPath('horse/1.png'): 0, PosixPath('x/n01614925_bald_eagle.JPEG'): 1}
    """
    found = {}
    for path in paths:
        for name in (path.parent.name, path.stem):
            word = re.sub(r"^n\d{8}[_-]?", "", name).replace("_", " ")
            try:
                if word and not word.isdecimal():
                    found[path] = model.class_index(word)
                    break
            except TargetError:
                continue
    return found
