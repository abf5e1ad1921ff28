"""A run's numbers: one row for each image, method, protocol, measure and step, in Parquet files that are whole or not
there."""

import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..errors import OptionError, RunFolderError, how_to_install
from ..files import open_regular
from ..metrics.protocol import Measured

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["COLUMNS", "FORMAT", "WORDS", "Done", "Failure", "Part", "block_name", "encoded", "read_part"]

FORMAT = 2  # of a run's folder; 1 had no digests
FAILURES = b"failures"
WORDS = ("source", "method", "protocol", "measure")  # columns of few different words
UNKNOWN = ("label", "step")  # columns that may be empty
HUGE = 1e38  # beyond which no measurement lies, so that sums and squares stay finite
ROW_BYTES, MORE_BYTES = 1024, 2**26  # what a row takes at most, long names included, and the rest of a block
TEXT = 4096  # characters of a name


class Failure(NamedTuple):
    """What could not be measured and why; without a method it is the image itself, without a protocol the map."""

    image: int
    source: str
    method: str | None
    protocol: str | None
    reason: str


@dataclass(eq=False)
class Part:
    """What a block of images gave: columns of numbers, and what failed."""

    columns: dict[str, list[Any]] = field(default_factory=lambda: {name: [] for name, _ in COLUMNS})
    failures: list[Failure] = field(default_factory=list)

    def add(self, known: Mapping[str, Any], measured: Iterable[Measured]) -> None:
        """Adds a row for each number; `known` has the columns that they share."""
        for one in measured:
            for name, value in (*known.items(), *one._asdict().items()):
                self.columns[name].append(value)

    def __len__(self) -> int:
        return len(self.columns["value"])


COLUMNS = (
    ("image", "int32"),
    ("source", "string"),
    ("label", "int32"),
    ("predicted", "int32"),
    ("target", "int32"),
    ("method", "string"),
    ("protocol", "string"),
    ("measure", "string"),
    ("step", "float64"),
    ("value", "float64"),
)


@dataclass(frozen=True)
class Done:
    """A block of images, measured: its rows as the bytes of a Parquet file, and of its maps' file where they are kept.

    `images` is the number of images in the block.
    """

    block: int
    rows: bytes
    maps: bytes | None = None
    images: int = 0


def block_name(block: int) -> str:
    """Returns the name of a block's files, without the ending.

    Example:
        >>> block_name(12)
        'block-000012'
    """
    return f"block-{block:06d}"


def encoded(part: Part) -> bytes:
    """Returns the rows of a block, and what failed in it, as a Parquet file; equal rows give equal bytes."""
    pa, parquet = _arrow()
    schema = pa.schema([(name, pa.type_for_alias(kind)) for name, kind in COLUMNS])
    failures = json.dumps([failure._asdict() for failure in part.failures]).encode()
    table = pa.table(part.columns, schema=schema).replace_schema_metadata({FAILURES: failures})
    file = io.BytesIO()
    parquet.write_table(table, file, compression="zstd")
    return file.getvalue()


def read_part(
    path: Path, *, images: range = range(2**31), most: int = 2**28, room: int = 2**40
) -> "tuple[pa.Table, list[Failure]]":
    """Reads the rows of a block, words as places in a dictionary, and what failed in it.

    The file may be anybody's: it holds at most `most` rows, of the images in `images`, of which `room` fit into memory,
    or is refused before its rows take any.

    Raises:
        RunFolderError: naming the file, when it is damaged or of another kind.
        OptionError: where pyarrow is not installed.
    """
    _, parquet = _arrow()
    try:
        with (
            open_regular(path, MORE_BYTES + ROW_BYTES * most) as opened,
            parquet.ParquetFile(opened, read_dictionary=list(WORDS)) as file,
        ):
            _check_size(file, most, room)
            table = file.read(columns=[name for name, _ in COLUMNS], use_threads=False)
            table.validate(full=True)
        _check_rows(table, images)
        text = (table.schema.metadata or {}).get(FAILURES, b"[]")
        return table.replace_schema_metadata(None), [_failure(one, images) for one in json.loads(text)]
    except Exception as error:  # Arrow's readers fail on a foreign file in many ways
        said = " ".join(str(error).split()) or type(error).__name__
        raise RunFolderError(
            f"{path} is damaged or cannot be read ({said}); delete it and start the same `vitrail evaluate` "
            "again, which measures that block anew"
        ) from error


def _check_size(file: Any, most: int, room: int) -> None:
    """Refuses other columns than ours, and more rows or bytes than they can have."""
    pa, _ = _arrow()
    kinds = dict(zip(file.schema_arrow.names, file.schema_arrow.types, strict=True))
    missing = [name for name, _ in COLUMNS if name not in kinds]
    if missing:
        raise RunFolderError(f"it has no column {', '.join(missing)}")
    for name, kind in COLUMNS:
        found = kinds[name].value_type if pa.types.is_dictionary(kinds[name]) else kinds[name]
        if found != pa.type_for_alias(kind):
            raise RunFolderError(f"its column {name} is of {found}, and not of {kind}")
    if file.metadata.num_rows > most:
        raise RunFolderError(f"it has {file.metadata.num_rows:,} rows, and at most {most:,} are expected")
    if file.metadata.num_rows > room:
        raise RunFolderError(f"its {file.metadata.num_rows:,} rows do not fit into the memory that is free")
    unpacked = sum(file.metadata.row_group(number).total_byte_size for number in range(file.metadata.num_row_groups))
    if unpacked > MORE_BYTES + ROW_BYTES * file.metadata.num_rows:
        raise RunFolderError(f"it unpacks to {unpacked:,} bytes, for {file.metadata.num_rows:,} rows")


def _check_rows(table: "pa.Table", images: range) -> None:
    """Refuses rows that no evaluation writes."""
    empty = [name for name, _ in COLUMNS if name not in UNKNOWN and table.column(name).null_count]
    if empty:
        raise RunFolderError(f"entries of {', '.join(empty)} are missing")
    for name in ("image", "label", "predicted", "target", "step", "value") if len(table) else ():
        numbers = table.column(name).drop_null().to_numpy()
        least, greatest = (images.start, images.stop) if name == "image" else (0, 2**31)
        if name in ("step", "value"):
            wrong = np.isinf(numbers) | (np.abs(numbers) > HUGE)
        else:
            wrong = (numbers < least) | (numbers >= greatest)
        if wrong.any():
            raise RunFolderError(f"its column {name} holds {numbers[wrong][0]:g}, which cannot be")
    for name in WORDS:
        for chunk in table.column(name).chunks:
            words = chunk.dictionary.to_pylist()
            if any(word is None or len(word) > TEXT for word in words):
                raise RunFolderError(f"a {name} of no or of more than {TEXT} characters")


def _failure(told: Mapping[str, Any], images: range) -> Failure:
    values: dict[str, Any] = {name: told.get(name) for name in Failure._fields}
    found = Failure(**values)
    words = (found.source, found.reason, found.method or "", found.protocol or "")
    if type(found.image) is not int or found.image not in images or not all(isinstance(word, str) for word in words):
        raise RunFolderError("a failure in it is of no image of this block, or has no reason")
    "".join(words).encode()  # half a surrogate can be read, but never written
    return found


def _arrow() -> Any:
    try:
        import pyarrow as pa
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise OptionError(f"evaluation writes Parquet files with pyarrow: {how_to_install('evaluate')}") from error
    return pa, parquet
