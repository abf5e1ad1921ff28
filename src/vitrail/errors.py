"""Every way in which Vitrail refuses, one type per cause, so that a caller can tell them apart; others' warnings."""

import re
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = [
    "AmbiguousClassError",
    "CheckpointError",
    "CheckpointMismatchError",
    "DataError",
    "ExperimentError",
    "ExplanationFileError",
    "ForwardError",
    "GuideError",
    "ImageError",
    "ImageTooLargeError",
    "InputSizeError",
    "LayoutError",
    "MethodError",
    "ModelError",
    "MovingTokensError",
    "NoAttentionError",
    "NoSignalError",
    "NoTextTowerError",
    "NonFiniteError",
    "NotAnImageError",
    "NotEnoughMemoryError",
    "ObjectiveError",
    "OptionError",
    "OutputError",
    "OutputFileError",
    "OutputKindError",
    "PackedBatchError",
    "SameClassError",
    "TargetCountError",
    "TargetError",
    "TextError",
    "TrainingModeError",
    "TruncatedImageError",
    "UnknownClassError",
    "UnknownExperimentError",
    "UnknownMethodError",
    "UnknownModelError",
    "UnknownObjectiveError",
    "UnsafeCheckpointError",
    "UnsupportedAttentionError",
    "UnsupportedImageError",
    "VitrailError",
    "escaped",
    "how_to_install",
    "reworded",
]

# Messages name arguments as Python does, `start_layer=3` or `against=`, and each surface says them in its own words.
_ARGUMENT = re.compile(
    r"""(?<![\w.=/?&'"-])(?P<name>[a-z][a-z0-9_]*)=(?!=)(?P<value>"[^"]*"|'[^']*'|\[[^]]*\]|\([^)]*\)|[^\s,;:()]*[^\s,;:().])?"""
)
_CALL = re.compile(r"(?:\bvitrail\.)?\b[a-z_]+\([^()]*(?:\([^()]*\)[^()]*)*\)")


def how_to_install(extra: str) -> str:
    """Returns the command that adds an optional part to Vitrail as it is installed: from an index, a clone or an
    address.

    >>> how_to_install("app").startswith("pip install ")
    True
    """
    import json
    from importlib.metadata import PackageNotFoundError, distribution
    from urllib.parse import unquote, urlsplit

    try:
        told = json.loads(distribution("vitrail").read_text("direct_url.json") or "{}")
    except (PackageNotFoundError, ValueError):
        told = {}
    url = str(told.get("url", ""))
    if told.get("dir_info", {}).get("editable"):
        return f'pip install -e "{unquote(urlsplit(url).path)}[{extra}]"'
    if not url:
        return f'pip install "vitrail[{extra}]"'
    kind = told.get("vcs_info", {}).get("vcs")
    return f'pip install "vitrail[{extra}] @ {kind + "+" if kind else ""}{url}"'


def reworded(message: str, argument: Callable[[str, str], str | None], lacking: str) -> str:
    """Returns an error's message in the words of a surface other than Python.

    `argument` says there what Python writes as `name=value` (the value may be empty), or None where the surface has no
    such thing. Names that it lacks, and calls of Python's functions, stay; `lacking` is then added, a sentence with
    `{names}` in it.

    >>> options = {"target": "--target"}
    >>> say = lambda name, value: options.get(name) and f"{options[name]} {value}".strip()
    >>> reworded("target=7 is no class; give target=", say, "")
    '--target 7 is no class; give --target'
    >>> reworded("25 tokens fit no grid: give grid=", say, "({names} is for Python.)")
    '25 tokens fit no grid: give grid= (grid= is for Python.)'
    """
    foreign: dict[str, None] = {}

    def said(found: re.Match[str]) -> str:
        name, value = found["name"], found["value"] or ""
        if value == "None":
            value = "none"
        words = argument(name, value.strip("'\"[]()").replace("', '", " ").replace(", ", ",") if value else "")
        if words is None:
            foreign[f"{name}="] = None
        return found[0] if words is None else words

    calls: dict[str, None] = {}
    parts, last = [], 0
    for call in _CALL.finditer(message):
        if "=" not in call[0]:
            continue
        parts += [_ARGUMENT.sub(said, message[last : call.start()]), call[0]]
        calls[call[0].partition("(")[0] + "()"] = None
        last = call.end()
    parts.append(_ARGUMENT.sub(said, message[last:]))
    names = " and ".join([*calls, *foreign])
    return "".join(parts) + (f" {lacking.format(names=names)}" if names else "")


def escaped(text: str, keep: str = "\n\t") -> str:
    """Returns the text with control and format characters written out: names in foreign files may hold a terminal's
    commands.

    `keep` are the ones that stay as they are.

    >>> escaped("head\\x1b[2J, \\u202egpj.exe")
    'head\\\\x1b[2J, \\\\u202egpj.exe'
    """
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text)


class VitrailError(Exception):
    """The root of every error that Vitrail raises on purpose; its text can be shown on any terminal.

    Where single images of a batch are at fault, `images` holds their positions and `cause` says why without naming
    them; otherwise both are empty.
    """

    images: tuple[int, ...] = ()
    cause: str = ""

    def __str__(self) -> str:
        return escaped(super().__str__())


class ImageError(VitrailError):
    """An image could not be used."""


class NotAnImageError(ImageError):
    """The file is missing, or holds something other than an image."""


class TruncatedImageError(ImageError):
    """The image file ends before its pixels do."""


class UnsupportedImageError(ImageError):
    """The file is an image of a kind that cannot be read here."""


class ImageTooLargeError(ImageError):
    """The image has more pixels than are safe to decode."""


class TextError(VitrailError):
    """A text could not be used."""


class ModelError(VitrailError):
    """A model could not be loaded or used."""


class UnknownModelError(ModelError):
    """No model of that name, or a source that Vitrail does not know."""


class CheckpointError(ModelError):
    """A checkpoint file could not be read."""


class CheckpointMismatchError(CheckpointError):
    """The checkpoint's tensors do not fit the model's."""


class UnsafeCheckpointError(CheckpointError):
    """The checkpoint is a pickle that could run code, so it was not opened."""


class ForwardError(ModelError):
    """The model's own code failed on its input, or no gradient goes through it."""


class OutputError(ModelError):
    """The model's output holds no logits that Vitrail can find."""


class TrainingModeError(ModelError):
    """The model is in training mode, so that its answer is random or changes the model."""


class LayoutError(ModelError):
    """The tokens fit no grid of patches, or the readout names a token that does not exist."""


class InputSizeError(ModelError):
    """The model does not take an input of this size, or with this number of channels."""


class NoAttentionError(ModelError):
    """The model ran, but no attention was seen."""


class UnsupportedAttentionError(ModelError):
    """Attention was seen in a form from which no map of the whole image can be made."""


class MovingTokensError(UnsupportedAttentionError):
    """Tokens do not stay in place (windows, pyramids, branches), and the method follows them only where they do."""


class PackedBatchError(UnsupportedAttentionError):
    """The model joins the tokens of all images of a batch in one sequence, so images must come one at a time."""


class NoTextTowerError(ModelError):
    """Texts are given to a model that reads none."""


class TargetError(VitrailError):
    """The target cannot be explained."""


class UnknownClassError(TargetError):
    """The model has no such class."""


class AmbiguousClassError(TargetError):
    """Several classes of the model go by that name."""


class TargetCountError(TargetError):
    """The number of targets does not fit the number of images."""


class SameClassError(TargetError):
    """A class is held against itself."""


class MethodError(VitrailError):
    """A method cannot be applied as asked."""


class UnknownMethodError(MethodError):
    """No method of that name."""


class OptionError(MethodError):
    """An option that the method does not know, or a value out of its range."""


class UnsupportedOperationError(MethodError):
    """The method has no rule for an operation of this model."""


class ObjectiveError(VitrailError):
    """The objective is not a scalar per image, or lacks the class it compares with."""


class OutputKindError(ObjectiveError):
    """The question means nothing to the kind of number that the model gives: a score has no probability, say."""


class UnknownObjectiveError(ObjectiveError):
    """No objective of that name."""


class ExperimentError(VitrailError):
    """An experiment lacks what it shows: a second class, say, or a folder of pictures."""


class UnknownExperimentError(ExperimentError):
    """No experiment of that name, or it is not known which one the paper's figure shows."""


class GuideError(VitrailError):
    """The guide shows what is asked for, so it cannot steer the question."""


class NonFiniteError(VitrailError):
    """Logits or a map hold NaN or infinity."""


class NoSignalError(VitrailError):
    """The map is zero everywhere: nothing in the image moves the objective."""


class NotEnoughMemoryError(VitrailError):
    """Not even one image's pass fits into the memory that is free."""


class ExplanationFileError(VitrailError):
    """The file is missing, damaged, or holds something other than an explanation."""


class OutputFileError(VitrailError):
    """A result could not be written."""


class UnknownProtocolError(VitrailError):
    """No evaluation protocol of that name."""


class DataError(VitrailError):
    """A data set cannot be opened, holds no image, or does not fit the model or the protocol."""


class RunFolderError(VitrailError):
    """The folder of a run cannot be used: another run's, damaged, or of another version."""


class RunFolderInUseError(RunFolderError):
    """Another process is writing to the folder of the run."""


# Python keeps one list of filters for the whole process: two threads that each put it back would lose one another's.
_ONE_THREAD = threading.RLock()


@contextmanager
def silenced(category: type[Warning] = Warning, *, message: str = "", module: str = "") -> Iterator[None]:
    """Within the block, which one thread enters at a time, warnings of the kind are ignored.

    `message` and `module` are regular expressions for the beginning of the text, and of the name of what warns.

    Example:
        >>> import warnings
        >>> with silenced(UserWarning, message="nothing"):
        ...     warnings.warn("nothing to see", stacklevel=1)
    """
    with _ONE_THREAD, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=message, category=category, module=module)
        yield
