"""The same view without the page: as Python, and as commands."""

import shlex

from ..errors import UnknownMethodError
from ..methods.registry import find_method
from ..models import VisionModel
from .pictures import EXAMPLES, LARGE, photographs
from .question import Question

__all__ = ["as_command", "as_python"]


def as_python(question: Question, model: VisionModel, checkpoint: str | None, file: str, target: int) -> str:
    """A program that draws what the view shows; `file` is the picture's name and `target` the class explained."""
    weights = f", checkpoint={checkpoint!r}" if checkpoint else ""
    lines = ["import vitrail", *_imports(question), "", f"model = vitrail.load({model.name!r}{weights})"]
    lines += _image(question, file)
    name, other = _named(model, target), _named(model, question.against)
    against = f", against={other}" if other else ""
    gradient = f", gradient={question.gradient!r}"
    plain = "" if question.gradient in ("auto", "full") else gradient  # where "auto" is not known, or not used
    asked = f"model, image, {name}{against}"
    match question.view:
        case "methods":
            lines.append(f"found = vitrail.compare({asked}, methods={question.methods!r}{plain})")
            lines.append('found.save_picture("methods.png")')
        case "layers":
            lines.append(f"found = head_shares({asked}{gradient})")
            lines.append("growth = found.growth()  # layers, rows, columns")
        case "heads":
            lines.append(f"found = head_shares({asked}{gradient})")
            lines.append("weights = found.weights  # layers, heads")
            if question.layer is not None and question.head is not None:
                lines.append(f"one = found.scores[{question.layer}, {question.head}]")
        case "detail":
            lines.append(f"found = detail({asked}{plain}{'' if other else ', top=2'})")
            lines.append("found.maps  # by loss")
        case "guide":
            guide = f'guide=vitrail.Guide("auto", layout={question.layout!r})'
            lines.append(f"ex = vitrail.explain({asked}, method={question.method!r}{plain}, {guide})")
            lines.append('ex.save("guided.safetensors")')
        case "transfer":
            opposing = f", opposing={other}" if other else ""
            lines.append(f"found = transfer(model, image, {name}{opposing}, steps={question.steps})")
            lines.append('found.plot().savefig("transfer.png")')
        case "rewrite":
            budget = f", budget={question.budget:g}" if question.budget else ""
            goal = other or '"…"'
            lines.append(
                f"found = rewrite(model, image, source={name}, target={goal}, until={question.until:g}{budget})"
            )
            lines.append('found.save("rewritten.png")')
        case _:
            clicked = question.row is not None and question.col is not None
            at = f", readout=({question.row}, {question.col})" if clicked else ""
            lines.append(f"ex = vitrail.explain({asked}, method={question.method!r}{_mode(question)}{at})")
            lines.append('vitrail.render.save_picture(ex, "map.png")')
    return "\n".join(lines) + "\n"


def _mode(question: Question) -> str:
    """The gradient mode, for methods that use gradients."""
    try:
        uses = find_method(question.method, {}).uses_gradient
    except UnknownMethodError:
        return ""
    return f", gradient={question.gradient!r}" if uses and question.gradient != "full" else ""


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
            told = ["transfer", file, *words, *name, *against, "--steps", str(question.steps)]
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
