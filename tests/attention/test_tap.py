"""The tap: what it sees, what it leaves alone, and that nothing of the user's model changes."""

import copy
import threading

import pytest
import torch
import torch.nn.functional as F
from families import FAMILIES
from torch import nn

import vitrail
from vitrail.attention.record import CallRecorder, DenseRecorder
from vitrail.attention.tap import Tap
from vitrail.attention.visitors import Replacement
from vitrail.errors import ForwardError, TrainingModeError, UnsupportedAttentionError
from vitrail.models.vision_model import VisionModel


def logits_of(name: str, module: nn.Module, images: torch.Tensor) -> torch.Tensor:
    return VisionModel(module, name).logits(images)


class Failing:
    """A visitor that breaks in the middle of a model."""

    def attend(self, call):
        raise RuntimeError("in the middle")

    normalise = attend


def fingerprint(module: nn.Module) -> dict[str, object]:
    """Everything about a module that a user could find changed."""
    found: dict[str, object] = {}
    for name, part in module.named_modules():
        found[name] = (type(part), part.training, {k: id(v) for k, v in vars(part).items() if not k.startswith("_")})
        found[name + "/hooks"] = [
            tuple(map(id, vars(part)[k].values())) for k in sorted(vars(part)) if k.endswith("hooks")
        ]
        found[name + "/attributes"] = sorted(vars(part))
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        found["tensor " + name] = (
            id(tensor),
            tensor.data_ptr(),
            tensor._version,
            tensor.requires_grad,
            tensor.grad is None,
        )
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_the_forward_pass_is_bit_for_bit_the_models_own(family):
    module, images = FAMILIES[family].build(), FAMILIES[family].images(2)
    # Whether weights ask for gradients changes the order of sums in PyTorch's own linear layers: compare with the
    # frozen model, whose weights are constants as they are under the tap. The encoders' fast path is another kernel.
    frozen = copy.deepcopy(module).requires_grad_(False)
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    plain = logits_of(family, frozen, images)
    torch.backends.mha.set_fastpath_enabled(fast)
    for gradient in ("full", "libra"):
        with torch.no_grad(), Tap(CallRecorder(), 2, gradient):
            assert torch.equal(logits_of(family, module, images), plain)
    assert torch.equal(vitrail.explain(module, images).logits, plain)
    torch.testing.assert_close(plain, logits_of(family, module, images).detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", ["complete", "rollout", "gmar_l2"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_users_model_is_as_before(family, method):
    module, images = FAMILIES[family].build(), FAMILIES[family].images(1)
    next(module.parameters()).requires_grad_(False)
    weights = copy.deepcopy(module.state_dict())
    before = fingerprint(module)
    vitrail.explain(module, images, method=method)
    assert fingerprint(module) == before
    for name, value in module.state_dict().items():
        assert torch.equal(value, weights[name])


@pytest.mark.parametrize("family", ["timm_vit", "hf_vit", "torchvision_vit", "user_written_out", "user_encoder"])
def test_the_users_model_is_as_before_after_an_exception(family):
    module, images = FAMILIES[family].build(), FAMILIES[family].images(1)
    before = fingerprint(module)
    with pytest.raises(ForwardError, match="in the middle"), Tap(Failing(), 1):
        logits_of(family, module, images)
    assert fingerprint(module) == before

    def broken(logits: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("in the objective")

    with pytest.raises(RuntimeError, match="in the objective"):
        vitrail.explain(module, images, objective=broken)
    assert fingerprint(module) == before
    assert torch.overrides._get_current_function_mode() is None


@pytest.mark.parametrize("family", FAMILIES)
def test_maps_put_back_give_the_same_logits(family):
    module, images = FAMILIES[family].build(), FAMILIES[family].images(2)
    recorder = DenseRecorder()
    with torch.no_grad(), Tap(recorder, 2):
        plain = logits_of(family, module, images)
    for attention in recorder.maps:
        torch.testing.assert_close(attention.sum(-1), torch.ones(attention.shape[:-1]))
    with torch.no_grad(), Tap(Replacement(dict(enumerate(recorder.maps))), 2):
        replaced = logits_of(family, module, images)
    torch.testing.assert_close(replaced, plain, rtol=1e-4, atol=1e-5)


def test_replaced_maps_can_be_variables():
    module, images = FAMILIES["timm_vit"].build(), FAMILIES["timm_vit"].images(1)
    recorder = DenseRecorder()
    with torch.no_grad(), Tap(recorder, 1):
        plain = module(images)
    maps = {layer: attention.clone().requires_grad_() for layer, attention in enumerate(recorder.maps)}
    with Tap(Replacement(maps), 1):
        logit = module(images)[0, 3]
    gradients = torch.autograd.grad(logit, list(maps.values()))
    lowered = {layer: a.detach() - 0.05 * g for (layer, a), g in zip(maps.items(), gradients, strict=True)}
    with torch.no_grad(), Tap(Replacement(lowered), 1):
        assert module(images)[0, 3] < plain[0, 3]


def test_a_map_of_the_wrong_shape_is_refused():
    module, images = FAMILIES["timm_vit"].build(), FAMILIES["timm_vit"].images(1)
    with pytest.raises(UnsupportedAttentionError, match=r"attention 1 has shape \(5, 5\).*\(1, 3, 17, 17\)"):  # noqa: SIM117
        with Tap(Replacement({1: torch.ones(5, 5)}), 1):
            module(images)


def test_gradients_of_recorded_maps_are_finite_differences():
    module, images = FAMILIES["timm_vit"].build().double(), FAMILIES["timm_vit"].images(1).double()
    recorder = DenseRecorder()
    with Tap(recorder, 1):
        logit = module(images)[0, 2]
    gradients = recorder.gradients(logit)
    step = 1e-6
    for layer, head, row, column in [(0, 1, 4, 7), (1, 0, 0, 3), (2, 2, 0, 16)]:
        found = []
        for sign in (step, -step):
            moved = recorder.maps[layer].detach().clone()
            moved[0, head, row, column] += sign
            with torch.no_grad(), Tap(Replacement({layer: moved}), 1):
                found.append(float(module(images)[0, 2]))
        slope = (found[0] - found[1]) / (2 * step)
        # Every later layer follows the moved map, so the slope is the gradient through the whole model.
        assert float(gradients[layer][0, head, row, column]) == pytest.approx(slope, rel=1e-5, abs=1e-9)


def test_dropout_in_attention_is_refused():
    query = torch.randn(1, 2, 5, 4)
    with pytest.raises(TrainingModeError, match=r"attention 0 drops 10%.*model.eval\(\)"), Tap(CallRecorder(), 1):
        F.scaled_dot_product_attention(query, query, query, dropout_p=0.1)


@pytest.mark.parametrize("gradient", ["full", "leaf"])
def test_a_bias_that_depends_on_the_image_has_a_gradient_where_attention_has(gradient):
    query = torch.randn(1, 2, 5, 4)
    bias = torch.zeros(5, 5, requires_grad=True) + 0
    with Tap(CallRecorder(), 1, gradient):
        output = F.scaled_dot_product_attention(query, query, query, attn_mask=bias)
    assert output.requires_grad == (gradient == "full")


def test_softmax_over_classes_or_experts_is_no_attention():
    recorder = CallRecorder()
    with Tap(recorder, 2):
        torch.randn(2, 7).softmax(-1)
        F.softmax(torch.randn(2, 17, 4), dim=-1)
        torch.softmax(torch.randn(2, 3, 5, 5), dim=1)
    assert recorder.layers == []
    with Tap(recorder, 2):
        torch.randn(6, 5, 5).softmax(dim=2)
    assert recorder.layers[0].probabilities().shape == (2, 3, 5, 5)


def test_multi_head_attention_returns_its_weights_when_asked():
    layer, x = nn.MultiheadAttention(8, 2, batch_first=True).eval(), torch.randn(2, 5, 8)
    plain, plain_weights = layer(x, x, x)
    recorder = CallRecorder()
    with Tap(recorder, 2):
        output, weights = layer(x, x, x)
    torch.testing.assert_close(output, plain)
    torch.testing.assert_close(weights, plain_weights)
    torch.testing.assert_close(recorder.layers[0].probabilities().mean(1), plain_weights)


def test_two_threads_explain_one_model_at_once():
    module, images = FAMILIES["timm_vit"].build(), FAMILIES["timm_vit"].images(2)
    expected = [vitrail.explain(module, images[i : i + 1], i).scores for i in range(2)]
    found: dict[tuple[int, int], torch.Tensor] = {}

    def work(i: int) -> None:
        for turn in range(5):
            found[i, turn] = vitrail.explain(module, images[i : i + 1], i).scores

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 10
    for (i, _), scores in found.items():
        assert torch.equal(scores, expected[i])


@pytest.mark.parametrize("surroundings", [torch.no_grad, torch.inference_mode])
def test_it_works_inside_no_grad_and_inference_mode(surroundings):
    module, images = FAMILIES["timm_vit"].build(), FAMILIES["timm_vit"].images(1)
    expected = vitrail.explain(module, images, 1).scores
    with surroundings():
        assert torch.equal(vitrail.explain(module, images, 1).scores, expected)


def test_frozen_weights_change_nothing():
    module, images = FAMILIES["timm_vit"].build(), FAMILIES["timm_vit"].images(1)
    expected = vitrail.explain(module, images, 1).scores
    assert torch.equal(vitrail.explain(module.requires_grad_(False), images, 1).scores, expected)
