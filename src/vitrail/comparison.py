"""What several methods said of one image, side by side: a map of each, what it took, and which of them failed."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from .explanation import Explanation
from .provenance import Provenance

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Compared", "Comparison"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Compared:
    """One method's answer: its explanation and the seconds that it took, or the error with which it failed.

    `label` is the method's name, with the gradient mode where one was asked for ("complete:libra"); `level` and
    `signed` are those that `vitrail.list_methods` tells, and `passes` with a backward pass more where rivals were
    subtracted; `options` are those that were given to this method.
    """

    label: str
    method: str
    signed: bool
    class_specific: bool
    level: str
    passes: str
    seconds: float
    options: Mapping[str, Any] = field(default_factory=dict)
    explanation: Explanation | None = None
    error: Exception | None = None


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Comparison:
    """The same question about one image, asked of several methods.

    `target` holds one class index for each row of the sheet, `against` the classes they are held against. `image` is
    what the model saw, RGB from 0 to 255. `provenance` says which model was asked, about which image.
    """

    answers: tuple[Compared, ...]
    logits: Float[Tensor, " classes"]
    target: Int[Tensor, " targets"]
    against: Int[Tensor, " targets"] | None = None
    objective: str = "logit"
    class_names: tuple[str, ...] | None = None
    image: UInt8[Tensor, "height width 3"] | None = None
    provenance: Provenance = field(default_factory=Provenance)

    @property
    def metadata(self) -> Mapping[str, Any]:
        """Returns the provenance as plain JSON values."""
        return MappingProxyType(self.provenance.as_metadata())

    @property
    def failures(self) -> dict[str, Exception]:
        """Returns the methods that failed, by label, and their errors."""
        return {one.label: one.error for one in self.answers if one.error is not None}

    @property
    def maps(self) -> dict[str, Float[Tensor, "targets rows cols"]]:
        """Returns the raw maps by label, one for each target: in patches, or in pixels for methods of level "pixel"."""
        return {one.label: one.explanation.scores[0] for one in self.answers if one.explanation is not None}

    def __len__(self) -> int:
        return len(self.answers)

    def __repr__(self) -> str:
        failed = f", {len(self.failures)} failed" if self.failures else ""
        return f"Comparison({len(self)} methods{failed}, {self.question()})"

    def sides(self, row: int = 0) -> list[tuple[str, str]]:
        """Returns the classes of a row's question, the target first, and what the model says of each, as "82.1 %"."""
        return self._words().sides(0, row)

    def question(self, row: int = 0) -> str:
        """Returns the question of a row's maps: "zebra 82.1 % against African elephant 3.4 %"."""
        return self._words().question(0, row)

    def notes(self) -> list[str]:
        """Returns the notes for the reader, each once, with the methods that it concerns."""
        said: dict[str, list[str]] = {}
        for one in self.answers:
            for note in one.explanation.notes() if one.explanation is not None else ():
                said.setdefault(note, []).append(one.label)
        return [f"{', '.join(labels)}: {note}" for note, labels in said.items()]

    def record(self) -> dict[str, Any]:
        """Returns all but the maps, as plain JSON values."""
        rows = []
        for row, index in enumerate(self.target.tolist()):
            said = {"target": self.sides(row)[0][0], "target_index": index, "target_probability": self._said(index)}
            if self.against is not None:
                other = int(self.against[row])
                said |= {"against": self.sides(row)[1][0], "against_index": other}
                said |= {"against_probability": self._said(other)}
            rows.append(said)
        methods = []
        for one in self.answers:
            names = ("label", "method", "signed", "class_specific", "level", "passes", "seconds")
            told: dict[str, Any] = {name: getattr(one, name) for name in names} | {"options": dict(one.options)}
            if one.error is not None:
                told |= {"error": type(one.error).__name__, "message": " ".join(str(one.error).split())}
            if one.explanation is not None:
                maps = one.explanation.scores[0]
                told["maps"] = [{"lowest": each.min().item(), "highest": each.max().item()} for each in maps]
                told["grid"] = list(one.explanation.grid)
            methods.append(told)
        output = self._words().output.record()
        return {"questions": rows, **output, "objective": self.objective, "methods": methods, "notes": self.notes()}

    def plot(self, **look: Any) -> "Figure":
        """Draws the sheet; the options are those of `vitrail.plotting.comparison.draw_comparison`."""
        from .plotting.comparison import draw_comparison

        return draw_comparison(self, **look)

    def _repr_html_(self) -> str:
        """The sheet, for notebooks."""
        from .plotting.saving import figure_html

        return figure_html(self.plot(), repr(self))

    def save_picture(self, path: str | os.PathLike[str], **look: Any) -> Path:
        """Draws the sheet and writes it, as PNG, PDF or SVG by the suffix. Returns the path.

        Raises `OptionError` for another suffix, `OutputFileError` when the file cannot be written.
        """
        from .plotting.saving import save_figure, suffix_of

        suffix_of(path)
        return save_figure(self.plot(**look), path)

    def _said(self, index: int) -> float | None:
        return self._words().probability(index)

    def _words(self) -> Explanation:
        """The question as an explanation without a map, which knows how to put it in words."""
        return Explanation(
            scores=torch.zeros(1, len(self.target), 1, 1),
            logits=self.logits[None].float(),
            target=self.target[None],
            against=None if self.against is None else self.against[None],
            method="",
            objective=self.objective,
            class_names=self.class_names,
            provenance=Provenance(output=self.provenance.output),
        )
