"""A run's numbers: one row for each image, method, protocol, measure and step, in Parquet files that are whole or not
there."""

import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import OptionError, RunFolderError
from .questions import Measured

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["COLUMNS", "Done", "Failure", "Part", "block_name", "encoded", "read_part"]

FAILURES = b"failures"


@dataclass(frozen=True)
class Failure:
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
    failures = json.dumps([asdict(failure) for failure in part.failures]).encode()
    table = pa.table(part.columns, schema=schema).replace_schema_metadata({FAILURES: failures})
    file = io.BytesIO()
    parquet.write_table(table, file, compression="zstd")
    return file.getvalue()


def read_part(path: Path) -> "tuple[pa.Table, list[Failure]]":
    """The rows of a block, and what failed in it.

    Raises:
        RunFolderError: naming the file, when it is damaged or of another kind.
    """
    pa, parquet = _arrow()
    try:
        table = parquet.read_table(path, memory_map=False)
        failures = json.loads((table.schema.metadata or {})[FAILURES])
        if table.column_names != [name for name, _ in COLUMNS]:
            raise KeyError(f"its columns are {', '.join(table.column_names)}")
        return table, [Failure(**failure) for failure in failures]
    except (OSError, pa.ArrowException, KeyError, ValueError, TypeError) as error:
        raise RunFolderError(
            f"{path} holds no rows of an evaluation ({error}); remove it, and start the run again to make it anew"
        ) from error


def _arrow() -> Any:
    try:
        import pyarrow as pa
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise OptionError('evaluation writes Parquet files: pip install "vitrail[evaluate]"') from error
    return pa, parquet
