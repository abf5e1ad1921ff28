"""The models with planted errors, in miniature, and their training images as data to audit."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks import planted_errors
from benchmarks.planted_errors import PAIRS, SETS, SHARES, Planted, TrainingSingles, accuracies, trained
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
