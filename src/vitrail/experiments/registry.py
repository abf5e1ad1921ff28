"""The experiments by name, and by the number of the paper's figure where that is known."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..errors import ExperimentError, UnknownExperimentError
from ..explanation import Explanation
from ..models.vision_model import VisionModel
from ..plotting import save_figure, save_picture

__all__ = ["EXPERIMENTS", "Experiment", "Question", "find_experiment", "needs", "register_experiment"]


@dataclass(frozen=True, eq=False)
class Question:
    """What an experiment is run on; class indices, in the order in which they were named."""

    model: VisionModel
    images: tuple[Path, ...]
    output: Path
    targets: tuple[int, ...] = ()
    against: tuple[int, ...] = ()
    typical: Path | None = None
    format: str = "png"
    options: dict[str, Any] = field(default_factory=lambda: {"gradient": "full"})  # of vitrail.explain; the paper's
    guide: Any = None  # a picture, or "auto"
    labels: Path | None = None  # a table of files and classes
    limit: int | None = None  # how many images at most
    methods: tuple[str, ...] = ()
    steps: int | None = None
    lr: float | None = None
    until: float | None = None
    report: Callable[[str, int, int], object] = lambda *_: None  # (stage, done, total)

    @property
    def target(self) -> int | None:
        """Returns the first target, or None for the predicted class."""
        return self.targets[0] if self.targets else None

    def one_per_image(self) -> list[int] | None:
        """Returns a target for each image: those named, or the one named for all; None for the predicted classes.

        Raises:
            ExperimentError: when there are neither one target nor as many as images.
        """
        if not self.targets:
            return None
        needs(
            len(self.targets) in (1, len(self.images)),
            f"{len(self.targets)} targets for {len(self.images)} images: name one for all, or one for each",
        )
        return list(self.targets) if len(self.targets) > 1 else list(self.targets) * len(self.images)

    def path(self, name: str) -> Path:
        """Returns the path of the figure called `name`."""
        return self.output / f"{name}.{self.format}"

    def draw(self, explanations: Explanation | Sequence[Explanation], name: str, notes: Sequence[str] = ()) -> Path:
        """Draws explanations as one picture called `name`, `notes` below it."""
        columns = [explanations] if isinstance(explanations, Explanation) else list(explanations)
        columns[0] = replace(columns[0], provenance=replace(columns[0].provenance, notes=tuple(notes)))
        return save_picture(columns, self.path(name))

    def save(self, figure: Any, name: str) -> Path:
        """Writes a figure as the picture called `name`."""
        return save_figure(figure, self.path(name))


@dataclass(frozen=True)
class Experiment:
    """One figure: what it shows, what it needs, and the function that draws it and returns figures in numbers.

    `figure` is the number in the paper, None where it is not known which one shows this. `takes` are the fields of
    `Question` that mean something to it, beyond those of every experiment. The function yields one dictionary per
    picture, with `file` and whatever was measured.
    """

    name: str
    figure: int | None
    function: Callable[[Question], list[dict[str, Any]]] = field(repr=False)
    wants: str
    summary: str
    takes: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """Returns the figure's name on the command line, or nothing."""
        return "" if self.figure is None else f"fig{self.figure}"


EXPERIMENTS: dict[str, Experiment] = {}


def register_experiment(
    name: str, *, wants: str, figure: int | None = None, takes: tuple[str, ...] = ()
) -> Callable[[Callable], Callable]:
    """Registers a function from a `Question` to a list of results under `name`; its docstring says what it shows."""

    def register(function: Callable) -> Callable:
        summary = (function.__doc__ or "").strip().splitlines()[0]
        EXPERIMENTS[name] = Experiment(name, figure, function, wants, summary, takes)
        return function

    return register


def find_experiment(name: str) -> Experiment:
    """Returns the experiment called `name`, or that of the paper's figure where `name` is fig9 or the like.

    Raises:
        UnknownExperimentError: for any other name, saying which there are.

    Example:
        >>> find_experiment("fig9").name
        'typical'
    """
    wanted = name.casefold()
    for experiment in EXPERIMENTS.values():
        if wanted in (experiment.name, experiment.label):
            return experiment
    known = ", ".join(one.name + (f" ({one.label})" if one.label else "") for one in EXPERIMENTS.values())
    number = wanted.removeprefix("fig").lstrip("ure .")
    why = f"no experiment is called {name!r}"
    if number.isdecimal():
        why = f"no experiment is known to be figure {number}"
    raise UnknownExperimentError(f"{why}; by what they show there are: {known}")


def needs(condition: bool, message: str) -> None:
    """Refuses a question that lacks what the experiment shows.

    Raises:
        ExperimentError: with the message, unless the condition holds.
    """
    if not condition:
        raise ExperimentError(message)
