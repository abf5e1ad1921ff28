"""The paper's figures by number: their photographs found by class, their verdicts, and the page of all of them."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import families
import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import vitrail
from vitrail.cli import app
from vitrail.errors import ExperimentError, UnknownExperimentError
from vitrail.experiments import EXPERIMENTS, Question, find_experiment
from vitrail.experiments.effects import Effects, cell_effects, ends_removed, on_object, signs
from vitrail.experiments.page import Drawn, draw_figure, questions, weights_of, write_page
from vitrail.experiments.paper import FIGURES, Verdict
from vitrail.experiments.photographs import BESTIARY, IMAGENET, Album, is_bestiary
from vitrail.inputs import prepare
from vitrail.plotting.canvas import blank

NAMES = ("zebra", "tusker", "African elephant", "tiger cat", "bull mastiff", "snail", "conch", "slug", "bald eagle")
NAMES += ("kite", "tabby", "Egyptian cat", "Indian elephant", "boxer")


@pytest.fixture(scope="module")
def model() -> vitrail.VisionModel:
    family = families.FAMILIES["timm_vit"]
    preprocess = vitrail.Preprocess(size=family.image_size, mean=(0.5,) * 3, std=(0.5,) * 3)
    return vitrail.wrap(
        _with_classes(family.build()),
        preprocess=preprocess,
        class_names=NAMES,
        logits_from=lambda output: output + 50,  # above zero, so that quotients of them mean something
    )


def _with_classes(module: Any) -> Any:
    module.reset_classifier(len(NAMES))
    return module.eval()


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    folder, generator = tmp_path_factory.mktemp("photos"), np.random.default_rng(2)
    paths = tuple(folder / f"{number}.png" for number in range(8))
    for path in paths:
        Image.fromarray(generator.integers(0, 256, (50, 60, 3), dtype=np.uint8)).save(path)
    return paths


def album_of(model: vitrail.VisionModel, photos: tuple[Path, ...], *shown: dict[str, float]) -> Album:
    """Photographs of which the model is said to think so."""
    rows = torch.full((len(shown), len(NAMES)), 1e-4)
    for row, said in zip(rows, shown, strict=True):
        for name, probability in said.items():
            row[NAMES.index(name)] = probability
    kinds = {kind: tuple(map(NAMES.index, names)) for kind, names in IMAGENET.items()}
    return Album(model, kinds, photos[: len(shown)], rows, "here")


@pytest.fixture(scope="module")
def album(model, photos) -> Album:
    return album_of(
        model,
        photos,
        {"zebra": 0.9},
        {"African elephant": 0.6, "zebra": 0.2, "tusker": 0.1},
        {"bull mastiff": 0.5, "tiger cat": 0.1},
        {"snail": 0.9},
        {"conch": 0.9},
        {"slug": 0.8},
        {"bald eagle": 0.9},
        {"kite": 0.7},
    )


def test_every_figure_with_results_is_an_experiment_and_the_diagrams_are_none():
    assert list(FIGURES) == list(range(3, 14))
    assert sorted(number for one in EXPERIMENTS.values() for number in one.figures) == list(FIGURES)
    for number, figure in FIGURES.items():
        experiment = find_experiment(f"Figure {number}")
        assert experiment.name == figure.experiment
        assert number in experiment.figures
        kinds = {kind for ask in figure.asks for kind in (*ask.shows, *ask.targets, *ask.against)}
        assert kinds <= set(IMAGENET)
    assert set(IMAGENET) == set(BESTIARY)
    with pytest.raises(UnknownExperimentError, match="figures 1 and 2 are diagrams .* typical \\(fig9\\)"):
        find_experiment("fig2")
    with pytest.raises(UnknownExperimentError, match="the paper has figures 1 to 13, and fig14 is none"):
        find_experiment("fig14")


# -- photographs by class ---------------------------------------------------------------------------------------------


def test_a_photograph_is_found_by_what_the_model_sees(album, photos):
    choice = album.showing("snail")
    assert (choice.path, choice.classes) == (photos[3], {"snail": NAMES.index("snail")})
    assert choice.reason == "3.png: snail 90.0 %"
    pair = album.showing("elephant", "zebra")  # not the zebra alone, though it is surer
    assert pair.path == photos[1]
    assert pair.classes == {"elephant": NAMES.index("African elephant"), "zebra": 0}
    assert album.showing("cat", "dog").path == photos[2]
    pictures, why = album.typical("kite")
    assert [one.path for one in pictures.pictures] == [photos[7]]
    assert why == "kite: 7.png (predicted)"


def test_typical_pictures_are_those_that_the_model_is_sure_of(model, photos):
    rest = dict.fromkeys(("slug", "conch", "zebra", "snail"), 0.01)
    mixed = album_of(model, photos, {"kite": 0.3, **rest}, {"kite": 0.9, **rest}, {"kite": 0.6, **rest})
    assert [one.path for one in mixed.typical("kite")[0].pictures] == [photos[1], photos[2]]
    unsure = album_of(model, photos, {"kite": 0.2, **rest}, {"kite": 0.3, **rest})
    assert [one.path for one in unsure.typical("kite")[0].pictures] == [photos[1]]


def test_the_model_itself_classifies_and_names_are_no_help(model, photos, tmp_path):
    shares = vitrail.explain(model, [*photos], method="raw").logits.softmax(dim=1)
    misled = tmp_path / "zebra.png"
    misled.write_bytes(photos[0].read_bytes())
    (tmp_path / "text.png").write_text("no picture")
    looked: list[tuple[int, int]] = []
    found = Album.of(
        model,
        [misled, tmp_path / "text.png", *photos[1:]],
        "there",
        lambda _, done, total: looked.append((done, total)),
    )
    assert found.paths == (misled, *photos[1:])
    torch.testing.assert_close(found.probabilities, shares, atol=1e-5, rtol=1e-4)
    assert looked[-1] == (8, 9)  # one cannot be read


def test_what_is_not_found_is_named_with_what_to_do(model, album, photos):
    alone = dict.fromkeys(("conch", "slug", "tabby", "boxer"), 0.01)  # no elephant among the five best
    few = album_of(model, photos, {"zebra": 0.9, **alone}, {"snail": 0.8, **alone})
    with pytest.raises(
        ExperimentError, match=r"is predicted as bald eagle; nearest comes 0.png \(zebra 90.0 %.*by hand"
    ):
        few.showing("eagle")
    with pytest.raises(
        ExperimentError, match=r"has among its 5 best classes, one of them first, tusker/African.*/.* and zebra"
    ):
        few.showing("elephant", "zebra")
    with pytest.raises(ExperimentError, match=r"is predicted as, or named, kite: give pictures of it by hand with typ"):
        few.typical("kite")
    named = replace(few, paths=(photos[0], photos[1].with_name("n01608432_kite.JPEG")))
    named.paths[1].write_bytes(photos[1].read_bytes())
    assert named.typical("kite")[1] == "kite: n01608432_kite.JPEG (labelled, not predicted)"
    other = replace(model, class_names=tuple(f"thing {number}" for number in range(len(NAMES))))
    with pytest.raises(ExperimentError, match="has no class 'zebra'.*by hand, with their classes as targets="):
        Album.of(other, photos[:1], "here")


def test_questions_are_filled_in_from_the_album(model, album, photos):
    base = Question(model=model, images=(), output=Path("out"))

    def of(number: int) -> list[Question]:
        return questions(FIGURES[number], album, base)[0]

    index = NAMES.index
    (three,) = of(3)
    assert (three.images, three.targets) == (
        (photos[3], photos[6], photos[2]),
        tuple(map(index, ("snail", "bald eagle", "bull mastiff"))),
    )
    assert [one.targets for one in of(4)] == [(index("African elephant"), 0), (index("snail"), index("conch"))]
    assert [one.against for one in of(6)] == [(index("African elephant"),), (index("bull mastiff"),)]
    assert of(8)[0].guide == photos[0]
    (nine,) = of(9)
    assert (nine.against, nine.framed) == (tuple(map(index, ("conch", "slug", "kite"))), (2,))
    assert set(nine.typical) == set(nine.against)
    assert (of(11)[0].targets, of(11)[0].against) == ((index("bull mastiff"),), (index("African elephant"),))
    assert (of(12)[0].images, of(12)[0].against, of(12)[0].guide) == (photos, (0,), photos[0])
    assert {one.prefix for number in FIGURES for one in of(number)} == {f"fig{number}." for number in FIGURES}


# -- what argues for a class ------------------------------------------------------------------------------------------


def test_effects_are_the_logits_lost_under_black_cells(model, photos):
    effects = cell_effects(model, photos[0])
    batch = prepare(model, photos[0]).batch
    rows, cols = effects.drops.shape[1:]
    place = (1, 2)
    patch = families.FAMILIES["timm_vit"].image_size[0] // vitrail.explain(model, photos[0]).grid[0]
    size = round(batch.shape[-2] / rows / patch) * patch
    black = batch.clone()
    black[..., place[0] * size : (place[0] + 1) * size, place[1] * size : (place[1] + 1) * size] = -1
    lost = (model.logits(batch) - model.logits(black)).detach()[0]
    torch.testing.assert_close(effects.drops[:, place[0], place[1]], lost, atol=1e-4, rtol=1e-3)
    assert cols == rows


def test_maps_are_held_against_what_argues_for_either_class():
    drops = torch.zeros(2, 4, 4)
    drops[0, 0] = torch.tensor([4.0, 3.0, 2.0, 1.0])
    drops[1, 3] = 1.0
    effects = Effects(drops)
    assert effects.arguing(0).nonzero().tolist() == [[0, 0], [0, 1], [0, 2], [0, 3]]
    scores = torch.zeros(8, 8)
    scores[:2] = 1.0
    scores[6:, :4] = -1.0
    assert signs(scores, effects, 0, 1) == {"own above zero": 1.0, "other below zero": 0.5}
    assert on_object(-scores, effects.arguing(0)) == {"below zero": 1.0, "energy": 0.0, "size": 0.25}
    assert math.isnan(signs(scores, Effects(torch.zeros(2, 4, 4)), 0, 1)["own above zero"])


def test_the_ends_of_a_map_are_taken_out(model, photos):
    grid = vitrail.explain(model, photos[0]).grid
    scores = torch.arange(grid[0] * grid[1]).view(grid).double()
    found = ends_removed(model, photos[0], scores, (3, 4))
    back = ends_removed(model, photos[0], -scores, (3, 4))
    assert found["without the reddest"] == pytest.approx(back["without the bluest"], abs=1e-5)
    assert found["without the reddest"] != pytest.approx(found["without the bluest"], abs=1e-6)


# -- verdicts ---------------------------------------------------------------------------------------------------------


def _object(below: float, energy: float = 0.6) -> list[dict]:
    row = {"below zero": below, "energy": energy, "size": 0.25}
    return [{"object": {"absolute": [row | {"below zero": 0.0}], "complete": [row]}}]


def _classes(one: float, other: float, first: str) -> list[dict]:
    told = {"own above zero": 0.8, "other below zero": 0.7}
    return [{"correlation": {first: [one], "gae": [other]}, "signs": {first: told, "gae": told}}]


def _transfer(last: float, stays: float) -> list[dict]:
    own = {"target": {"target": {"0": 0.3, "50": last}, "opposing": {"0": -0.3, "50": 0.1}}}
    logits = {"zebra": {"0": 13.5, "50": -23.7}, "elephant": {"0": 10.8, "50": -10.5}}
    return [{"logits": logits, "relevance": own | {"opposing": {"opposing": {"0": 0.2, "50": stays}}}}]


def _halves(own: float, far: float) -> list[dict]:
    names = ("own half positive relevance", "guide half negative relevance")
    names += ("own half above zero", "guide half below zero")
    return [{"shares": {"complete": [dict(zip(names, (own, far, own, far), strict=True))]}}]


def _ends(red: float, blue: float) -> list[dict]:
    return [{"names": ["snail", "conch"], "effect": {"without the reddest": red, "without the bluest": blue}}]


def _methods(complete: float, other: float) -> list[dict]:
    return [{"signs": [{"complete": {"other below zero": complete}, "gae": {"other below zero": other}}]}]


def _rewritten(reached: bool, psnr: float) -> list[dict]:
    told = {
        "source": "tusker",
        "target": "bull mastiff",
        "step": 43,
        "linf": 21 / 255,
        "logits": [[11.15, 1.0], [1.0, 12.926]],
    }
    return [
        {
            **told,
            "reached": reached,
            "psnr": psnr,
            "source_probability": [0.351, 0.0],
            "target_probability": [0.0, 0.938],
        }
    ]


def _perturbed(negative: float, positive: float, control: float) -> list[dict]:
    def interval(mean: float) -> dict[str, float]:
        return {"mean": mean, "low": mean - 0.03, "high": mean + 0.03}

    differences = {"gae, negative, anywhere": negative, "gae, positive, anywhere": positive}
    differences |= dict.fromkeys(("gae, negative, own half", "gae, negative, alone"), control)
    differences["the control gae − gae(guide), negative, anywhere"] = control
    told = {f"complete less {name}": interval(value) for name, value in differences.items()}
    return [{"model": "tiny", "photographs": 30, "differences": told}]


@pytest.mark.parametrize(
    ("number", "make", "holds", "in_part", "fails"),
    [
        (3, _object, (0.4, 0.6), (0.1, 0.6), (0.1, 0.2)),
        (4, lambda *of: _classes(*of, "absolute"), (0.9, 0.3), None, (0.7, 0.3)),
        (5, lambda *of: _classes(*of, "complete"), (-0.5, 0.3), None, (0.1, 0.3)),
        (6, _transfer, (-0.1, 0.2), (0.4, 0.2), (0.4, -0.1)),
        (7, _object, (0.3,), None, (0.2,)),
        (8, _halves, (0.7, 0.8), None, (0.4, 0.8)),
        (9, _ends, (-1.0, 1.0), (-1.0, -0.2), (0.5, -0.5)),
        (10, _methods, (0.7, 0.2), (0.7, 0.8), (0.3, 0.8)),
        (11, _rewritten, (True, 43.0), (True, 30.0), (False, 30.0)),
        (12, _perturbed, (0.1, 0.0, 0.0), (0.02, 0.0, 0.0), (0.02, 0.2, 0.0)),
        (13, _methods, (0.5, 0.0), (0.2, 0.4), (0.2, 0.5)),
    ],
)
def test_verdicts_follow_the_numbers(number: int, make: Any, holds: tuple, in_part: tuple | None, fails: tuple):
    verdict = FIGURES[number].verdict
    assert verdict(make(*holds)).word == "holds"
    assert verdict(make(*fails)).word == "does not hold"
    both = make(*in_part) if in_part is not None else [*make(*holds), *make(*fails)]
    assert verdict(both).word == "holds in part"
    assert verdict(make(*holds)).text != verdict(make(*fails)).text


def test_the_verdict_on_perturbation_names_the_controls():
    lost, left = (FIGURES[12].verdict(_perturbed(0.1, 0.0, control)).text for control in (0.0, 0.2))
    assert "negative +0.100 [+0.070, +0.130], positive +0.000 [−0.030, +0.030]" in lost
    assert "no gain is left under: the guide stays, the guide is black, GAE − GAE(guide)" in lost
    assert "a gain is left under each" in left


# -- figures and the page ---------------------------------------------------------------------------------------------


def test_a_figure_is_drawn_and_says_of_what(model, album, tmp_path):
    figure = replace(FIGURES[7], asks=FIGURES[7].asks[:1])
    drawn = draw_figure(figure, album, Question(model=model, images=(), output=tmp_path), weights_of([model]))
    assert [path.name for path in drawn.files] == ["fig7.single.png"]
    document = json.loads((tmp_path / "fig7.json").read_text())
    assert document["verdict"] == vars(drawn.verdict)
    assert document["photographs"] == ["3.png: snail 90.0 %"]
    (shares,) = document["results"][0]["object"]["complete"]
    cells = cell_effects(model, album.paths[3]).arguing(NAMES.index("snail"))
    scores = vitrail.explain(model, album.paths[3], "snail", gradient="full").map()
    assert shares == pytest.approx(on_object(scores, cells), abs=1e-5)


def test_a_figure_is_drawn_once_for_the_same_question(model, album, photos, tmp_path, monkeypatch):
    drawn: list[Question] = []

    def draw(question: Question) -> list[dict]:
        drawn.append(question)
        question.path("single").write_bytes(b"")
        return [{"file": str(question.path("single")), "object": _object(0.3)[0]["object"]}]

    monkeypatch.setitem(EXPERIMENTS, "single", replace(EXPERIMENTS["single"], function=draw))
    base, weights = Question(model=model, images=(), output=tmp_path), weights_of([model])

    def again(*given: Any, base: Question = base, **how: Any) -> bool:
        found = draw_figure(FIGURES[7], *(given or (album, base, weights)), **how)
        assert found.verdict.word == "holds"
        return found.again

    assert not again()
    assert again()
    assert len(drawn) == 1
    assert not again(force=True)
    assert not again(album, base, ["other weights"])
    assert not again(album, replace(base, model=replace(model, class_names=NAMES[::-1])), weights)
    larger = replace(model.preprocess, size=(96, 96))
    assert not again(album, replace(base, model=replace(model, preprocess=larger)), weights)
    leaf = replace(base, options={"gradient": "leaf"})
    assert not again(album, leaf, weights)
    drawn[-1].path("single").unlink()
    assert not again(album, leaf, weights)
    copied = tmp_path / "copied.png"
    copied.write_bytes(photos[3].read_bytes())
    paths = [*photos[:3], copied, *photos[4:]]
    assert again(replace(album, paths=tuple(paths)), leaf, weights)  # a file counts by what it holds
    copied.write_bytes(photos[4].read_bytes())
    assert not again(replace(album, paths=tuple(paths)), leaf, weights)
    (tmp_path / "fig7.json").write_text("{")
    assert not again(album, leaf, weights)


def test_the_page_has_every_figure_and_its_verdict(model, tmp_path):
    Image.new("RGB", (2000, 300), (200, 30, 90)).save(tmp_path / "one.png")
    result = {"file": str(tmp_path / "one.png")}
    said = {number: Verdict(f"word {number}", f"numbers {number} %") for number in FIGURES}
    drawn = [
        Drawn(replace(figure, verdict=lambda _, number=number: said[number]), (result,), (f"photograph {number}",))
        for number, figure in FIGURES.items()
    ]
    drawn[2] = Drawn(FIGURES[5], error="no photograph shows <it>")
    page = write_page(drawn, [model, replace(model, name="another")], "here", tmp_path).read_text()
    for number, figure in FIGURES.items():
        assert f"<h2>Figure {number}</h2>" in page
        assert figure.claim in page
        if number != 5:
            assert f"Here: word {number}.</span> numbers {number}\N{NO-BREAK SPACE}%" in page
            assert f"photograph {number}" in page
    assert "Here: not drawn.</span> no photograph shows &lt;it&gt;" in page
    assert "Figures 1 and 2 are diagrams" in page
    assert f"{model.name} and another" in page
    assert len(re.findall(r'<a href="one.png"><img src="data:image/jpeg;base64,', page)) == len(FIGURES) - 1
    assert not re.search(r'(src|href)="(https?:)?//', page)
    assert "<script" not in page


def test_two_models_share_one_figure(model, album, tmp_path, monkeypatch):
    sheets: list[Any] = []

    def draw(given: Any) -> Any:
        sheets.append(given)
        return blank(1.0, 1.0)

    monkeypatch.setattr("vitrail.experiments.figures.draw_comparison", draw)
    monkeypatch.setattr("vitrail.experiments.perturbation.draw_perturbation", draw)
    other = replace(model, name="another", module=_with_classes(families.FAMILIES["timm_vit"].build()))
    base = Question(model=model, images=(), output=tmp_path, others=(other,))
    weights = weights_of(base.models)
    rows = draw_figure(FIGURES[13], album, replace(base, methods=("gae,complete",)), weights).results[0]
    assert rows["models"] == [model.name, "another"]
    names = [(one.provenance.model, one.class_names[int(one.target[0])]) for one in sheets[0]]
    assert names == [(name, shown) for name in rows["models"] for shown in ("zebra", "bull mastiff")]
    assert [set(one) for one in rows["signs"]] == [{"gae", "complete"}] * 4
    drawn = draw_figure(FIGURES[12], album, replace(base, limit=1), weights)
    assert [one["model"] for one in drawn.results] == [model.name, "another"]
    assert [one.example.model for one in sheets[1]] == [model.name, "another"]
    assert len(drawn.files) == 1
    assert "another, 1 photographs" in drawn.verdict.text


def test_a_class_is_the_other_models_by_name(model):
    moved = replace(model, class_names=NAMES[::-1], name="reversed")
    question = Question(model=model, images=(), output=Path(), others=(moved,))
    assert question.index_in(moved, 0) == len(NAMES) - 1
    assert question.index_in(model, 3) == 3


# -- on the command line ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("all", "a.png"), "give their folder with --photos"),
        (("all", "--methods", "gae"), "--methods means nothing to all"),
        (("all", "-t", "zebra"), "--target means nothing to all; its own options: --limit"),
        (("all", "-f", "pdf"), "--format pdf cannot be shown on a page"),
        (("fig3", "--photos", "."), "name it with --model"),
        (("fig3", "--limit", "3"), "--limit means nothing to fig3; its own options: --methods"),
        (("fig7", "-m", "bestiary", "-m", "bestiary/label-errors"), "fig7 shows one model, and 2 are given"),
        (("fig7", "-m", "bestiary", "-c", "a", "-c", "b"), "2 --checkpoint for 1 --model: give one for each"),
        (
            ("fig7", "a.png", "-m", "bestiary", "--photos", "."),
            "--photos goes with all, or with a figure without IMAGE",
        ),
        (("gradients",), "gradients needs images; --target twice or more"),
        (("fig1",), "figures 1 and 2 are diagrams"),
    ],
)
def test_calls_that_cannot_be_meant_are_refused(tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("VITRAIL_MODEL", raising=False)
    result = CliRunner().invoke(app, ["reproduce", *words])
    assert result.exit_code == 2, result.output
    assert message in " ".join(result.stderr.split())


def test_a_figure_of_given_images_keeps_its_methods(photos, tmp_path, monkeypatch):
    asked: list[Question] = []
    stub = replace(EXPERIMENTS["gradients"], function=lambda question: asked.append(question) or [])
    monkeypatch.setitem(EXPERIMENTS, "gradients", stub)
    for words in (("fig4",), ("fig5", "--methods", "gae"), ("gradients",)):
        given = [words[0], str(photos[0]), "-t", "0", "-t", "1", "-m", "bestiary", "-o", str(tmp_path), *words[1:]]
        assert CliRunner().invoke(app, ["reproduce", *given]).exit_code == 0
    assert [one.methods for one in asked] == [("absolute", "gae"), ("gae",), ()]


def test_all_goes_on_where_one_figure_lacks_its_image(album, photos, tmp_path, monkeypatch):
    def draw(figure: Any, *_: Any, **__: Any) -> Drawn:
        if figure.number == 5:
            raise ExperimentError("no cat: give it by hand, with targets=")
        return Drawn(replace(figure, verdict=lambda _: Verdict("holds", "5 %")), ({"file": str(photos[0])},))

    monkeypatch.setattr("vitrail.experiments.photographs.draw_scenes", lambda *_: photos[0].parent)
    monkeypatch.setattr("vitrail.experiments.photographs.Album.of", lambda *_: album)
    monkeypatch.setattr("vitrail.experiments.page.draw_figure", draw)
    monkeypatch.delenv("VITRAIL_MODEL", raising=False)
    result = CliRunner().invoke(app, ["reproduce", "all", "-o", str(tmp_path)])
    assert result.exit_code == 1
    assert "fig5: no cat: give it by hand, with --target" in " ".join(result.stderr.split())
    assert f"Open {tmp_path / 'index.html'}" in result.stderr
    lines = [line.split("\t")[:3] for line in result.stdout.splitlines()[1:]]
    assert lines[2] == ["fig5", "not drawn", "no cat: give it by hand, with --target"]
    assert [line[1] for line in lines].count("holds") == len(FIGURES) - 1
    assert "no cat: give it by hand, with --target" in (tmp_path / "index.html").read_text()


@pytest.mark.slow
def test_real_photographs_are_found_whatever_they_are_called(vit_tiny, shared, tmp_path):
    images = shared / "images"
    names = {"snail": "n01944390_snail", "eagle": "n01614925_bald_eagle", "zebra": "n02391049_zebra"}
    paths = {kind: images / "one-per-class" / f"{name}.JPEG" for kind, name in names.items()}
    paths |= {"elephants": images / "pairs" / "el3.png", "dog and cat": images / "pairs" / "cat_dog_original.jpg"}
    copies = {kind: tmp_path / f"{number}{path.suffix}" for number, (kind, path) in enumerate(paths.items())}
    for kind, copy in copies.items():
        copy.symlink_to(paths[kind])
    found = Album.of(vit_tiny, list(copies.values()), "here")
    assert {kind: found.showing(kind).path for kind in names} == {kind: copies[kind] for kind in names}
    assert found.showing("elephant", "zebra").path == copies["elephants"]
    assert found.showing("cat", "dog").path == copies["dog and cat"]
    with pytest.raises(ExperimentError, match="kite"):
        found.typical("kite")


@pytest.mark.slow
def test_the_whole_paper_is_drawn_offline_and_resumed(tmp_path, monkeypatch):
    monkeypatch.delenv("VITRAIL_MODEL", raising=False)
    words = ["reproduce", "all", "-o", str(tmp_path), "--limit", "4", "--steps", "5", "--until", "0.3"]
    first = CliRunner().invoke(app, [*words, "--json"])
    assert first.exit_code == 0, first.output
    told = json.loads(first.stdout)
    assert is_bestiary(vitrail.load("bestiary"))
    assert [one["figure"] for one in told["figures"]] == list(range(3, 14))
    assert all(one["drawn"] and one["files"] for one in told["figures"])
    assert {one["verdict"] for one in told["figures"]} <= {"holds", "holds in part", "does not hold"}
    page = (tmp_path / "index.html").read_text()
    assert all(f"<h2>Figure {number}</h2>" in page for number in range(3, 14))
    second = json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout)
    assert not any(one["drawn"] for one in second["figures"])
    assert [one["verdict"] for one in second["figures"]] == [one["verdict"] for one in told["figures"]]
