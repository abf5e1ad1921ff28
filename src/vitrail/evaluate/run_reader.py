"""The folder of a finished or unfinished run, read back: numbers per image, failures, what was seen, maps."""

import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8

from ..errors import OptionError, RunFolderError
from ..files import open_regular
from ..memory import free_memory
from ..metrics.aggregation import Curves
from .parquet_rows import COLUMNS, WORDS, Failure, block_name, read_part
from .run_directory import MAPS, NAME, ROWS, WITH_DIGESTS, RunFolder, check_digest, read_manifest

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["About", "EvaluationRun", "read_run"]

# Limits of what is read, which may be anybody's run.
NUMBERS = 20_000  # of one map and protocol
MEASURES = 256
IN_MEMORY = 160  # bytes that a row takes until the report is written
MAP_BYTES = 2**30  # of a file of maps
SIDE = 4096  # pixels or patches of a picture or map


class About(NamedTuple):
    """What is known of an image: its name, its true class (None: not known), the predicted and the explained one."""

    source: str
    label: int | None
    predicted: int
    target: int


@dataclass(frozen=True, eq=False)
class EvaluationRun:
    """A run as its folder tells it: `manifest` is what was asked, `rows` one number each, `failures` what is missing.

    `blocks` is the number of blocks of images that are finished, `files` their files of pictures and maps, which are
    read when they are asked for, and `notes` what a reader should know of the folder.
    """

    folder: Path
    manifest: Mapping[str, Any]
    rows: "pa.Table"
    failures: tuple[Failure, ...]
    blocks: int
    files: Mapping[int, Path]
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Returns the folder's own name."""
        return self.folder.resolve().name

    @property
    def methods(self) -> tuple[str, ...]:
        """Returns the labels of the methods, in the order in which they were asked for."""
        return tuple(self.manifest["methods"])

    @property
    def protocols(self) -> Mapping[str, Mapping[str, Any]]:
        """Returns the options of each protocol."""
        return self.manifest["protocols"]

    @property
    def class_names(self) -> tuple[str, ...]:
        """Returns the model's classes, where the manifest names them."""
        model = self.manifest.get("model")
        return tuple(model.get("class_names") or ()) if isinstance(model, Mapping) else ()

    @property
    def expected_blocks(self) -> int | None:
        """Returns the number of blocks of the whole run, where the manifest tells it."""
        block = self.manifest.get("block")
        return -(-self.manifest["images"] // block) if block else None

    @property
    def finished(self) -> bool:
        """Returns whether every block of images is there."""
        return self.expected_blocks is None or self.blocks >= self.expected_blocks

    def curves(self, method: str, protocol: str) -> Curves:
        """Returns a protocol's measurements of a method: images ascending; NaN at a step that an image lacks.

        Raises:
            OptionError: for a method or protocol that the run does not have.
            RunFolderError: when a number is there twice.
        """
        for what, name, known in (("method", method, self.methods), ("protocol", protocol, tuple(self.protocols))):
            if name not in known:
                raise OptionError(f"{self.folder} has no {what} {name!r}; it has {', '.join(known) or 'none'}")
        there = self._where(method, protocol)
        columns = self._columns
        image, measure = columns["image"][there], columns["measure"][there]
        step, value = columns["step"][there], columns["value"][there]
        images, _, row = _unique(image)
        steps: dict[str, tuple[float | None, ...]] = {}
        values: dict[str, np.ndarray] = {}
        for code in dict.fromkeys(_first_seen(measure)):
            own = measure == code
            known, col = np.unique(step[own], return_inverse=True)  # a missing step is NaN, which sorts last
            if len(images) * len(known) > 64 * own.sum() + 2**20:
                raise RunFolderError(
                    f"{self.folder}: {len(known)} steps of {protocol} for {len(images)} images, and only {own.sum()} "
                    "numbers: no protocol steps differently from image to image"
                )
            table = np.full((len(images), len(known)), np.nan)
            filled = np.zeros(table.shape, dtype=bool)
            table[row[own], col] = value[own]
            filled[row[own], col] = True
            name = self._names["measure"][code]
            if filled.sum() != own.sum():
                raise RunFolderError(
                    f"{self.folder}: {own.sum()} numbers of {method}, {protocol}, {name} for {filled.sum()} images and "
                    "steps: some are there twice; run the evaluation again in an empty folder"
                )
            steps[name] = tuple(None if np.isnan(one) else float(one) for one in known)
            values[name] = table
        return Curves(images, steps, values)

    def measures(self, protocol: str) -> tuple[str, ...]:
        """Returns the measures of a protocol in the order in which they were taken."""
        found = [name for method in self.methods for name in self._measures(method, protocol)]
        return tuple(dict.fromkeys(found))

    def sources(self) -> Mapping[int, str]:
        """Returns the name of each image of which something was measured."""
        return {image: one.source for image, one in self.about.items()}

    def unmeasured(self) -> Mapping[str, str]:
        """Returns, for each protocol without any number, the most frequent reasons, and how often each occurred."""
        known = self._columns["protocol"][~np.isnan(self._columns["value"])]
        measured = {self._names["protocol"][code] for code in _first_seen(known)}
        found = {}
        for protocol in (name for name in self.protocols if name not in measured):
            reasons = Counter(one.reason for one in self.failures if one.protocol in (None, protocol))
            said = "; ".join(f"{reason} ({count} times)" for reason, count in reasons.most_common(3))
            found[protocol] = said or ("every number is NaN" if len(self.rows) else "no image is finished")
        return found

    @cached_property
    def about(self) -> Mapping[int, About]:
        """Returns the annotations of each image of which something was measured, images ascending."""
        images, first, _ = _unique(self._columns["image"])
        known = self.rows.select(["source", "label", "predicted", "target"]).take(first).to_pylist()
        return {
            int(number): About(one["source"], one["label"], one["predicted"], one["target"])
            for number, one in zip(images, known, strict=True)
        }

    @cached_property
    def pictures(self) -> Mapping[int, Path]:
        """Returns the images of which the pictures and maps were kept, each with its file.

        Raises:
            RunFolderError: for a file that is damaged.
        """
        found = {}
        for path in self.files.values():
            with _opened(path) as file:
                names = [re.fullmatch(r"image/([0-9]{1,10})", name) for name in file.keys()]  # noqa: SIM118 (no dictionary)
            found |= {int(name[1]): path for name in names if name}
        return dict(sorted(found.items()))

    def seen(self, image: int) -> UInt8[np.ndarray, "height width 3"]:
        """Returns the model's input as a small image, for images of `pictures`; `RunFolderError` for a damaged file."""
        found = self._tensor(image, f"image/{image}")
        if found is None or found.dtype != np.uint8 or found.ndim != 3 or found.shape[2] != 3:
            raise RunFolderError(f"{self._picture(image)} is damaged: its picture {image} is none")
        return found

    def map(self, image: int, method: str) -> Float[np.ndarray, "rows cols"] | None:
        """Returns a method's raw map of an image of `pictures`, None where it failed. Raises as `seen` does."""
        found = self._tensor(image, f"map/{image}/{method}")
        if found is None:
            return None
        if found.dtype != np.float32 or found.ndim != 2 or not np.isfinite(found).all():
            raise RunFolderError(f"{self._picture(image)} is damaged: its map of image {image} by {method} is none")
        return found

    def _tensor(self, image: int, name: str) -> np.ndarray | None:
        path = self._picture(image)
        with _opened(path) as file:
            if name not in file.keys():  # noqa: SIM118 (not a dictionary)
                return None
            shape = file.get_slice(name).get_shape()
            if not all(0 < length <= SIDE for length in shape):
                raise RunFolderError(f"{path} is damaged: {name} is of {' x '.join(map(str, shape))}")
            try:
                return file.get_tensor(name)
            except (TypeError, ValueError, KeyError) as error:  # of a kind that NumPy does not have
                raise RunFolderError(f"{path} is damaged: {name} cannot be read ({error})") from error

    def _picture(self, image: int) -> Path:
        if image not in self.pictures:
            raise OptionError(f"{self.folder}: no picture of image {image} was kept")
        return self.pictures[image]

    @cached_property
    def _columns(self) -> dict[str, np.ndarray]:
        """Returns the columns as arrays; words as their places in `_names`, a missing step as NaN."""
        found = {}
        for name in ("image", "step", "value", *WORDS):
            column = self.rows.column(name).combine_chunks()
            column = column.indices if name in WORDS else column
            found[name] = column.to_numpy(zero_copy_only=False)
        return found

    @cached_property
    def _names(self) -> dict[str, list[str]]:
        found = {}
        for name in WORDS:
            column = self.rows.column(name).combine_chunks()
            found[name] = column.dictionary.to_pylist()
        return found

    @cached_property
    def _sorted(self) -> tuple[Int[np.ndarray, " rows"], Int[np.ndarray, " groups"]]:
        """Returns the rows ordered by method and protocol, and where each pair of the two begins."""
        methods, protocols = len(self._names["method"]), len(self._names["protocol"])
        pair = self._columns["method"].astype(np.int32) * protocols + self._columns["protocol"]
        small = pair.astype(np.int16) if methods * protocols < 2**15 else pair  # sorted by radix, in one pass
        order = small.argsort(kind="stable")
        return order, np.searchsorted(small[order], np.arange(methods * protocols + 1))

    def _where(self, method: str, protocol: str) -> np.ndarray:
        """Returns the rows of a method and a protocol, in the order of the file."""
        if method not in self._names["method"] or protocol not in self._names["protocol"]:
            return np.empty(0, dtype=np.int64)
        order, starts = self._sorted
        group = self._names["method"].index(method) * len(self._names["protocol"])
        group += self._names["protocol"].index(protocol)
        return order[starts[group] : starts[group + 1]]

    def _measures(self, method: str, protocol: str) -> list[str]:
        codes = self._columns["measure"][self._where(method, protocol)]
        return [self._names["measure"][code] for code in _first_seen(codes)]


def read_run(folder: str | os.PathLike[str]) -> EvaluationRun:
    """Reads the folder that `vitrail evaluate` wrote, whether or not it was finished.

    Raises:
        RunFolderError: for another folder than a run's, one of a newer format, and a damaged file, which it names.
        OptionError: where pyarrow is not installed.
    """
    path = Path(folder)
    manifest = read_manifest(path)
    store, notes = RunFolder(path), list[str]()
    blocks = store.done()
    if manifest["format"] < WITH_DIGESTS:
        blocks = store.loose()
        notes.append("was written by an older Vitrail, without digests: damage to its files would go unnoticed")
    elif loose := store.loose() - blocks:
        notes.append(f"has rows of {len(loose)} blocks that were never finished: they count for nothing")
    tables, failures, maps = [], [], dict[int, Path]()
    room = free_memory("cpu") // IN_MEMORY
    for block in sorted(blocks):
        images = _images(manifest, block, path)
        each = len(images) * len(manifest["methods"]) * len(manifest["protocols"]) * NUMBERS
        file = path / ROWS / f"{block_name(block)}.parquet"
        if manifest["format"] >= WITH_DIGESTS:
            for name, digest in store.digests(block).items():
                check_digest(path / name, digest)
                if name.startswith(MAPS):
                    maps[block] = path / name
        elif (kept := path / MAPS / f"{block_name(block)}.safetensors").exists():
            maps[block] = kept
        table, failed = read_part(file, images=images, most=each, room=room)
        room -= len(table)
        failures += failed
        tables.append(table)
    run = EvaluationRun(path, manifest, _joined(tables), tuple(failures), len(blocks), maps, tuple(notes))
    unknown = set(run._names["method"]) - set(run.methods)
    unknown |= set(run._names["protocol"]) - set(run.protocols)
    if unknown:
        raise RunFolderError(
            f"{path}: there are rows of {', '.join(sorted(unknown))}, of which its manifest.json says nothing: the "
            "folder holds the rows of another run; run the evaluation again in an empty folder"
        )
    measures = run._names["measure"]
    if len(measures) > MEASURES or not all(0 < len(name) <= NAME and name.isprintable() for name in measures):
        raise RunFolderError(
            f"{path}: {len(measures)} measures, such as {measures[0][:40]!r}; expected are at most {MEASURES} of "
            f"up to {NAME} printable characters"
        )
    return run


def _images(manifest: Mapping[str, Any], block: int, path: Path) -> range:
    """Returns the images of a block, as the manifest has it."""
    size = manifest.get("block") or manifest["images"] or 1
    images = range(min(block * size, manifest["images"]), min((block + 1) * size, manifest["images"]))
    if not images:
        raise RunFolderError(
            f"{path} holds block {block}, and its manifest.json tells of {manifest['images']} images: the folder holds "
            "the rows of another run; run the evaluation again in an empty folder"
        )
    return images


def _joined(tables: "list[pa.Table]") -> "pa.Table":
    """Returns one table, its words coded alike from block to block."""
    import pyarrow as pa

    if not tables:
        words = pa.dictionary(pa.int32(), pa.string())
        kinds = [(name, words if name in WORDS else pa.type_for_alias(kind)) for name, kind in COLUMNS]
        return pa.schema(kinds).empty_table()
    return pa.concat_tables(tables, promote_options="permissive").unify_dictionaries().combine_chunks()


def _opened(path: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        open_regular(path, MAP_BYTES).close()
        return safe_open(path, framework="numpy")
    except (SafetensorError, OSError) as error:
        raise RunFolderError(
            f"{path} is damaged or cannot be read ({error}); delete it and start the same `vitrail evaluate` "
            "again, which measures that block anew"
        ) from error


def _unique(images: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the images, ascending, the first row of each, and the place of each row's image among them."""
    highest = int(images.max(initial=-1)) + 1
    if highest > 64 * len(images) + 2**20:  # few of very many
        return np.unique(images, return_index=True, return_inverse=True)
    first = np.full(highest, -1, dtype=np.int64)  # without sorting
    first[images[::-1]] = np.arange(len(images))[::-1]  # of a place that is named twice the last word stands
    there = first >= 0
    return np.flatnonzero(there), first[there], (np.cumsum(there) - 1)[images]


def _first_seen(codes: np.ndarray) -> list[int]:
    """Returns the different codes in the order in which they first come."""
    found, place = np.unique(codes, return_index=True)
    return found[place.argsort()].tolist()
