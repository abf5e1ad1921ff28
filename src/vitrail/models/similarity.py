"""Similarity of an image to texts, as logits."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ..errors import NoTextTowerError, OutputError, SameClassError, TextError
from .vision_model import tensor_in

__all__ = [
    "EMBEDDINGS",
    "ImageTextSimilarity",
    "check_texts",
    "refuse_texts",
    "refuse_too_long",
]

# What towers call the embedding of an image in the structures that some answer with (CoCa's with a tuple, it first).
EMBEDDINGS = ("image_embeds", "image_features", "image_embedding", "embeddings", "embedding", "pooler_output", "pooled")


class ImageTextSimilarity(nn.Module):
    """The logits of CLIP: cosines of the image's embedding with the texts', times the model's scale (plus its bias).

    The texts are embedded once, before: their directions, scaled, are the rows of the linear layer `texts`.

    Example:
        >>> tower = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))
        >>> model = ImageTextSimilarity(tower, torch.randn(2, 4), scale=100.0)
        >>> model(torch.zeros(1, 3, 2, 2)).shape
        torch.Size([1, 2])
    """

    def __init__(
        self,
        image_tower: nn.Module,
        texts: Float[Tensor, "texts width"],
        scale: float | int,
        bias: float | int = 0.0,
    ) -> None:
        super().__init__()
        self.image_tower = image_tower
        self.texts = nn.Linear(texts.shape[1], texts.shape[0], bias=bool(bias), dtype=texts.dtype, device=texts.device)
        with torch.no_grad():
            self.texts.weight.copy_(F.normalize(texts, dim=1) * scale)
            if bias:
                self.texts.bias.fill_(bias)

    @property
    def output(self) -> str | None:
        """Returns the kind of output: with a bias, as in SigLIP, each text has a sigmoid of its own; without, texts
        compete.
        """
        return None if self.texts.bias is None else "multilabel"

    def forward(
        self, images: Float[Tensor, "images channels height width"], **options: Any
    ) -> Float[Tensor, "rows texts"]:
        embedding = tensor_in(self.image_tower(images, **options), *EMBEDDINGS)
        if not isinstance(embedding, Tensor):
            raise OutputError(
                "the image tower answers with several tensors, and none of them is known as its embedding"
            )
        return self.texts(F.normalize(embedding, dim=-1))


def check_texts(texts: Sequence[str]) -> tuple[str, ...]:
    """Returns the texts as they are, once it is sure that each is one, says something, and is there once.

    Letters' case and spaces do not tell texts apart: neither do CLIP's tokenizers heed them.

    Raises:
        TextError: for a single string, no text, or an empty one.
        SameClassError: for the same text twice.

    Example:
        >>> check_texts(["a dog", "a cat"])
        ('a dog', 'a cat')
    """
    if isinstance(texts, str):
        raise TextError(f"texts is one string, {texts!r}; give a list of texts, as in texts=[{texts!r}]")
    known: dict[str, str] = {}
    for text in texts:
        if not isinstance(text, str) or not text.strip():
            raise TextError(f"a text must say something, and {text!r} does not; give words, as in texts=['a dog']")
        plain = " ".join(text.casefold().split())
        if plain in known:
            same = "" if known[plain] == text else f" (as {known[plain]!r} and {text!r})"
            raise SameClassError(f"the text {known[plain]!r} is given twice{same}: a text cannot be told from itself")
        known[plain] = text
    if not known:
        raise TextError("texts is empty; give at least one text, as in texts=['a dog']")
    return tuple(texts)


def refuse_too_long(text: str, tokens: int, limit: int) -> None:
    """Refuses a text that the tokenizer would cut.

    Raises:
        TextError: naming how many tokens it has and how many there may be.
    """
    if tokens > limit:
        raise TextError(f"{text!r} makes {tokens} tokens and the text tower reads {limit}: shorten it")


def refuse_texts(name: str, why: str) -> NoTextTowerError:
    """Returns the error for texts given to a model that reads none."""
    return NoTextTowerError(
        f"{name} {why}, so no text can be held against an image (texts=): take a CLIP model with both towers, "
        "as open_clip/ViT-B-32 with a checkpoint of the whole model; for a classifier give target=, a class"
    )
