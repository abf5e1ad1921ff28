"""Mosaics, stitched pictures, the bestiary, Hugging Face data sets and the segmentation archive."""

import builtins
import pickle
import re
from dataclasses import replace

import families
import numpy as np
import pytest
import torch
from pictures_on_disk import class_folders, draw, labels, sources, toy
from PIL import Image

import vitrail
from vitrail.datasets import open_data
from vitrail.datasets.geometry import seen
from vitrail.errors import DataError, ImageError
from vitrail.experiments.stitched_perturbation import stitch_pictures
from vitrail.images import read_image
from vitrail.models import VisionModel

NAMES = ("kite", "bald eagle", "zebra", "snail", "conch", "slug", "coil")


@pytest.fixture(scope="module")
def model() -> VisionModel:
    family = families.FAMILIES["timm_vit"]
    size = family.image_size
    preprocess = vitrail.Preprocess(size=size, resize=size[0] + 8, mean=(0.5, 0.4, 0.3), std=(0.5,) * 3)
    return vitrail.wrap(family.build(), preprocess=preprocess, class_names=NAMES)


@pytest.fixture
def folder(tmp_path):
    return class_folders(tmp_path / "photos", dict.fromkeys(("kite", "zebra", "snail", "slug", "coil"), 3))


def hide(monkeypatch, package):
    """As if a package were not installed."""
    found = builtins.__import__

    def missing(name, *rest, **options):
        if name.partition(".")[0] == package:
            raise ImportError(name)
        return found(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", missing)


@pytest.mark.parametrize(
    ("grid", "cells"), [("", 4), ("?grid=2", 4), ("?grid=2x1", 2), ("?grid=1x2", 2), ("?grid=1x3", 3)]
)
def test_mosaics_hold_as_many_classes_as_cells_and_say_where(model, folder, grid, cells):
    data = open_data(f"mosaic:{folder}{grid}", model, seed=3)
    whole = open_data(folder, model)
    assert len(data) == 15
    assert len(set(sources(data))) == 15
    assert data.annotations == {"label", "regions"}
    assert pickle.loads(pickle.dumps(data)).describe() == data.describe()
    corners = set()
    for index in range(len(data)):
        sample = data.sample(index)
        assert data.source(index).startswith(whole.source(index))
        assert sample.label == whole.label(index)
        assert len(sample.regions) == cells
        assert sample.label in sample.regions
        cover = sum(region.astype(int) for region in sample.regions.values())
        assert cover.max() == 1
        assert len({int(region.sum()) for region in sample.regions.values()}) == 1
        assert cover.all() == (cells * sample.regions[sample.label].sum() == cover.size)
        corners.add(tuple(np.argwhere(sample.regions[sample.label])[0]))
        assert seen(sample, model.preprocess).regions.keys() == sample.regions.keys()
    assert len(corners) == cells  # the first picture lies now here, now there


def test_a_mosaic_shows_each_picture_in_the_region_of_its_class(model, tmp_path):
    colours = {"kite": (250, 0, 0), "zebra": (0, 250, 0), "snail": (0, 0, 250), "slug": (250, 250, 0)}
    for name, colour in colours.items():
        (tmp_path / name).mkdir()
        Image.new("RGB", (50, 40), colour).save(tmp_path / name / "a.png")
    for grid in ("2x2", "2x1", "1x2"):
        for index in range(4):
            sample = open_data(f"mosaic:{tmp_path}?grid={grid}", model).sample(index)
            pixels = np.asarray(sample.picture)
            for label, region in sample.regions.items():
                assert (pixels[region] == colours[NAMES[label]]).all()
    left_right = open_data(f"mosaic:{tmp_path}?grid=2x1", model).sample(0).regions
    assert all(region.any(axis=1).all() for region in left_right.values())  # two columns: each of full height


def test_mosaics_follow_the_seed_and_refuse_what_cannot_be(model, folder):
    first = open_data(f"mosaic:{folder}", model, seed=1)
    assert sources(first) == sources(open_data(f"mosaic:{folder}", model, seed=1))
    assert sources(first) != sources(open_data(f"mosaic:{folder}", model, seed=2))
    some = open_data(f"mosaic:{folder}", model, seed=1, limit=5)
    assert set(sources(some)) < set(sources(first))
    assert len(set(labels(some))) == 5
    for grid in ("0", "1", "2x", "two", ""):
        with pytest.raises(DataError, match=f"grid={grid} of a mosaic is not known; give 2, 3 and so on"):
            open_data(f"mosaic:{folder}?grid={grid}", model)
    with pytest.raises(DataError, match="a mosaic of 4 pictures needs as many classes, and the data hold 1"):
        open_data(f"mosaic:{class_folders(folder.parent / 'one', {'kite': 2})}", model)
    with pytest.raises(DataError, match="comes without preprocessing, so no mosaics can be made"):
        open_data(f"mosaic:{folder}", replace(model, preprocess=None))


def test_mosaics_of_what_the_model_is_sure_of(model, folder, tmp_path):
    """Whatever folder it is: the class is the model's own, and must be the label where there is one."""
    plain = tmp_path / "plain"
    plain.mkdir()
    for number, path in enumerate(sorted(folder.glob("*/*.png"))):
        (plain / f"{number}.png").write_bytes(path.read_bytes())
    (plain / "torn.png").write_bytes(b"no picture")
    inner = open_data(plain, model)
    with torch.no_grad():
        images = torch.stack([seen(inner.sample(index), model.preprocess).image for index in range(15)])
        sure, best = model.logits(images).softmax(dim=1).max(dim=1)
    least = float(sure.sort().values[5]) - 1e-6  # ten remain
    data = open_data(f"mosaic:{plain}?grid=2x1&confidence={least}", model)
    assert labels(data) == best[sure >= least].tolist()
    assert len(data) == 10
    assert data.notes[1:] == [f"in no mosaic: 6 pictures to whose class the model does not give {least:g}"]
    for index in range(len(data)):
        assert len(data.sample(index).regions) == 2
    labelled = open_data(folder, model)
    kept = [index for index in range(15) if labelled.label(index) == int(best[index]) and sure[index] >= least]
    if len({labelled.label(index) for index in kept}) > 1:
        named = open_data(f"mosaic:{folder}?confidence={least}&grid=2x1", model)
        assert [source.partition(" + ")[0] for source in sources(named)] == [labelled.source(index) for index in kept]
    for query, message in (
        ("confidence=1", "with confidence=1 the data hold 0"),
        ("confidence=2", "must lie above 0"),
        ("confidence=high", "the confidence of a mosaic is a number, as 0.99 is, and not 'high'"),
        ("grid=2&size=3", "a mosaic has no option size"),
    ):
        with pytest.raises(DataError, match=message):
            open_data(f"mosaic:{plain}?{query}", model)


def test_a_broken_picture_breaks_the_mosaics_it_is_in_and_no_other(model, folder):
    broken = folder / "kite" / "0.png"
    broken.write_bytes(broken.read_bytes()[:60])
    data = open_data(f"mosaic:{folder}", model)
    for index in range(len(data)):
        if "kite/0.png" in data.source(index):
            with pytest.raises(ImageError, match=re.escape(str(broken))):
                data.sample(index)
        else:
            assert data.sample(index).picture.size == model.preprocess.size[::-1]
    concerned = ["kite/0.png" in source for source in sources(data)]
    assert any(concerned)
    assert not all(concerned)


def test_stitched_pictures_are_those_of_the_experiment(model, folder):
    guide = draw(folder.parent / "guide.png", size=(70, 30), seed=77)
    data = open_data(f"stitched:{folder}", model, guide=guide)
    guide_class = data.describe()["guide_class"]
    with torch.no_grad():
        assert guide_class == int(model.logits(model.preprocess(read_image(guide))[None]).argmax())
    assert data.notes[0] == f"the guide guide.png shows {NAMES[guide_class]} ({guide_class})"
    assert guide_class not in labels(data)
    whole = {NAMES[data.label(i)] for i in range(len(data))}
    assert whole == {"kite", "zebra", "snail", "slug", "coil"} - {NAMES[guide_class]}
    patch = families.FAMILIES["timm_vit"]
    for index in range(2):
        sample = data.sample(index)
        expected = stitch_pictures(model, read_image(folder / data.source(index)), read_image(guide))
        ours = seen(sample, model.preprocess)
        # What neither picture covers is the model's mean colour, which 8 bits can tell to half a level only.
        assert (ours.image - expected.normalised).abs().max() <= 0.5 / 255 / 0.5 + 1e-6
        covered = sample.regions[sample.label] | sample.regions[guide_class]
        difference = (ours.image - expected.normalised)[:, torch.from_numpy(covered)]
        assert difference.abs().max() < 1e-6
        scale = patch.image_size[0] // expected.plan.grid[0], patch.image_size[1] // expected.plan.grid[1]
        for region, half in ((sample.label, expected.own), (guide_class, expected.far)):
            pixels = half.repeat_interleave(scale[0], 0).repeat_interleave(scale[1], 1)
            assert torch.equal(ours.regions[region], pixels)


def test_stitching_needs_a_guide_and_others_have_no_use_for_one(model, folder):
    with pytest.raises(DataError, match="needs a picture for the right half: give guide=, a file"):
        open_data(f"stitched:{folder}", model)
    guide = draw(folder.parent / "guide.png")
    with pytest.raises(DataError, match="is of no use for"):
        open_data(folder, model, guide=guide)
    with pytest.raises(ImageError, match="does not exist"):
        open_data(f"stitched:{folder}", model, guide=folder / "none.png")
    before = open_data(f"stitched:{folder}", model, guide=guide).describe()
    guide.write_bytes(guide.read_bytes() + b" ")
    assert open_data(f"stitched:{folder}", model, guide=guide).describe()["guide_sha256"] != before["guide_sha256"]


@pytest.fixture(scope="module")
def bestiary() -> VisionModel:
    return vitrail.load("bestiary")


def test_the_bestiary_knows_everything(bestiary):
    from vitrail.bestiary import CLASS_NAMES, FAMILIES, render

    for kind in ("single", "pair", "chimera"):
        data = open_data(f"bestiary:{kind}:12", bestiary)
        for index in range(4):
            scene, sample = data.inner.data.scene(index), data.sample(index)
            drawn = render(scene, bestiary.preprocess.size[0])
            assert (np.asarray(sample.picture) == drawn.image).all()
            assert CLASS_NAMES[sample.label] == scene.labels[0]
            assert (sample.mask == drawn.creatures[0].mask).all()
            assert sample.boxes == [drawn.creatures[0].box]
            named = {CLASS_NAMES[label]: region for label, region in sample.regions.items()}
            if kind == "pair":
                assert all((named[n] == v.mask).all() for n, v in zip(scene.labels, drawn.creatures, strict=True))
            if kind == "chimera":
                for name, slot in zip(scene.labels, FAMILIES[scene.creatures[0].family].diagnostic, strict=True):
                    if drawn.creatures[0].parts[slot].any():
                        assert (named[name] == drawn.creatures[0].parts[slot]).all()
            assert bool(named) == (kind != "single")
    assert len(open_data("bestiary", bestiary)) == 200
    assert labels(open_data("bestiary:single:6", bestiary)) != labels(open_data("bestiary:single:6", bestiary, seed=1))


def test_the_bestiary_refuses_other_kinds_and_models(bestiary):
    with pytest.raises(DataError, match="bestiary:intervention is no kind of scene; choose one of single, pair"):
        open_data("bestiary:intervention", bestiary)
    with pytest.raises(DataError, match="the count is a whole number, not 'many'"):
        open_data("bestiary:pair:many", bestiary)
    with pytest.raises(DataError, match="bestiary:pair:0 holds no scene"):
        open_data("bestiary:pair:0", bestiary)
    with pytest.raises(DataError, match="the model knows 0 of the bestiary's"):
        open_data("bestiary", toy())


@pytest.fixture
def datasets(tmp_path, monkeypatch):
    package = pytest.importorskip("datasets")
    monkeypatch.setattr(package.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(package.config, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    return package


def test_hugging_face_folders_parquet_and_saved_data_agree(datasets, model, tmp_path):
    class_folders(tmp_path / "photos" / "train", {"zebra": 2, "kite": 1, "yeti": 1})
    class_folders(tmp_path / "photos" / "test", {"kite": 2})
    data = open_data(f"hf:{tmp_path / 'photos'}:train", model)
    assert sorted(labels(data)) == [0, 2, 2]
    assert data.notes[0].startswith("left out: 1 of 4 pictures, of classes that are not the model's: yeti (1)")
    assert data.describe()["split"] == "train"
    assert data.source(0).startswith("train/")
    chosen = open_data(f"hf:{tmp_path / 'photos'}", model)
    assert labels(chosen) == [0, 0]
    assert chosen.describe()["split"] == "test"
    table = datasets.load_dataset(str(tmp_path / "photos"), split="train")
    table.to_parquet(tmp_path / "train.parquet")
    table.save_to_disk(tmp_path / "saved")
    for name in ("train.parquet", "saved"):
        other = open_data(f"hf:{tmp_path / name}", model)
        assert sorted(labels(other)) == [0, 2, 2]
        assert [np.asarray(other.sample(i).picture).sum() for i in range(3)] == [
            np.asarray(data.sample(i).picture).sum() for i in range(3)
        ]
        assert pickle.loads(pickle.dumps(other)).describe() == other.describe()


def test_hugging_face_masks_broken_pictures_and_plain_labels(datasets, model, tmp_path):
    whole = draw(tmp_path / "a.png").read_bytes()
    mask = np.zeros((16, 20), dtype=np.uint8)
    mask[:3] = 9
    Image.fromarray(mask).save(tmp_path / "mask.png")
    drawn = (tmp_path / "mask.png").read_bytes()
    features = datasets.Features(
        {"picture": datasets.Image(), "mask": datasets.Image(), "label": datasets.Value("int64")}
    )
    rows = {
        "picture": [{"bytes": whole, "path": None}, {"bytes": whole[:60], "path": None}],
        "mask": [{"bytes": drawn, "path": None}] * 2,
        "label": [2, 99],
    }
    table = datasets.Dataset.from_dict(rows, features=features.copy())
    table.save_to_disk(tmp_path / "saved")
    data = open_data(f"hf:{tmp_path / 'saved'}", toy(), category=9)
    assert data.notes[0].startswith("left out: 1 of 2 pictures, of classes that are not the model's: 99 (1)")
    assert data.annotations == {"label", "mask"}
    assert (data.sample(0).mask == (mask == 9)).all()
    rows["label"] = [2, 1]
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "again")
    with pytest.raises(ImageError):
        open_data(f"hf:{tmp_path / 'again'}", toy()).sample(1)


def test_hugging_face_errors(datasets, tmp_path, monkeypatch):
    (tmp_path / "photos").mkdir()
    with pytest.raises(DataError, match="cannot be loaded: "):
        open_data(f"hf:{tmp_path / 'photos'}", toy())
    datasets.Dataset.from_dict({"text": ["a"]}).save_to_disk(tmp_path / "texts")
    with pytest.raises(DataError, match="has no column of pictures; its columns are text"):
        open_data(f"hf:{tmp_path / 'texts'}", toy())
    with pytest.raises(DataError, match="has no split test; there are train"):
        open_data(f"hf:{tmp_path / 'texts'}:test", toy())
    with pytest.raises(DataError, match="labels=x is of no use for hf:"):
        open_data(f"hf:{tmp_path / 'texts'}", toy(), labels="x")
    hide(monkeypatch, "datasets")
    with pytest.raises(DataError, match=r'pip install .*\[data\]"'):
        open_data("hf:beans", toy())


def write_mat(path, pictures, masks, names=None):
    """As MATLAB 7.3 writes the archive: columns of references, axes turned round, a cell around each mask."""
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as file:
        columns = {name: [] for name in ("img", "gt", "id")}
        for number, (picture, mask) in enumerate(zip(pictures, masks, strict=True)):
            columns["img"].append(file.create_dataset(f"refs/img{number}", data=picture.transpose(2, 1, 0)).ref)
            inner = file.create_dataset(f"refs/mask{number}", data=mask.T)
            cell = file.create_dataset(f"refs/cell{number}", (1, 1), dtype=h5py.ref_dtype)
            cell[0, 0] = inner.ref
            columns["gt"].append(cell.ref)
            codes = np.frombuffer((names or ["n02391049_1"] * 9)[number].encode("utf-16-le"), dtype=np.uint16)
            columns["id"].append(file.create_dataset(f"refs/id{number}", data=codes[:, None]).ref)
        for name, references in columns.items():
            if name == "id" and names is None:
                continue
            column = file.create_dataset(f"value/{name}", (len(references), 1), dtype=h5py.ref_dtype)
            for number, reference in enumerate(references):
                column[number, 0] = reference


def test_the_segmentation_archive(tmp_path):
    rng = np.random.default_rng(4)
    pictures = [rng.integers(0, 256, (12, 18, 3), dtype=np.uint8), rng.integers(0, 256, (9, 7, 3), dtype=np.uint8)]
    masks = [(rng.random(picture.shape[:2]) > 0.5).astype(np.uint8) for picture in pictures]
    path = tmp_path / "gtsegs_ijcv.mat"
    write_mat(path, pictures, masks, ["n01614925_77", "n02374451_12"])
    data = open_data(path, toy())
    assert labels(data) == [1, 0]
    assert data.annotations == {"label", "mask"}
    assert sources(data) == ["00000 n01614925_77", "00001 n02374451_12"]
    for index in range(2):
        sample = data.sample(index)
        assert (np.asarray(sample.picture) == pictures[index]).all()
        assert (sample.mask == (masks[index] > 0)).all()
    assert pickle.loads(pickle.dumps(data)).describe() == data.describe()
    write_mat(path, pictures, [masks[0], masks[1][:5]])
    data = open_data(path, toy())
    assert data.label(0) is None
    assert data.notes == ["of no known class: 2 of 2 pictures"]
    with pytest.raises(ImageError, match="picture 1, has 7 x 5 pixels and its picture 7 x 9"):
        data.sample(1)


def test_archives_that_cannot_be_read(tmp_path, monkeypatch):
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "gtsegs_ijcv.mat"
    with pytest.raises(DataError, match="does not exist"):
        open_data(path, toy())
    path.write_bytes(b"MATLAB 5.0")
    with pytest.raises(DataError, match=r"cannot be read as HDF5 \(MATLAB 7\.3\)"):
        open_data(path, toy())
    with h5py.File(path, "w") as file:
        file.create_group("value")
    with pytest.raises(DataError, match="it has no /value/img and no /value/gt"):
        open_data(path, toy())
    hide(monkeypatch, "h5py")
    with pytest.raises(DataError, match="pip install h5py"):
        open_data(path, toy())
