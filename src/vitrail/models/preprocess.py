"""What happens to a photograph before the model sees it."""

from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from PIL import Image
from torch import Tensor

from ..errors import ImageError, ModelError

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "MAX_RESIZED", "Preprocess", "require_rgb"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_INTERPOLATIONS = ("bicubic", "bilinear", "nearest", "lanczos")
_CROP_MODES = ("center", "squash", "border")
MAX_RESIZED = 178_956_970  # of the resized picture; the limit that Pillow sets for decoded ones


@dataclass(frozen=True)
class Preprocess:
    """Resize, crop and normalise a picture as a model was trained to see it; equal to torchvision and timm to the bit.

    `size` is the height and width that the model takes. `resize` is the length that the shorter side gets before the
    centre is cropped, or None to squash the picture to `size`. A pair (height, width) is a box: the picture covers it
    (`crop_mode` "center"), is squashed to it ("squash"), or fits inside, on a ground of `fill` ("border"); these are
    timm's words. `interpolation` is "bicubic", "bilinear", "nearest" or "lanczos", with antialiasing. `mean` and `std`
    are of red, green and blue, for pixels from 0 to 1; one number each is for models of one channel, which see the
    picture in grey.

    Raises:
        ModelError: when built with numbers that make no sense.

    Example:
        >>> preprocess = Preprocess(size=(224, 224), resize=256)
        >>> preprocess(Image.new("RGB", (640, 480))).shape
        torch.Size([3, 224, 224])
    """

    size: tuple[int, int]
    resize: int | tuple[int, int] | None = None
    interpolation: str = "bicubic"
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    crop_mode: str = "center"
    fill: tuple[int, int, int] = (0, 0, 0)

    def __post_init__(self) -> None:
        if not isinstance(self.size, tuple):
            raise ModelError(f"size is (height, width), not {self.size!r}")
        lengths = [*self.size, *((self.resize,) if isinstance(self.resize, int) else self.resize or ())]
        if len(self.size) != 2 or len(lengths) > 4 or any(length < 1 for length in lengths):
            raise ModelError(f"size and resize are lengths in pixels of at least 1, not {self.size} and {self.resize}")
        if self.interpolation not in _INTERPOLATIONS:
            raise ModelError(f"interpolation {self.interpolation!r} is not one of {', '.join(_INTERPOLATIONS)}")
        if self.crop_mode not in _CROP_MODES:
            raise ModelError(f"crop_mode {self.crop_mode!r} is not one of {', '.join(_CROP_MODES)}")
        for name in ("mean", "std"):
            object.__setattr__(self, name, tuple(float(value) for value in getattr(self, name)))
        if len(self.mean) not in (1, 3) or len(self.std) != len(self.mean) or not all(value > 0 for value in self.std):
            raise ModelError(
                f"mean and std are three numbers (one for grey), std above 0, not {self.mean} and {self.std}"
            )

    @property
    def plain(self) -> bool:
        """Returns whether `mean` and `std` are all that happens to colours, so that a picture can be read back."""
        return True

    @property
    def channels(self) -> int:
        """Returns number of channels of the model's input: 3 for RGB, 1 for grey."""
        return len(self.mean)

    def view(self, image: Image.Image) -> Image.Image:
        """Returns the part of the picture that the model sees: RGB, exactly `size`, before normalisation.

        Pictures smaller than the crop are padded with `fill`. A model of one channel sees three equal ones.

        Raises:
            ImageError: for another mode than RGB (`read_image` gives RGB), and for a picture so narrow that resizing it
                would fill the memory.
        """
        # torchvision takes a second to import, and `import vitrail` has none to spare.
        from torchvision.transforms import InterpolationMode
        from torchvision.transforms import functional as pil_or_tensor

        require_rgb(image)
        height, width = self.resized(image.height, image.width)
        if height * width > MAX_RESIZED:
            raise ImageError(
                f"a picture of {image.width} x {image.height} pixels would become {width} x {height} before its centre "
                f"is cropped, more than {MAX_RESIZED} pixels; crop it to a less extreme shape first"
            )
        functional: Any = pil_or_tensor  # annotated for tensors only
        grey = self.channels == 1
        image = image.convert("L") if grey else image
        image = functional.resize(image, [height, width], InterpolationMode(self.interpolation))
        missing_rows, missing_cols = max(0, self.size[0] - height), max(0, self.size[1] - width)
        if missing_rows or missing_cols:
            top, left = missing_rows // 2, missing_cols // 2
            around = [left, top, missing_cols - left, missing_rows - top]
            image = functional.pad(image, around, fill=self.fill[0] if grey else self.fill)
        return functional.center_crop(image, list(self.size)).convert("RGB")

    def normalise(self, image: Image.Image) -> Float[Tensor, "channels height width"]:
        """Returns the pixels as the model takes them: float32, channels first, `(pixel / 255 - mean) / std`."""
        # A pixel has 256 values: each is worked out once, and no tensor is calculated with where threads decode images
        # next to the model, whose threads it would draw on.
        pixels = np.atleast_3d(np.asarray(image.convert("L" if self.channels == 1 else "RGB")))
        normalised = np.empty((self.channels, *pixels.shape[:2]), np.float32)
        for channel, values in enumerate(_normalised(self.mean, self.std)):
            np.take(values, pixels[..., channel], out=normalised[channel], mode="clip")
        return torch.from_numpy(normalised)

    def __call__(self, image: Image.Image) -> Float[Tensor, "channels height width"]:
        """`normalise(view(image))`: one image, channels first, without a batch axis."""
        return self.normalise(self.view(image))

    def with_view(self, image: Image.Image) -> tuple[Float[Tensor, "channels height width"], Image.Image]:
        """Returns the model's input together with the picture that it shows."""
        view = self.view(image)
        return self.normalise(view), view

    def enlarged(self, image: Image.Image, times: int) -> Image.Image:
        """Returns the model's view of the image with `times` as many pixels on each side, for figures."""
        if times == 1:
            return self.view(image)
        return (
            replace(self, interpolation="lanczos").with_size((times * self.size[0], times * self.size[1])).view(image)
        )

    def denormalise(self, tensor: Float[Tensor, "channels height width"]) -> UInt8[np.ndarray, "height width 3"]:
        """Returns the picture behind one normalised tensor: pixels from 0 to 255, clipped to that range."""
        mean, std = _columns(self.mean, torch.float64), _columns(self.std, torch.float64)
        pixels = (tensor.detach().cpu().to(torch.float64) * std).add_(mean).mul_(255)
        levels = pixels.nan_to_num_(0.0).clamp_(0, 255).round_().to(torch.uint8)
        return levels.permute(1, 2, 0).expand(-1, -1, 3).contiguous().numpy()

    def seen_mask(self, mask: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "height width"]:
        """Returns a mask of the picture on the pixels that the model sees: resized and cropped as in `view`,
        nearest.
        """
        nearest = replace(self, interpolation="nearest", fill=(0, 0, 0))
        drawn = Image.fromarray(mask.astype(np.uint8) * 255).convert("RGB")
        return np.asarray(nearest.view(drawn).getchannel(0)) > 127

    def squashed(self, interpolation: str | None = None) -> "Preprocess":
        """Returns the same colours, with the whole picture squashed to `size`."""
        return replace(self, resize=None, crop_mode="center", interpolation=interpolation or self.interpolation)

    def describe(self) -> str:
        """Returns one line for people: size and interpolation."""
        grey = " in grey" if self.channels == 1 else ""
        return f"pictures become {self.size[1]} x {self.size[0]} pixels{grey} (width x height), {self.interpolation}"

    def record(self) -> dict[str, Any]:
        """Returns all that decides the pixels, as plain JSON values."""
        return asdict(self)

    def with_size(self, size: tuple[int, int]) -> "Preprocess":
        """Returns the same for another (height, width), with the same share of the picture cropped away.

        Example:
            >>> Preprocess(size=(224, 224), resize=256).with_size((448, 448)).resize
            512
        """
        (old_rows, old_cols), (rows, cols) = self.size, size
        if self.resize is None:
            return replace(self, size=(rows, cols))
        # timm's rule is floor(size / crop_pct); here with the whole numbers that crop_pct became.
        if isinstance(self.resize, int):
            shorter = min(old_rows, old_cols)
            box = (rows * self.resize // shorter, cols * self.resize // shorter)
            return replace(self, size=(rows, cols), resize=box[0] if rows == cols else box)
        box = (rows * self.resize[0] // old_rows, cols * self.resize[1] // old_cols)
        square = self.crop_mode == "center" and rows == cols and box[0] == box[1]
        return replace(self, size=(rows, cols), resize=box[0] if square else box)

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """Returns height and width of a picture of that size after the resizing, before the crop."""
        if self.resize is None:
            return self.size
        if isinstance(self.resize, int):
            # torchvision truncates the longer side; timm rounds both where it fits a box.
            if height <= width:
                return self.resize, int(self.resize * width / height)
            return int(self.resize * height / width), self.resize
        if self.crop_mode == "squash":
            return self.resize
        ratios = height / self.resize[0], width / self.resize[1]
        ratio = max(ratios) if self.crop_mode == "border" else min(ratios)
        return max(1, round(height / ratio)), max(1, round(width / ratio))


def require_rgb(image: Image.Image) -> None:
    """Raises `ImageError` for a PIL image of another mode than RGB."""
    if image.mode != "RGB":
        raise ImageError(f"the picture has mode {image.mode}, not RGB; open it with vitrail.images.read_image")


@cache
def _normalised(mean: tuple[float, ...], std: tuple[float, ...]) -> Float[np.ndarray, "channels 256"]:
    """What every value of a pixel becomes in each channel."""
    levels = torch.arange(256, dtype=torch.float32).expand(len(mean), 1, 256)
    return levels.div(255).sub(_columns(mean, torch.float32)).div(_columns(std, torch.float32))[:, 0].numpy()


def _columns(values: tuple[float, ...], dtype: torch.dtype) -> Float[Tensor, "channels 1 1"]:
    return torch.tensor(values, dtype=dtype).view(-1, 1, 1)
