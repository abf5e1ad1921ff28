"""Attention flow on whole models equals networkx on the captured attention, and the authors' own flows."""

import copy

import numpy as np
import pytest
import reference
import torch
from families import FAMILIES
from perturbation_reference import flow_map

import vitrail
from vitrail.errors import NoSignalError, OptionError
from vitrail.methods import find_method
from vitrail.methods.attention_flow import attention_capacities, normalised_flows

TARGETS = [[2, 5], [0, 2]]


def expected(name: str, capacities: str, image: int, column: int) -> np.ndarray:
    family = FAMILIES[name]
    captured = reference.capture(copy.deepcopy(family.build()), family.images(2))
    gradients = captured.gradients(sum(captured.logits[i, TARGETS[i][column]] for i in range(2)))
    used = max(index for index, g in enumerate(gradients) if g.abs().max() > 0) + 1
    layers = []
    for a, g in zip(captured.maps[:used], gradients[:used], strict=True):
        mean, square = a[image].mean(0), a.shape[-1] == a.shape[-2]
        if capacities == "attention":
            layer = (mean + torch.eye(len(mean), dtype=mean.dtype)) / 2 if square else mean
        elif capacities == "gradient":
            layer = g[image].clamp(min=0).mean(0)
        else:
            layer = (a[image] * g[image]).clamp(min=0).mean(0)
        layers.append(layer.detach().numpy())
    patches = family.grid[0] * family.grid[1]
    row = reference.readout(family.readout, family.prefix, patches, layers[-1].shape[0]).numpy()
    return flow_map(layers, row)[family.prefix :].reshape(family.grid)


@pytest.mark.parametrize("capacities", ["attention", "gradient", "attention_gradient"])
@pytest.mark.parametrize("name", ["timm_vit_non_square", "hf_dinov2", "timm_siglip", "user_non_square"])
def test_equal_to_networkx(name: str, capacities: str):
    family = FAMILIES[name]
    ex = vitrail.explain(family.build(), family.images(2), TARGETS, method="attention_flow", capacities=capacities)
    wanted = expected(name, capacities, 1, 0)
    assert np.abs(ex.scores[1, 0].double().numpy() - wanted).max() < 1e-5 * wanted.max()
    assert ex.metadata["class_specific"] == (capacities != "attention")


@pytest.mark.parametrize("case", ["random_L4_N8", "random_L3_N17"])
def test_the_authors_own_flows(shared, case: str):
    with np.load(shared / "oracles" / "attention_flow.npz") as file:
        heads, flows = file[f"{case}/A_heads"], file[f"{case}/cls_flow_normalised"]
    layers = [attention_capacities(torch.from_numpy(a).mean(0)[None])[0].numpy() for a in heads]
    ours = normalised_flows(layers, np.eye(heads.shape[-1])[0])
    assert np.abs(ours - flows).max() < 1e-7 * flows.max()


def test_classes_count_only_where_gradients_are_the_capacities():
    family = FAMILIES["timm_vit"]
    question = (family.build(), family.images(1), 1)
    with pytest.raises(OptionError, match="attention_flow is the same for every class"):
        vitrail.explain(*question, against=2, method="attention_flow")
    with pytest.raises(OptionError, match="uses no gradient"):
        vitrail.explain(*question, method="attention_flow", gradient="leaf")
    one, other = (
        vitrail.explain(*question, against=rival, method="attention_flow", capacities="attention_gradient").scores
        for rival in (2, 3)
    )
    assert not torch.allclose(one, other)
    assert not find_method("attention_flow", {}).class_specific
    assert find_method("attention_flow", {"capacities": "gradient"}).passes == "1F 1B"


def test_bad_options_are_refused():
    family = FAMILIES["timm_vit"]
    with pytest.raises(OptionError, match="capacities='heads' is none of attention, gradient, attention_gradient"):
        vitrail.explain(family.build(), family.images(1), method="attention_flow", capacities="heads")
    with pytest.raises(OptionError, match="units=10 must be a whole number from 10⁶ to 2³⁰"):
        vitrail.explain(family.build(), family.images(1), method="attention_flow", units=10)


def test_flows_that_are_all_alike_are_no_map():
    def alike(logits):
        return logits.sum(dim=1) * 0

    family = FAMILIES["timm_vit"]
    with pytest.raises(NoSignalError):
        vitrail.explain(
            family.build(), family.images(1), method="attention_flow", capacities="gradient", objective=alike
        )


def test_progress_counts_every_token():
    told = []
    family = FAMILIES["timm_vit"]
    vitrail.explain(family.build(), family.images(2), method="attention_flow", progress=lambda *step: told.append(step))
    assert told == [("maximum flows", done, 34) for done in range(1, 35)]


@pytest.mark.slow
@pytest.mark.parametrize("capacities", ["attention", "attention_gradient"])
def test_real_flows_equal_the_whole_graphs(vit_tiny, shared, capacities: str, monkeypatch):
    """Of the 197 tokens of a photograph, every tenth by the solver on all twelve layers."""
    from vitrail.attention import max_flow

    graphs = []
    plain = max_flow.flows_to_inputs
    monkeypatch.setattr(
        "vitrail.methods.attention_flow.flows_to_inputs", lambda graph, *a: graphs.append(graph) or plain(graph, *a)
    )
    with np.load(shared / "oracles" / "inputs.npz") as file:
        image = torch.from_numpy(file["catdog/x"])
    vitrail.explain(vit_tiny, image, 243, method="attention_flow", capacities=capacities)
    flows = plain(graphs[0])
    for sink in range(0, 197, 10):
        assert flows[sink] == pytest.approx(max_flow.whole_flow(graphs[0], sink), rel=1e-6)
