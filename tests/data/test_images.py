import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from histoloc.data.images import (
    check_image,
    image_size,
    read_image,
    read_map,
    read_mask,
    write_map,
    write_mask,
    write_picture,
)
from histoloc.errors import InputError

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (40, 50, 3), dtype=np.uint8)
GREY = RGB[..., 0]


def save(path: Path, pixels: np.ndarray, mode: str | None = None, **options) -> Path:
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(path, **options)
    return path


def save_png16(path: Path, pixels: np.ndarray) -> Path:
    """Pillow cannot write 16-bit colour."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width, _ = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    return path


@pytest.mark.parametrize("extension", ["png", "bmp", "tif"])
def test_lossless_images_come_back_as_they_were(tmp_path, extension):
    path = save(tmp_path / f"a.{extension}", RGB)
    image = read_image(path)
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, RGB)
    assert image.flags.writeable
    assert image_size(path) == check_image(path) == (50, 40)


def test_opaque_alpha_is_dropped_and_any_transparency_refused(tmp_path):
    rgba = np.dstack([RGB, np.full((40, 50), 255, np.uint8)])
    np.testing.assert_array_equal(read_image(save(tmp_path / "opaque.png", rgba)), RGB)
    rgba[3, 4, 3] = 254
    with pytest.raises(InputError, match="partly transparent"):
        read_image(save(tmp_path / "glass.png", rgba))
    white = np.full((40, 50, 3), 255, np.uint8)
    with pytest.raises(InputError, match="partly transparent"):
        read_image(save(tmp_path / "key.png", white, transparency=(255, 255, 255)))


def test_orientation_of_a_camera_is_applied_to_pixels_and_size(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    flat = np.zeros((40, 64, 3), np.uint8)
    flat[:, :32] = 200
    path = save(tmp_path / "a.jpg", flat, exif=exif, quality=95)
    image = read_image(path)
    assert image.shape == (64, 40, 3)
    assert image[:30].min() > 150
    assert image[34:].max() < 50
    assert image_size(path) == check_image(path) == (40, 64)
    tiff = tmp_path / "a.tif"
    Image.fromarray(flat).save(tiff, tiffinfo={274: 6})
    assert image_size(tiff) == (40, 64)
    assert read_image(tiff).shape == (64, 40, 3)


@pytest.fixture(scope="module")
def bad_images(tmp_path_factory) -> dict[str, tuple[Path, str]]:
    folder = tmp_path_factory.mktemp("bad")
    buffer = io.BytesIO()
    Image.fromarray(RGB).save(buffer, "PNG")
    truncated = folder / "truncated.png"
    truncated.write_bytes(buffer.getvalue()[:2000])
    text = folder / "text.png"
    text.write_text("no image")
    empty = folder / "empty.jpg"
    empty.touch()
    pages = folder / "pages.tif"
    Image.fromarray(RGB).save(pages, save_all=True, append_images=[Image.fromarray(RGB)])
    deep_tiff = folder / "deep.tif"
    tifffile.imwrite(deep_tiff, RGB.astype(np.uint16) * 257, photometric="rgb")
    deep_grey = folder / "deep_grey.png"
    Image.fromarray(GREY.astype(np.uint16)).save(deep_grey)
    floating = folder / "float.tif"
    tifffile.imwrite(floating, GREY.astype(np.float32))
    return {
        "missing": (folder / "missing.png", "no such file"),
        "folder": (folder, "no such file"),
        "truncated": (truncated, "truncated or damaged"),
        "text": (text, "no readable image"),
        "empty": (empty, "no readable image"),
        "pages": (pages, "holds several pages"),
        "deep png": (save_png16(folder / "deep.png", RGB.astype(np.uint16) * 257), "16-bit"),
        "deep tiff": (deep_tiff, "16-bit"),
        "deep grey": (deep_grey, "16-bit"),
        "float": (floating, "floating-point"),
        "cmyk": (save(folder / "cmyk.jpg", RGB, "CMYK"), "CMYK"),
        "palette": (save(folder / "palette.png", RGB, "P"), "palette"),
        "grey": (save(folder / "grey.png", GREY), "grey-scale"),
        "1-bit": (save(folder / "bit.png", GREY, "1"), "grey-scale"),
        "1 pixel": (save(folder / "one.png", RGB[:1, :1]), "1x1 px; images need at least 32"),
        "narrow": (save(folder / "narrow.png", RGB[:, :31]), "31x40 px"),
    }


BAD = (
    "missing", "folder", "truncated", "text", "empty", "pages", "deep png", "deep tiff", "deep grey", "float",
    "cmyk", "palette", "grey", "1-bit", "1 pixel", "narrow",
)  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_bad_images_are_refused_in_one_sentence_that_names_the_file(bad_images, kind):
    path, message = bad_images[kind]
    with pytest.raises(InputError, match=message) as caught:
        read_image(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    if kind != "truncated":  # which only the pixels show
        with pytest.raises(InputError, match=message):
            check_image(path)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("extension", ["png", "jpg", "bmp", "tif"])
def test_damage_anywhere_never_escapes_as_another_exception(tmp_path, extension):
    whole = save(tmp_path / f"whole.{extension}", RGB).read_bytes()
    rng = np.random.default_rng(1)
    path = tmp_path / f"damaged.{extension}"
    refused = 0
    for _ in range(100):
        damaged = bytearray(whole)
        for _ in range(4):
            damaged[rng.integers(min(len(whole), 250))] = rng.integers(256)
        path.write_bytes(damaged[: rng.integers(len(whole))])
        for read in (read_image, read_mask, image_size):
            try:
                read(path)
            except InputError:
                refused += 1
    assert refused > 100


def test_every_kind_of_mask_gives_its_non_zero_pixels(tmp_path):
    ids = np.zeros((40, 50), np.uint8)
    ids[5:9, 7:20] = 1
    ids[20:30, 7:20] = 7
    expected = ids > 0
    palette = Image.fromarray(ids, mode="L").convert("P")
    palette.putpalette([0, 0, 0] * 256)  # all colours black: the indices count, not the colours
    palette.save(tmp_path / "palette.png")
    tifffile.imwrite(tmp_path / "ids32.tif", ids.astype(np.int32) * 70_000)
    masks = [
        save(tmp_path / "ids.bmp", ids),
        save(tmp_path / "ids16.png", ids.astype(np.uint16) * 300),
        save(tmp_path / "bit.png", expected),
        save(tmp_path / "equal.png", np.dstack([ids] * 3)),
        tmp_path / "palette.png",
        tmp_path / "ids32.tif",
    ]
    for path in masks:
        mask = read_mask(path)
        assert mask.dtype == np.bool_, path.name
        np.testing.assert_array_equal(mask, expected, err_msg=path.name)


def test_what_cannot_be_a_mask_is_refused(tmp_path):
    with pytest.raises(InputError, match="coloured picture"):
        read_mask(save(tmp_path / "colour.png", RGB))
    with pytest.raises(InputError, match="colour mode RGB"):  # Pillow would make 0 of the id 5
        read_mask(save_png16(tmp_path / "deep.png", np.full((40, 50, 3), 5)))
    edges = np.zeros((40, 50), np.uint8)
    edges[11:30, 13:31] = 255
    with pytest.raises(InputError, match="lossy"):
        read_mask(save(tmp_path / "mask.jpg", edges))
    np.testing.assert_array_equal(read_mask(save(tmp_path / "all.jpg", edges * 0)), edges * 0 > 0)
    with pytest.raises(InputError, match="no such file"):
        read_mask(tmp_path / "none.png")


def test_maps_are_scaled_by_their_type(tmp_path):
    eight = np.array([[0, 51], [102, 255]], np.uint8)
    expected = np.array([[0, 0.2], [0.4, 1]], np.float32)
    sixteen = eight.astype(np.uint16) * 257
    save(tmp_path / "8.png", eight)
    save(tmp_path / "16.png", sixteen)
    save(tmp_path / "lzw.tif", sixteen, compression="tiff_lzw")
    tifffile.imwrite(tmp_path / "8.tif", eight)
    tifffile.imwrite(tmp_path / "16.tif", sixteen)
    for dtype in (np.float16, np.float32, np.float64):
        tifffile.imwrite(tmp_path / f"{np.dtype(dtype).name}.tif", expected.astype(dtype))
        np.save(tmp_path / f"{np.dtype(dtype).name}.npy", expected.astype(dtype))
    paths = sorted(tmp_path.iterdir())
    assert len(paths) == 11
    for path in paths:
        roi = read_map(path)
        assert roi.dtype == np.float32
        np.testing.assert_allclose(roi, expected, atol=1e-3 if "float16" in path.name else 1e-7, err_msg=path.name)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.array([[0.0, np.nan]]), "NaN"),
        (np.array([[0.0, np.inf]]), "NaN or infinite"),
        (np.array([[0.0, 1.001]]), "from 0 to 1.001"),
        (np.array([[-0.5, 1.0]]), "from -0.5 to 1"),
        (np.zeros((2, 4, 4)), "shape \\(2, 4, 4\\)"),
        (np.zeros(4), "shape \\(4,\\)"),
        (np.zeros((0, 4)), "shape"),
        (np.zeros((4, 4), complex), "real numbers"),
        (np.array([[{}]]), "cannot be read"),
    ],
)
def test_bad_arrays_are_refused(tmp_path, values, message):
    path = tmp_path / "map.npy"
    np.save(path, values)
    with pytest.raises(InputError, match=message) as caught:
        read_map(path)
    assert str(path) in str(caught.value)


def test_bad_map_files_are_refused(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_map(tmp_path / "none.npy")
    with pytest.raises(InputError, match="has lossy compression"):
        read_map(save(tmp_path / "a.jpg", GREY))
    with pytest.raises(InputError, match="coloured picture"):
        read_map(save(tmp_path / "colour.png", RGB))
    tifffile.imwrite(tmp_path / "int32.tif", np.full((4, 4), 255, np.int32))
    with pytest.raises(InputError, match="from 255 to 255; scale"):
        read_map(tmp_path / "int32.tif")
    (tmp_path / "cut.npy").write_bytes(b"\x93NUMPY\x01")
    with pytest.raises(InputError, match="cannot be read"):
        read_map(tmp_path / "cut.npy")
    (tmp_path / "cut.tif").write_bytes(b"II*\0\x08\0\0\0")
    with pytest.raises(InputError, match=r"cut\.tif"):
        read_map(tmp_path / "cut.tif")


@given(arrays(np.float32, (5, 7), elements=st.floats(0, 1, width=32)))
def test_written_maps_come_back_within_half_a_grey_value(tmp_path_factory, roi):
    path = tmp_path_factory.mktemp("map") / "deeper" / "map.png"
    write_map(path, roi)
    assert np.abs(read_map(path) - roi).max() <= 0.5 / 255 + 1e-6
    assert [p.name for p in path.parent.iterdir()] == ["map.png"]


def test_written_masks_are_0_and_255(tmp_path):
    mask = GREY > 128
    write_mask(tmp_path / "mask.png", mask)
    with Image.open(tmp_path / "mask.png") as image:
        np.testing.assert_array_equal(np.asarray(image), np.where(mask, 255, 0))
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.png"), mask)


def test_writing_refuses_what_is_no_map_or_mask(tmp_path):
    for bad in (np.array([[np.nan]]), np.array([[1.5]]), np.zeros((2, 2, 2))):
        with pytest.raises(ValueError, match="ROI map"):
            write_map(tmp_path / "map.png", bad)
    with pytest.raises(ValueError, match="array of bool"):
        write_mask(tmp_path / "mask.png", np.zeros((2, 2)))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("pixels", [RGB, GREY, GREY.astype(np.uint16) * 257])
def test_pictures_are_png_unless_named_jpeg(tmp_path, pixels):
    for level in (1, 6):
        write_picture(tmp_path / "deeper" / "a.png", pixels, compress_level=level)
        with Image.open(tmp_path / "deeper" / "a.png") as image:
            assert image.format == "PNG"
            np.testing.assert_array_equal(np.asarray(image), pixels)
    if pixels.dtype == np.uint8:
        smooth = np.full_like(pixels, 128)
        smooth[8:24] = 200
        write_picture(tmp_path / "deeper" / "a.jpg", smooth)
        with Image.open(tmp_path / "deeper" / "a.jpg") as image:
            assert image.format == "JPEG"
            assert np.abs(np.asarray(image).astype(int) - smooth).max() <= 6
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        write_picture(tmp_path / "file" / "a.png", pixels)
