"""Every kind of picture file that people have; all files are made here."""

import io
import logging
import os
import socket
import struct
import sys
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitrail.errors import (
    ImageError,
    ImageTooLargeError,
    NotAnImageError,
    TruncatedImageError,
    UnsupportedImageError,
)
from vitrail.images import read_image

RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)


def noise(mode: str = "RGB", size: tuple[int, int] = (64, 48)) -> Image.Image:
    """A picture that does not compress, so that a file cut in the middle lacks pixels."""
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def encoded(image: Image.Image, format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def png(width: int, height: int, *, bits: int = 8, kind: int = 0, body: bytes = b"") -> bytes:
    """A PNG with any header, whatever its body holds."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(body)) + chunk(b"IEND", b"")


def unchecked(source) -> Image.Image:
    """read_image without the run-time type check of the tests, as users have it."""
    return getattr(read_image, "__wrapped__", read_image)(source)


def plain(image: Image.Image) -> Image.Image:
    """Checked to be what read_image promises."""
    assert image.mode == "RGB"
    assert image.getbands() == ("R", "G", "B")
    return image


# --- where a picture comes from ---------------------------------------------------------------------------------------


def test_a_path_a_string_bytes_and_an_open_file_are_the_same_picture(tmp_path: Path):
    path = tmp_path / "zoo.png"
    path.write_bytes(encoded(noise(), "PNG"))
    pictures = [read_image(path), read_image(str(path)), read_image(path.read_bytes())]
    with path.open("rb") as file:
        pictures.append(read_image(file))
    for picture in pictures:
        np.testing.assert_array_equal(np.asarray(plain(picture)), np.asarray(noise()))


def test_a_pil_image_is_not_changed():
    given = noise("RGBA")
    before = given.tobytes()
    plain(read_image(given))
    assert given.mode == "RGBA"
    assert given.tobytes() == before


def test_the_result_shares_no_memory_with_what_was_given():
    given = noise()
    read_image(given).putpixel((0, 0), RED)
    assert given.getpixel((0, 0)) == noise().getpixel((0, 0))


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 3), (5, 7, 4)])
def test_arrays_of_bytes_are_pictures(shape: tuple[int, ...]):
    array = np.full(shape, 100, dtype=np.uint8)
    picture = plain(read_image(array))
    assert picture.size == (7, 5)
    expected = 100 if len(shape) == 2 or shape[2] == 3 else round(100 * 100 / 255 + 255 * 155 / 255)
    assert abs(picture.getpixel((0, 0))[0] - expected) <= 1


def test_arrays_need_not_be_contiguous():
    array = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)
    np.testing.assert_array_equal(np.asarray(read_image(array[:, ::-1])), array[:, ::-1])


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.full((4, 4, 3), 1.5, dtype=np.float32), r"float32 \(4 x 4 x 3\).*0…255.*astype\(numpy.uint8\)"),
        (np.full((4, 4), -1, dtype=np.int64), "from -1 to -1"),
        (np.full((4, 4), np.nan), r"float64 \(4 x 4\)"),
        (np.zeros((4, 4), dtype=bool), r"bool \(4 x 4\)"),
        (np.zeros((3, 4, 5), dtype=np.uint8), r"3 x 4 x 5.*transpose\(1, 2, 0\)"),
        (np.zeros((2, 4, 5, 3), dtype=np.uint8), r"2 x 4 x 5 x 3.*as a list"),
        (np.zeros((4, 5, 2), dtype=np.uint8), r"4 x 5 x 2 is not height x width"),
        (np.zeros((0, 5, 3), dtype=np.uint8), r"0 x 5 x 3 has no pixels"),
        (np.zeros((), dtype=np.uint8), r"array of \(\)"),
    ],
)
def test_other_arrays_are_refused_with_the_remedy(array: np.ndarray, message: str):
    with pytest.raises(ImageError, match=message):
        read_image(array)


@pytest.mark.parametrize("thing", [None, 5, [1, 2], {"a": 1}])
def test_other_things_are_refused_by_type(thing):
    with pytest.raises(ImageError, match=type(thing).__name__):
        unchecked(thing)


# --- what is no picture -----------------------------------------------------------------------------------------------


def test_a_missing_file_a_folder_and_an_address_are_told_apart(tmp_path: Path):
    with pytest.raises(NotAnImageError, match=r"nothing\.png does not exist"):
        read_image(tmp_path / "nothing.png")
    with pytest.raises(NotAnImageError, match="is a folder"):
        read_image(tmp_path)
    with pytest.raises(NotAnImageError, match="download it"):
        read_image("https://example.org/zoo.jpg")
    with pytest.raises(NotAnImageError, match="not a regular file"):
        read_image("/dev/null")


def test_a_file_that_may_not_be_read_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "secret.png"
    path.write_bytes(encoded(noise(), "PNG"))

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(ImageError, match=r"secret\.png could not be opened: Permission denied"):
        read_image(path)


@pytest.mark.parametrize("content", [b"", b"hello, this is text\n", b"\x00" * 100, b"%PDF-1.7\n", b"<svg></svg>"])
def test_a_file_that_is_no_picture_whatever_its_name(tmp_path: Path, content: bytes):
    path = tmp_path / "text.png"
    path.write_bytes(content)
    with pytest.raises(NotAnImageError, match="text.png is (no image|empty)"):
        read_image(path)


def test_a_file_opened_as_text_is_refused(tmp_path: Path):
    (tmp_path / "a.txt").write_text("hello")
    with (tmp_path / "a.txt").open() as file, pytest.raises(ImageError, match="binary"):
        unchecked(file)


# --- what is cut short or damaged -------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM"])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_a_truncated_file_is_never_a_picture(tmp_path: Path, format: str, share: float):
    whole = encoded(noise(), format)
    path = tmp_path / f"cut.{format.lower()}"
    path.write_bytes(whole[: int(len(whole) * share)])
    plain(read_image(whole))
    with pytest.raises(TruncatedImageError, match=r"cut\.\w+ (ends before|begins as a)"):
        read_image(path)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "TIFF"])
def test_a_file_cut_within_its_header_is_truncated(format: str):
    with pytest.raises(TruncatedImageError, match=rf"begins as a {format} file|ends before"):
        read_image(encoded(noise(), format)[:12])


def test_pixels_that_do_not_decompress_are_damage():
    content = bytearray(encoded(noise(), "PNG"))
    start = content.index(b"IDAT") + 4
    content[start + 100 : start + 200] = bytes(100)
    with pytest.raises(TruncatedImageError, match="damaged"):
        read_image(bytes(content))


# --- what is whole, and not for us ------------------------------------------------------------------------------------


def float_tiff() -> bytes:
    """One pixel of three float32 samples, which Pillow has no mode for."""
    entries = [(256, 3, 1, 1), (257, 3, 1, 1), (258, 3, 1, 32), (259, 3, 1, 1), (262, 3, 1, 2)]
    entries += [(273, 4, 1, 200), (277, 3, 1, 3), (278, 3, 1, 1), (279, 4, 1, 12), (339, 3, 1, 3)]
    body = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    header = b"II*\x00" + struct.pack("<IH", 8, len(entries)) + body + bytes(4)
    return header.ljust(200, b"\0") + struct.pack("<3f", 0.1, 0.5, 1.0)


def test_a_tiff_of_floating_point_colours_is_not_damaged():
    with pytest.raises(UnsupportedImageError, match=r"TIFF file of 3 floating point samples of 32 bits.*convert it"):
        read_image(float_tiff())


def test_a_bmp_of_an_unknown_depth_is_not_damaged():
    content = bytearray(encoded(noise(), "BMP"))
    content[28] = 5
    with pytest.raises(UnsupportedImageError, match="is not supported: a BMP file"):
        read_image(bytes(content))


def test_eps_without_ghostscript_says_what_is_missing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", False)
    content = encoded(noise(), "EPS")
    with pytest.raises(UnsupportedImageError, match="Ghostscript.*install Ghostscript, or convert it to PNG"):
        read_image(content)


def test_the_raw_file_of_a_camera_is_not_its_preview():
    buffer = io.BytesIO()
    noise().save(buffer, "TIFF", tiffinfo={254: 1})
    with pytest.raises(UnsupportedImageError, match="small preview"):
        read_image(buffer.getvalue())


HEIC = b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic"


def test_heic_without_its_reader_says_what_reads_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(UnsupportedImageError, match="HEIC picture; to read it: pip install pillow-heif"):
        read_image(HEIC)


def test_heic_with_its_reader_is_a_picture():
    heif = pytest.importorskip("pillow_heif")
    buffer = io.BytesIO()
    heif.from_pillow(Image.new("RGB", (64, 48), RED)).save(buffer, quality=90)
    assert close(read_image(buffer.getvalue()), RED, within=6)


@pytest.mark.parametrize("kind", ["pipe", "socket", "folder.jpg", "nul", "long", "locked"])
def test_what_no_picture_can_be_is_refused_without_waiting(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path: Path | str = tmp_path / kind
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        monkeypatch.chdir(tmp_path)  # whose whole path may be too long for a socket
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind("socket")
    elif kind == "folder.jpg":
        (tmp_path / kind).mkdir()
    elif kind == "nul":
        path = "a\0b.png"
    elif kind == "long":
        path = "a" * 5000
    else:

        def locked(self: Path) -> bool:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(Path, "exists", locked)
    message = "not a regular file|is a folder|NUL character|File name too long|Permission denied"
    with pytest.raises(ImageError, match=message):
        read_image(path)


# --- what is too large ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(20_000, 10_000), (60_000, 60_000), (100_000_000, 2)])
def test_a_bomb_is_refused_before_it_is_decoded(size: tuple[int, int]):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ImageTooLargeError, match=rf"{size[0] * size[1]}.*limit of 178956970"):
            read_image(png(*size))


def test_the_limit_can_be_lowered_and_names_both_numbers():
    with pytest.raises(ImageTooLargeError, match=r"64 x 48 = 3072 pixels.*limit of 3000.*max_pixels"):
        read_image(noise(), max_pixels=3000)
    assert read_image(noise(), max_pixels=3072).size == (64, 48)


def test_a_large_picture_below_the_limit_is_read_without_a_warning():
    side = 9_500  # 90 million pixels: where Pillow warns
    content = encoded(Image.new("1", (side, side)), "PNG")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ImageTooLargeError, match=str(side * side)):
            read_image(content, max_pixels=side * side - 1)


# --- colours ----------------------------------------------------------------------------------------------------------


def close(picture: Image.Image, colour: tuple[int, int, int], at: tuple[int, int] = (1, 1), within: int = 3) -> bool:
    return all(abs(a - b) <= within for a, b in zip(plain(picture).getpixel(at), colour, strict=True))


@pytest.mark.parametrize("format", ["JPEG", "TIFF"])
def test_cmyk_is_not_negative(format: str):
    # Pillow writes JPEG as Adobe does, inverted and with Adobe's marker; TIFF is not inverted.
    content = encoded(Image.new("RGB", (16, 16), RED).convert("CMYK"), format)
    assert (b"Adobe" in content) == (format == "JPEG")
    assert close(read_image(content), RED, within=6)


def test_a_palette_with_transparency_lies_over_white():
    image = Image.new("P", (4, 4), 0)
    image.putpalette([*RED, *BLUE])
    image.putpixel((1, 1), 1)
    picture = read_image(encoded(image, "PNG", transparency=0))
    assert close(picture, WHITE, at=(0, 0))
    assert close(picture, BLUE)


def test_a_palette_with_several_transparencies_mixes_with_white():
    image = Image.new("P", (4, 4), 0)
    image.putpalette([*RED, *BLUE])
    picture = read_image(encoded(image, "PNG", transparency=bytes([128, 255])))
    assert close(picture, (255, 127, 127))


def test_a_plain_palette_keeps_its_colours():
    image = Image.new("P", (4, 4), 1)
    image.putpalette([*RED, *BLUE])
    assert close(read_image(encoded(image, "GIF")), BLUE)


@pytest.mark.parametrize(("mode", "colour"), [("RGBA", (255, 0, 0, 0)), ("LA", (0, 0)), ("PA", (0, 0))])
def test_what_is_transparent_is_white(mode: str, colour: tuple[int, ...]):
    assert close(read_image(Image.new(mode, (4, 4), colour)), WHITE)


def test_a_transparent_colour_of_rgb_and_grey_is_white():
    assert close(read_image(encoded(Image.new("RGB", (4, 4), RED), "PNG", transparency=RED)), WHITE)
    assert close(read_image(encoded(Image.new("L", (4, 4), 7), "PNG", transparency=7)), WHITE)


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_and_not_clipped(format: str):
    levels = np.array([[0, 257, 1000, 32768, 65535]], dtype=np.uint16)
    picture = read_image(encoded(Image.fromarray(levels), format))
    assert np.asarray(picture)[0, :, 0].tolist() == [0, 1, 4, 128, 255]


def test_16_bit_grey_from_a_big_endian_file():
    body = b"".join(b"\x00" + struct.pack(">2H", 0x1234, 0xFFFF) for _ in range(2))
    picture = read_image(png(2, 2, bits=16, body=body))
    assert np.asarray(picture)[0, :, 0].tolist() == [round(0x1234 / 257), 255]


def test_16_bit_colour_keeps_its_colours():
    body = b"".join(b"\x00" + struct.pack(">6H", 0xFFFF, 0, 0x8000, 0, 0, 0xFFFF) for _ in range(2))
    picture = read_image(png(2, 2, bits=16, kind=2, body=body))
    assert close(picture, (255, 0, 128), at=(0, 0))
    assert close(picture, BLUE, at=(1, 0))


@pytest.mark.parametrize(("top", "values"), [(1, [0, 0.5, 1]), (255, [0, 127.5, 255]), (65535, [0, 32768, 65535])])
def test_floating_point_grey_counts_to_what_holds_it(top: float, values: list[float]):
    picture = read_image(encoded(Image.fromarray(np.array([values], dtype=np.float32)), "TIFF"))
    assert np.asarray(picture)[0, :, 1].tolist() == [0, 128, 255]


@pytest.mark.parametrize(("value", "message"), [(-3.0, "from -3 to 0"), (1e6, r"from 0 to 1e\+06"), (np.nan, "NaN")])
def test_grey_without_known_black_and_white_is_refused(value: float, message: str):
    image = Image.fromarray(np.array([[0, value]], dtype=np.float32))
    with pytest.raises(ImageError, match=message):
        read_image(image)


@pytest.mark.parametrize(("top", "values"), [(255, [0, 100, 200]), (4095, [0, 2047, 4000])])
@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_deep_grey_is_scaled_by_the_range_that_it_shows(top: int, values: list[int], dtype: type):
    """12 bits in a PNG of 16, and an int32 TIFF of 0 to 200, were nearly black."""
    notes: list[str] = []
    content = encoded(Image.fromarray(np.array([values], dtype=dtype)), "PNG" if dtype is np.uint16 else "TIFF")
    picture = read_image(content, notes=notes)
    assert np.asarray(picture)[0, :, 0].tolist() == [round(value * 255 / top) for value in values]
    assert notes == [f"the picture has values up to {values[-1]}, so {top} is taken for white"]


def test_a_float_tiff_of_12_bits_is_scaled_and_what_fills_16_bits_is_not_noted():
    notes: list[str] = []
    read_image(encoded(Image.fromarray(np.array([[0, 4000.0]], dtype=np.float32)), "TIFF"), notes=notes)
    assert notes == ["the picture has values up to 4000, so 4095 is taken for white"]
    read_image(encoded(Image.fromarray(np.array([[0, 60000]], dtype=np.uint16)), "PNG"), notes=notes)
    read_image(np.array([[0, 0.5, 1]]), notes=notes)
    assert len(notes) == 1


@pytest.mark.parametrize(("bits", "kind"), [("6H", 2), ("8H", 6)])
def test_colours_of_12_bits_in_a_file_of_16_are_refused(bits: str, kind: int):
    levels = [4000, 0, 1000, 65535][: kind // 4 + 3]  # the last is how opaque it is
    body = b"".join(b"\x00" + struct.pack(f">{bits}", *levels, *levels) for _ in range(2))
    with pytest.raises(UnsupportedImageError, match="12 bits or fewer in a file of 16.*convert it to PNG"):
        read_image(png(2, 2, bits=16, kind=kind, body=body))


@pytest.mark.parametrize("dtype", [np.int8, np.uint16, np.int32, np.int64, np.uint64])
def test_arrays_of_other_whole_numbers_are_pictures(dtype: type):
    array = np.array([[0, 60, 120]], dtype=dtype).repeat(3, axis=0)
    assert np.asarray(read_image(array))[0, :, 0].tolist() == [0, 60, 120]
    colours = np.stack([array] * 3, axis=-1)
    np.testing.assert_array_equal(np.asarray(read_image(colours)), colours)


def test_fractions_and_an_axis_of_one_are_pictures():
    array = np.array([[0, 0.5, 1, 0, 1]], dtype=np.float32).repeat(4, axis=0)
    for one in (array, array[None], array[..., None]):
        assert np.asarray(read_image(one))[0, :, 0].tolist() == [0, 128, 255, 0, 255]


@pytest.mark.parametrize(("mode", "white"), [("1", 1), ("L", 255), ("YCbCr", (255, 128, 128)), ("HSV", (0, 0, 255))])
def test_other_modes_become_rgb(mode: str, white):
    assert close(read_image(Image.new(mode, (4, 4), white)), WHITE)


def test_a_mode_without_way_to_rgb_is_refused():
    with pytest.raises(ImageError, match="pixel format La, which Pillow cannot make RGB"):
        read_image(Image.new("La", (4, 4)))


# --- orientation and frames -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_stand_upright_whatever_the_camera_says(orientation: int):
    upright = Image.new("RGB", (32, 16), WHITE)
    upright.paste(RED, (0, 0, 8, 8))
    operations = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(operations[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = read_image(encoded(stored, "JPEG", exif=exif, quality=95))
    assert picture.size == (32, 16)
    assert close(picture, RED, at=(3, 3), within=12)
    assert close(picture, WHITE, at=(28, 12), within=12)


def test_a_damaged_exif_block_does_not_stop_the_picture(caplog: pytest.LogCaptureFixture, monkeypatch):
    def broken(image):
        raise struct.error("unpack requires a buffer of 4 bytes")

    monkeypatch.setattr("PIL.ImageOps.exif_transpose", broken)
    with caplog.at_level(logging.WARNING, logger="vitrail"):
        assert read_image(encoded(noise(), "JPEG")).size == (64, 48)
    assert "orientation could not be read" in caplog.text


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_of_an_animation_the_first_frame_is_taken_and_the_log_says_so(format: str, tmp_path: Path, caplog):
    path = tmp_path / f"film.{format.lower()}"
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, BLUE, WHITE)]
    frames[0].save(
        path, format, save_all=True, append_images=frames[1:], **({"lossless": True} if format == "WEBP" else {})
    )
    with caplog.at_level(logging.WARNING, logger="vitrail"):
        assert close(read_image(path), RED)
    assert caplog.messages == [f"{path} holds 3 frames; the first is used"]


def test_a_still_picture_is_read_in_silence(caplog: pytest.LogCaptureFixture):
    read_image(encoded(noise(), "GIF"))
    assert caplog.messages == []


def test_photographs_of_phones_with_extras_are_still_pictures(caplog: pytest.LogCaptureFixture):
    content = encoded(Image.new("RGB", (8, 8), RED), "MPO", save_all=True, append_images=[Image.new("RGB", (4, 4))])
    assert close(read_image(content), RED)
    assert caplog.messages == []
