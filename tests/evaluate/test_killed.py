"""A run killed at any moment, while it measures or while it writes, ends with the bytes of an undisturbed one."""

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from evaluate.processes_apart import Forks
from evaluate.test_runner import results
from pictures_on_disk import class_folders

BLOCKS = {"block": 1}  # twenty of them


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    return class_folders(tmp_path_factory.mktemp("pictures"), {"ant": 5, "bee": 5, "cat": 5, "dog": 5})


@pytest.fixture(scope="module")
def forks():
    forks = Forks()
    yield forks
    forks.close()


@pytest.fixture(scope="module")
def whole(forks, pictures, tmp_path_factory) -> tuple[Path, float, float]:
    """An undisturbed run in a process of its own, and the seconds of its first block and of all others."""
    output = tmp_path_factory.mktemp("whole") / "run"
    forks.run(pictures, output, 0, **BLOCKS)
    times = []
    for word in ("begun", "block"):
        assert forks.line() == word
        times.append(time.monotonic())
    assert forks.ended() == 0
    times.append(time.monotonic())
    return output, times[1] - times[0], times[2] - times[1]


def there(folder: Path) -> int:
    return len(list(folder.glob("rows/*.parquet")))


@pytest.mark.slow
def test_killed_at_ten_moments_it_ends_with_the_same_bytes(forks, pictures, whole, tmp_path):
    """Half of the moments lie in a process's first block, which takes it longest, half in those that follow."""
    undisturbed, first, rest = whole
    generator = np.random.default_rng(0)
    counts = []
    for number in range(10):
        process = forks.run(pictures, tmp_path, there(tmp_path), **BLOCKS)
        assert forks.line() == "begun"
        if number % 2 and there(tmp_path) < 15:
            assert forks.line() == "block"
            time.sleep(float(generator.uniform(0, rest / 8)))
        else:
            time.sleep(float(generator.uniform(0, first)))
        os.kill(process, signal.SIGKILL)
        assert forks.ended() == -signal.SIGKILL
        counts.append(there(tmp_path))
    assert counts == sorted(counts)
    assert 5 <= counts[-1] < 20
    assert len(set(counts)) >= 5, counts  # at the beginning, and further and further on
    forks.run(pictures, tmp_path, counts[-1], **BLOCKS)
    assert forks.ended() == 0
    assert results(tmp_path) == results(undisturbed)
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.slow
def test_killed_while_it_writes_it_ends_with_the_same_bytes(forks, pictures, whole, tmp_path):
    """The manifest is written first, then a block's maps, its rows, their digest, and so on."""
    undisturbed, *_ = whole
    # (file, place in its writing) and the blocks that are there afterwards; after the first the manifest is there.
    moments = [
        ((1, "half"), 0),
        ((1, "whole"), 0),
        ((1, "after"), 0),
        ((1, "before"), 0),
        ((1, "half"), 0),
        ((1, "whole"), 0),
        ((1, "after"), 0),
        ((2, "before"), 0),
        ((2, "half"), 0),
        ((2, "whole"), 0),
        ((2, "after"), 1),  # without its digest it is measured again
        ((3, "half"), 1),
        ((3, "after"), 1),
        ((4, "half"), 2),
    ]
    for die, expected in moments:
        forks.run(pictures, tmp_path, there(tmp_path), die=die, **BLOCKS)
        assert forks.ended() == -signal.SIGKILL
        assert there(tmp_path) == expected, die
    assert len(list(tmp_path.rglob("*.tmp"))) == 1  # half a file, which the next start takes away
    forks.run(pictures, tmp_path, there(tmp_path), **BLOCKS)
    assert forks.ended() == 0
    assert results(tmp_path) == results(undisturbed)
    assert not list(tmp_path.rglob("*.tmp"))
