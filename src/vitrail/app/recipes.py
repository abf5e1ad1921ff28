"""The same view without the page: as Python, and as commands."""

import shlex

from ..models import VisionModel
from .pictures import EXAMPLES, LARGE, photographs
from .question import Question

__all__ = ["as_command", "as_python"]


def as_python(question: Question, model: VisionModel, checkpoint: str | None, file: str, target: int) -> str:
    """A program that draws what the view shows; `file` is the picture's name and `target` the class explained."""
    given = f", checkpoint={checkpoint!r}" if checkpoint else ""
    lines = [
        "import vitrail",
        *_imports(question),
        "",
        f"model = vitrail.load({model.name!r}{given})",
        *_image(question, file),
    ]
    name, other = _named(model, target), _named(model, question.against)
    against = f", against={other}" if other else ""
    gradient = f", gradient={question.gradient!r}" if question.gradient != "full" else ""
    asked = f"model, image, {name}{against}, method={question.method!r}{gradient}"
    mode = "" if question.gradient in ("auto", "full") else gradient
    match question.view:
        case "methods":
            lines += [f"found = vitrail.compare(model, image, {name}{against}, methods={question.methods!r}{mode})"]
            lines += ['found.save_picture("methods.png")']
        case "layers":
            lines += [
                f"found = head_shares(model, image, {name}{against}{mode})",
                "growth = found.growth()  # layers, rows, columns",
            ]
        case "heads":
            lines += [
                f"found = head_shares(model, image, {name}{against}{mode})",
                "weights = found.weights  # layers, heads",
            ]
            if question.layer is not None and question.head is not None:
                lines += [f"one = found.scores[{question.layer}, {question.head}]"]
        case "detail":
            lines += [
                f"found = detail(model, image, {name}{against}{', top=2' if not other else ''}{mode})",
                "found.maps",
            ]
        case "guide":
            lines += [
                f'found = vitrail.explain({asked.replace(gradient, mode)}, guide=vitrail.Guide("auto", layout={question.layout!r}))'
            ]
            lines += ['found.save("guided.safetensors")']
        case "transfer":
            opposing = f", opposing={other}" if other else ""
            lines += [
                f"found = transfer(model, image, {name}{opposing}, steps={question.steps})",
                'found.animate("transfer.webp")',
            ]
        case "rewrite":
            goal = other or "…"
            budget = f", budget={question.budget:g}" if question.budget else ""
            lines += [f"found = rewrite(model, image, source={name}, target={goal}, until={question.until:g}{budget})"]
            lines += ['found.save("rewritten.png")']
        case _:
            at = (
                f", readout=({question.row}, {question.col})"
                if question.row is not None and question.col is not None
                else ""
            )
            lines += [f"ex = vitrail.explain({asked}{at})", "ex.plot()"]
    return "\n".join(lines) + "\n"


def as_command(question: Question, model: VisionModel, checkpoint: str | None, file: str, target: int) -> str:
    """The commands that draw what the view shows."""
    words = ["--model", model.name, *(["--checkpoint", checkpoint] if checkpoint else [])]
    name = ["--target", _word(model, target)]
    against = [] if question.against is None else ["--against", _word(model, question.against)]
    mode = [] if question.gradient in ("auto", "full") else ["--gradient", question.gradient]
    match question.view:
        case "methods":
            told = ["compare", file, *words, *name, *against, *mode, "--methods", question.methods]
        case "detail":
            told = ["detail", file, *words, *name, *against, *mode]
        case "guide":
            told = ["guide", file, *words, *name, *against, *mode, "--guide", "auto", "--layout", question.layout]
        case "transfer":
            opposing = [] if question.against is None else ["--opposing", _word(model, question.against)]
            told = ["transfer", file, *words, *name, *opposing, "--steps", str(question.steps)]
        case "rewrite":
            goal = "CLASS" if question.against is None else _word(model, question.against)
            source = ["--source", _word(model, target)]
            budget = ["--budget", f"{question.budget:g}"] if question.budget else []
            told = ["rewrite", file, *words, *source, "--target", goal, "--until", f"{question.until:g}", *budget]
        case "layers":
            layer = question.layer or 0
            told = [
                "explain",
                file,
                *words,
                *name,
                *against,
                "--gradient",
                question.gradient,
                "--start-layer",
                str(layer),
            ]
        case "heads":
            told = ["explain", file, *words, *name, "--method", "gmar_l1"]
        case _:
            at = [] if question.row is None else ["--readout", f"{question.row},{question.col}"]
            told = ["explain", file, *words, *name, *against, "--method", question.method]
            told += ["--gradient", question.gradient] if question.gradient != "auto" else []
            told += at
    return _drawn(question, file) + "vitrail " + " ".join(map(shlex.quote, told)) + "\n"


def _drawn(question: Question, file: str) -> str:
    """The command that makes the example's file."""
    if question.example not in EXAMPLES:
        return ""
    imports = "from PIL import Image; from vitrail.bestiary import render, sample_scene; "
    image = _image(question, file)[0].removeprefix("image = ")
    return f"python -c {shlex.quote(f'{imports}Image.fromarray({image}).save({file!r})')}\n"


def _imports(question: Question) -> list[str]:
    own = {
        "layers": "from vitrail.shares import head_shares",
        "heads": "from vitrail.shares import head_shares",
        "detail": "from vitrail.guidance import detail",
        "transfer": "from vitrail.experiments import transfer",
        "rewrite": "from vitrail.experiments import rewrite",
    }.get(question.view)
    scene = "from vitrail.bestiary import render, sample_scene" if question.example in EXAMPLES else None
    return [line for line in (scene, own) if line]


def _image(question: Question, file: str) -> list[str]:
    if question.example in EXAMPLES:
        one = EXAMPLES[question.example]
        scene = f"sample_scene({one.kind!r}, seed={one.seed}, species={one.species!r})"
        return [f"image = render({scene}, {LARGE}).image"]
    if question.example in photographs():
        return [f"image = skimage.data.{question.example}()  # import skimage.data"]
    return [f"image = {file!r}"]


def _named(model: VisionModel, index: int | None) -> str:
    return "" if index is None else repr(_name(model, index))


def _word(model: VisionModel, index: int) -> str:
    return str(_name(model, index))


def _name(model: VisionModel, index: int) -> str | int:
    """The class by name where the name is its alone, else by number."""
    names = model.class_names
    if names is None:
        return index
    name = model.class_name(index)
    return name if sum(model.class_name(other) == name for other in range(len(names))) == 1 else index
