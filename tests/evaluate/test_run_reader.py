"""A run's folder is read back number for number, and a folder that is none is refused by name."""

import json
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from run_folder import SCHEMA, evaluated, manifest, write_run

from vitrail.errors import OptionError, RunFolderError
from vitrail.evaluate.run_reader import Failure, read_run
from vitrail.report import build_board


def small(folder, rows=None, **other):
    told = manifest(40, ["a", "b"], {"plain": {}, "perturbation": {"unit": "patch"}})
    if rows is None:
        rows = [
            (i, m, "plain", "hit", step, i + 100.0 * (m == "b") + step)
            for i in (33, 2, 17)
            for m in ("a", "b")
            for step in (0.5, 0.0, 1.0)
        ]
    return write_run(folder, told, rows, **other)


def test_curves_have_images_ascending_and_steps_ascending(tmp_path):
    run = read_run(small(tmp_path / "run"))
    curves = run.curves("b", "plain")
    assert curves.images.tolist() == [2, 17, 33]
    assert curves.steps == {"hit": (0.0, 0.5, 1.0)}
    assert curves.values["hit"].tolist() == [[102.0, 102.5, 103.0], [117.0, 117.5, 118.0], [133.0, 133.5, 134.0]]
    assert (run.name, run.methods, run.blocks, run.expected_blocks, run.finished) == ("run", ("a", "b"), 3, 3, True)
    assert run.measures("plain") == ("hit",)
    assert run.sources() == {2: "scene-00002", 17: "scene-00017", 33: "scene-00033"}
    assert run.about[17] == ("scene-00017", 2, 2, 2)


def test_a_step_that_an_image_lacks_is_nan_and_a_number_without_steps_has_the_step_none(tmp_path):
    rows = [(0, "a", "plain", "hit", 0.0, 1.0), (0, "a", "plain", "hit", 1.0, 2.0), (5, "a", "plain", "hit", 1.0, 3.0)]
    rows += [(5, "a", "plain", "once", None, 9.0), (0, "a", "plain", "once", None, 8.0)]
    curves = read_run(small(tmp_path / "run", rows)).curves("a", "plain")
    np.testing.assert_array_equal(curves.values["hit"], [[1.0, 2.0], [np.nan, 3.0]])
    assert curves.steps["once"] == (None,)
    assert curves.single("once").tolist() == [8.0, 9.0]


def test_a_method_without_any_number_has_empty_curves(tmp_path):
    run = read_run(small(tmp_path / "run"))
    curves = run.curves("a", "perturbation")
    assert not len(curves.images)
    assert curves.values == {}
    assert run.measures("perturbation") == ()
    with pytest.raises(OptionError, match="no method 'c'; it has a, b"):
        run.curves("c", "plain")
    assert list(run.about) == [2, 17, 33]


def test_failures_of_all_blocks_are_listed(tmp_path):
    first = {"image": 1, "source": "x.jpg", "method": None, "protocol": None, "reason": "broken"}
    later = {"image": 39, "source": "y.jpg", "method": "a", "protocol": "plain", "reason": "NaN"}
    run = read_run(small(tmp_path / "run", failures=[first, later]))
    assert run.failures == (Failure(1, "x.jpg", None, None, "broken"), Failure(39, "y.jpg", "a", "plain", "NaN"))


def test_what_was_seen_and_the_maps_are_read_when_asked_for(tmp_path):
    rng = np.random.default_rng(0)
    pictures = {i: rng.integers(0, 255, (8, 8, 3), dtype=np.uint8) for i in (2, 33)}
    maps = {(2, "a"): rng.normal(size=(2, 2)).astype(np.float32)}
    run = read_run(small(tmp_path / "run", pictures=pictures, maps=maps))
    assert list(run.pictures) == [2, 33]
    np.testing.assert_array_equal(run.seen(33), pictures[33])
    np.testing.assert_array_equal(run.map(2, "a"), maps[2, "a"])
    assert run.map(33, "a") is None
    with pytest.raises(OptionError, match="no picture of image 17"):
        run.seen(17)


def test_a_run_that_stopped_half_way_is_read_and_says_so(tmp_path):
    folder = small(tmp_path / "run")
    (folder / "rows" / "block-000002.parquet").unlink()
    run = read_run(folder)
    assert (run.blocks, run.expected_blocks, run.finished) == (2, 3, False)
    assert run.curves("a", "plain").images.tolist() == [2, 17]


def test_a_run_without_any_block_is_empty(tmp_path):
    folder = small(tmp_path / "run")
    for file in (folder / "rows").iterdir():
        file.unlink()
    run = read_run(folder)
    assert (len(run.rows), run.failures, run.pictures) == (0, (), {})
    assert not len(run.curves("a", "plain").images)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "manifest.json").unlink(), r"is not the folder of a run: cannot read .*manifest.json"),
        (lambda f: (f / "manifest.json").write_text("{"), r"manifest.json is damaged"),
        (lambda f: (f / "manifest.json").write_text("[]"), r"names no format"),
        (lambda f: edit(f, format=3), r"of format 3, and this Vitrail reads up to 2"),
        (lambda f: edit(f, methods=None), r"does not tell its methods"),
        (lambda f: edit(f, methods=["b"]), r"rows of a, of which its manifest.json says nothing"),
        (lambda f: (f / "rows/block-000001.parquet").write_bytes(b"PAR1 rubbish PAR1"), r"block-000001.parquet is dam"),
        (lambda f: cut(f / "rows/block-000002.parquet"), r"block-000002.parquet is damaged"),
        (lambda f: strip(f / "rows/block-000000.parquet"), r"block-000000.parquet is damaged .*it has no column value"),
    ],
)
def test_a_folder_that_is_none_or_damaged_is_refused_by_name(tmp_path, spoil, message):
    folder = small(tmp_path / "run")
    spoil(folder)
    with pytest.raises(RunFolderError, match=message):
        read_run(folder)


def edit(folder, **changes):
    told = json.loads((folder / "manifest.json").read_text()) | changes
    told = {name: value for name, value in told.items() if value is not None}
    (folder / "manifest.json").write_text(json.dumps(told))


def cut(path):
    path.write_bytes(path.read_bytes()[:-40])


def strip(path):
    pq.write_table(pq.read_table(path).drop_columns(["value"]), path)


def test_a_number_that_is_there_twice_is_refused(tmp_path):
    run = read_run(small(tmp_path / "run", [(0, "a", "plain", "hit", 0.0, 1.0), (0, "a", "plain", "hit", 0.0, 2.0)]))
    with pytest.raises(RunFolderError, match="2 numbers of a, plain, hit for 1 images and steps: some are there twice"):
        run.curves("a", "plain")


def test_a_damaged_file_of_maps_is_named(tmp_path):
    folder = small(tmp_path / "run", pictures={0: np.zeros((2, 2, 3), np.uint8)})
    (folder / "maps" / "block-000000.safetensors").write_bytes(b"rubbish")
    with pytest.raises(RunFolderError, match=r"block-000000.safetensors is damaged"):
        _ = read_run(folder).pictures


def test_a_real_evaluation_comes_back_as_it_was_measured(tmp_path):
    run = read_run(evaluated(tmp_path / "run", images=2))
    curves = run.curves("complete:libra", "perturbation")
    assert curves.values["positive.hit"].shape == (2, 10)
    assert curves.steps["negative.hit"][:2] == (0.0, 0.1)
    assert run.map(1, "gae").shape == (12, 12)
    assert run.seen(0).shape == (96, 96, 3)


@pytest.mark.slow
def test_fifty_thousand_images_are_read_and_compared(tmp_path):
    images, methods, steps, block = 50_000, 12, 20, 500
    told = manifest(images, [f"m{k}" for k in range(methods)], {"plain": {}}, block=block)
    folder = write_run(tmp_path / "run", told | {"images": 1}, [])
    (folder / "manifest.json").write_text(json.dumps(told))
    rng = np.random.default_rng(0)
    for b in range(images // block):
        image = np.repeat(np.arange(b * block, (b + 1) * block, dtype=np.int32), methods * steps)
        method = np.tile(np.repeat([f"m{k}" for k in range(methods)], steps), block)
        values = rng.normal(size=len(image))
        words = [pa.array(np.char.add("image-", image.astype(str))), *[pa.array(image % 1000)] * 3, pa.array(method)]
        plain = [pa.array(["plain"] * len(image)), pa.array(["hit"] * len(image))]
        step = pa.array(np.tile(np.arange(steps) / steps, block * methods))
        table = pa.table([pa.array(image), *words, *plain, step, pa.array(values)], schema=SCHEMA)
        pq.write_table(table, folder / "rows" / f"block-{b:06d}.parquet")
    started = time.perf_counter()
    run = read_run(folder)
    read = time.perf_counter() - started
    board = build_board([run])
    took = time.perf_counter() - started
    assert all(curves.values["hit"].shape == (images, steps) for curves in board.curves.values())
    assert len(board.columns[0].pairs) == methods * (methods - 1)
    print(f"{len(run.rows):,} rows: {read:.1f} s to read, {took:.1f} s with the table")  # noqa: T201 (what is asked for)
