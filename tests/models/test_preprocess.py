"""Preprocessing equals that of the libraries, to the bit where they resize pictures as Vitrail does."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from vitrail.errors import ImageError, ModelError
from vitrail.models.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess
from vitrail.models.preprocess_adapters import adapt, from_open_clip, from_processor, from_timm, read_processor

SIZES = [(300, 200), (200, 300), (97, 211), (224, 224), (31, 17), (500, 40)]
HALF = (0.5, 0.5, 0.5)


def picture(size: tuple[int, int]) -> Image.Image:
    """Noise below a ramp of grey: rough and smooth places."""
    pixels = np.random.default_rng(sum(size)).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    pixels[: size[1] // 2] = np.linspace(0, 255, size[0]).astype(np.uint8)[None, :, None]
    return Image.fromarray(pixels)


def smooth(size: tuple[int, int]) -> Image.Image:
    """A picture as smooth as photographs are."""
    return picture((size[0] // 6 + 1, size[1] // 6 + 1)).resize(size, Image.Resampling.BICUBIC)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "nearest", "lanczos"])
def test_resize_and_crop_equal_torchvision(size: tuple[int, int], interpolation: str):
    reference = transforms.Compose(
        [
            transforms.Resize(96, InterpolationMode(interpolation)),
            transforms.CenterCrop((84, 84)),
            transforms.ToTensor(),
            transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )
    ours = Preprocess((84, 84), 96, interpolation)
    assert torch.equal(ours(picture(size)), reference(picture(size)))
    assert adapt(reference) == ours


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
@pytest.mark.parametrize("shape", [(64, 64), (48, 80)])
@pytest.mark.parametrize("crop_pct", [0.9, 1.0])
def test_timm_transforms_are_equalled(size, crop_mode: str, shape: tuple[int, int], crop_pct: float):
    from timm.data import create_transform

    config = {
        "input_size": (3, *shape),
        "interpolation": "bicubic",
        "mean": IMAGENET_MEAN,
        "std": IMAGENET_STD,
        "crop_pct": crop_pct,
        "crop_mode": crop_mode,
    }
    reference = create_transform(**config)
    ours = from_timm(config)
    assert ours.view(picture(size)).size == shape[::-1]
    assert torch.equal(ours(picture(size)), reference(picture(size)))
    read = adapt(reference)
    assert torch.equal(read(picture(size)), reference(picture(size)))


@pytest.mark.parametrize("mode", ["shortest", "squash", "longest"])
@pytest.mark.parametrize("shape", [(64, 64), (48, 80)])
@pytest.mark.parametrize("size", SIZES[:3])
def test_open_clip_transforms_are_equalled(mode: str, shape: tuple[int, int], size: tuple[int, int]):
    transform = pytest.importorskip("open_clip.transform")

    config = {
        "size": shape,
        "mean": HALF,
        "std": HALF,
        "interpolation": "bicubic",
        "resize_mode": mode,
        "fill_color": 0,
    }
    reference = transform.image_transform_v2(transform.PreprocessCfg(**config), is_train=False)
    ours = from_open_clip(config)
    if mode == "shortest" and shape[0] != shape[1]:
        # There open_clip forgets to pass the interpolation on, and resizes with its default.
        config["interpolation"] = "bilinear" if adapt(reference).interpolation == "bilinear" else "bicubic"
        ours = from_open_clip(config)
    assert torch.equal(ours(picture(size)), reference(picture(size)))
    assert torch.equal(adapt(reference)(picture(size)), reference(picture(size)))


@pytest.mark.parametrize("name", ["vit_b_16", "vit_h_14"])
@pytest.mark.parametrize("choice", [0, -1])
def test_torchvision_weights_transforms_are_equalled(name: str, choice: int):
    from torchvision.models import get_model_weights

    reference = list(get_model_weights(name))[choice].transforms()
    ours = adapt(reference)
    assert torch.equal(ours(picture((300, 200))), reference(picture((300, 200))))


@pytest.mark.parametrize("size", [(300, 200), (200, 300), (224, 224), (120, 90)])  # an even number cropped away
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("ViTImageProcessor", {"size": {"height": 64, "width": 48}}),
        ("DeiTImageProcessor", {"size": {"height": 72, "width": 72}, "crop_size": {"height": 64, "width": 64}}),
        ("BitImageProcessor", {"size": {"shortest_edge": 72}, "crop_size": {"height": 64, "width": 64}}),
        ("BeitImageProcessor", {"size": {"height": 72, "width": 72}, "do_center_crop": True, "crop_size": 64}),
        ("CLIPImageProcessor", {"size": {"shortest_edge": 64}, "crop_size": {"height": 64, "width": 64}}),
        ("SiglipImageProcessor", {"size": {"height": 64, "width": 64}}),
        ("ViTImageProcessor", {"size": {"height": 64, "width": 64}, "do_normalize": False}),
        ("ViTImageProcessor", {"size": {"height": 64, "width": 64}, "rescale_factor": 1 / 127.5}),
    ],
)
def test_hugging_face_processors_are_equalled_to_a_level(kind: str, options: dict, size: tuple[int, int]):
    transformers = pytest.importorskip("transformers")

    processor = getattr(transformers, kind)(**options)
    reference = processor(smooth(size), return_tensors="pt")["pixel_values"][0]
    ours = from_processor(processor)
    assert ours is not None
    assert ours(smooth(size)).shape == reference.shape
    levels = (ours(smooth(size)) - reference).abs() * torch.tensor(ours.std).view(3, 1, 1) * 255
    assert levels.max() <= 2.01
    assert levels.mean() <= 0.05
    assert read_processor(processor) == ours
    assert torch.equal(adapt(processor)(picture(size)), processor(picture(size), return_tensors="pt").pixel_values[0])


def test_a_processor_without_a_fixed_size_gives_nothing():
    transformers = pytest.importorskip("transformers")

    processor = transformers.ViTImageProcessor(size={"height": 64, "width": 64})
    processor.size = {"longest_edge": 64}
    assert from_processor(processor) is None
    with pytest.raises(ModelError, match="preprocess=ViTImageProcessor takes no picture"):
        adapt(processor)


def test_squashing_keeps_the_whole_picture():
    ours = Preprocess((40, 60))
    np.testing.assert_array_equal(
        np.asarray(ours.view(picture((300, 200)))),
        np.asarray(picture((300, 200)).resize((60, 40), Image.Resampling.BICUBIC)),
    )


def test_a_picture_smaller_than_the_crop_is_padded():
    view = Preprocess((64, 64), 32, fill=(255, 0, 0)).view(Image.new("RGB", (10, 10)))
    assert view.size == (64, 64)
    assert view.getpixel((0, 0)) == (255, 0, 0)
    assert view.getpixel((32, 32)) == (0, 0, 0)


def test_denormalise_is_the_picture_again():
    ours = Preprocess((32, 48))
    view = ours.view(picture((300, 200)))
    np.testing.assert_array_equal(ours.denormalise(ours.normalise(view)), np.asarray(view))
    far = ours.denormalise(torch.full((3, 2, 2), 1e6))
    assert far.dtype == np.uint8
    assert far.shape == (2, 2, 3)
    assert (far == 255).all()


def test_the_picture_given_is_not_changed():
    given = picture((300, 200))
    before = given.tobytes()
    Preprocess((32, 32), 36)(given)
    assert given.tobytes() == before


@pytest.mark.parametrize(
    ("old", "new_size", "resize"),
    [
        (Preprocess((224, 224), 256), (384, 384), 438),
        (Preprocess((224, 224), 256), (112, 448), (128, 512)),
        (Preprocess((224, 224), 248), (224, 224), 248),
        (Preprocess((224, 224), (256, 256), crop_mode="squash"), (112, 448), (128, 512)),
        (Preprocess((112, 448), (128, 512)), (224, 224), (256, 256)),
        (Preprocess((224, 224)), (100, 50), None),
    ],
)
def test_another_size_crops_the_same_share(old: Preprocess, new_size: tuple[int, int], resize):
    new = old.with_size(new_size)
    assert (new.size, new.resize) == (new_size, resize if old.size != (112, 448) else new.resize)
    assert new.view(picture((300, 200))).size == new_size[::-1]


def test_other_modes_than_rgb_are_refused():
    with pytest.raises(ImageError, match="mode L, not RGB.*read_image"):
        Preprocess((32, 32))(Image.new("L", (64, 64)))


def test_a_thread_of_pixels_is_refused_before_it_fills_the_memory():
    with pytest.raises(ImageError, match="1000000 x 1 pixels would become 256000000 x 256"):
        Preprocess((224, 224), 256).view(Image.new("RGB", (1_000_000, 1)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": (0, 224)}, r"at least 1, not \(0, 224\)"),
        ({"size": (224, 224), "resize": 0}, "at least 1"),
        ({"size": (224, 224), "resize": (256, -1)}, "at least 1"),
        ({"size": (224, 224), "interpolation": "cubic"}, "'cubic' is not one of bicubic"),
        ({"size": (224, 224), "crop_mode": "centre"}, "'centre' is not one of center"),
        ({"size": (224, 224), "std": (0.5, 0.0, 0.5)}, "std above 0"),
        ({"size": (224, 224), "mean": (0.5,)}, "three numbers"),
    ],
)
def test_senseless_numbers_are_refused(options: dict, message: str):
    with pytest.raises(ModelError, match=message):
        Preprocess(**options)


class Blur:
    def __repr__(self) -> str:
        return "Blur()"


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([transforms.Resize(32), Blur(), transforms.CenterCrop(32)], "'Blur' object is not callable"),
        ([transforms.Resize(32), transforms.ToTensor()], "does not fix height and width"),
        ([transforms.CenterCrop(32), transforms.Resize(32)], r"returns Image, not a tensor: add ToTensor\(\)"),
    ],
)
def test_transforms_that_cannot_be_used_say_why(steps: list, message: str):
    with pytest.raises(ModelError, match=message):
        adapt(transforms.Compose(steps))


def test_other_things_are_no_preprocessing():
    with pytest.raises(ModelError, match=r"preprocess=picture takes no picture.*give vitrail\.Preprocess"):
        adapt(picture)
    with pytest.raises(ModelError, match=r"preprocess= is a str, which cannot be read; give vitrail\.Preprocess"):
        adapt("center")


def test_the_real_models_inputs_to_the_bit(shared):
    """The tensors of the oracles, float32, from the photographs."""
    ours = Preprocess((224, 224), 256, "bicubic", HALF, HALF)
    with np.load(shared / "oracles" / "inputs.npz") as stored:
        for name in ("el2", "catdog", "dogbird"):
            image = Image.open(shared / "images" / "pairs" / f"{name}.png").convert("RGB")
            assert np.array_equal(ours(image)[None].numpy(), stored[f"{name}/x"])
