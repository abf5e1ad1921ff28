"""A classifier of text with its tokenizer: texts become batches of tokens, padded to one length, and then logits."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from inspect import Parameter, signature
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..errors import TextError
from ..outputs import check_kind
from .class_names import class_index, short_name
from .readiness import model_errors
from .vision_model import logits_of

__all__ = ["Encoded", "TextModel", "TokenBatch"]


@dataclass(frozen=True)
class Encoded:
    """One text as its model sees it.

    `inputs` holds one number per token under each of the model's argument names. `special` marks tokens that stand for
    no part of the text. `spans` says where the others stand: which of a pair of texts, first character, one past the
    last; None where the tokenizer does not tell. `cut` is how many tokens did not fit the model.
    """

    inputs: dict[str, list[int]]
    tokens: tuple[str, ...]
    special: tuple[bool, ...]
    spans: tuple[tuple[int, int, int] | None, ...]
    cut: int = 0

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True, eq=False)
class TokenBatch:
    """Texts ready for the model: integers (texts, tokens) under its argument names, and which tokens are real.

    `dtype` is the precision in which the model runs.
    """

    inputs: dict[str, Tensor]
    real: Bool[Tensor, "texts tokens"]
    dtype: torch.dtype

    def __len__(self) -> int:
        return len(self.real)

    @property
    def device(self) -> torch.device:
        return self.real.device


@dataclass(frozen=True, eq=False)
class TextModel:
    """A module that takes `input_ids` and `attention_mask` and answers with logits, and a Hugging Face tokenizer.

    `logits_from` finds the logits in an unusual output, `output` is their kind (`vitrail.outputs.KINDS`; None:
    recognised). The module is never changed.
    """

    module: nn.Module
    tokenizer: Any
    name: str
    class_names: tuple[str, ...] | None = None
    logits_from: Callable[[Any], Tensor] | None = None
    output: str | None = None

    def __post_init__(self) -> None:
        check_kind(self.output)

    @property
    def device(self) -> torch.device:
        return next((tensor.device for tensor in self.module.parameters()), torch.device("cpu"))

    @property
    def dtype(self) -> torch.dtype:
        return next((t.dtype for t in self.module.parameters() if t.is_floating_point()), torch.float32)

    def encode(self, text: str | tuple[str, str]) -> Encoded:
        """Returns the tokens of a text or of a pair of texts, cut at the longest that the model takes.

        Raises:
            TextError: when there is no word in it.
        """
        parts = (text,) if isinstance(text, str) else text
        if not any(part.strip() for part in parts):
            raise TextError("the text is empty: there is no word to explain")
        longest = self._longest()
        told = {"return_special_tokens_mask": True, "return_attention_mask": False, "verbose": False}
        fast = bool(getattr(self.tokenizer, "is_fast", False))
        found = self.tokenizer(*parts, **told, return_offsets_mapping=fast)
        cut = max(len(found["input_ids"]) - longest, 0)
        if cut:
            found = self.tokenizer(*parts, **told, return_offsets_mapping=fast, truncation=True, max_length=longest)
        special = tuple(bool(one) for one in found["special_tokens_mask"])
        if all(special):
            raise TextError(f"the tokenizer finds no token in {text!r}")
        spans: tuple[tuple[int, int, int] | None, ...] = (None,) * len(special)
        if fast:
            part_of = found.sequence_ids()
            spans = tuple(
                None if part is None or is_special else (part, *offset)
                for part, is_special, offset in zip(part_of, special, found["offset_mapping"], strict=True)
            )
        accepted = self._accepted()
        inputs = {name: list(found[name]) for name in found if accepted is None or name in accepted}
        inputs = {name: values for name, values in inputs.items() if name not in _NOT_INPUTS}
        tokens = tuple(self.tokenizer.convert_ids_to_tokens(found["input_ids"]))
        return Encoded(inputs, tokens, special, spans, cut)

    def batch(self, texts: Sequence[Encoded]) -> TokenBatch:
        """Pads encoded texts on the right to one batch, so that every token keeps its position."""
        length = max(len(text) for text in texts)
        padding = {"input_ids": getattr(self.tokenizer, "pad_token_id", None) or 0}
        padding["token_type_ids"] = getattr(self.tokenizer, "pad_token_type_id", None) or 0
        inputs = {
            name: torch.tensor(
                [text.inputs[name] + [padding.get(name, 0)] * (length - len(text)) for text in texts],
                device=self.device,
            )
            for name in texts[0].inputs
        }
        real = torch.arange(length) < torch.tensor([len(text) for text in texts])[:, None]
        return TokenBatch(inputs, real.to(self.device), self.dtype)

    def logits(self, batch: TokenBatch) -> Float[Tensor, "texts classes"]:
        """Runs the model on a batch and finds its numbers, of any kind, in its output. Gradients flow.

        Raises:
            OutputError: when the output holds no tensor of texts x classes.
            ModelError: when there are not as many class names as classes.
        """
        with model_errors(self.name, self.module, images=False):
            output = self.module(**batch.inputs, attention_mask=batch.real.long())
        return logits_of(output, len(batch), self.name, self.class_names, self.logits_from, "texts")

    def class_index(self, name_or_index: Any, count: int | None = None) -> int:
        """Returns the index of a class given by name (case does not matter) or by index; errors as `VisionModel` has
        them.
        """
        return class_index(name_or_index, self.class_names, count)

    def class_name(self, index: Any) -> str:
        """Returns the short name of a class: the text before the first comma, or "class 7" where there is no name."""
        return short_name(int(index), self.class_names)

    def _accepted(self) -> set[str] | None:
        """The names of the module's arguments, where they are known: DistilBERT, say, takes no token types."""
        parameters = signature(self.module.forward).parameters.values()
        named = {p.name for p in parameters if p.kind in (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)}
        return named if "input_ids" in named else None

    def _longest(self) -> int:
        """How many tokens the tokenizer says that the model takes, or as many as it has positions."""
        return min([int(getattr(self.tokenizer, "model_max_length", 10**9)), *_positions(self.module)])


_NOT_INPUTS = ("special_tokens_mask", "offset_mapping", "attention_mask")


def _positions(module: nn.Module) -> Iterator[int]:
    for name, part in module.named_modules():
        if isinstance(part, nn.Embedding) and name.rpartition(".")[2] in ("position_embeddings", "wpe"):
            # RoBERTa counts its positions from behind the padding token's.
            yield part.num_embeddings - (0 if part.padding_idx is None else part.padding_idx + 1)
