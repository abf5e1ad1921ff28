"""The experiments by name, and by the number of the paper's figure that each draws."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..errors import ExperimentError, UnknownExperimentError
from ..explanation import Explanation
from ..guidance.typical import TypicalPictures
from ..models.vision_model import VisionModel
from ..plotting import save_figure, save_picture

__all__ = ["EXPERIMENTS", "Experiment", "Question", "figure_number", "find_experiment", "needs", "register_experiment"]

FIRST, LAST = 3, 13  # the figures with results; 1 and 2 are diagrams


@dataclass(frozen=True, eq=False)
class Question:
    """What an experiment is run on; class indices, in the order in which they were named."""

    model: VisionModel
    images: tuple[Path, ...]
    output: Path
    targets: tuple[int, ...] = ()
    against: tuple[int, ...] = ()
    typical: Path | Mapping[int, TypicalPictures] | None = None  # a folder, or pictures by class
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
    others: tuple[VisionModel, ...] = ()  # more models for the same figure, after `model`
    framed: tuple[int, ...] = ()  # the pairs, by number, that get a red frame
    prefix: str = ""  # of the files' names

    @property
    def models(self) -> tuple[VisionModel, ...]:
        """Returns all models, in the order in which they were named."""
        return (self.model, *self.others)

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

    def index_in(self, model: VisionModel, index: int) -> int:
        """Returns the class that another model calls by the name that `model` of this question has for `index`.

        Raises:
            TargetError: where that model has no class of this name.
        """
        named = self.model.class_names is not None and model.class_names is not None
        return model.class_index(self.model.class_name(index) if named and model is not self.model else index)

    def chosen_methods(self, known: Sequence[str]) -> tuple[str, ...]:
        """Returns the names of `methods`, which may be joined by commas; all that are known where none is given.

        Raises:
            ExperimentError: for a method that the experiment does not draw.
        """
        names = tuple(name for one in self.methods for name in one.replace(" ", "").split(",") if name)
        foreign = [name for name in names if name not in known]
        needs(not foreign, f"methods={','.join(foreign)} is not among those drawn here: {', '.join(known)}")
        return names or tuple(known)

    def path(self, name: str) -> Path:
        """Returns the path of the figure called `name`."""
        return self.output / f"{self.prefix}{name}.{self.format}"

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
    """What an experiment shows and needs, and the function that draws it and returns its numbers.

    `figures` are the numbers in the paper of what it draws, none for an experiment of our own. `takes` are the fields
    of `Question` that mean something to it, beyond those of every experiment. The function returns one dictionary per
    picture, with `file` and whatever was measured.
    """

    name: str
    figures: tuple[int, ...]
    function: Callable[[Question], list[dict[str, Any]]] = field(repr=False)
    wants: str
    summary: str
    takes: tuple[str, ...] = ()

    @property
    def labels(self) -> tuple[str, ...]:
        """Returns the names of its figures on the command line."""
        return tuple(f"fig{number}" for number in self.figures)


EXPERIMENTS: dict[str, Experiment] = {}


def register_experiment(
    name: str, *, wants: str, figures: tuple[int, ...] = (), takes: tuple[str, ...] = ()
) -> Callable[[Callable], Callable]:
    """Registers a function from a `Question` to a list of results under `name`; its docstring says what it shows."""

    def register(function: Callable) -> Callable:
        summary = (function.__doc__ or "").strip().splitlines()[0]
        EXPERIMENTS[name] = Experiment(name, figures, function, wants, summary, takes)
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
    number = figure_number(name)
    for experiment in EXPERIMENTS.values():
        if name.casefold() == experiment.name or number in experiment.figures:
            return experiment
    known = ", ".join(one.name + (f" ({', '.join(one.labels)})" if one.figures else "") for one in EXPERIMENTS.values())
    why = f"no experiment is called {name!r}"
    if number is not None:
        why = f"the paper has figures 1 to {LAST}, and {name} is none of them"
        if 0 < number < FIRST:
            why = f"figures 1 and 2 are diagrams (the idea; how GAE is computed), and figures {FIRST} to {LAST} results"
    raise UnknownExperimentError(f"{why}; by what they show there are: {known}")


def figure_number(name: str) -> int | None:
    """Returns the number of a figure's name, None where the name is none.

    Example:
        >>> figure_number("fig9"), figure_number("Figure 12"), figure_number("typical")
        (9, 12, None)
    """
    found = re.fullmatch(r"fig(?:ure)?[\s.]*(\d+)", name.casefold())
    return int(found[1]) if found else None


def needs(condition: bool, message: str) -> None:
    """Refuses a question that lacks what the experiment shows.

    Raises:
        ExperimentError: with the message, unless the condition holds.
    """
    if not condition:
        raise ExperimentError(message)
