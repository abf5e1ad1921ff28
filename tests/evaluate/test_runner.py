"""A run that is interrupted, killed, refused, or out of memory or disk ends with the same bytes, or says why."""

import json
import resource
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from pictures_on_disk import class_folders, draw
from PIL import Image
from torch import nn

import vitrail
from vitrail.datasets import Sample
from vitrail.errors import (
    DataError,
    ModelError,
    OptionError,
    OutputFileError,
    RunFolderError,
    RunFolderInUseError,
    UnknownMethodError,
    UnknownProtocolError,
)
from vitrail.evaluate.manifest import digest_of
from vitrail.evaluate.parquet_rows import read_part
from vitrail.evaluate.run_directory import RunFolder
from vitrail.evaluate.run_reader import read_run
from vitrail.evaluate.runner import evaluate
from vitrail.models import Preprocess
from vitrail.report import build_board, write_report
from vitrail.report.checks import warnings

QUESTION = {"methods": ["gae", "complete"], "protocols": ["perturbation"], "preset": "bi", "block": 4, "batch_size": 8}


def tiny(**options):
    torch.manual_seed(0)
    module = timm.create_model("test_vit", num_classes=4, img_size=64, **options).eval()
    return vitrail.wrap(module, preprocess=Preprocess(size=(64, 64)), class_names=("ant", "bee", "cat", "dog"))


@pytest.fixture(scope="module")
def model():
    return tiny()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    return class_folders(tmp_path_factory.mktemp("pictures"), {"ant": 5, "bee": 5, "cat": 5, "dog": 5})


@pytest.fixture(scope="module")
def whole(model, pictures, tmp_path_factory) -> Path:
    return evaluate(model, pictures, output=tmp_path_factory.mktemp("whole") / "run", **QUESTION).folder


def results(folder: Path) -> dict[str, bytes]:
    """What a run found; the manifest's date and the lock apart."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.glob("*/block-*"))}


def rows(folder: Path) -> list[dict]:
    return [row for path in sorted(folder.glob("rows/*")) for row in read_part(path)[0].to_pylist()]


def failures(folder: Path) -> list:
    return [failure for path in sorted(folder.glob("rows/*")) for failure in read_part(path)[1]]


def test_every_image_has_every_number_once(whole, pictures):
    found = rows(whole)
    keys = [(row["image"], row["method"], row["measure"], row["step"]) for row in found]
    assert len(keys) == len(set(keys)) == 20 * 2 * 2 * 4 * 10  # images, methods, ways, measures, shares with 0
    assert {row["source"] for row in found} == {f"{path.parent.name}/{path.name}" for path in pictures.glob("*/*")}
    assert all(row["label"] == row["image"] // 5 for row in found)
    manifest = json.loads((whole / "manifest.json").read_text())
    assert (manifest["images"], manifest["methods"], manifest["preset"]) == (20, ["gae", "complete"], "bi")
    assert manifest["protocols"]["perturbation"]["auc"] == "bi"


def test_a_warm_run_goes_through_few_files(model, pictures, whole, tmp_path):
    files: set[str] = set()

    def note(frame, event, argument):
        files.add(frame.f_code.co_filename)

    threading.setprofile(note)  # images are read in threads
    sys.setprofile(note)
    try:
        evaluate(model, pictures, output=tmp_path, limit=4, **QUESTION)
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    package = Path(vitrail.__file__).parent
    ours = sorted(Path(file).relative_to(package).as_posix() for file in files if package in Path(file).parents)
    assert "datasets/image_folders.py" in ours  # which only the reading threads call
    assert len(ours) <= 55, f"{len(ours)} files: {', '.join(ours)}"


def test_an_interrupted_run_goes_on_with_the_same_bytes(model, pictures, whole, tmp_path):
    def interrupt(done: int, total: int) -> None:
        if done >= 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(model, pictures, output=tmp_path, progress=interrupt, **QUESTION)
    assert len(results(tmp_path)) == 6  # two blocks: rows, maps and digests
    seen: list[tuple[int, int]] = []
    outcome = evaluate(model, pictures, output=tmp_path, progress=lambda *now: seen.append(now), **QUESTION)
    assert (outcome.images, outcome.measured) == (20, 12)
    assert seen == [(8, 20), (12, 20), (16, 20), (20, 20)]
    assert results(tmp_path) == results(whole)
    again = evaluate(model, pictures, output=tmp_path, **QUESTION)
    assert again.measured == 0


def test_threads_and_batch_are_those_of_the_beginning(model, pictures, tmp_path):
    question = {key: value for key, value in QUESTION.items() if key != "batch_size"} | {"limit": 4}
    before = torch.get_num_threads()
    evaluate(model, pictures, output=tmp_path, batch_size=3, **question)
    try:
        torch.set_num_threads(before + 1)
        evaluate(model, pictures, output=tmp_path, **question)  # neither is named, so neither differs
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


def test_another_run_in_the_folder_is_refused(model, pictures, whole, tmp_path):
    with pytest.raises(RunFolderError, match=r'methods is \["gae", "complete"\] there and \["raw"\] here'):
        evaluate(model, pictures, output=whole, **(QUESTION | {"methods": "raw"}))
    with pytest.raises(RunFolderError, match="seed is 0 there and 1 here"):
        evaluate(model, pictures, output=whole, seed=1, **QUESTION)
    torch.manual_seed(1)
    other = vitrail.wrap(
        timm.create_model("test_vit", num_classes=4, img_size=64).eval(),
        preprocess=Preprocess(size=(64, 64)),
        class_names=("ant", "bee", "cat", "dog"),
    )
    with pytest.raises(RunFolderError, match=r"model\.weights is"):
        evaluate(other, pictures, output=whole, **QUESTION)
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "block-000000.parquet").write_bytes(b"")
    with pytest.raises(RunFolderError, match=r"holds rows without a manifest\.json"):
        evaluate(model, pictures, output=tmp_path, **QUESTION)


def test_pictures_that_changed_are_noticed(model, pictures, tmp_path):
    folder = class_folders(tmp_path / "pictures", {"ant": 2, "bee": 2})
    evaluate(model, folder, output=tmp_path / "run", **QUESTION)
    draw(folder / "bee" / "2.png")
    with pytest.raises(RunFolderError, match=r"the pictures have changed since \(data\.digests\.pictures\)"):
        evaluate(model, folder, output=tmp_path / "run", **QUESTION)


def test_a_second_process_is_refused(model, pictures, tmp_path):
    folder = RunFolder(tmp_path)
    with (
        folder.writing({"format": 2, "images": 1, "methods": [], "protocols": {}}),
        pytest.raises(RunFolderInUseError, match="another process is writing to .*choose another output="),
    ):
        evaluate(model, pictures, output=tmp_path, **QUESTION)


def test_broken_pictures_are_counted_and_the_others_measured(model, pictures, whole, tmp_path):
    folder = class_folders(tmp_path / "pictures", {"ant": 5, "bee": 5, "cat": 5, "dog": 5})
    (folder / "cat" / "3.png").write_bytes(b"no picture")
    half = (folder / "dog" / "0.png").read_bytes()
    (folder / "dog" / "0.png").write_bytes(half[: len(half) // 2])
    evaluate(model, folder, output=tmp_path / "run", **QUESTION)
    found = failures(tmp_path / "run")
    assert [failure.source for failure in found] == ["cat/3.png", "dog/0.png"]
    assert all(failure.method is None and failure.protocol is None for failure in found)
    assert "is no image that Pillow can read" in found[0].reason
    expected = [row for row in rows(whole) if row["source"] not in ("cat/3.png", "dog/0.png")]
    found_rows = rows(tmp_path / "run")
    assert [row["source"] for row in found_rows] == [row["source"] for row in expected]
    same = [row["value"] for row in found_rows], [row["value"] for row in expected]
    np.testing.assert_allclose(*same, rtol=1e-4, atol=1e-5)  # other images beside them in a batch: other roundings


def test_a_full_disk_loses_nothing(model, pictures, whole, tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    largest = max(map(len, results(whole).values()))

    def fill(done: int, _: int) -> None:
        if done == 8:
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest // 4, hard))

    try:
        with pytest.raises(OutputFileError, match="File too large"):
            evaluate(model, pictures, output=tmp_path, progress=fill, **QUESTION)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {name for name in results(tmp_path) if name.startswith("rows")} == {
        "rows/block-000000.parquet",
        "rows/block-000001.parquet",
    }
    assert not list(tmp_path.rglob("*.tmp"))
    evaluate(model, pictures, output=tmp_path, **QUESTION)
    assert results(tmp_path) == results(whole)


class _Small(torch.nn.Module):
    """A model for which more than three images are too many."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if len(images) > 3:
            raise torch.OutOfMemoryError("too many images")
        return self.module(images)


def test_out_of_memory_makes_the_batches_smaller(model, pictures, tmp_path):
    # Patch by patch: an enlarged map is flat at the image's edge, where the roundings of another batch size decide
    # which pixel goes first. In float64, so that they do not swap patches of nearly equal scores either.
    module = tiny().module.double()
    given = {"preprocess": model.preprocess, "class_names": model.class_names}
    question = QUESTION | {"protocol_options": {"perturbation": {"unit": "patch"}}}
    for name, one in {"whole": module, "small": _Small(module).eval()}.items():
        evaluate(vitrail.wrap(one, **given), pictures, output=tmp_path / name, **question)
    assert not failures(tmp_path / "small")
    found, expected = rows(tmp_path / "small"), rows(tmp_path / "whole")
    assert [(row["image"], row["measure"]) for row in found] == [(row["image"], row["measure"]) for row in expected]
    np.testing.assert_allclose(
        [row["value"] for row in found], [row["value"] for row in expected], rtol=1e-4, atol=1e-5
    )


class _DeafToBright(torch.nn.Module):
    """A model that no gradient enters from a bright image."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits = self.module(images)
        return torch.where(images.mean(dim=(1, 2, 3))[:, None] > 1.5, logits.detach(), logits)


class _Normalising(_DeafToBright):
    """A model that takes pictures from 0 to 1."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(2 * images - 1)


def test_a_method_that_fails_on_an_image_fails_alone(model, pictures, tmp_path):
    deaf = vitrail.wrap(_DeafToBright(model.module).eval(), preprocess=model.preprocess, class_names=model.class_names)
    folder = class_folders(tmp_path / "pictures", {"ant": 2, "bee": 2})
    Image.new("RGB", (20, 20), (250, 250, 250)).save(folder / "bee" / "0.png")
    evaluate(deaf, folder, output=tmp_path / "run", **(QUESTION | {"methods": ["raw", "complete"]}))
    (failure,) = failures(tmp_path / "run")
    assert (failure.source, failure.method, failure.protocol) == ("bee/0.png", "complete", None)
    assert "the same everywhere" in failure.reason
    measured = {(row["image"], row["method"]) for row in rows(tmp_path / "run")}
    assert measured == {(image, name) for image in range(4) for name in ("raw", "complete")} - {(2, "complete")}


def test_half_precision_runs(pictures, tmp_path):
    model = tiny()
    evaluate(
        vitrail.wrap(model.module.bfloat16(), preprocess=model.preprocess, class_names=model.class_names),
        pictures,
        output=tmp_path,
        **(QUESTION | {"limit": 4}),
    )
    assert not failures(tmp_path)
    assert json.loads((tmp_path / "manifest.json").read_text())["model"]["dtype"] == "bfloat16"


def test_maps_and_pictures_are_kept_of_the_first(model, pictures, tmp_path):
    from safetensors.torch import load_file

    evaluate(model, pictures, output=tmp_path, keep=2, **(QUESTION | {"limit": 8}))
    (path,) = tmp_path.glob("maps/*")
    kept = load_file(path)
    assert sorted(kept) == ["image/0", "image/1", *(f"map/{i}/{name}" for i in (0, 1) for name in ("complete", "gae"))]
    assert kept["image/0"].shape == (64, 64, 3)
    assert kept["map/0/complete"].min() < 0


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"methods": "nonsense"}, UnknownMethodError, "nonsense"),
        ({"protocols": ["nonsense"]}, UnknownProtocolError, "'nonsense'; there are"),
        ({"preset": "nonsense"}, OptionError, "no preset is called 'nonsense'"),
        ({"protocols": ["pointing"]}, DataError, "pointing needs boxes .* is known: label; give boxes="),
        (
            {"method_options": {"tam": {"samples": 2}}},
            OptionError,
            "options are given for tam, but the methods are gae",
        ),
        ({"protocol_options": {"perturbation": {"speed": 2}}}, OptionError, "perturbation has no option 'speed'"),
        ({"target": "best"}, OptionError, "target='best' is unknown"),
        ({"engine": "steam"}, OptionError, "engine='steam' is unknown; choose one of local, ray"),
        ({"block": 0}, OptionError, "block=0 must be 1 or more"),
    ],
)
def test_questions_that_cannot_be_asked(model, pictures, tmp_path, change, error, words):
    with pytest.raises(error, match=words):
        evaluate(model, pictures, output=tmp_path / "run", **(QUESTION | change))
    assert not list((tmp_path / "run").glob("rows/*"))


def test_a_model_without_preprocessing_is_refused(model, pictures, tmp_path):
    bare = _Normalising(model.module).eval()  # nothing tells how pictures are fed to it
    with pytest.raises(ModelError, match="comes without preprocessing"):
        evaluate(vitrail.wrap(bare, class_names=model.class_names), pictures, output=tmp_path, **QUESTION)


def test_a_damaged_block_is_named(whole, tmp_path):
    path = tmp_path / "block-000000.parquet"
    path.write_bytes((whole / "rows" / "block-000000.parquet").read_bytes()[:-20])
    with pytest.raises(RunFolderError, match="block-000000.parquet is damaged or cannot be read .*delete it"):
        read_part(path)


def test_the_digest_tells_weights_apart(model):
    assert digest_of(model.module) == digest_of(tiny().module)
    assert digest_of(model.module) != digest_of(tiny(class_token=False, global_pool="avg").module)


def _sparse(weight):
    return weight.to_sparse()


def _rows(weight):
    return weight.to_sparse_csr()


def _several(weight):
    return torch.nested.nested_tensor([weight[:1], weight[:2]])


def _integers(weight):
    return torch.quantize_per_channel(weight, torch.tensor([0.1, 0.2]), torch.tensor([0, 1]), 0, torch.qint8)


def _conjugate(weight):
    return torch.view_as_complex(weight).conj()


@pytest.mark.filterwarnings("ignore")  # nested tensors and CSR are prototypes
@pytest.mark.parametrize("form", [_sparse, _rows, _several, _integers, _conjugate])
def test_the_digest_reads_weights_of_every_form(form):
    def of(values: list[list[float]]) -> str:
        module = nn.Module()
        module.register_buffer("weight", form(torch.tensor(values)))
        return digest_of(module)

    assert of([[1.0, 2.0], [3.0, 4.0]]) == of([[1.0, 2.0], [3.0, 4.0]]) != of([[1.0, 2.0], [3.0, 5.0]])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_digest_reads_quantized_layers_and_states_of_their_own():
    from torch.ao.quantization import quantize_dynamic

    def of(seed: int) -> str:
        torch.manual_seed(seed)
        return digest_of(quantize_dynamic(nn.Sequential(nn.Linear(2, 3)), {nn.Linear}))

    assert of(0) == of(0) != of(1)
    assert digest_of(_Stateful({"scale": torch.ones(1)})) != digest_of(_Stateful({"scale": torch.zeros(1)}))


@pytest.mark.filterwarnings("ignore")
def test_the_digest_reads_weights_made_of_other_tensors():
    quantization = pytest.importorskip("torchao.quantization")

    def of(seed: int) -> str:
        torch.manual_seed(seed)
        module = nn.Sequential(nn.Linear(64, 64))
        quantization.quantize_(module, quantization.Int8WeightOnlyConfig())
        return digest_of(module)

    assert of(0) == of(0) != of(1)


class _Stateful(nn.Module):
    def __init__(self, state: object) -> None:
        super().__init__()
        self.state = state

    def get_extra_state(self) -> object:
        return self.state


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (nn.Linear(2, 3, device="meta"), "bias of Linear raised ValueError: on the meta device it holds no numbers"),
        (nn.LazyLinear(3), "bias of LazyLinear raised RuntimeError: Can't access the shape of an uninitialized"),
        (_Stateful(object()), "_extra_state of _Stateful raised TypeError: a state of type object has no fixed bytes"),
    ],
)
def test_weights_that_have_no_digest_are_one_error(module, reason):
    with pytest.raises(ModelError, match=f"cannot be told from others, .* {reason}"):
        digest_of(module)


# -- success without result --------------------------------------------------------------------------------------------


class _Known:
    """Four pictures of one's own, of which this is known."""

    def __init__(self, **known) -> None:
        self.known, self.annotations = known, frozenset({"label", "boxes", "mask"})

    def __len__(self) -> int:
        return 4

    def source(self, index: int) -> str:
        return f"mine-{index}"

    def sample(self, index: int) -> Sample:
        pixels = np.random.default_rng(index).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        return Sample(picture=Image.fromarray(pixels), **self.known)

    def describe(self) -> dict:
        return {}


EMPTY = np.zeros((64, 64), dtype=bool)
CORNER = [(0.0, 0.0, 3.0, 3.0)]


@pytest.mark.parametrize(
    ("protocol", "known", "said"),
    [
        (
            "segmentation",
            {"mask": EMPTY},
            r"segmentation measured nothing on 4 images \(no mask known \(4 times\)\); a mask",
        ),
        ("pointing", {}, r"pointing measured nothing on 4 images \(no boxes known \(4 times\)\); boxes are left, top"),
        ("perturbation", {}, r"perturbation measured nothing on 4 images \(no label known"),
        ("pointing", {"boxes": [(9.0, 9.0, 9.2, 12.0)]}, r"pointing measured nothing .*mine-0 has 64 x 64 pixels, and"),
    ],
)
def test_a_protocol_that_measures_nothing_is_an_error_here_and_in_the_report(model, tmp_path, protocol, known, said):
    question = {"methods": "raw", "protocols": [protocol]}
    with pytest.raises(DataError, match=said):
        evaluate(model, _Known(**known), output=tmp_path / "run", **question)
    with pytest.raises(RunFolderError, match="there is nothing to report, for nothing was measured"):
        write_report([tmp_path / "run"], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(DataError, match=said):  # nor is it done the second time
        evaluate(model, _Known(**known), output=tmp_path / "run", **question)


def test_what_other_protocols_measured_is_kept_and_the_report_says_what_is_missing(model, tmp_path):
    with pytest.raises(DataError, match=rf"pointing measured nothing .* What saco measured is in {tmp_path}"):
        evaluate(model, _Known(label=1), "raw", ["pointing", "saco"], output=tmp_path)
    run = read_run(tmp_path)
    assert run.measures("saco") == ("saco",)
    said = warnings([run], build_board([run], resamples=100))
    assert f"{tmp_path.name}: pointing measured nothing: no boxes known (4 times)." in said


def test_the_true_class_cannot_be_explained_where_none_is_known(model, pictures, tmp_path):
    folder = tmp_path / "pictures"
    draw(folder / "first.png", (64, 64))
    with pytest.raises(DataError, match="explains the true class, and of no picture is it known"):
        evaluate(model, folder, "raw", ["saco"], target="label", output=tmp_path / "run")
    draw(folder / "ant.png", (64, 64))
    told = evaluate(model, folder, "raw", ["saco"], target="label", output=tmp_path / "run").notes
    assert "of 1 picture the predicted class is explained, for the true one is not known" in told
