# %% [markdown]
# # Quick start
#
# A model, a picture, a question. The model comes with the package, so nothing is downloaded; with
# `vitrail.load("timm/vit_base_patch16_224")` and a photograph all lines below stay the same.

# %%
# %matplotlib inline
import vitrail
from vitrail.bestiary import render, sample_scene

model = vitrail.load("bestiary")
print(model.describe())

# %% [markdown]
# The built-in world has twenty kinds of creatures. Here are a *murlo*, which looks like a snail, and a *balloo*.

# %%
from PIL import Image

scene = sample_scene("pair", seed=33)
picture = Image.fromarray(render(scene, 96).image)
picture.resize((288, 288), Image.Resampling.LANCZOS)

# %% [markdown]
# ## Which patches argue for the class, and which against it?
#
# Two classes of one picture, in one forward pass. Red raises the score that was asked about, blue lowers it.

# %%
ex = vitrail.explain(model, picture, target=[["murlo", "balloo"]])
ex.plot()

# %% [markdown]
# The scores are raw and signed, one for each patch; the picture only scales them by the largest.

# %%
print(tuple(ex.scores.shape), "images, targets, rows, columns")
print(f"lowest {ex.scores.min():.3f}, highest {ex.scores.max():.3f}")

# %% [markdown]
# ## Why this one and not that one?
#
# One class against the other: red now speaks for *murlo*, blue for *balloo*.

# %%
rival = vitrail.explain(model, picture, target="murlo", against="balloo")
print(rival.question())
rival.plot()

# %% [markdown]
# ## Keep it
#
# Scores, logits, question and versions in one file, which needs no model to be read.

# %%
rival.save("murlo.safetensors")
again = vitrail.Explanation.load("murlo.safetensors")
print(again.question(), "·", again.method, "·", again.metadata["model"])

# %% [markdown]
# **Next:** [a misread image](misread-image.ipynb), [how to read negative values](../negative-values.md), or
# [your own model](own-model.ipynb).
