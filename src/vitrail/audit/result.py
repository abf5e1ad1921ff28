"""The result of an audit, and its folder.

answers/            the first pass: logits, features, hashes
maps/DIGEST/        the second pass: maps and pictures of what is shown
images.parquet      every labelled image with its scores, the most doubtful first
audit.json          the pairs of classes, typical images, and what the audit was asked
decisions.jsonl     what a reviewer decided (`vitrail.audit.decisions`)
"""

import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open

from ..errors import OptionError, RunFolderError
from ..files import atomic_write, open_regular
from ..models.class_names import short_name
from .class_pairs import ClassPair
from .examine import LabelledImage

__all__ = ["FORMAT", "Audit", "read_audit", "write_audit"]

FORMAT = 1
SUMMARY, IMAGES = "audit.json", "images.parquet"
MOST_BYTES = 2**28  # of a summary that is read


@dataclass(frozen=True, eq=False)
class Audit:
    """An audit as its folder tells it.

    `ranked` are all labelled images, the most doubtful first; `pairs` the tested pairs of classes, the most suspicious
    first; `typical` typical images of each class that suspects are about; `about` what was asked, and of which model
    and data; `notes` what a reader should know, failures among it.
    """

    folder: Path
    ranked: tuple[LabelledImage, ...]
    pairs: tuple[ClassPair, ...]
    pair_images: Mapping[tuple[int, int], tuple[int, ...]]
    typical: Mapping[int, tuple[int, ...]]
    about: Mapping[str, Any]
    notes: tuple[str, ...]

    @property
    def suspects(self) -> tuple[LabelledImage, ...]:
        """Returns the images that are reviewed."""
        return self.ranked[: self.about["suspects"]]

    @cached_property
    def duplicates(self) -> tuple[tuple[LabelledImage, ...], ...]:
        """Returns the groups of near duplicates, in the order of their numbers."""
        groups: dict[int, list[LabelledImage]] = {}
        for one in sorted(self.ranked, key=lambda one: one.image):
            if one.group is not None:
                groups.setdefault(one.group, []).append(one)
        return tuple(tuple(groups[number]) for number in sorted(groups))

    def class_name(self, index: int) -> str:
        """Returns the short name of a class, "class 7" where there is none."""
        return short_name(index, self.about["class_names"])

    def map(self, image: int, target: int, against: int | None = None, *, typical: bool = False) -> np.ndarray | None:
        """Returns a stored map (rows, cols) of an image, float32: of a class, or of one class against another.

        None where it was not drawn, or failed. `typical`: the map without class competition that the test of a pair
        seeks the typical part in.
        """
        kind = "typical" if typical else "single" if against is None else "contrast"
        end = "" if against is None else f"/{against}"
        found = self._tensor(f"{kind}/{image}/{target}{end}")
        return None if found is None else found.numpy()

    def picture(self, image: int, kind: str = "thumb") -> bytes | None:
        """Returns a picture of an image as a JPEG file: "thumb", of those with maps also the model's "view" of it,
        and of suspects the whole "photo".

        Raises:
            OptionError: for another kind.
        """
        if kind not in ("thumb", "photo", "view"):
            raise OptionError(f"kind={kind!r} is none of thumb, photo and view")
        found = self._tensor(f"{kind}/{image}")
        return None if found is None else found.numpy().tobytes()

    @cached_property
    def _places(self) -> dict[str, Path]:
        """The file of each tensor."""
        found = {}
        for path in sorted((self.folder / self.about["maps"] / "maps").glob("block-*.safetensors")):
            with safe_open(path, "pt") as file:
                found |= dict.fromkeys(file.keys(), path)
        return found

    def _tensor(self, name: str) -> torch.Tensor | None:
        if name not in self._places:
            return None
        with safe_open(self._places[name], "pt") as file:
            return file.get_tensor(name)


def write_audit(
    folder: Path,
    ranked: Sequence[LabelledImage],
    pairs: Sequence[ClassPair],
    pair_images: Mapping[tuple[int, int], Sequence[int]],
    typical: Mapping[int, Sequence[int]],
    about: Mapping[str, Any],
    notes: Sequence[str],
) -> None:
    """Writes the two files of a result; equal results give equal bytes.

    Raises:
        OutputFileError: when they cannot be written.
    """
    import pyarrow as pa
    from pyarrow import parquet

    schema = pa.schema([(name, kind() if callable(kind) else pa.type_for_alias(kind)) for name, kind in _columns()])
    table = pa.Table.from_pylist([asdict(one) for one in ranked], schema=schema)
    file = io.BytesIO()
    parquet.write_table(table, file, compression="zstd")
    with atomic_write(folder / IMAGES) as opened:
        opened.write(file.getvalue())
    content = {
        "format": FORMAT,
        **about,
        "notes": list(notes),
        "typical": {str(index): list(images) for index, images in sorted(typical.items())},
        "pairs": [asdict(one) | {"tested_on": list(pair_images[one.shown, one.other])} for one in pairs],
    }
    with atomic_write(folder / SUMMARY) as opened:
        opened.write(json.dumps(content, indent=1, ensure_ascii=False).encode())


def _columns() -> list[tuple[str, Any]]:
    import pyarrow as pa

    kinds: dict[Any, Any] = {int: "int64", str: "string", float: "float64", bool: "bool"}
    kinds |= {int | None: "int64", tuple[int, ...]: lambda: pa.list_(pa.int64())}
    return [(one.name, kinds[one.type]) for one in fields(LabelledImage)]


def read_audit(folder: str | os.PathLike[str]) -> Audit:
    """Returns the audit that `vitrail audit` wrote to a folder.

    Raises:
        RunFolderError: for another folder, an unfinished audit, or damaged files.
    """
    import pyarrow as pa
    from pyarrow import parquet

    folder = Path(folder)
    again = "start the same `vitrail audit` again"
    if not (folder / SUMMARY).is_file():
        begun = (folder / "answers").is_dir()
        what = f"holds an audit that is not finished: {again}" if begun else "holds no audit: name the folder of one"
        raise RunFolderError(f"{folder} {what}")
    try:
        with open_regular(folder / SUMMARY, MOST_BYTES) as file:
            told = json.loads(file.read())
        with open_regular(folder / IMAGES, MOST_BYTES) as file:
            rows = parquet.read_table(file).to_pylist()
        if told["format"] != FORMAT:
            raise RunFolderError(f"{folder} is of format {told['format']}, and this Vitrail reads format {FORMAT}")
        ranked = tuple(LabelledImage(**(row | {"labels": tuple(row["labels"])})) for row in rows)
        tested = [(one.pop("tested_on"), ClassPair(**one)) for one in told.pop("pairs")]
        typical = {int(index): tuple(images) for index, images in told.pop("typical").items()}
        return Audit(
            folder=folder,
            ranked=ranked,
            pairs=tuple(pair for _, pair in tested),
            pair_images={(pair.shown, pair.other): tuple(images) for images, pair in tested},
            typical=typical,
            notes=tuple(told.pop("notes")),
            about=told,
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, pa.ArrowException) as error:
        raise RunFolderError(f"{folder} is damaged ({type(error).__name__}: {error}); {again}") from error
