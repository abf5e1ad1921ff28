"""What a reviewer decided about each suspect: written at once, undone, restored after a restart, exported as a table.

The journal `decisions.jsonl` has a line per act, in their order; the last word about an image counts. A line is on the
disk before the act counts, and a line that was left half written, by a process that was killed or on a full disk, is
cut off by the next act.
"""

import csv
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock
from typing import Any, Literal, TypeAlias, get_args

from ..errors import OptionError, OutputFileError, RunFolderError, RunFolderInUseError
from ..files import atomic_write, hold, open_regular
from .result import Audit

__all__ = ["VERDICTS", "Decision", "Decisions", "Verdict", "export_decisions", "reviewing"]

Verdict: TypeAlias = Literal["keep", "relabel", "both", "drop", "skip"]
VERDICTS: tuple[str, ...] = get_args(Verdict)
JOURNAL, LOCK = "decisions.jsonl", "review.lock"
MOST_BYTES = 2**28


@dataclass(frozen=True)
class Decision:
    """A verdict on one image: "keep" its labels, "relabel" it with the suggested class in place of the doubted one
    (where one of them is None, only take away or only add), "both" are right, "drop" the image, or "skip" it. `when` is
    the time in UTC.
    """

    image: int
    verdict: str
    when: str


class Decisions:
    """The decisions of a review, by the number of the image; safe to use from several threads.

    `images` are those that may be decided, the suspects; what was decided about others, by an audit that had other
    suspects, is kept.

    Raises:
        RunFolderError: for a journal that is damaged within.
        RunFolderInUseError: by `decide` and `undo`, where another process has decided meanwhile.
        OutputFileError: when it cannot be written.

    Example:
        >>> import tempfile
        >>> decisions = Decisions(tempfile.mkdtemp(), images=[7, 8])
        >>> decisions.decide(7, "drop").verdict, decisions.decide(7, "keep").verdict, decisions.undo()
        ('drop', 'keep', 7)
        >>> decisions.current[7].verdict, Decisions(decisions.path.parent, images=[7, 8]).current == decisions.current
        ('drop', True)
    """

    def __init__(self, folder: str | os.PathLike[str], images: Sequence[int]) -> None:
        self.path = Path(folder) / JOURNAL
        self._images = frozenset(images)
        self._lock = Lock()
        self._acts: list[tuple[int, Decision | None]] = []  # the image, and what was decided before
        self._size = 0  # of the journal's whole lines, in bytes
        self.current: dict[int, Decision] = {}
        self.version = 0  # acts in the journal, undone ones and undoing included
        for line in self._lines():
            self._replay(line)
            self.version += 1

    @property
    def last(self) -> int | None:
        """Returns the image whose decision `undo` takes back; None where there is none left."""
        return self._acts[-1][0] if self._acts else None

    def decide(self, image: int, verdict: str) -> Decision:
        """Writes a decision and returns it.

        Raises:
            OptionError: for an image that is not reviewed, or an unknown verdict.
        """
        if image not in self._images:
            raise OptionError(f"image {image} is none of the {len(self._images)} suspects")
        if verdict not in VERDICTS:
            raise OptionError(f"verdict={verdict!r} is none of {', '.join(VERDICTS)}")
        decision = Decision(image, verdict, datetime.now(UTC).isoformat(timespec="seconds"))
        with self._lock:
            self._append(asdict(decision))
            self._act(decision)
        return decision

    def undo(self) -> int | None:
        """Takes the last decision back, and returns the image that it was about; None where there is none left."""
        with self._lock:
            if not self._acts:
                return None
            self._append({"undo": True})
            return self._take_back()

    def _act(self, decision: Decision) -> None:
        self._acts.append((decision.image, self.current.get(decision.image)))
        self.current[decision.image] = decision

    def _take_back(self) -> int:
        image, before = self._acts.pop()
        if before is None:
            del self.current[image]
        else:
            self.current[image] = before
        return image

    def _append(self, told: Mapping[str, Any]) -> None:
        try:
            line = json.dumps(told).encode() + b"\n"
            with self.path.open("a+b") as file:
                file.seek(self._size)
                if b"\n" in file.read():  # never cut off what another process decided
                    raise RunFolderInUseError(
                        f"another process has written to {self.path} since it was read: read the decisions again"
                    )
                file.truncate(self._size)  # half a line of a process that was killed
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
            self._size += len(line)
            self.version += 1
        except OSError as error:
            with suppress(OSError):  # of a full disk: what has come there all the same was not decided
                os.truncate(self.path, self._size)
            raise OutputFileError(
                f"the decision cannot be written to {self.path}: {error.strerror or error}"
            ) from error

    def _lines(self) -> list[dict[str, Any]]:
        if not os.path.lexists(self.path):
            return []
        try:
            with open_regular(self.path, MOST_BYTES) as file:
                content = file.read()
        except OSError as error:
            raise RunFolderError(f"{self.path} cannot be read: {error.strerror or error}") from error
        whole = content[: content.rfind(b"\n") + 1]
        self._size = len(whole)
        try:
            return [json.loads(line) for line in whole.splitlines()]
        except ValueError as error:
            raise RunFolderError(f"{self.path} is damaged: {error}; mend or remove the line, or the file") from error

    def _replay(self, line: Mapping[str, Any]) -> None:
        if line.get("undo") is True and self._acts:
            self._take_back()
        elif type(line.get("image")) is int and line.get("verdict") in VERDICTS:  # no suspect any more, perhaps
            self._act(Decision(line["image"], str(line["verdict"]), str(line.get("when", ""))))
        else:
            raise RunFolderError(f"{self.path} is not the journal of this audit: it holds {json.dumps(line)[:80]}")


@contextmanager
def reviewing(audit: Audit) -> Iterator[Decisions]:
    """Holds the decisions of an audit for this process alone.

    Raises:
        RunFolderInUseError: where another process has them.
        OutputFileError: where nothing can be written to the folder.
    """
    try:
        file = (audit.folder / LOCK).open("ab")
    except OSError as error:
        raise OutputFileError(f"no decision can be written to {audit.folder}: {error.strerror or error}") from error
    with file:
        if not hold(file):
            raise RunFolderInUseError(f"another process has {audit.folder} open for review: go on there, or end it")
        yield Decisions(audit.folder, [one.image for one in audit.suspects])


COLUMNS: tuple[str, ...] = ("file", "image", "verdict", "labels", "given", "suggested", "corrected", "margin", "when")


def export_decisions(
    audit: Audit, decisions: Decisions, path: str | os.PathLike[str] | None = None, *, kind: str | None = None
) -> bytes:
    """Returns the decided suspects as a table, of the `kind` "csv" or "parquet"; written to `path` where one is given.

    A row has the file, its verdict, the labels that were given and those that are right by it (`corrected`, class
    indices separated by spaces, empty for a dropped image), as the next training reads them. The kind is by default
    that of the path's ending, and without a path CSV.

    Raises:
        OptionError: for another kind.
        OutputFileError: when it cannot be written.
    """
    if kind is None:
        kind = "csv" if path is None else Path(path).suffix.lower().removeprefix(".")
    if kind not in ("csv", "parquet"):
        raise OptionError(f"decisions are exported as .csv or .parquet, not as {Path(str(path)).name}")
    rows = list(_rows(audit, decisions))
    file = io.BytesIO()
    if kind == "csv":
        text = io.StringIO(newline="")
        writer: csv.DictWriter[str] = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        file.write(text.getvalue().encode())
    else:
        import pyarrow as pa
        from pyarrow import parquet

        kinds = {"image": pa.int64(), "margin": pa.float64()}
        schema = pa.schema([(name, kinds.get(name, pa.string())) for name in COLUMNS])
        parquet.write_table(pa.Table.from_pylist(rows, schema=schema), file, compression="zstd")
    if path is not None:
        with atomic_write(path) as opened:
            opened.write(file.getvalue())
    return file.getvalue()


def _rows(audit: Audit, decisions: Decisions) -> list[dict[str, Any]]:
    found = []
    for one in audit.suspects:
        decision = decisions.current.get(one.image)
        if decision is None:
            continue
        labels, name = list(one.labels), {None: ""}
        match decision.verdict:
            case "relabel":
                labels = [index for index in labels if index != one.given]
                labels += [one.suggested] if one.suggested is not None else []
            case "both":
                labels += [one.suggested] if one.suggested is not None else []
            case "drop":
                labels = []
        name |= {index: audit.class_name(index) for index in (one.given, one.suggested) if index is not None}
        found.append(
            {
                "file": one.source,
                "image": one.image,
                "verdict": decision.verdict,
                "labels": " ".join(map(str, one.labels)),
                "given": name[one.given],
                "suggested": name[one.suggested],
                "corrected": " ".join(str(index) for index in dict.fromkeys(labels)),
                "margin": one.margin,
                "when": decision.when,
            }
        )
    return found
