"""What a view gives back and what can be exported from it: HTML, files, and the same maps as Python or a command."""

import shlex
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import TargetError, UnknownMethodError
from ..explanation import Explanation
from ..methods.registry import find_method
from ..models import VisionModel
from .pictures import EXAMPLES, Picture
from .question import Question

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "REWRITE_STEPS",
    "ExportContext",
    "ViewResult",
    "as_command",
    "as_python",
    "file_of",
    "files_of",
    "files_of_figure",
    "frames",
    "limits",
]

REWRITE_STEPS = 200
MOST_STEPS, FRAMES = 100, 10  # of a transfer
FILM = 60  # frames after which the command's film leaves steps out

File = Callable[[], bytes]


@dataclass(frozen=True, eq=False)
class ViewResult:
    """Holds the HTML of a view, its files by suffix, each made on demand, and their name.

    `facts` are what code for the same view must know, such as the gradient mode in use. `essence` is that of the
    question, and `held` the bytes that the files are made from, where they are many.
    """

    html: str
    files: Mapping[str, File] = field(default_factory=dict)
    name: str = "vitrail"
    facts: Mapping[str, Any] = field(default_factory=dict)
    essence: tuple[Any, ...] = ()
    held: int = 0


def file_of(write: Callable[[Path], object], suffix: str) -> bytes:
    """Returns the bytes that `write` puts into a temporary file of that suffix.

    >>> file_of(lambda path: path.write_text("glass"), "txt")
    b'glass'
    """
    with tempfile.TemporaryDirectory(prefix="vitrail-") as folder:
        path = Path(folder, f"file.{suffix}")
        write(path)
        return path.read_bytes()


def files_of_figure(draw: Callable[[], "Figure"]) -> dict[str, File]:
    """Returns a figure as PNG and SVG files."""
    from ..plotting.saving import save_figure

    return {
        "png": lambda: file_of(lambda path: save_figure(draw(), path), "png"),
        "svg": lambda: file_of(lambda path: save_figure(draw(), path), "svg"),
    }


def files_of(ex: Explanation, draw: Callable[[], "Figure"] | None = None) -> dict[str, File]:
    """Returns an explanation as PNG, SVG and safetensors files."""
    figures = files_of_figure(ex.plot if draw is None else draw)
    return figures | {"safetensors": lambda: file_of(ex.save, "safetensors")}


@dataclass(frozen=True, eq=False, kw_only=True)
class ExportContext:
    """Holds a question and everything its result depends on; `facts` are those of the `ViewResult`.

    `vlm` is the vision-language model that the page has under the name of the question, loaded with `vlm_options`.
    """

    question: Question
    model: VisionModel
    picture: Picture
    target: int
    rival: int
    checkpoint: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    vlm: str = ""
    vlm_options: Mapping[str, str] = field(default_factory=dict)

    @property
    def file(self) -> str:
        """Returns the picture's file, as a relative path that no program takes for an option."""
        name = self.picture.file or self.picture.name
        return f"./{name}" if name.startswith("-") else name

    @property
    def gradient(self) -> str | None:
        """Returns the mode that the visitor chose; None for the method's own."""
        mode = self.question.gradient
        return None if mode == Question.gradient else mode

    def uses_gradient(self) -> bool:
        """Returns whether the method of the question uses a gradient."""
        try:
            return find_method(self.question.method, {}).uses_gradient
        except UnknownMethodError:
            return False

    def name(self, index: int) -> str | int:
        """Returns the class by its name where that is read as this class, else by its number."""
        name = self.model.class_name(index)
        try:
            return name if self.model.class_index(name) == index else index
        except TargetError:
            return index


def limits(question: Question) -> tuple[int, float]:
    """Returns the steps of a transfer and the stopping probability of a rewriting, within the page's limits."""
    return max(1, min(question.steps, MOST_STEPS)), min(max(question.until, 0.05), 0.99)


def frames(steps: int) -> list[int]:
    """Returns the steps of a transfer at which the page draws maps; the command's film has them all.

    >>> frames(5), frames(65)
    ([0, 1, 2, 3, 4, 5], [0, 8, 16, 24, 32, 40, 48, 56, 64, 65])
    """
    film = -(-steps // FILM)
    every = -(-max(1, -(-steps // FRAMES)) // film) * film
    return sorted({*range(0, steps + 1, every), steps})


def as_python(context: ExportContext) -> str:
    """Returns a Python program that computes and draws the maps of the view."""
    question = context.question
    weights = f", checkpoint={context.checkpoint!r}" if context.checkpoint else ""
    device = str(context.model.device)
    weights += f", device={device!r}" if device != "cpu" else ""
    target, rival = f"{context.name(context.target)!r}", f"{context.name(context.rival)!r}"
    against = "" if question.against is None else f", against={context.name(question.against)!r}"
    gradient = f", gradient={context.gradient!r}" if context.gradient else ""
    method = f", method={question.method!r}" + (gradient if context.uses_gradient() else "")
    asked = f"model, image, {target}{against}"
    steps, until = limits(question)
    imports: list[str] = []
    loaded = f"vitrail.load({context.model.name!r}{weights})"
    match question.view:
        case "methods":
            lines = [f"found = vitrail.compare({asked}, methods={question.methods!r}{gradient})"]
            lines += ['found.save_picture("methods.png")']
        case "layers":
            imports = ["from vitrail.shares import head_shares"]
            lines = [f"found = head_shares({asked}{gradient})", 'found.explanation.save("layers.safetensors")']
            lines += ["growth = found.growth()  # layers, rows, columns: the map of the blocks from each to the last"]
        case "heads":
            imports = ["from vitrail.shares import head_shares"]
            lines = [f"found = head_shares({asked}{gradient})", 'found.explanation.save("heads.safetensors")']
            lines += ["weights = found.weights  # layers, heads"]
            if "head" in context.facts:
                lines += [f"one = found.scores[{context.facts['layer']}, {context.facts['head']}]  # rows, columns"]
        case "detail":
            imports = ["from vitrail.guidance import detail", "from vitrail.plotting.class_pair import draw_pair"]
            lines = [f"found = detail(model, image, {target}, {rival}{gradient})", "pair = found.pairs[0]"]
            lines += ['draw_pair(found, *pair).savefig("detail.png")']
        case "guide":
            picture = context.facts.get("guide") or "auto"
            guide = f", guide=vitrail.Guide({picture!r}, layout={question.layout!r})"
            lines = [f"ex = vitrail.explain({asked}{method}{guide})", 'ex.save("guided.safetensors")']
        case "transfer":
            imports = ["from vitrail.counterfactual import transfer"]
            lines = [f"found = transfer(model, image, {target}, {rival}, steps={steps}, snapshots={frames(steps)})"]
            lines += ['found.plot().savefig("transfer.png")']
        case "rewrite":
            imports = ["from vitrail.counterfactual import rewrite"]
            budget = f", budget={_budget(question)}" if question.budget else ""
            words = f"target={rival}, source={target}, until={until!r}{budget}, steps={REWRITE_STEPS}"
            lines = [f"found = rewrite(model, image, {words})", 'found.save("rewritten.png")']
        case "words":
            imports = ["import torch"] if "dtype" in context.vlm_options else []
            kept = {name: f"torch.{one}" if name == "dtype" else repr(one) for name, one in context.vlm_options.items()}
            loaded = f"vitrail.load_vlm({', '.join([repr(context.vlm), *(f'{n}={v}' for n, v in kept.items())])})"
            words = "".join(f", {name}={value!r}" for name, value in question.about_words().items())
            lines = [f"ex = vitrail.explain_generation(model, image, {question.prompt!r}{words})"]
            lines += ['ex.save("words.safetensors")', 'ex.plot("words.png")']
        case _:
            finer = "".join(f", {name}={value!r}" for name, value in question.finer.items())
            lines = [f"ex = vitrail.explain({asked}{method}{finer})", 'ex.save("map.png")']
            if question.row is not None and question.col is not None:
                mode = f", gradient={context.facts['gradient']!r}"
                at = f"method='complete'{mode}, readout=({question.row}, {question.col})"
                lines += [f"token = vitrail.explain({asked}, {at})", 'token.save("token.png")']
    image = f"image = {context.file!r}"
    if question.example in EXAMPLES:
        imports += ["from vitrail.app.pictures import example_picture"]
        image = f"image = example_picture({question.example!r}).open()"
    head = ["import vitrail", *sorted(imports), "", f"model = {loaded}", image]
    return "\n".join([*head, *lines]) + "\n"


def as_command(context: ExportContext) -> str:
    """Returns the commands that compute the maps of the view; what no command does alone is left to Python."""
    question = context.question
    words = ["--model", context.model.name, *(["--checkpoint", context.checkpoint] if context.checkpoint else [])]
    device = str(context.model.device)
    words += ["--device", device] if device != "cpu" else []
    target, rival = str(context.name(context.target)), str(context.name(context.rival))
    against = [] if question.against is None else _option("--against", context.name(question.against))
    asked = [context.file, *words, *_option("--target", target), *against]
    gradient = ["--gradient", context.gradient] if context.gradient else []
    method = ["--method", question.method, *(gradient if context.uses_gradient() else [])]
    steps, until = limits(question)
    more: list[list[str]] = []
    match question.view:
        case "methods":
            line = ["compare", *asked, "--methods", question.methods, *gradient]
        case "layers" | "heads":
            line = ["explain", *asked, "--method", "complete", *gradient]
        case "detail":
            pair = [*_option("--target", target), *_option("--against", rival)]
            line = ["detail", context.file, *words, *pair, *gradient]
        case "guide":
            guide = ["--guide", context.facts.get("guide") or "auto", "--layout", question.layout]
            line = ["guide", *asked, *method, *guide]
        case "transfer":
            pair = [*_option("--target", target), *_option("--against", rival)]
            line = ["transfer", context.file, *words, *pair, "--steps", str(steps)]
        case "rewrite":
            pair = [*_option("--source", target), *_option("--target", rival)]
            budget = ["--budget", _budget(question)] if question.budget else []
            line = [
                "rewrite",
                context.file,
                *words,
                *pair,
                "--until",
                repr(until),
                *budget,
                "--steps",
                str(REWRITE_STEPS),
            ]
        case "words":
            line = ["vlm", context.file, "--model", context.vlm, *_option("--prompt", question.prompt)]
            for name, value in (question.about_words() | dict(context.vlm_options)).items():
                line += _option(f"--{name.replace('_', '-')}", value)
        case _:
            finer = [word for name, value in question.finer.items() for word in (f"--{name}", str(value))]
            line = ["explain", *asked, *method, *finer]
            if question.row is not None and question.col is not None:
                at = ["--readout", f"{question.row},{question.col}", "--output", "out/token"]
                mode = ["--gradient", context.facts["gradient"]]
                more = [["explain", *asked, "--method", "complete", *mode, *at]]
    lines = [f"vitrail {shlex.join(words)}" for words in (line, *more)]
    if question.example in EXAMPLES:
        made = f"example_picture({question.example!r}).open().save({context.file!r})"
        code = f"from vitrail.app.pictures import example_picture; {made}"
        lines.insert(0, shlex.join(["python", "-c", code]))
    return "\n".join(lines) + "\n"


def _option(name: str, value: str | int) -> list[str]:
    text = str(value)
    return [f"{name}={text}"] if text.startswith("-") else [name, text]


def _budget(question: Question) -> str:
    """Returns the budget in whole levels, as the page's slider has it, or the number of a link."""
    levels = round(255 * question.budget)
    return f"{levels}/255" if levels / 255 == question.budget else repr(question.budget)
