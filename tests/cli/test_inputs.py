"""Which files are meant, and what their results are called."""

import os
from collections import Counter
from pathlib import Path

import pytest

from vitrail.cli.inputs import Found, OutputNames, find_images, slug
from vitrail.images import skipped


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def places(arguments: list[str], **options: Path) -> list[str]:
    found, failures = find_images(arguments, **options)
    assert not failures
    return [image.place.as_posix() for image in found]


def test_a_file_is_taken_whatever_its_name(tmp_path: Path) -> None:
    touch(tmp_path / "picture", tmp_path / "scan.xyz")
    assert places([str(tmp_path / "picture"), str(tmp_path / "scan.xyz")]) == ["picture", "scan"]


def test_folders_are_searched_to_the_bottom_in_order(tmp_path: Path) -> None:
    touch(
        *(
            tmp_path / name
            for name in ("b.JPG", "a.png", "z/y/c.webp", "notes.txt", ".hidden.png", ".git/d.png", "out/a.zebra.png")
        )
    )
    assert places([str(tmp_path)], leave_out=tmp_path / "out") == ["a", "b", "z/y/c"]


def test_links_are_followed_and_lead_nowhere_twice(tmp_path: Path) -> None:
    touch(tmp_path / "elsewhere" / "b.png", tmp_path / "photos" / "a.png")
    (tmp_path / "photos" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "photos")
    (tmp_path / "photos" / "again").symlink_to(tmp_path / "photos")
    assert places([str(tmp_path / "photos")]) == ["a", "linked/b"]
    assert places([str(tmp_path / "photos")], leave_out=tmp_path / "photos") == ["a", "linked/b"]
    assert places([str(tmp_path / "photos")], leave_out=tmp_path / "elsewhere") == ["a"]


def test_one_line_counts_the_files_that_are_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    touch(*(tmp_path / name for name in ("a.png", "b.CR2", "c.cr2", "sub/d.svg", "labels.csv", "IMG_1", ".d.heic")))
    with caplog.at_level("WARNING", logger="vitrail"):
        assert places([str(tmp_path)]) == ["a"]
    assert caplog.messages == ["4 files were skipped: 1 without a suffix, 2 .cr2, 1 .svg (convert them to PNG or JPEG)"]


def test_skipped_heic_files_are_told_their_reader() -> None:
    assert skipped(Counter({".heic": 10, ".txt": 3})) == (
        "10 files were skipped: 10 .heic (to read them: pip install pillow-heif)"
    )
    assert skipped(Counter({".txt": 3})) is None


def test_each_file_counts_once(tmp_path: Path) -> None:
    touch(tmp_path / "a.png")
    (tmp_path / "link.png").symlink_to(tmp_path / "a.png")
    assert places([str(tmp_path / "a.png"), str(tmp_path), str(tmp_path / "*.png")]) == ["a"]


def test_patterns_are_expanded_unless_a_file_is_called_so(tmp_path: Path) -> None:
    touch(tmp_path / "a[1].png", tmp_path / "a1.png", tmp_path / "deep" / "er" / "b.png")
    assert places([str(tmp_path / "a[1].png")]) == ["a[1]"]
    assert places([str(tmp_path / "a?.png")]) == ["a1"]
    assert places([str(tmp_path / "**" / "*.png")]) == ["a1", "a[1]", "b"]


def test_what_names_nothing_is_a_failure_and_the_rest_goes_on(tmp_path: Path) -> None:
    touch(tmp_path / "a.png")
    (tmp_path / "empty").mkdir()
    found, failures = find_images([str(tmp_path / "*.gif"), str(tmp_path / "empty"), str(tmp_path / "a.png")])
    assert [image.path.name for image in found] == ["a.png"]
    assert [str(error).split("(")[0] for _, error in failures] == [
        "no file matches this pattern",
        "no image in this folder ",
    ]


def test_a_missing_file_is_left_to_the_reader_of_images() -> None:
    assert places(["nowhere/zebra.png"]) == ["zebra"]


def found(*paths: str) -> list[Found]:
    return [Found(Path(path), Path(path).relative_to(Path(path).parts[0]).with_suffix("")) for path in paths]


def names(folder: Path, images: list[Found]) -> list[str]:
    outputs = OutputNames(folder, images)
    return [outputs.path(image, "zebra", "png").relative_to(folder).as_posix() for image in images]


def test_names_keep_folders() -> None:
    assert names(Path("out"), found("in/zoo.jpg", "in/a/zoo.jpg")) == ["zoo.zebra.png", "a/zoo.zebra.png"]


def test_two_images_never_share_a_name() -> None:
    assert names(Path("out"), found("x/zoo.jpg", "y/zoo.jpg")) == ["zoo.zebra.png", "zoo-2.zebra.png"]
    assert names(Path("out"), found("x/zoo.jpg", "x/ZOO.png")) == ["zoo.zebra.png", "ZOO-2.zebra.png"]
    assert names(Path("out"), found("x/zoo.jpg", "y/zoo.jpg", "x/zoo-2.jpg")) == [
        "zoo.zebra.png",
        "zoo-3.zebra.png",
        "zoo-2.zebra.png",
    ]


def test_an_image_is_never_overwritten(tmp_path: Path) -> None:
    touch(tmp_path / "zoo.png", tmp_path / "zoo.zebra.png")
    images, _ = find_images([str(tmp_path)])
    assert names(tmp_path, images) == ["zoo.zebra-2.png", "zoo.zebra.zebra.png"]


@pytest.mark.parametrize("stem", ["n" * 300, "é" * 200, "caf\udce9" * 60])
def test_long_names_are_cut(tmp_path: Path, stem: str) -> None:
    [name] = names(Path("out"), [Found(Path(stem), Path(stem))])
    assert len(os.fsencode(name)) <= 120
    assert name.endswith(".zebra.png")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("African elephant", "african-elephant"),
        ("crane (134)", "crane-134"),
        ("斑马", "斑马"),
        ("../..", "unnamed"),
        ("class 7", "class-7"),
    ],
)
def test_slug(name: str, expected: str) -> None:
    assert slug(name) == expected
