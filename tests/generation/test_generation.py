"""What `explain_generation` leaves as it was, what it refuses, and what its result holds."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from vlm_families import ANSWER, VLMS

from vitrail.attention import differentiate
from vitrail.errors import (
    ExplanationFileError,
    ModelError,
    NoAttentionError,
    OptionError,
    SameClassError,
    TextError,
    UnsupportedAttentionError,
    UnsupportedOperationError,
)
from vitrail.explanation import Explanation
from vitrail.generation import GenerationExplanation, VisionLanguageModel, explain_generation


def state_of(model: nn.Module) -> list[object]:
    tensors = [*model.parameters(), *model.buffers()]
    return [
        *((id(one), one._version, one.requires_grad, one.grad is None) for one in tensors),
        *((part.training, len(part._forward_hooks), len(part._forward_pre_hooks)) for part in model.modules()),
    ]


@pytest.fixture(scope="module")
def llava() -> tuple[nn.Module, dict[str, Tensor]]:
    return VLMS["llava"].build()


@pytest.fixture(scope="module")
def explained(llava: tuple[nn.Module, dict[str, Tensor]]) -> GenerationExplanation:
    model, inputs = llava
    return explain_generation(model, inputs=inputs, answer=ANSWER, against=5)


def test_the_model_stays_as_it_was_also_after_an_error(llava: tuple[nn.Module, dict[str, Tensor]]) -> None:
    model, inputs = llava
    model(**inputs)  # the first pass leaves hooks of Hugging Face's own, which note hidden states
    before = state_of(model)
    explain_generation(model, inputs=inputs, answer=ANSWER)
    assert state_of(model) == before

    def fail(*_: object) -> None:
        raise RuntimeError("enough")

    with pytest.raises(Exception, match="enough"):
        explain_generation(model, inputs=inputs, answer=ANSWER, progress=fail)
    assert state_of(model) == before
    given = dict(inputs)
    explain_generation(model, inputs=given, answer=ANSWER, vision="tokens")
    assert given.keys() == inputs.keys()


@pytest.mark.parametrize("vision", ["tokens", "patches"])
def test_tokens_together_are_tokens_one_by_one(llava: tuple[nn.Module, dict[str, Tensor]], vision: Any) -> None:
    model, inputs = llava
    together = explain_generation(model, inputs=inputs, answer=ANSWER, vision=vision)
    for number, position in enumerate(together.positions):
        alone = explain_generation(model, inputs=inputs, answer=ANSWER, positions=position, vision=vision)
        torch.testing.assert_close(alone.image_scores[0][0], together.image_scores[0][number])
        torch.testing.assert_close(alone.text_scores[0], together.text_scores[number])
        torch.testing.assert_close(alone.grounding[0], together.grounding[number])


@pytest.mark.slow
def test_a_notebook_shows_the_sheet(explained: GenerationExplanation, tmp_path: Path) -> None:
    assert "<img" in explained._repr_html_()
    assert explained.save(tmp_path / "sheet.svg").read_text().startswith("<?xml")


@pytest.mark.slow
def test_threads_do_not_disturb_each_other(llava: tuple[nn.Module, dict[str, Tensor]]) -> None:
    model, inputs = llava
    wanted = explain_generation(model, inputs=inputs, answer=ANSWER)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: explain_generation(model, inputs=inputs, answer=ANSWER), range(8)))
    assert all(torch.equal(one.image_scores[0], wanted.image_scores[0]) for one in found)


@pytest.mark.slow
def test_bfloat16_is_summed_in_float32() -> None:
    model, inputs = VLMS["llava"].build(torch.bfloat16)
    ex = explain_generation(model, inputs=inputs, answer=ANSWER)
    wide = explain_generation(model.float(), inputs=inputs, answer=ANSWER)
    assert ex.image_scores[0].dtype == ex.text_scores.dtype == ex.logits.dtype == torch.float32
    agreement = torch.corrcoef(torch.stack([ex.image_scores[0].flatten(), wide.image_scores[0].flatten()]))[0, 1]
    assert float(agreement) > 0.98


@pytest.mark.parametrize("method", ["gae", "absolute", "rollout", "raw"])
def test_other_methods_are_not_negative(llava: tuple[nn.Module, dict[str, Tensor]], method: str) -> None:
    model, inputs = llava
    ex = explain_generation(model, inputs=inputs, answer=ANSWER, method=method, vision="tokens")
    assert not ex.signed
    assert float(ex.image_scores[0].min()) >= 0 == float(ex.text_scores.min())


def test_shares_sum_to_one_and_later_words_have_no_score(explained: GenerationExplanation) -> None:
    torch.testing.assert_close(explained.grounding.sum(dim=1), torch.ones(ANSWER))
    assert float(explained.grounding[0, 2]) == 0  # of the first word no answer is earlier
    for number, position in enumerate(explained.positions):
        assert not bool(explained.text_scores[number, position:].any())
    assert [role for _, role, _ in explained.before(1)] == ["prompt"] * 6 + ["answer"]


def test_a_stop_keeps_what_is_done(llava: tuple[nn.Module, dict[str, Tensor]]) -> None:
    model, inputs = llava
    done: list[int] = []
    ex = explain_generation(
        model, inputs=inputs, answer=ANSWER, progress=lambda _, at, __: done.append(at), stop=lambda: len(done) == 2
    )
    assert len(ex) == 2
    assert ex.notes == ("Stopped after 2 of 3 tokens.",)


def test_each_token_is_told_with_those_before_it(llava: tuple[nn.Module, dict[str, Tensor]]) -> None:
    model, inputs = llava
    told: list[GenerationExplanation] = []
    whole = explain_generation(model, inputs=inputs, answer=ANSWER, against=5, each=told.append)
    assert [len(one) for one in told] == [*range(1, ANSWER)]
    for one in told:
        assert torch.equal(one.image_scores[0], whole.image_scores[0][: len(one)])
        assert torch.equal(one.logits, whole.logits[: len(one)])
        assert one.notes == whole.notes  # that it stopped is said of the end alone
        assert (one.question(-1), one.sequence) == (whole.question(len(one) - 1), whole.sequence)


def test_the_file_gives_back_every_number(explained: GenerationExplanation, tmp_path: Path) -> None:
    path = explained.save(tmp_path / "answer.safetensors")
    back = GenerationExplanation.load(path)
    assert torch.equal(back.image_scores[0], explained.image_scores[0])
    assert all(torch.equal(getattr(back, name), getattr(explained, name)) for name in ("text_scores", "logits"))
    assert (back.tokens, back.roles, back.question(1)) == (explained.tokens, explained.roles, explained.question(1))
    assert back.save(tmp_path / "again.safetensors").read_bytes() == path.read_bytes()
    with pytest.raises(ExplanationFileError, match="GenerationExplanation.load reads"):
        Explanation.load(path)
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(ExplanationFileError):
        GenerationExplanation.load(damaged)
    with safe_open(path, framework="pt") as file:
        text, tensors = file.metadata(), load_file(path)
    for changed in (
        {"text_scores": torch.full_like(tensors["text_scores"], torch.nan)},
        {"image_scores.0": torch.zeros(ANSWER, 0, 4)},
        {"image_scores.2": torch.zeros(ANSWER, 4, 4)},
        {"pictures.0": torch.zeros(4, 4, 3)},
        {"target": tensors["target"] + 100},
        {"more": torch.zeros(1)},
    ):
        save_file({**tensors, **changed}, damaged, metadata=text)
        with pytest.raises(ExplanationFileError, match=next(iter(changed))):
            GenerationExplanation.load(damaged)


def test_words_are_their_tokens_together(explained: GenerationExplanation) -> None:
    ex = replace(explained, tokens=("a", " str", "iped"))
    words = ex.by_word()
    assert words.tokens == ("a", " striped")
    torch.testing.assert_close(words.image_scores[0][1], ex.image_scores[0][1:].sum(dim=0))
    assert [one.tokens for one in ex] == [("a",), (" str",), ("iped",)]


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        ((" cup", ".", '"'), (" cup", '."')),
        ((" 3", ".", "5", " (", "m", ")"), (" 3.5", " (m", ")")),
        (("红", "杯子", "。"), ("红", "杯子", "。")),
        (("don", "'t", "\n"), ("don't", "\n")),
    ],
)
def test_words_end_where_a_reader_ends_them(tokens: tuple[str, ...], words: tuple[str, ...]) -> None:
    ex = SimpleNamespace(tokens=tokens, positions=tuple(range(len(tokens))))
    slices = GenerationExplanation.words.fget(ex)  # type: ignore[attr-defined]
    assert tuple("".join(tokens[one]) for one in slices) == words


def test_without_a_tokenizer_each_token_is_a_word(explained: GenerationExplanation) -> None:
    assert len(explained.words) == ANSWER
    assert explained.question().startswith("[")


def test_a_word_of_several_tokens_has_one_probability_everywhere(
    explained: GenerationExplanation, tmp_path: Path
) -> None:
    from vitrail.plotting.generation import draw_generation, word_rows

    ex = replace(explained, tokens=("a", " str", "iped"), against=None, against_tokens=None)
    whole = ex.probability(1) * ex.probability(2)
    words = ex.by_word()
    assert words.probability(0) == ex.probability(0)
    assert words.probability(1) == words[1].probability() == word_rows(ex)[1]["probability"] == whole
    said = f"striped {100 * whole:.1f} %"
    assert words.question(1) == word_rows(ex)[1]["question"] == said
    assert said in [text.get_text() for text in draw_generation(ex).texts]
    back = GenerationExplanation.load(words.save(tmp_path / "words.safetensors"))
    assert back.question(1) == back.by_word().question(1) == said


def test_the_sheet_shows_content_words(explained: GenerationExplanation, tmp_path: Path) -> None:
    from vitrail.plotting.generation import content_words

    ex = replace(explained, tokens=(" a", " striped", "."), pictures=(torch.full((32, 32, 3), 200, dtype=torch.uint8),))
    assert content_words(ex) == [1]
    assert content_words(ex[:1]) == [0]
    figure = ex.plot(tmp_path / "sheet.png")
    assert (tmp_path / "sheet.png").stat().st_size > 5000
    said = [text.get_text() for text in figure.texts]
    assert any("against [5]" in text for text in said)
    assert any(text.startswith("image ") for text in said)


def test_what_cannot_be_explained_is_refused(llava: tuple[nn.Module, dict[str, Tensor]]) -> None:
    model, inputs = llava
    length = inputs["input_ids"].shape[1]

    def refused(error: type[Exception], match: str, **options: Any) -> None:
        with pytest.raises(error, match=match):
            explain_generation(**{"model": model, "inputs": inputs, "answer": ANSWER, **options})

    without = {name: one for name, one in inputs.items() if name != "pixel_values"}
    refused(OptionError, "hold no image", inputs=without)
    refused(OptionError, rf"positions=\[{length}\] are outside", positions=length)
    refused(OptionError, r"positions=\[0\] are outside", positions=[0])
    refused(OptionError, "where the answer begins", answer=None)
    refused(OptionError, "one at a time", inputs={name: torch.cat([one, one]) for name, one in inputs.items()})
    refused(SameClassError, "against itself", positions=[-1], against=int(inputs["input_ids"][0, -1]))
    refused(UnsupportedOperationError, "made for classifiers", method="gradcam")
    refused(OptionError, "uses no gradient", method="raw", gradient="full")
    refused(OptionError, "rollout follows attention alone", method="rollout", against=5)
    refused(OptionError, "against=99 is none of the model's 40 tokens", against=99)
    refused(OptionError, "needs the model's processor", inputs=None, image=torch.zeros(8, 8, 3).byte().numpy())


def test_attention_that_is_not_seen_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AttentionInterface

    def beneath(_: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
        return value.repeat_interleave(query.shape[1] // value.shape[1], dim=1).transpose(1, 2), None

    monkeypatch.setitem(AttentionInterface._global_mapping, "beneath", beneath)
    model, inputs = VLMS["llava"].build()
    model.set_attn_implementation("beneath")
    with pytest.raises(NoAttentionError, match="attn_implementation"):
        explain_generation(model, inputs=inputs, answer=ANSWER, vision="tokens")


def test_a_model_of_text_alone_is_refused() -> None:
    from transformers import LlamaForCausalLM
    from vlm_families import text_config

    ids = torch.tensor([[1, 5, 6, 7]])
    with pytest.raises(ModelError, match="of text alone"):
        explain_generation(LlamaForCausalLM(text_config()).eval(), inputs={"input_ids": ids}, answer=1)


def test_an_answer_that_is_read_as_prompt_is_refused() -> None:
    model, inputs = VLMS["paligemma"].build()
    with pytest.raises(UnsupportedAttentionError, match="token_type_ids"):
        explain_generation(
            model, inputs={**inputs, "token_type_ids": torch.zeros_like(inputs["input_ids"])}, answer=ANSWER
        )


def test_a_tower_that_cannot_be_followed_still_has_a_map_by_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = VLMS["llava"].build()
    whole = explain_generation(model, inputs=inputs, answer=ANSWER, vision="tokens")
    model, inputs = VLMS["llava"].build()
    forward = type(model.model.vision_tower).forward

    def mixed(self: nn.Module, pixel_values: Tensor, **kwargs: Any) -> Any:
        return forward(self, pixel_values + 0 * pixel_values.flatten(1).cumsum(dim=1).view_as(pixel_values), **kwargs)

    monkeypatch.setattr(type(model.model.vision_tower), "forward", mixed)
    with pytest.raises(UnsupportedAttentionError, match="cumsum.*vision='tokens'"):
        explain_generation(model, inputs=inputs, answer=ANSWER)
    ex = explain_generation(model, inputs=inputs, answer=ANSWER, vision="tokens")
    torch.testing.assert_close(ex.image_scores[0], whole.image_scores[0])


@pytest.fixture(scope="module")
def captioner() -> VisionLanguageModel:
    """The bestiary's captioner with drawn weights: a processor, a picture and words."""
    from vlm_families import enliven

    from vitrail.bestiary.captioner import build_captioner, build_processor

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build_captioner(width=32, layers=2).eval()
        enliven(model)
    return VisionLanguageModel(model, build_processor(), "captioner")


def test_image_and_prompt_are_all_that_is_needed(captioner: VisionLanguageModel) -> None:
    picture = np.full((96, 96, 3), 128, dtype=np.uint8)
    picture[20:40, 50:80] = (200, 40, 40)
    ex = explain_generation(captioner, picture, "what is in the picture?", max_new_tokens=3)
    assert len(ex.tokens) == 3
    assert ex.pictures is not None
    np.testing.assert_allclose(ex.pictures[0].numpy(), picture, atol=1)
    assert ex.image_scores[0].shape == (3, 12, 12)
    said = explain_generation(captioner, picture, ex.prompt, answer=ex.answer)
    torch.testing.assert_close(said.image_scores[0], ex.image_scores[0])
    assert said.sequence == ex.sequence
    other = explain_generation(captioner, picture, ex.prompt, answer="a tavel", against="murlo", positions=-1)
    assert other.question().startswith("tavel ")
    assert " against murlo " in other.question()


@pytest.mark.parametrize("beams", [1, 2])
def test_the_answer_is_streamed(captioner: VisionLanguageModel, monkeypatch: pytest.MonkeyPatch, beams: int) -> None:
    """Behind the prompt, as Hugging Face's own streamers have it; whole where the model searches by beams."""
    put: list[list[int]] = []
    streamer = SimpleNamespace(put=lambda tokens: put.append(tokens.flatten().tolist()), end=lambda: put.append([]))
    monkeypatch.setattr(captioner.module.generation_config, "num_beams", beams)
    picture = np.full((96, 96, 3), 128, dtype=np.uint8)
    ex = explain_generation(captioner, picture, "is there a tavel?", method="raw", streamer=streamer, max_new_tokens=3)
    prompt, *answer, end = put
    assert end == []
    assert len(prompt) == ex.roles.index("answer")
    assert len(answer) == (3 if beams == 1 else 1)
    found = captioner.tokenizer.decode([token for part in answer for token in part], skip_special_tokens=True)
    assert found.strip() == ex.answer


def test_words_that_the_tokenizer_does_not_know_are_refused(captioner: VisionLanguageModel) -> None:
    picture = np.zeros((96, 96, 3), dtype=np.uint8)
    with pytest.raises(TextError, match="cannot join the answer 'a zebra'"):
        explain_generation(captioner, picture, "what is in the picture?", answer="a zebra")
    with pytest.raises(TextError, match="no token for the word 'zebra'"):
        explain_generation(captioner, picture, "what is in the picture?", answer="a tavel", against="zebra")
    with pytest.raises(TextError, match="is empty"):
        explain_generation(captioner, picture, "what is in the picture?", answer=" ")
    with pytest.raises(OptionError, match="answer=3 counts tokens .* give the answer's words"):
        explain_generation(captioner, picture, "what is in the picture?", answer=3)
    with pytest.raises(OptionError, match="an empty list"):
        explain_generation(captioner, [], "what is in the picture?")


@pytest.mark.parametrize("gradient", ["full", "libra"])
def test_fused_sweeps_give_the_map_of_the_blocks(
    llava: tuple[nn.Module, dict[str, Tensor]], gradient: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, inputs = llava
    blocks = explain_generation(model, inputs=inputs, answer=ANSWER, gradient=gradient)
    taken: list[bool] = []
    plain = differentiate.attention_transposed
    monkeypatch.setattr(
        differentiate, "attention_transposed", lambda call, *rest: taken.append(call.causal) or plain(call, *rest)
    )
    monkeypatch.setattr(differentiate, "FROM_KEYS", 4)
    monkeypatch.setattr(differentiate, "FROM_KEYS_CAUSAL", 4)
    sweeps = explain_generation(model, inputs=inputs, answer=ANSWER, gradient=gradient)
    assert any(taken) == (gradient == "full")  # constant causal attention is quicker by blocks
    assert not all(taken)
    size = float(blocks.image_scores[0].abs().max())
    torch.testing.assert_close(sweeps.image_scores[0], blocks.image_scores[0], rtol=0, atol=1e-5 * size)
    torch.testing.assert_close(sweeps.text_scores, blocks.text_scores, rtol=0, atol=1e-5 * size)
