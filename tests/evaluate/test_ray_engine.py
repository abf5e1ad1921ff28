"""A Ray cluster gives the bytes that one process gives, whoever is killed meanwhile."""

import os
import re
import signal
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from evaluate.processes_apart import WHOLE, start
from evaluate.test_runner import QUESTION, results, tiny
from pictures_on_disk import class_folders
from torch import nn

import vitrail
from vitrail.datasets import open_data
from vitrail.errors import ModelError, OptionError, how_to_install
from vitrail.evaluate import ray_engine as engine
from vitrail.evaluate.block_evaluator import BlockEvaluator
from vitrail.evaluate.engines import run_local
from vitrail.evaluate.plan import make_plan
from vitrail.evaluate.runner import evaluate
from vitrail.models import Preprocess


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    return class_folders(tmp_path_factory.mktemp("pictures"), {"ant": 5, "bee": 5, "cat": 5, "dog": 5})


@pytest.fixture(scope="module")
def whole(pictures, tmp_path_factory) -> Path:
    return evaluate(tiny(), pictures, output=tmp_path_factory.mktemp("whole") / "run", **QUESTION).folder


# -- without a cluster -------------------------------------------------------------------------------------------------


def worker_of(model, pictures, **options) -> BlockEvaluator:
    plan = make_plan("raw", ["perturbation"], **options)
    return BlockEvaluator(model, open_data(pictures, model), plan)


def test_without_ray_the_remedy_is_named(pictures, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(OptionError, match=re.escape(how_to_install("ray"))):
        evaluate(tiny(), pictures, output=tmp_path, engine="ray", **QUESTION)
    assert not list(tmp_path.glob("rows/*"))


def test_a_ray_that_cannot_start_is_one_sentence(pictures, tmp_path, monkeypatch):
    ray = pytest.importorskip("ray")

    def fail(**_):
        raise ConnectionError("no cluster\nanswers")

    monkeypatch.setattr(ray, "init", fail)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(OptionError, match="Ray could not start at 10.0.0.1:6379: no cluster answers; give"):
        evaluate(
            tiny(),
            pictures,
            "raw",
            ["saco"],
            output=tmp_path,
            engine="ray",
            engine_options={"address": "10.0.0.1:6379"},
        )


def test_under_torchrun_ray_is_refused(pictures, tmp_path, monkeypatch):
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(OptionError, match="torchrun and engine='ray' both share a run out: start it without torchrun"):
        evaluate(tiny(), pictures, output=tmp_path, engine="ray", **QUESTION)


def test_as_many_actors_as_the_nodes_have_room_for():
    assert engine._room([{"CPU": 7.0}, {"CPU": 4.0}, {}], threads=3, gpus=0) == (3, 3)
    assert engine._room([{"CPU": 2.0}, {"CPU": 4.0}], threads=16, gpus=0) == (4, 1)  # never more than a node has
    assert engine._room([{"CPU": 2.0, "GPU": 8.0}, {"CPU": 32.0, "GPU": 1.0}], threads=4, gpus=1) == (1, 3)
    assert engine._room([{"CPU": 8.0, "GPU": 1.0}], threads=4, gpus=0.25) == (1, 4)
    with pytest.raises(OptionError, match="each worker takes 1 GPU, and no node of the Ray cluster has more than 0"):
        engine._room([{"CPU": 8.0}], threads=1, gpus=1)
    with pytest.raises(OptionError, match="has no processor: start its nodes with `ray start --num-cpus 1`"):
        engine._room([{}], threads=1, gpus=0)


def test_the_copy_that_goes_to_the_actors_leaves_the_model_where_it_is():
    model = tiny()
    module = model.module
    module.register_parameter("again", module.head.weight)  # tied
    module.head.bias.requires_grad_(False)
    before = {name: (id(tensor), tensor.data_ptr()) for name, tensor in module.state_dict(keep_vars=True).items()}
    copied = engine.copy_on_cpu(module)
    assert {n: (id(t), t.data_ptr()) for n, t in module.state_dict(keep_vars=True).items()} == before
    found = copied.state_dict(keep_vars=True)
    assert list(found) == list(before)
    for name, tensor in module.state_dict(keep_vars=True).items():
        assert torch.equal(found[name], tensor), name
        assert type(found[name]) is type(tensor), name
        assert found[name].requires_grad == tensor.requires_grad, name
    assert found["again"] is found["head.weight"] is not module.head.weight
    assert copied.head is not module.head


# -- on a cluster of this machine --------------------------------------------------------------------------------------


def actors() -> list[psutil.Process]:
    """The processes that measure blocks just now."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if process.cmdline()[:1] and "MapWorker" in process.cmdline()[0]:
                found.append(process)
        except psutil.Error:  # it has just ended
            continue
    return found


@pytest.mark.slow
def test_two_actors_give_the_bytes_of_one_process(cluster, pictures, whole, tmp_path):
    model = tiny()
    places = {tensor.data_ptr() for tensor in model.module.parameters()}
    seen: list[tuple[int, int]] = []
    outcome = evaluate(
        model,
        pictures,
        output=tmp_path,
        engine="ray",
        engine_options={"workers": 2},
        progress=lambda *now: seen.append(now),
        **QUESTION,
    )
    assert seen == [(0, 20), (4, 20), (8, 20), (12, 20), (16, 20), (20, 20)]
    assert outcome.measured == 20
    assert results(tmp_path) == results(whole)
    assert {tensor.data_ptr() for tensor in model.module.parameters()} == places
    again = evaluate(model, pictures, output=tmp_path, engine="ray", **QUESTION)
    assert again.measured == 0


@pytest.mark.slow
def test_a_worker_that_is_killed_loses_nothing(cluster, pictures, whole, tmp_path):
    killed: list[int] = []

    def kill(done: int, _: int) -> None:
        if done == 8:
            found = actors()  # at work on the next block by now
            assert found
            for actor in found:
                actor.send_signal(signal.SIGKILL)
                killed.append(actor.pid)

    evaluate(tiny(), pictures, output=tmp_path, engine="ray", engine_options={"workers": 1}, progress=kill, **QUESTION)
    assert killed
    assert results(tmp_path) == results(whole)


class _Deadly(nn.Module):
    """A model that ends the process it runs in."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        os.kill(os.getpid(), signal.SIGKILL)
        return images


class _Shapeless(nn.Module):
    """A model whose output holds no logits."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images


@pytest.mark.slow
def test_a_block_that_kills_every_worker_ends_the_run(cluster, pictures, monkeypatch, tmp_path):
    monkeypatch.setattr(engine, "RETRIES", 0)
    model = vitrail.wrap(_Deadly(), preprocess=Preprocess(size=(64, 64)), class_names=("ant", "bee", "cat", "dog"))
    with pytest.raises(ModelError, match=r"1 workers died one after the other over block 0 \(images 0 to 15\)"):
        list(engine.run_ray(worker_of(model, pictures), [0], workers=1))


@pytest.mark.slow
def test_an_error_of_a_worker_is_raised_as_it_is(cluster, pictures):
    model = vitrail.wrap(_Shapeless(), preprocess=Preprocess(size=(64, 64)), class_names=("ant", "bee", "cat", "dog"))
    worker = worker_of(model, pictures)
    with pytest.raises(ModelError) as here:
        list(run_local(worker, [0]))
    with pytest.raises(ModelError) as there:
        list(engine.run_ray(worker, [0], workers=1))
    assert (type(there.value), str(there.value)) == (type(here.value), str(here.value))


@pytest.mark.slow
def test_when_its_driver_is_killed_the_next_start_goes_on(pictures, whole, tmp_path):
    process = start(WHOLE, pictures, tmp_path, "ray")
    try:
        until(lambda: len(list(tmp_path.glob("digests/*.sha256"))) >= 1 or process.poll() is not None)
        helpers = psutil.Process(process.pid).children(recursive=True)
        assert helpers
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    there = len(list(tmp_path.glob("digests/*.sha256")))
    assert 1 <= there < 5
    outcome = evaluate(tiny(), pictures, output=tmp_path, **QUESTION)
    assert outcome.measured == 20 - 4 * there
    assert results(tmp_path) == results(whole)
    _, left = psutil.wait_procs(helpers, timeout=60)
    alive = [one for one in left if one.status() != psutil.STATUS_ZOMBIE]  # a container may have nobody to bury them
    assert not alive, alive  # Ray's own processes go with the driver


def until(what) -> None:
    end = time.monotonic() + 300
    while not what():
        assert time.monotonic() < end, "nothing happened in five minutes"
        time.sleep(0.005)
