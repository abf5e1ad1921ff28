"""`explain_text` on tiny text classifiers: the float64 reference, padding, questions, and what it refuses."""

import copy
from typing import Any

import pytest
import reference
import texts
import torch
from torch import Tensor, nn

import vitrail
from vitrail.errors import (
    LayoutError,
    NoAttentionError,
    NoSignalError,
    OptionError,
    SameClassError,
    TargetCountError,
    TextError,
    TrainingModeError,
    UnknownClassError,
    UnsupportedAttentionError,
    UnsupportedOperationError,
)
from vitrail.methods import METHODS

SERVED = [info.name for info in vitrail.list_methods() if info.text]


class OneText(nn.Module):
    """A classifier with one text, in the form that `reference.capture` calls."""

    def __init__(self, module: nn.Module, inputs: dict[str, Tensor]):
        super().__init__()
        self.module, self.inputs = module, inputs

    def forward(self, ignored: Tensor) -> Tensor:
        output = self.module(**self.inputs)
        return output if isinstance(output, Tensor) else output.logits


def expected(family: texts.Family, text: str, target: int, gradient: str = "full") -> dict[str, Tensor]:
    """Every method's scores of one text by the reference, in float64."""
    found = family.tokenizer()(text, return_tensors="pt", return_token_type_ids=False)
    module = copy.deepcopy(family.build())
    captured = reference.capture(OneText(module, dict(found)), torch.zeros(1), gradient)
    g = captured.gradients(captured.logits[0, target])
    a = [m.detach() for m in captured.maps]
    row = torch.zeros(a[0].shape[-1], dtype=torch.float64)
    row[{"first": slice(0, 1), "last": slice(-1, None), "mean": slice(None)}[family.reads]] = 1
    row = row / row.sum()
    return {
        "gae": reference.gae(a, g, 0, row)[0],
        "complete": reference.complete(a, g, 0, row)[0],
        "absolute": reference.absolute(a, g, 0, row)[0],
        "gmar_l1": reference.gmar(a, g, 0, row, 1)[0],
        "gmar_l2": reference.gmar(a, g, 0, row, 2)[0],
        "raw": reference.raw(a, 0, row)[0],
        "rollout": reference.rollout(a, 0, row)[0],
        "centred": reference.centred(a, g, 0, row)[0],
    }


def relative(ours: Tensor, theirs: Tensor) -> float:
    return float((ours.double() - theirs).abs().max() / theirs.abs().max())


@pytest.mark.parametrize("family", texts.FAMILIES)
def test_every_method_follows_the_reference(family: str):
    known = texts.FAMILIES[family]
    module, tokenizer = known.build(), known.tokenizer()
    theirs = expected(known, texts.TEXTS[0], 1)
    assert set(SERVED) <= set(theirs)
    for method in SERVED:
        ours = vitrail.explain_text(module, tokenizer, texts.TEXTS[0], target=1, method=method)
        assert relative(ours.of(), theirs[method]) < 2e-5, method
    centred = vitrail.explain_text(module, tokenizer, texts.TEXTS[0], target=1, centred=True)
    assert relative(centred.of(), theirs["centred"]) < 2e-5


@pytest.mark.parametrize("gradient", ["leaf", "libra"])
@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_gradient_modes_follow_the_reference(family: str, gradient: str):
    known = texts.FAMILIES[family]
    theirs = expected(known, texts.TEXTS[2], 0, gradient)
    for method in ("gae", "complete", "gmar_l2"):
        ours = vitrail.explain_text(
            known.build(), known.tokenizer(), texts.TEXTS[2], 0, method=method, gradient=gradient
        )
        assert relative(ours.of(), theirs[method]) < 2e-5


@pytest.mark.parametrize("family", texts.FAMILIES)
def test_a_padded_batch_equals_single_texts(family: str):
    known = texts.FAMILIES[family]
    # In float64: float32 passes of different shapes part by 2e-5 on some processors, and would hide a leak as large.
    module, tokenizer = copy.deepcopy(known.build()).double(), known.tokenizer()
    for method in SERVED if family == "bert" else ["complete", "gmar_l2"]:
        together = vitrail.explain_text(module, tokenizer, texts.TEXTS, target=[1, 0, 2], method=method)
        lengths = [len(tokens) for tokens in together.tokens]
        assert len(set(lengths)) == 3
        for number, (text, target) in enumerate(zip(texts.TEXTS, [1, 0, 2], strict=True)):
            alone = vitrail.explain_text(module, tokenizer, text, target=target, method=method)
            assert relative(together.of(number), alone.of()) < 1e-11, method
            assert relative(together.logits[number], alone.logits[0]) < 1e-11
            assert not together.scores[number, lengths[number] :].any()


def test_batch_size_changes_nothing():
    known = texts.FAMILIES["bert"]
    module, tokenizer = known.build(), known.tokenizer()
    at_once = vitrail.explain_text(module, tokenizer, texts.TEXTS, target=1)
    by_two = vitrail.explain_text(module, tokenizer, texts.TEXTS, target=1, batch_size=2)
    assert at_once.scores.shape == by_two.scores.shape
    assert relative(by_two.scores, at_once.scores.double()) < 1e-5


def test_several_targets_and_names():
    known = texts.FAMILIES["bert"]
    module, tokenizer = known.build(), known.tokenizer()
    both = vitrail.explain_text(module, tokenizer, texts.TEXTS[:2], target=[["positive", "neither"], [2, 0]])
    assert both.target.tolist() == [[1, 2], [2, 0]]
    assert both.scores.shape == (2, 2, len(both.tokens[0]))
    for number, column, target in [(0, 1, 2), (1, 0, "neither")]:
        alone = vitrail.explain_text(module, tokenizer, texts.TEXTS[number], target=target)
        assert relative(both.of(number, column), alone.of().double()) < 1e-5
    assert both.question(0, 1).startswith("neither ")


def test_against_and_objectives():
    known = texts.FAMILIES["bert"]
    module, tokenizer = known.build().double(), known.tokenizer()
    asked: dict[str, Any] = {"target": "positive", "against": "negative", "objective": "difference"}
    ours = vitrail.explain_text(module, tokenizer, texts.TEXTS[0], start_layer=2, **asked)
    turned = vitrail.explain_text(
        module, tokenizer, texts.TEXTS[0], "negative", against="positive", objective="difference", start_layer=2
    )
    torch.testing.assert_close(ours.of(), -turned.of(), rtol=1e-10, atol=1e-8)  # exact where one layer takes part
    assert " against negative " in ours.question()
    mine = vitrail.explain_text(
        module, tokenizer, texts.TEXTS[0], start_layer=2, objective=lambda logits: logits[:, 1] - logits[:, 0]
    )
    torch.testing.assert_close(ours.of(), mine.of(), rtol=1e-10, atol=1e-8)


def test_the_predicted_class_is_explained_by_default():
    known = texts.FAMILIES["distilbert"]
    ours = vitrail.explain_text(known.build(), known.tokenizer(), texts.TEXTS)
    assert ours.target.tolist() == ours.logits.argmax(1).tolist()


def test_a_pair_of_texts_is_one_input():
    known = texts.FAMILIES["bert"]
    module, tokenizer = known.build(), known.tokenizer()
    ours = vitrail.explain_text(module, tokenizer, ("a good film", "not bad"), target=1)
    assert ours.tokens[0] == ("[CLS]", "a", "good", "film", "[SEP]", "not", "bad", "[SEP]")
    assert ours.spans[0][5:7] == ((1, 0, 3), (1, 4, 7))
    inputs = tokenizer("a good film", "not bad", return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(module(**inputs).logits, ours.logits, rtol=1e-5, atol=1e-6)
    assert [piece.text for piece in ours.pieces(special=False)] == [
        "a",
        " ",
        "good",
        " ",
        "film",
        "\n",
        "not",
        " ",
        "bad",
    ]


def test_the_readout_can_be_given():
    known = texts.FAMILIES["bert"]
    module, tokenizer = known.build(), known.tokenizer()
    first = vitrail.explain_text(module, tokenizer, texts.TEXTS[0], 1, method="raw")
    last = vitrail.explain_text(module, tokenizer, texts.TEXTS[0], 1, method="raw", readout="last")
    assert not torch.allclose(first.of(), last.of(), rtol=0.01)
    assert (first.answer.metadata["readout"], last.answer.metadata["readout"]) == ("first token", "last token")
    with pytest.raises(LayoutError, match="readout='third' is none of first, last, mean"):
        vitrail.explain_text(module, tokenizer, texts.TEXTS[0], readout="third")


def test_a_long_text_is_cut_and_says_so():
    module, tokenizer = texts._hugging_face("Bert", **texts.SIZE, max_position_embeddings=6), texts.tokenizer()
    ours = vitrail.explain_text(module, tokenizer, "a good film is not bad", target=1)
    assert ours.tokens[0] == ("[CLS]", "a", "good", "film", "is", "[SEP]")
    assert ours.notes() == ["The text is longer than the model takes: its last 2 tokens were cut off."]


def test_the_model_is_left_as_it_was():
    known = texts.FAMILIES["bert"]
    module = known.build()
    before = {name: x.clone() for name, x in module.state_dict().items()}
    wants = [p.requires_grad for p in module.parameters()]
    vitrail.explain_text(module, known.tokenizer(), texts.TEXTS)
    with pytest.raises(UnknownClassError):
        vitrail.explain_text(module, known.tokenizer(), texts.TEXTS, target="happy")
    assert all(torch.equal(before[name], x) for name, x in module.state_dict().items())
    assert [p.requires_grad for p in module.parameters()] == wants
    assert all(p.grad is None for p in module.parameters())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())


def test_questions_that_cannot_be_asked(monkeypatch: pytest.MonkeyPatch):
    known = texts.FAMILIES["bert"]
    module, tokenizer = known.build(), known.tokenizer()

    def ask(asked: Any = "a good film", **question: Any) -> None:
        vitrail.explain_text(module, tokenizer, asked, **question)

    with pytest.raises(TextError, match="text 1: the text is empty"):
        ask(["a", " "])
    with pytest.raises(TextError, match="the list holds no text"):
        ask([])
    with pytest.raises(TargetCountError, match="target lists 2 for 1 image"):
        ask(target=[0, 1])
    with pytest.raises(SameClassError, match=r"negative \(\d\) is held against itself: give two different classes"):
        ask(target="negative", against="negative")
    chosen = int(vitrail.explain_text(module, tokenizer, "a good film").answer.target[0])
    with pytest.raises(SameClassError, match=r"\(the predicted class\) is held against itself"):
        ask(against=chosen)
    with pytest.raises(OptionError, match="rollout is the same for every class"):
        ask(method="rollout", against="negative")
    with pytest.raises(OptionError, match="gradient='libra' changes nothing for raw"):
        ask(method="raw", gradient="libra")
    with pytest.raises(OptionError, match="centred=True is not defined for gmar_l2"):
        ask(method="gmar_l2", centred=True)
    with pytest.raises(OptionError, match="batch_size=0 must be 1 or more"):
        ask(batch_size=0)
    with pytest.raises(OptionError, match="start_layer=3, but the model calls attention 3 times"):
        ask(start_layer=3)
    with pytest.raises(OptionError, match="grad_at='last_ln' is for pictures"):
        ask(method="gmar_l2", grad_at="last_ln")
    with pytest.raises(OptionError, match="padding's too: explain these texts one by one"):
        ask(texts.TEXTS, method="gmar_l2", discard_ratio=0.5)
    with pytest.raises(NoSignalError, match="all tokens of text 0 have the same score"):
        ask(objective=lambda logits: logits.sum(1) * 0)
    monkeypatch.setitem(
        METHODS, "pictures", METHODS["raw"].__class__(**{**vars(METHODS["raw"]), "name": "pictures", "text": False})
    )
    with pytest.raises(
        UnsupportedOperationError, match="'pictures' is made for pictures; for text there are raw, rollout"
    ):
        ask(method="pictures")
    with pytest.raises(TrainingModeError, match=r"bert\.embeddings\.dropout"):
        vitrail.explain_text(module.train(), tokenizer, "a good film")


class NoAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(len(texts.VOCABULARY), 4), nn.Linear(4, 2)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.head(self.embed(input_ids).mean(1))


class Middle(texts.Mean):
    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.head(self.encoder(self.embed(input_ids))[:, 1:3].mean(1))


class Pooled(texts.Mean):
    def __init__(self) -> None:
        super().__init__()
        self.pool, self.query = nn.MultiheadAttention(16, 2, batch_first=True), nn.Parameter(torch.zeros(1, 1, 16))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = self.encoder(self.embed(input_ids))
        return self.head(self.pool(self.query.expand(len(hidden), -1, -1), hidden, hidden)[0][:, 0])


def test_models_that_cannot_be_explained():
    tokenizer = texts.tokenizer()
    with pytest.raises(NoAttentionError, match="no attention reached"):
        vitrail.explain_text(NoAttention().eval(), tokenizer, "a good film")
    with pytest.raises(LayoutError, match=r"reads the tokens \[1, 2\] of 6, neither the first"):
        vitrail.explain_text(texts.lively(Middle()), tokenizer, "a good film")
    with pytest.raises(UnsupportedAttentionError, match="attention 2 of 3 lets 1 queries see 6 keys"):
        vitrail.explain_text(texts.lively(Pooled()), tokenizer, "a good film")


class TestOutputsThatAreNoLogits:
    """A classifier of text gives what its config says, or what its numbers show."""

    def ask(self, end: nn.Module | None = None, **more: Any):
        module = texts.FAMILIES["bert"].build().double().eval()
        for name, value in more.pop("config", {}).items():
            setattr(module.config, name, value)
        if end is not None:
            module.classifier = nn.Sequential(module.classifier, end).double()
        return vitrail.explain_text(module, texts.tokenizer(), "A good film", more.pop("target", 1), **more)

    def test_a_regression_is_a_number(self):
        ex = self.ask(nn.Linear(3, 1), target=None, config={"id2label": {}}).answer
        assert ex.metadata["output"] == "scores"
        assert ex.question() == f"class 0 = {ex.logits.item():.3g}"

    def test_labels_that_do_not_exclude_each_other_are_sigmoids(self):
        plain = self.ask()
        found = self.ask(config={"problem_type": "multi_label_classification"}).answer
        assert found.probability(1) == pytest.approx(torch.sigmoid(plain.answer.logits[0, 1]).item())
        assert found.metadata["output"] == "multilabel"
        declared = self.ask(output="multilabel", objective="log_probability").answer
        assert declared.metadata["output"] == "multilabel"

    def test_a_softmax_is_taken_off_again(self):
        plain, found = (
            self.ask(objective="log_probability").answer,
            self.ask(nn.Softmax(-1), objective="log_probability").answer,
        )
        torch.testing.assert_close(found.scores, plain.scores)
        assert found.question() == plain.question()
        assert found.metadata["output"] == "probabilities"

    def test_scores_have_no_probability(self):
        from vitrail.errors import OutputKindError

        with pytest.raises(OutputKindError):
            self.ask(output="scores", objective="probability")
        assert self.ask(output="scores", against=0).answer.objective == "difference"
