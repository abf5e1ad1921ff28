"""The paper's experiments on a tiny ViT with random weights: what is drawn, and the numbers beside it."""

import json
from pathlib import Path
from typing import Any

import families
import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner, Result

import vitrail
from vitrail.cli import app
from vitrail.errors import ExperimentError, UnknownExperimentError
from vitrail.experiments import EXPERIMENTS, Question, find_experiment
from vitrail.experiments.perturbation import labels_in_table
from vitrail.experiments.stitched_perturbation import curves_of, stitch_pictures
from vitrail.metrics.faithfulness.perturbation import SHARES

NAMES = ("kite", "bald eagle", "zebra", "snail", "conch", "slug", "coil")


@pytest.fixture(scope="module")
def model() -> vitrail.VisionModel:
    family = families.FAMILIES["timm_vit"]
    preprocess = vitrail.Preprocess(size=family.image_size, mean=(0.5,) * 3, std=(0.5,) * 3)
    # Logits above zero, so that quotients of them mean something.
    return vitrail.wrap(
        family.build(), preprocess=preprocess, class_names=NAMES, logits_from=lambda output: output + 50
    )


@pytest.fixture
def photos(tmp_path: Path) -> tuple[Path, ...]:
    generator = np.random.default_rng(2)
    paths = tuple(tmp_path / name for name in ("a.png", "b.png"))
    for path in paths:
        Image.fromarray(generator.integers(0, 256, (50, 60, 3), dtype=np.uint8)).save(path)
    return paths


def ask(name: str, model: vitrail.VisionModel, images: tuple[Path, ...], output: Path, **given: Any) -> list[dict]:
    return find_experiment(name).function(Question(model=model, images=images, output=output, **given))


def test_gradients_draws_each_image_and_correlates_the_classes(model, photos, tmp_path):
    results = ask("gradients", model, photos, tmp_path / "out", targets=(3, 4))
    assert [Path(one["file"]).name for one in results] == ["gradients.a.png", "gradients.b.png"]
    for path, one in zip(photos, results, strict=True):
        assert Path(one["file"]).stat().st_size > 10_000
        for method, found in one["correlation"].items():
            maps = vitrail.explain(model, path, [[3, 4]], method=method, gradient="full").scores[0].flatten(1)
            assert found == [pytest.approx(np.corrcoef(maps.double().numpy())[0, 1], abs=1e-5)]
    assert list(results[0]["correlation"]) == ["gae", "complete", "absolute"]


def test_gradients_without_classes_takes_the_two_best(model, photos, tmp_path):
    (result,) = ask("gradients", model, photos[:1], tmp_path / "out")
    assert result["targets"] == vitrail.explain(model, photos[0]).logits[0].topk(2).indices.tolist()


def test_pairs_asks_every_pair_both_ways(model, photos, tmp_path):
    (result,) = ask("pairs", model, photos[:1], tmp_path / "out", targets=(3, 4, 5))
    assert result["pairs"] == [(3, 4), (3, 5)]
    assert Path(result["file"]).is_file()
    assert all(-1 <= one <= 1 for one in result["reversal"])
    (result,) = ask("pairs", model, photos[:1], tmp_path / "out")
    assert len(result["pairs"]) == 3


def test_typical_counts_what_the_folder_holds(model, photos, tmp_path):
    folder = tmp_path / "kites"
    folder.mkdir()
    for number in range(3):
        Image.new("RGB", (40, 40), (60 * number, 90, 30)).save(folder / f"{number}.png")
    (result,) = ask("fig9", model, photos[:1], tmp_path / "out", targets=(1,), against=(0,), typical=folder)
    assert Path(result["file"]).name == "typical.a.bald-eagle-and-kite.png"
    logits = vitrail.explain(model, sorted(folder.iterdir()), method="raw").logits
    expected = int((logits.argmax(dim=1) == 0).sum())
    assert result["typical"]["kite"]["pictures"] == 3
    assert result["typical"]["kite"]["predicted kite"] == expected


@pytest.mark.slow
def test_methods_lays_every_class_aware_method_side_by_side(model, photos, tmp_path):
    (result,) = ask("fig13", model, photos, tmp_path / "out", targets=(3,))
    assert {"gae", "complete", "absolute"} <= set(result["methods"])
    assert not {"raw", "rollout"} & set(result["methods"])
    with Image.open(result["file"]) as picture:
        assert picture.width > picture.height  # many columns, two rows


def test_comparison_shows_the_methods_that_are_named(model, photos, tmp_path):
    (result,) = ask("fig10", model, photos, tmp_path / "out", targets=(3, 4), methods=("raw,complete:libra",))
    assert result["methods"] == ["raw", "complete:libra"]
    assert [row["questions"][0]["target_index"] for row in result["rows"]] == [3, 4]
    assert all(method["seconds"] > 0 for row in result["rows"] for method in row["methods"])
    assert Path(result["file"]).is_file()


def test_stitched_counts_signs_in_both_halves(model, photos, tmp_path):
    Image.new("RGB", (64, 64), (200, 30, 90)).save(tmp_path / "guide.png")
    target = 3
    (result,) = ask("stitched", model, photos, tmp_path / "out", targets=(target,), guide=tmp_path / "guide.png")
    guide = vitrail.Guide(tmp_path / "guide.png")
    ex = vitrail.explain(model, list(photos), [target] * 2, guide=guide).guided[0]
    own, far = ex.scores[..., : ex.grid[1] // 2], ex.scores[..., -(ex.grid[1] // 2) :]
    for number, told in enumerate(result["shares"]["complete"]):
        assert told["own half above zero"] == pytest.approx(float((own[number] > 0).float().mean()))
        assert told["guide half below zero"] == pytest.approx(float((far[number] < 0).float().mean()))
    assert result["shares"]["positive"][0]["guide half below zero"] == 0
    assert Path(result["file"]).is_file()


def test_guide_puts_both_maps_side_by_side(model, photos, tmp_path):
    Image.new("RGB", (64, 64), (200, 30, 90)).save(tmp_path / "guide.png")
    (result,) = ask("guide", model, photos[:1], tmp_path / "out", targets=(3,), guide=tmp_path / "guide.png")
    alone = vitrail.explain(model, photos[0], 3, gradient="full")
    assert result["share above zero"]["alone"] == pytest.approx(float((alone.map() > 0).float().mean()))
    assert Path(result["file"]).name == "guide.a.png"


def test_transfer_follows_both_logits(model, photos, tmp_path):
    told = []
    (result,) = ask(
        "transfer",
        model,
        photos[:1],
        tmp_path / "out",
        targets=(3,),
        against=(4,),
        steps=2,
        lr=0.01,
        report=lambda *given: told.append(given),
    )
    found = vitrail.counterfactual.transfer(model, photos[0], 3, 4, steps=2, lr=0.01)
    assert result["logits"]["snail"] == pytest.approx({"0": float(found.logits[0, 3]), "2": float(found.logits[2, 3])})
    assert told[-1][1:] == (2, 2)
    assert Path(result["file"]).is_file()


def test_rewriting_keeps_the_picture_that_proves_it(model, photos, tmp_path):
    (result,) = ask("rewriting", model, photos[:1], tmp_path / "out", targets=(4,), against=(3,), until=0.2)
    with Image.open(result["rewritten"]) as picture:
        assert picture.size == (60, 50)
    assert (result["source"], result["target"], result["target_index"]) == ("snail", "conch", 4)
    before = vitrail.explain(model, photos[0], method="raw").logits[0, [3, 4]]
    assert result["logits"][0] == pytest.approx(before.tolist(), abs=1e-3)
    assert Path(result["file"]).is_file()


def test_perturbation_ranks_the_guide_as_it_says(model, tmp_path):
    generator = np.random.default_rng(4)
    for name in ("zebra/1.png", "snail/1.png", "snail/2.png", "kite/1.png"):
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(generator.integers(0, 256, (50, 60, 3), dtype=np.uint8))
        picture.save(tmp_path / "set" / name)
    images = tuple(sorted((tmp_path / "set").rglob("*.png")))
    given = {"guide": images[-1], "against": (2,), "limit": 2}
    (result,) = ask("fig12", model, images, tmp_path / "out", **given)
    assert result["labels"] == "by folder or file name"
    assert [Path(path).parent.name for path in result["images"]] == ["kite", "snail"]  # one of each, no zebra
    assert result["signs"]["gae: guide half below zero"] == 0
    assert set(result["areas"]) == {"random"} | {
        f"{name}, {way}, {region}"
        for name in ("complete", "gae", "gae − gae(guide)")
        for way in ("positive", "negative")
        for region in ("anywhere", "own half", "alone")
    }
    for name, curve in result["curves"].items():
        heights = np.array([*curve, 0.0])
        mean = result["areas"][name]["mean"]
        assert mean == pytest.approx(float((heights[1:] + heights[:-1]).sum() / 20), abs=1e-9)
        if "alone" not in name:
            assert curve[0] == result["curves"]["random"][0]
    assert len(result["differences"]) == 12
    assert Path(result["file"]).is_file()


def test_the_controls_touch_what_they_say(model):
    generator = np.random.default_rng(5)
    pictures = [Image.fromarray(generator.integers(20, 256, (50, 60, 3), dtype=np.uint8)) for _ in range(2)]
    stitched = stitch_pictures(model, *pictures)
    seen = []

    def ask(batch):
        seen.extend(batch)
        return torch.zeros(len(batch), len(NAMES))

    scores = torch.rand(stitched.plan.grid, generator=torch.Generator().manual_seed(0))
    curves = curves_of(model, stitched, 0, {"gae": scores}, generator=torch.Generator(), logits_of=ask)
    whole, alone, *others = seen
    middle = whole.shape[-1] // 2
    torch.testing.assert_close(whole, stitched.normalised)
    assert (alone[..., middle:] == -1).all()  # black, for a mean and a deviation of a half
    torch.testing.assert_close(alone[..., :middle], whole[..., :middle])
    places = scores.numel()
    for number, one in enumerate(curves):
        for step, share in enumerate(SHARES):
            picture = others[number * len(SHARES) + step]
            start = alone if one.region == "alone" else whole
            count = int((places if one.region == "anywhere" else int(stitched.own.sum())) * share)
            changed = (picture != start).any(dim=0)
            assert int(changed.sum()) <= count * 256
            if one.region != "anywhere":
                assert not changed[:, middle:].any()


def test_labels_come_from_a_table_of_names_or_indices(model, photos, tmp_path):
    (tmp_path / "labels.csv").write_text("file,class\na.png,snail\nsomewhere/b.png,1\nb.png,2\n")
    assert labels_in_table(model, tmp_path / "labels.csv") == {"a.png": 3, "b.png": 1}
    (tmp_path / "labels.csv").write_text("picture,answer\na.png,snail\n")
    with pytest.raises(ExperimentError, match="needs a column for the file .* it has picture, answer"):
        labels_in_table(model, tmp_path / "labels.csv")


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("rewriting", {}, "name it with targets="),
        ("perturbation", {}, "give a file with guide="),
        ("transfer", {"targets": (1, 2)}, "transfer lowers one class"),
        ("guide", {"targets": (1, 2, 3)}, "3 targets for 1 images"),
        ("gradients", {"targets": (3,)}, "name two or more, or none"),
        ("gradients", {"targets": (3, 4, 3)}, "one is named twice: name each once"),
        ("typical", {"targets": (1,)}, "name the opposing one with against="),
        ("typical", {"targets": (1,), "against": (0,)}, "give their folder with typical="),
    ],
)
def test_what_an_experiment_lacks_is_named(model, photos, tmp_path, name, given, message):
    with pytest.raises(ExperimentError, match=message):
        ask(name, model, photos[:1], tmp_path / "out", **given)


def test_unknown_names_are_refused():
    with pytest.raises(UnknownExperimentError, match="no experiment is called 'nope'"):
        find_experiment("nope")
    assert find_experiment("Fig13").name == "methods"


def test_every_experiment_says_what_it_shows_and_needs():
    for one in EXPERIMENTS.values():
        assert one.summary.endswith(".")
        assert "image" in one.wants


# -- on the command line ----------------------------------------------------------------------------------------------


def run(*words: Any) -> Result:
    result = CliRunner().invoke(app, ["reproduce", *map(str, words)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def test_the_list() -> None:
    found = json.loads(run("--list", "--json").stdout)
    assert {one["name"] for one in found} == set(EXPERIMENTS)
    assert "Fig. 9" in run("--list").stdout


def test_pictures_and_numbers_in_the_folder(photos, tmp_path):
    torch.manual_seed(0)
    save_file(timm.create_model("test_vit").state_dict(), tmp_path / "w.safetensors")
    words = (
        "--model",
        "timm/test_vit",
        "-c",
        tmp_path / "w.safetensors",
        "-t",
        "snail",
        "--against",
        "conch",
        "slug",
        "-o",
        tmp_path / "out",
    )
    result = run("pairs", photos[0], tmp_path / "none.png", *words)
    assert result.exit_code == 1  # one of the images is missing
    assert "none.png" in result.stderr
    assert result.stdout.splitlines()[1:] == [str(tmp_path / "out" / "pairs.a.png")]
    numbers = json.loads((tmp_path / "out" / "pairs.json").read_text())
    assert (numbers["experiment"], numbers["model"]) == ("pairs", "timm/test_vit")
    assert numbers["results"][0]["pairs"] == [[113, 112], [113, 114]]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("pairs", "a.png", "--model", "timm/test_vit", "--guide", "b.png"), "--guide means nothing to pairs"),
        (("fig12", "a.png", "--model", "timm/test_vit", "--guide", "none.png"), "none.png"),
        (
            ("typical", "--model", "timm/test_vit", "-t", 1),
            "typical needs images; --target, --against, each once or once per image; --typical FOLDER; and --model",
        ),
        (("pairs", "a.png", "--model", "timm/test_vit", "-f", "safetensors"), "'safetensors' is not one of"),
        (("pairs", "a.png", "--model", "timm/nope"), "timm has no model 'nope'"),
        (("pairs", "a.png", "--model", "bestiary", "-t", "unicorn"), "no class of the model's 20 is called 'unicorn'"),
        (("pairs", "a.png", "--model", "bestiary", "-t", 3, "--against", 3), "is held against itself"),
        (
            ("fig9", "a.png", "--model", "bestiary", "-t", 3, "--against", 4, "--typical", "empty"),
            "empty holds no pictures",
        ),
    ],
)
def test_a_question_that_cannot_be_asked_is_exit_code_two(photos, monkeypatch, words, message):
    monkeypatch.chdir(photos[0].parent)
    Path("empty").mkdir()
    result = run(*words)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.replace("│", " ").split())


def test_a_folder_without_images_is_exit_code_one(tmp_path):
    result = run("pairs", tmp_path, "--model", "bestiary", "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert "no image in this folder" in result.stderr
