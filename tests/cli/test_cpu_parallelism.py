"""Passes side by side: as many as there are threads and memory, and each with its share of both."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import timm
import torch

import vitrail
from vitrail.cli import cpu_parallelism
from vitrail.cli.cpu_parallelism import lanes_for, sharing_out
from vitrail.memory import kept_bytes

IMAGE = torch.zeros(3, 160, 160)


@pytest.fixture
def model() -> vitrail.VisionModel:
    return vitrail.wrap(timm.create_model("test_vit", num_classes=10).eval())


@pytest.mark.parametrize(("threads", "expected"), [(1, 1), (2, 2), (3, 3), (64, 4)])
def test_as_many_as_threads_but_few(
    model: vitrail.VisionModel, threads: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert lanes_for(model, IMAGE, 8) == expected


def test_one_where_all_together_are_more_than_next_to_nothing(
    model: vitrail.VisionModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    kept = 2 * 8 * kept_bytes(model, IMAGE[None])
    monkeypatch.setattr(cpu_parallelism, "free_memory", lambda _: 8 * kept + 8)
    assert lanes_for(model, IMAGE, 8) == 2
    monkeypatch.setattr(cpu_parallelism, "free_memory", lambda _: 8 * kept)
    assert lanes_for(model, IMAGE, 8) == 1


def test_one_on_any_device_that_computes_by_itself(model: vitrail.VisionModel) -> None:
    elsewhere = replace(model, module=model.module.to("meta"))
    assert lanes_for(elsewhere, IMAGE, 1) == 1


def test_threads_are_shared_out_and_given_back() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(5)
    try:
        with sharing_out(2) as enter, ThreadPoolExecutor(1, initializer=enter) as pool:
            assert pool.submit(torch.get_num_threads).result() == 2
            assert torch.get_num_threads() == 5
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(torch.get_num_threads).result() == 5
        with sharing_out(8) as enter, ThreadPoolExecutor(1, initializer=enter) as pool:
            assert pool.submit(torch.get_num_threads).result() == 1
    finally:
        torch.set_num_threads(before)
