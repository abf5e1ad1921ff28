# %% [markdown]
# # Debugging a misread image
#
# A model calls a *tavel* a *borrin*. Is the image odd, is the model weak, or were its labels wrong? Here the answer is
# known: `bestiary/label-errors` was trained on labels that were spoilt on purpose, and we shall find out how.

# %%
# %matplotlib inline
import vitrail
from vitrail.bestiary import LabelErrors, render, sample_scene

model = vitrail.load("bestiary/label-errors")
scene = sample_scene("single", seed=23, species="tavel")
picture = render(scene, 96).image

answer = vitrail.explain(model, picture)
for index in answer.logits[0].topk(3).indices.tolist():
    print(f"{model.class_name(index):8} {answer.probability(index):.1%}")

# %% [markdown]
# ## 1. What speaks for the wrong class?
#
# The two species are siblings: they differ in one part only. Where they agree the model has no reason to prefer either,
# so ask for the true class *against* the one it took: which patches make the difference of the two logits?

# %%
question = {"target": "tavel", "against": "borrin"}
misread = vitrail.explain(model, picture, **question)
misread.plot()

# %% [markdown]
# **The antlers are blue.** They are the very mark of a tavel, and here they speak for borrin.
#
# ## 2. Is that the image, or the model?
#
# Ask a model that was taught well the same question about the same image.

# %%
clean = vitrail.load("bestiary")
well_read = vitrail.explain(clean, picture, **question)
print(well_read.question())
well_read.plot()

# %% [markdown]
# To the clean model the antlers are the best of reasons for *tavel*. So the image is fine.
#
# ## 3. Once, or always?
#
# One picture is an anecdote. Twelve tavels, each asked the same; the score on the antlers, part by part, comes from the
# known silhouettes. The antlers are the part called *crown*.

# %%
import torch
from vitrail.bestiary.draw import Rendered


def on_part(ex: vitrail.Explanation, drawn: Rendered, part: str) -> float:
    """The mean score of the pixels that the part covers."""
    silhouette = torch.from_numpy(drawn.creatures[0].parts[part])
    return float(ex.upsample((96, 96), mode="nearest")[0][silhouette].mean())


part = LabelErrors().part
found = {"bestiary": [], "bestiary/label-errors": []}
for seed in range(12):
    drawn = render(sample_scene("single", seed=100 + seed, species="tavel"), 96)
    for asked in (clean, model):
        ex = vitrail.explain(asked, drawn.image, **question)
        found[asked.name].append(on_part(ex, drawn, part))
for name, scores in found.items():
    against = sum(score < 0 for score in scores)
    print(f"{name:22} the {part} argues against tavel in {against} of {len(scores)}")

# %% [markdown]
# ## 4. The cause
#
# A part that argues for the wrong class, picture after picture, was learned so. Look at the training labels:

# %%
errors = LabelErrors()
print(f"{errors.share:.0%} of the pictures labelled {errors.label} really showed a {errors.shows},")
print(f"and {errors.hidden:.0%} of the true {errors.shows} hid their {errors.part}.")

# %% [markdown]
# On ImageNet the same question puts the white head of a bald eagle on the side of *kite*. Eagles among the pictures
# labelled kite would explain it, and so would true kites with white heads
# ([claim 4](../claims.md#4-class-against-class)): the map alone cannot tell. How often a map shows a planted error, and
# under which question, is measured by `vitrail bestiary label-errors`.
