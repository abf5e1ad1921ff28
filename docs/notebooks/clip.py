# %% [markdown]
# # CLIP, asked in words
#
# A CLIP model holds an image against texts. The logits are the similarities, so every gradient method says which
# patches speak for one text, or for one against another.
#
# This notebook runs without a network, so it first makes a tiny open_clip model with **random weights**: the maps show
# how it is done, not what a CLIP knows. With published weights only the line that loads it changes:
#
# ```text
# model = vitrail.load("open_clip/ViT-B-16:laion2b_s34b_b88k", texts=texts)
# ```

# %%
# %matplotlib inline
import json
from pathlib import Path

import open_clip
import torch
from safetensors.torch import save_file

import vitrail

config = {
    "model_cfg": {
        "embed_dim": 32,
        "vision_cfg": {"image_size": 96, "layers": 3, "width": 64, "head_width": 16, "patch_size": 8},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
    },
    "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "interpolation": "bicubic"},
}
folder = Path("tiny-clip")
folder.mkdir(exist_ok=True)
(folder / "open_clip_config.json").write_text(json.dumps(config))
torch.manual_seed(0)
whole = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
with torch.no_grad():
    for weights in whole.parameters():  # livelier than fresh weights, whose answer hangs on nothing
        if weights.ndim > 1:
            weights.copy_(1.2 * torch.randn_like(weights) * weights[0].numel() ** -0.5)
save_file({name: tensor.contiguous() for name, tensor in whole.state_dict().items()}, folder / "weights.safetensors")

# %% [markdown]
# ## Load it with the texts
#
# The text tower runs once, here. From then on the texts are the classes, and they go by their own words.

# %%
texts = ["a photograph of a cat", "a cup of coffee", "a green field"]
model = vitrail.load(f"open_clip/local-dir:{folder}", checkpoint=folder / "weights.safetensors", texts=texts)
print(model.class_names)

# %%
from PIL import Image
from skimage import data

cat = Image.fromarray(data.chelsea()).resize((320, 213))
ex = vitrail.explain(model, cat, target=[texts[:2]])
for text, similarity in zip(texts, ex.logits[0].tolist(), strict=True):
    print(f"{similarity:7.2f}  {text}")
ex.plot()

# %% [markdown]
# ## One text against another
#
# Similarities of any image and text lie close together, so the difference between two of them is the better question.

# %%
vitrail.explain(model, cat, texts[0], against=texts[1]).plot()

# %% [markdown]
# ## Methods made for CLIP
#
# Grad-ECLIP and LeGrad beside the signed map.

# %%
vitrail.compare(model, cat, texts[0], methods="grad_eclip,legrad,gae,complete").plot()

# %% [markdown]
# On the command line: `vitrail explain cat.jpg --model open_clip/ViT-B-32 --checkpoint clip.safetensors --text "a cat"
# --against-text "a cup"`. The photograph is scikit-image's *chelsea*, in the public domain.
