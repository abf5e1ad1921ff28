"""`explain_pair` on tiny models of two streams equals the rules written out in float64; and what it refuses."""

import copy
from typing import Any

import pytest
import torch
import two_streams
from torch import nn

from vitrail.errors import (
    NoAttentionError,
    NoSignalError,
    OptionError,
    OutputError,
    TrainingModeError,
    UnsupportedAttentionError,
)
from vitrail.multimodal import explain_pair

METHODS = ["gae", "complete", "absolute"]
ANSWER: dict[str, Any] = {"logits_from": lambda output: output.question_answering_score}


def close(ours: torch.Tensor, expected: torch.Tensor, bound: float = 1e-5) -> bool:
    return float((ours.double() - expected).abs().max() / expected.abs().max()) < bound


def wide(module: nn.Module, inputs: dict[str, torch.Tensor]) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """In float64: where nearly nothing was added to a row, the rules' division turns float32's rounding into scores."""
    return module.double(), {name: x.double() if x.is_floating_point() else x for name, x in inputs.items()}


@pytest.mark.parametrize("method", METHODS)
def test_lxmert_follows_the_rules(method: str):
    module, inputs = wide(*two_streams.lxmert())
    a, g = two_streams.captured(copy.deepcopy(module), inputs, ANSWER["logits_from"], [1, 3])
    ours = explain_pair(module, inputs, [1, 3], method=method, streams=("text", "image"), **ANSWER)
    assert (ours.read, ours.signed, list(ours.scores)) == (("text",), method == "complete", ["text", "image"])
    for item in range(2):
        expected = two_streams.lxmert_rules(a, g, item, method, {"text": 7, "image": 5})
        for name in expected:
            assert ours.scores[name].dtype == torch.float64
            assert close(ours.scores[name][item], expected[name], 1e-10)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("build", [two_streams.detr, two_streams.pytorch_decoder])
def test_a_decoder_follows_the_rules(build, method: str):
    module, inputs = wide(*build())
    query = 2

    def logits(output):
        return (output if isinstance(output, torch.Tensor) else output.logits)[:, query]

    a, g = two_streams.captured(copy.deepcopy(module), inputs, logits, [1, 3])
    ours = explain_pair(module, inputs, [1, 3], method=method, query=query, streams=("image", "queries"))
    assert ours.read == ("queries",)
    sizes = {"image": a[0].shape[-1], "queries": 3}
    for item in range(2):
        expected = two_streams.decoder_rules(a, g, item, method, sizes, query)
        for name in expected:
            assert close(ours.scores[name][item], expected[name], 1e-10)


def test_float32_stays_near():
    module, inputs = two_streams.lxmert()
    ours = explain_pair(module, inputs, [1, 3], streams=("text", "image"), **ANSWER)
    a, g = two_streams.captured(module, inputs, ANSWER["logits_from"], [1, 3])
    expected = two_streams.lxmert_rules(a, g, 0, "gae", {"text": 7, "image": 5})
    assert ours.scores["image"].dtype == torch.float32
    assert close(ours.scores["text"][0], expected["text"], 1e-4)
    assert close(ours.scores["image"][0], expected["image"], 1e-4)


def visual_bert() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    from transformers import VisualBertConfig, VisualBertForVisualReasoning

    size = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16, "visual_embedding_dim": 6}
    module = VisualBertForVisualReasoning(VisualBertConfig(vocab_size=30, num_hidden_layers=3, num_labels=4, **size))
    generator = torch.Generator().manual_seed(0)
    inputs = {
        "input_ids": torch.randint(1, 30, (2, 4), generator=generator),
        "visual_embeds": torch.randn(2, 3, 6, generator=generator),
    }
    return two_streams.lively(module), inputs


def test_one_stream_that_holds_both_is_the_plain_rule():
    module, inputs = visual_bert()
    a, g = two_streams.captured(copy.deepcopy(module), inputs, lambda output: output.logits, [1, 2])
    ours = explain_pair(module, inputs, [1, 2], method="complete", streams=["both"])
    for item in range(2):
        total = torch.eye(7, dtype=torch.float64)
        for attention, gradient in zip(a, g, strict=True):
            total = total + (attention * gradient)[item].mean(0) @ total
        expected = total[0] - torch.eye(7, dtype=torch.float64)[0]
        assert close(ours.scores["both"][item], expected)


def test_batches_and_several_targets_equal_single_calls():
    module, inputs = wide(*two_streams.lxmert())
    names = {"streams": ("text", "image"), **ANSWER}
    together = explain_pair(module, inputs, [[0, 2], [1, 3]], method="complete", **names)
    assert together.scores["image"].shape == (2, 2, 5)
    for item, column, target in [(0, 1, 2), (1, 0, 1)]:
        alone = {name: x[item : item + 1] for name, x in inputs.items()}
        one = explain_pair(module, alone, target, method="complete", **names)
        for name in one.scores:
            assert close(together.scores[name][item, column], one.scores[name][0], 1e-10)


def test_padding_gets_nothing_and_changes_nothing():
    module, inputs = wide(*two_streams.lxmert())
    longer = dict(inputs, input_ids=nn.functional.pad(inputs["input_ids"], (0, 2)))
    longer["attention_mask"] = (torch.arange(9) < 7).long().expand(2, -1)
    plain = explain_pair(module, inputs, [1, 3], method="complete", streams=("text", "image"), **ANSWER)
    padded = explain_pair(module, longer, [1, 3], method="complete", streams=("text", "image"), **ANSWER)
    assert not padded.scores["text"][:, 7:].any()
    assert close(padded.scores["text"][:, :7], plain.scores["text"], 1e-10)
    assert close(padded.scores["image"], plain.scores["image"], 1e-10)


def test_streams_of_equal_size_are_told_apart_by_order_alone():
    module, inputs = two_streams.lxmert(text=5, image=5)
    with pytest.raises(UnsupportedAttentionError, match=r"attention 2 .* two streams, both of 5 tokens.*order="):
        explain_pair(module, inputs, 1, **ANSWER)
    ours = explain_pair(module, inputs, [1, 3], order=two_streams.LXMERT_ORDER, **ANSWER)
    a, g = two_streams.captured(module, inputs, ANSWER["logits_from"], [1, 3])
    expected = two_streams.lxmert_rules(a, g, 0, "gae", {"text": 5, "image": 5})
    assert close(ours.scores["text"][0], expected["text"])
    assert close(ours.scores["image"][0], expected["image"])


def test_order_and_worked_out_streams_agree():
    module, inputs = two_streams.lxmert()
    given = explain_pair(module, inputs, 1, order=two_streams.LXMERT_ORDER, **ANSWER)
    found = explain_pair(module, inputs, 1, streams=("text", "image"), **ANSWER)
    assert torch.equal(given.scores["image"], found.scores["image"])


def test_class_names_and_against():
    module, inputs = two_streams.lxmert()
    names = ("red", "green", "blue", "white", "black")
    asked = {"method": "complete", "objective": "difference", "streams": ("text", "image"), **ANSWER}
    ours = explain_pair(module, inputs, "green", against="white", class_names=names, **asked)
    turned = explain_pair(module, inputs, "white", against="green", class_names=names, **asked)
    assert ours.target.tolist() == [1, 1]
    assert turned.against is not None
    assert turned.against.tolist() == [1, 1]
    assert not torch.allclose(ours.scores["text"], turned.scores["text"])


class BothRead(nn.Module):
    """Two towers that meet once; the head reads the first token of each."""

    def __init__(self) -> None:
        super().__init__()
        attention = {"embed_dim": 8, "num_heads": 2, "batch_first": True}
        self.there, self.back = nn.MultiheadAttention(**attention), nn.MultiheadAttention(**attention)
        self.head = nn.Linear(16, 3)

    def forward(self, one: torch.Tensor, two: torch.Tensor) -> torch.Tensor:
        first = one + self.there(one, two, two, need_weights=False)[0]
        second = two + self.back(two, one, one, need_weights=False)[0]
        return self.head(torch.cat([first[:, 0], second[:, 0]], dim=1))


def test_where_both_streams_are_read_the_scores_are_summed():
    module = two_streams.lively(BothRead())
    inputs = {"one": torch.randn(1, 3, 8), "two": torch.randn(1, 4, 8)}
    a, g = two_streams.captured(copy.deepcopy(module), inputs, lambda output: output, [2])
    ours = explain_pair(module, inputs, 2, method="complete")
    assert ours.read == ("first", "second")
    assert close(ours.scores["second"][0], (a[0] * g[0])[0].mean(0)[0])
    assert close(ours.scores["first"][0], (a[1] * g[1])[0].mean(0)[0])


def test_the_model_is_left_as_it_was():
    module, inputs = two_streams.lxmert()
    before = {name: x.clone() for name, x in module.state_dict().items()}
    wants = [p.requires_grad for p in module.parameters()]
    explain_pair(module, inputs, 1, **ANSWER)
    assert all(torch.equal(before[name], x) for name, x in module.state_dict().items())
    assert [p.requires_grad for p in module.parameters()] == wants
    assert all(p.grad is None for p in module.parameters())


def test_refusals():
    module, inputs = two_streams.pytorch_decoder()
    with pytest.raises(OptionError, match="method='rollout' has no rules for two streams"):
        explain_pair(module, inputs, 1, method="rollout", query=0)
    with pytest.raises(OutputError, match="logits for each of 3 queries: say query=, from 0 to 2$"):
        explain_pair(module, inputs, 1)
    with pytest.raises(OutputError, match="from 0 to 2, not 3"):
        explain_pair(module, inputs, 1, query=3)
    with pytest.raises(OptionError, match="names 1 of the model's 2 streams"):
        explain_pair(module, inputs, 1, query=0, streams=["image"])
    with pytest.raises(OptionError, match="order= lists 1 attentions, but the model calls 6"):
        explain_pair(module, inputs, 1, query=0, order=[("a", "b")])
    order = [("image", "image")] * 5 + [("image", "queries")]
    with pytest.raises(OptionError, match="'image' what has 3 tokens in attention 2, and 6 before"):
        explain_pair(module, inputs, 1, query=0, order=order)
    order = [("a", "a"), ("a", "a"), ("b", "b"), ("c", "a"), ("b", "b"), ("b", "a")]
    with pytest.raises(OptionError, match=r"order= names 3 streams \(a, b, c\)"):
        explain_pair(module, inputs, 1, query=0, order=order)
    with pytest.raises(OptionError, match="holds no tensor, only text"):
        explain_pair(module, {"text": "a"}, 1, query=0)
    with pytest.raises(NoAttentionError, match="no attention reached"):
        explain_pair(nn.Linear(16, 4).eval(), {"input": torch.zeros(1, 16)}, 1)
    module.encoder.layers[0].dropout.p = 0.1
    with pytest.raises(TrainingModeError, match=r"encoder\.layers\.0"):
        explain_pair(module.train(), inputs, 1, query=0)


def test_a_constant_objective_has_no_signal():
    module, inputs = two_streams.pytorch_decoder()
    with pytest.raises(NoSignalError, match="every token of input 0 has the score zero"):
        explain_pair(module, inputs, 1, query=0, objective=lambda logits: logits.sum(1) * 0)


def llava() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = CLIPVisionConfig(**size, image_size=32, patch_size=8, projection_dim=16)
    text = LlamaConfig(**size, vocab_size=40, num_key_value_heads=2)
    options = {"image_token_index": 39, "vision_feature_layer": -1}
    module = LlavaForConditionalGeneration(LlavaConfig(vision_config=vision, text_config=text, **options))
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(1, 30, (1, 5), generator=generator)
    return two_streams.lively(module, 0.3), {
        "input_ids": torch.cat([words[:, :2], torch.full((1, 16), 39), words[:, 2:]], dim=1),
        "pixel_values": torch.randn(1, 3, 32, 32, generator=generator),
    }


def test_a_stream_that_joins_another_is_refused_and_the_joined_tokens_are_scored():
    module, inputs = llava()

    def last(output):
        return output.logits[:, -1]

    with pytest.raises(UnsupportedAttentionError, match="stream 'vision', but no stream that is read.*inputs_embeds"):
        explain_pair(module, inputs, 3, logits_from=last, streams=["vision", "words and patches"])
    with torch.no_grad():
        embeds = module.get_input_embeddings()(inputs["input_ids"])
        patches = module.get_image_features(pixel_values=inputs["pixel_values"])
        patches = torch.cat(list(getattr(patches, "pooler_output", patches))).reshape(-1, embeds.shape[-1])
        embeds[inputs["input_ids"] == 39] = patches
    joined = explain_pair(module, {"inputs_embeds": embeds}, 3, logits_from=last, streams=["words and patches"])
    assert bool((joined.scores["words and patches"][0, 2:18] != 0).all())
