"""Passes side by side: as many as there are threads and memory, and each with its share of both."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import timm
import torch

import vitrail
from vitrail.cli.image_run import passes_at_once, thread_limit
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
    assert passes_at_once(model, IMAGE, 8) == expected


def test_one_where_all_together_are_more_than_next_to_nothing(
    model: vitrail.VisionModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    kept = 2 * 8 * kept_bytes(model, IMAGE[None])
    monkeypatch.setattr("vitrail.memory.free_memory", lambda _: 8 * kept + 8)
    assert passes_at_once(model, IMAGE, 8) == 2
    monkeypatch.setattr("vitrail.memory.free_memory", lambda _: 8 * kept)
    assert passes_at_once(model, IMAGE, 8) == 1


def test_one_on_any_device_that_computes_by_itself(model: vitrail.VisionModel) -> None:
    elsewhere = replace(model, module=model.module.to("meta"))
    assert passes_at_once(elsewhere, IMAGE, 1) == 1


def test_threads_are_shared_out_and_given_back() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(5)
    try:
        with thread_limit(2) as enter, ThreadPoolExecutor(1, initializer=enter) as pool:
            assert pool.submit(torch.get_num_threads).result() == 2
            assert torch.get_num_threads() == 5
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(torch.get_num_threads).result() == 5
        with thread_limit(8) as enter, ThreadPoolExecutor(1, initializer=enter) as pool:
            assert pool.submit(torch.get_num_threads).result() == 1
    finally:
        torch.set_num_threads(before)
