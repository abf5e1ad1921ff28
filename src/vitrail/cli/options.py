"""The options that several commands share, each worded once, and how the words of a command line become values."""

import os
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer
from typer.core import TyperCommand, TyperGroup

from vitrail.cli.console import in_own_words, one_line, show, stop
from vitrail.errors import VitrailError

Figure = StrEnum("Figure", "png jpg pdf svg")
Format = StrEnum("Format", "png jpg pdf svg safetensors all")
FolderFormat = StrEnum("FolderFormat", "png jpg pdf svg safetensors overlay all")
Gradient = StrEnum("Gradient", "full leaf libra gim")
Smoothing = StrEnum("Smoothing", "shift flip scale")
Precision = StrEnum("Precision", "float32 float64 bfloat16 float16")
Kind = StrEnum("Kind", "logits multilabel probabilities log_probabilities scores embedding")

DEFAULT_OUTPUT = Path("out")
MODEL_HELP = "Name of the model: one that `vitrail models` lists, or hf/ followed by an id or a folder."
GRADIENT_HELP = (
    "Gradient mode. full: plain gradient; leaf: attention held constant; libra: norms and gates too; gim: attention "
    "corrected for self-repair."
)

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
        help="Weights: .safetensors, .pth without code in it, or a folder of them. Default: the published weights.",
    ),
]
NumClasses: TypeAlias = Annotated[
    int | None, typer.Option("--num-classes", min=0, help="Number of classes. Default: that of the checkpoint's head.")
]
ClassNamesFile: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--class-names",
        metavar="FILE",
        help="File of class names: .txt (one per line), .json or .csv. Default: the model's own names.",
    ),
]
OutputKind: TypeAlias = Annotated[
    Kind | None,
    typer.Option(
        "--output-kind",
        metavar="KIND",
        help="Kind of the model's output: logits, multilabel, probabilities, log_probabilities, scores, embedding. "
        "Default: detected, else logits.",
    ),
]
Target: TypeAlias = Annotated[
    str | None, typer.Option("--target", "-t", help="Class to explain, by name or index. Default: the predicted class.")
]
Targets: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--target",
        "-t",
        help="Class to explain, by name or index; repeat for several. Default: the predicted class.",
    ),
]
Against: TypeAlias = Annotated[
    list[str] | None,
    typer.Option("--against", help="Contrastive class: one, or one for each target. Default: none."),
]
Method: TypeAlias = Annotated[
    str, typer.Option("--method", help="Attribution method: a name that `vitrail methods` lists.")
]
MethodOptions: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--option", metavar="NAME=VALUE", help="Option of the method, as in variant=released; repeat for several."
    ),
]
Objective: TypeAlias = Annotated[
    str | None,
    typer.Option("--objective", help="Scalar that is differentiated. Default: logit, or difference with --against."),
]
GradientMode: TypeAlias = Annotated[Gradient, typer.Option("--gradient", help=GRADIENT_HELP)]
OwnGradientMode: TypeAlias = Annotated[
    Gradient | None,
    typer.Option("--gradient", help=f"{GRADIENT_HELP} Default: the method's own; libra for complete."),
]
StartLayer: TypeAlias = Annotated[
    int | None,
    typer.Option("--start-layer", help="First block whose attention is used, from 0. Default: the method's own."),
]
Centred: TypeAlias = Annotated[
    bool, typer.Option("--centred", help="Subtract its mean from each row of the attention gradient.")
]
Output: TypeAlias = Annotated[
    Path,
    typer.Option("--output", "-o", help="Folder for the results, created if missing; or one file, such as map.png."),
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
        help="File format: png, jpg, pdf, svg, safetensors, or all; repeat for several. Default: png.",
    ),
]
Figures: TypeAlias = Annotated[
    list[Figure] | None,
    typer.Option(
        "--format", "-f", metavar="KIND", help="Figure format: png, jpg, pdf, svg; repeat for several. Default: png."
    ),
]
FolderFormats: TypeAlias = Annotated[
    list[FolderFormat] | None,
    typer.Option(
        "--format",
        "-f",
        metavar="KIND",
        help="File format: png, jpg, pdf, svg, safetensors, overlay, or all; repeat for several. Default: png; overlay "
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
    str, typer.Option("--device", help="Device of the model: cpu, cuda, cuda:1, mps, or auto for the fastest.")
]
Dtype: TypeAlias = Annotated[
    Precision,
    typer.Option(
        "--dtype", metavar="TYPE", help="Floating point type of the model: float32, float64, bfloat16, float16."
    ),
]
AutoBatchSize: TypeAlias = Annotated[
    str,
    typer.Option("--batch-size", "-b", help="Images per pass; auto: as many as fit into memory and gain speed."),
]
BatchSize: TypeAlias = Annotated[int, typer.Option("--batch-size", "-b", min=1, help="Images per pass.")]
Limit: TypeAlias = Annotated[
    int | None,
    typer.Option("--limit", min=1, help="Largest number of images, taken evenly over the classes. Default: all."),
]
AsJson: TypeAlias = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of a table.")]


class Group(TyperGroup):
    """Runs the commands; Typer's messages about unusable words, file names among them, stay one printable line."""

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
    """Runs one command, and turns its errors and what it returns into messages and exit codes.

    `many` are the options that take several values in a row, `renamed` the present names of options by their former
    ones, and `python` the options whose name differs from that of the argument in Python, by the argument.
    """

    many: tuple[str, ...] = ()
    renamed: dict[str, str] = {}
    python: dict[str, str] = {}

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        # A paragraph is one line, for the terminal to break: the source breaks it for its own readers.
        self.help = self.help and re.sub(r"(?<!\n)\n(?!\n)", " ", self.help)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Gives options their present names, and repeats an option before each of several values."""
        args = self._present_names(args)
        for option in self.many:
            args = one_by_one(args, option)
        rest = super().parse_args(ctx, args)
        _keep_weights_with_their_model(ctx)
        return rest

    def invoke(self, ctx: Any) -> Any:
        """Runs the command, which returns whether something failed: exit code 1, or 2 for a `VitrailError`.

        On a terminal, the model that is loaded is named at once; Ctrl-C ends the command in a sentence.
        """
        model = ctx.params.get("model")
        model = ", ".join(model) if isinstance(model, list) and "images" in ctx.params else model
        if isinstance(model, str) and not ctx.params.get("list_") and sys.stderr.isatty():
            show(f"loading {model} …", err=True)  # before PyTorch is imported, which takes seconds
        in_own_words(self.argument)
        try:
            failed = super().invoke(ctx)
        except VitrailError as error:
            stop(error, as_json=ctx.params.get("as_json", False))
        except KeyboardInterrupt:
            show("interrupted: every file that was written is whole", err=True)
            raise typer.Exit(130) from None
        if failed:
            raise typer.Exit(1)

    def argument(self, name: str, value: str) -> str | None:
        """Returns the words for Python's `name=value` on this command; None where it has none."""
        option = self.python.get(name, f"--{name.replace('_', '-')}")
        if name == "output" and value:  # the kind of the model's output; without a value, where results go
            option = "--output-kind"
        for one in self.params:
            if option in one.opts:
                return option if getattr(one, "is_flag", False) or not value else f"{option} {shlex.quote(value)}"
        if not any("--option" in one.opts for one in self.params):
            return None
        from vitrail.methods import METHODS

        infos: list[Any] = list(METHODS.values())
        if any("--protocols" in one.opts for one in self.params):
            from vitrail.metrics import PROTOCOLS

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
    """Drops the weights that `VITRAIL_CHECKPOINT` names where another model than `VITRAIL_MODEL` is asked for."""
    sources = {name: getattr(ctx.get_parameter_source(name), "name", "") for name in ("model", "checkpoint")}
    if (sources["model"], sources["checkpoint"]) != ("COMMANDLINE", "ENVIRONMENT"):
        return
    usual, model = os.environ.get("VITRAIL_MODEL"), ctx.params["model"]
    model = model if isinstance(model, str) else " ".join(model)  # where several can be named
    if usual and usual != model:
        ctx.params["checkpoint"] = None
        note = f"VITRAIL_CHECKPOINT holds weights of VITRAIL_MODEL, {usual}: {model} goes without"
        show(f"note: {note}", err=True)


def spelled(many: tuple[str, ...] = (), *, python: dict[str, str] | None = None, **renamed: str) -> type[Command]:
    """Returns a class of `Command`: `renamed` gives present names by former ones.

    >>> spelled(("--against",), opposing="--against").renamed
    {'--opposing': '--against'}
    """
    now = {f"--{old}": new for old, new in renamed.items()}
    # Most arguments of Python have kept the names that the options had.
    return type("Spelled", (Command,), {"many": many, "renamed": now, "python": renamed | (python or {})})


def one_by_one(words: list[str], option: str) -> list[str]:
    """Returns the words with `option` repeated before each value that follows its first, up to the next option.

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


def kinds(formats: Sequence[StrEnum] | None) -> tuple[str, ...]:
    """Returns the kinds of file that are asked for, each once; "all" is every kind but jpg, the same figure as png.

    >>> kinds([Format.svg, Format.png, Format.svg]), kinds([Format.all]), kinds(None)
    (('svg', 'png'), ('png', 'pdf', 'svg', 'safetensors'), ())
    """
    if formats and "all" in formats:
        return tuple(str(kind) for kind in type(formats[0]) if str(kind) not in ("all", "jpg"))
    return tuple(dict.fromkeys(str(kind) for kind in formats or []))


def how_to_load(
    device: str,
    dtype: Precision,
    size: str | None,
    output: Kind | None = None,
    num_classes: int | None = None,
    class_names: Path | None = None,
) -> dict[str, Any]:
    """Returns the keyword arguments of `load_named`. Raises `BadParameter` where `size` is no size."""
    pixels = None if size is None else parse_size(size)
    how = {"device": device, "dtype": str(dtype), "size": pixels, "output": output and str(output)}
    return {**how, "num_classes": num_classes, "class_names": class_names}


def parse_batch(text: str) -> int:
    """Returns the number of images per pass, 0 for "auto". Raises `BadParameter` for anything else."""
    if text.lower() == "auto":
        return 0
    if not text.isdecimal() or not int(text):
        raise typer.BadParameter(
            f"{text!r} is no number of images per pass; write 1 or more, or auto", param_hint="--batch-size"
        )
    return int(text)


def parse_size(text: str) -> tuple[int, int]:
    """Returns (height, width) in pixels of "224x336", or of one number for a square; `BadParameter` for the rest."""
    height, _, width = text.lower().partition("x")
    if not height.isdecimal() or not (width or height).isdecimal() or not int(height) * int(width or height):
        raise typer.BadParameter(
            f"{text!r} is no size; write HEIGHTxWIDTH in pixels, as in 224x336", param_hint="--size"
        )
    return int(height), int(width or height)


def split_options(texts: Sequence[str] | None, form: str) -> dict[str, dict[str, str]]:
    """Returns the values of `METHOD.NAME=VALUE`, still words, by method and name. Raises `BadParameter`."""
    words: dict[str, dict[str, str]] = {}
    for text in texts or []:
        name, value = split_option(text, form, dotted=True)
        owner, _, own = name.partition(".")
        words.setdefault(owner, {})[own] = value
    return words


def split_option(
    text: str, form: str = "NAME=VALUE, as in variant=released", *, dotted: bool = False
) -> tuple[str, str]:
    """Returns name and value of `NAME=VALUE`, both still words. Raises `BadParameter` for anything else.

    With `dotted` the name is METHOD.NAME.
    """
    name, equals, value = text.partition("=")
    parts = name.split(".")
    if not equals or len(parts) != 1 + dotted or not all(part.isidentifier() for part in parts):
        raise typer.BadParameter(f"{text!r} is no option; write {form}", param_hint="--option")
    return name, value
