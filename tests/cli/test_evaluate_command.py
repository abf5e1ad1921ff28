"""`vitrail evaluate` from the words on the command line to the folder, and on to the report."""

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from pictures_on_disk import class_folders
from typer.testing import CliRunner, Result

from vitrail.cli import app
from vitrail.cli import console as terminal_output
from vitrail.cli.console import Terminal
from vitrail.evaluate.block_evaluator import BlockEvaluator
from vitrail.evaluate.plan import PRESETS
from vitrail.evaluate.run_directory import RunFolder
from vitrail.evaluate.run_reader import read_run
from vitrail.evaluate.runner import estimate, evaluate
from vitrail.metrics import PROTOCOLS

SCENES = "bestiary:single:4"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """`vitrail evaluate` on the built-in model, in an empty folder; it never crashes."""
    monkeypatch.chdir(tmp_path)

    def call(*words: Any, model: str = "bestiary") -> Result:
        result = CliRunner().invoke(app, ["evaluate", *map(str, words), "--model", model])
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result

    return call


def manifest(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "manifest.json").read_text())


def test_from_words_to_rows_and_to_the_report(run, tmp_path):
    words = (SCENES, "--methods", "raw", "complete", "--protocols", "pointing", "energy", "--block-size", "2")
    result = run(*words, "--output", "out")
    assert result.exit_code == 0, result.stderr
    found = read_run(tmp_path / "out")
    assert (found.methods, tuple(found.protocols)) == (("raw", "complete"), ("pointing", "energy"))
    assert found.finished
    assert not found.failures
    assert result.stdout == f"4 images measured: {len(found.rows)} rows in out; vitrail report out shows them\n"
    lines = [line for line in result.stderr.splitlines() if line.startswith("evaluating")]
    assert [line.split(" images")[0] for line in lines] == ["evaluating: 2 of 4", "evaluating: 4 of 4"]
    assert "left" in lines[0]
    assert "left" not in lines[1]

    again = run(*words, "--output", "out")
    assert again.exit_code == 0
    assert again.stdout.startswith("0 images measured, 4 were there already: ")
    assert again.stderr.splitlines()[-1] == "evaluating: 4 of 4 images are there already"

    shown = CliRunner().invoke(app, ["report", "out", "--output", "page", "--resamples", "100", "--json"])
    assert shown.exit_code == 0, shown.stderr
    assert Path(json.loads(shown.stdout)["page"]).is_file()


def test_options_of_methods_and_protocols_are_values(run, tmp_path):
    result = run(
        SCENES,
        *("--methods", "rollout,complete:libra"),
        *("--protocols", "perturbation", "--preset", "chefer", "--limit", 1),
        *("--option", "rollout.row_normalise=false", "--option", "perturbation.unit=patch", "--seed", 7),
        *("--target", "label", "--resize-mode", "model", "--batch-size", 5, "--num-previews", 0, "--output", "out"),
    )
    assert result.exit_code == 0, result.stderr
    found = manifest(tmp_path / "out")
    assert found["plan"]["methods"] == {"rollout": {"row_normalise": False}, "complete:libra": {}}
    assert (found["protocols"]["perturbation"]["unit"], found["protocols"]["perturbation"]["auc"]) == ("patch", "mean9")
    assert {key: found["plan"][key] for key in ("target", "fit", "batch", "keep", "seed", "preset")} == {
        "target": "label",
        "fit": "model",
        "batch": 5,
        "keep": 0,
        "seed": 7,
        "preset": "chefer",
    }
    assert found["images"] == 1
    assert not (tmp_path / "out" / "maps").exists()


def test_as_json(run, tmp_path):
    result = run(SCENES, "--protocols", "pointing", "--output", "out", "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    rows = len(read_run(tmp_path / "out").rows)
    assert found == {
        "output": "out",
        "images": 4,
        "measured": 4,
        "rows": rows,
        "failures": 0,
        "unknown": 0,
        "notes": found["notes"],
    }


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    folder = class_folders(tmp_path / "pictures", {"3": 2, "7": 1})
    (folder / "3" / "0.png").write_bytes(b"no picture")
    return folder


def test_what_fails_is_told_and_the_exit_code_is_1(command, broken, tmp_path):
    evaluate = partial(command, "evaluate")
    result = evaluate(broken, "--methods", "raw", "--preset", "bi", "--output", "out")
    assert result.exit_code == 1, (result.stdout, result.stderr)
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("3/0.png")]
    assert line == "3/0.png: is no image that Pillow can read; it begins with b'no picture'"
    assert result.stdout.startswith("3 images measured: ")
    again = evaluate(broken, "--methods", "raw", "--preset", "bi", "--output", "out", "--json")
    assert again.exit_code == 1  # it is no better for being done
    found = json.loads(again.stdout)
    assert (found["measured"], found["failures"]) == (0, 1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--methods", "nonsense"), "nonsense"),
        (("--protocols", "nonsense"), "no protocol is called 'nonsense'; there are "),
        (("--preset", "nonsense"), "no preset is called 'nonsense'"),
        (("--option", "pointing.speed=2", "--protocols", "pointing"), "pointing has no option 'speed'"),
        (("--option", "perturbation.fill=red"), "--option NAME.fill=red is unknown"),
        (("--option", "nonsense.speed=2"), "nonsense is neither a method nor a protocol"),
        (("--option", "tis.masks=16"), "options are given for tis, but the methods are complete"),
        (("--engine", "steam"), "--engine steam is unknown; choose one of local, ray"),
        (("--engine", "local", "--workers", "2"), "--workers is for --engine ray"),
        (("--target", "best"), "--target best is unknown; choose one of label, predicted"),
        (("--protocols", "signs"), "signs needs regions of an image"),
    ],
)
def test_a_question_that_cannot_be_asked_ends_with_2(run, tmp_path, words, message):
    result = run(SCENES, "--output", "out", *words)
    assert result.exit_code == 2, result.stdout
    (line,) = [line for line in result.stderr.splitlines() if line]
    assert line.startswith("Error: ")
    assert message in line
    assert not (tmp_path / "out" / "rows").exists()


def test_errors_as_json(run):
    result = run(SCENES, "--preset", "nonsense", "--json")
    assert result.exit_code == 2
    assert json.loads(result.stderr)["error"] == "OptionError"


def test_data_that_are_not_there(run):
    result = run("nowhere/")
    assert result.exit_code == 2
    assert "nowhere" in result.stderr


def test_without_data_or_model_it_says_so():
    for words in ([], [SCENES], ["--model", "bestiary"]):
        result = CliRunner().invoke(app, ["evaluate", *words])
        assert result.exit_code == 2
        assert "give DATA and --model (or VITRAIL_MODEL), or --list" in " ".join(
            result.stderr.replace("│", " ").split()
        )


def test_a_folder_in_use_or_of_another_run_is_refused(run, tmp_path):
    words = (SCENES, "--methods", "raw", "--protocols", "pointing", "--output", "out")
    with RunFolder(tmp_path / "out").writing({"format": 2, "images": 1, "methods": [], "protocols": {}}):
        result = run(*words)
    assert (result.exit_code, "another process is writing to out" in result.stderr) == (2, True)
    (tmp_path / "out" / "manifest.json").unlink()
    assert run(*words).exit_code == 0
    result = run(*words, "--seed", 1)
    assert result.exit_code == 2
    assert "seed is 0 there and 1 here" in result.stderr


def test_the_list_names_every_protocol():
    shown = CliRunner().invoke(app, ["evaluate", "--list"])
    assert shown.exit_code == 0
    header, *lines = shown.stdout.splitlines()
    assert header.split("\t") == ["protocol", "needs", "presets", "options", "measures"]
    assert [line.split("\t")[0] for line in lines] == list(PROTOCOLS)
    listed = json.loads(CliRunner().invoke(app, ["evaluate", "--list", "--json"]).stdout)
    assert [one["protocol"] for one in listed] == list(PROTOCOLS)
    assert {name for one in listed for name in one["presets"]} == set(PRESETS)


def test_threads_are_left_as_they_were(run):
    before = torch.get_num_threads()
    run(SCENES, "--methods", "raw", "--protocols", "pointing", "--limit", 1)
    assert torch.get_num_threads() == before


# -- progress ----------------------------------------------------------------------------------------------------------


def lines_of(reports: list[tuple[float, int]], total: int, capsys) -> list[str]:
    """What a log is told of `done` images at so many seconds."""
    now = [0.0]
    console = Terminal(stderr=True, force_terminal=False, get_time=lambda: now[0])
    with terminal_output.progress_of(console) as report:
        for second, done in reports:
            now[0] = second
            report(done, total)
    return capsys.readouterr().err.splitlines()


def test_a_log_is_told_each_tenth_and_each_minute(capsys):
    reports = [(0.0, 0), (10.0, 4), (50.0, 20), (70.0, 28), (100.0, 40), (131.0, 52), (250.0, 100), (2500.0, 1000)]
    assert lines_of(reports, 1000, capsys) == [
        "evaluating: 28 of 1000 images, 0.40 a second, 0:40:30 left",
        "evaluating: 52 of 1000 images, 0.40 a second, 0:39:48 left",
        "evaluating: 100 of 1000 images, 0.40 a second, 0:37:30 left",
        "evaluating: 1000 of 1000 images, 0.40 a second",
    ]


def test_the_rate_is_of_what_is_done_now(capsys):
    assert lines_of([(0.0, 500), (10.0, 600)], 1000, capsys) == [
        "evaluating: 500 of 1000 images are there already",
        "evaluating: 600 of 1000 images, 10.00 a second, 0:00:40 left",
    ]


# -- interrupted, planned, without result -----------------------------------------------------------------------------


def test_whoever_interrupts_is_told_how_to_resume(run, tmp_path, monkeypatch):
    measure, calls = BlockEvaluator.measure, []

    def interrupted(self, block, images):
        calls.append(block)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return measure(self, block, images)

    words = (SCENES, "--methods", "raw", "--protocols", "pointing", "--block-size", "2", "--output", "my run")
    monkeypatch.setattr(sys, "argv", ["/usr/bin/vitrail", "evaluate", *words])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BlockEvaluator, "measure", interrupted)
        result = run(*words)
    assert result.exit_code == 130
    said = "interrupted: 2 of 4 images are in my run; resume with: vitrail evaluate bestiary:single:4 --methods raw"
    assert result.stderr.splitlines()[-1] == f"{said} --protocols pointing --block-size 2 --output 'my run'"
    assert run(*words).stdout.startswith("2 images measured, 2 were there already")


def test_it_is_told_at_once_while_an_operation_goes_on():
    said = []
    with pytest.raises(KeyboardInterrupt), terminal_output.interrupts_told(lambda: said.append(len(said))):  # noqa: PT012
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)
    assert said == [0]
    with terminal_output.interrupts_told(lambda: said.append(7)):
        pass
    assert said == [0]
    assert signal.set_wakeup_fd(-1) == -1


def test_a_plan_measures_a_few_images_and_writes_nothing(run, tmp_path):
    words = (SCENES, "--methods", "raw", "--protocols", "pointing", "--output", "out", "--plan")
    result = run(*words)
    assert result.exit_code == 0, result.stderr
    assert [line.split("\t")[0] for line in result.stdout.splitlines()] == ["what", "images", "time"]
    assert not (tmp_path / "out").exists()
    found = json.loads(run(*words, "--json").stdout)
    assert (found["images"], found["left"]) == (4, 4)
    assert found["seconds"] == pytest.approx(4 * found["seconds_per_image"])
    assert found["seconds"] > 0
    run(*words[:-1])
    assert json.loads(run(*words, "--json").stdout)["left"] == 0
    refused = run(SCENES, "--protocols", "nonsense", "--plan")
    assert refused.exit_code == 2


def test_boxes_as_fractions_are_an_error_of_the_command(run, tmp_path):
    class_folders(tmp_path / "photos", {"0": 1})
    (tmp_path / "boxes.csv").write_text("file,x_min,y_min,x_max,y_max\n0.png,0.1,0.1,0.9,0.9\n")
    result = run("photos", "--boxes", "boxes.csv", "--protocols", "pointing", "--output", "out")
    assert result.exit_code == 2
    assert "Error: boxes.csv: these look like fractions of the picture" in result.stderr
    assert run(SCENES, "--protocols", ",", "--output", "out").exit_code == 2


@pytest.mark.slow
def test_a_plan_is_within_half_of_what_the_run_takes(shared, vit_tiny, tmp_path):
    photos, question = shared / "images" / "imagenet-val", {"limit": 48, "output": tmp_path}
    boxes = {"data_options": {"boxes": photos / "boxes.csv"}}
    asked = {"methods": ["gae", "complete"], "protocols": ["pointing", "energy"]}
    planned = estimate(vit_tiny, photos, **asked, **question, **boxes).seconds
    begun = time.perf_counter()
    evaluate(vit_tiny, photos, **asked, **question, **boxes)
    took = time.perf_counter() - begun
    assert 1 / 1.5 < planned / took < 1.5, f"planned {planned:.1f} s, took {took:.1f} s"
