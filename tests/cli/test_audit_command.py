"""`vitrail audit` from the words on the command line to the folder, and from a review to the exported decisions."""

import csv
import json
from pathlib import Path

import pytest
from pictures_on_disk import class_folders
from typer.testing import CliRunner

import vitrail
from vitrail.audit import Decisions, read_audit
from vitrail.cli import app


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Noise in folders named by classes of the bestiary, most of which its model calls otherwise."""
    return class_folders(tmp_path_factory.mktemp("data"), {"tavel": 3, "borrin": 3})


def audit(*words) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["audit", *map(str, words)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


def test_from_words_to_the_same_audit_as_from_python(data, tmp_path):
    words = (data, "--model", "bestiary", "--pairs", "tavel:borrin", "1:0", "--pair-images", 2, "--block-size", 4)
    status, said, told = audit(*words, "--output", tmp_path / "run")
    assert status == 0, told
    found = read_audit(tmp_path / "run")
    assert said.splitlines()[-1] == (
        f"{len(found.suspects)} suspects among 6 images; vitrail audit --review {tmp_path / 'run'} shows them"
    )
    for one in found.suspects:
        assert one.source in said
    assert [line.split(" images")[0] for line in told.splitlines()][:2] == ["answers: 4 of 6", "answers: 6 of 6"]
    pairs = [("tavel", "borrin"), (1, 0)]
    same = vitrail.audit(
        vitrail.load("bestiary"), data, output=tmp_path / "python", pairs=pairs, pair_images=2, block=4
    )
    assert same.ranked == found.ranked
    assert same.pairs == found.pairs

    status, said, told = audit(*words, "--output", tmp_path / "run", "--json")
    assert status == 0
    assert told.splitlines()[0] == "answers: 6 of 6 images are there already"
    document = json.loads(said)
    assert [one["image"] for one in document["suspects"]] == [one.image for one in found.suspects]
    assert len(document["pairs"]) == 2


def test_decisions_of_a_review_are_exported(data, tmp_path):
    found = vitrail.audit(vitrail.load("bestiary"), data, output=tmp_path / "run", pairs=0)
    first = found.suspects[0]
    Decisions(found.folder, [one.image for one in found.suspects]).decide(first.image, "relabel")
    status, said, _ = audit("--review", tmp_path / "run", "--export", tmp_path / "out.csv")
    assert (status, said) == (0, f"1 of {len(found.suspects)} suspects are decided: {tmp_path / 'out.csv'}\n")
    (row,) = csv.DictReader((tmp_path / "out.csv").read_text().splitlines())
    assert (row["file"], row["corrected"]) == (first.source, str(first.suggested))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "give DATA and --model"),
        (("data",), "give DATA and --model"),
        (("data", "--review", "run"), "leave DATA out"),
        (("--export", "out.csv"), "give --review, too"),
        (("data", "--model", "bestiary", "--pairs", "tavel"), "--pairs tavel: give a number, or pairs of classes"),
        (("data", "--model", "bestiary", "--workers", "2"), "--workers is for --engine ray"),
        (("bestiary:single:4", "--model", "bestiary", "--method", "rollout"), "rollout is the same for every class"),
        (("--review", "nowhere"), "nowhere holds no audit"),
        (("--review", "nowhere", "--export", "x.csv"), "nowhere holds no audit"),
    ],
)
def test_words_that_do_not_go_together_are_refused(words, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("VITRAIL_MODEL", raising=False)
    status, _, told = audit(*words)
    assert status == 2
    assert said in " ".join(told.replace("│", " ").split())
    assert not list(tmp_path.iterdir())
