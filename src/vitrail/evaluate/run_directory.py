"""The folder of a run: its manifest, the rows of each block that is done with their digests, and a lock."""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import OutputFileError, RunFolderError, RunFolderInUseError
from ..files import atomic_write, hold, open_regular, writable_folder
from .parquet_rows import FORMAT, Done, block_name

__all__ = ["RunFolder", "compare_runs", "read_manifest"]

MANIFEST = "manifest.json"
LOCK = "run.lock"
ROWS = "rows"
MAPS = "maps"
DIGESTS = "digests"
DATE = "date"  # when the run began, which is not compared
WITH_DIGESTS = 2  # the first format that has them
AGAIN = "start the same `vitrail evaluate` again, which measures that block anew"

# What a manifest may hold at most. Real ones stay far below; a forged one shall cost neither memory nor time.
MANIFEST_BYTES = 2**25
IMAGES = 2**31 - 1
METHODS, PROTOCOLS, CLASSES = 300, 100, 2**20
NAME = 100  # characters of a method's or protocol's name
BLOCK_BYTES = 2**32  # of a file of rows or maps, whose own limits are stricter

LINE = re.compile(r"([0-9a-f]{64})  ((?:rows|maps)/block-[0-9]{6,10}\.(?:parquet|safetensors))")


class RunFolder:
    """Where a run's results lie. A block counts once its digests are written, so a run may end at any moment.

    Example:
        >>> import tempfile
        >>> from vitrail.evaluate.parquet_rows import Part, encoded
        >>> folder = RunFolder(Path(tempfile.mkdtemp()) / "run")
        >>> told = {"format": FORMAT, "images": 4, "methods": [], "protocols": {}}
        >>> with folder.writing(told):
        ...     folder.write(Done(3, encoded(Part())))
        >>> folder.done(), folder.damage(3), folder.manifest()["images"]
        ({3}, None, 4)
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.damaged: list[str] = []

    def manifest(self) -> dict[str, Any] | None:
        """Returns the manifest of the run in this folder, None where there is none yet. Raises as
        `read_manifest` does.
        """
        return read_manifest(self.path) if os.path.lexists(self.path / MANIFEST) else None

    def done(self) -> set[int]:
        """Returns the numbers of the blocks that were written whole."""
        return _numbers(self.path / DIGESTS, ".sha256")

    def loose(self) -> set[int]:
        """Returns the numbers of all blocks of which rows are there, with digests or without."""
        return _numbers(self.path / ROWS, ".parquet")

    def digests(self, block: int) -> dict[str, str]:
        """Returns the SHA-256 of each file of a block, by its place in the folder.

        Raises:
            RunFolderError: when the file that holds them is damaged.
        """
        path = self.path / DIGESTS / f"{block_name(block)}.sha256"
        try:
            with open_regular(path, 4096) as file:
                lines = file.read().decode("ascii").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise RunFolderError(f"{path} cannot be read: {error}; {AGAIN}") from error
        found = {match[2]: match[1] for line in lines if (match := LINE.fullmatch(line))}
        names = {f"{ROWS}/{block_name(block)}.parquet", f"{MAPS}/{block_name(block)}.safetensors"}
        if len(found) != len(lines) or not found.keys() <= names or f"{ROWS}/{block_name(block)}.parquet" not in found:
            raise RunFolderError(f"{path} is damaged: it holds no digests of block {block}; {AGAIN}")
        return found

    def damage(self, block: int) -> str | None:
        """Returns the damage of a block's files, None where they are as they were written."""
        try:
            for name, digest in self.digests(block).items():
                check_digest(self.path / name, digest)
        except RunFolderError as error:
            return str(error)
        return None

    def write(self, done: Done) -> None:
        """Writes a block: its maps, its rows, and last their digests, which say that it is done.

        Raises:
            OutputFileError: when a file cannot be written.
        """
        files = {f"{ROWS}/{block_name(done.block)}.parquet": done.rows}
        if done.maps is not None:
            files = {f"{MAPS}/{block_name(done.block)}.safetensors": done.maps, **files}
        for name, content in files.items():
            if (path := self.path / name).is_symlink():  # which would lead out of the folder
                path.unlink()
            with atomic_write(path) as file:
                file.write(content)
        with atomic_write(self.path / DIGESTS / f"{block_name(done.block)}.sha256") as file:
            lines = [f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in files.items()]
            file.write("".join(lines).encode())

    @contextmanager
    def writing(self, manifest: Mapping[str, Any]) -> Iterator[None]:
        """Holds the folder for this process alone while the run that `manifest` describes is begun or resumed.

        Blocks that are damaged are no longer done, and `damaged` says what was wrong with each.

        Raises:
            RunFolderInUseError: when another process is writing here.
            RunFolderError: when the folder holds another run, naming what differs.
            OutputFileError: when nothing can be written here.
        """
        writable_folder(self.path)
        with self._lock():
            there = self.manifest()
            if there is None:
                if self.done() | self.loose():
                    raise RunFolderError(
                        f"{self.path} holds rows without a {MANIFEST}: choose another folder, or remove it"
                    )
                with atomic_write(self.path / MANIFEST) as file:
                    file.write(json.dumps(manifest, indent=2, ensure_ascii=False).encode())
            else:
                self._compare(there, json.loads(json.dumps(manifest)))
            for leftover in self.path.rglob(".vitrail-*.tmp"):  # of a process that was killed while it wrote
                if not leftover.is_dir():
                    leftover.unlink(missing_ok=True)
            self.damaged = []
            for block in sorted(self.done()):
                if (damage := self.damage(block)) is not None:
                    self.damaged.append(damage)
                    (self.path / DIGESTS / f"{block_name(block)}.sha256").unlink(missing_ok=True)
            yield

    def _compare(self, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
        if there["format"] != FORMAT:
            raise RunFolderError(
                f"{self.path} holds a run of format {there['format']}, which has no digests of pictures and blocks, so "
                f"that nothing tells whether they are still the same; this Vitrail writes format {FORMAT}: choose "
                "another output= (`vitrail report` still reads the old one)"
            )
        compare_runs(there, here, f"{self.path} holds another run", remedy=". Choose another output= or ask the same")

    @contextmanager
    def _lock(self) -> Iterator[None]:
        path = self.path / LOCK
        if path.exists() and not path.is_file():  # a pipe would wait for ever
            raise OutputFileError(f"{path} is not a regular file: remove it, or choose another output=")
        with path.open("a+b") as file:
            if not hold(file):
                raise RunFolderInUseError(
                    f"another process is writing to {self.path}: wait for it, or choose another output="
                )
            # Held by the open file, so it ends with the process, however that ends.
            yield


def check_digest(path: Path, digest: str) -> None:
    """Compares a file with the SHA-256 that it had when it was written.

    Raises:
        RunFolderError: when the file is missing, cannot be read, or has another content.
    """
    try:
        with open_regular(path, BLOCK_BYTES) as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise RunFolderError(f"{path} is damaged or missing: {error.strerror or error}; {AGAIN}") from error
    if found != digest:
        raise RunFolderError(f"{path} is damaged: it is not what was written there (another SHA-256); {AGAIN}")


def compare_runs(there: Mapping[str, Any], here: Mapping[str, Any], saying: str, *, remedy: str = "") -> None:
    """Refuses a manifest that differs from another in more than the date.

    Raises:
        RunFolderError: naming what differs.
    """
    differ = list(_differences({**there, DATE: None}, {**here, DATE: None}))
    if differ:
        raise RunFolderError(f"{saying}: {'; '.join(differ)}{remedy}")


def _differences(there: Mapping[str, Any], here: Mapping[str, Any], within: str = "") -> Iterator[str]:
    for key in sorted({*there, *here}):
        one, other, path = there.get(key), here.get(key), f"{within}{key}"
        if isinstance(one, Mapping) and isinstance(other, Mapping) and one and other:
            yield from _differences(one, other, f"{path}.")
        elif one != other:
            changed = f"the {key} have changed since ({path})" if within == "data.digests." else ""
            yield changed or f"{path} is {_short(one)} there and {_short(other)} here"


def read_manifest(folder: Path) -> dict[str, Any]:
    """Returns the manifest of the run in a folder, whoever wrote it, with everything in it that is used of the kind it
    must be.

    Raises:
        RunFolderError: for another folder than a run's, a newer format, a damaged manifest or one beyond the limits.
    """
    path = folder / MANIFEST
    try:
        with open_regular(path, MANIFEST_BYTES) as file:
            manifest = json.loads(file.read().decode("utf-8"))
            json.dumps(manifest, ensure_ascii=False).encode()  # half a surrogate can be read, but never written
    except OSError as error:
        raise RunFolderError(
            f"{folder} is not the folder of a run: cannot read {path} ({error.strerror or error}); name the folder "
            "that `vitrail evaluate` wrote"
        ) from error
    except (ValueError, RecursionError) as error:
        raise RunFolderError(f"{path} is damaged: {error}; run the evaluation again in an empty folder") from error
    if not isinstance(manifest, dict) or not _whole(manifest.get("format"), 1):
        raise RunFolderError(f"{path} is not the manifest of a run: it names no format")
    if manifest["format"] > FORMAT:
        raise RunFolderError(
            f"{folder} is of format {_short(manifest['format'])}, and this Vitrail reads up to {FORMAT}; use a newer "
            "Vitrail"
        )
    missing = [name for name in ("methods", "protocols", "images") if name not in manifest]
    if missing:
        raise RunFolderError(f"{path} is damaged: it does not tell its {', '.join(missing)}")
    for name, fits, expected in _expected(manifest):
        if not fits:
            told = manifest.get(name)
            raise RunFolderError(
                f"{path} is damaged: its {name} is {_short(told)}, and not {expected}; run the evaluation again in an "
                "empty folder"
            )
    return manifest


def _expected(manifest: Mapping[str, Any]) -> Iterator[tuple[str, bool, str]]:
    """Returns each entry of a manifest that is used, whether it is what it must be, and what that is."""
    methods, protocols, plan = manifest["methods"], manifest["protocols"], manifest.get("plan", {})
    model, block = manifest.get("model"), manifest.get("block")
    yield "images", _whole(manifest["images"], 0, IMAGES), f"a number of images up to {IMAGES}"
    yield "block", block is None or _whole(block, 1, IMAGES), "a number of images from 1"
    names = f"names of at most {NAME} printable characters"
    yield "methods", isinstance(methods, list) and _names(methods, METHODS), f"a list of up to {METHODS} {names}"
    fits = isinstance(protocols, dict) and _names(protocols, PROTOCOLS)
    fits = fits and all(isinstance(options, dict) for options in protocols.values())
    yield "protocols", fits, f"the options of up to {PROTOCOLS} {names}"
    classes = (model.get("class_names") if isinstance(model, dict) else None) or []
    fits = isinstance(classes, list) and len(classes) <= CLASSES and all(isinstance(name, str) for name in classes)
    yield "model", fits, f"one whose class_names are a list of up to {CLASSES} names"
    fits = isinstance(plan, dict) and all(_whole(plan.get(name, 1), 1, IMAGES) for name in ("batch", "threads"))
    yield "plan", fits, "one of whole numbers for batch and threads"


def _whole(value: Any, least: int, most: int | None = None) -> bool:
    return type(value) is int and value >= least and (most is None or value <= most)


def _names(names: Iterable[Any], most: int) -> bool:
    known = list(names)
    fits = all(isinstance(name, str) and 0 < len(name) <= NAME and name.isprintable() for name in known)
    return fits and len(set(known)) == len(known) <= most


def _numbers(folder: Path, suffix: str) -> set[int]:
    names = (path.name.removesuffix(suffix) for path in folder.glob(f"block-*{suffix}"))
    numbers = {int(name[6:]): name for name in names if re.fullmatch(r"block-[0-9]{6,10}", name)}
    return {number for number, name in numbers.items() if name == block_name(number)}


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}…"
