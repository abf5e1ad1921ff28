"""The logits of an image of which the model sees some patches only."""

from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..attention.fewer_tokens import Selection, masked_keys, shortened
from ..attention.tap import eager
from ..attention.token_stream import TokenStream
from ..errors import OptionError, UnsupportedOperationError
from ..models.readiness import ran_out
from .context import AttributionContext

__all__ = ["TokenDropper"]

# Cut and masked logits may differ by rounding: this part of the largest logit, by the precision of the model.
_ROUNDING = {torch.float64: 1e-8, torch.float32: 1e-3}


class TokenDropper:
    """Drops patches of a batch of images in the model as it is.

    `drop` is "cut" (the sequence is shortened in front of the first block), "mask" (attention gives dropped tokens no
    weight: the same logits at the full length's cost), or "auto": cut, and the first selection is answered both ways to
    see that they agree; masked where the model takes no other number of tokens.

    Raises:
        OptionError: for another `drop`.
        UnsupportedOperationError: when the model can do neither, or its two answers differ.
    """

    def __init__(self, context: AttributionContext, streams: list[TokenStream], drop: str) -> None:
        if drop not in ("auto", "cut", "mask"):
            raise OptionError(f"drop={drop!r} is no way to drop tokens; choose one of auto, cut, mask")
        self.context, self.streams, self.drop = context, streams, drop

    @property
    def patches(self) -> int:
        """Returns the number of patches of an image."""
        return self.context.layout.patches

    def logits(self, image: int, patches: Int[Tensor, "rows kept"]) -> Float[Tensor, "rows classes"]:
        """Returns the logits when only these patches are there (indices from the first patch, ascending), row
        by row.
        """
        rows = self.context.images[image : image + 1].expand(len(patches), -1, -1, -1)
        return self.logits_of(rows, patches, self.streams[image])

    def logits_of(
        self,
        images: Float[Tensor, "rows channels height width"],
        patches: Int[Tensor, "rows kept"],
        stream: TokenStream | None = None,
    ) -> Float[Tensor, "rows classes"]:
        """Returns the same for an image of its own in each row; the stream of the context's first image tells where to
        cut.
        """
        layout, stream = self.context.layout, self.streams[0] if stream is None else stream
        patches = patches.to(images.device)
        selection = Selection(patches, layout.prefix, layout.all_tokens, layout.patches)
        if self.drop == "auto":
            self.drop = self._choose(images[:1], stream, replace(selection, patches=patches[:1]))
        return self._ask(images, stream, selection, self.drop)

    def _choose(self, image: Tensor, stream: TokenStream, selection: Selection) -> str:
        try:
            cut = self._ask(image, stream, selection, "cut")
        except Exception as error:  # whatever a model does when it is given fewer tokens than it was built for
            if ran_out(error):
                raise
            reason = error
        else:
            self._compare(cut, image, stream, selection)
            return "cut"
        try:
            self._check_masking(image, stream, selection)
        except UnsupportedOperationError as error:
            raise UnsupportedOperationError(f"{error}; and its tokens cannot be cut: {reason}") from reason
        return "mask"

    def _check_masking(self, image: Tensor, stream: TokenStream, selection: Selection) -> None:
        masked = self._ask(image, stream, selection, "mask")
        if stream.entry is not None:
            erased = self._ask(image, stream, selection, "erase")
            if _apart(erased, masked):
                raise UnsupportedOperationError(
                    f"patches that no attention reads still move the logits of {self.context.model.name}: it mixes "
                    "tokens outside attention too; mask pixels instead (vit_cx)"
                )

    def _compare(
        self, cut: Float[Tensor, "1 classes"], image: Tensor, stream: TokenStream, selection: Selection
    ) -> None:
        try:
            masked = self._ask(image, stream, selection, "mask")
        except UnsupportedOperationError:
            return  # a head that reads the patches in its own way; cut, it reads those that are there
        if _apart(cut, masked):
            apart, size = float((cut - masked).abs().max()), float(masked.abs().max())
            raise UnsupportedOperationError(
                f"without {selection.grid - selection.patches.shape[1]} of {selection.grid} patches this model's "
                f"logits differ by {apart:.2g} (largest {size:.2g}) between cutting the sequence and masking keys: it "
                "does more with the number of tokens than attention does; choose drop='cut' or drop='mask'"
            )

    def _ask(
        self, images: Tensor, stream: TokenStream, selection: Selection, drop: str
    ) -> Float[Tensor, "rows classes"]:
        context, layout = self.context, self.context.layout
        with eager(), torch.no_grad():
            if drop != "cut":
                erased_at = stream.entry if drop == "erase" else None
                with masked_keys(selection, layout.layers, layout.reads_patches, erased_at):
                    return context.model.logits(images)
            if stream.entry is None:
                raise UnsupportedOperationError(
                    f"{context.model.name} has no single tensor of {layout.all_tokens} tokens in front of its first "
                    "attention where they could be cut; choose drop='mask'"
                )
            # A head that reads the class token alone needs no patch after the last attention.
            ending = None if layout.reads_patches or layout.pools or not layout.prefix else stream.ending
            with shortened(selection, stream.entry, ending):
                return context.model.logits(images)


def _apart(one: Tensor, other: Tensor) -> bool:
    return bool((one - other).abs().max() > _ROUNDING.get(one.dtype, 3e-2) * other.abs().max())
