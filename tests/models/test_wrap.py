from enum import Enum, IntEnum
from pathlib import Path

import numpy as np
import pytest
import torch
from families import FAMILIES
from torch import nn
from torchvision import transforms

from vitrail.errors import ModelError, OutputError
from vitrail.models import VisionModel, load, wrap
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


# --- what Vitrail guessed, and what the user said ---------------------------------------------------------------------


def replaced(head: nn.Module) -> nn.Module:
    import timm

    module = timm.create_model("test_vit", img_size=64, depth=1).eval()
    module.head = head
    return module


class Odd(nn.Module):
    """A head whose number of outputs no attribute tells."""

    def __init__(self):
        super().__init__()
        self.width = nn.Linear(64, 1000)
        self.last = nn.Parameter(torch.randn(1000, 5))

    def forward(self, x):
        return self.width(x) @ self.last


@pytest.mark.parametrize(
    "head", [nn.Sequential(nn.Dropout(0.1), nn.Linear(64, 5)), nn.Linear(64, 5), nn.Identity(), Odd()]
)
def test_guessed_names_are_dropped_where_the_head_is_another(head: nn.Module, caplog):
    model = wrap(replaced(head))
    classes = model.logits(torch.randn(1, 3, 64, 64)).shape[1]
    assert model.class_names is None
    assert model.class_name(3) == "class 3"
    assert classes in (5, 64)
    if isinstance(head, Odd):
        assert "has 5 classes, so the 1000 names that its library gives were dropped" in caplog.text


def test_the_users_own_names_are_held_against_him():
    model = wrap(replaced(nn.Linear(64, 5)), class_names=["a", "b"])
    with pytest.raises(ModelError, match="has 5 classes, but class_names holds 2 names"):
        model.logits(torch.randn(1, 3, 64, 64))
    assert model.class_names == ("a", "b")


def test_replaced_heads_of_other_libraries_lose_guessed_names_too():
    transformers = pytest.importorskip("transformers")
    from torchvision.models import vit_b_16

    with torch.device("meta"):
        module = vit_b_16()
        module.heads = nn.Linear(768, 5)
        assert wrap(module).class_names is None
        module = vit_b_16()
        module.conv_proj = nn.Conv2d(1, 768, 16, 16)
        assert wrap(module).preprocess is None
        sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
        config = transformers.ViTConfig(**sizes, id2label={i: f"animal {i}" for i in range(7)})
        module = transformers.ViTForImageClassification(config)
        assert wrap(module).class_index("animal 5") == 5
        module.classifier = nn.Linear(24, 5)
        assert wrap(module).class_names is None


class Normalising(nn.Module):
    """A first layer that normalises what it is given."""

    def __init__(self, first: nn.Module) -> None:
        super().__init__()
        self.first = first

    def forward(self, x):
        return self.first((x - 0.5) / 0.5)


def test_preprocessing_is_not_guessed_for_a_model_that_prepares_the_images_itself(caplog):
    module = replaced(nn.Linear(64, 5))
    expected = wrap(module).preprocess
    assert expected is not None
    assert not caplog.records
    module.patch_embed.proj = Normalising(module.patch_embed.proj)
    assert wrap(module).preprocess is None
    assert "changes the images before its first layer sees them" in caplog.text
    assert wrap(module, preprocess=expected).preprocess == expected  # who says so knows better
    module = replaced(nn.Linear(64, 5))
    module.register_forward_pre_hook(lambda _, args: ((args[0] - 0.5) / 0.5,))
    assert wrap(module).preprocess is None
    assert wrap(nn.Sequential(replaced(nn.Linear(64, 5)), nn.Softmax(-1))).preprocess == expected


def test_looking_for_preprocessing_draws_no_random_number():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    module = nn.Sequential(nn.Identity(), FAMILIES["timm_vit"].build())
    module[1].pretrained_cfg = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
    torch.manual_seed(0)
    assert wrap(module).preprocess is not None
    assert torch.equal(torch.rand(1), expected)


def test_guessed_preprocessing_has_the_channels_of_the_model(tmp_path):
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    config = transformers.ViTConfig(**sizes, image_size=32, patch_size=8, num_channels=1, num_labels=3)
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path)
    for mean, expected in (([0.5] * 3, (0.5,)), ([0.4, 0.5, 0.6], None)):
        size = {"height": 32, "width": 32}
        transformers.ViTImageProcessor(image_mean=mean, size=size).save_pretrained(tmp_path)
        for model in (
            wrap(transformers.ViTForImageClassification.from_pretrained(tmp_path)),
            load(f"hf/{tmp_path}"),
        ):
            assert (model.preprocess and model.preprocess.mean) == expected
            assert model.logits(torch.randn(1, 1, 32, 32)).shape == (1, 3)


def test_a_kind_of_output_that_was_guessed_gives_way_to_the_numbers(caplog):
    pytest.importorskip("transformers")
    module = FAMILIES["hf_vit"].build()
    module.config.problem_type = "multi_label_classification"
    images = torch.randn(2, 3, *FAMILIES["hf_vit"].image_size)
    assert wrap(module).kind_for(images).kind == "multilabel"
    module.classifier = nn.Sequential(module.classifier, nn.Softmax(-1))
    assert wrap(module).kind_for(images).kind == "probabilities"
    assert "gives probabilities, and not multilabel as its library says" in caplog.text
    with pytest.raises(OutputError, match="ends in a softmax, so its classes exclude each other"):
        wrap(module, output="multilabel").kind_for(images)


def test_averaged_models_and_adapters_keep_what_their_library_says():
    import timm

    with torch.device("meta"):
        module = timm.create_model("test_vit", img_size=64, depth=1)
    expected = wrap(module)
    averaged = torch.optim.swa_utils.AveragedModel(module)
    models = [averaged]
    try:
        import peft

        models.append(peft.get_peft_model(module, peft.LoraConfig(target_modules=["qkv"], r=2)))
    except ImportError:
        pass
    for model in models:
        assert wrap(model).module is model
        assert wrap(model).preprocess == expected.preprocess
        assert wrap(model).class_names == expected.class_names


# --- forms of class names ---------------------------------------------------------------------------------------------

FORMS = {
    "list": ["cat", "dog"],
    "tuple": ("cat", "dog"),
    "index to name": {1: "dog", 0: "cat"},
    "digits to name": {"1": "dog", "0": "cat"},
    "name to index": {"dog": 1, "cat": 0},
    "keys": {"cat": 0, "dog": 1}.keys(),
    "generator": (name for name in ("cat", "dog")),
    "array": np.array(["cat", "dog"]),
    "bytes": [b"cat", b"dog"],
}
FILES = {
    "w.txt": "cat\ndog\n",
    "w.json": '["cat", "dog"]',
    "map.json": '{"1": "dog", "0": "cat"}',
    "back.json": '{"dog": 1, "cat": 0}',
    "config.json": '{"id2label": {"0": "cat", "1": "dog"}, "hidden_size": 3}',
    "plain.csv": "0,cat\n1,dog\n",
    "w.csv": "class_index,wnid,name\n1,n2,dog\n0,n1,cat\n",
    "w.tsv": "name\ncat\ndog\n",
}


@pytest.mark.parametrize("form", FORMS)
def test_class_names_in_every_natural_form(form: str):
    assert wrap(nn.Identity(), class_names=FORMS[form]).class_names == ("cat", "dog")


@pytest.mark.parametrize("name", FILES)
def test_class_names_from_files(tmp_path: Path, name: str):
    (tmp_path / name).write_text(FILES[name])
    assert wrap(nn.Identity(), class_names=tmp_path / name).class_names == ("cat", "dog")
    assert wrap(nn.Identity(), class_names=str(tmp_path / name)).class_names == ("cat", "dog")


class Species(Enum):
    CAT = "cat"
    DOG = "dog"


class Numbered(IntEnum):
    dog = 1
    cat = 0


@pytest.mark.parametrize("names", [Species, list(Species), Numbered, [Numbered.cat, Numbered.dog]])
def test_class_names_from_enums(names):
    assert wrap(nn.Identity(), class_names=names).class_names == ("cat", "dog")


def test_a_set_of_class_names_has_no_order():
    with pytest.raises(ModelError, match="class_names is a set, which has no order"):
        wrap(nn.Identity(), class_names={"cat", "dog"})


def test_class_names_from_pandas():
    pandas = pytest.importorskip("pandas")
    assert wrap(nn.Identity(), class_names=pandas.Series(["cat", "dog"])).class_names == ("cat", "dog")
    assert wrap(nn.Identity(), class_names=pandas.Series([1, 0], ["dog", "cat"])).class_names == ("cat", "dog")
    assert wrap(nn.Identity(), class_names=pandas.Index(["cat", "dog"], name="y")).class_names == ("cat", "dog")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("w.json", "{", "cannot be read"),
        ("w.json", "3", "neither a list of names nor a mapping"),
        ("w.json", '[["cat"]]', "which is no name"),
        ("w.txt", "", "holds no names"),
        ("w.csv", "a,b,c\n1,2,3\n", "name that of the class names 'name'"),
        ("w.csv", "index,name\n0,cat\n0,dog\n", "an index twice"),
        ("w.csv", "index,name\n0,tench, Tinca\n1\n", "rows of different lengths"),
        ("w.json", '{"cat": "dog"}', "neither indices to names nor names to indices"),
    ],
)
def test_files_without_class_names_are_refused(tmp_path: Path, name: str, content: str, message: str):
    (tmp_path / name).write_text(content)
    with pytest.raises(ModelError, match=message):
        wrap(nn.Identity(), class_names=tmp_path / name)
