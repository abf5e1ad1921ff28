"""Loading by name: tiny models where the library allows it, the real ViT-Ti/16 where it is there, never the network."""

import json
import logging
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from families import FAMILIES
from safetensors.torch import save_file
from torch import nn

from vitrail.errors import CheckpointMismatchError, ModelError, UnknownModelError, UnsafeCheckpointError
from vitrail.images import read_image
from vitrail.models import list_models, load
from vitrail.models.loading import SOURCES, source
from vitrail.models.preprocess import Preprocess
from vitrail.models.vision_model import VisionModel

TINY = "timm/test_vit"  # timm's own test model: 160 px, 64 wide, 6 blocks


def weights_of(module: nn.Module, folder: Path, name: str = "w.safetensors") -> Path:
    path = folder / name
    save_file({key: tensor.contiguous() for key, tensor in module.state_dict().items()}, path)
    return path


# --- the real model ---------------------------------------------------------------------------------------------------


def test_the_real_model_sees_what_it_should(vit_tiny, shared):
    """The figures of the shared folder's README."""
    assert (vit_tiny.preprocess.mean, vit_tiny.preprocess.std) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert vit_tiny.preprocess.size == (224, 224)
    assert not vit_tiny.module.training
    assert vit_tiny.metadata["checkpoint_sha256"].startswith("a22e9b36")
    assert "/" not in vit_tiny.metadata["checkpoint"]
    preprocess = Preprocess((224, 224), 256, "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    with torch.no_grad():
        logits = vit_tiny.logits(preprocess(read_image(shared / "images" / "pairs" / "el2.png"))[None])[0]
    found = {vit_tiny.class_name(i): round(logits[i].item(), 2) for i in logits.topk(3).indices}
    assert found == {"zebra": 13.48, "tusker": 10.93, "African elephant": 10.76}


def test_the_real_model_gives_the_oracles_logits(vit_tiny, shared):
    with np.load(shared / "oracles" / "inputs.npz") as stored, torch.no_grad():
        names = stored["names"]
        logits = vit_tiny.logits(torch.from_numpy(np.concatenate([stored[f"{name}/x"] for name in names])))
        assert np.abs(logits.numpy() - np.stack([stored[f"{name}/logits64"] for name in names])).max() < 1e-4


def test_the_real_model_at_another_resolution(vit_tiny, shared):
    path = shared / "models" / "vit_tiny_patch16_224.augreg_in21k_ft_in1k.safetensors"
    model = load("timm/vit_tiny_patch16_224", checkpoint=path, size=(192, 320))
    assert model.preprocess.size == (192, 320)
    picture = read_image(shared / "images" / "pairs" / "el1.png")
    with torch.no_grad():
        assert model.class_name(model.logits(model.preprocess(picture)[None]).argmax()) in (
            "African elephant",
            "tusker",
            "zebra",
        )


# --- timm -------------------------------------------------------------------------------------------------------------


def test_a_timm_model_by_name_with_its_own_preprocessing():
    import timm
    from timm.data import create_transform, resolve_data_config

    model = load(TINY, pretrained=False)
    assert model.name == TINY
    assert not model.module.training
    assert model.metadata["weights"] == "random"
    assert model.metadata["timm"] == timm.__version__
    reference = create_transform(**resolve_data_config({}, model=model.module))
    picture = read_image(np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8))
    assert torch.equal(model.preprocess(picture), reference(picture))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_type_and_device_are_as_asked(dtype: torch.dtype):
    model = load(TINY, pretrained=False, dtype=dtype, device="cpu")
    assert model.dtype == dtype
    assert all(p.dtype == dtype for p in model.module.parameters())


def test_a_checkpoint_is_loaded_whole(tmp_path: Path):
    trained = load(TINY, pretrained=False)
    model = load(TINY, checkpoint=weights_of(trained.module, tmp_path))
    images = torch.randn(1, 3, *trained.preprocess.size)
    assert torch.equal(model.logits(images), trained.logits(images))
    assert model.metadata["checkpoint"] == "w.safetensors"
    assert len(model.metadata["checkpoint_sha256"]) == 64


def test_a_checkpoint_at_another_resolution_is_resampled_as_timm_does(tmp_path: Path):
    from timm.models.vision_transformer import checkpoint_filter_fn

    trained = load(TINY, pretrained=False)
    nn.init.normal_(trained.module.pos_embed)
    path = weights_of(trained.module, tmp_path)
    rows, cols = trained.module.patch_embed.grid_size
    side = trained.module.patch_embed.patch_size[0]
    # Twice as wide and half as high: as many patches, which must be resampled all the same.
    model = load(TINY, checkpoint=path, size=(rows * side // 2, cols * side * 2))
    expected = checkpoint_filter_fn(trained.module.state_dict(), model.module)["pos_embed"]
    assert model.module.pos_embed.shape == trained.module.pos_embed.shape
    assert not torch.equal(model.module.pos_embed, trained.module.pos_embed)
    assert torch.equal(model.module.pos_embed, expected)
    assert model.preprocess.size == (rows * side // 2, cols * side * 2)
    assert load(TINY, checkpoint=path, img_size=side * 3).preprocess.size == (side * 3, side * 3)


def test_a_checkpoint_of_deit3_as_its_authors_saved_it(tmp_path: Path):
    """gamma_1 and gamma_2 are what timm calls ls1.gamma and ls2.gamma."""
    options = {"embed_dim": 24, "depth": 2, "num_heads": 2, "img_size": 64, "pretrained": False}
    trained = load("timm/deit3_small_patch16_224", **options)
    nn.init.normal_(trained.module.blocks[0].ls1.gamma)
    state = {
        key.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2"): tensor
        for key, tensor in trained.module.state_dict().items()
    }
    torch.save({"model": state}, tmp_path / "deit3.pth")
    model = load("timm/deit3_small_patch16_224", checkpoint=tmp_path / "deit3.pth", **options)
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(model.logits(images), trained.logits(images))


def test_a_checkpoint_that_does_not_fit_names_the_numbers(tmp_path: Path):
    path = weights_of(nn.Linear(2, 2), tmp_path)
    with pytest.raises(
        CheckpointMismatchError, match=r"w\.safetensors does not fit.*are missing.*2 are unexpected \(bias, weight\)"
    ):
        load(TINY, checkpoint=path)
    path = weights_of(load(TINY, pretrained=False, num_classes=11).module, tmp_path)
    with pytest.raises(CheckpointMismatchError, match=r"load the model with num_classes=11"):
        load(TINY, checkpoint=path, num_classes=7)
    assert load(TINY, checkpoint=path, num_classes=11).class_names is None


def test_a_pickle_is_not_opened(tmp_path: Path):
    torch.save(nn.Linear(2, 2), tmp_path / "w.pth")
    with pytest.raises(UnsafeCheckpointError):
        load(TINY, checkpoint=tmp_path / "w.pth")


def test_the_users_word_goes_first():
    preprocess = Preprocess((160, 160))
    names = [f"c{i}" for i in range(1000)]
    model = load(TINY, pretrained=False, preprocess=preprocess, class_names=names)
    assert model.preprocess == preprocess
    assert model.class_index("c7") == 7


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("vit_tiny_patch16_224", r"begins with its source \(.*timm/…"),
        ("resnet/vit", "no model 'resnet/vit'"),
        ("", "no model ''"),
        ("timm/", "timm has no model ''"),
        ("timm/vit_tiny_patch16_225", "near it: .*vit_tiny_patch16_224"),
        ("timm/vit_tiny_patch16_224.nonsense", "no weights 'nonsense' of vit_tiny_patch16_224; there are augreg_in21k"),
        ("vit_tiny_patch16_224", r"did you mean timm/vit_tiny_patch16_224\?"),
        ("torch/vit_b_16", r"did you mean torchvision/vit_b_16\?"),
        ("vit_tinny_patch16_224", "did you mean timm/vit_tiny_patch16_224"),
        ("google/vit-base-patch16-224", r"did you mean hf/google/vit-base-patch16-224\?"),
        ("torchvision/vit_b_17", "torchvision has no model 'vit_b_17'; near it: .*vit_b_16"),
    ],
)
def test_unknown_models_are_told_with_near_names(spec: str, message: str):
    with pytest.raises(UnknownModelError, match=message):
        load(spec)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "gpu"}, "device 'gpu' cannot be used"),
        ({"device": "meta:x"}, "cannot be used"),
        ({"dtype": torch.int8}, "torch.int8 is not a floating point type"),
        ({"dtype": "float8_e4m3fn"}, "float8_e4m3fn is not a floating point type that models run in"),
        ({"device": "meta"}, "holds shapes and no numbers"),
        ({"num_classes": -1}, "num_classes is the number of classes"),
        ({"size": (224, 0)}, r"\(height, width\), not \(224, 0\)"),
        ({"size": 160, "img_size": 160}, "mean the same"),
        ({"nonsense": 3}, "timm could not build test_vit: .*nonsense"),
        ({"class_names": "zebra"}, "one string"),
    ],
)
def test_senseless_arguments_are_refused(options: dict, message: str):
    with pytest.raises(ModelError, match=message):
        load(TINY, pretrained=False, **options)


def test_weights_that_cannot_be_fetched_say_what_to_do(monkeypatch: pytest.MonkeyPatch):
    def offline(*args, **kwargs):
        raise OSError("no connection")

    monkeypatch.setattr("timm.create_model", offline)
    with pytest.raises(ModelError, match="could not build test_vit: no connection; give the weights with checkpoint="):
        load(TINY)


# --- the list and the registry ----------------------------------------------------------------------------------------


def test_models_are_listed_by_wildcards():
    assert list_models("vit_tiny_patch16_?84") == ["timm/vit_tiny_patch16_384"]
    assert list_models("timm/vit_tiny_patch16_224") == ["timm/vit_tiny_patch16_224"]
    assert "timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k" in list_models("timm/vit_tiny*.augreg*")
    assert "torchvision/vit_b_16" in list_models("torchvision/*")
    assert list_models("hf/*") == []
    assert list_models("no such model") == []
    everything = list_models()
    assert len(everything) > 200
    assert not any(name.partition("/")[2] == "resnet50" or name.startswith("timm/convnext") for name in everything)


def test_open_clip_is_listed_with_tags():
    pytest.importorskip("open_clip")
    assert "open_clip/ViT-B-32:openai" in list_models("open_clip/ViT-B-32:*")
    assert not any("RN50" in name for name in list_models("open_clip/*"))


def test_a_source_registers_itself(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(SOURCES, "garden", None)  # gone again after the test

    @source("garden", names=lambda: [""])
    def load_garden(request):
        return VisionModel(nn.Linear(2, 2), "garden")

    assert load("garden").name == "garden"
    assert list_models("garden") == ["garden"]


# --- Hugging Face -----------------------------------------------------------------------------------------------------


@pytest.fixture
def hf_folder(tmp_path: Path) -> Path:
    """A tiny ViT as `save_pretrained` writes it, with its processor."""
    transformers = pytest.importorskip("transformers")
    module = FAMILIES["hf_vit"].build()
    module.config.id2label = {i: f"animal {i}" for i in range(7)}
    module.save_pretrained(tmp_path)
    transformers.ViTImageProcessor(size={"height": 64, "width": 64}, do_resize=True).save_pretrained(tmp_path)
    return tmp_path


def test_a_hugging_face_folder(hf_folder: Path):
    model = load(f"hf/{hf_folder}")
    family = FAMILIES["hf_vit"]
    assert torch.equal(model.logits(family.images()), family.build()(family.images()).logits)
    assert model.class_index("animal 3") == 3
    assert model.preprocess == Preprocess((64, 64), None, "bilinear", (0.5,) * 3, (0.5,) * 3, "squash")
    assert model.forward_options == {}
    assert model.dtype == torch.float32
    assert not model.module.training


def test_a_hugging_face_module_brings_its_processor_along(hf_folder: Path):
    from transformers import AutoModelForImageClassification

    from vitrail.models import wrap

    module = AutoModelForImageClassification.from_pretrained(hf_folder)
    model = wrap(module)
    assert model.module is module
    assert model.preprocess == load(f"hf/{hf_folder}").preprocess
    assert model.class_index("animal 3") == 3


def test_a_hugging_face_folder_at_another_resolution(hf_folder: Path):
    model = load(f"hf/{hf_folder}", size=(96, 32))
    assert model.preprocess.size == (96, 32)
    assert model.forward_options == {"interpolate_pos_encoding": True}
    assert model.logits(torch.randn(1, 3, 96, 32)).shape == (1, 7)


def test_hugging_face_with_a_checkpoint_in_either_naming(hf_folder: Path, tmp_path: Path):
    family, saved = FAMILIES["hf_vit"], hf_folder / "model.safetensors"
    in_memory = weights_of(family.build(), tmp_path, "own.safetensors")
    for path in (saved, in_memory):
        model = load(f"hf/{hf_folder}", checkpoint=path)
        assert torch.equal(model.logits(family.images()), family.build()(family.images()).logits)
        assert model.metadata["checkpoint"] == path.name


def test_hugging_face_fills_no_gaps_with_random_numbers(hf_folder: Path, tmp_path: Path):
    from safetensors.torch import load_file

    state = load_file(hf_folder / "model.safetensors")
    head = state.pop("classifier.weight")
    save_file(state, tmp_path / "gap.safetensors")
    with pytest.raises(
        CheckpointMismatchError, match=r"1 tensors are missing \(classifier.weight\) and would be random"
    ):
        load(f"hf/{hf_folder}", checkpoint=tmp_path / "gap.safetensors")
    save_file({**state, "classifier.weight": head[:3].clone()}, tmp_path / "shape.safetensors")
    with pytest.raises(CheckpointMismatchError, match=r"classifier.weight is \(3, 48\) in the file and \(7, 48\)"):
        load(f"hf/{hf_folder}", checkpoint=tmp_path / "shape.safetensors")
    save_file({**state, "classifier.weight": head, "more": head.clone()}, tmp_path / "more.safetensors")
    with pytest.raises(CheckpointMismatchError, match=r"1 are unexpected \(more\)"):
        load(f"hf/{hf_folder}", checkpoint=tmp_path / "more.safetensors")
    (hf_folder / "model.safetensors").write_bytes((tmp_path / "gap.safetensors").read_bytes())
    with pytest.raises(CheckpointMismatchError, match="would be random"):
        load(f"hf/{hf_folder}")


def test_hugging_face_that_is_not_there(hf_folder: Path, tmp_path: Path):
    with pytest.raises(UnknownModelError, match="hf/no/such-model could not be fetched"):
        load("hf/no/such-model")
    with pytest.raises(UnknownModelError, match="nor in the local cache"):
        load("hf/no/such-model", checkpoint=hf_folder / "model.safetensors")
    with pytest.raises(UnknownModelError, match="is followed by"):
        load("hf/")
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ModelError, match="cannot be loaded as an image classifier"):
        load(f"hf/{tmp_path / 'bert'}")


def test_transformers_is_left_as_talkative_as_it_was(hf_folder: Path):
    from transformers.utils import logging as library

    logger = logging.getLogger("transformers.modeling_utils")
    before = (library.is_progress_bar_enabled(), logger.level)
    load(f"hf/{hf_folder}")
    assert (library.is_progress_bar_enabled(), logger.level) == before


def test_hugging_face_with_random_weights(hf_folder: Path):
    model = load(f"hf/{hf_folder}", pretrained=False)
    assert model.metadata["weights"] == "random"
    assert model.logits(torch.zeros(1, 3, 64, 64)).shape == (1, 7)


# --- torchvision ------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    """`vit_b_16` made tiny, so that the loader is tested without 86 million random numbers."""
    from torchvision import models
    from torchvision.models.vision_transformer import VisionTransformer

    def build(name: str, weights=None, image_size: int = 224, **options):
        return VisionTransformer(image_size, 16, 2, 2, 24, 48, **options)

    monkeypatch.setattr(models, "get_model", build)


@pytest.mark.usefixtures("small_torchvision")
def test_torchvision_by_name(tmp_path: Path):
    model = load("torchvision/vit_b_16", pretrained=False)
    assert model.class_index("zebra") == 340
    assert model.preprocess is not None
    assert (model.preprocess.size, model.preprocess.resize, model.preprocess.interpolation) == (
        (224, 224),
        256,
        "bilinear",
    )
    path = weights_of(model.module, tmp_path)
    images = torch.randn(1, 3, 224, 224)
    loaded = load("torchvision/vit_b_16", checkpoint=path)
    assert torch.equal(loaded.logits(images), model.logits(images))
    swag = load("torchvision/vit_b_16", pretrained=False, weights="IMAGENET1K_SWAG_E2E_V1")
    assert swag.preprocess is not None
    assert (swag.preprocess.size, swag.module.image_size) == ((384, 384), 384)
    assert load("torchvision/vit_b_16", pretrained=False, num_classes=5).class_names is None


@pytest.mark.usefixtures("small_torchvision")
def test_torchvision_at_another_resolution(tmp_path: Path):
    path = weights_of(load("torchvision/vit_b_16", pretrained=False).module, tmp_path)
    model = load("torchvision/vit_b_16", checkpoint=path, size=160)
    assert model.preprocess is not None
    assert model.preprocess.size == (160, 160)
    assert model.logits(torch.zeros(1, 3, 160, 160)).shape == (1, 1000)
    with pytest.raises(ModelError, match="square images only, not 96 x 160"):
        load("torchvision/vit_b_16", checkpoint=path, size=(96, 160))


@pytest.mark.usefixtures("small_torchvision")
def test_torchvision_weights_that_are_not_there(tmp_path: Path):
    with pytest.raises(UnknownModelError, match="no weights 'IMAGENET9' of vit_b_16; there are IMAGENET1K_V1"):
        load("torchvision/vit_b_16", weights="IMAGENET9")
    with pytest.raises(CheckpointMismatchError, match="does not fit"):
        load("torchvision/vit_b_16", checkpoint=weights_of(nn.Linear(2, 2), tmp_path))


# --- open_clip --------------------------------------------------------------------------------------------------------


@pytest.fixture
def open_clip_folder(tmp_path: Path) -> Path:
    """A tiny CLIP as open_clip keeps one in a local folder."""
    pytest.importorskip("open_clip")
    config = {
        "model_cfg": {
            "embed_dim": 12,
            "vision_cfg": {"image_size": 32, "layers": 2, "width": 24, "head_width": 12, "patch_size": 16},
            "text_cfg": {"context_length": 8, "vocab_size": 20, "width": 16, "heads": 2, "layers": 1},
        },
        "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "interpolation": "bilinear"},
    }
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    return tmp_path


def test_open_clip_with_random_weights_and_with_checkpoints(open_clip_folder: Path):
    import open_clip

    spec = f"open_clip/local-dir:{open_clip_folder}"
    whole = open_clip.create_model(f"local-dir:{open_clip_folder}", load_weights=False)
    images = torch.randn(1, 3, 32, 32)
    path = open_clip_folder / "w.pth"
    for state in (whole.state_dict(), whole.visual.state_dict()):
        torch.save(state, path)
        model = load(spec, checkpoint=path)
        assert torch.equal(model.logits(images), whole.eval().visual(images))
        assert model.class_names is None
        assert model.preprocess == Preprocess((32, 32), 32, "bilinear", (0.5,) * 3, (0.5,) * 3)
    wider = load(spec, checkpoint=path, size=(32, 64))
    assert wider.logits(torch.zeros(1, 3, 32, 64)).shape == (1, 12)
    assert wider.preprocess is not None
    assert wider.preprocess.size == (32, 64)
    assert load(spec, pretrained=False).metadata["weights"] == "random"


def test_open_clip_names_and_tags():
    pytest.importorskip("open_clip")
    with pytest.raises(UnknownModelError, match="open_clip has no model 'ViT-B-31'; near it: .*ViT-B-32"):
        load("open_clip/ViT-B-31")
    with pytest.raises(UnknownModelError, match="no weights 'nonsense' of ViT-B-32; there are openai"):
        load("open_clip/ViT-B-32:nonsense")
    with pytest.raises(ModelError, match="names no weights: give open_clip/ViT-B-32:TAG with TAG one of openai"):
        load("open_clip/ViT-B-32")
    with pytest.raises(ModelError, match="112 x 448 pixels are 196 patches, as many as a square image has"):
        load("open_clip/ViT-B-16", pretrained=False, size=(112, 448))


def test_a_tower_of_open_clip_is_known_by_wrap(open_clip_folder: Path):
    import open_clip

    from vitrail.models import wrap

    whole = open_clip.create_model(f"local-dir:{open_clip_folder}", load_weights=False)
    assert wrap(whole.visual).preprocess == Preprocess((32, 32), 32, "bilinear", (0.5,) * 3, (0.5,) * 3)


def test_a_model_is_replaced_field_by_field():
    model = load(TINY, pretrained=False)
    assert replace(model, readout="mean").readout == "mean"


@pytest.mark.parametrize(
    ("spec", "package", "extra"), [("hf/x", "transformers", "hf"), ("open_clip/x", "open_clip", "clip")]
)
def test_a_library_that_is_not_installed_is_named(spec: str, package: str, extra: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ModelError, match=rf"{package} is not installed.*\[{extra}\]"):
        load(spec)
    assert list_models(f"{spec.partition('/')[0]}/*") == []


# --- the number of classes --------------------------------------------------------------------------------------------


def test_the_number_of_classes_comes_from_the_file(tmp_path: Path):
    trained = load(TINY, pretrained=False, num_classes=5)
    path = weights_of(trained.module, tmp_path)
    images = torch.randn(1, 3, *trained.preprocess.size)
    model = load(TINY, checkpoint=path, class_names={"ant": 0, "bee": 1, "cat": 2, "dog": 3, "elk": 4})
    assert torch.equal(model.logits(images), trained.logits(images))
    assert model.class_index("cat") == 2
    assert load(TINY, checkpoint=path, size=96).logits(images[..., :96, :96]).shape == (1, 5)
    assert load(TINY, checkpoint=path).class_names is None


def test_the_number_of_classes_comes_from_the_file_in_hugging_face(tmp_path: Path, hf_folder: Path):
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig.from_pretrained(hf_folder)
    config.num_labels = 3
    state = ViTForImageClassification(config).state_dict()
    torch.save({"state_dict": {f"model.{name}": one for name, one in state.items()}}, tmp_path / "w.ckpt")
    model = load(f"hf/{hf_folder}", checkpoint=tmp_path / "w.ckpt")
    assert model.module.classifier.out_features == 3
    assert model.class_names is None
    with pytest.raises(CheckpointMismatchError):
        load(f"hf/{hf_folder}", num_classes=4)


def test_a_head_is_never_random_beside_published_weights():
    for spec in ("torchvision/vit_b_16", "open_clip/ViT-B-32:openai"):
        with pytest.raises(ModelError, match="would be random|no classes of its own"):
            load(spec, num_classes=5)


@pytest.mark.parametrize("word", ["bfloat16", "bf16", "torch.bfloat16", torch.bfloat16])
def test_a_type_may_be_named(word):
    assert load(TINY, pretrained=False, dtype=word).dtype == torch.bfloat16


def test_a_path_is_read_as_its_name(tmp_path):
    with pytest.raises(UnknownModelError, match=f"did you mean hf/{tmp_path}"):
        load(tmp_path)
