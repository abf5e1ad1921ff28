# %% [markdown]
# # Your own model
#
# Any `torch.nn.Module` that takes images and returns logits, as it is. This one was written the way countless course
# notebooks write it, attention by hand, and is trained here, in a few seconds, to tell warm discs from cold ones.

# %%
# %matplotlib inline
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import vitrail


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        weights = (q @ k.mT * q.shape[-1] ** -0.5).softmax(dim=-1)
        return self.out((weights @ v).transpose(1, 2).reshape(batch, tokens, width))


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.attention, self.norm2 = nn.LayerNorm(width), Attention(width, 4), nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class MyViT(nn.Module):
    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 8, 8)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.position = nn.Parameter(0.02 * torch.randn(1, 65, width))
        self.blocks = nn.Sequential(Block(width), Block(width), Block(width))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 2)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patches(images).flatten(2).mT
        x = torch.cat([self.class_token.expand(len(x), -1, -1), x], dim=1) + self.position
        return self.head(self.norm(self.blocks(x))[:, 0])


# %% [markdown]
# The data: two discs on grey noise, one warm and one cold, one large and one small. The label is the colour of the
# larger.


# %%
def discs(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    images = 0.5 + 0.08 * torch.randn(count, 3, 64, 64, generator=generator)
    rows, cols = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    labels = torch.randint(2, (count,), generator=generator)
    for image, label in zip(images, labels, strict=True):
        left = bool(torch.randint(2, (), generator=generator))
        for size, kind in ((14, int(label)), (7, 1 - int(label))):
            row = int(torch.randint(16, 48, (), generator=generator))
            col = 16 if left == (size == 14) else 47
            disc = (rows - row) ** 2 + (cols - col) ** 2 < size**2
            image[:, disc] = torch.tensor([[0.9, 0.45, 0.2], [0.2, 0.5, 0.9]])[kind][:, None]
    return images.clamp(0, 1), labels


torch.manual_seed(0)
torch.set_num_threads(1)  # the same sums in the same order, so that a notebook run twice says the same
module, generator = MyViT(), torch.Generator().manual_seed(0)
optimiser = torch.optim.AdamW(module.parameters(), lr=2e-3)
for _ in range(150):
    images, labels = discs(32, generator)
    loss = F.cross_entropy(module((images - 0.5) / 0.25), labels)
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
module.eval()
images, labels = discs(200, generator)
with torch.no_grad():
    right = (module((images - 0.5) / 0.25).argmax(1) == labels).float().mean()
print(f"{right:.0%} of 200 new pictures are right")

# %% [markdown]
# ## One line
#
# `wrap` takes the module and what Vitrail cannot know: how pictures become input, and what the classes are called. The
# layout of the tokens is worked out while the model runs.

# %%
preprocess = vitrail.Preprocess(size=(64, 64), mean=(0.5,) * 3, std=(0.25,) * 3)
model = vitrail.wrap(module, preprocess=preprocess, class_names=["warm", "cold"], name="my ViT")
print(model.describe())

# %%
picture = (images[0].permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
ex = vitrail.explain(model, picture, target=[["warm", "cold"]])
ex.plot()

# %% [markdown]
# Each class has its own disc red and the other's blue; the line below a map names what was subtracted ([class
# competition](../methods/complete.md#class-competition)). Other methods, asked for one class against the other: LeGrad,
# which knows no sign, marks the wrong disc: a reason to lay methods side by side.

# %%
methods = "gae,complete,attn_lrp,legrad"
vitrail.compare(model, picture, "warm", against="cold", methods=methods).plot()

# %% [markdown]
# Your module is as it was: no hooks, no flags, no gradients left behind. For a name of its own on the command line see
# [how to add a model family](../extend/model.md); where something is refused, [troubleshooting](../troubleshooting.md).
