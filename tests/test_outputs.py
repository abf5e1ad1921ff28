"""Models whose numbers are no logits: what they are taken for, and what every part makes of them."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import reference
import torch
from families import FAMILIES
from torch import Tensor, nn

import vitrail
from vitrail.errors import ObjectiveError, OptionError, OutputError, OutputKindError, TargetError, VitrailError
from vitrail.evaluate import evaluate
from vitrail.evaluate.cost import cost_of
from vitrail.guidance.detail import detail
from vitrail.outputs import KINDS, Output, recognise
from vitrail.provenance import from_metadata


class Scaled(nn.Module):
    """A ViT whose logits have the mean zero, as training leaves them, and tell its classes well apart."""

    def __init__(self, vit: nn.Module, factor: float = 3.0) -> None:
        super().__init__()
        self.vit, self.factor = vit, factor

    def forward(self, images: Tensor) -> Tensor:
        logits = self.factor * self.vit(images)
        return logits - logits.mean(dim=1, keepdim=True)


class Last(nn.Module):
    """A model that ends in something else than its logits."""

    def __init__(self, body: nn.Module, end) -> None:
        super().__init__()
        self.body, self.end = body, end

    def forward(self, images: Tensor) -> Tensor:
        return self.end(self.body(images))


# How a model ends and what is declared; then, from its numbers o, the logits and the probabilities, by hand.
ENDS = {
    "logits": (nn.Identity(), None, lambda o: o, lambda o: o.exp() / o.exp().sum(1, keepdim=True)),
    "multilabel": (nn.Identity(), "multilabel", lambda o: o, lambda o: 1 / (1 + (-o).exp())),
    "multilabel, sigmoids": (nn.Sigmoid(), "multilabel", lambda o: (o / (1 - o)).log(), lambda o: o),
    "softmax": (nn.Softmax(-1), None, lambda o: o.log() - o.log().mean(1, keepdim=True), lambda o: o),
    "sigmoids": (nn.Sigmoid(), None, lambda o: (o / (1 - o)).log(), lambda o: o),
    "log_softmax": (nn.LogSoftmax(-1), None, lambda o: o - o.mean(1, keepdim=True), torch.exp),
    "log_sigmoid": (nn.LogSigmoid(), None, lambda o: o - (1 - o.exp()).log(), torch.exp),
    "scores": (nn.Identity(), "scores", lambda o: o, None),
    "embedding": (nn.Identity(), "embedding", lambda o: o, None),
}
KIND = {"sigmoids": "probabilities", "softmax": "probabilities", "log_softmax": "log_probabilities"}
KIND |= {"log_sigmoid": "log_probabilities", "multilabel, sigmoids": "multilabel"}

# From logits l and probabilities p, for the target t and the class a: one number for each image.
OBJECTIVES = {
    "logit": lambda logits, p, t, a: t(logits),
    "normalized_difference": lambda logits, p, t, a: (t(logits) - a(logits)) / t(logits),
    "difference": lambda logits, p, t, a: t(logits) - a(logits),
    "ratio": lambda logits, p, t, a: t(logits) / a(logits),
    "probability": lambda logits, p, t, a: t(p),
    "log_probability": lambda logits, p, t, a: t(p).log(),
}
COMPARING = ("normalized_difference", "difference", "ratio")
MEANINGLESS = ("normalized_difference", "ratio", "probability", "log_probability")  # for scores and embeddings
EXCLUSIVE = ("softmax", "log_softmax")  # classes that rule each other out, and so compete
READS = ("timm_vit", "timm_vit_average")


def model_of(end: str, family: str = "timm_vit", dtype: torch.dtype = torch.float64) -> vitrail.VisionModel:
    ending, declared, *_ = ENDS[end]
    return vitrail.wrap(Last(Scaled(FAMILIES[family].build()), ending).eval().to(dtype), output=declared)


@pytest.mark.parametrize("family", READS)
@pytest.mark.parametrize("end", ENDS)
def test_every_objective_of_every_kind_is_its_formula(end: str, family: str):
    model, images = model_of(end, family), FAMILIES[family].images(batch=2).double()
    _, _, logits_of, shares_of = ENDS[end]
    known = FAMILIES[family]
    seen = reference.capture(model.module, images)
    logits = logits_of(seen.logits)
    shares = None if shares_of is None else shares_of(seen.logits)
    first, second = logits.topk(2, dim=1).indices.unbind(1)
    row = reference.readout(known.readout, known.prefix, known.grid[0] * known.grid[1], known.tokens)
    for name, formula in OBJECTIVES.items():
        against = second.tolist() if name in COMPARING else None
        ask = {"target": first.tolist(), "against": against, "objective": name, "gradient": "full"}
        if shares is None and name in MEANINGLESS:
            with pytest.raises(OutputKindError, match=f"of the kind {end}, for which"):
                vitrail.explain(model, images, **ask)
            continue
        ex = vitrail.explain(model, images, **ask)
        of_target, of_other = (lambda x, i=index: x.gather(1, i[:, None])[:, 0] for index in (first, second))
        scalar = formula(logits, shares, of_target, of_other).sum()
        maps = [attention.detach() for attention in seen.maps]
        expected = reference.complete(maps, seen.gradients(scalar), known.prefix, row)
        expected = expected.reshape(2, *known.grid)
        torch.testing.assert_close(ex.scores, expected, rtol=1e-7, atol=1e-9 * expected.abs().max().item())
        assert ex.metadata["output"] == KIND.get(end, end)
        assert ex.metadata["probability"] == (None if shares is None else model.kind_for(images).link)
        torch.testing.assert_close(ex.logits, logits.detach())
        if shares is not None:
            assert ex.probability(int(first[0])) == pytest.approx(shares[0, first[0]].item(), rel=1e-9)


@pytest.mark.parametrize("end", ["softmax", "log_softmax", "sigmoids", "log_sigmoid", "multilabel, sigmoids"])
def test_a_model_without_its_last_step_has_the_same_maps(end: str):
    """What a softmax or sigmoids add is taken off again: in float32, where 99.9 % was printed as 0.3 %."""
    images = FAMILIES["timm_vit"].images(batch=3)
    plain, model = model_of("logits", dtype=torch.float32), model_of(end, dtype=torch.float32)
    for ask in ({"compete": end in EXCLUSIVE}, {"against": [0, 0, 1]}, {"gradient": "full"}):
        expected = vitrail.explain(plain, images, [2, 3, 4], **ask)
        found = vitrail.explain(model, images, [2, 3, 4], **ask)
        torch.testing.assert_close(found.scores, expected.scores, rtol=1e-3, atol=1e-4 * expected.scores.abs().max())
    if end in EXCLUSIVE:
        assert found.question() == expected.question()


class TestRecognition:
    @pytest.mark.parametrize(
        ("numbers", "kind", "link"),
        [
            ([[0.2, 0.8], [0.5, 0.5]], "probabilities", "softmax"),
            ([[math.log(0.2), math.log(0.8)], [math.log(0.5)] * 2], "log_probabilities", "softmax"),
            ([[0.2, 0.8], [0.5, 0.6]], "logits", "softmax"),
            ([[0.98, 0.98, 0.98], [0.9, 0.1, 0.5]], "logits", "softmax"),
            ([[3.0, -3.0], [0.0, 1.0]], "logits", "softmax"),
            ([[0.7], [0.1]], "scores", None),
        ],
    )
    def test_by_values(self, numbers, kind, link):
        found = recognise(torch.tensor(numbers), None, "m")
        assert (found.kind, found.link) == (kind, link)

    def test_a_single_sigmoid_is_a_probability_and_a_single_number_a_score(self):
        single = nn.Sequential(FAMILIES["timm_vit"].build(), nn.Linear(7, 1))
        images = FAMILIES["timm_vit"].images(batch=1)
        raw = single(images).item()
        assert vitrail.explain(single.eval(), images).question() == f"class 0 = {raw:.3g}"
        ex = vitrail.explain(nn.Sequential(single, nn.Sigmoid()).eval(), images)
        assert ex.probability(0) == pytest.approx(1 / (1 + math.exp(-raw)), rel=1e-4)
        ex = vitrail.explain(vitrail.wrap(single.eval(), output="multilabel"), images, objective="probability")
        assert ex.question() == f"class 0 {100 / (1 + math.exp(-raw)):.1f} %"

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_a_softmax_below_other_numbers_is_found_by_its_graph(self, dtype):
        body = FAMILIES["timm_vit"].build()
        mixed = Last(body, lambda o: {"logits": o.softmax(-1).view(len(o), -1).float().clone()}).eval().to(dtype)
        model = vitrail.wrap(mixed)
        assert model.kind_for(FAMILIES["timm_vit"].images(batch=1)).kind == "probabilities"

    def test_an_ensemble_of_softmaxes_is_found_by_its_values(self):
        body = FAMILIES["timm_vit"].build()
        mean = Last(body, lambda o: (o.softmax(-1) + (2 * o).softmax(-1)) / 2).eval()
        images = FAMILIES["timm_vit"].images(batch=2)
        ex = vitrail.explain(mean, images)
        assert ex.metadata["output"] == "probabilities"
        shares = mean(images)
        assert ex.probability(int(ex.target[1]), 1) == pytest.approx(shares[1].max().item(), rel=1e-5)

    @pytest.mark.parametrize(
        ("end", "declared", "message"),
        [
            ("softmax", "logits", "ends in a softmax or a sigmoid"),
            ("softmax", "multilabel", "classes exclude each other"),
            ("sigmoids", "logits", "ends in a softmax or a sigmoid"),
            ("logits", "probabilities", "between 0 and 1"),
            ("logits", "log_probabilities", "not above 0"),
        ],
    )
    def test_what_cannot_be_true_is_refused(self, end, declared, message):
        model = replace(model_of(end), output=declared)
        with pytest.raises(OutputError, match=message):
            vitrail.explain(model, FAMILIES["timm_vit"].images(batch=1))

    def test_one_number_has_no_softmax(self):
        single = nn.Sequential(FAMILIES["timm_vit"].build(), nn.Linear(7, 1)).eval()
        with pytest.raises(OutputError, match="softmax is always 1"):
            vitrail.explain(vitrail.wrap(single, output="logits"), FAMILIES["timm_vit"].images(batch=1))

    def test_an_unknown_kind_is_refused_with_the_list(self):
        for give in (lambda: vitrail.wrap(nn.Identity(), output="logit"), lambda: vitrail.load("x/y", output="p")):
            with pytest.raises(OptionError, match=", ".join(KINDS)):
                give()

    def test_a_model_without_head_gives_an_embedding(self):
        import timm

        vit = timm.create_model("test_vit", num_classes=0).eval()
        with pytest.raises(TargetError, match="none of which is a predicted class"):
            vitrail.explain(vit, torch.randn(1, 3, 160, 160))
        ex = vitrail.explain(vit, torch.randn(1, 3, 160, 160), target=5)
        assert ex.metadata["output"] == "embedding"
        assert ex.question().startswith("class 5 = ")
        assert vitrail.explain(vit, torch.randn(1, 3, 160, 160), method="raw").metadata["output"] == "embedding"

    @pytest.mark.parametrize(
        ("problem", "kind"), [("multi_label_classification", "multilabel"), ("regression", "scores")]
    )
    def test_hugging_face_says_what_it_was_trained_for(self, problem, kind):
        from transformers import ViTConfig, ViTForImageClassification

        size = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 8}
        config = ViTConfig(image_size=32, patch_size=16, num_labels=3, problem_type=problem, **size)
        model = vitrail.wrap(ViTForImageClassification(config).eval())
        assert vitrail.explain(model, torch.randn(1, 3, 32, 32), target=1).metadata["output"] == kind


@pytest.mark.parametrize("p", [0.0, 1.0, 1e-30])
def test_probabilities_at_their_ends_stay_finite(p: float):
    for link in ("softmax", "sigmoid"):
        numbers = torch.tensor([[p, 1 - p]], requires_grad=True)
        logits = Output("probabilities", "probabilities", link).logits(numbers)
        assert bool(logits.isfinite().all())
        logits[0, 0].backward()
        assert bool(numbers.grad.isfinite().all())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from PIL import Image

    root = tmp_path_factory.mktemp("pictures")
    for number in range(2):
        pixels = np.random.default_rng(number).integers(0, 255, (32, 32, 3), dtype=np.uint8)
        (root / f"{number}").mkdir()
        Image.fromarray(pixels).save(root / f"{number}" / "one.png")
    return root


def small(end: nn.Module, output: str | None = None) -> vitrail.VisionModel:
    family = FAMILIES["timm_vit"]
    module = nn.Sequential(family.build(), end).eval()
    return vitrail.wrap(module, preprocess=vitrail.Preprocess(family.image_size), output=output)


WATCHING = ("insertion", "deletion", "saco", "pixel_flipping", "region_perturbation", "log_odds", "average_drop")
WATCHING += ("mif_lif", "perturbation", "stitched_perturbation")


class TestEvaluation:
    @pytest.mark.parametrize("protocol", WATCHING)
    def test_what_watches_probabilities_refuses_scores_before_the_first_image(self, protocol):
        for classes in (1, 3):
            with pytest.raises(VitrailError) as refused:
                cost_of(protocol, {}, output=Output("scores", link=None), classes=classes)
            assert isinstance(refused.value, OutputKindError | TargetError)

    @pytest.mark.parametrize("protocol", ["insertion", "deletion", "saco"])
    def test_one_number_is_refused_or_measured_as_it_is(self, protocol, folder, tmp_path):
        model = small(nn.Linear(7, 1))
        with pytest.raises(OutputKindError, match='score="output"'):
            evaluate(model, folder, "complete", [protocol], output=tmp_path / "refused")
        options = {protocol: {"score": "output", **({} if protocol == "saco" else {"step": 256})}}
        done = evaluate(
            model, folder, "complete", [protocol], protocol_options=options, output=tmp_path / "run", target="predicted"
        )
        assert done.measured == 2
        from vitrail.evaluate.run_reader import read_run

        rows = read_run(tmp_path / "run").rows.to_pylist()
        assert {row["target"] for row in rows} == {0}
        if protocol != "saco":
            (first, *_), ends = [row["value"] for row in rows if row["image"] == 0], rows[-1]["value"]
            assert not {first, ends} <= {0.0, 1.0}
            manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
            assert manifest["model"]["output"] == "scores"

    def test_the_raw_number_is_what_the_curve_holds(self, folder, tmp_path):
        """The deletion curve begins with the model's own answer to the picture, bit for bit."""
        from PIL import Image

        from vitrail.evaluate.run_reader import read_run

        model = small(nn.Linear(7, 1))
        options = {"deletion": {"score": "output", "step": 512}}
        evaluate(model, folder, "complete", ["deletion"], protocol_options=options, output=tmp_path, target="predicted")
        rows = [row for row in read_run(tmp_path).rows.to_pylist() if row["step"] == 0 and row["image"] == 0]
        picture = model.preprocess(Image.open(folder / "0" / "one.png").convert("RGB"))
        with torch.no_grad():
            expected = float(model.module(picture[None]))
        assert rows[0]["value"] == pytest.approx(expected, rel=1e-5)

    def test_labels_that_do_not_exclude_each_other_are_watched_one_by_one(self):
        from vitrail.metrics.faithfulness.perturbation import outcome

        multilabel = Output("multilabel", link="sigmoid")
        logits, original = torch.tensor([[2.0, 3.0, -1.0]]).double(), torch.tensor([[4.0, 4.0, 4.0]]).double()
        found = outcome(logits, torch.tensor([0]), original, multilabel)
        assert found.hit.item() == 1  # 88 % is present, though another label is stronger
        assert outcome(logits, torch.tensor([2]), original, multilabel).hit.item() == 0
        expected = 1 / (1 + math.exp(-3)) - 1 / (1 + math.exp(-4))
        assert found.probability_change.item() == pytest.approx(expected, abs=1e-12)


class TestEverywhere:
    def test_three_sigmoids_are_98_percent_each(self):
        ex = vitrail.Explanation(
            scores=torch.zeros(1, 3, 2, 2),
            logits=torch.tensor([[3.89, 3.89, 3.89]]),
            target=torch.tensor([[0, 1, 2]]),
            method="complete",
            objective="logit",
            provenance=from_metadata({"output": "multilabel", "probability": "sigmoid"}),
        )
        assert [ex.question(0, target) for target in range(3)] == [f"class {n} 98.0 %" for n in range(3)]

    def test_the_kind_is_in_the_file_and_comes_back(self, tmp_path):
        images = FAMILIES["timm_vit"].images(batch=1)
        ex = vitrail.explain(model_of("multilabel", dtype=torch.float32), images)
        again = vitrail.Explanation.load(ex.save(tmp_path / "one.safetensors"))
        assert again.output == ex.output == Output("multilabel", link="sigmoid")
        assert again.question() == ex.question()

    def test_detail_leaves_out_the_losses_that_mean_nothing(self):
        images = FAMILIES["timm_vit"].images(batch=1)
        found = detail(model_of("scores", dtype=torch.float32), images, 0, [1])
        assert found.losses == ("logit", "difference")
        assert found.value("difference", 0, 1) == pytest.approx(float(found.logits[0] - found.logits[1]))
        with pytest.raises(OutputKindError, match="ratio"):
            detail(model_of("scores"), images, 0, [1], losses=["ratio"])
        with pytest.raises(TargetError, match="none of which is a predicted class"):
            detail(model_of("scores"), images)

    def test_classes_are_compared_by_their_difference(self):
        images = FAMILIES["timm_vit"].images(batch=1)
        for ask in (vitrail.explain, vitrail.compare):
            extra = {"methods": "complete"} if ask is vitrail.compare else {}
            assert ask(model_of("scores"), images, 0, against=1, **extra).objective == "difference"
            assert ask(model_of("softmax"), images, 0, against=1, **extra).objective == "difference"

    def test_a_comparison_says_sigmoids(self):
        images = FAMILIES["timm_vit"].images(batch=1)
        found = vitrail.compare(model_of("multilabel", dtype=torch.float32), images, 2, methods="complete,gae")
        expected = 1 / (1 + math.exp(-float(found.logits[2])))
        assert found.record()["questions"][0]["target_probability"] == pytest.approx(expected, rel=1e-5)
        assert found.record()["output"] == "multilabel"

    def test_no_guide_for_scores(self):
        images = FAMILIES["timm_vit"].images(batch=1)
        with pytest.raises(OutputKindError, match="a guide"):
            vitrail.explain(model_of("scores"), images, 0, guide="auto")

    def test_transfer_tells_scores_and_probabilities_apart(self):
        from vitrail.counterfactual import transfer
        from vitrail.plotting.transfer import standing

        images = FAMILIES["timm_vit"].images(batch=1)
        found = transfer(model_of("scores", dtype=torch.float32), images, 0, 1, steps=1)
        assert standing(found, 0, 0).startswith("score ")
        assert found.metadata["output"] == "scores"
        found = transfer(model_of("softmax", dtype=torch.float32), images, 0, 1, steps=1)
        share = model_of("softmax", dtype=torch.float32).module(images)[0, 0]
        assert found.probability(0, 0) == pytest.approx(share.item(), rel=1e-4)

    def test_rewriting_goes_by_the_models_own_probability(self):
        from PIL import Image

        from vitrail.counterfactual import rewrite

        picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8))
        with pytest.raises(OutputKindError, match="rewriting"):
            rewrite(small(nn.Identity(), "scores"), picture, target=1)
        model = small(nn.Identity(), "multilabel")
        start = torch.sigmoid(model.logits(model.preprocess(picture)[None]))[0]
        goal = int(start.argmin())
        found = rewrite(model, picture, target=goal, until=0.6, method=None)
        assert found.curves[0][1] == pytest.approx(start[goal].item(), rel=1e-4)
        assert found.reached

    def test_a_page_shows_scores_as_numbers(self):
        from vitrail.app.page import draw_classes
        from vitrail.app.question import ViewContext

        class Scored(ViewContext):
            output, target, against = Output("scores", link=None), 0, None
            logits = torch.tensor([4.0, 2.5])

            def class_name(self, index):
                return f"number {index}"

        html = draw_classes(object.__new__(Scored))
        assert "= 2.5" in html
        assert "%" not in html

    def test_a_page_of_one_number_says_that_there_is_no_rival(self):
        from vitrail.app.question import ViewContext

        class Scored(ViewContext):
            output, target, against, logits = Output("scores", link=None), 0, None, torch.tensor([4.0])

        with pytest.raises(TargetError, match="no other class"):
            _ = object.__new__(Scored).rival

    def test_the_command_takes_the_kind(self, tmp_path):
        from PIL import Image
        from typer.testing import CliRunner

        from vitrail.bestiary import render, sample_scene
        from vitrail.cli import app

        Image.fromarray(render(sample_scene("single", seed=3)).image).save(tmp_path / "one.png")
        command = ["explain", str(tmp_path / "one.png"), "--model", "bestiary", "--json", "-o", str(tmp_path / "out")]
        command += ["--format", "safetensors"]
        row = json.loads(CliRunner().invoke(app, [*command, "--output-kind", "multilabel"]).stdout)["results"][0]
        assert row["output"] == "multilabel"
        assert row["target_probability"] == pytest.approx(1 / (1 + math.exp(-row["target_logit"])), rel=1e-5)
        row = json.loads(CliRunner().invoke(app, [*command, "--output-kind", "scores", "-t", "0"]).stdout)["results"][0]
        assert (row["output"], row["target_probability"]) == ("scores", None)
        command = ["detail", *command[1:], "--output-kind", "scores", "-t", "0", "--against", "1"]
        found = json.loads(CliRunner().invoke(app, command).stdout)
        assert found["losses"] == ["logit", "difference"]
        assert set(found["results"][0]["losses"]) == {"logit", "difference"}


def test_a_method_that_asks_about_probabilities_asks_scores_themselves():
    images = FAMILIES["timm_vit"].images(batch=1)
    assert vitrail.explain(model_of("scores"), images, 0, method="tis", masks=2).objective == "logit"
    assert vitrail.explain(model_of("softmax"), images, 0, method="tis", masks=2).objective == "probability"
    with pytest.raises(ObjectiveError):
        vitrail.explain(model_of("scores"), images, 0, method="tis", masks=2, objective="probability")
