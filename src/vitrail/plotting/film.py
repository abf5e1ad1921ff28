"""A transfer of attention as a film: one frame for each step whose maps were drawn. GIF, WebP or MP4."""

import io
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from ..errors import OptionError, OutputFileError
from ..files import atomic_write
from .overlay import colour
from .transfer import draw_frame

if TYPE_CHECKING:
    from ..counterfactual.transfer_result import Transfer

__all__ = ["FILMS", "check_film", "save_film"]

FILMS = ("gif", "webp", "mp4")
SCALE = 65  # of the 256 colours of a GIF, those kept for the scale of a signed map; odd, for white in its middle
HOLD = (1.0, 2.0)  # seconds for which the first and the last frame stand


def save_film(
    result: "Transfer", path: str | os.PathLike[str], *, fps: float | int = 8, width: int = 800, **look: Any
) -> Path:
    """Draws a frame for each of the result's snapshots, and writes them whole or not at all. Returns the path.

    The suffix decides: .gif (256 colours, shown everywhere), .webp (true colour, a tenth of the size) or .mp4 (needs
    ffmpeg). `fps` are frames per second, `width` is in pixels; other options are those of `draw_frame`.

    Raises `OptionError` for another suffix, a film of one frame or numbers out of range, `OutputFileError` when there
    is no ffmpeg or the file cannot be written.
    """
    kind = check_film(path)
    if len(result.snapshots) < 2:
        raise OptionError("a film needs maps at two steps or more: ask for more with snapshots=")
    if not 0.1 <= fps <= 60 or not 100 <= width <= 4000:
        raise OptionError(f"a film of {fps} frames per second, {width} pixels wide: give 0.1 to 60, and 100 to 4000")
    frames = [_smaller(picture, width) for picture in _pictures(result, look)]
    seconds = [1 / fps] * len(frames)
    seconds[0], seconds[-1] = max(HOLD[0], 1 / fps), max(HOLD[1], 1 / fps)
    film = _mp4(frames, seconds, float(fps)) if kind == "mp4" else _encode(frames, seconds, kind)
    with atomic_write(path) as file:
        file.write(film)
    return Path(path)


def check_film(path: str | os.PathLike[str]) -> str:
    """Returns the kind of film that a file name asks for, before the work of drawing one.

    Raises `OptionError` for another suffix, `OutputFileError` when this machine cannot write that kind.
    """
    kind = Path(path).suffix.lower().removeprefix(".")
    if kind not in FILMS:
        raise OptionError(f"cannot tell the format of {os.fspath(path)}: name it .gif, .webp or .mp4")
    if kind == "mp4":
        _ffmpeg()
    return kind


def _pictures(result: "Transfer", look: dict[str, Any]) -> Iterator[Image.Image]:
    for step in result.snapshots:
        figure = draw_frame(result, step, **look)
        figure.canvas.draw()
        drawn: Any = figure.canvas
        yield Image.fromarray(np.asarray(drawn.buffer_rgba())[..., :3])


def _smaller(picture: Image.Image, width: int) -> Image.Image:
    height = round(picture.height * width / picture.width)
    # H.264 halves the colours' resolution, so both sides must be even.
    return picture.resize((width - width % 2, height - height % 2), Image.Resampling.LANCZOS)


def _encode(frames: Sequence[Image.Image], seconds: Sequence[float], kind: str) -> bytes:
    options: dict[str, Any] = {"quality": 85, "method": 4} if kind == "webp" else {"optimize": False, "disposal": 1}
    if kind == "gif":
        frames = _with_one_palette(frames)
    buffer = io.BytesIO()
    milliseconds = [round(1000 * time) for time in seconds]
    frames[0].save(
        buffer, format=kind, save_all=True, append_images=frames[1:], duration=milliseconds, loop=0, **options
    )
    return buffer.getvalue()


def _with_one_palette(frames: Sequence[Image.Image]) -> list[Image.Image]:
    """256 colours for the whole film: with a palette for each frame, what stands still would flicker."""
    some = [frames[place] for place in np.linspace(0, len(frames) - 1, 6).round().astype(int)]
    sheet: UInt8[np.ndarray, "height width 3"] = np.concatenate([np.asarray(frame)[::2, ::2] for frame in some])
    # k-means, because a median cut alone gives the greys of the photograph most of the colours, and red too few.
    scale = np.rint(255 * colour(np.linspace(-1, 1, SCALE))).astype(np.uint8)
    palette = Image.fromarray(sheet).quantize(256 - SCALE, Image.Quantize.MEDIANCUT, kmeans=3, dither=Image.Dither.NONE)
    found = np.array(palette.getpalette(), dtype=np.uint8).reshape(-1, 3)[: 256 - SCALE]
    colours = np.concatenate([found, scale])  # the map's own scale is there whole: its bar must show no steps
    white = int(colours.sum(axis=1, dtype=int).argmax())
    colours[white] = 255  # zero is white, and so is the paper
    palette.putpalette(colours.tobytes())
    return [_of_palette(frame, palette, white) for frame in frames]


def _of_palette(frame: Image.Image, palette: Image.Image, white: int) -> Image.Image:
    indices = np.array(frame.quantize(palette=palette, dither=Image.Dither.NONE))
    # Pillow finds the nearest colour of every fourth shade only, and so takes the nearest of 252 for white's.
    indices[(np.asarray(frame) == 255).all(axis=-1)] = white
    picture = Image.fromarray(indices)
    picture.putpalette(palette.getpalette() or [])
    return picture


def _mp4(frames: Sequence[Image.Image], seconds: Sequence[float], fps: float) -> bytes:
    width, height = frames[0].size
    given = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", f"{fps:g}", "-i", "-"]
    wanted = ["-c:v", "libx264", "-pix_fmt", "yuv420p", "-crf", "18", "-movflags", "+faststart"]
    shown = b"".join(frame.tobytes() * max(1, round(time * fps)) for frame, time in zip(frames, seconds, strict=True))
    with tempfile.TemporaryDirectory() as folder:
        film = Path(folder, "film.mp4")
        command = [_ffmpeg(), "-y", "-loglevel", "error", *given, *wanted, str(film)]
        done = subprocess.run(command, input=shown, capture_output=True, check=False)
        if done.returncode or not film.exists():
            reason = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["no reason given"]
            raise OutputFileError(f"ffmpeg could not make the film ({reason[0]}); name it .gif or .webp instead")
        return film.read_bytes()


def _ffmpeg() -> str:
    """The program that writes MP4: the system's, or the one that the package imageio-ffmpeg brings."""
    found = shutil.which("ffmpeg")
    if found is not None:
        return found
    try:
        import imageio_ffmpeg  # pyright: ignore[reportMissingImports]

        return imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError) as error:
        raise OutputFileError(
            "an .mp4 needs ffmpeg, which is not installed: install it (or pip install imageio-ffmpeg), or name the "
            "film .gif or .webp"
        ) from error
