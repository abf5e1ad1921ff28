"""A user's own transform is read only where that changes nothing, and used as it is elsewhere."""

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms as v1
from torchvision.transforms import functional, v2

import vitrail
from vitrail.errors import ImageError, ModelError
from vitrail.inputs import prepare
from vitrail.models import wrap
from vitrail.models.preprocess import Preprocess
from vitrail.models.preprocess_adapters import adapt, from_processor, read_processor
from vitrail.models.transforms import CallablePreprocess

HALF = [0.5, 0.5, 0.5]
SCALED = v2.ToDtype(torch.float32, scale=True)
SIZES = [(300, 200), (97, 211), (64, 64)]

Transform = Callable[..., Any]


def noise(size: tuple[int, int]) -> Image.Image:
    pixels = np.random.default_rng(sum(size)).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def compose(*steps: Transform) -> v1.Compose:
    return v1.Compose([*steps, v1.ToTensor(), v1.Normalize(HALF, [0.25] * 3)])


def squared(image: Image.Image) -> Image.Image:
    """As many pipelines pad: to a square, on grey."""
    rest = [max(image.size) - side for side in image.size]
    return functional.pad(image, [rest[0] // 2, rest[1] // 2, rest[0] - rest[0] // 2, rest[1] - rest[1] // 2], fill=120)


READ = {
    "v2": v2.Compose([v2.Resize(40), v2.CenterCrop(32), v2.ToImage(), SCALED, v2.Normalize(HALF, HALF)]),
    "nested": v1.Compose([v1.Compose([v1.Resize(40), v1.CenterCrop(32)]), v1.ToTensor()]),
    "one mean": v1.Compose([v1.Resize(40), v1.CenterCrop(32), v1.ToTensor(), v1.Normalize([0.5], [0.5])]),
    "numbers": v1.Compose([v1.Resize(40), v1.CenterCrop(32), v1.ToTensor(), v1.Normalize(0.5, 0.5)]),
}
AS_IT_IS = {
    "image first": v2.Compose([v2.ToImage(), v2.Resize(40), v2.CenterCrop(32), SCALED, v2.Normalize(HALF, HALF)]),
    "longer side": v1.Compose([v1.Resize(42, max_size=45), v1.CenterCrop(32), v1.ToTensor()]),
    "without antialiasing": v1.Compose([v1.ToTensor(), v1.Resize((32, 32), antialias=False)]),
    "two means": v1.Compose([v1.Resize((32, 32)), v1.ToTensor(), v1.Normalize(HALF, HALF), v1.Normalize(HALF, HALF)]),
    "crop alone": compose(v1.CenterCrop(32)),
    "corner": compose(v1.Resize(40), v1.Lambda(lambda image: image.crop((0, 0, 32, 32)))),
    "padded": compose(squared, v1.Resize((32, 32))),
    "grey": v1.Compose([v1.Grayscale(1), v1.Resize((32, 32)), v1.ToTensor(), v1.Normalize([0.5], [0.5])]),
    "grey colours": compose(v1.Grayscale(3), v1.Resize((32, 32))),
    "blue first": v1.Compose([v1.Resize((32, 32)), v1.ToTensor(), lambda pixels: pixels.flip(0)]),
    "brighter": compose(v1.Resize((32, 32)), lambda image: functional.adjust_gamma(image, 0.5)),
    "levels": v1.Compose([v1.Resize((32, 32)), v1.PILToTensor(), lambda pixels: pixels.float() - 120]),
}


@pytest.mark.parametrize("name", READ)
def test_what_is_read_does_what_the_transform_does(name: str):
    read = adapt(READ[name])
    assert type(read) is Preprocess
    for size in SIZES:
        assert (read(noise(size)) - READ[name](noise(size))).abs().max() <= 1e-6


@pytest.mark.parametrize("name", AS_IT_IS)
def test_what_cannot_be_read_is_used_as_it_is(name: str):
    found = adapt(AS_IT_IS[name])
    assert isinstance(found, CallablePreprocess)
    for size in SIZES:
        tensor, view = found.with_view(noise(size))
        assert torch.equal(tensor, AS_IT_IS[name](noise(size)))
        assert (view.mode, view.size) == ("RGB", (32, 32))


def square(at: tuple[float, float], size: tuple[int, int]) -> tuple[Image.Image, np.ndarray]:
    """A white square of a fifth of the picture's shorter side on black, its middle at a share of width and height."""
    mask = np.zeros((size[1], size[0]), dtype=bool)
    half = min(size) // 10
    x, y = round(at[0] * size[0]), round(at[1] * size[1])
    mask[y - half : y + half, x - half : x + half] = True
    return Image.fromarray(np.repeat(mask[..., None] * np.uint8(255), 3, axis=2)), mask


@pytest.mark.parametrize("name", [*AS_IT_IS, "pixels of the picture"])
@pytest.mark.parametrize("size", [(300, 200), (90, 160)])
@pytest.mark.parametrize("at", [(0.5, 0.5), (0.42, 0.55)])
def test_masks_land_where_the_transform_puts_the_picture(name: str, size: tuple[int, int], at: tuple[float, float]):
    cut = (slice(None), slice(2, 30), slice(5, 37))
    transform = AS_IT_IS.get(name, lambda image: functional.to_tensor(image)[cut])
    found = adapt(transform)
    marked, mask = square(at, size)
    tensor = transform(marked).mean(dim=0)
    low, high = (transform(Image.new("RGB", size, (level,) * 3)).mean(dim=0) for level in (0, 255))
    truth = ((tensor - low) / (high - low).clamp_min(1e-6) > 0.5).numpy() & (high - low > 0.1).numpy()
    seen = found.seen_mask(mask)
    rim = truth ^ seen
    # Half of a pixel along the square's outline is what a resizing leaves open.
    assert rim.sum() <= 2 * np.sqrt(truth.sum()) + 2
    if truth.sum() > 20:
        assert (truth & seen).sum() / (truth | seen).sum() > 0.7


def test_a_transform_is_called_with_what_it_takes():
    mean = torch.full((3, 1, 1), 0.5)
    for transform in (
        torch.nn.Sequential(v2.Resize((32, 32)), v2.Normalize(HALF, HALF)),  # float tensors
        v2.Compose([v2.Resize((32, 32)), v2.Normalize(HALF, HALF)]),
        v2.Compose([v2.Resize((32, 32)), SCALED]),  # uint8 tensors
        lambda array: torch.from_numpy(array[:28, :28]).permute(2, 0, 1) / 255 - mean,  # arrays, to a tensor
        lambda image: {"pixel_values": [np.asarray(image.resize((32, 32)), np.float32) / 255]},  # pictures, to an array
    ):
        found = adapt(transform)
        assert found.size in ((32, 32), (28, 28))
        assert found(noise((90, 60))).shape == (3, *found.size)


class Albumentation:
    """As albumentations.Compose is called and answers."""

    def __call__(self, *args: Any, force_apply: bool = False, **data: Any) -> dict[str, Any]:
        if args:
            raise KeyError("You have to pass data to augmentations as named arguments, for example: aug(image=image)")
        assert isinstance(data["image"], np.ndarray)
        return {"image": data["image"][:28, :28].astype(np.float32) / 127.5 - 1}


def test_arrays_by_name_as_albumentations_take_them():
    found = adapt(Albumentation())
    assert (found.size, found.mean, found.std) == ((28, 28), (0.5,) * 3, (0.5,) * 3)
    pixels = np.asarray(noise((90, 60)))[:28, :28].astype(np.float32) / 127.5 - 1
    np.testing.assert_array_equal(found(noise((90, 60))).permute(1, 2, 0).numpy(), pixels)
    albumentations = pytest.importorskip("albumentations")
    from albumentations.pytorch import ToTensorV2

    real = albumentations.Compose([albumentations.Resize(32, 32), albumentations.Normalize(), ToTensorV2()])
    expected = real(image=np.asarray(noise((90, 60))))["image"]
    assert torch.equal(adapt(real)(noise((90, 60))), expected)


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (compose(v1.Resize((32, 32)), v1.RandomHorizontalFlip(0.01)), "is random: it draws random numbers"),
        (compose(v1.RandomResizedCrop(32)), "not that of the training"),
        (compose(v1.Resize((32, 32)), lambda image: random.choice([image, image])), "is random"),
        (compose(v1.Resize((32, 32)), v1.functional.hflip), "mirrors, turns or warps the picture"),
        (compose(v1.Resize((32, 32)), lambda image: image.rotate(90)), "mirrors, turns or warps"),
        (compose(v1.Resize((32, 32)), lambda image: image.rotate(5)), "hides parts of the picture"),
        (
            compose(
                v1.Resize((32, 32)),
                lambda image: functional.perspective(
                    image, [[0, 0], [32, 0], [32, 32], [0, 32]], [[0, 0], [26, 4], [26, 28], [0, 32]]
                ),
            ),
            "hides parts|warps",
        ),
        (v1.Compose([v1.Resize((32, 32)), v1.ToTensor(), lambda x: x.roll(16, 2)]), "warps"),
        (v1.Compose([v1.Resize((32, 32)), v1.ToTensor(), lambda x: (x - x.mean()) / (x.std() + 1)]), "black and white"),
        (compose(v1.Resize((32, 32)), functional.invert), "does not keep colours"),
        (compose(v1.Resize(32)), "does not fix height and width"),
        (v1.Compose([v1.Resize((32, 32)), v1.PILToTensor()]), r"returns torch.uint8: add ToDtype"),
        (
            v1.Compose([v1.FiveCrop(32), lambda crops: torch.stack([functional.to_tensor(c) for c in crops])]),
            "5, 3, 32",
        ),
        (lambda pixels: torch.nn.functional.interpolate(pixels[None].float(), (32, 32))[0], "0 to 255 as well as"),
        (v1.ToTensor, "takes no picture"),
        ({"mean": HALF}, "no data config"),
        (7, "is a int, which cannot be read"),
    ],
)
def test_what_a_map_cannot_be_laid_over_is_refused_by_name(transform: Any, message: str):
    with pytest.raises(ModelError, match=message):
        adapt(transform)


def test_probing_leaves_the_users_random_numbers_alone():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    with pytest.raises(ModelError, match="random"):
        adapt(compose(v1.RandomResizedCrop(32)))
    assert torch.equal(torch.rand(2), expected)


def test_the_users_own_transform_cannot_be_bent():
    found = adapt(AS_IT_IS["longer side"])
    for change in ({"resize": None}, {"size": (64, 64)}, {"interpolation": "nearest"}, {"mean": (0.1,) * 3}):
        with pytest.raises(ModelError, match="cannot be changed; give vitrail.Preprocess"):
            replace(found, **change)
    with pytest.raises(ModelError, match="in a way that is not known"):
        found.resized(100, 50)
    whole = found.squashed()
    assert (type(whole), whole.size, whole.resize, whole.mean) == (Preprocess, (32, 32), None, (0.0,) * 3)


def test_colours_that_are_changed_are_neither_put_together_nor_read_back():
    found = adapt(AS_IT_IS["blue first"])
    for ask in (
        lambda: found.normalise(noise((32, 32))),
        lambda: found.denormalise(torch.zeros(3, 32, 32)),
        found.squashed,
    ):
        with pytest.raises(ModelError, match="changes colours otherwise"):
            ask()
    assert found.view(Image.new("RGB", (90, 60), (255, 0, 0))).getpixel((9, 9)) == (255, 0, 0)
    assert prepare(wrap(torch.nn.Identity(), preprocess=found), torch.zeros(1, 3, 32, 32)).pictures is None


def test_a_transform_that_fails_on_a_picture_says_so():
    def strict(image: Image.Image) -> torch.Tensor:
        if image.width == 77:
            raise KeyError("77")
        side = 16 if image.width == 78 else 32
        return functional.to_tensor(image.resize((side, side)))

    found = adapt(strict)
    with pytest.raises(ImageError, match="strict failed on a picture of 77 x 20 pixels: KeyError"):
        found(noise((77, 20)))
    with pytest.raises(ImageError, match=r"made \(3, 16, 16\) of a picture of 78 x 20 pixels"):
        found(noise((78, 20)))


def test_every_processor_is_used_as_it_is_and_read_at_loading_where_it_is_close():
    transformers = pytest.importorskip("transformers")

    odd = transformers.ViTImageProcessor(image_mean=[0.5], size={"height": 32, "width": 32})
    try:
        expected = odd(noise((90, 60)), return_tensors="pt").pixel_values[0]
    except ValueError:
        pass  # transformers up to 5.3 takes no mean of one value itself
    else:
        assert torch.equal(adapt(odd)(noise((90, 60))), expected)
    mobile = transformers.MobileViTImageProcessor(size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32})
    assert mobile.do_flip_channel_order  # which no reading knows of
    found = read_processor(mobile)
    assert isinstance(found, CallablePreprocess)
    assert torch.equal(found(noise((90, 60))), mobile(noise((90, 60)), return_tensors="pt").pixel_values[0])
    plain = transformers.ViTImageProcessor(size={"height": 32, "width": 32})
    assert read_processor(plain) == from_processor(plain)


def test_a_data_config_is_preprocessing():
    config = {"input_size": (3, 64, 64), "interpolation": "bicubic", "mean": HALF, "std": HALF}
    read = adapt({**config, "crop_pct": 0.9, "crop_mode": "center"})
    assert (read.size, read.resize) == ((64, 64), 71)


def test_an_explanation_with_the_users_own_transform(tmp_path):
    model = vitrail.load("bestiary")
    transform = v1.Compose([v1.ToTensor(), v1.Resize((96, 96), antialias=False), v1.Normalize(HALF, HALF)])
    mine = wrap(model.module, preprocess=transform, class_names=model.class_names)
    ex = vitrail.explain(mine, noise((300, 200)), "tavel", method="raw")
    tensors = vitrail.explain(mine, transform(noise((300, 200)))[None], "tavel", method="raw")
    assert torch.equal(ex.scores, tensors.scores)
    assert ex.images is not None
    assert "by Compose" in mine.describe()
