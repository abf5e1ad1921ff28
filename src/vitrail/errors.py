"""Every way in which Vitrail refuses, one type per cause, so that a caller can tell them apart."""

__all__ = [
    "AmbiguousClassError",
    "CheckpointError",
    "CheckpointMismatchError",
    "DataError",
    "ExperimentError",
    "ForwardError",
    "GuideError",
    "ImageError",
    "ImageTooLargeError",
    "InputSizeError",
    "LayoutError",
    "MethodError",
    "ModelError",
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
    "VitrailError",
    "escaped",
]


def escaped(text: str) -> str:
    """The text with control and format characters written out: names in foreign files may hold a terminal's commands.

    >>> escaped("head\\x1b[2J, \\u202egpj.exe")
    'head\\\\x1b[2J, \\\\u202egpj.exe'
    """
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


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
    """The model takes no larger input than its own."""


class NoAttentionError(ModelError):
    """The model ran, but no attention was seen."""


class UnsupportedAttentionError(ModelError):
    """Attention was seen in a form from which no map of the whole image can be made."""


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
