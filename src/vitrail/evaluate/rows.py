"""A run's numbers: one row for each image, method, protocol, measure and step, in Parquet files that are whole or not
there."""

import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import OptionError, RunFolderError
from .questions import Measured

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["COLUMNS", "FORMAT", "WORDS", "Done", "Failure", "Part", "block_name", "encoded", "read_part"]

FORMAT = 1  # of a run's folder
FAILURES = b"failures"
WORDS = ("source", "method", "protocol", "measure")  # columns of few different words


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
        """One row for each number; `known` has the columns that they share."""
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
    """What the files of a block are called, without their kind.

    Example:
        >>> block_name(12)
        'block-000012'
    """
    return f"block-{block:06d}"


def encoded(part: Part) -> bytes:
    """The rows of a block, and what failed in it, as a Parquet file; equal rows give equal bytes."""
    pa, parquet = _arrow()
    schema = pa.schema([(name, pa.type_for_alias(kind)) for name, kind in COLUMNS])
    failures = json.dumps([failure._asdict() for failure in part.failures]).encode()
    table = pa.table(part.columns, schema=schema).replace_schema_metadata({FAILURES: failures})
    file = io.BytesIO()
    parquet.write_table(table, file, compression="zstd")
    return file.getvalue()


def read_part(path: Path) -> "tuple[pa.Table, list[Failure]]":
    """The rows of a block, words as places in a dictionary, and what failed in it.

    Raises:
        RunFolderError: naming the file, when it is damaged or of another kind.
        OptionError: where pyarrow is not installed.
    """
    pa, parquet = _arrow()
    try:
        with parquet.ParquetFile(path, read_dictionary=list(WORDS)) as file:
            missing = [name for name, _ in COLUMNS if name not in file.schema_arrow.names]
            if missing:
                raise RunFolderError(f"{path} is damaged: it has no column {', '.join(missing)}")
            table = file.read(columns=[name for name, _ in COLUMNS])
    except (pa.ArrowException, OSError) as error:
        said = " ".join(str(error).split())
        raise RunFolderError(
            f"{path} is damaged or cannot be read ({said}); delete it and run the evaluation again, which makes it anew"
        ) from error
    text = (table.schema.metadata or {}).get(FAILURES, b"[]")
    try:
        failures = [Failure(**{name: one.get(name) for name in Failure._fields}) for one in json.loads(text)]
    except (ValueError, AttributeError, TypeError) as error:
        raise RunFolderError(f"{path} is damaged: its failures cannot be read ({error})") from error
    return table.replace_schema_metadata(None), failures


def _arrow() -> Any:
    try:
        import pyarrow as pa
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise OptionError('evaluation writes Parquet files: pip install "vitrail[evaluate]"') from error
    return pa, parquet
