"""The folder of a run: its manifest, the rows of each block that is done, and a lock while somebody writes."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from ..errors import RunFolderError, RunFolderInUseError
from ..files import atomic_write, writable_folder
from .rows import FORMAT, Done, block_name

__all__ = ["RunFolder", "compare_runs"]

MANIFEST = "manifest.json"
LOCK = "run.lock"
ROWS = "rows"
MAPS = "maps"
DATE = "date"  # of the beginning, which is not compared


class RunFolder:
    """Where a run's results lie. What is there once is complete, so a run can be ended at any moment and gone on with.

    Example:
        >>> import tempfile
        >>> from vitrail.evaluate.rows import Part, encoded
        >>> folder = RunFolder(Path(tempfile.mkdtemp()) / "run")
        >>> with folder.writing({"format": FORMAT, "seed": 0}):
        ...     folder.write(Done(3, encoded(Part())))
        >>> folder.done(), folder.manifest()["seed"]
        ({3}, 0)
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def manifest(self) -> dict[str, Any] | None:
        """What the run in this folder is; None where there is none yet.

        Raises:
            RunFolderError: when the manifest is damaged.
        """
        path = self.path / MANIFEST
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise RunFolderError(f"{path} cannot be read: {error}") from error
        if not isinstance(found, dict):
            raise RunFolderError(f"{path} holds no manifest of a run")
        return found

    def done(self) -> set[int]:
        """The numbers of the blocks whose rows are there."""
        names = (path.stem for path in (self.path / ROWS).glob("block-*.parquet"))
        return {int(name.removeprefix("block-")) for name in names if name.removeprefix("block-").isdecimal()}

    def write(self, done: Done) -> None:
        """Add what a block gave, its rows last, which say that it is done. Raises `OutputFileError`."""
        if done.maps is not None:
            with atomic_write(self.path / MAPS / f"{block_name(done.block)}.safetensors") as file:
                file.write(done.maps)
        with atomic_write(self.path / ROWS / f"{block_name(done.block)}.parquet") as file:
            file.write(done.rows)

    @contextmanager
    def writing(self, manifest: Mapping[str, Any]) -> Iterator[None]:
        """Hold the folder for this process alone while the run that `manifest` describes is begun or gone on with.

        Raises:
            RunFolderInUseError: when another process is writing here.
            RunFolderError: when the folder holds another run, naming what differs.
            OutputFileError: when nothing can be written here.
        """
        writable_folder(self.path)
        with self._lock():
            there = self.manifest()
            if there is None:
                if self.done():
                    raise RunFolderError(
                        f"{self.path} holds rows without a {MANIFEST}: choose another folder, or remove it"
                    )
                with atomic_write(self.path / MANIFEST) as file:
                    file.write(json.dumps(manifest, indent=2, ensure_ascii=False).encode())
            else:
                self._compare(there, json.loads(json.dumps(manifest)))
            for leftover in self.path.rglob(".vitrail-*.tmp"):  # of a process that was killed while it wrote
                leftover.unlink(missing_ok=True)
            yield

    def _compare(self, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
        if there.get("format") != FORMAT:
            raise RunFolderError(
                f"{self.path} holds a run of format {there.get('format')}, and this Vitrail writes format {FORMAT}: "
                "choose another folder"
            )
        compare_runs(there, here, f"{self.path} holds another run", remedy=". Choose another --output or ask the same")

    @contextmanager
    def _lock(self) -> Iterator[None]:
        path = self.path / LOCK
        with path.open("a+b") as file:
            if not _hold(file):
                raise RunFolderInUseError(
                    f"another process is writing to {self.path}: wait for it, or choose another --output"
                )
            # Held by the open file, so it ends with the process, however that ends.
            yield


def compare_runs(there: Mapping[str, Any], here: Mapping[str, Any], saying: str, *, remedy: str = "") -> None:
    """Refuse a manifest that differs from another in more than the date.

    Raises:
        RunFolderError: naming what differs.
    """
    differ = [
        f"{key} is {_short(there.get(key))} there and {_short(here.get(key))} here"
        for key in sorted({*there, *here})
        if key != DATE and there.get(key) != here.get(key)
    ]
    if differ:
        raise RunFolderError(f"{saying}: {'; '.join(differ)}{remedy}")


def _hold(file: IO[bytes]) -> bool:
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # pyright: ignore[reportAttributeAccessIssue]
        except OSError:
            return False
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}…"
