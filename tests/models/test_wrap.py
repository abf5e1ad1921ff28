import pytest
import torch
from families import FAMILIES
from torch import nn
from torchvision import transforms

from vitrail.errors import ModelError
from vitrail.models import VisionModel, wrap
from vitrail.models.preprocess import Preprocess


def test_the_module_is_taken_as_it_is():
    module = FAMILIES["timm_vit"].build()
    module.train()
    module.head.weight.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    attributes = set(vars(module))
    model = wrap(module)
    assert model.module is module
    assert module.training
    assert not module.head.weight.requires_grad
    assert set(vars(module)) == attributes
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())


def test_the_users_word_is_taken():
    def find(output):
        return output

    preprocess = Preprocess((32, 32))
    model = wrap(
        nn.Identity(),
        preprocess=preprocess,
        class_names={1: "dog", 0: "cat"},
        name="mine",
        readout="mean",
        prefix=0,
        grid=(2, 3),
        logits_from=find,
        forward_options={"a": 1},
    )
    assert (model.preprocess, model.class_names, model.name) == (preprocess, ("cat", "dog"), "mine")
    assert (model.readout, model.prefix, model.grid) == ("mean", 0, (2, 3))
    assert model.logits_from is find
    assert model.forward_options == {"a": 1}
    assert wrap(nn.Identity()).name == "Identity"


def test_a_torchvision_transform_is_preprocessing():
    transform = transforms.Compose([transforms.Resize((32, 48)), transforms.ToTensor()])
    assert wrap(nn.Identity(), preprocess=transform).preprocess == Preprocess(
        (32, 48), None, "bilinear", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), "squash"
    )


class Compiled(nn.Module):
    """As torch.compile returns it, without the seconds that importing the compiler takes."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self._orig_mod = module


def test_compiled_and_parallel_modules_are_opened():
    module = nn.Linear(2, 2)
    assert wrap(Compiled(module)).module is module
    assert wrap(nn.DataParallel(module)).module is module
    assert wrap(nn.DataParallel(Compiled(module))).module is module


def test_torchscript_is_refused():
    with pytest.raises(ModelError, match="TorchScript hides the attention"):
        wrap(torch.jit.ScriptModule())


def test_what_is_no_module_is_refused():
    unchecked = getattr(wrap, "__wrapped__", wrap)
    with pytest.raises(ModelError, match=r"a torch.nn.Module is needed, not str; load\("):
        unchecked("timm/vit_tiny_patch16_224")
    with pytest.raises(ModelError, match="VisionModel already.*dataclasses.replace"):
        unchecked(VisionModel(nn.Identity(), "x"))


@pytest.mark.parametrize(
    ("names", "message"),
    [("zebra", "one string, 'zebra'"), ({0: "a", 2: "b"}, r"indices \[0, 2\]"), ({1: "a"}, "not 0 to 0")],
)
def test_senseless_class_names_are_refused(names, message: str):
    with pytest.raises(ModelError, match=message):
        wrap(nn.Identity(), class_names=names)


def test_a_timm_model_brings_preprocessing_and_names():
    import timm

    with torch.device("meta"):  # only its description is read
        module = timm.create_model("vit_tiny_patch16_224", img_size=(112, 448))
    model = wrap(module)
    assert model.preprocess == Preprocess((112, 448), (124, 497), "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert model.class_index("zebra") == 340
    assert model.name == "VisionTransformer"


def test_a_timm_model_with_another_head_has_no_names():
    import timm

    with torch.device("meta"):
        module = timm.create_model("vit_tiny_patch16_224", num_classes=10)
        assert wrap(module).class_names is None
        module = timm.create_model("vit_tiny_patch16_224")
        module.head = nn.Linear(192, 10)
        assert wrap(module).class_names is None


def test_a_timm_model_that_was_never_configured_brings_nothing():
    model = wrap(FAMILIES["timm_vit"].build())
    assert (model.preprocess, model.class_names) == (None, None)


def test_the_names_in_a_timm_models_own_config_are_used():
    module = FAMILIES["timm_vit"].build()
    module.pretrained_cfg = {"label_names": [f"n{i}" for i in range(7)], "label_descriptions": {"n3": "zebra"}}
    model = wrap(module)
    assert model.class_names == ("n0", "n1", "n2", "zebra", "n4", "n5", "n6")


def test_a_subclass_of_a_timm_model_is_known_too():
    from timm.models.vision_transformer import VisionTransformer

    class Mine(VisionTransformer):
        pass

    module = Mine(img_size=32, patch_size=16, embed_dim=12, depth=1, num_heads=2, num_classes=1000)
    assert wrap(module).class_names is None
    module.pretrained_cfg = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
    assert wrap(module).class_index("zebra") == 340
    assert wrap(module).preprocess == Preprocess((32, 32), 36, "bicubic", (0.5,) * 3, (0.5,) * 3)


def test_a_hugging_face_model_brings_its_names():
    pytest.importorskip("transformers")
    module = FAMILIES["hf_vit"].build()
    assert wrap(module).class_names is None  # LABEL_0, LABEL_1 … are made up
    module.config.id2label = {i: f"animal {i}" for i in range(7)}
    assert wrap(module).class_index("animal 5") == 5


def test_a_torchvision_model_brings_what_all_its_weights_share():
    from torchvision.models import vit_b_16

    with torch.device("meta"):
        model = wrap(vit_b_16(image_size=384))
    assert model.class_index("zebra") == 340
    assert model.preprocess is not None
    assert (model.preprocess.size, model.preprocess.resize) == ((384, 384), 438)
    assert wrap(FAMILIES["torchvision_vit"].build()).class_names is None
