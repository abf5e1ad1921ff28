"""Tiny text classifiers of several families with lively random weights, and a vocabulary built on the spot."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from two_streams import lively

WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] ##ly ##ful bad one two three four a good film is not made , . the was long cold"
VOCABULARY = {word: number for number, word in enumerate(WORDS.split())}
TEXTS = ["The film was not badly made.", "A good film", "Cold, long, not good, not bad."]
NAMES = {0: "negative", 1: "positive", 2: "neither"}


def tokenizer() -> Any:
    from transformers import BertTokenizer

    return BertTokenizer(vocab=VOCABULARY)


def bare_tokenizer() -> Any:
    """Without special tokens at the ends, as GPT-2's is."""
    found = tokenizer()
    found.model_input_names = ["input_ids", "attention_mask"]  # GPT-2 would embed token types as words
    from tokenizers.processors import TemplateProcessing

    found.backend_tokenizer.post_processor = TemplateProcessing(single="$A", pair="$A $B:1", special_tokens=[])
    return found


@dataclass(frozen=True)
class Family:
    """How to build it, the token that its head reads, and its tokenizer."""

    build: Callable[[], nn.Module]
    reads: str = "first"
    tokenizer: Callable[[], Any] = tokenizer


def _hugging_face(name: str, **size: Any) -> nn.Module:
    import transformers

    config = getattr(transformers, f"{name}Config")
    names = {"id2label": NAMES, "label2id": {name: index for index, name in NAMES.items()}}
    known = {"vocab_size": len(VOCABULARY), "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, **names, **size}
    return lively(getattr(transformers, f"{name}ForSequenceClassification")(config(**known)))


SIZE = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 3, "intermediate_size": 16}


class Mean(nn.Module):
    """PyTorch's own encoder under a mean of the tokens that are no padding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(len(VOCABULARY), 16)
        layer = nn.TransformerEncoderLayer(16, 2, 16, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = self.encoder(self.embed(input_ids), src_key_padding_mask=attention_mask == 0)
        real = attention_mask[..., None].to(hidden.dtype)
        return self.head((hidden * real).sum(1) / real.sum(1))


FAMILIES = {
    "bert": Family(lambda: _hugging_face("Bert", **SIZE)),
    "bert_eager": Family(lambda: _hugging_face("Bert", **SIZE, attn_implementation="eager")),
    "distilbert": Family(lambda: _hugging_face("DistilBert", dim=16, n_heads=2, n_layers=3, hidden_dim=16)),
    "roberta": Family(lambda: _hugging_face("Roberta", **SIZE)),
    "deberta": Family(lambda: _hugging_face("DebertaV2", **SIZE, relative_attention=True, pos_att_type=["p2c", "c2p"])),
    "gpt2": Family(
        lambda: _hugging_face("GPT2", n_embd=16, n_layer=3, n_head=2, attn_implementation="eager"),
        "last",
        bare_tokenizer,
    ),
    "mean": Family(lambda: lively(Mean()), "mean"),
}
