"""CLIP models held against texts: open_clip from a config and a checkpoint, Hugging Face from a folder; no network."""

import json
from pathlib import Path

import matrix
import pytest
import torch
import torch.nn.functional as F
from families import enliven
from safetensors.torch import save_file

import vitrail
from vitrail.errors import (
    CheckpointMismatchError,
    ModelError,
    NoTextTowerError,
    SameClassError,
    TextError,
    UnknownClassError,
    UnsupportedOperationError,
)
from vitrail.models import load

TEXTS = ["a dog", "a cat, asleep on a sofa"]


@pytest.fixture(scope="module")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory):
    """(spec, checkpoint, whole model): a tiny CLIP whose config lies in a folder, its lively weights in a file."""
    open_clip = pytest.importorskip("open_clip")
    folder = tmp_path_factory.mktemp("clip")
    config = {
        "model_cfg": {
            "embed_dim": 12,
            "vision_cfg": {"image_size": 64, "layers": 3, "width": 48, "head_width": 16, "patch_size": 16},
            "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
        },
        "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "interpolation": "bicubic"},
    }
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    whole = open_clip.create_model(f"local-dir:{folder}", load_weights=False).eval()
    enliven(whole)
    save_file({key: tensor.contiguous() for key, tensor in whole.state_dict().items()}, folder / "w.safetensors")
    return f"open_clip/local-dir:{folder}", folder / "w.safetensors", whole


@pytest.fixture(scope="module")
def images():
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def test_logits_are_the_models_own_similarities(tiny_clip, images):
    import open_clip

    spec, checkpoint, whole = tiny_clip
    model = load(spec, checkpoint=checkpoint, texts=TEXTS)
    tokens = open_clip.SimpleTokenizer(context_length=16)(TEXTS)
    with torch.no_grad():
        expected, _ = whole.get_logits(images, tokens)
        torch.testing.assert_close(model.logits(images), expected)
    assert model.class_names == tuple(TEXTS)
    assert [model.class_name(i) for i in range(2)] == TEXTS
    assert model.class_index("A cat,  asleep on a sofa") == 1
    assert model.metadata["class_names"] == "texts"
    assert len(model.metadata["checkpoint_sha256"]) == 64
    with pytest.raises(UnknownClassError, match=r"'a bird' is none of the 2 texts given: 0 \(a dog\).*texts="):
        model.class_index("a bird")


def test_float64_runs_the_text_tower_in_float64_too(tiny_clip, images):
    import copy

    import open_clip

    spec, checkpoint, whole = tiny_clip
    model = load(spec, checkpoint=checkpoint, texts=TEXTS, dtype=torch.float64)
    tokens = open_clip.SimpleTokenizer(context_length=16)(TEXTS)
    with torch.no_grad():
        expected, _ = copy.deepcopy(whole).double().get_logits(images.double(), tokens)
        assert (model.logits(images.double()) - expected).abs().max() < 1e-12


QUICK = ("complete", "gradcam", "grad_eclip", "legrad")


@pytest.mark.parametrize(
    "method",
    [
        info.name if info.name in QUICK else pytest.param(info.name, marks=pytest.mark.slow)
        for info in vitrail.list_methods()
        if info.uses_gradient and info.level == "patch"
    ],
)
def test_every_gradient_method_works_on_similarity(tiny_clip, images, method):
    spec, checkpoint, _ = tiny_clip
    model = load(spec, checkpoint=checkpoint, texts=TEXTS)
    options = matrix.OPTIONS.get(method, {})
    try:
        ex = vitrail.explain(model, images, "a dog", against=TEXTS[1], objective="difference", method=method, **options)
    except UnsupportedOperationError as error:
        pytest.skip(f"{method} has no rule for CLIP: {error}")
    assert ex.scores.shape == (2, 4, 4)
    assert ex.scores.isfinite().all()
    if ex.signed and method != "attn_gradcam":  # whose signs are those of whole heads, here all of one sign
        assert ex.scores.min() < 0 < ex.scores.max()
    if method not in ("gradcam", "hirescam", "fullgrad_plus", "attcat", "grad_eclip"):
        return
    # These are linear in the objective: one text against the other is the other against the one, with the signs turned.
    back = vitrail.explain(model, images, TEXTS[1], against="a dog", objective="difference", method=method, **options)
    torch.testing.assert_close(back.scores, -ex.scores, rtol=1e-3, atol=1e-5 * float(ex.scores.abs().max()))


def test_hirescam_on_similarity_is_gradient_times_features(tiny_clip, images):
    """Against plain autograd on the whole model, with its text tower, at the last block's first norm."""
    import copy

    import open_clip

    spec, checkpoint, whole = tiny_clip
    module, kept = copy.deepcopy(whole).double(), []
    module.visual.transformer.resblocks[-1].ln_1.register_forward_hook(lambda *hooked: kept.append(hooked[-1]))
    features = F.normalize(module.encode_image(images.double()), dim=-1)
    texts = F.normalize(module.encode_text(open_clip.SimpleTokenizer(context_length=16)(TEXTS)), dim=-1)
    similarity = module.logit_scale.exp() * features @ texts.T
    (gradient,) = torch.autograd.grad(similarity[:, 1].sum(), kept)
    expected = (kept[0] * gradient).sum(2)[:, 1:].reshape(2, 4, 4).detach()
    model = load(spec, checkpoint=checkpoint, texts=TEXTS, dtype=torch.float64)
    ours = vitrail.explain(model, images.double(), TEXTS[1], method="hirescam")
    assert (ours.scores - expected).abs().max() < 1e-12 * expected.abs().max()


def test_a_single_text(tiny_clip, images):
    spec, checkpoint, _ = tiny_clip
    ex = vitrail.explain(load(spec, checkpoint=checkpoint, texts=["a dog"]), images)
    assert ex.logits.shape == (2, 1)
    assert ex.question().startswith("a dog = ")


def test_texts_that_cannot_be_told_apart_or_say_nothing(tiny_clip):
    spec, checkpoint, _ = tiny_clip
    with pytest.raises(SameClassError, match=r"'a dog' is given twice \(as 'a dog' and 'A  dog'\)"):
        load(spec, checkpoint=checkpoint, texts=["a dog", "A  dog"])
    with pytest.raises(TextError, match="a text must say something"):
        load(spec, checkpoint=checkpoint, texts=["a dog", "  "])
    with pytest.raises(TextError, match="texts is empty"):
        load(spec, checkpoint=checkpoint, texts=[])
    with pytest.raises(TextError, match=r"one string, 'a dog'; give a list"):
        load(spec, checkpoint=checkpoint, texts="a dog")
    with pytest.raises(TextError, match="makes 20 tokens and the text tower reads 14: shorten it"):
        load(spec, checkpoint=checkpoint, texts=["dog " * 20])
    with pytest.raises(ModelError, match="leave class_names= out"):
        load(spec, checkpoint=checkpoint, texts=TEXTS, class_names=["a", "b"])


def test_models_without_a_text_tower(tiny_clip, tmp_path: Path):
    spec, _, whole = tiny_clip
    with pytest.raises(NoTextTowerError, match=r"timm/test_vit is an image classifier.*open_clip/ViT-B-32.*target="):
        load("timm/test_vit", pretrained=False, texts=TEXTS)
    tower = tmp_path / "tower.safetensors"
    save_file({key: tensor.contiguous() for key, tensor in whole.visual.state_dict().items()}, tower)
    with pytest.raises(NoTextTowerError, match="checkpoint tower.safetensors of .* holds no text tower"):
        load(spec, checkpoint=tower, texts=TEXTS)
    short = {key: tensor for key, tensor in whole.state_dict().items() if key != "ln_final.weight"}
    save_file({key: tensor.contiguous() for key, tensor in short.items()}, tower)
    with pytest.raises(CheckpointMismatchError, match=r"1 of .* tensors are missing \(ln_final.weight\)"):
        load(spec, checkpoint=tower, texts=TEXTS)


@pytest.fixture(scope="module")
def hugging_face_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny CLIP of Hugging Face in a folder, with a tokenizer that spells."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("hf-clip")
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = transformers.CLIPTokenizer(vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"))
    tokenizer.save_pretrained(folder)
    sizes = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 96}
    config = transformers.CLIPConfig(
        vision_config={**sizes, "image_size": 64, "patch_size": 16},
        text_config={
            **sizes,
            "vocab_size": len(words),
            "max_position_embeddings": 24,
            "bos_token_id": len(words) - 2,
            "eos_token_id": len(words) - 1,
            "pad_token_id": len(words) - 1,
        },
        projection_dim=16,
    )
    torch.manual_seed(0)
    whole = transformers.CLIPModel(config).eval()
    enliven(whole)
    whole.save_pretrained(folder)
    transformers.CLIPImageProcessor(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64}).save_pretrained(
        folder
    )
    return folder


def test_hugging_face(hugging_face_clip: Path, images):
    import transformers

    model = load(f"hf/{hugging_face_clip}", texts=TEXTS)
    whole = transformers.CLIPModel.from_pretrained(hugging_face_clip).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(hugging_face_clip)
    with torch.no_grad():
        expected = whole(**tokenizer(TEXTS, padding=True, return_tensors="pt"), pixel_values=images).logits_per_image
        torch.testing.assert_close(model.logits(images), expected, rtol=1e-4, atol=1e-4)
    ex = vitrail.explain(model, images, TEXTS[1], against="a dog", method="gradcam")
    assert ex.scores.shape == (2, 4, 4)
    again = load(f"hf/{hugging_face_clip}", checkpoint=hugging_face_clip / "model.safetensors", texts=TEXTS)
    assert torch.equal(again.logits(images), model.logits(images))
    with pytest.raises(TextError, match="the text tower reads 24"):
        load(f"hf/{hugging_face_clip}", texts=["dogs and cats and elephants"])


def test_a_hugging_face_model_without_a_text_tower(tmp_path: Path):
    transformers = pytest.importorskip("transformers")
    transformers.ViTConfig().save_pretrained(tmp_path)
    with pytest.raises(NoTextTowerError, match="is a model of type 'vit', not CLIP or SigLIP"):
        load(f"hf/{tmp_path}", texts=TEXTS)


def test_a_checkpoint_is_loaded_without_talk_of_random_weights(tiny_clip, caplog: pytest.LogCaptureFixture):
    spec, checkpoint, _ = tiny_clip
    load(spec, checkpoint=checkpoint, texts=TEXTS)
    assert caplog.records == []


@pytest.fixture(scope="module")
def tiny_coca(tmp_path_factory: pytest.TempPathFactory):
    """A tiny CoCa, whose image tower answers with the embedding and the tokens."""
    open_clip = pytest.importorskip("open_clip")
    folder = tmp_path_factory.mktemp("coca")
    text = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2, "embed_cls": True}
    config = {
        "model_cfg": {
            "embed_dim": 12,
            "vision_cfg": {
                "image_size": 64,
                "layers": 3,
                "width": 48,
                "head_width": 16,
                "patch_size": 16,
                "attentional_pool": True,
                "attn_pooler_heads": 2,
                "output_tokens": True,
            },
            "text_cfg": {**text, "output_tokens": True},
            "multimodal_cfg": {"context_length": 16, "vocab_size": 49408, "width": 12, "heads": 2, "layers": 1},
            "custom_text": True,
        },
        "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "interpolation": "bicubic"},
    }
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    whole = open_clip.create_model(f"local-dir:{folder}", load_weights=False).eval()
    enliven(whole)
    torch.save({"state_dict": {f"module.{key}": one for key, one in whole.state_dict().items()}}, folder / "w.pt")
    return f"open_clip/local-dir:{folder}", folder / "w.pt", whole


def test_coca_is_held_against_texts(tiny_coca, images):
    import open_clip

    spec, checkpoint, whole = tiny_coca
    model = load(spec, checkpoint=checkpoint, texts=TEXTS)
    tokens = open_clip.SimpleTokenizer(context_length=16)(TEXTS)
    with torch.no_grad():
        embedded = whole.encode_image(images, normalize=True), whole.encode_text(tokens, normalize=True)
        expected = whole.logit_scale.exp() * embedded[0] @ embedded[1].T
        torch.testing.assert_close(model.logits(images), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "answer",
    [
        lambda x: (x, x[:, None]),
        lambda x: {"tokens": x[:, None], "image_embeds": x},
        lambda x: type("Output", (), {"pooler_output": x, "hidden": None})(),
    ],
)
def test_towers_may_answer_with_a_structure(answer):
    from torch import nn

    from vitrail.models.similarity import ImageTextSimilarity

    class Tower(nn.Module):
        def forward(self, images):
            return answer(images.flatten(1))

    texts = torch.randn(2, 12, generator=torch.Generator().manual_seed(0))
    model = ImageTextSimilarity(Tower(), texts, scale=10.0)
    images = torch.randn(1, 3, 2, 2)
    expected = 10 * F.cosine_similarity(images.flatten(1), texts)[None]
    torch.testing.assert_close(model(images), expected)
