"""An audit from a folder of pictures to its result: resumed, shared out, refused, and what it says of wrong labels."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from pictures_on_disk import class_folders, draw
from PIL import Image
from safetensors.torch import load

import vitrail
from vitrail.audit import Decisions, read_audit
from vitrail.audit.class_pairs import typical_share
from vitrail.audit.decisions import export_decisions
from vitrail.audit.passes import AnswerPass, AuditPlan
from vitrail.bestiary import CLASS_NAMES
from vitrail.bestiary.dataset import Bestiary
from vitrail.datasets import open_data
from vitrail.errors import DataError, OptionError, OutputKindError, RunFolderError, RunFolderInUseError, VitrailError
from vitrail.models import Preprocess

SMALL = {"pairs": 6, "pair_images": 3, "typical": 2, "block": 4, "batch_size": 8}
NAMES = ("ant", "bee", "cat", "dog")


def tiny(**options):
    torch.manual_seed(0)
    module = timm.create_model("test_vit", num_classes=4, img_size=64).eval()
    return vitrail.wrap(module, preprocess=Preprocess(size=(64, 64)), class_names=NAMES, **options)


def content(folder: Path) -> dict[str, bytes]:
    """All files of an audit that are the same for the same question; manifests hold a date."""
    kept = ("parquet", "safetensors", "sha256", "audit.json")
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.name.endswith(kept)}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    return class_folders(tmp_path_factory.mktemp("pictures"), {"ant": 5, "bee": 5, "cat": 5, "dog": 5})


@pytest.fixture(scope="module")
def whole(pictures, tmp_path_factory):
    return vitrail.audit(tiny(), pictures, output=tmp_path_factory.mktemp("whole") / "audit", **SMALL)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> tuple[Path, dict[str, str]]:
    """Pictures of the bestiary with a list of labels, three of which name a sibling instead."""
    folder, data = tmp_path_factory.mktemp("scenes"), Bestiary(count=40, seed=5)
    rows, wrong = [], {}
    for index in range(len(data)):
        item, name = data[index], f"{index:02}.png"
        Image.fromarray((item["image"].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)).save(folder / name)
        label = CLASS_NAMES[int(item["label"])]
        if index in (3, 17, 29):
            wrong[name] = label
            label = CLASS_NAMES[(int(item["label"]) + 7) % len(CLASS_NAMES)]
        rows.append((name, label))
    with (folder / "list.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("file", "class_name"), *rows])
    return folder, wrong


def test_wrong_labels_come_first_with_the_right_suggestion_and_their_maps(scenes, tmp_path):
    folder, wrong = scenes
    found = vitrail.audit(vitrail.load("bestiary"), folder / "list.csv", output=tmp_path / "a", pairs=4, pair_images=4)
    first = {one.source: one for one in found.ranked[: len(wrong)]}
    assert set(first) == set(wrong)
    for source, one in first.items():
        assert found.class_name(one.suggested) == wrong[source]
        assert one.margin < 0
        given, suggested = found.map(one.image, one.given), found.map(one.image, one.suggested)
        contrast = found.map(one.image, one.given, one.suggested)
        assert given.shape == suggested.shape == contrast.shape == (12, 12)
        image = vitrail.explain(vitrail.load("bestiary"), folder / source, one.given, against=one.suggested)
        np.testing.assert_allclose(contrast, image.scores[0].numpy(), rtol=1e-3, atol=1e-5)
        assert contrast.sum() < 0  # more argues for what is shown than for the label
        for kind in ("photo", "view", "thumb"):
            assert found.picture(one.image, kind)[:2] == b"\xff\xd8"
        for index in (one.given, one.suggested):
            assert all(image not in {w.image for w in first.values()} for image in found.typical[index])
            assert all(found.picture(image) is not None for image in found.typical[index])
    assert [one.margin for one in found.suspects] == sorted(one.margin for one in found.suspects)


def test_pairs_are_tested_on_the_maps_that_are_stored(whole):
    assert len(whole.pairs) == 6
    for pair in whole.pairs:
        values = [
            typical_share(whole.map(image, pair.shown, typical=True), whole.map(image, pair.shown, pair.other))
            for image in whole.pair_images[pair.shown, pair.other]
        ]
        assert pair.share == pytest.approx(np.mean([value < 0 for value in values]))
        assert pair.balance == pytest.approx(np.mean(values))


def test_resumed_and_repeated_it_gives_the_same_bytes(pictures, whole, tmp_path):
    def stop(what: str, done: int, total: int) -> None:
        if (what, done) == stop.at:
            raise KeyboardInterrupt

    for stop.at in (("answers", 8), ("maps", 4)):
        with pytest.raises(KeyboardInterrupt):
            vitrail.audit(tiny(), pictures, output=tmp_path / "audit", progress=stop, **SMALL)
        with pytest.raises(RunFolderError, match="holds an audit that is not finished"):
            read_audit(tmp_path / "audit")
    for _ in range(2):
        vitrail.audit(tiny(), pictures, output=tmp_path / "audit", **SMALL)
        assert content(tmp_path / "audit") == content(whole.folder)


PROGRAM = """
import sys; sys.path[:0] = {path!r}
from audit.test_audit import SMALL, tiny
import vitrail
vitrail.audit(tiny(), {data!r}, output={output!r}, progress=lambda *told: print(*told, flush=True), **SMALL)
"""


@pytest.mark.slow
@pytest.mark.parametrize("at", ["answers 12 ", "maps 8 "])
def test_killed_it_resumes_to_the_same_bytes(at, pictures, whole, tmp_path):
    path = [str(Path(__file__).parents[1])]
    code = PROGRAM.format(path=path, data=str(pictures), output=str(tmp_path / "audit"))
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(at):
            os.kill(process.pid, signal.SIGKILL)
            break
    assert process.wait() == -signal.SIGKILL
    process.stdout.close()
    vitrail.audit(tiny(), pictures, output=tmp_path / "audit", **SMALL)
    assert content(tmp_path / "audit") == content(whole.folder)


@pytest.mark.slow
def test_torchrun_shares_it_out(pictures, whole, tmp_path):
    code = PROGRAM.format(path=[str(Path(__file__).parents[1])], data=str(pictures), output=str(tmp_path / "audit"))
    (tmp_path / "program.py").write_text(code)
    words = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29733"]
    done = subprocess.run([sys.executable, *words, str(tmp_path / "program.py")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert content(tmp_path / "audit") == content(whole.folder)


@pytest.mark.slow
def test_ray_measures_the_same(cluster, pictures, whole, tmp_path):
    options = {"engine": "ray", "engine_options": {"workers": 2}}
    vitrail.audit(tiny(), pictures, output=tmp_path / "audit", **SMALL, **options)
    assert content(tmp_path / "audit") == content(whole.folder)


def test_other_options_draw_other_maps_without_asking_the_model_anew(pictures, whole, tmp_path):
    output, told = tmp_path / "audit", []
    vitrail.audit(tiny(), pictures, output=output, **SMALL)
    found = vitrail.audit(
        tiny(), pictures, output=output, progress=lambda *one: told.append(one), **(SMALL | {"pairs": 2})
    )
    assert len(found.pairs) == 2
    assert told[0] == ("answers", 20, 20)
    with pytest.raises(RunFolderError, match="block is 4 there and 2 here"):
        vitrail.audit(tiny(), pictures, output=output, **(SMALL | {"block": 2}))


def test_images_that_cannot_be_read_or_have_no_label_are_told(pictures, tmp_path):
    data = class_folders(tmp_path / "data", {"ant": 3, "bee": 3})
    (data / "ant" / "broken.png").write_bytes(b"no picture")
    found = vitrail.audit(tiny(), data, output=tmp_path / "audit", **SMALL)
    assert len(found.ranked) == 6
    assert "1 image could not be audited" in found.notes
    assert any(note.startswith("not read: ant/broken.png (") for note in found.notes)
    with (tmp_path / "some.csv").open("w") as file:
        file.write(f"file,class_name\n{data}/ant/0.png,ant\n{data}/ant/1.png,\n{data}/bee/0.png,bee\n")
    some = vitrail.audit(tiny(), tmp_path / "some.csv", output=tmp_path / "some", **SMALL)
    assert len(some.ranked) == 2
    assert "of no known class, so not audited: 1 image" in some.notes


def test_pairs_that_no_image_can_test_are_told(pictures, tmp_path):
    asked = [("ant", "bee"), ("dog", 2)]
    found = vitrail.audit(tiny(), pictures, output=tmp_path / "audit", **(SMALL | {"pairs": asked}))
    assert {(pair.shown, pair.other) for pair in found.pairs} == {(0, 1), (3, 2)}
    data = class_folders(tmp_path / "data", {"ant": 2, "bee": 2})
    less = vitrail.audit(tiny(), data, output=tmp_path / "less", **(SMALL | {"pairs": asked}))
    assert {(pair.shown, pair.other) for pair in less.pairs} == {(0, 1)}
    assert "not tested, since no image is labelled dog: dog against cat" in less.notes


def test_near_duplicates_are_named(tmp_path):
    data = class_folders(tmp_path / "data", {"ant": 2, "bee": 2})
    Image.open(data / "ant" / "0.png").save(data / "bee" / "copy.png")
    found = vitrail.audit(tiny(), data, output=tmp_path / "audit", **SMALL)
    assert [[one.source for one in group] for group in found.duplicates] == [["ant/0.png", "bee/copy.png"]]
    assert {found.class_name(one.given) for one in found.duplicates[0]} == {"ant", "bee"}


def test_several_labels_of_a_softmax_model_count_as_one(tmp_path):
    """An image that is labelled with what the model predicts, too, is no suspect."""
    model = tiny()
    path = draw(tmp_path / "0.png")
    draw(tmp_path / "1.png", seed=3)
    best = model.class_name(int(vitrail.explain(model, path).target.item()))
    other = next(name for name in NAMES if name != best)
    (tmp_path / "list.csv").write_text(f"file,class_name\n0.png,{other}\n0.png,{best}\n1.png,ant\n")
    found = vitrail.audit(model, tmp_path / "list.csv", output=tmp_path / "audit", **SMALL)
    one = next(one for one in found.ranked if one.source == "0.png")
    assert set(one.labels) == {NAMES.index(other), NAMES.index(best)}
    assert one.suggested not in one.labels
    assert one.margin > 0


def test_a_multi_label_model_has_labels_that_are_missing_or_too_many(tmp_path):
    for number in range(6):
        draw(tmp_path / f"{number}.png", seed=number)
    lines = ["0.png,ant", "0.png,bee", "1.png,cat", "2.png,dog", "3.png,ant", "4.png,bee", "5.png,cat", "5.png,dog"]
    (tmp_path / "list.csv").write_text("file,class_name\n" + "\n".join(lines) + "\n")
    found = vitrail.audit(tiny(output="multilabel"), tmp_path / "list.csv", output=tmp_path / "audit", **SMALL)
    assert not found.pairs
    assert "no pair of classes was tested" in found.notes
    assert {one.source: one.labels for one in found.ranked}["5.png"] == (2, 3)
    for one in found.suspects:
        assert one.given is None or one.given in one.labels
        assert one.suggested is None or one.suggested not in one.labels
        both = one.given is not None and one.suggested is not None
        assert (found.map(one.image, one.given, one.suggested) is not None) == both
    with pytest.raises(OptionError, match="folds= is for classes that exclude each other"):
        vitrail.audit(tiny(output="multilabel"), tmp_path / "list.csv", output=tmp_path / "folds", folds=2, **SMALL)


def test_features_are_the_classifiers_input_also_where_the_first_pass_asks_twice(pictures):
    """A model that has just reached an actor passes the images once more, to see what kind of numbers it gives."""
    model = tiny()
    data, plan = open_data(pictures, model), AuditPlan(classes=4, block=5, batch=2)
    worker = AnswerPass(model, data, plan)
    with ThreadPoolExecutor(1) as pool:
        images = worker.read(0, pool)
    found = load(worker.measure(0, images).maps)
    batch = torch.stack([image.found.image for image in images])
    with torch.no_grad():
        tokens = model.module.forward_head(model.module.forward_features(batch), pre_logits=True)
    torch.testing.assert_close(found["features"], tokens, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found["logits"], model.module.head(tokens).detach(), rtol=1e-4, atol=1e-5)


def test_folds_need_no_model_that_is_right(pictures, tmp_path):
    found = vitrail.audit(tiny(), pictures, output=tmp_path / "audit", folds=2, **SMALL)
    assert found.about["folds"] == 2
    assert len(found.ranked) == 20


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"method": "rollout"}, OptionError, "rollout is the same for every class"),
        ({"pair_images": 0}, OptionError, "pair_images=0 must be 1 or more"),
        ({"suspects": -1}, OptionError, "suspects=-1 must be 0 or more"),
        ({"pairs": [("ant", "ant")]}, OptionError, "names one class twice"),
        ({"pairs": [("ant", "owl")]}, VitrailError, "owl"),
        ({"engine": "slurm"}, OptionError, "slurm"),
    ],
)
def test_questions_that_mean_nothing_are_refused(options, error, words, pictures, tmp_path):
    with pytest.raises(error, match=words):
        vitrail.audit(tiny(), pictures, output=tmp_path / "audit", **(SMALL | options))
    assert not (tmp_path / "audit" / "answers" / "rows").exists()


def test_models_without_classes_and_data_without_labels_are_refused(pictures, tmp_path):
    with pytest.raises(OutputKindError, match="labels can be audited with classes or labels alone"):
        vitrail.audit(tiny(output="scores"), pictures, output=tmp_path / "audit", **SMALL)
    draw(tmp_path / "plain" / "0.png")
    with pytest.raises(DataError, match="these data have none: give labels="):
        vitrail.audit(tiny(), tmp_path / "plain", output=tmp_path / "audit", **SMALL)
    with pytest.raises(RunFolderError, match="holds no audit"):
        read_audit(tmp_path)


def test_damaged_results_are_refused_by_name(whole, tmp_path):
    for name, damage in (("audit.json", b"{"), ("images.parquet", b"PAR1"), ("audit.json", b'{"format": 9}')):
        for file in ("audit.json", "images.parquet"):
            (tmp_path / file).write_bytes((whole.folder / file).read_bytes())
        (tmp_path / name).write_bytes(damage)
        with pytest.raises(RunFolderError):
            read_audit(tmp_path)


# -- decisions ---------------------------------------------------------------------------------------------------------


def test_decisions_are_restored_undone_and_exported(scenes, tmp_path):
    folder, wrong = scenes
    found = vitrail.audit(vitrail.load("bestiary"), folder / "list.csv", output=tmp_path / "a", pairs=0)
    images = {one.source: one for one in found.ranked[:3]}
    chosen = [one.image for one in images.values()]
    decisions = Decisions(found.folder, [one.image for one in found.suspects])
    for image, verdict in zip(chosen, ("relabel", "both", "drop"), strict=True):
        decisions.decide(image, verdict)
    decisions.decide(chosen[0], "keep")
    assert decisions.undo() == chosen[0]
    again = Decisions(found.folder, [one.image for one in found.suspects])
    assert again.current == decisions.current
    assert again.current[chosen[0]].verdict == "relabel"
    rows = list(csv.DictReader(export_decisions(found, again).decode().splitlines()))
    by = {row["verdict"]: row for row in rows}
    one, two, _ = (found.ranked[k] for k in range(3))
    assert by["relabel"]["corrected"] == str(one.suggested)
    assert by["both"]["corrected"] == f"{two.given} {two.suggested}"
    assert by["drop"]["corrected"] == ""
    assert CLASS_NAMES[int(by["relabel"]["corrected"])] == wrong[by["relabel"]["file"]]
    import pyarrow.parquet as parquet

    export_decisions(found, again, tmp_path / "d.parquet")
    table = parquet.read_table(tmp_path / "d.parquet").to_pylist()
    assert [row["file"] for row in table] == [row["file"] for row in rows]
    with pytest.raises(OptionError, match=r"as \.csv or \.parquet"):
        export_decisions(found, again, tmp_path / "d.xlsx")
    for nonsense in ((10_000, "keep"), (chosen[0], "perhaps")):
        with pytest.raises(OptionError):
            again.decide(*nonsense)


def test_half_a_line_of_a_killed_process_is_cut_off(tmp_path):
    decisions = Decisions(tmp_path, [1, 2])
    decisions.decide(1, "keep")
    with decisions.path.open("ab") as file:
        file.write(b'{"image": 2, "verd')
    again = Decisions(tmp_path, [1, 2])
    assert set(again.current) == {1}
    again.decide(2, "drop")
    assert {image: one.verdict for image, one in Decisions(tmp_path, [1, 2]).current.items()} == {1: "keep", 2: "drop"}
    assert Decisions(tmp_path, [2]).current[1].verdict == "keep"  # no suspect of a later audit, and not forgotten
    with decisions.path.open("ab") as file:
        file.write(json.dumps({"image": "1", "verdict": "keep"}).encode() + b"\n")
    with pytest.raises(RunFolderError, match="is not the journal of this audit"):
        Decisions(tmp_path, [1, 2])


def test_no_decision_of_another_process_is_lost(tmp_path):
    one, other = Decisions(tmp_path, [1, 2]), Decisions(tmp_path, [1, 2])
    one.decide(1, "keep")
    with pytest.raises(RunFolderInUseError, match="another process has written to"):
        other.decide(2, "drop")
    with pytest.raises(RunFolderInUseError):
        Decisions(tmp_path, [1]).decide(1, "keep") and one.undo()
    assert set(Decisions(tmp_path, [1, 2]).current) == {1}


def test_a_decision_is_on_the_disk_when_it_returns(tmp_path):
    code = (
        "import sys, time; from vitrail.audit import Decisions\n"
        f"decisions = Decisions({str(tmp_path)!r}, range(9))\n"
        "for image in range(9):\n"
        "    decisions.decide(image, 'drop'); print(image, flush=True); time.sleep(0.01)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    last = -1
    for line in process.stdout:
        last = int(line)
        if last == 4:
            os.kill(process.pid, signal.SIGKILL)
            break
    process.wait()
    process.stdout.close()
    time.sleep(0.01)
    assert set(Decisions(tmp_path, range(9)).current) >= set(range(5))
