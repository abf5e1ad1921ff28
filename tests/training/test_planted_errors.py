"""The models with planted errors, in miniature, and their training images as data to audit."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from benchmarks import planted_errors
from benchmarks.planted_errors import (
    IMAGE_SCORES,
    PAIR_SCORES,
    PAIRS,
    SETS,
    SHARES,
    Planted,
    Scores,
    TrainingSingles,
    accuracies,
    audited,
    by_pair,
    image_table,
    pair_table,
    placements,
    precisions,
    trained,
)
from training.bestiary import SMALL
from vitrail.bestiary import CLASS_NAMES, Bestiary, LabelErrors
from vitrail.bestiary.model import load_weights
from vitrail.datasets import Dataset

TINY = replace(SMALL, scenes=40, steps=2, batch=4, warmup=1, interval=1)
PLANTED = Planted(LabelErrors(*PAIRS[0], share=1.0, hidden=0.0))


class Fixed(torch.nn.Module):
    """Gives the same logits whatever it sees."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.logits[: len(images)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("models")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planted_errors, "HELD_OUT", 10)
        planted_errors.held_out_singles.cache_clear()
        start = trained(path, "start", 0, TINY, merge=PAIRS)
        trained(path, PLANTED.name, 0, TINY, label_errors=PLANTED.errors, start=start)
        planted_errors.held_out_singles.cache_clear()
    return path


def test_every_share_of_either_pair_has_a_model_and_two_have_no_errors():
    names = [one.name for one in SETS]
    assert len(set(names)) == len(names) == 2 + len(PAIRS) * len(SHARES)
    assert {"clean-0", "clean-1", "borrin-tavel-02", "lindle-vesk-70"} <= set(names)
    assert all(one.errors.hidden == 0 for one in SETS if one.errors)


def test_a_training_keeps_its_record_and_is_not_repeated(folder, capsys):
    weights = folder / PLANTED.name / "weights.safetensors"
    record, before = weights.with_name("record.json"), weights.stat().st_mtime_ns
    told = record.read_text()
    assert trained(folder, PLANTED.name, 0, TINY, label_errors=PLANTED.errors) == weights
    assert weights.stat().st_mtime_ns == before
    assert record.read_text() == told
    assert "min on one core" in capsys.readouterr().out
    _, card = load_weights(weights)
    assert (card["label_errors"]["share"], card["start"], card["recipe"]["parts"]) == (1.0, "weights.safetensors", 0)
    assert load_weights(folder / "start" / "weights.safetensors")[1]["merge"] == [list(pair) for pair in PAIRS]
    assert not (folder / PLANTED.name / "pool").exists()  # the pool is shared


def test_training_singles_have_the_labels_of_the_training_and_the_truth(folder):
    data = TrainingSingles(folder / "pool", PLANTED, TINY.scenes)
    assert isinstance(data, Dataset)
    label, shows = (CLASS_NAMES.index(name) for name in PAIRS[0])
    wrong = np.flatnonzero(np.array(data.labels) != data.truth)
    assert len(wrong) > 0
    assert {(data.labels[k], data.truth[k]) for k in wrong} == {(label, shows)}
    assert label not in data.truth
    drawn = Bestiary(count=TINY.scenes, seed=1, label_errors=PLANTED.errors)
    for k in (0, int(wrong[0])):
        sample = data.sample(k)
        assert sample.label == data.labels[k] == int(drawn[k]["label"])
        np.testing.assert_array_equal(
            np.asarray(sample.picture), (255 * drawn[k]["image"]).byte().permute(1, 2, 0).numpy()
        )
    assert data.describe() == {
        "errors": {"label": "borrin", "shows": "tavel", "share": 1.0, "hidden": 0.0}, "seed": 0, "count": 40,
    }  # fmt: skip


def test_accuracy_is_that_of_the_classes_on_top():
    images, labels = torch.rand(6, 3, 4, 4), torch.tensor([0, 0, 1, 2, 2, 2])
    model = Fixed(torch.eye(20)[torch.tensor([0, 1, 1, 2, 2, 3])])
    found = accuracies(model, images, labels)
    assert found["accuracy"] == pytest.approx(4 / 6)
    assert [found["recall"][name] for name in CLASS_NAMES[:3]] == pytest.approx([0.5, 1.0, 2 / 3])


def test_areas_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    values, positive = rng.integers(0, 9, 60).astype(np.float64), rng.random(60) < 0.3  # with ties
    assert placements(values, positive).mean() == pytest.approx(roc_auc_score(positive, values))
    assert precisions(values, positive).mean() == pytest.approx(average_precision_score(positive, values))


def scores(planted, pairs, mixed):
    images = dict.fromkeys(IMAGE_SCORES, np.array([3.0, 2.0, 1.0, 0.0]))
    names = [("tavel", "borrin"), ("vesk", "lindle"), ("zelk", "fenna"), ("fenna", "zelk")][: len(pairs)]
    wrong, issues = np.array([True, False, True, False]), np.array([True, True, False, False])
    found = dict.fromkeys(PAIR_SCORES, np.array(pairs))
    return Scores(planted, names, found, np.array(mixed), images, wrong, issues, 1.0)


def test_tables_tell_ranks_and_areas():
    clean = scores(Planted(), [0.9, 0.0, 0.2], [False, False, False])
    found = scores(PLANTED, [0.8, 0.1, 0.8, 0.3], [True, False, False, False])
    (header, _, *rows) = pair_table([clean, found]).splitlines()
    assert header == "| pair score | clean-0 | borrin-tavel-100 | AUROC | AUROC, same pair |"
    # Of the six pairs that are not contaminated one is above, the same pair, and one as high.
    areas = "0.75 [0.75, 0.75] | 0.00 [0.00, 0.00]"
    assert rows == [f"| {name} | 1, 3 of 3 | 1.5 of 4 | {areas} |" for name in PAIR_SCORES]
    row = image_table([found], precisions).splitlines()[2].split(" | ")
    assert row[:4] == ["| borrin-tavel-100", "2 of 4", "1 of 2", "0.83 [0.67, 1.00]"]


def test_images_of_a_suspicious_pair_come_first_where_the_model_objects():
    images = [(0, 1, -0.2), (1, 0, -0.9), (0, 1, -0.1), (0, 2, -0.8), (0, 1, 0.3), (1, 0, 0.1)]
    ranked = [SimpleNamespace(given=given, suggested=other, margin=margin) for given, other, margin in images]
    pairs = [SimpleNamespace(shown=1, other=0, joint=0.4), SimpleNamespace(shown=0, other=1, joint=0.1)]
    found = by_pair(SimpleNamespace(ranked=ranked, pairs=pairs), lambda pair: pair.joint)
    assert np.argsort(-found).tolist() == [0, 2, 1, 3, 4, 5]


@pytest.mark.slow
def test_an_audit_of_training_singles_is_scored(folder):
    found = audited(folder, PLANTED, TINY.scenes, 2, None)
    assert found.mixed.sum() == 1
    assert found.wrong.sum() == found.images["margin"][found.wrong].size > 0
    assert len(found.wrong) == TINY.scenes
    assert {len(values) for values in found.pairs.values()} == {len(found.mixed)}
