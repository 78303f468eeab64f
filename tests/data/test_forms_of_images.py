"""An image has the same pixels in every form, as image, as slide and in the report, or is refused in a sentence."""

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from forms import BACK, chunk, png, tissue, zeros
from histoloc.data import decoder
from histoloc.data.images import check_image, image_size, read_image, read_mask
from histoloc.errors import InputError
from histoloc.slides.reader import open_slide

RGB = tissue()
UPRIGHT = Image.fromarray(RGB)
ZERO, FULL = np.zeros(RGB.shape[:2], np.uint8), np.full(RGB.shape[:2], 255, np.uint8)
HALF = np.where(np.arange(RGB.shape[1]) < 32, FULL, ZERO)


def as_slide(path: Path) -> np.ndarray:
    with open_slide(path, mpp=1.0) as slide:
        return slide.read(0, 0, *slide.size, 1.0)


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def late_exif(path: Path, orientation: int) -> None:
    rows = np.asarray(UPRIGHT.transpose(BACK[orientation]))
    block = exif(orientation).tobytes().removeprefix(b"Exif\0\0")
    png(path, 8, 2, rows.reshape(len(rows), -1), after=(chunk(b"tEXt", b"a\0b"), chunk(b"eXIf", block)))


def xmp(path: Path, orientation: int) -> None:
    text = f'<x:xmpmeta><rdf:Description tiff:Orientation="{orientation}"/></x:xmpmeta>'
    data = b"XML:com.adobe.xmp\0\0\0\0\0" + text.encode()
    rows = np.asarray(UPRIGHT.transpose(BACK[orientation]))
    png(path, 8, 2, rows.reshape(len(rows), -1), chunk(b"iTXt", data))


def turned(suffix: str, **options: Any) -> Callable[[Path, int], None]:
    def write(path: Path, orientation: int) -> None:
        UPRIGHT.transpose(BACK[orientation]).save(path.with_suffix(suffix), exif=exif(orientation), **options)

    return write


def in_tiff(path: Path, orientation: int, **options: Any) -> None:
    pixels = np.asarray(UPRIGHT.transpose(BACK[orientation]))
    tifffile.imwrite(path, pixels, photometric="rgb", extratags=[(274, "H", 1, orientation, True)], **options)


TURNED: dict[str, Callable[[Path, int], object]] = {
    "a.jpg": turned(".jpg", quality=100, subsampling=0),
    "a.png": turned(".png"),
    "a.webp": turned(".webp", lossless=True),
    "late.png": late_exif,
    "xmp.png": xmp,
    "strips.tif": in_tiff,
    "tiles.tif": lambda path, orientation: in_tiff(path, orientation, tile=(16, 16)),
    "lzw.tif": lambda p, o: UPRIGHT.transpose(BACK[o]).save(p, compression="tiff_lzw", tiffinfo={274: o}),
}


@pytest.mark.parametrize("orientation", BACK)
@pytest.mark.parametrize("name", TURNED)
def test_orientation_is_applied_wherever_a_file_says_it(tmp_path, name, orientation):
    path = tmp_path / name
    TURNED[name](path, orientation)
    assert image_size(path) == check_image(path) == (64, 48)
    for read in (read_image, as_slide):
        difference = np.abs(read(path).astype(int) - RGB)
        assert difference.max() <= (8 if path.suffix == ".jpg" else 0)


def test_orientation_of_masks_is_applied(tmp_path):
    mask = RGB[..., 0] > 120
    for orientation, back in BACK.items():
        Image.fromarray(mask.astype(np.uint8)).transpose(back).save(tmp_path / "a.png", exif=exif(orientation))
        ids = np.asarray(Image.fromarray(mask.astype(np.uint8)).transpose(back)).astype(np.uint16) * 300
        tifffile.imwrite(tmp_path / "a.tif", ids, extratags=[(274, "H", 1, orientation, True)])
        for path in (tmp_path / "a.png", tmp_path / "a.tif"):
            np.testing.assert_array_equal(read_mask(path), mask)
            assert image_size(str(path)) == (64, 48)  # pyright: ignore[reportArgumentType]
        rgba = np.dstack([np.asarray(UPRIGHT.transpose(back)), np.full(ids.shape, 255, np.uint8)])
        rgb_tiff(tmp_path / "b.tif", rgba, extrasamples=["unassalpha"], extratags=[(274, "H", 1, orientation, True)])
        np.testing.assert_array_equal(read_image(tmp_path / "b.tif"), RGB)


def rgb_tiff(path: Path, pixels: np.ndarray, **options: Any) -> None:
    tifffile.imwrite(path, pixels, photometric="rgb", **options)


@pytest.mark.parametrize("tile", [None, (16, 16)])
@pytest.mark.parametrize(
    "samples", [["unspecified"], ["unspecified"] * 2, ["assocalpha"], ["unassalpha", "unspecified"]]
)
def test_further_samples_that_hide_nothing_are_dropped(tmp_path, samples, tile):
    layers = [FULL if "alpha" in sample else HALF for sample in samples]
    rgb_tiff(tmp_path / "a.tif", np.dstack([RGB, *layers]), extrasamples=samples, tile=tile)
    for read in (read_image, as_slide):
        np.testing.assert_array_equal(read(tmp_path / "a.tif"), RGB)


@pytest.mark.parametrize("tile", [None, (16, 16)])
@pytest.mark.parametrize("kind", ["assocalpha", "unassalpha"])
def test_transparency_is_white_on_slides_and_refused_in_images(tmp_path, kind, tile):
    stored = RGB * (HALF[..., None] > 0) if kind == "assocalpha" else RGB
    rgb_tiff(tmp_path / "a.tif", np.dstack([stored, HALF]), extrasamples=[kind], tile=tile)
    np.testing.assert_array_equal(as_slide(tmp_path / "a.tif"), np.where(HALF[..., None], RGB, 255))
    with pytest.raises(InputError, match="partly transparent"):
        read_image(tmp_path / "a.tif")


NOT_RGB: dict[str, Callable[[Path], object]] = {
    "ycbcr.tif": lambda path: UPRIGHT.convert("YCbCr").save(path),
    "lab.tif": lambda path: UPRIGHT.convert("LAB").save(path),
    "cmyk.tif": lambda path: UPRIGHT.convert("CMYK").save(path),
    "cmyk.jpg": lambda path: UPRIGHT.convert("CMYK").save(path),
    "palette.png": lambda path: UPRIGHT.quantize(64).save(path),
    "transparent palette.png": lambda path: UPRIGHT.quantize(64).save(path, transparency=0),
    "palette.gif": lambda path: UPRIGHT.save(path),
    "grey.tif": lambda path: tifffile.imwrite(path, RGB[..., 0], tile=(16, 16)),
    "inverted.tif": lambda path: tifffile.imwrite(path, RGB[..., 0], tile=(16, 16), photometric="miniswhite"),
    "16 bits.tif": lambda path: rgb_tiff(path, RGB.astype(np.uint16) * 257),
    "12 of 16 bits in tiles.tif": lambda path: rgb_tiff(path, RGB.astype(np.uint16) * 16, tile=(16, 16)),
    "16 bits.png": lambda path: png(path, 16, 2, RGB.astype(">u2").view(np.uint8).reshape(48, -1)),
    "floats.tif": lambda path: rgb_tiff(path, (RGB / 255).astype(np.float32)),
    "floats in tiles.tif": lambda path: rgb_tiff(path, (RGB / 255).astype(np.float32), tile=(16, 16)),
    "channels.ome.tif": lambda path: tifffile.imwrite(path, np.moveaxis(RGB, 2, 0), metadata={"axes": "CYX"}),
    "film.png": lambda path: UPRIGHT.save(path, save_all=True, append_images=[UPRIGHT.rotate(5)]),
    "film.webp": lambda path: UPRIGHT.save(path, save_all=True, append_images=[UPRIGHT.rotate(5)]),
    "stereo.jpg": lambda path: UPRIGHT.save(path, format="MPO", save_all=True, append_images=[UPRIGHT]),
}


@pytest.mark.parametrize("name", NOT_RGB)
def test_what_is_no_8_bit_rgb_is_refused_as_image_and_as_slide(tmp_path, name):
    NOT_RGB[name](tmp_path / name)
    for read in (read_image, check_image, as_slide):
        with pytest.raises(InputError) as caught:
            read(tmp_path / name)
        assert str(caught.value).startswith(f"{tmp_path / name}: ")
        assert "; " in str(caught.value)


@pytest.mark.parametrize("size", [(13_000, 13_000), (8193, 8193), (2**31 - 1, 1), (40_000, 40_000)])
def test_a_small_file_of_too_many_pixels_is_refused_by_its_header(tmp_path, size):
    width, height = size
    rows = np.zeros((1, 3 * 32), np.uint8)
    path = png(tmp_path / "a.png", 8, 2, rows)
    header = b"".join(n.to_bytes(4, "big") for n in size) + bytes((8, 2, 0, 0, 0))
    content = path.read_bytes()
    pixels = chunk(b"IDAT", zeros(height * (1 + 3 * width)) if width == 13_000 else b"")
    path.write_bytes(content[:8] + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b""))
    assert path.stat().st_size < 10**6
    tracemalloc.start()
    for read in (read_image, read_mask, check_image, image_size, as_slide):
        with pytest.raises(InputError, match=r"more than 67,108,864 pixels.*; cut it|cannot be read"):
            read(path)
    assert tracemalloc.get_traced_memory()[1] < 10**7
    tracemalloc.stop()


def test_arrays_of_too_many_numbers_are_refused_by_their_header(tmp_path):
    with (tmp_path / "a.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": (2**14, 2**13)})
        file.truncate(2**28)  # a hole
    for read in (read_mask, image_size):
        with pytest.raises(InputError, match="more than 67,108,864 pixels"):
            read(tmp_path / "a.npy")


DAMAGED = {
    "a large tile": ("TileWidth", 2**25, r"67,108,864 pixels", {"tile": (16, 16), "compression": "zlib"}),
    "a longer tile": ("TileLength", 2**25, r"67,108,864 pixels", {"tile": (16, 16), "compression": "zlib"}),
    "more rows than strips": ("ImageLength", 4800, "some of its rows are missing", {}),
    "no rows": ("ImageLength", 0, "shape|cannot be read", {}),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_tiff_whose_pieces_do_not_make_its_picture_is_refused(tmp_path, name):
    tag, value, message, options = DAMAGED[name]
    rgb_tiff(tmp_path / "a.tif", RGB, **options)
    with tifffile.TiffFile(tmp_path / "a.tif", mode="r+") as file:
        file.pages.first.tags[tag].overwrite(value, dtype="I")
    for read in (read_image, read_mask):
        with pytest.raises(InputError, match=message):
            read(tmp_path / "a.tif")
    if name == "no rows":
        with pytest.raises(InputError):
            as_slide(tmp_path / "a.tif")


@pytest.mark.parametrize("tile", [None, (16, 16)])
def test_pages_in_a_circle_have_an_end(tmp_path, tile):
    rgb_tiff(tmp_path / "a.tif", RGB, tile=tile)
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        place = file.pages.first.offset + 2 + 12 * len(file.pages.first.tags)
    content = bytearray((tmp_path / "a.tif").read_bytes())
    content[place : place + 4] = content[4:8]  # the next page is the first
    (tmp_path / "a.tif").write_bytes(content)
    for read in (read_image, as_slide):
        np.testing.assert_array_equal(read(tmp_path / "a.tif"), RGB)


@pytest.mark.parametrize("compression", ["zlib", "lzma"])
def test_a_strip_that_inflates_without_end_is_refused(tmp_path, compression, monkeypatch):
    monkeypatch.setattr(decoder, "_SAFE_INFLATED", 2**22)
    bomb = zeros(2**25)
    if compression == "lzma":
        import lzma

        bomb = lzma.compress(bytes(2**25))
    for name, pixels in (
        ("a.tif", np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)),
        ("m.tif", RGB * 1.0),
    ):
        path = tmp_path / name
        rgb_tiff(path, pixels, compression=compression)
        end = path.stat().st_size
        with path.open("ab") as file:
            file.write(bomb)
        with tifffile.TiffFile(path, mode="r+") as file:
            file.pages.first.tags["StripOffsets"].overwrite([end])
            file.pages.first.tags["StripByteCounts"].overwrite([len(bomb)])
        read = as_slide if name == "a.tif" else read_mask
        with pytest.raises(InputError, match="holds more pixels than it has room for"):
            read(path)
