"""explain(guide=…): what is stitched, what comes back, what is refused, and that the model stays as it was."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from families import FAMILIES
from PIL import Image

import vitrail
from vitrail.errors import (
    GuideError,
    InputSizeError,
    NotAnImageError,
    OptionError,
    UnknownClassError,
)
from vitrail.guidance import drawing
from vitrail.guidance.drawing import class_likeness, dissimilar_class
from vitrail.guidance.guide import as_guide, guide_files
from vitrail.guidance.stitching import plan_stitch, stitch
from vitrail.provenance import Box

NAMES = ("horse", "zebra", "elephant", "tusker", "kite", "eagle", "snail")
PREPROCESS = vitrail.Preprocess(size=(64, 64), resize=72, mean=(0.5,) * 3, std=(0.5,) * 3)


@pytest.fixture(scope="module")
def model():
    return vitrail.wrap(FAMILIES["timm_vit"].build(), preprocess=PREPROCESS, class_names=NAMES, name="tiny")


@pytest.fixture(scope="module")
def images():
    return FAMILIES["timm_vit"].images(2)


@pytest.fixture(scope="module")
def guide():
    return FAMILIES["timm_vit"].images(1, seed=9)[0]


@pytest.fixture(scope="module")
def target(model, guide):
    """A class that the guide is not."""
    return (int(model.logits(guide[None]).argmax()) + 1) % len(NAMES)


def picture(seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (80, 90, 3), dtype=np.uint8))


def state(module: torch.nn.Module) -> list:
    tensors = [*module.named_parameters(), *module.named_buffers()]
    hooks = [len(part._forward_hooks) + len(part._backward_hooks) for part in module.modules()]
    kept = [(name, t.clone(), t.requires_grad, t.data_ptr(), t.grad) for name, t in tensors]
    return [kept, hooks, [part.training for part in module.modules()]]


def assert_same(before: list, after: list) -> None:
    assert before[1:] == after[1:]
    for (name, one, grad, place, gradient), (name2, two, grad2, place2, gradient2) in zip(
        before[0], after[0], strict=True
    ):
        assert (name, grad, place) == (name2, grad2, place2)
        assert torch.equal(one, two)
        assert gradient is gradient2 is None


class TestResult:
    def test_the_scores_are_those_of_the_stitched_input_at_the_original(self, model, images, guide, target):
        ex = vitrail.explain(model, images, target, guide=guide)
        plan = plan_stitch("side", "left", "squash", grid=(4, 4))
        whole = vitrail.explain(model, stitch(images, guide.expand_as(images), plan), target, gradient="full")
        assert torch.equal(ex.scores, whole.scores[..., :2])
        (part,) = ex.guided
        assert torch.equal(part.scores, whole.scores)
        assert torch.equal(part.logits, whole.logits)
        assert torch.equal(part.images, whole.images)
        torch.testing.assert_close(ex.logits, model.logits(images).detach())  # of the photographs alone
        stitched = part.metadata["stitch"]
        assert (stitched["layout"], stitched["side"], stitched["grid"]) == ("side", "left", [4, 4])
        assert Box(**stitched["original"]) == plan.original
        assert ex.metadata["guide"]["extension"] is False

    def test_several_are_averaged(self, model, images, guide, target):
        other = FAMILIES["timm_vit"].images(1, seed=11)[0]
        target = next(c for c in range(7) if c not in model.logits(torch.stack([guide, other])).argmax(1).tolist())
        both = vitrail.Guide([guide, other], side="both")
        ex = vitrail.explain(model, images, target, guide=both)
        single = [
            vitrail.explain(model, images, target, guide=vitrail.Guide(one, side=side)).scores
            for one in (guide, other)
            for side in ("left", "right")
        ]
        assert len(ex.guided) == 4
        torch.testing.assert_close(ex.scores, torch.stack(single).mean(dim=0))
        assert "mean of 4 maps" in ex.notes()[0]

    def test_side_and_stack_meet_on_the_photographs_own_patches(self, model, images, guide, target):
        ex = vitrail.explain(model, images, target, guide=vitrail.Guide(guide, layout=("side", "stack")))
        side, stacked = (part.scores for part in ex.guided)
        expected = (side[..., :2].repeat_interleave(2, 2) + stacked[:, :2].repeat_interleave(2, 1)) / 2
        torch.testing.assert_close(ex.scores, expected)

    def test_several_targets_and_a_comparison(self, model, images, guide, target):
        others = [c for c in range(7) if c != int(model.logits(guide[None]).argmax())]
        ex = vitrail.explain(model, images, [others[:2]] * 2, guide=guide)
        assert ex.scores.shape == (2, 2, 4, 2)
        single = vitrail.explain(model, images, others[1], guide=guide)
        torch.testing.assert_close(ex.scores[:, 1], single.scores)
        compared = vitrail.explain(
            model, images, others[0], against=others[1], objective="difference", method="gae", guide=guide, batch_size=1
        )
        assert compared.against is not None
        assert compared.guided[0].against.tolist() == [others[1]] * 2

    def test_the_predicted_class_is_that_of_the_image_alone(self, model, images):
        own = model.logits(images).argmax(dim=1).tolist()
        guide = next(
            one for one in FAMILIES["timm_vit"].images(24, seed=3) if int(model.logits(one[None]).argmax()) not in own
        )
        assert vitrail.explain(model, images, guide=guide).target.tolist() == own

    def test_files_and_folders(self, model, tmp_path, target):
        (tmp_path / "guides" / "deep").mkdir(parents=True)
        for number in range(5):
            picture(number).save(tmp_path / "guides" / f"{number}.png")
        picture(7).save(tmp_path / "guides" / "deep" / "7.jpg")
        (tmp_path / "guides" / "notes.txt").write_text("no picture")
        assert [path.name for path in guide_files(tmp_path / "guides", 3)] == ["0.png", "2.png", "4.png"]
        folder = vitrail.Guide(tmp_path / "guides", most=2)
        seen = model.logits(torch.stack([PREPROCESS(picture(n)) for n in (0, 3)])).argmax(1).tolist()
        target = next(c for c in range(7) if c not in seen)
        ex = vitrail.explain(model, picture(20), target, guide=folder)
        assert [one["source"] for one in ex.metadata["guides"][0]] == ["0.png", "3.png"]
        assert ex.metadata["guides"][0][0]["class"] == seen[0]

    def test_crop_shows_what_it_explains(self, model, target):
        image = picture(20)
        guide = PREPROCESS(picture(1))
        target = (int(model.logits(guide[None]).argmax()) + 1) % 7
        ex = vitrail.explain(model, image, target, guide=vitrail.Guide(guide, fit="crop"))
        view = torch.from_numpy(np.array(PREPROCESS.view(image)))
        assert torch.equal(ex.images[0], view[:, 16:48])

    def test_saved_and_loaded_and_cut(self, model, images, guide, target, tmp_path):
        ex = vitrail.explain(model, images, target, guide=vitrail.Guide(guide, side="both"))
        loaded = vitrail.Explanation.load(ex.save(tmp_path / "guided.safetensors"))
        assert loaded.metadata == ex.metadata
        for one, two in zip((loaded, *loaded.guided), (ex, *ex.guided), strict=True):
            assert torch.equal(one.scores, two.scores)
            assert torch.equal(one.images, two.images)
            assert one.metadata == two.metadata
        second = ex[1]
        assert torch.equal(second.guided[1].scores, ex.guided[1].scores[1:])
        assert second.metadata["guides"] == ex.metadata["guides"][1:]

    def test_a_file_without_guides_is_of_the_first_version(self, model, images, tmp_path):
        path = vitrail.explain(model, images, 0, gradient="full").save(tmp_path / "plain.safetensors")
        assert b'\\"version\\": 1' in path.read_bytes()


class TestWide:
    @pytest.mark.parametrize("name", ["timm_vit", "timm_deit3", "timm_beit", "timm_eva02", "hf_vit", "hf_dinov2"])
    @pytest.mark.parametrize("layout", ["wide", "tall"])
    def test_the_photograph_keeps_its_patches_and_the_model_its_weights(self, name, layout):
        family = FAMILIES[name]
        module = family.build()
        images, guide = family.images(1), family.images(1, seed=5)[0]
        model = vitrail.wrap(module)
        alone = model.logits(images).detach()
        target = (int(model.logits(guide[None]).argmax()) + 1) % family.classes
        before = state(module)
        ex = vitrail.explain(model, images, target, guide=vitrail.Guide(guide, layout=layout))
        assert_same(before, state(module))
        assert torch.equal(model.logits(images), alone)
        rows, cols = family.grid
        assert ex.scores.shape == (1, rows, cols)
        expected = (rows, 2 * cols) if layout == "wide" else (2 * rows, cols)
        assert ex.guided[0].scores.shape == (1, *expected)
        assert ex.metadata["guide"]["extension"] is True
        assert any("extension" in note for note in ex.notes())

    def test_the_larger_model_is_timms_own(self, images, guide, target):
        """Against a model that timm builds for the larger input, with the same weights resampled by timm."""
        import timm

        module = timm.create_model("test_vit", num_classes=7).eval()
        larger = timm.create_model("test_vit", num_classes=7, img_size=(160, 320)).eval()
        weights = timm.models.vision_transformer.checkpoint_filter_fn(module.state_dict(), larger)
        larger.load_state_dict(weights)
        image, guide = torch.randn(1, 3, 160, 160), torch.randn(3, 160, 160)
        target = (int(module(guide[None]).argmax()) + 1) % 7
        ex = vitrail.explain(module, image, target, guide=vitrail.Guide(guide, layout="wide"))
        whole = torch.cat([image, guide[None]], dim=-1)
        torch.testing.assert_close(ex.guided[0].logits, larger(whole).detach())

    def test_a_model_of_one_size(self):
        family = FAMILIES["torchvision_vit"]
        guide = family.images(1, seed=5)[0]
        with pytest.raises(InputSizeError, match='layout="side" and layout="stack" work with every model'):
            vitrail.explain(family.build(), family.images(1), 0, guide=vitrail.Guide(guide, layout="wide"))


class TestDrawn:
    @pytest.fixture(autouse=True)
    def _few_steps(self, monkeypatch):
        few = {"channels": 3, "seed": 0, "steps": 12, "progress": None}
        monkeypatch.setattr(drawing.draw_guide.__wrapped__, "__kwdefaults__", few)

    @pytest.mark.slow
    def test_a_class_far_from_the_target_drawn_the_same_each_time(self, model, images):
        before = state(model.module)
        random = torch.get_rng_state()
        ex = vitrail.explain(model, images, [0, 1], guide="auto")
        assert_same(before, state(model.module))
        assert torch.equal(torch.get_rng_state(), random)
        for target, (guide,) in zip((0, 1), ex.metadata["guides"], strict=True):
            assert guide["drawn"]
            assert guide["class"] == dissimilar_class(class_likeness(model, (3, 64, 64), 7), [target]) != target
            assert guide["class_name"] in " ".join(ex.notes())
        again = replace(model)  # another model around the same module finds the drawing; a cleared one draws anew
        drawing._DRAWN.clear()
        assert torch.equal(vitrail.explain(again, images, [0, 1], guide="auto").scores, ex.scores)

    def test_it_climbs(self, model):
        plan = plan_stitch("side", "left", "squash", grid=(4, 4))
        noise, drawn = (drawing.draw_guide(model, 3, [plan], steps=steps) for steps in (0, 60))
        logits = [model.logits(drawing._in_place(one[None], plan))[0, 3].item() for one in (noise, drawn)]
        assert logits[1] > logits[0] + 0.5
        assert drawn.shape == (3, 64, 32)
        assert drawn.abs().max() <= 1  # black and white of this model's normalisation

    def test_it_is_kept_until_the_weights_change(self, monkeypatch):
        model = vitrail.wrap(FAMILIES["timm_vit"].build(), preprocess=PREPROCESS)
        plan = plan_stitch("side", "left", "squash", grid=(4, 4))
        calls = []
        draw = drawing._draw
        monkeypatch.setattr(drawing, "_draw", lambda *given: calls.append(1) or draw(*given))
        for _ in range(2):
            drawing.draw_guide(model, 3, [plan], steps=1)
        assert len(calls) == 1
        with torch.no_grad():
            next(model.module.parameters()).mul_(1.5)
        drawing.draw_guide(model, 3, [plan], steps=1)
        assert len(calls) == 2

    def test_the_class_that_is_asked_for(self, model, images):
        ex = vitrail.explain(model, images, 0, guide=vitrail.Guide("auto", guide_class="zebra"))
        assert [one["class"] for (one,) in ex.metadata["guides"]] == [1, 1]
        with pytest.raises(GuideError, match="guide_class=zebra is the target itself: a guide must show another class"):
            vitrail.explain(model, images, "zebra", guide=vitrail.Guide("auto", guide_class="zebra"))
        with pytest.raises(UnknownClassError):
            vitrail.explain(model, images, 0, guide=vitrail.Guide("auto", guide_class="unicorn"))

    def test_a_model_without_a_linear_head_is_asked_about_noise(self):
        family = FAMILIES["timm_vit"]
        module = family.build()

        class Fixed(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.body, self.weight = module, torch.nn.Parameter(module.head.weight.detach().clone())
                self.body.head = torch.nn.Identity()

            def forward(self, images):
                return self.body(images) @ self.weight.T

        likeness = class_likeness(vitrail.wrap(Fixed().eval()), (3, 64, 64), 7)
        assert likeness.shape == (7, 7)
        torch.testing.assert_close(likeness.diagonal(), torch.ones(7, dtype=torch.float64))
        assert likeness.min() < 0


class TestRefusals:
    def test_a_guide_of_the_targets_own_class(self, model, images, guide):
        own = int(model.logits(guide[None]).argmax())
        with pytest.raises(GuideError, match="is itself seen as .* which is the target of image 1: a guide must show"):
            vitrail.explain(model, images, [(own + 1) % 7, own], guide=guide)
        with pytest.raises(GuideError, match=r"^the guide is itself seen as .* which is the target of the image"):
            vitrail.explain(model, images[:1], own, guide=guide)

    @pytest.mark.parametrize(
        ("make", "error", "message"),
        [
            (lambda: vitrail.Guide(layout="diagonal"), OptionError, "layout='diagonal'"),
            (lambda: vitrail.Guide(layout=()), OptionError, "names none of side, stack, wide, tall"),
            (
                lambda: vitrail.Guide(side="top"),
                OptionError,
                "side='top' is no place for the original in layout='side'",
            ),
            (lambda: vitrail.Guide(fit="crop", layout=("side", "stack")), OptionError, "so their maps have no mean"),
            (lambda: vitrail.Guide(most=0), OptionError, "most=0 pictures of a folder is fewer than 1"),
            (
                lambda: vitrail.Guide("a.png", guide_class=3),
                OptionError,
                "guide_class=3 says what to draw, but pictures",
            ),
            (lambda: vitrail.Guide([]), None, "holds no picture"),
        ],
    )
    def test_a_guide_that_makes_no_sense(self, model, images, make, error, message):
        with pytest.raises(error or OptionError, match=message):
            vitrail.explain(model, images, 0, guide=make())

    def test_guides_in_every_form_of_a_picture(self, tmp_path):
        path = tmp_path / "a.png"
        Image.new("RGB", (20, 20), (200, 30, 30)).save(path)
        content = path.read_bytes()
        for one in (path, str(path), content, bytearray(content), memoryview(content), io.BytesIO(content)):
            assert as_guide(one).items() == [one]
        assert as_guide(name for name in (path, path)).items() == [path, path]
        assert vitrail.Guide(iter([path])).items() == [path]

    def test_what_is_no_guide(self, model, images, guide, tmp_path):
        with pytest.raises(OptionError, match=r"guide= holds a int; give a path, a folder, a picture"):
            as_guide(3)
        with pytest.raises(NotAnImageError, match="holds no image that could be a guide"):
            vitrail.explain(model, images, 0, guide=tmp_path)
        with pytest.raises(NotAnImageError, match="does not exist"):
            vitrail.explain(model, images, 0, guide=tmp_path / "nowhere.png")
        with pytest.raises(OptionError, match="rollout is the same for every class, so guide= cannot steer it"):
            vitrail.explain(model, images, method="rollout", guide=guide)
        with pytest.raises(OptionError, match="lrp scores pixels, and guide= cuts patches out of a stitched map"):
            vitrail.explain(model, images, 0, method="lrp", guide=guide)
        with pytest.raises(OptionError, match=r"readout=3 names a token of the image alone"):
            vitrail.explain(model, images, 0, guide=guide, readout=3)

    def test_no_class_is_left_to_draw(self):
        with pytest.raises(vitrail.errors.TargetError, match="so no class is left that a guide could show"):
            dissimilar_class(torch.eye(2), [0, 1])
