"""The rows of the benchmark: the limit is what it says, and other libraries' maps are ours of the same formula."""

import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

import benchmarks
import vitrail
from vitrail.benchmark.peers import PEERS, STORED
from vitrail.benchmark.rows import FORWARD, LIMIT, one_backward, row_named, rows_of, stored
from vitrail.benchmark.subject import Case, Subject, limit, sharing_weights
from vitrail.errors import ModelError, OptionError

# One image whose rows and columns differ in number would find a transposed map; the benchmark's images are square.
CASE = Case("test_vit", 96, 2)


@pytest.fixture(scope="module")
def subject() -> Iterator[Subject]:
    with torch.random.fork_rng(devices=[]):
        yield Subject.make(CASE)


def test_the_rows_are_the_registrys(subject: Subject) -> None:
    names = [row.name for row in rows_of(subject)]
    assert names[:2] == [FORWARD, LIMIT]
    assert {f"vitrail {info.name}" for info in one_backward()} < set(names)
    assert names[-6:] == [*(stored(method) for method in STORED), *(peer.name for peer in PEERS)]
    assert {info.name for info in one_backward()} >= {"complete", "gae", "absolute", "gmar_l1", "gmar_l2", "attcat"}
    assert all(info.passes.startswith("1F") for info in one_backward())


def test_stored_maps_are_the_same_maps(subject: Subject) -> None:
    for row in rows_of(subject, ["complete"]):
        if row.name.startswith("stored"):
            assert row.agreement is not None
            assert row.agreement() < 1e-5, row.name


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name.replace(" ", "-"))
@pytest.mark.filterwarnings("ignore")  # the libraries' own
def test_the_peers_maps_are_ours(subject: Subject, peer) -> None:
    pytest.importorskip(peer.module)
    theirs = peer.make(subject)()
    ours = vitrail.explain(subject.model, subject.images, subject.targets.tolist(), method=peer.ours).scores
    ours = peer.finish(ours, (CASE.size, CASE.size))
    assert ours.shape == theirs.shape
    assert float((ours - theirs).abs().max() / theirs.abs().max()) < 1e-4
    # Another target's map is another: the comparison could fail.
    other = vitrail.explain(subject.model, subject.images, [7, 8], method=peer.ours).scores
    assert float((peer.finish(other, (CASE.size, CASE.size)) - theirs).abs().max() / theirs.abs().max()) > 1e-2


def test_a_peer_that_is_not_there_is_a_row_without_work(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitrail.benchmark.peers.find_spec", lambda name: None)
    last = rows_of(subject, ["complete"])[-1]
    assert (last.work, last.why_not) == (None, "not installed: pip install captum")


def test_numpy_has_no_bfloat16() -> None:
    rows = {row.name: row for row in rows_of(Subject.make(CASE, dtype=torch.bfloat16), ["complete"])}
    assert rows["pytorch-grad-cam LayerCAM"].work is None
    assert rows["Captum LayerGradCam"].work is not None


def test_stored_maps_that_do_not_fit_are_not_begun(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitrail.benchmark.rows.available_memory", lambda device: 1000)
    row = row_named(subject, stored("gae"))
    assert row.work is None
    assert "not run: its maps alone are" in row.why_not


def test_the_limit_differentiates_activations_only(subject: Subject) -> None:
    frozen = sharing_weights(subject.module, frozen=True)
    reached: list[Tensor] = []
    first = next(frozen.blocks.children())
    first.register_full_backward_hook(lambda module, inputs, outputs: reached.append(inputs[0]))
    limit(frozen, subject.images, subject.targets)
    assert len(reached) == 1
    assert float(reached[0].abs().sum()) > 0
    assert all(parameter.grad is None for parameter in frozen.parameters())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in subject.module.parameters())


def test_other_models_are_refused() -> None:
    with pytest.raises(ModelError, match="test_vit2 is no timm ViT that reads its class token"):
        Subject.make(Case("test_vit2", 160, 1))


def test_a_model_of_other_classes() -> None:
    subject = Subject.make(Case("test_vit", 96, 2), weights={"num_classes": 5})
    assert (subject.module.num_classes, subject.targets.tolist()) == (5, [0, 1])


def test_a_row_that_is_none(subject: Subject) -> None:
    with pytest.raises(OptionError, match="'Captum LayerGradCam' is no row whose memory is measured"):
        row_named(subject, "Captum LayerGradCam")


def test_every_benchmark_of_the_repository_finds_what_it_imports() -> None:
    names = [path.stem for path in Path(benchmarks.__path__[0]).glob("*.py")]
    assert len(names) > 10
    methods = vitrail.list_methods()
    for name in names:
        importlib.import_module(f"benchmarks.{name}")
    assert vitrail.list_methods() == methods
