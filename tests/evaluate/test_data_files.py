"""Folders, lists and the files that stand beside them: what is read, what is left out, what is refused."""

import os
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures_on_disk import class_folders, draw, labels, sources, toy
from PIL import Image

from vitrail.datasets import Dataset, Sample, open_data
from vitrail.datasets.label_resolver import LabelResolver
from vitrail.datasets.open import select
from vitrail.errors import DataError, ImageError


def test_class_folders_by_name_index_and_wordnet_id(tmp_path):
    class_folders(tmp_path, {"1": 1, "American_eagle": 2, "horse": 1})
    data = open_data(tmp_path, toy())
    assert isinstance(data, Dataset)
    assert sources(data) == ["1/0.png", "American_eagle/0.png", "American_eagle/1.png", "horse/0.png"]
    assert labels(data) == [1, 1, 1, 0]
    assert data.annotations == {"label"}
    assert data.notes == []
    wordnet = class_folders(tmp_path / "wordnet", {"n02374451": 1, "n01614925_eagle": 1})
    # n01614925 is the bald eagle; n02374451, the horse, is in ImageNet-22k only: found by the words of WordNet
    assert dict(zip(sources(open_data(wordnet, toy())), labels(open_data(wordnet, toy())), strict=True)) == {
        "n01614925_eagle/0.png": 1,
        "n02374451/0.png": 0,
    }


def test_an_empty_class_and_foreign_classes_are_counted(tmp_path):
    class_folders(tmp_path, {"horse": 2, "bald eagle": 0, "yeti": 3, "crane": 1, "99": 1, "train": 1})
    data = open_data(tmp_path, toy((*("horse", "bald eagle", "crane", "crane"), "bullet train")))
    assert labels(data) == [0, 0]
    empty, outside = data.notes
    assert empty == "without any picture: 1 class folder, bald eagle"
    assert outside.startswith("left out: 6 of 8 pictures, of classes that are not the model's: 99 (1), crane (1),")
    assert "several classes are called crane: give the index or the WordNet id" in outside


def test_nothing_of_the_models_classes_is_an_error(tmp_path):
    class_folders(tmp_path, {"yeti": 2})
    with pytest.raises(DataError, match=r"none of the 2 pictures is of a class of the model's: yeti \(2\); a class is"):
        open_data(tmp_path, toy())


def test_folders_that_are_missing_empty_or_no_folder(tmp_path):
    with pytest.raises(DataError, match="nowhere does not exist"):
        open_data(tmp_path / "nowhere", toy())
    with pytest.raises(DataError, match=r"holds no picture \(suffixes avif bmp"):
        open_data(tmp_path, toy())
    with pytest.raises(DataError, match=r"a\.png is neither a folder nor a list"):
        open_data(draw(tmp_path / "a.png"), toy())
    with pytest.raises(DataError, match="limit=0 leaves no picture"):
        open_data(tmp_path, toy(), limit=0)


def test_an_unreadable_folder_is_named(tmp_path, monkeypatch):
    class_folders(tmp_path, {"horse": 1})

    def locked(top, onerror, **options):  # the tests may run as a user whom no permission stops
        onerror(PermissionError(13, "Permission denied", f"{top}/horse"))
        return iter(())

    monkeypatch.setattr("vitrail.images.os.walk", locked)
    with pytest.raises(DataError, match="horse cannot be read: Permission denied"):
        open_data(tmp_path, toy())


def test_names_of_files_tell_the_class(tmp_path):
    for name in ("n01614925_whatever.png", "horse-3.png", "bald_eagle.png", "IMG_17.png", "1.png"):
        draw(tmp_path / name)
    data = open_data(tmp_path, toy())
    told = dict(zip(sources(data), labels(data), strict=True))
    assert told["n01614925_whatever.png"] == told["bald_eagle.png"] == 1
    assert told["horse-3.png"] == 0
    assert told["IMG_17.png"] is told["1.png"] is None
    assert data.notes == ["of no known class: 2 of 5 pictures"]


def test_a_table_of_labels_overrules_and_leaves_out(tmp_path):
    folder = class_folders(tmp_path / "photos", {"horse": 3})
    (tmp_path / "labels.csv").write_text("file,class\nhorse/0.png,bald eagle\n1.png,2\n")
    data = open_data(folder, toy(), labels=tmp_path / "labels.csv")
    assert (sources(data), labels(data)) == (["horse/0.png", "horse/1.png"], [1, 2])
    assert data.notes == [f"left out: 1 picture that {tmp_path / 'labels.csv'} does not name"]
    (tmp_path / "labels.csv").write_text("file\nhorse/0.png\n")
    with pytest.raises(DataError, match="has no column of classes"):
        open_data(folder, toy(), labels=tmp_path / "labels.csv")
    (tmp_path / "labels.csv").write_text("picture,class\nhorse/0.png,1\n")
    with pytest.raises(DataError, match=r"no column that names files .* its columns are picture, class"):
        open_data(folder, toy(), labels=tmp_path / "labels.csv")
    with pytest.raises(DataError, match=r"absent\.csv does not exist"):
        open_data(folder, toy(), labels=tmp_path / "absent.csv")


def test_a_table_may_not_mean_two_pictures_by_one_name(tmp_path):
    folder = class_folders(tmp_path / "photos", {"horse": 1, "bald eagle": 1})
    (tmp_path / "labels.csv").write_text("file,class\n0.png,1\n")
    with pytest.raises(DataError, match=r"names 0\.png, and 2 pictures are called so .* name them by their paths"):
        open_data(folder, toy(), labels=tmp_path / "labels.csv")


@pytest.mark.parametrize("kind", ["csv", "tsv", "parquet"])
def test_a_list_with_boxes_and_masks(tmp_path, kind):
    draw(tmp_path / "photos" / "a.png")
    draw(tmp_path / "photos" / "b.png")
    mask = np.zeros((16, 20), dtype=np.uint8)
    mask[2:5, 3:9] = 7
    Image.fromarray(mask).save(tmp_path / "mask.png")
    rows = [
        ("photos/a.png", "horse", 1, 2, 9, 8, "mask.png"),
        ("photos/a.png", "horse", 5, 5, 12, 12, "mask.png"),
        ("photos/a.png", "bald eagle", 0, 0, 3, 3, "mask.png"),
        ("photos/b.png", "n01614925", None, None, None, None, None),
    ]
    header = ["file", "label", "x_min", "y_min", "x_max", "y_max", "mask"]
    path = tmp_path / f"list.{kind}"
    if kind == "parquet":
        pa = pytest.importorskip("pyarrow")
        import pyarrow.parquet

        columns = [list(column) for column in zip(*rows, strict=True)]
        pyarrow.parquet.write_table(pa.table(dict(zip(header, columns, strict=True))), path)
    else:
        mark = "," if kind == "csv" else "\t"
        lines = [mark.join("" if value is None else str(value) for value in row) for row in (header, *rows)]
        path.write_text("\n".join(lines))
    data = open_data(path, toy())
    assert (sources(data), labels(data)) == (["photos/a.png", "photos/b.png"], [0, 1])
    assert data.annotations == {"label", "boxes", "mask"}
    first, second = data.sample(0), data.sample(1)
    assert first.boxes == ((1, 2, 9, 8), (5, 5, 12, 12))  # not the eagle's, for the label is horse
    assert first.mask is not None
    assert (first.mask == (mask > 0)).all()
    assert second.boxes is None
    assert second.mask is None


def test_a_picture_of_several_classes_has_them_all(tmp_path):
    draw(tmp_path / "a.png")
    draw(tmp_path / "b.png", seed=1)
    (tmp_path / "list.csv").write_text("file,class_name\na.png,horse\na.png,bald eagle\na.png,horse\nb.png,horse\n")
    data = open_data(tmp_path / "list.csv", toy())
    assert [(one.label, list(one.labels)) for one in map(data.sample, range(2))] == [(0, [0, 1]), (0, [])]
    before = data.describe()["digests"]
    (tmp_path / "list.csv").write_text("file,class_name\na.png,horse\na.png,horse\nb.png,horse\n")
    after = open_data(tmp_path / "list.csv", toy()).describe()["digests"]
    assert {name for name in before if before[name] != after[name]} == {"annotations"}


def test_lists_that_cannot_be_used(tmp_path):
    path = tmp_path / "list.csv"
    path.write_text("file,label\na.png,1\nb.png,0\n")
    with pytest.raises(
        DataError, match=r"none of the 2 files of .*list\.csv exists.*relative to the list's own folder"
    ):
        open_data(path, toy())
    path.write_text("file,label\n")
    with pytest.raises(DataError, match="holds no row below its header"):
        open_data(path, toy())
    path.write_text("file,label\n,1\n")
    with pytest.raises(DataError, match="row 2: the column file is empty"):
        open_data(path, toy())
    path.write_text("file,x_min,y_min,x_max,y_max\na.png,1,2,three,4\n")
    with pytest.raises(DataError, match="row 2: a box is four numbers of pixels, not 1, 2, three, 4"):
        open_data(path, toy())
    (tmp_path / "list.parquet").write_bytes(b"no parquet")
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        open_data(tmp_path / "list.parquet", toy())


def test_boxes_of_the_localisation_challenge_and_of_xml_agree(tmp_path):
    folder = tmp_path / "val"
    for name in ("one.png", "two.png"):
        draw(folder / name)
    (tmp_path / "solution.csv").write_text(
        "ImageId,PredictionString\none,n01614925 1 2 9 8 n01614925 3 4 10 12 \nthree,n01614925 1 2 3 4\n"
    )
    xml = tmp_path / "xml"
    xml.mkdir()
    objects = "".join(
        f"<object><name>n01614925</name><bndbox><xmin>{a}</xmin><ymin>{b}</ymin><xmax>{c}</xmax><ymax>{d}</ymax>"
        "</bndbox></object>"
        for a, b, c, d in ((1, 2, 9, 8), (3, 4, 10, 12))
    )
    (xml / "one.xml").write_text(f"<annotation><filename>one</filename>{objects}</annotation>")
    for path in (tmp_path / "solution.csv", xml):
        data = open_data(folder, toy(), boxes=path)
        assert labels(data) == [1, None]
        assert data.sample(0).boxes == ((1, 2, 9, 8), (3, 4, 10, 12))
        assert data.notes == [f"without a box in {path}: 1 of 2 pictures", "of no known class: 1 of 2 pictures"]


def test_box_files_that_cannot_be_used(tmp_path):
    folder = tmp_path / "val"
    draw(folder / "one.png")
    table = tmp_path / "boxes.csv"
    table.write_text("file,x_min,y_min,x_max,y_max\nother.png,1,2,3,4\n")
    with pytest.raises(DataError, match=r"names none of the 1 pictures: it begins with other\.png, the pictures with"):
        open_data(folder, toy(), boxes=table)
    table.write_text("file,label\none.png,1\n")
    with pytest.raises(DataError, match="holds no box: give the columns x_min, y_min, x_max, y_max"):
        open_data(folder, toy(), boxes=table)
    table.write_text("ImageId,PredictionString\none,n01614925 1 2 3\n")
    with pytest.raises(DataError, match="row 2: 4 words are not a multiple of five"):
        open_data(folder, toy(), boxes=table)
    (tmp_path / "xml").mkdir()
    with pytest.raises(DataError, match="holds no XML file of a picture of the data"):
        open_data(folder, toy(), boxes=tmp_path / "xml")
    (tmp_path / "xml" / "one.xml").write_text("<annotation><object>")
    with pytest.raises(DataError, match="cannot be read as Pascal's XML"):
        open_data(folder, toy(), boxes=tmp_path / "xml")
    table.write_text("file,x_min,y_min,x_max,y_max\none.png,9,2,9,8\none.png,30,2,39,8\n")
    data = open_data(folder, toy(), boxes=table)
    assert data.notes[0] == "one.png: a box without area is left out (9, 2, 9, 8)"
    with pytest.raises(ImageError, match=r"20 x 16 pixels, and its box \(30, 2, 39, 8\) lies outside"):
        data.sample(0)


def test_segmentation_folders_and_which_value_counts(tmp_path):
    draw(tmp_path / "images" / "a.png")
    draw(tmp_path / "images" / "b.png")
    values = np.zeros((16, 20), dtype=np.uint8)
    values[:4], values[4:8] = 17, 18
    (tmp_path / "masks").mkdir()
    Image.fromarray(values).save(tmp_path / "masks" / "a.png")
    data = open_data(tmp_path, toy())
    assert data.annotations == {"mask"}
    assert data.sample(0).mask.sum() == 160
    assert data.notes[0] == f"without a mask in {tmp_path / 'masks'}: 1 of 2 pictures"
    assert open_data(tmp_path, toy(), category=18).sample(0).mask.sum() == 80
    assert (
        open_data(tmp_path / "images", toy(), masks=tmp_path / "masks", category=[17, 18]).sample(0).mask.sum() == 160
    )
    Image.fromarray(values[:10]).save(tmp_path / "masks" / "b.png")
    with pytest.raises(ImageError, match=r"b\.png has 20 x 10 pixels and its picture 20 x 16: give masks at"):
        open_data(tmp_path, toy()).sample(1)
    with pytest.raises(DataError, match="holds no mask of any of the 2 pictures"):
        open_data(tmp_path / "images", toy(), masks=class_folders(tmp_path / "other", {"horse": 1}))
    with pytest.raises(DataError, match="absent does not exist"):
        open_data(tmp_path / "images", toy(), masks=tmp_path / "absent")
    with pytest.raises(DataError, match="is a value of masks, and .* comes without"):
        open_data(tmp_path / "images", toy(), category=3)


def test_a_corrupt_picture_is_an_image_error_and_the_others_are_read(tmp_path):
    class_folders(tmp_path, {"horse": 3})
    whole = (tmp_path / "horse" / "1.png").read_bytes()
    (tmp_path / "horse" / "1.png").write_bytes(whole[: len(whole) // 2])
    data = open_data(tmp_path, toy())
    with pytest.raises(ImageError):
        data.sample(1)
    assert data.sample(0).label == data.sample(2).label == 0


def test_the_description_opens_the_same_data_and_notices_changes(tmp_path):
    class_folders(tmp_path, {"horse": 4, "bald eagle": 4})
    data = open_data(tmp_path, toy(), limit=3, seed=5)
    told = data.describe()
    again = open_data(
        told["spec"], toy(), **{name: told[name] for name in ("boxes", "labels", "masks", "limit", "seed", "one_class")}
    )
    assert again.describe() == told
    assert pickle.loads(pickle.dumps(data)).describe() == told
    changed = tmp_path / data.source(0)
    changed.write_bytes(changed.read_bytes() + b" ")
    now = open_data(tmp_path, toy(), limit=3, seed=5).describe()["digests"]
    assert [name for name, digest in now.items() if digest != told["digests"][name]] == ["pictures"]


def test_limits_are_even_over_the_classes_and_one_class_can_be_asked_for(tmp_path):
    class_folders(tmp_path, {"horse": 9, "bald eagle": 3})
    model = toy()
    assert sorted(labels(open_data(tmp_path, model, limit=4, seed=1))) == [0, 0, 1, 1]
    drawn = {tuple(sources(open_data(tmp_path, model, limit=4, seed=seed))) for seed in (1, 1, 2, 3, 4, 5)}
    assert 1 < len(drawn) <= 5
    assert labels(open_data(tmp_path, model, one_class="American eagle")) == [1, 1, 1]
    with pytest.raises(DataError, match="one_class=yeti is no class of the model"):
        open_data(tmp_path, model, one_class="yeti")
    with pytest.raises(DataError, match="none of the 12 pictures of .* is of the class 2"):
        open_data(tmp_path, model, one_class=2)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=30), st.integers(1, 30), st.integers(0, 99))
def test_selection_is_even_ordered_and_grows(classes, limit, seed):
    chosen = select(classes, limit, seed)
    assert chosen == sorted(set(chosen))
    assert len(chosen) == min(limit, len(classes))
    assert set(chosen) <= set(select(classes, limit + 1, seed))
    taken = {label: sum(classes[place] == label for place in chosen) for label in set(classes)}
    for label, count in taken.items():  # a class is behind another only where it has no more
        assert count >= max(taken.values()) - 1 or count == classes.count(label)


def test_a_data_set_of_ones_own(tmp_path):
    class Own:
        annotations = frozenset({"label"})

        def __len__(self):
            return 3

        def source(self, index):
            return f"own {index}"

        def sample(self, index):
            return Sample(picture=Image.new("RGB", (8, 8)), label=index % 2)

        def describe(self):
            return {"kind": "own"}

    data = open_data(Own(), toy(), limit=2)
    assert sorted(labels(data)) == [0, 1]
    assert data.describe()["given"] == {"kind": "own"}
    with pytest.raises(DataError, match=r"masks=m is of no use for Own; leave it out"):
        open_data(Own(), toy(), masks=Path("m"))


def test_real_photographs_by_wordnet_id_boxes_and_masks(shared, vit_tiny, tmp_path):
    images = shared / "images"
    known = [line.split(",")[:2] for line in (images / "imagenet_classes.csv").read_text().splitlines()[1:]]
    index = {wnid: int(number) for number, wnid in known}
    for path in (images / "one-per-class").iterdir():
        (tmp_path / path.name.split("_")[0]).mkdir()
        (tmp_path / path.name.split("_")[0] / path.name).symlink_to(path)
    data = open_data(tmp_path, vit_tiny)
    assert len(data) == 43
    assert data.notes == []
    assert all(data.label(i) == index[data.source(i)[:9]] for i in range(43))
    classes = LabelResolver.of(vit_tiny)
    assert {wnid: classes.find(wnid) for wnid in index} == index
    boxed = open_data(images / "imagenet-val", vit_tiny, boxes=images / "imagenet-val" / "boxes.csv")
    rows = [line.split(",") for line in (images / "imagenet-val" / "boxes.csv").read_text().splitlines()[1:]]
    assert len(boxed) == 300
    assert boxed.notes == []
    assert sum(len(entry.boxes) for entry in boxed.inner.inner.entries) == len(rows) == 449
    assert {boxed.source(i): boxed.label(i) for i in range(300)} == {row[0]: int(row[2]) for row in rows}
    coco = open_data(images / "coco-val", vit_tiny, category=1)
    sample = coco.sample(0)
    values = np.asarray(Image.open(images / "coco-val" / "masks" / "000000000139.png"))
    assert re.sub(r"\D", "", coco.source(0)) == "000000000139"
    assert (sample.mask == (values == 1)).all()


# -- what can only be meant otherwise ----------------------------------------------------------------------------------


def boxed(tmp_path, *lines: str, header: str = "file,x_min,y_min,x_max,y_max"):
    for number, name in enumerate(("one", "two", "three")):
        draw(tmp_path / "photos" / f"{name}.png", seed=number)  # of 20 x 16 pixels
    (tmp_path / "boxes.csv").write_text("\n".join([header, *lines, ""]))
    return open_data(tmp_path / "photos", toy(), boxes=tmp_path / "boxes.csv")


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (
            ["one.png,0.1,0.2,0.9,0.8", "two.png,0,0,1,1"],
            r"boxes\.csv: these look like fractions of the picture, since",
        ),
        (["one.png,9,9,2,2", "two.png,5,5,5,9"], "none of its 2 boxes can be used: 2 without area"),
        (["one.png,1,1,nan,9"], "row 2: a box is four numbers of pixels, not 1, 1, nan, 9"),
        (["one.png,1,1,inf,9"], "row 2: a box is four numbers of pixels"),
    ],
)
def test_boxes_that_are_all_wrong_are_refused_before_anything_is_measured(tmp_path, lines, said):
    with pytest.raises(DataError, match=said):
        boxed(tmp_path, *lines)


@pytest.mark.parametrize(
    ("box", "said"),
    [
        ("0.1,0.2,0.9,0.8", "looks like fractions of the picture"),
        ("4.1,4.1,4.3,9", "covers no pixel"),
        ("2,2,16,20", r"lies partly outside \(with x and y swapped it would not\)"),
        ("2,2,40,40", r"lies partly outside; boxes are left, top"),
        ("30,2,40,9", "lies outside"),
    ],
)
def test_a_box_that_cannot_be_meant_is_a_fault_of_its_picture(tmp_path, box, said):
    data = boxed(tmp_path, f"one.png,{box}", "two.png,2,2,9,9", "three.png,1,1,21,17")
    with pytest.raises(ImageError, match=said):
        data.sample(data.inner.inner.entries.index(next(e for e in data.inner.inner.entries if e.source == "one.png")))
    assert [data.sample(i).boxes for i in range(3) if data.source(i) != "one.png"] == [
        ((1, 1, 21, 17),),
        ((2, 2, 9, 9),),
    ]


def test_boxes_of_ones_own_data_set_are_checked_alike():
    class Fractions:
        annotations = frozenset({"boxes"})

        def __len__(self):
            return 1

        def source(self, index):
            return "mine"

        def sample(self, index):
            return Sample(picture=Image.new("RGB", (20, 16)), boxes=[(0.1, 0.1, 0.9, 0.9)])

        def describe(self):
            return {}

    with pytest.raises(ImageError, match="mine has 20 x 16 pixels, and its box .* looks like fractions"):
        open_data(Fractions(), toy()).sample(0)


def test_names_that_are_no_utf8_or_hold_a_nul_are_borne(tmp_path):
    path = draw(tmp_path / "photos" / "plain.png")
    path.rename(path.parent / os.fsdecode(b"b\xff.png"))
    data = open_data(tmp_path / "photos", toy())
    assert data.source(0) == r"b\xff.png"
    assert data.sample(0).picture.size == (20, 16)
    with pytest.raises(DataError, match="cannot be read as a table"):
        open_data(tmp_path / "photos", toy(), boxes="a\0b.csv")
    with pytest.raises(DataError, match="does not exist"):
        open_data("a\0b", toy())


def test_a_pipe_in_the_place_of_a_mask_does_not_hang(tmp_path):
    draw(tmp_path / "photos" / "one.png")
    (tmp_path / "masks").mkdir()
    os.mkfifo(tmp_path / "masks" / "one.png")
    with pytest.raises(ImageError, match="mask .* cannot be read: .*it is not a regular file"):
        open_data(tmp_path / "photos", toy(), masks=tmp_path / "masks").sample(0)
