# %% [markdown]
# # Comparing methods
#
# Many methods, one question, one sheet. Then a number for each, where the truth is known.

# %%
# %matplotlib inline
import vitrail
from vitrail.bestiary import render, sample_scene

model = vitrail.load("bestiary")
scene = sample_scene("pair", seed=33)
picture = render(scene, 96).image

# %% [markdown]
# `methods=` takes names and groups: `"all"`, `"fast"`, `"signed"`; `"complete:libra"` asks in a gradient mode.

# %%
methods = "rollout,absolute,gae,complete:full,complete:libra,complete,attn_lrp"
found = vitrail.compare(model, picture, ["murlo", "balloo"], methods=methods)
found.plot()

# %% [markdown]
# Rollout knows no class: both rows are the same. `absolute` hardly tells the classes apart. `gae` finds the right
# creature and is silent about the other. `complete` under the full gradient puts the other into blue, and does badly
# where a creature is alone (below); `libra` the other way round. The default, `libra` with class competition, does
# both.
#
# ## How alike are the maps of the two classes?

# %%
import torch

for method, maps in found.maps.items():
    one, other = maps.flatten(1)
    print(f"{method:15} {torch.corrcoef(torch.stack([one, other]))[0, 1]:+.2f}")

# %% [markdown]
# ## Against the truth
#
# In the bestiary it is known what a part is worth: draw the scene again without it and see what the logit loses.
# `score` holds maps against that, here on 12 scenes of each kind; the README's table has 200, with intervals to match.

# %%
from vitrail.evaluate import score

chosen = ("single sign", "pair sign", "rival sign", "single rank")
rows = score(model, ["gae", "complete"], gradients=("full", "libra", "compete"), count=12)
print(f"{'':22}" + "".join(f"{name:>22}" for name in chosen))
for row in rows:
    print(f"{row.label:22}" + "".join(f"{row.measures[name]!s:>22}" for name in chosen))

# %% [markdown]
# **Which should you use?** [The measured answer](../which-method.md). On your own pictures: `vitrail evaluate`,
# [these data](../evaluate-data.md).
