from dataclasses import dataclass, replace

import pytest
import torch
from families import FAMILIES
from torch import nn

from vitrail.errors import ModelError, OutputError
from vitrail.models import VisionModel, wrap
from vitrail.models.preprocess import Preprocess


class Answer(nn.Module):
    """Answers whatever it is told to, made of `batch` and a parameter."""

    def __init__(self, make):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.make = make

    def forward(self, images, **options):
        self.options = options
        return self.make(images.mean(dim=(2, 3)) * self.weight)


@dataclass
class Output:
    logits: torch.Tensor


@pytest.mark.parametrize(
    "make",
    [
        lambda x: x,
        lambda x: Output(x),
        lambda x: {"loss": None, "logits": x},
        lambda x: (x, "features"),
        lambda x: [x],
    ],
)
def test_logits_are_found(make):
    images = torch.randn(2, 3, 4, 4)
    assert torch.equal(wrap(Answer(make)).logits(images), images.mean(dim=(2, 3)))


@pytest.mark.parametrize("make", [lambda x: x[:, 0], lambda x: x[:, :1]])
def test_one_number_per_image_is_one_class(make):
    assert wrap(Answer(make)).logits(torch.randn(2, 3, 4, 4)).shape == (2, 1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda x: None, "returned NoneType.*logits_from="),
        (lambda x: {"features": x}, "returned dict with features"),
        (lambda x: ("a", x), "returned tuple.*to be str"),
        (lambda x: (), "returned tuple"),
        (lambda x: Output("x"), "returned Output.*to be str"),
        (lambda x: x.argmax(1), "returned Tensor"),
        (lambda x: x[:, :, None], r"1 image with a tensor of shape \(1, 3, 1\), not \(1, classes\)"),
        (lambda x: x.mean(), r"of shape \(\)"),
        (lambda x: x[:1], r"of shape \(1, 3\)"),
        (lambda x: x[:, :0], r"of shape \(1, 0\)"),
    ],
)
def test_other_outputs_are_refused_with_the_remedy(make, message: str):
    with pytest.raises(OutputError, match=message):
        wrap(Answer(make)).logits(torch.randn(2, 3, 4, 4))


def test_logits_from_finds_what_is_hidden():
    model = wrap(Answer(lambda x: {"a": {"b": x}}), logits_from=lambda output: output["a"]["b"])
    assert model.logits(torch.randn(2, 3, 4, 4)).shape == (2, 3)
    with pytest.raises(OutputError, match="logits_from= returned dict"):
        replace(model, logits_from=lambda output: output["a"]).logits(torch.randn(2, 3, 4, 4))


def test_forward_options_go_along():
    module = Answer(lambda x: x)
    wrap(module, forward_options={"interpolate": True}).logits(torch.randn(1, 3, 4, 4))
    assert module.options == {"interpolate": True}


def test_images_are_brought_to_the_models_type_and_gradients_flow():
    model = wrap(Answer(lambda x: x).double())
    images = torch.randn(1, 3, 4, 4, requires_grad=True)
    logits = model.logits(images)
    assert logits.dtype == model.dtype == torch.float64
    logits.sum().backward()
    assert images.grad is not None


def test_device_and_type_of_modules_without_parameters():
    assert wrap(nn.Identity()).device == torch.device("cpu")
    assert wrap(nn.Identity()).dtype == torch.float32
    assert wrap(nn.Linear(2, 2, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert wrap(nn.BatchNorm2d(3, affine=False)).dtype == torch.float32


def test_the_number_of_names_must_be_that_of_the_classes():
    model = wrap(Answer(lambda x: x), class_names=["cat", "dog"])
    with pytest.raises(ModelError, match="has 3 classes, but class_names holds 2 names"):
        model.logits(torch.randn(1, 3, 4, 4))


def test_classes_by_name_and_back():
    model = wrap(nn.Identity(), class_names=["tabby, tabby cat", "dog"])
    assert model.class_index("tabby cat") == 0
    assert model.class_name(0) == "tabby"
    assert model.class_name(torch.tensor(1)) == "dog"
    assert wrap(nn.Identity()).class_name(7) == "class 7"
    assert wrap(nn.Identity()).class_index("3", count=4) == 3


def test_describe_says_what_it_is():
    family = FAMILIES["timm_vit_non_square"]
    model = wrap(family.build(), name="mine", class_names=list("abcdefg"), preprocess=Preprocess((32, 64)))
    text = model.describe()
    assert "mine: VisionTransformer" in text
    assert "64 x 32 pixels" in text
    assert "7 named classes" in text


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_gives_logits(name: str):
    family = FAMILIES[name]
    model = wrap(family.build())
    with torch.no_grad():
        logits = model.logits(family.images(2))
        exact = VisionModel(family.build().double(), name).logits(family.images(2, dtype=torch.float64))
    assert logits.shape == (2, family.classes)
    torch.testing.assert_close(logits, exact.float(), rtol=1e-4, atol=1e-4)
    # Lively weights: classes and images differ, so that a wrong map could not pass for a right one.
    assert exact.std(dim=1).min() > 0.1
    assert (exact[0] - exact[1]).abs().max() > 0.1
