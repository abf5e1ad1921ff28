# %% [markdown]
# # Why did it say that word?
#
# A vision-language model writes an answer token by token. For each of them `vitrail.explain_generation` gives a signed
# map of the image, a signed score of every word before, and the share of the evidence that lies on the image.
#
# The model here comes with the package and needs no network: a small LLaVA that captions the bestiary's creatures. With
# a model of Hugging Face's hub only one line changes:
#
# ```text
# model = vitrail.load_vlm("hf/Qwen/Qwen2.5-VL-3B-Instruct", dtype=torch.bfloat16, device="cuda")
# ```

# %%
# %matplotlib inline
import vitrail
from vitrail.bestiary import render, sample_scene

model = vitrail.load_vlm("bestiary/captioner")
scene = sample_scene("pair", seed=1, species=("tavel", "murlo"))
picture = render(scene).image

ex = vitrail.explain_generation(model, picture, "what is in the picture?")
print(ex.answer)
ex.plot()

# %% [markdown]
# Red argues for the word, blue against it, and the three shares below each panel say how much of the evidence lies on
# the image, on the question, and on the words already written. One forward pass served all words, and one backward pass
# each of them.
#
# ## The words before
#
# What did "murlo" rest on beside the picture?

# %%
murlo = ex.tokens.index(" murlo")
for word, role, score in ex.before(murlo):
    print(f"{word.strip():>10}  {role:8} {score:+.3f}")
print("image, question, earlier answer:", [f"{share:.2f}" for share in ex.grounding[murlo].tolist()])

# %% [markdown]
# ## One word against another
#
# "Why *horned* and not *spiral*?" is the better question: what argues for both cancels. `answer=` explains words that
# you choose, whether the model would have written them or not.

# %%
contrast = vitrail.explain_generation(
    model, picture, "what is in the picture?", answer="a horned tavel", positions=[-2], against="spiral"
)
print(contrast.question())
contrast.plot()

# %% [markdown]
# ## Words that are not in the picture
#
# Asked to describe a creature that is not there, the captioner describes it all the same.

# %%
made_up = vitrail.explain_generation(model, picture, "describe the balloo.")
there = vitrail.explain_generation(model, picture, "describe the tavel.")
for one in (there, made_up):
    print(f"{one.prompt}  {one.answer}")
    for word in one.by_word():
        print(f"    {word.question():18} image {word.grounding[0, 0]:.2f}")

# %% [markdown]
# The model is as sure of these traits; but nothing spotted or petalled was read off the picture: those words followed
# from the name. Over many scenes the image's share finds made-up words better than their probability does
# ([figures](../bestiary.md#a-captioner)). It cannot tell that a word is *right*: a model can look hard and misread.
#
# ## Held against the truth
#
# The bestiary can be drawn again without a creature, so one can see what each word really hangs on.

# %%
from vitrail.bestiary.captioner import caption_truth

(truth,) = caption_truth(model.module, model.processor, [scene])
for number, at in enumerate(truth.content):
    without = dict(zip(scene.labels, truth.creature_effects(number).tolist(), strict=True))
    print(f"{truth.dialogue.words[at].text:>10} loses", {name: round(lost, 1) for name, lost in without.items()})

# %% [markdown]
# ## Keep it
#
# `ex.save("answer.safetensors")` keeps scores, words and picture for `vitrail.GenerationExplanation.load`. On the
# command line, `vitrail vlm photo.jpg --model bestiary/captioner --prompt "what is in the picture?" --output out/`
# writes a page that opens offline: point at a word to see its map, click two words to see one against the other.
