"""Every form in which images are handed over, and every number of channels."""

import inspect
import io
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import vitrail
from vitrail.errors import ImageError, InputSizeError, ModelError
from vitrail.inputs import as_items, prepare
from vitrail.models import VisionModel, wrap
from vitrail.models.preprocess import Preprocess

COLOURS = Preprocess((32, 32), None, "bilinear", (0.5,) * 3, (0.25,) * 3)
GREY = Preprocess((32, 32), None, "bilinear", (0.5,), (0.25,))


def noise(size: tuple[int, int] = (60, 40)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def encoded(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def model() -> VisionModel:
    return wrap(nn.Identity(), preprocess=COLOURS)


class Pathlike:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __fspath__(self) -> str:
        return str(self.path)


def test_one_image_in_every_form(model: VisionModel, tmp_path: Path):
    path = tmp_path / "zoo.png"
    path.write_bytes(encoded(noise()))
    pixels = np.asarray(noise())
    chw = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
    expected = COLOURS(noise())[None]
    content = path.read_bytes()
    forms = [path, str(path), Pathlike(path), content, bytearray(content), memoryview(content), io.BytesIO(content)]
    forms += [noise(), pixels, pixels.astype(np.int64), pixels / 255, chw, chw.long()]
    with path.open("rb") as file:
        for form in [*forms, file]:
            assert torch.equal(prepare(model, form).batch, expected)
    assert prepare(model, Pathlike(path)).sources == ("zoo.png",)


def test_several_images_in_every_form(model: VisionModel, tmp_path: Path):
    pictures = [noise((60, 40)), noise((33, 50))]
    paths = [tmp_path / f"{i}.png" for i in range(2)]
    for path, picture in zip(paths, pictures, strict=True):
        path.write_bytes(encoded(picture))
    expected = torch.stack([COLOURS(picture) for picture in pictures])
    names = np.array([str(path) for path in paths])
    for form in (
        pictures,
        tuple(pictures),
        deque(pictures),
        iter(pictures),
        (p for p in pictures),
        names,
        sorted(paths),
    ):
        assert torch.equal(prepare(model, form).batch, expected)
    assert prepare(model, names).sources == ("0.png", "1.png")
    same = np.stack([np.asarray(noise())] * 2)
    batch = torch.from_numpy(same).permute(0, 3, 1, 2)
    for form in (same, batch, batch.int()):
        assert torch.equal(prepare(model, form).batch, COLOURS(noise()).expand(2, -1, -1, -1))


def test_images_have_a_type_in_every_signature():
    from vitrail.guidance import detail

    functions = [detail, *(one for name in vitrail.__all__ if inspect.isfunction(one := getattr(vitrail, name)))]
    types = {
        f"{one.__name__}({name})": parameter.annotation
        for one in functions
        for name, parameter in inspect.signature(one).parameters.items()
        if name in ("image", "images")
    }
    assert {"explain(images)", "compare(image)", "plan(images)", "detail(image)"} <= set(types)
    assert [name for name, kind in types.items() if kind in (Any, inspect.Parameter.empty)] == []


@pytest.mark.parametrize("nothing", [[], (), iter(()), np.zeros((0, 4, 4, 3), np.uint8), torch.zeros(0, 3, 4, 4)])
def test_nothing_is_refused(model: VisionModel, nothing):
    with pytest.raises(ImageError, match="no image"):
        prepare(model, nothing)


def test_grey_tensors_of_whole_numbers_are_pictures(model: VisionModel):
    grey = torch.arange(20 * 30, dtype=torch.uint8).reshape(1, 20, 30)
    expected = COLOURS(Image.fromarray(grey[0].numpy()).convert("RGB"))
    for form in (grey, grey[0], grey[None]):
        assert torch.equal(prepare(model, form).batch[0], expected)


def test_what_is_to_be_noted_of_a_picture_is_a_note_of_its_map(tmp_path: Path):
    deep = np.full((96, 96), 1000, dtype=np.uint16)
    deep[30:60, 30:60] = 4000
    Image.fromarray(deep).save(tmp_path / "scan.png")
    for gradient in ("full", None):
        ex = vitrail.explain(vitrail.load("bestiary"), tmp_path / "scan.png", "tavel", gradient=gradient)
        assert "the picture has values up to 4000, so 4095 is taken for white" in ex.notes()


def test_where_no_map_takes_the_notes_the_log_does(model: VisionModel, caplog: pytest.LogCaptureFixture):
    with caplog.at_level("WARNING", logger="vitrail"):
        prepare(model, np.full((40, 40), 4000, dtype=np.uint16))
    assert caplog.messages == ["the picture has values up to 4000, so 4095 is taken for white"]


def vit(**options) -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    torch.manual_seed(0)
    return VisionTransformer(
        img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=2, num_classes=5, **options
    ).eval()


def test_a_model_of_one_channel_sees_grey(tmp_path: Path):
    model = wrap(vit(in_chans=1), preprocess=GREY)
    grey = noise().convert("L")
    ex = vitrail.explain(model, grey, 0)
    expected = torch.from_numpy(np.asarray(grey.resize((32, 32), Image.Resampling.BILINEAR), np.float32) / 255)
    assert (prepare(model, grey).batch[0, 0] - (expected - 0.5) / 0.25).abs().max() <= 1e-6
    assert torch.equal(vitrail.explain(model, noise(), 0).scores, ex.scores)
    assert ex.images is not None
    assert ex.images.shape == (1, 32, 32, 3)
    assert "in grey" in model.describe()
    assert "4 x 4 patches" in model.describe()
    tensor = vitrail.explain(model, prepare(model, grey).batch, 0)
    assert tensor.images is not None
    assert torch.equal(tensor.images, ex.images)


def test_timm_models_of_one_channel_bring_their_preprocessing():
    import timm

    with torch.device("meta"):
        grey = wrap(timm.create_model("vit_tiny_patch16_224", in_chans=1)).preprocess
        assert grey is not None
        assert (grey.mean, grey.std, grey.resize) == ((0.5,), (0.5,), 248)
        # Normalised colour by colour, and with five channels: a guess would be a wrong map.
        assert wrap(timm.create_model("deit_tiny_patch16_224", in_chans=1)).preprocess is None
        assert wrap(timm.create_model("vit_tiny_patch16_224", in_chans=5)).preprocess is None


def test_other_numbers_of_channels_are_told_what_to_give():
    with pytest.raises(ModelError, match=r"takes one channel: Preprocess\(…, mean=\(0.5,\), std=\(0.5,\)\)"):
        vitrail.explain(wrap(vit(in_chans=1)), noise(), 0)
    with pytest.raises(ModelError, match=r"takes 5 channels, and pictures have three: give tensors \(images, 5, …\)"):
        vitrail.explain(wrap(vit(in_chans=5)), noise(), 0)
    with pytest.raises(InputSizeError, match=r"takes images of 1 x 32 x 32, not of 3 x 32 x 32.*one mean and std"):
        vitrail.explain(wrap(vit(in_chans=1), preprocess=COLOURS), noise(), 0)
    with pytest.raises(InputSizeError, match=r"takes images of 3 x 32 x 32, not of 1 x 32 x 32.*give 3 channels"):
        vitrail.explain(wrap(vit()), torch.zeros(1, 1, 32, 32), 0)
    assert "takes images of 1 x 32 x 32" in wrap(vit(in_chans=1), preprocess=COLOURS).describe()
    assert vitrail.explain(wrap(vit(in_chans=5)), torch.randn(1, 5, 32, 32), 0).scores.shape == (1, 4, 4)


@pytest.mark.parametrize("family", ["timm", "hf", "torchvision"])
def test_a_tensor_of_another_size_is_told_the_models(family: str):
    if family == "timm":
        module = vit()
    elif family == "hf":
        transformers = pytest.importorskip("transformers")
        config = transformers.ViTConfig(image_size=32, patch_size=8, hidden_size=24, num_hidden_layers=2)
        config.num_attention_heads, config.intermediate_size = 2, 48
        module = transformers.ViTForImageClassification(config).eval()
    else:
        from torchvision.models import VisionTransformer

        module = VisionTransformer(32, 8, 2, 2, 24, 48).eval()
    with pytest.raises(
        InputSizeError, match=r"takes images of 3 x 32 x 32, not of 3 x 40 x 40.*give images of that size"
    ):
        vitrail.explain(module, torch.zeros(1, 3, 40, 40), 0)


class Lightning(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.loss = model, nn.CrossEntropyLoss()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.model(images)


class Normalised(nn.Module):
    """A model that takes images from 0 to 1, as robustness benchmarks have them."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("mean", torch.full((3, 1, 1), 0.5))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.model((images - self.mean.to(images)) / 0.5)


class Scaled(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return 2 * images - 1


class Broken(Normalised):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("not so")


def test_wrappers_keep_what_the_model_inside_brings():
    import timm
    from torch.optim.swa_utils import AveragedModel

    with torch.device("meta"):
        module = timm.create_model("vit_tiny_patch16_224")
    bare = wrap(module)
    wrappers = [
        AveragedModel(module),
        nn.DataParallel(module),
        Lightning(module),
        nn.Sequential(module, nn.Softmax(-1)),
    ]
    for wrapper in [*wrappers, Lightning(AveragedModel(module))]:
        found = wrap(wrapper)
        assert (found.preprocess, found.class_names) == (bare.preprocess, bare.class_names)
    # A wrapper that normalises by itself would see the images normalised twice.
    for own in (Normalised(module), nn.Sequential(Scaled(), module), Broken(module)):
        found = wrap(own)
        assert (found.preprocess, found.class_names) == (None, bare.class_names)
        assert not module._forward_pre_hooks
    # Two parts with parameters: whose preprocessing was trained with is not known.
    assert wrap(nn.Sequential(module, nn.Linear(1000, 5))).preprocess is None


def test_peft_models_keep_preprocessing_and_explain_as_the_model_inside():
    peft = pytest.importorskip("peft")
    module = vit()
    module.pretrained_cfg = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
    torch.manual_seed(0)
    before = vitrail.explain(module, noise(), 0).scores
    tuned = peft.get_peft_model(module, peft.LoraConfig(target_modules=["qkv"], r=2)).eval()
    found = wrap(tuned)
    assert found.preprocess == Preprocess((32, 32), 36, "bicubic", (0.5,) * 3, (0.5,) * 3)
    torch.testing.assert_close(vitrail.explain(found, noise(), 0).scores, before)  # LoRA begins at zero


def padded_at_run_time() -> nn.Module:
    return vit(dynamic_img_size=True, dynamic_img_pad=True)


def cut_at_run_time() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.Dinov2Config(image_size=32, patch_size=8, hidden_size=24, num_hidden_layers=2)
    config.num_attention_heads, config.num_labels = 2, 5
    torch.manual_seed(0)
    return transformers.Dinov2ForImageClassification(config).eval()


@pytest.mark.parametrize(("build", "covered"), [(padded_at_run_time, (40, 48)), (cut_at_run_time, (32, 40))])
def test_a_map_lies_over_the_pixels_that_its_patches_cover(build, covered: tuple[int, int]):
    """Of 34 x 42 pixels a model that pads sees 40 x 48, and one that drops the rest 32 x 40: the map was stretched."""
    from vitrail.bridges.attributions import attributions

    module = build()
    if build is padded_at_run_time:
        module.pretrained_cfg = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
    model = wrap(module)
    images = torch.randn(2, 3, 34, 42)
    ex = vitrail.explain(model, images, 1)
    assert ex.grid == (covered[0] // 8, covered[1] // 8)
    torch.testing.assert_close(ex.logits, model.logits(images).detach())
    assert any(f"to {covered[1]} x {covered[0]} at the right and the bottom" in note for note in ex.notes())
    if ex.images is not None:
        assert ex.images.shape == (2, *covered, 3)
    # A patch keeps its place on the user's own pixels, and what is not seen has no attribution.
    large = attributions(model, images, 1)
    assert large.shape == (2, 1, 34, 42)
    inner = nn.functional.interpolate(ex.scores[:, None], size=covered, mode="bilinear")[..., :34, :42]
    torch.testing.assert_close(large[..., : inner.shape[-2], : inner.shape[-1]], inner)
    assert not large[..., covered[0] :, :].any()


def test_evaluation_refuses_patches_that_are_not_those_of_the_picture(tmp_path: Path):
    from vitrail.errors import DataError
    from vitrail.evaluate import evaluate

    noise().save(tmp_path / "a.png")
    model = wrap(padded_at_run_time(), preprocess=Preprocess((34, 34)))
    with pytest.raises(DataError, match="pads or cuts its input of 34 x 34 pixels to 40 x 40"):
        evaluate(model, tmp_path, "raw", ["insertion"], output=tmp_path / "run")


@pytest.mark.parametrize(
    ("images", "why"), [({"a": 1}, "dict, which has names"), ({"a", "b"}, "set, which has no order")]
)
def test_pictures_without_an_order_are_refused(images, why):
    with pytest.raises(ImageError, match=f"the images are a {why}: give a list"):
        as_items(images)
