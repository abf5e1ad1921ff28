"""Two processes of torchrun share one run out: the bytes of one process, whoever dies meanwhile."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import timm
import torch
from evaluate.processes_apart import SOURCE
from evaluate.test_runner import results
from pictures_on_disk import class_folders
from safetensors.torch import save_file

import vitrail
from vitrail.evaluate.run_directory import RunFolder
from vitrail.evaluate.runner import evaluate

pytestmark = pytest.mark.slow

MODEL = "timm/test_vit"
WORDS = ("--methods", "raw", "complete", "--preset", "bi", "--block-size", "1", "--batch-size", "8", "--seed", "3")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    return class_folders(tmp_path_factory.mktemp("pictures"), {"3": 5, "7": 5})


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        save_file(timm.create_model("test_vit").state_dict(), path)
    return path


def alone(pictures: Path, checkpoint: Path, output: Path) -> int:
    """The same run in this process, on one thread; how many images it measured."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        model = vitrail.load(MODEL, checkpoint=checkpoint)
        question = {"preset": "bi", "block": 1, "batch_size": 8, "seed": 3}
        return evaluate(model, pictures, ["raw", "complete"], output=output, **question).measured
    finally:
        torch.set_num_threads(before)


@pytest.fixture(scope="module")
def whole(pictures, checkpoint, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("whole") / "run"
    alone(pictures, checkpoint, output)
    return output


def torchrun(pictures: Path, checkpoint: Path, output: Path) -> subprocess.Popen:
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "vitrail.cli")
    words = ("evaluate", pictures, "--model", MODEL, "--checkpoint", checkpoint, "--output", output, *WORDS)
    environment = dict(os.environ) | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(SOURCE), "GLOO_SOCKET_IFNAME": "lo"}
    return subprocess.Popen(
        [sys.executable, *launcher, *map(str, words), "--device", "cpu"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ranks(process: subprocess.Popen) -> dict[int, psutil.Process]:
    found = {}
    for child in psutil.Process(process.pid).children(recursive=True):
        if "vitrail.cli" in child.cmdline():
            found[int(child.environ()["RANK"])] = child
    return found


def test_two_processes_give_the_bytes_of_one(pictures, checkpoint, whole, tmp_path):
    process = torchrun(pictures, checkpoint, tmp_path)
    out, said = process.communicate(timeout=500)
    assert process.returncode == 0, said
    assert results(tmp_path) == results(whole)
    there, here = (json.loads((folder / "manifest.json").read_text()) for folder in (tmp_path, whole))
    assert there | {"date": ""} == here | {"date": ""}
    assert out.count("10 images measured") == 1  # the first process speaks for both
    lines = [line for line in said.splitlines() if line.startswith("evaluating: ")]
    assert len(lines) == len(set(lines)) > 1
    assert lines[-1].startswith("evaluating: 10 of 10 images")


def test_while_another_holds_the_folder_every_process_is_refused(pictures, checkpoint, whole, tmp_path):
    with RunFolder(tmp_path).writing({"format": 2, "images": 1, "methods": [], "protocols": {}}):
        process = torchrun(pictures, checkpoint, tmp_path)
        _, said = process.communicate(timeout=500)
    assert process.returncode == 1
    assert "Error: another process is writing to" in said
    assert not list(tmp_path.glob("rows/*"))


def test_an_error_of_the_first_ends_all_and_is_told(pictures, checkpoint, whole, tmp_path):
    obstacle = tmp_path / "maps" / "block-000000.safetensors"
    obstacle.mkdir(parents=True)
    process = torchrun(pictures, checkpoint, tmp_path)
    _, said = process.communicate(timeout=500)
    assert process.returncode == 1
    assert f"Error: cannot write {obstacle}: it is a folder" in said
    assert not (tmp_path / "rows" / "block-000000.parquet").exists()
    obstacle.rmdir()
    alone(pictures, checkpoint, tmp_path)
    assert results(tmp_path) == results(whole)


def test_a_process_that_is_killed_ends_all_and_the_next_start_goes_on(pictures, checkpoint, whole, tmp_path):
    process = torchrun(pictures, checkpoint, tmp_path)
    try:
        end = time.monotonic() + 400
        while not list(tmp_path.glob("rows/*.parquet")):
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.01)
        ranks(process)[1].send_signal(signal.SIGKILL)
        process.communicate(timeout=100)
    finally:
        process.kill()
    assert process.returncode == 1
    # A block is done when its digests are written, after its rows: the signal can fall between the two.
    there = len(list(tmp_path.glob("digests/*.sha256")))
    assert there < 10
    assert alone(pictures, checkpoint, tmp_path) == 10 - there
    assert results(tmp_path) == results(whole)
    assert not list(tmp_path.rglob("*.tmp"))
