"""What has changed or was damaged between two starts is noticed: blocks of a run, pictures, annotations, weights."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from evaluate.test_runner import results, tiny
from pictures_on_disk import class_folders, draw
from PIL import Image

from vitrail.errors import RunFolderError
from vitrail.evaluate.run_directory import RunFolder
from vitrail.evaluate.run_reader import read_run
from vitrail.evaluate.runner import evaluate
from vitrail.report import build_board
from vitrail.report.checks import warnings

QUESTION = {"methods": ["raw", "complete"], "protocols": ["pointing"], "block": 2}


@pytest.fixture(scope="module")
def model():
    return tiny()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    folder = class_folders(tmp_path_factory.mktemp("pictures"), {"ant": 3, "bee": 3})
    boxes = "".join(f"{path.parent.name}/{path.name},2,2,9,9\n" for path in sorted(folder.glob("*/*")))
    (folder / "boxes.csv").write_text(f"file,x_min,y_min,x_max,y_max\n{boxes}")
    for path in folder.glob("*/*.png"):
        mask = folder.parent / f"{folder.name}-masks" / path.relative_to(folder)
        mask.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.eye(16, 20, dtype=np.uint8)).save(mask)
    return folder


def ask(model, pictures: Path, output: Path, **changes):
    masks = pictures.parent / f"{pictures.name}-masks"
    told = {"boxes": pictures / "boxes.csv", "masks": masks} | changes.pop("data_options", {})
    return evaluate(model, pictures, output=output, data_options=told, **(QUESTION | changes))


@pytest.fixture(scope="module")
def whole(model, pictures, tmp_path_factory) -> Path:
    return ask(model, pictures, tmp_path_factory.mktemp("whole") / "run").folder


@pytest.fixture
def run(whole, tmp_path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "run"))


def flip(path: Path, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8 % len(content)] ^= 1 << bit % 8
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["rows/block-000001.parquet", "maps/block-000002.safetensors"])
def test_no_flipped_bit_is_read_in_silence(run, name):
    bits = np.random.default_rng(0).integers(0, 8 * (run / name).stat().st_size, 60)
    for bit in bits:
        flip(run / name, bit)
        with pytest.raises(RunFolderError, match=rf"{name} is damaged.* start the same `vitrail evaluate` again"):
            read_run(run)
        flip(run / name, bit)
    assert len(read_run(run).rows)


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("rows/block-000001.parquet", empty),
        ("rows/block-000001.parquet", Path.unlink),
        ("rows/block-000001.parquet", lambda path: flip(path, 3333)),
        ("maps/block-000001.safetensors", empty),
        ("maps/block-000001.safetensors", Path.unlink),
        ("maps/block-000001.safetensors", lambda path: flip(path, 9999)),
        ("digests/block-000001.sha256", empty),
        ("digests/block-000001.sha256", lambda path: flip(path, 77)),
    ],
)
def test_a_damaged_block_is_measured_again_and_only_that(model, pictures, whole, run, name, spoil):
    spoil(run / name)
    outcome = ask(model, pictures, run)
    assert (outcome.images, outcome.measured) == (6, 2)
    assert results(run) == results(whole)
    assert [note for note in outcome.notes if note.startswith("measured again: 1 block of images") and name in note]


def test_a_block_whose_digests_were_not_yet_written_is_not_done(model, pictures, whole, run):
    (run / "digests/block-000002.sha256").unlink()
    found = read_run(run)
    assert (found.blocks, found.finished) == (2, False)
    assert set(found.about) == {0, 1, 2, 3}
    assert "has rows of 1 blocks that were never finished: they count for nothing" in found.notes
    assert ask(model, pictures, run).measured == 2
    assert results(run) == results(whole)


def test_the_digests_are_those_of_sha256sum(run, whole):
    line = (run / "digests/block-000000.sha256").read_text().splitlines()[1]
    assert line.split("  ")[1] == "rows/block-000000.parquet"
    assert RunFolder(run).damage(0) is None


def test_a_link_in_the_folder_is_replaced_and_not_followed(model, pictures, whole, run, tmp_path):
    mine = tmp_path / "mine.txt"
    mine.write_text("mine")
    (run / "rows/block-000001.parquet").unlink()
    (run / "rows/block-000001.parquet").symlink_to(mine)
    ask(model, pictures, run)
    assert mine.read_text() == "mine"
    assert results(run) == results(whole)


def older(run: Path) -> Path:
    """The folder as versions before the digests wrote it."""
    shutil.rmtree(run / "digests")
    told = json.loads((run / "manifest.json").read_text())
    (run / "manifest.json").write_text(json.dumps(told | {"format": 1}))
    return run


def test_a_run_of_an_older_version_is_reported_with_a_warning_and_not_resumed(model, pictures, run):
    found = read_run(older(run))
    assert found.finished
    assert list(found.pictures) == [0, 1, 2, 3, 4, 5]
    said = warnings([found], build_board([found], resamples=100))
    assert "run was written by an older Vitrail, without digests: damage to its files would go unnoticed." in said
    with pytest.raises(RunFolderError, match="of format 1, which has no digests .* choose another output="):
        ask(model, pictures, run)


# -- the question ----------------------------------------------------------------------------------------------------


def copied(pictures: Path, place: Path) -> Path:
    shutil.copytree(pictures.parent / f"{pictures.name}-masks", place / "other-masks")
    return Path(shutil.copytree(pictures, place / "other"))


def test_a_copy_of_the_same_data_is_the_same_but_for_its_place(model, pictures, run, tmp_path):
    with pytest.raises(RunFolderError) as refusal:
        ask(model, copied(pictures, tmp_path), run)
    assert "changed" not in str(refusal.value)
    assert "data.spec" in str(refusal.value)


def other_picture(folder: Path) -> None:
    path = folder / "bee/1.png"
    size = path.stat().st_size
    assert any(draw(path, seed=seed).stat().st_size == size for seed in range(1000, 1400))


def other_mask(folder: Path) -> None:
    path = folder.parent / f"{folder.name}-masks/ant/0.png"
    Image.fromarray(np.eye(16, 20, 1, dtype=np.uint8)).save(path)


def other_box(folder: Path) -> None:
    path = folder / "boxes.csv"
    path.write_text(path.read_text().replace("bee/2.png,2,2,9,9", "bee/2.png,2,2,9,8"))


@pytest.mark.parametrize(
    ("spoil", "what"), [(other_picture, "pictures"), (other_mask, "annotations"), (other_box, "annotations")]
)
def test_data_that_changed_at_equal_size_are_noticed(model, pictures, tmp_path, spoil, what):
    folder = copied(pictures, tmp_path)
    ask(model, folder, tmp_path / "run")
    spoil(folder)
    with pytest.raises(RunFolderError, match=rf"run: the {what} have changed since \(data\.digests\.{what}\)\. Choose"):
        ask(model, folder, tmp_path / "run")


def test_other_weights_and_class_names_are_noticed(model, pictures, run):
    from dataclasses import replace

    with pytest.raises(RunFolderError, match=r'model\.class_names is \["ant", "bee", "cat", "dog"\] there and'):
        ask(replace(model, class_names=("ant", "bee", "cow", "dog")), pictures, run)
    other = tiny()
    other.module.head.bias.data += 1e-6
    with pytest.raises(RunFolderError, match=r'model\.weights is "[0-9a-f]{64}" there and'):
        ask(other, pictures, run)
