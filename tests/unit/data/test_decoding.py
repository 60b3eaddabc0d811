"""Every kind of numbers in an image file becomes the right 8 bits."""

import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from tests.mistakes import refused
from utils.data.decoding import open_rgb, to_rgb

GREY = np.arange(256, dtype=np.uint8).reshape(16, 16)  # every level
COLOURS = np.stack([GREY, GREY.T, 255 - GREY], axis=2)


def read(path):
    return np.asarray(open_rgb(path))


def grey(levels):
    return np.repeat(np.asarray(levels)[:, :, None], 3, axis=2)


def saved(tmp_path, array, name, **options):
    Image.fromarray(array).save(tmp_path / name, **options)
    return tmp_path / name


WIDE = GREY.astype(np.uint16) * 257


@pytest.mark.parametrize("name", ["x.png", "x.tif", "x.pgm", "x.jp2"])
@pytest.mark.parametrize("factor", [256, 257])
def test_16_bits_give_their_upper_8(tmp_path, name, factor):
    values = GREY.astype(np.uint16) * factor
    assert np.array_equal(read(saved(tmp_path, values, name)), grey(GREY))


@pytest.mark.parametrize("order", ["<", ">"])
def test_16_bits_of_either_byte_order(tmp_path, order):
    mode, raw = ("I;16", "I;16") if order == "<" else ("I;16B", "I;16B")
    image = Image.frombytes(mode, (16, 16), WIDE.astype(f"{order}u2").tobytes(), "raw", raw)
    assert np.array_equal(np.asarray(to_rgb(image)), grey(GREY))
    image.save(tmp_path / "x.tif")
    assert np.array_equal(read(tmp_path / "x.tif"), grey(GREY))


def test_a_dark_image_of_16_bits_stays_dark(tmp_path):
    for name in ("x.png", "x.pgm", "x.tif"):
        assert read(saved(tmp_path, GREY.astype(np.uint16), name)).max() == 0


def test_12_bits_of_a_tiff_and_white_that_is_zero(tmp_path):
    twelve = np.stack([GREY.astype(np.uint16) << 4] * 2, axis=2)
    pairs = twelve.reshape(-1, 2)
    packed = np.stack(
        [pairs[:, 0] >> 4, (pairs[:, 0] & 15) << 4 | pairs[:, 1] >> 8, pairs[:, 1] & 255], axis=1
    )
    write_tiff(
        tmp_path / "12.tif", packed.astype(np.uint8).tobytes(), width=32, bits=12, photometric=1
    )
    assert np.array_equal(read(tmp_path / "12.tif"), grey(np.repeat(GREY, 2, axis=1)))
    write_tiff(
        tmp_path / "white.tif", WIDE.astype("<u2").tobytes(), width=16, bits=16, photometric=0
    )
    assert np.array_equal(read(tmp_path / "white.tif"), grey(255 - GREY))


def write_tiff(path, data, *, width, bits, photometric):
    """Write 16 rows of grey, uncompressed."""
    tags = {
        256: (4, width),
        257: (4, 16),
        258: (3, bits),
        259: (3, 1),
        262: (3, photometric),
        273: (4, 200),
        277: (3, 1),
        278: (4, 16),
        279: (4, len(data)),
    }
    entries = b"".join(
        number.to_bytes(2, "little")
        + kind.to_bytes(2, "little")
        + (1).to_bytes(4, "little")
        + value.to_bytes(4, "little")
        for number, (kind, value) in tags.items()
    )
    header = (
        b"II*\0" + (8).to_bytes(4, "little") + len(tags).to_bytes(2, "little") + entries + bytes(4)
    )
    path.write_bytes(header.ljust(200, b"\0") + data)


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_values_without_a_range_are_of_8_or_16_bits_by_the_largest(tmp_path, dtype):
    assert np.array_equal(read(saved(tmp_path, GREY.astype(dtype), "8.tif")), grey(GREY))
    assert np.array_equal(read(saved(tmp_path, WIDE.astype(dtype), "16.tif")), grey(GREY))


def test_floats_up_to_1_are_shares_of_white(tmp_path):
    assert np.array_equal(read(saved(tmp_path, GREY.astype(np.float32) / 255, "1.tif")), grey(GREY))
    assert np.array_equal(
        read(saved(tmp_path, GREY.astype(np.float32) / 510, "half.tif")), grey(np.rint(GREY / 2))
    )
    # A resampling overshoots
    beyond = (GREY.astype(np.float32) / 255 * 1.001 - 0.0005).astype(np.float32)
    assert np.array_equal(read(saved(tmp_path, beyond, "beyond.tif")), grey(GREY))


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -1, 70000])
def test_values_that_cannot_be_scaled_are_refused(tmp_path, wrong):
    values = GREY.astype(np.float32)
    values[3, 4] = wrong
    with refused("/x.tif"):
        read(saved(tmp_path, values, "x.tif"))


def test_colours_of_16_bits_give_their_upper_8(tmp_path):
    """Pillow writes none; a PNG of filter 0 is easily written."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in COLOURS.astype(np.uint16) * 257)
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", 16, 16, 16, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    )
    whole = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
    (tmp_path / "x.png").write_bytes(b"\x89PNG\r\n\x1a\n" + whole)
    assert np.array_equal(read(tmp_path / "x.png"), COLOURS)


@pytest.mark.parametrize(
    ("mode", "name"),
    [
        ("1", "x.png"),
        ("L", "x.png"),
        ("LA", "x.png"),
        ("RGB", "x.png"),
        ("RGBA", "x.png"),
        ("P", "x.png"),
        ("CMYK", "x.tif"),
        ("YCbCr", "x.tif"),
        ("LAB", "x.tif"),
        ("RGBX", "x.tif"),
        ("RGB", "x.bmp"),
    ],
)
def test_kinds_of_8_bits_are_what_they_show(tmp_path, mode, name):
    source = Image.fromarray(COLOURS)
    if mode == "LAB":
        # Grey: L* = 50 is 119 of sRGB
        image = Image.frombytes("LAB", (16, 16), bytes([128, 0, 0]) * 256)
        image.save(tmp_path / name)
        assert np.abs(read(tmp_path / name).astype(int) - 119).max() <= 1
        return
    image = source.convert(mode)
    image.save(tmp_path / name)
    if mode in ("1", "L", "LA"):
        expected = grey(np.asarray(source.convert("1" if mode == "1" else "L").convert("L")))
    else:
        expected = COLOURS if mode != "P" else np.asarray(image.convert("RGB"))
    tolerance = {"YCbCr": 3}.get(mode, 0)
    assert np.abs(read(tmp_path / name).astype(int) - expected).max() <= tolerance


@pytest.mark.parametrize("mode", ["HSV", "PA", "La", "RGBa"])
def test_modes_that_no_file_here_has(mode):
    if mode == "HSV":
        image = Image.new("HSV", (2, 2), (0, 255, 200))
        assert np.asarray(to_rgb(image)).tolist() == [[[200, 0, 0]] * 2] * 2
        return
    colour = {"PA": None, "La": (90, 255), "RGBa": (90, 80, 70, 255)}[mode]
    image = (
        Image.new("RGB", (2, 2), (90, 90, 90)).convert("P").convert("PA") if mode == "PA" else None
    )
    image = image or Image.new(mode, (2, 2), colour)
    expected = (
        np.asarray(image.convert("RGBA").convert("RGB"))
        if mode == "PA"
        else [[[90, 80, 70]] * 2] * 2
    )
    expected = [[[90, 90, 90]] * 2] * 2 if mode == "La" else expected
    assert np.array_equal(np.asarray(to_rgb(image)), expected)


def test_transparent_pixels_of_a_palette_show_their_colour(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putdata([0, 1])
    image.save(tmp_path / "x.png", transparency=0)
    assert read(tmp_path / "x.png").tolist() == [[[10, 20, 30], [200, 100, 50]]]


def test_the_first_frame_is_taken(tmp_path):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ((250, 0, 0), (0, 0, 250))]
    frames[0].save(tmp_path / "x.gif", save_all=True, append_images=frames[1:])
    assert read(tmp_path / "x.gif")[0, 0].tolist() == [250, 0, 0]


def test_the_orientation_of_a_camera_is_not_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    Image.fromarray(COLOURS[:8]).save(tmp_path / "x.png", exif=exif)
    assert np.array_equal(read(tmp_path / "x.png"), COLOURS[:8])


def test_a_pipe_and_a_device_are_no_images(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    for name in ("pipe.png", "zero.png"):
        with refused(tmp_path / name):
            read(tmp_path / name)
