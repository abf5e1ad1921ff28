"""A run of a method over a batch of texts: the same engine and methods as for pictures."""

from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor

from ..attention.record import CallRecorder
from ..errors import OptionError
from ..methods.context import AttributionContext
from ..models.text_model import TextModel, TokenBatch

__all__ = ["TextRun"]


@dataclass(eq=False)
class TextRun(AttributionContext):
    """What a method needs of texts: their tokens are one row of patches, and each text has its own readout."""

    model: TextModel  # pyright: ignore[reportIncompatibleVariableOverride]  (a method asks of either only its logits)
    images: TokenBatch  # pyright: ignore[reportIncompatibleVariableOverride]
    readout: Float[Tensor, "images queries"]

    @property
    def real(self) -> Bool[Tensor, "images tokens"] | None:
        """Returns which tokens are not padding; None where no token is padding."""
        return None if bool(self.images.real.all()) else self.images.real

    def answer(self) -> Float[Tensor, "images classes"]:
        """Returns the model's logits for the texts; gradients flow."""
        return self.output.logits(self.model.logits(self.images))

    def gradients_at_last_norm(self, recorder: CallRecorder) -> list[Float[Tensor, "images tokens width"]]:
        """Refuses texts, whose graph begins at the first attention and not at pixels."""
        del recorder
        raise OptionError("grad_at='last_ln' is for pictures: take grad_at='attention' for texts")
