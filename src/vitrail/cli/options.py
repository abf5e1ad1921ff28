"""The options that several commands share, each worded once, and how the words of a command line become options."""

import os
import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer
from typer.core import TyperCommand, TyperGroup

from vitrail.cli.console import in_own_words, one_line, show

__all__ = [
    "DEFAULT_OUTPUT",
    "AsJson",
    "AutoBatchSize",
    "BatchSize",
    "Centred",
    "Checkpoint",
    "ClassNamesFile",
    "Command",
    "Device",
    "Dtype",
    "Figure",
    "Figures",
    "FolderFormat",
    "FolderFormats",
    "FolderOutput",
    "Format",
    "Formats",
    "Gradient",
    "GradientMode",
    "Group",
    "ImageFile",
    "Images",
    "InputSize",
    "Kind",
    "Method",
    "ModelName",
    "NumClasses",
    "OptionalModelName",
    "Output",
    "OutputKind",
    "Precision",
    "Resize",
    "StartLayer",
    "Target",
    "one_by_one",
    "spelled",
]


class Figure(StrEnum):
    """The kind of file that a figure becomes."""

    png = "png"
    jpg = "jpg"
    pdf = "pdf"
    svg = "svg"


class Format(StrEnum):
    """What is written for each image."""

    png = "png"
    jpg = "jpg"
    pdf = "pdf"
    svg = "svg"
    safetensors = "safetensors"
    all = "all"


class FolderFormat(StrEnum):
    """What `vitrail explain` writes for each image."""

    png = "png"
    jpg = "jpg"
    pdf = "pdf"
    svg = "svg"
    safetensors = "safetensors"
    overlay = "overlay"
    all = "all"


class Gradient(StrEnum):
    """What the backward pass holds constant."""

    full = "full"
    leaf = "leaf"
    libra = "libra"


class Precision(StrEnum):
    """The floating point type in which the model runs."""

    float32 = "float32"
    float64 = "float64"
    bfloat16 = "bfloat16"
    float16 = "float16"


class Kind(StrEnum):
    """What the model's numbers are, as `vitrail.outputs` has it."""

    logits = "logits"
    multilabel = "multilabel"
    probabilities = "probabilities"
    log_probabilities = "log_probabilities"
    scores = "scores"
    embedding = "embedding"


DEFAULT_OUTPUT = Path("out")
MODEL_HELP = "Model name: one that `vitrail models` lists, or hf/ and an id or a folder."

Images: TypeAlias = Annotated[
    list[str], typer.Argument(metavar="IMAGE...", help="Image files, folders, or quoted patterns.")
]
ImageFile: TypeAlias = Annotated[Path, typer.Argument(metavar="IMAGE", help="The image file.")]
ModelName: TypeAlias = Annotated[str, typer.Option("--model", "-m", envvar="VITRAIL_MODEL", help=MODEL_HELP)]
OptionalModelName: TypeAlias = Annotated[
    str | None, typer.Option("--model", "-m", envvar="VITRAIL_MODEL", help=MODEL_HELP)
]
Checkpoint: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--checkpoint",
        "-c",
        envvar="VITRAIL_CHECKPOINT",
        help="Weights: .safetensors, .pth without code in it, or a folder of them. Default: the published ones.",
    ),
]
NumClasses: TypeAlias = Annotated[
    int | None, typer.Option("--num-classes", min=0, help="Number of classes. Default: as the checkpoint's head has.")
]
ClassNamesFile: TypeAlias = Annotated[
    Path | None,
    typer.Option("--class-names", metavar="FILE", help="Names of the classes: .txt (one a line), .json, or .csv."),
]
Target: TypeAlias = Annotated[
    str | None, typer.Option("--target", "-t", help="Class to explain, by name or index. Default: the predicted class.")
]
Method: TypeAlias = Annotated[
    str, typer.Option("--method", help="Attribution method: a name that `vitrail methods` lists.")
]
GRADIENT_HELP = "What the backward pass holds constant: full nothing; leaf attention; libra norms and gates too."
GradientMode: TypeAlias = Annotated[Gradient, typer.Option("--gradient", help=GRADIENT_HELP)]
OwnGradientMode: TypeAlias = Annotated[
    Gradient | None,
    typer.Option("--gradient", help=f"{GRADIENT_HELP} Default: the method's own, of complete libra."),
]
StartLayer: TypeAlias = Annotated[
    int | None,
    typer.Option("--start-layer", help="First block whose attention counts, from 0. Default: the method's own."),
]
Centred: TypeAlias = Annotated[
    bool, typer.Option("--centred", help="Subtract from each row of the attention's gradient its mean.")
]
Output: TypeAlias = Annotated[
    Path,
    typer.Option(
        "--output", "-o", help="Folder for the results, created if missing; or a file, by an ending such as .png."
    ),
]
FolderOutput: TypeAlias = Annotated[
    Path, typer.Option("--output", "-o", help="Folder for the results, created if missing.")
]
Formats: TypeAlias = Annotated[
    list[Format] | None,
    typer.Option(
        "--format",
        "-f",
        metavar="KIND",
        help="Kind of file: png, jpg, pdf, svg, safetensors, or all; several: repeat. Default: png.",
    ),
]
Figures: TypeAlias = Annotated[
    list[Figure] | None,
    typer.Option(
        "--format", "-f", metavar="KIND", help="Kind of figure: png, jpg, pdf, svg; several: repeat. Default: png."
    ),
]
OutputKind: TypeAlias = Annotated[
    Kind | None,
    typer.Option(
        "--output-kind",
        metavar="KIND",
        help="What the model's numbers are: logits, multilabel, probabilities, log_probabilities, scores, embedding. "
        "Default: recognised, else logits.",
    ),
]
FolderFormats: TypeAlias = Annotated[
    list[FolderFormat] | None,
    typer.Option(
        "--format",
        "-f",
        metavar="KIND",
        help="Kind of file: png, jpg, pdf, svg, safetensors, overlay, or all; several: repeat. Default: png; overlay "
        "and safetensors for more than 100 images.",
    ),
]
InputSize: TypeAlias = Annotated[
    str | None,
    typer.Option("--size", metavar="HxW", help="Input size in pixels, as in 224x336. Default: the model's own."),
]
Resize: TypeAlias = Annotated[
    int | None,
    typer.Option("--resize", min=1, help="Shorter side in pixels before the crop. Default: the model's own."),
]
Device: TypeAlias = Annotated[
    str, typer.Option("--device", help="Where the model runs: cpu, cuda, cuda:1, mps; auto: the best there is.")
]
Dtype: TypeAlias = Annotated[
    Precision,
    typer.Option(
        "--dtype",
        metavar="TYPE",
        help="Floating point type in which the model runs: float32, float64, bfloat16, float16.",
    ),
]
AutoBatchSize: TypeAlias = Annotated[
    str,
    typer.Option("--batch-size", "-b", help="Images per pass; auto: as many as memory holds and speed gains by."),
]
BatchSize: TypeAlias = Annotated[int, typer.Option("--batch-size", "-b", min=1, help="Images per pass.")]
AsJson: TypeAlias = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of a table.")]


class Group(TyperGroup):
    """The commands; what Typer says of words that it cannot use, file names among them, stays one harmless line."""

    def make_context(self, *args: Any, **options: Any) -> Any:
        with _written_out():
            return super().make_context(*args, **options)

    def invoke(self, ctx: Any) -> Any:
        with _written_out():
            return super().invoke(ctx)


@contextmanager
def _written_out() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        said: Any = error
        if hasattr(said, "format_message") and hasattr(said, "message"):  # of Typer's
            said.message = one_line(str(said.message))
        raise


class Command(TyperCommand):
    """A command with options of several values in a row (`many`), or of former names (`renamed`: now, by then).

    `python` are the options whose name is not that of the argument in Python, by the argument.
    """

    many: tuple[str, ...] = ()
    renamed: dict[str, str] = {}
    python: dict[str, str] = {}

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        # A paragraph is one line, for the terminal to break: the source breaks it for its own readers.
        self.help = self.help and re.sub(r"(?<!\n)\n(?!\n)", " ", self.help)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Give options their present names, and repeat those of several values before each, as the parser has it."""
        args = self._present_names(args)
        for option in self.many:
            args = one_by_one(args, option)
        rest = super().parse_args(ctx, args)
        _keep_weights_with_their_model(ctx)
        return rest

    def invoke(self, ctx: Any) -> Any:
        """Run the command: what it loads is said at once where a person watches, and Ctrl-C ends it in a sentence."""
        model = ctx.params.get("model")
        if isinstance(model, str) and not ctx.params.get("list_") and sys.stderr.isatty():
            show(f"loading {model} …", err=True)  # before PyTorch is imported, which takes seconds
        in_own_words(self.argument)
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            show("interrupted: every file that was written is whole", err=True)
            raise typer.Exit(130) from None

    def argument(self, name: str, value: str) -> str | None:
        """What the command has for Python's `name=value`; None where it has nothing."""
        option = self.python.get(name, f"--{name.replace('_', '-')}")
        if name == "output" and value:  # what the model gives; bare it is where results go
            option = "--output-kind"
        for one in self.params:
            if option in one.opts:
                return option if getattr(one, "is_flag", False) or not value else f"{option} {shlex.quote(value)}"
        if not any("--option" in one.opts for one in self.params):
            return None
        from vitrail.methods import METHODS

        infos: list[Any] = list(METHODS.values())
        if any("--protocols" in one.opts for one in self.params):
            from vitrail.evaluate.protocols import PROTOCOLS

            infos += PROTOCOLS.values()
        owners = [info.name for info in infos if name in info.options]
        form = str(next(one.metavar for one in self.params if "--option" in one.opts))
        owner = (owners[0] if len(owners) == 1 else "NAME") + "." if "." in form else ""
        return f"--option {owner}{name}={shlex.quote(value) if value else '…'}" if owners else None

    def _present_names(self, words: list[str]) -> list[str]:
        written, options = [], True
        for word in words:
            options = options and word != "--"
            name, equals, value = word.partition("=")
            if options and name in self.renamed:
                if "--json" not in words:  # whose reader expects nothing but failures on stderr
                    show(f"note: {name} is now called {self.renamed[name]}", err=True)
                word = self.renamed[name] + equals + value
            written.append(word)
        return written


def _keep_weights_with_their_model(ctx: Any) -> None:
    """Drop the weights that `VITRAIL_CHECKPOINT` names where another model than `VITRAIL_MODEL` is asked for."""
    sources = {name: getattr(ctx.get_parameter_source(name), "name", "") for name in ("model", "checkpoint")}
    if (sources["model"], sources["checkpoint"]) != ("COMMANDLINE", "ENVIRONMENT"):
        return
    usual, model = os.environ.get("VITRAIL_MODEL"), ctx.params["model"]
    if usual and usual != model:
        ctx.params["checkpoint"] = None
        note = f"VITRAIL_CHECKPOINT holds weights of VITRAIL_MODEL, {usual}: {model} goes without"
        show(f"note: {note}", err=True)


def spelled(many: tuple[str, ...] = (), *, python: dict[str, str] | None = None, **renamed: str) -> type[Command]:
    """A class of `Command`: `renamed` gives present names by former ones.

    >>> spelled(("--against",), opposing="--against").renamed
    {'--opposing': '--against'}
    """
    now = {f"--{old}": new for old, new in renamed.items()}
    # Most arguments of Python have kept the names that the options had.
    return type("Spelled", (Command,), {"many": many, "renamed": now, "python": renamed | (python or {})})


def one_by_one(words: list[str], option: str) -> list[str]:
    """The words with `option` repeated before each value that follows its first, up to the next option.

    >>> one_by_one(["a.jpg", "--against", "conch", "slug", "--json"], "--against")
    ['a.jpg', '--against', 'conch', '--against', 'slug', '--json']
    """
    written: list[str] = []
    values = None  # how many values have followed the option, None outside of it
    for place, word in enumerate(words):
        if word == "--":
            return written + words[place:]
        if word.startswith("-") and len(word) > 1:
            values = 0 if word == option else None
        elif values is not None:
            written += [option] if values else []
            values += 1
        written.append(word)
    return written
