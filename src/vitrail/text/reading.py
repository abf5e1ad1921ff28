"""How a text classifier is built: its attentions, which of a text's tokens its head reads; and how methods ask it."""

from dataclasses import dataclass
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..attention.observe import Observation, ShapeObserver
from ..attention.tap import Tap, eager
from ..errors import LayoutError, NoAttentionError, UnsupportedAttentionError
from ..methods.context import AttributionContext
from ..models.layout import TokenLayout
from ..models.readiness import model_errors, refuse_replaced
from ..models.text_model import TextModel, TokenBatch
from ..outputs import LOGITS, Output, recognise

__all__ = ["Reading", "Reads", "TextContext", "reading_of", "readout_rows"]

Reads = Literal["first", "last", "mean"]
NAMES: dict[Reads, str] = {"first": "first token", "last": "last token", "mean": "mean of the tokens"}
PROBE = "one two three four"  # any text of a few tokens shows which of them the head looks at


@dataclass(frozen=True)
class Reading:
    """The number of attentions and of their heads, the number of classes, what is read, and the kind of output."""

    layers: int
    heads: int
    classes: int
    reads: Reads
    output: Output = LOGITS

    def layout(self, tokens: int) -> TokenLayout:
        """Returns the layout of texts of that number of tokens, as one row of patches."""
        row = torch.full((tokens,), 1 / tokens)
        return TokenLayout(1, tokens, 0, row, NAMES[self.reads], self.layers, 0, self.heads, self.classes, tokens)


_KNOWN: WeakKeyDictionary[nn.Module, dict[Any, Reading]] = WeakKeyDictionary()


def reading_of(model: TextModel, reads: str | None = None) -> Reading:
    """Returns the model's layout, inferred from one short text the first time; `reads` overrides its readout.

    Raises:
        NoAttentionError: when no attention is seen that the logits depend on.
        ModelError: when another library has replaced parts of the model by some with another gradient.
        UnsupportedAttentionError: when an attention does not join all tokens to all.
        LayoutError: when the head reads in no way that is known here; the message says which tokens.
    """
    refuse_replaced(model.module, lambda: model.logits(model.batch([model.encode(PROBE)])))
    given = None if reads is None else _known_way(reads)
    known = _KNOWN.setdefault(model.module, {})
    # An output function may find other logits, which may hang on other tokens.
    key = given, model.logits_from, model.output
    if key not in known:
        with model_errors(model.name, model.module, images=False):
            known[key] = _work_out(model, given)
    return known[key]


def readout_rows(reads: Reads, real: Bool[Tensor, "texts tokens"]) -> Float[Tensor, "texts tokens"]:
    """Returns one weight per token, summing to one in each text, none of it on padding.

    Example:
        >>> readout_rows("last", torch.tensor([[True, True, False]])).tolist()
        [[0.0, 1.0, 0.0]]
    """
    length = real.sum(dim=1)
    if reads == "mean":
        return real.double() / length[:, None]
    at = torch.zeros_like(length) if reads == "first" else length - 1
    return nn.functional.one_hot(at, real.shape[1]).double()


@dataclass(eq=False)
class TextContext(AttributionContext[TextModel, TokenBatch]):
    """What a method needs of texts: their tokens are one row of patches, and each text has its own readout."""

    @property
    def real(self) -> Bool[Tensor, "texts tokens"] | None:
        """Returns which tokens are not padding; None where no token is padding."""
        return None if bool(self.images.real.all()) else self.images.real

    def answer(self) -> Float[Tensor, "texts classes"]:
        """Returns the model's logits for the texts; gradients flow."""
        return self.output.logits(self.model.logits(self.images))


def _work_out(model: TextModel, given: Reads | None) -> Reading:
    observer = ShapeObserver()
    batch = model.batch([model.encode(PROBE)])
    with torch.enable_grad(), eager():
        with Tap(observer, images=1):
            numbers = model.logits(batch)
        if not observer.shapes:
            raise NoAttentionError(
                f"{model.name} ran, but no attention reached PyTorch's functions: use its plain PyTorch form "
                '(attn_implementation="sdpa" or "eager")'
            )
        output = recognise(numbers, model.output, model.name)
        seen = observer.observation(output.logits(numbers), ())
    if not seen.shapes:
        raise NoAttentionError(
            f"{model.name} calls attention, but its logits do not depend on any of it: the output is constant, "
            "detached from the graph, or computed in integers (quantized activations have no gradient)"
        )
    if seen.broken is not None:
        raise UnsupportedAttentionError(
            f"attention {seen.broken} of {len(seen.shapes)} does not follow from attention {seen.broken - 1}: blocks "
            "stand side by side, the text goes through several times, or a part runs under no_grad; a map needs one "
            "attention after the other; for an encoder with a decoder see vitrail.multimodal.explain_pair"
        )
    tokens = batch.real.shape[1]
    for index, shape in enumerate(seen.shapes):
        if (shape.images, shape.queries, shape.keys) != (1, tokens, tokens):
            raise UnsupportedAttentionError(
                f"attention {index} of {len(seen.shapes)} lets {shape.queries} queries see {shape.keys} keys in "
                f"{shape.images} part(s), where the text has {tokens} tokens: only encoders in which all tokens attend "
                "to all are supported; for an encoder with a decoder see vitrail.multimodal.explain_pair"
            )
    return Reading(len(seen.shapes), seen.shapes[0].heads, seen.classes, given or _reads(seen, model), output)


def _known_way(reads: str) -> Reads:
    for known in NAMES:
        if reads == known:
            return known
    raise LayoutError(f"readout={reads!r} is none of {', '.join(NAMES)}")


def _reads(seen: Observation, model: TextModel) -> Reads:
    at = (seen.reads > 1e-6 * seen.reads.max()).nonzero()[:, 0].tolist()
    tokens = len(seen.reads)
    if at == [0]:
        return "first"
    if at == [tokens - 1]:
        return "last"
    if at == list(range(tokens)):
        return "mean"
    raise LayoutError(
        f"the head of {model.name} reads the tokens {at} of {tokens}, neither the first, nor the last, nor all: "
        f'say which with readout="first", "last" or "mean"'
    )
