"""Attention transfer against a ViT written out in float64 with its maps as leaves, and on every family."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import reference
import timm
import torch
from families import FAMILIES, UserViT
from matrix import varied
from torch import Tensor, nn

import vitrail
from vitrail.counterfactual import Transfer, TransferFileError, transfer
from vitrail.errors import (
    ImageError,
    NoAttentionError,
    NonFiniteError,
    OptionError,
    OutputFileError,
    TargetError,
    TrainingModeError,
    UnknownClassError,
    UnsupportedAttentionError,
)

TARGET, OPPOSING = 2, 5


def relative(ours: Tensor, expected: Tensor) -> float:
    return float((ours.double() - expected).abs().max() / expected.abs().max())


# --- the literal reference --------------------------------------------------------------------------------------------


def written_out(vit: Any, image: Tensor, given: list[Tensor] | None = None) -> tuple[Tensor, list[Tensor]]:
    """A timm ViT's forward pass, line by line; attention as given, or the softmax that it computes."""
    x = nn.functional.conv2d(image, vit.patch_embed.proj.weight, vit.patch_embed.proj.bias, stride=16)
    x = x.flatten(2).transpose(1, 2)
    x = torch.cat([vit.cls_token, x], dim=1) + vit.pos_embed
    maps = []
    for number, block in enumerate(vit.blocks):
        y = block.norm1(x)
        q, k, v = (y @ block.attn.qkv.weight.T + block.attn.qkv.bias).unflatten(-1, (3, 3, 16)).permute(2, 0, 3, 1, 4)
        A = torch.softmax(q @ k.transpose(-1, -2) / 4, dim=-1) if given is None else given[number]
        maps.append(A)
        y = (A @ v).transpose(1, 2).flatten(2)
        x = x + y @ block.attn.proj.weight.T + block.attn.proj.bias
        y = block.norm2(x) @ block.mlp.fc1.weight.T + block.mlp.fc1.bias
        y = y * (1 + torch.erf(y / math.sqrt(2))) / 2
        x = x + y @ block.mlp.fc2.weight.T + block.mlp.fc2.bias
    return (vit.norm(x)[:, 0] @ vit.head.weight.T + vit.head.bias)[0], maps


def reference_transfer(
    vit: Any, image: Tensor, steps: int, lr: float, optimiser: str, constraint: str | None
) -> tuple[Tensor, Tensor]:
    """Logits after every step, and both classes' complete-gradient maps after every step."""
    with torch.no_grad():
        _, start = written_out(vit, image)
    theta = [(a.log() if constraint == "softmax" else a.clone()).requires_grad_() for a in start]
    descent = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[optimiser](theta, lr=lr)
    all_logits, all_maps = [], []
    for _ in range(steps + 1):
        A = [t.softmax(-1) if constraint == "softmax" else t for t in theta]
        logits, _ = written_out(vit, image, A)
        all_logits.append(logits.detach())
        rows = []
        for index in (TARGET, OPPOSING):
            G = torch.autograd.grad(logits[index], A, retain_graph=True)
            R = torch.eye(17, dtype=torch.float64)
            for a, g in zip(A, G, strict=True):
                R = R + (g * a).mean(1)[0] @ R
            rows.append(R[0, 1:].reshape(4, 4).detach())
        all_maps.append(torch.stack(rows))
        descent.zero_grad()
        logits[TARGET].backward()
        descent.step()
        if constraint == "clamp":
            with torch.no_grad():
                for t in theta:
                    t.clamp_(min=0)
    return torch.stack(all_logits), torch.stack(all_maps)


@pytest.mark.parametrize("constraint", [None, "clamp", "softmax"])
@pytest.mark.parametrize(("optimiser", "lr"), [("sgd", 0.02), ("adam", 0.01)])
def test_every_step_equals_the_vit_written_out(optimiser: str, lr: float, constraint: str | None):
    lr = lr * 10 if constraint == "softmax" else lr
    vit, image = FAMILIES["timm_vit"].build().double(), FAMILIES["timm_vit"].images(1, dtype=torch.float64)
    logits, maps = reference_transfer(vit, image, 5, lr, optimiser, constraint)
    ours = transfer(
        vit,
        image,
        TARGET,
        OPPOSING,
        steps=5,
        lr=lr,
        optimiser=optimiser,
        constraint=constraint,
        snapshots=range(6),
    )
    assert logits[0, TARGET] - logits[-1, TARGET] > 0.1, "the test moves something"
    assert ours.logits.dtype == ours.maps.dtype == torch.float64
    assert relative(ours.logits, logits) < 1e-10
    assert relative(ours.maps, maps) < 1e-10


@pytest.mark.parametrize("constraint", ["none", "clamp", "softmax"])
def test_what_a_constraint_promises_of_the_last_maps(constraint: str):
    family = FAMILIES["timm_vit"]
    options: dict[str, Any] = {"steps": 4, "lr": 0.05, "optimiser": "adam", "constraint": constraint}
    moved = transfer(family.build(), family.images(1), TARGET, OPPOSING, **options).metadata["attention"]
    assert moved["mean_change"] > 0.005
    assert (moved["lowest"] < 0) == (moved["negative_share"] > 0) == (constraint == "none")
    stochastic = abs(moved["lowest_row_sum"] - 1) < 1e-5 and abs(moved["highest_row_sum"] - 1) < 1e-5
    assert stochastic == (constraint == "softmax")


# --- every family -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", varied(FAMILIES))
def test_step_0_is_the_leaf_gradient(family: str):
    module, images = FAMILIES[family].build(), FAMILIES[family].images(1)
    before = {name: parameter.clone() for name, parameter in module.state_dict().items()}
    found = transfer(module, images, TARGET, OPPOSING, steps=1, lr=1e-2)
    leaf = vitrail.explain(module, images, [[TARGET, OPPOSING]], gradient="leaf")
    assert found.snapshots == (0, 1)
    assert found.maps.dtype == torch.float32
    assert relative(found.maps[0], leaf.scores[0].double()) < 1e-5
    assert relative(found.logits[0], leaf.logits[0].double()) < 1e-5
    assert found.logits[1, TARGET] < found.logits[0, TARGET]
    assert all(torch.equal(before[name], now) for name, now in module.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in module.parameters())


@pytest.mark.parametrize("family", varied(FAMILIES))
def test_a_small_step_lowers_the_logit_by_the_whole_gradient(family: str):
    """To first order Δ logit = −η Σ ‖∇A‖² over all maps that the logit depends on: none is left out, none twice."""
    module, images = FAMILIES[family].build().double(), FAMILIES[family].images(1, dtype=torch.float64)
    found = transfer(module, images, TARGET, OPPOSING, steps=1, lr=1e-7)
    captured = reference.capture(module, images, "leaf")
    slope = sum(float(g.square().sum()) for g in captured.gradients(captured.logits[0, TARGET]))
    assert float(found.logits[0, TARGET] - found.logits[1, TARGET]) / 1e-7 == pytest.approx(slope, rel=1e-4)


# --- interrupted and resumed ------------------------------------------------------------------------------------------


class Stop(Exception):
    """Something outside that ends a run."""


def stop_after(steps: int, error: type[BaseException]) -> Callable[[int, int], None]:
    def progress(taken: int, steps_in_all: int) -> None:
        if taken == steps:
            raise error

    return progress


@pytest.mark.parametrize(("optimiser", "constraint"), [("sgd", None), ("adam", "clamp"), ("adam", "softmax")])
def test_interrupted_and_resumed_is_undisturbed(tmp_path: Path, optimiser: str, constraint: str | None):
    family, state = FAMILIES["timm_vit"], tmp_path / "deep" / "state.safetensors"
    module, image = family.build(), family.images(1)
    asked: dict[str, Any] = {"steps": 7, "lr": 0.02, "optimiser": optimiser, "constraint": constraint}
    asked["snapshots"] = (0, 2, 5, 7)
    whole = transfer(module, image, TARGET, OPPOSING, **asked)
    for steps, error in ((3, KeyboardInterrupt), (5, Stop)):
        with pytest.raises(error):
            transfer(module, image, TARGET, OPPOSING, **asked, state=state, progress=stop_after(steps, error))
        assert state.exists()
    seen: list[tuple[int, int]] = []
    resumed = transfer(
        module, image, TARGET, OPPOSING, **asked, state=state, progress=lambda taken, steps: seen.append((taken, steps))
    )
    assert seen == [(6, 7), (7, 7)], "it goes on, and does not begin anew"
    assert torch.equal(resumed.logits, whole.logits)
    assert torch.equal(resumed.maps, whole.maps)
    assert resumed.metadata == whole.metadata
    assert not state.exists()


class Interrupted(nn.Module):
    """A model in whose forward pass the user presses Ctrl-C."""

    def __init__(self, module: nn.Module, at: int) -> None:
        super().__init__()
        self.module, self.calls, self.at = module, 0, at

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == self.at:
            raise KeyboardInterrupt
        return self.module(images)


def test_an_interrupt_in_the_middle_of_a_step_loses_that_step_alone(tmp_path: Path):
    family, state = FAMILIES["timm_vit"], tmp_path / "state.safetensors"
    whole = transfer(family.build(), family.images(1), TARGET, OPPOSING, steps=4)
    # Two passes find out the layout, one records the maps; then comes one for each step.
    with pytest.raises(KeyboardInterrupt):
        transfer(Interrupted(family.build(), 6), family.images(1), TARGET, OPPOSING, steps=4, state=state)
    resumed = transfer(Interrupted(family.build(), 0), family.images(1), TARGET, OPPOSING, steps=4, state=state)
    assert torch.equal(resumed.logits, whole.logits)


def test_a_finished_descent_can_go_on_for_longer(tmp_path: Path):
    family, state = FAMILIES["timm_vit"], tmp_path / "state.safetensors"
    module, image = family.build(), family.images(1)
    with pytest.raises(Stop):
        transfer(module, image, 2, 5, steps=3, snapshots=(0, 3), state=state, progress=stop_after(3, Stop))
    longer = transfer(module, image, 2, 5, steps=5, snapshots=(0, 3, 5), state=state)
    assert torch.equal(longer.maps, transfer(module, image, 2, 5, steps=5, snapshots=(0, 3, 5)).maps)


def test_a_state_of_another_question_is_refused(tmp_path: Path):
    family, state = FAMILIES["timm_vit"], tmp_path / "state.safetensors"
    module, image = family.build(), family.images(1)
    with pytest.raises(Stop):
        transfer(module, image, 2, 5, steps=4, lr=0.01, state=state, progress=stop_after(2, Stop))

    def refused(match: str, module: nn.Module = module, image: Tensor = image, target: int = 2, **options: Any) -> None:
        with pytest.raises(TransferFileError, match=match):
            transfer(module, image, target, 5, state=state, **{"steps": 4, "lr": 0.01, **options})

    refused("with lr=0.01, this one has lr=0.02: name another state", lr=0.02)
    refused(r"with classes=\[2, 5\], this one has classes=\[3, 5\]", target=3)
    refused("with optimiser=sgd, this one has optimiser=adam", optimiser="adam")
    refused("with constraint=none, this one has constraint=clamp", constraint="clamp")
    refused("with image=", image=image + 0.1)
    refused("has taken 2 steps, more than steps=1", steps=1)
    refused(r"has maps of steps \[0\], but of its 2 steps \[0, 1\] are asked for", snapshots=(0, 1, 4))
    refused("answers this image otherwise", module=changed(family.build()))
    state.write_bytes(b"half a file")
    refused("cannot read")


def changed(module: nn.Module) -> nn.Module:
    with torch.no_grad():
        next(module.parameters()).mul_(1.5)
    return module


# --- what is refused --------------------------------------------------------------------------------------------------


def refusal(error: type[Exception], match: str, *, module: nn.Module | None = None, **options: Any) -> None:
    family = FAMILIES["timm_vit"]
    asked = {"image": family.images(1), "target": 2, "opposing": 5, "steps": 1, **options}
    with pytest.raises(error, match=match):
        transfer(family.build() if module is None else module, **asked)


def test_questions_that_mean_nothing():
    refusal(OptionError, "steps=0 moves nothing", steps=0)
    refusal(OptionError, "lr=-0.1 does not lower the logit", lr=-0.1)
    refusal(OptionError, "lr=0 does not", lr=0)
    refusal(OptionError, "lr=nan does not", lr=math.nan)
    refusal(OptionError, "optimiser='rmsprop' is not known; choose one of sgd, adam", optimiser="rmsprop")
    refusal(OptionError, "constraint='sigmoid' is not known; choose one of none, clamp, softmax", constraint="sigmoid")
    refusal(
        OptionError, r"snapshots after steps \[-1, 7\], but maps can be drawn after steps 0 to 1", snapshots=(7, -1)
    )
    refusal(OptionError, "no snapshots", snapshots=())
    refusal(TargetError, r"target and opposing are both class 5 \(class 5\)", target=5)
    refusal(UnknownClassError, "there is no class 7: the model's 7 classes are 0 to 6", target=7)
    refusal(UnknownClassError, "zebra", opposing="zebra")
    refusal(UnknownClassError, "no class 9", also=[9])
    refusal(ImageError, "one image at a time, and 2 are given", image=FAMILIES["timm_vit"].images(2))
    refusal(NonFiniteError, "before attention is moved", image=torch.full((1, 3, 64, 64), torch.nan))
    refusal(NonFiniteError, r"after [12] steps of size 1e\+38 the logits hold NaN", lr=1e38, steps=9)


def test_states_without_a_place(tmp_path: Path):
    refusal(OutputFileError, "no place for the state of a run: name a .safetensors file", state=tmp_path)
    refusal(OutputFileError, "name a .safetensors file", state=tmp_path / "state.pt")


def test_models_whose_attention_cannot_be_had():
    plain = nn.Sequential(nn.Conv2d(3, 8, 16, 16), nn.Flatten(), nn.Linear(128, 7)).eval()
    refusal(NoAttentionError, "it has no attention", module=plain)
    swin = timm.create_model("swin_tiny_patch4_window7_224", img_size=64, depths=(1, 1), embed_dim=24).eval()
    refusal(UnsupportedAttentionError, "attention within windows", module=swin)
    refusal(TrainingModeError, "call model.eval", module=timm.create_model("test_vit", drop_rate=0.5).train())
    single = UserViT(FAMILIES["user_written_out"].build().get_submodule("blocks"))
    single.head = nn.Linear(48, 1)
    refusal(TargetError, "has 1 class: there is none that attention could go to", module=single.eval())


# --- the result -------------------------------------------------------------------------------------------------------


def test_classes_by_default_and_besides():
    family = FAMILIES["timm_vit"]
    found = transfer(family.build(), family.images(1), also=[0, 1], steps=1)
    first, second = found.logits[0].topk(2).indices.tolist()
    assert (found.target, found.opposing) == (first, second)
    assert found.classes == tuple(dict.fromkeys([first, second, 0, 1]))
    assert found.maps.shape == (2, len(found.classes), 4, 4)
    assert torch.equal(found.curve(first), found.logits[:, first])


def test_default_snapshots_end_with_the_last_step():
    family = FAMILIES["timm_vit"]
    assert transfer(family.build(), family.images(1), 2, 5, steps=12).snapshots == (0, 5, 10, 12)


def test_a_record_comes_back_bit_for_bit(tmp_path: Path):
    torch.manual_seed(0)
    model = vitrail.wrap(
        FAMILIES["timm_vit"].build(),
        preprocess=vitrail.Preprocess(size=(64, 64)),
        class_names=[f"beast {number}" for number in range(7)],
    )
    found = transfer(model, torch.randn(3, 64, 64), "beast 2", "beast 5", steps=2, optimiser="adam")
    again = Transfer.load(found.save(tmp_path / "record.safetensors"))
    for name in ("logits", "maps", "image"):
        assert torch.equal(getattr(found, name), getattr(again, name))
    for name in ("snapshots", "classes", "lr", "optimiser", "constraint", "class_names", "metadata"):
        assert getattr(found, name) == getattr(again, name)
    assert repr(again).startswith("Transfer(beast 2 ")
    assert again.after(2).question() == f"beast 2 {100 * again.after(2).probability(2):.1f} %"
    with pytest.raises(OptionError, match="no maps were drawn after step 1; there are those of 0, 2"):
        again.after(1)


def test_files_that_are_no_record(tmp_path: Path):
    with pytest.raises(TransferFileError, match="cannot read"):
        Transfer.load(tmp_path / "nothing.safetensors")
    family = FAMILIES["timm_vit"]
    ex = vitrail.explain(family.build(), family.images(1), 2)
    with pytest.raises(TransferFileError, match="its header has no 'vitrail transfer' entry"):
        Transfer.load(ex.save(tmp_path / "explanation.safetensors"))
    found = transfer(family.build(), family.images(1), 2, 5, steps=1)
    with pytest.raises(OutputFileError, match=r"name it \.safetensors"):
        found.save(tmp_path / "record.pt")
    with pytest.raises(ValueError, match="2 snapshots of 3 classes"):
        replace(found, classes=(2, 5, 6))
    with pytest.raises(ValueError, match="steps in rising order"):
        replace(found, snapshots=(1, 0))


# --- on the real model ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def elephant_and_zebra(vit_tiny: vitrail.VisionModel, shared: Path) -> tuple[vitrail.VisionModel, Path]:
    assert vit_tiny.preprocess is not None
    model = replace(vit_tiny, preprocess=replace(vit_tiny.preprocess, resize=256))
    return model, shared / "images" / "pairs" / "el2.png"


def test_ten_steps_on_the_real_model(elephant_and_zebra: tuple[vitrail.VisionModel, Path]):
    found = transfer(*elephant_and_zebra, "zebra", "African elephant", steps=10)
    zebra, elephant = found.curve(340), found.curve(386)
    for step, of_zebra, of_elephant in ((0, 13.5, 10.8), (5, 5.3, 6.4), (10, -1.5, 2.2)):
        assert float(zebra[step]) == pytest.approx(of_zebra, abs=0.06)
        assert float(elephant[step]) == pytest.approx(of_elephant, abs=0.06)
    on_zebra = found.maps[:, :, 7:11, 6:11].mean(dim=(2, 3))
    assert bool((on_zebra[:, 0] > 0).all()), "the zebra's red has not yet turned"
    assert bool((on_zebra[:, 1] < 0).all()), "and argues against the elephant"


def test_adam_on_the_real_model(elephant_and_zebra: tuple[vitrail.VisionModel, Path]):
    found = transfer(*elephant_and_zebra, "zebra", "African elephant", steps=5, optimiser="adam", snapshots=(5,))
    assert float(found.curve(340)[-1]) < -9
