"""explain(): inputs, targets, objectives, refusals. The numbers themselves are in tests/methods."""

import numpy as np
import pytest
import torch
from families import FAMILIES
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

import vitrail
from vitrail.errors import (
    AmbiguousClassError,
    ImageError,
    ModelError,
    NonFiniteError,
    NoSignalError,
    ObjectiveError,
    OptionError,
    OutputError,
    SameClassError,
    TargetCountError,
    TargetError,
    TrainingModeError,
    UnknownClassError,
    UnknownMethodError,
    UnknownObjectiveError,
)

NAMES = ("horse", "zebra", "African elephant, Loxodonta africana", "Indian elephant", "kite", "bald eagle", "snail")


@pytest.fixture(scope="module")
def model():
    preprocess = vitrail.Preprocess(size=(64, 64), resize=72, mean=(0.5,) * 3, std=(0.5,) * 3)
    return vitrail.wrap(FAMILIES["timm_vit"].build(), preprocess=preprocess, class_names=NAMES, name="tiny")


@pytest.fixture(scope="module")
def images():
    return FAMILIES["timm_vit"].images(3)


class TestInputs:
    def test_a_path_a_picture_an_array_and_a_tensor_give_one_map(self, model, tmp_path):
        pixels = np.random.default_rng(0).integers(0, 256, (90, 80, 3), dtype=np.uint8)
        picture = Image.fromarray(pixels)
        picture.save(tmp_path / "noise.png")
        expected = vitrail.explain(model, model.preprocess(picture)[None], "zebra").scores
        for given_ in (tmp_path / "noise.png", str(tmp_path / "noise.png"), picture, pixels, torch.from_numpy(pixels)):
            assert torch.equal(vitrail.explain(model, given_, "zebra").scores, expected)
        several = vitrail.explain(model, [tmp_path / "noise.png", pixels], "zebra")
        assert torch.equal(several.scores[1:], expected)
        assert several.metadata["sources"] == ["noise.png", None]
        assert several.images.shape == (2, 64, 64, 3)

    def test_one_tensor_without_a_batch_axis(self, model, images):
        assert vitrail.explain(model, images[0]).scores.shape == (1, 4, 4)

    @pytest.mark.parametrize(
        ("given_", "error", "message"),
        [
            ([], ImageError, "the list holds no image"),
            (torch.zeros(0, 3, 64, 64), ImageError, "the batch holds no image"),
            (torch.zeros(64, 64), ImageError, r"shape \(64, 64\) is no image: give \(channels, height, width\)"),
            ([torch.zeros(3, 64, 64), torch.zeros(3, 32, 64)], ImageError, "different sizes"),
        ],
    )
    def test_what_is_no_image(self, model, given_, error, message):
        with pytest.raises(error, match=message):
            vitrail.explain(model, given_)

    def test_a_picture_for_a_model_without_preprocessing(self):
        module = FAMILIES["user_written_out"].build()
        with pytest.raises(ModelError, match=r"comes without preprocessing.*wrap\(…, preprocess="):
            vitrail.explain(module, Image.new("RGB", (64, 64)))


class TestTargets:
    def test_every_form(self, model, images):
        by_index = vitrail.explain(model, images, 1)
        assert by_index.scores.shape == (3, 4, 4)
        for form in ("Zebra", [1, 1, 1], ["zebra", 1, "ZEBRA"], torch.tensor([1, 1, 1]), np.array([1, 1, 1])):
            assert torch.equal(vitrail.explain(model, images, form).scores, by_index.scores)
        nested = vitrail.explain(model, images, [[1, 2], [1, 3], [1, 0]])
        assert nested.scores.shape == (3, 2, 4, 4)
        assert nested.target.tolist() == [[1, 2], [1, 3], [1, 0]]
        torch.testing.assert_close(nested.scores[:, 0], by_index.scores, rtol=1e-4, atol=1e-6)
        assert vitrail.explain(model, images[:1], [[4]]).scores.shape == (1, 1, 4, 4)

    def test_none_is_the_predicted_class(self, model, images):
        found = vitrail.explain(model, images)
        assert torch.equal(found.target, found.logits.argmax(1))

    @pytest.mark.parametrize(
        ("target", "error", "message"),
        [
            ([1, 2], TargetCountError, r"target lists 2 for 3 image\(s\): give one per image"),
            ([[1], 2, 3], TargetCountError, "mixes single classes with lists"),
            ([[1], [2, 3], [4]], TargetCountError, "lists 1 and 2 targets for different images"),
            ([[], [], []], TargetCountError, "lists 0 targets"),
            ("elephant", AmbiguousClassError, "African elephant.*Indian elephant"),
            ("zebar", UnknownClassError, "zebra"),
            (7, UnknownClassError, "7"),
            (-1, UnknownClassError, "-1"),
            ([1.5, 2.0, 3.0], TargetError, r"target=1.5.*is no class"),
            ([True, 1, 1], TargetError, "is no class"),
        ],
    )
    def test_what_is_no_target(self, model, images, target, error, message):
        with pytest.raises(error, match=message):
            vitrail.explain(model, images, target)

    def test_an_index_beyond_the_logits_of_a_model_without_names(self, images):
        with pytest.raises(UnknownClassError, match="7"):
            vitrail.explain(FAMILIES["timm_vit"].build(), images, 7)

    def test_against_in_every_form(self, model, images):
        one = vitrail.explain(model, images, 1, against="kite", objective="difference")
        assert one.against.tolist() == [4, 4, 4]
        several = vitrail.explain(model, images[:1], [[1, 2]], against=4, objective="difference")
        assert several.against.tolist() == [[4, 4]]
        fan = vitrail.explain(model, images[:1], 1, against=[[4, 5, 6]], objective="difference")
        assert fan.target.tolist() == [[1, 1, 1]]
        assert fan.scores.shape == (1, 3, 4, 4)
        torch.testing.assert_close(fan.scores[0, 0], one.scores[0], rtol=1e-4, atol=1e-6)
        with pytest.raises(TargetCountError, match=r"2 target\(s\) per image are held against 3"):
            vitrail.explain(model, images[:1], [[1, 2]], against=[[4, 5, 6]])

    def test_a_class_against_itself(self, model, images):
        with pytest.raises(SameClassError, match=r"^kite \(4\) is held against itself: give two different classes$"):
            vitrail.explain(model, images[:1], 4, against="kite")
        with pytest.raises(SameClassError, match=r"^snail \(6\), image 1, is held against itself"):
            vitrail.explain(model, images, [4, 6, 4], against=6)
        with pytest.raises(SameClassError, match="is held against itself"):
            vitrail.explain(model, images[:1], [[1, 2]], against=2)
        own = int(vitrail.explain(model, images[:1], method="raw").logits.argmax())
        with pytest.raises(SameClassError, match=rf"\({own}\) \(the predicted class\) is held against itself"):
            vitrail.explain(model, images[:1], against=own)


class TestObjectives:
    def test_the_difference_is_the_default_against_a_class(self, model, images):
        found = vitrail.explain(model, images, 1, against=2)
        assert found.objective == "difference"
        literal = vitrail.explain(model, images, objective=lambda z: z[:, 1] - z[:, 2])
        torch.testing.assert_close(found.scores, literal.scores, rtol=1e-4, atol=1e-7)

    def test_eq_8(self, images):
        # Logits shifted to be positive, so that no fallback is needed.
        module = FAMILIES["timm_vit"].build()
        module.head.bias.data += 10
        found = vitrail.explain(module, images, 1, against=2, objective="normalized_difference")
        literal = vitrail.explain(module, images, objective=lambda z: (z[:, 1] - z[:, 2]) / z[:, 1])
        torch.testing.assert_close(found.scores, literal.scores, rtol=1e-4, atol=1e-7)
        assert found.metadata["image_notes"] == [[], [], []]

    @pytest.mark.parametrize("objective", ["normalized_difference", "ratio"])
    def test_quotients_fall_back_to_the_difference_and_say_so(self, images, objective):
        module = FAMILIES["timm_vit"].build()
        module.head.bias.data -= 10
        found = vitrail.explain(module, images, 1, against=2, objective=objective)
        plain = vitrail.explain(module, images, 1, against=2, objective="difference")
        torch.testing.assert_close(found.scores, plain.scores)
        assert found.metadata["difference_instead"] == [[True]] * 3
        note = f"A logit is zero or negative, where {objective} means nothing: the logits' difference is shown."
        assert found.metadata["image_notes"] == [[note]] * 3

    @pytest.mark.parametrize("objective", ["normalized_difference", "ratio"])
    @pytest.mark.parametrize("silent", [(1,), (2,), (1, 2)])
    def test_a_logit_of_exactly_zero_divides_nothing(self, images, objective, silent):
        module = FAMILIES["timm_vit"].build()
        with torch.no_grad():
            module.head.bias += 10
            module.head.bias[list(silent)] = 0
            module.head.weight[list(silent)] = 0
        other = 2 if silent != (1, 2) else 3
        found = vitrail.explain(module, images, 1, against=other, objective=objective)
        plain = vitrail.explain(module, images, 1, against=other, objective="difference")
        assert found.logits[:, list(silent)].eq(0).all()
        assert found.metadata["difference_instead"] == [[True]] * 3
        torch.testing.assert_close(found.scores, plain.scores)

    def test_a_users_own_quotient_by_zero_is_refused(self, model, images):
        with pytest.raises(NonFiniteError, match=r"explain the logit instead of a quotient"):
            vitrail.explain(model, images, objective=lambda z: z[:, 1] / (z[:, 2] - z[:, 2]))

    @pytest.mark.parametrize(
        ("name", "literal"),
        [
            ("logit", lambda z: z[:, 1]),
            ("probability", lambda z: z.softmax(1)[:, 1]),
            ("log_probability", lambda z: z.log_softmax(1)[:, 1]),
        ],
    )
    def test_objectives_of_one_class(self, model, images, name, literal):
        ours = vitrail.explain(model, images, 1, objective=name, compete=False)
        torch.testing.assert_close(
            ours.scores, vitrail.explain(model, images, 1, objective=literal).scores, rtol=1e-4, atol=1e-7
        )

    def test_swapping_the_classes_of_a_difference_turns_the_first_order_map(self, model, images):
        # With one propagated layer the map is linear in the objective; with more it is so to first order only.
        one = vitrail.explain(model, images, 1, against=2, objective="difference", start_layer=-1).scores
        other = vitrail.explain(model, images, 2, against=1, objective="difference", start_layer=-1).scores
        torch.testing.assert_close(one, -other)

    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"objective": "difference"}, ObjectiveError, "compares two classes: say against= which class"),
            ({"objective": "logit", "against": 2}, ObjectiveError, "takes one class, but against= is given"),
            ({"objective": "loss"}, UnknownObjectiveError, "no objective is called 'loss'; there are logit, "),
            ({"objective": lambda z: z}, ObjectiveError, r"returned \(3, 7\) for 3 image\(s\)"),
            ({"objective": lambda z: 1.0}, ObjectiveError, "returned float"),
            ({"objective": lambda z: z.mean()}, ObjectiveError, r"returned \(\) for 3 image\(s\)"),
            ({"objective": lambda z: z[:, 1], "against": 2}, ObjectiveError, "against= means nothing to an objective"),
            ({"method": "raw", "against": 2}, OptionError, "raw is the same for every class"),
            (
                {"method": "gradcam3"},
                UnknownMethodError,
                "no method is called 'gradcam3'; did you mean gradcam or xgradcam[?] there are raw, rollout",
            ),
            ({"alpha": 0.5}, OptionError, "method 'complete' does not know alpha; it takes identity"),
            ({"method": "gmar_l2", "alpha": -1.0}, OptionError, "alpha=-1.0 weighs the residual"),
            ({"method": "gmar_l2", "order": "up"}, OptionError, "order='up' is none of left, right"),
            ({"method": "gmar_l2", "discard_ratio": 1.0}, OptionError, r"must lie in \[0, 1\)"),
            ({"gradient": "half"}, OptionError, "gradient='half' is not a gradient mode"),
            ({"gradient": "leaf", "method": "rollout"}, OptionError, "changes nothing for rollout"),
            ({"centred": True, "method": "raw"}, OptionError, "centred=True is not defined for raw"),
            ({"start_layer": 3}, OptionError, r"start_layer=3, but the model calls attention 3 times \(0…2\)"),
            ({"start_layer": 1, "method": "raw"}, OptionError, "start_layer=1 is not defined for raw"),
            ({"batch_size": 0}, OptionError, "batch_size=0 must be 1 or more"),
        ],
    )
    def test_refusals(self, model, images, options, error, message):
        with pytest.raises(error, match=message):
            vitrail.explain(model, images, 1, **options)


class TestRefusals:
    @pytest.mark.parametrize(("part", "kind"), [("dropout", nn.Dropout(0.1)), ("norm", nn.BatchNorm1d(7))])
    def test_training_mode(self, images, part, kind):
        module = nn.Sequential(FAMILIES["timm_vit"].build(), kind)
        module.eval()
        vitrail.explain(module, images)
        kind.train()
        with pytest.raises(TrainingModeError, match=rf"1 \({type(kind).__name__}\).*call model.eval\(\) first"):
            vitrail.explain(module, images)

    def test_dropout_called_by_hand(self, images):
        class Dropping(nn.Module):
            def __init__(self):
                super().__init__()
                self.inner = FAMILIES["timm_vit"].build()

            def forward(self, x):
                return nn.functional.dropout(self.inner(x), 0.5, training=self.training)

        module = Dropping().eval()
        vitrail.explain(module, images)
        with pytest.raises(TrainingModeError, match=r"dropout\(0.5\) in training mode"):
            vitrail.explain(module.train(), images)

    def test_gradient_checkpointing(self, images):
        module = FAMILIES["timm_vit"].build()
        module.set_grad_checkpointing(True)
        with pytest.raises(TrainingModeError, match=r"set_grad_checkpointing\(False\) first"):
            vitrail.explain(module, images)

    def test_drop_path_in_training_mode(self, images):
        from timm.models.vision_transformer import VisionTransformer

        module = VisionTransformer(img_size=64, embed_dim=48, depth=2, num_heads=3, drop_path_rate=0.1)
        with pytest.raises(TrainingModeError, match="DropPath"):
            vitrail.explain(module, images)

    def test_nan_in_the_image(self, model, images):
        broken = images.clone()
        broken[1, 0, 5, 5] = torch.nan
        with pytest.raises(NonFiniteError, match="logits of image 1 hold NaN"):
            vitrail.explain(model, broken, 1)

    def test_nan_in_the_map_only(self, model, images):
        with pytest.raises(NonFiniteError, match="the map of image 0.*though its logits do not"):
            vitrail.explain(model, images, objective=lambda z: z[:, 0] * torch.inf)

    @pytest.mark.parametrize("method", ["complete", "gae", "gmar_l2"])
    def test_a_constant_objective(self, model, images, method):
        with pytest.raises(NoSignalError):
            vitrail.explain(model, images, method=method, objective=lambda z: z[:, 0] * 0)

    def test_an_output_without_logits(self, images):
        class Odd(nn.Module):
            def forward(self, x):
                return {"answer": x}

        with pytest.raises(OutputError, match="logits_from="):
            vitrail.explain(Odd(), images)


class TestResult:
    def test_it_knows_what_was_asked(self, model, images):
        found = vitrail.explain(model, images, "zebra", method="gmar_l1", gradient="leaf", start_layer=1, alpha=0.25)
        assert found.method == "gmar_l1"
        assert not found.signed
        assert found.metadata["gradient"] == "leaf"
        assert found.metadata["start_layer"] == 1
        assert found.metadata["options"]["alpha"] == 0.25
        assert found.metadata["readout"] == "class token"
        assert set(found.metadata["versions"]) == {"vitrail", "torch", "timm"}

    def test_an_alias_is_recorded_under_its_own_name(self, model, images):
        assert vitrail.explain(model, images, 1, method="positive").method == "gae"

    @settings(max_examples=10, deadline=None)
    @given(batch_size=st.integers(1, 5), targets=st.lists(st.integers(0, 6), min_size=4, max_size=4))
    def test_batch_size_changes_nothing(self, batch_size, targets):
        module, images = FAMILIES["timm_vit"].build(), FAMILIES["timm_vit"].images(4)
        whole = vitrail.explain(module, images, targets)
        cut = vitrail.explain(module, images, targets, batch_size=batch_size)
        torch.testing.assert_close(cut.scores, whole.scores, rtol=1e-4, atol=1e-6)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision_models_give_float32_scores_near_the_exact_ones(self, images, dtype):
        exact = vitrail.explain(FAMILIES["timm_vit"].build(), images, 1)
        half = vitrail.explain(FAMILIES["timm_vit"].build().to(dtype), images, 1)
        assert half.scores.dtype == torch.float32
        correlation = torch.corrcoef(torch.stack([exact.scores.flatten(), half.scores.flatten()]))[0, 1]
        assert correlation > (0.99 if dtype == torch.float16 else 0.95)

    def test_the_identity_of_a_mean_readout_is_left_out_unless_asked_for(self):
        family = FAMILIES["timm_vit_average"]
        without = vitrail.explain(family.build(), family.images(1), 1, compete=False).scores
        with_ = vitrail.explain(family.build(), family.images(1), 1, identity=True).scores
        torch.testing.assert_close(with_ - without, torch.full_like(without, 1 / 16))

    def test_compiled_models_are_explained_as_the_plain_one(self, images):
        expected = vitrail.explain(FAMILIES["timm_vit"].build(), images, 1).scores
        whole, in_place, by_block = (FAMILIES["timm_vit"].build() for _ in range(3))
        in_place.compile(backend="eager")
        for block in by_block.blocks:
            block.compile(backend="eager")
        for module in (torch.compile(whole, backend="eager"), in_place, by_block):
            assert torch.equal(vitrail.explain(module, images, 1).scores, expected)
        # Afterwards they run compiled again.
        runs = []
        compiled = torch.compile(nn.Linear(64, 2), backend=lambda graph, _: runs.append(1) or graph.forward)
        compiled(images)
        assert runs


class TestFusedKernel:
    """The complete gradient through the fused backward, which a GPU takes by itself."""

    @pytest.mark.parametrize("gradient", ["full", "leaf", "libra"])
    @pytest.mark.parametrize("family", ["timm_vit", "timm_beit", "timm_siglip", "hf_dinov2", "torchvision_vit"])
    def test_it_equals_the_blocks(self, family, gradient, monkeypatch):
        from vitrail.attention import differentiate

        model, images = FAMILIES[family].model(), FAMILIES[family].images(2)
        blocks = vitrail.explain(model, images, [[1, 2], [3, 4]], gradient=gradient).scores
        calls = []
        plain = differentiate._FusedAttention.apply
        monkeypatch.setattr(differentiate, "fused_by_default", lambda *_: True)
        monkeypatch.setattr(differentiate._FusedAttention, "apply", lambda *a: calls.append(1) or plain(*a))
        fused = vitrail.explain(model, images, [[1, 2], [3, 4]], gradient=gradient).scores
        assert calls
        torch.testing.assert_close(fused, blocks, rtol=1e-3, atol=1e-6)

    @pytest.mark.parametrize("scale", [1.0, 1e-3])
    def test_float16_does_not_underflow(self, scale, monkeypatch):
        from vitrail.attention import differentiate

        monkeypatch.setattr(differentiate, "fused_by_default", lambda *_: True)
        family = FAMILIES["timm_vit_average"]
        exact = vitrail.explain(family.build(), family.images(1), objective=lambda z: z[:, 1] * scale).scores
        half = vitrail.explain(
            family.build().half(), family.images(1), objective=lambda z: z[:, 1].float() * scale
        ).scores
        correlation = torch.corrcoef(torch.stack([exact.flatten(), half.flatten()]))[0, 1]
        assert correlation > 0.99
