"""One picture, mask and heatmap in the many forms that programs write, by name."""

import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image

HEIGHT, WIDTH = 48, 64
BACK = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}  # how an upright picture becomes what the orientation turns upright
Writer = Callable[[Path, np.ndarray], object]


def tissue() -> np.ndarray:
    """(48, 64, 3) uint8, smooth, without any symmetry."""
    coarse = np.random.default_rng(0).integers(20, 235, (6, 8, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC))


def truth() -> np.ndarray:
    """(48, 64) uint8 of 0 and 1, without any symmetry."""
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[8:28, 12:40] = 1
    mask[36:44, 4:10] = 1
    return mask


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(path: Path, depth: int, colour: int, rows: np.ndarray, *before: bytes, after: tuple[bytes, ...] = ()) -> Path:
    """A PNG of packed rows, (H, bytes) uint8, with chunks before and after its pixels."""
    width = rows.shape[1] * 8 // depth // {0: 1, 2: 3, 3: 1}[colour]
    header = struct.pack(">IIBBBBB", width, len(rows), depth, colour, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    chunks = [chunk(b"IHDR", header), *before, chunk(b"IDAT", pixels), *after, chunk(b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
    return path


def zeros(length: int) -> bytes:
    """What zlib makes of so many zero bytes, without holding them."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = deflate.compress(bytes(2**20)) + deflate.flush(zlib.Z_FULL_FLUSH)
    last = zlib.compressobj(9, zlib.DEFLATED, -15)
    end = last.compress(bytes(length % 2**20)) + last.flush()
    return b"\x78\x01" + block * (length // 2**20) + end + struct.pack(">HH", length % 65521, 1)


def palette(colours: list[int], **options: Any) -> Writer:
    def write(path: Path, mask: np.ndarray) -> None:
        image = Image.frombytes("P", mask.shape[::-1], mask.tobytes())
        image.putpalette(colours)
        image.save(path, **options)

    return write


def pillow(make: Callable[[np.ndarray], np.ndarray], mode: str | None = None, **options: Any) -> Writer:
    def write(path: Path, mask: np.ndarray) -> None:
        image = Image.fromarray(make(mask))
        (image.convert(mode) if mode else image).save(path, **options)

    return write


def tiff(make: Callable[[np.ndarray], np.ndarray], **options: Any) -> Writer:
    return lambda path, mask: tifffile.imwrite(path, make(mask), **options)


def layers(*values: int) -> Callable[[np.ndarray], np.ndarray]:
    """Channels of these values where the mask is, and of 0 elsewhere."""
    return lambda mask: np.dstack([mask * np.uint8(value) for value in values])


def grey(mask: np.ndarray) -> np.ndarray:
    return mask * np.uint8(255)


def soft(mask: np.ndarray) -> np.ndarray:
    small = Image.fromarray(grey(mask[::2, ::2]))
    return np.asarray(small.resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR))


MASKS: dict[str, Writer] = {
    "grey.png": pillow(grey),
    "ids.bmp": pillow(lambda m: m * np.uint8(7)),
    "bit.png": pillow(grey, "1"),
    "equal.png": pillow(layers(255, 255, 255)),
    "opaque.png": lambda p, m: Image.fromarray(np.dstack([grey(m), np.full_like(m, 255)])).save(p),
    "transparent background.png": pillow(grey, transparency=0),
    "transparent 16 bits.png": pillow(lambda m: m.astype(np.uint16) * 300, transparency=0),
    "two bits.png": lambda p, m: png(p, 2, 0, np.packbits(np.repeat(m, 2, axis=1), axis=1)),
    "black first.png": palette([0, 0, 0, 128, 0, 0]),
    "white background, red.png": palette([255, 255, 255, 200, 0, 0]),
    "all black.png": palette([0, 0, 0] * 4),
    "index 0 transparent.png": palette([255, 255, 255, 200, 0, 0], transparency=0),
    "grey.gif": pillow(grey),
    "lossless.webp": pillow(layers(255, 255, 255), lossless=True),
    "clean.jpg": pillow(lambda m: np.kron(m[::8, ::8], np.full((8, 8), 255, np.uint8)), quality=100),
    "group4.tif": lambda p, m: Image.fromarray(m > 0).save(p, compression="group4"),
    "lzw.tif": pillow(grey, compression="tiff_lzw", tiffinfo={317: 2}),
    "one bit, white is 0.tif": tiff(lambda m: m == 0, photometric="miniswhite"),
    "big endian.tif": tiff(lambda m: m.astype(">u2") * 300, byteorder=">", imagej=True),
    "signed bytes.tif": tiff(lambda m: m.astype(np.int8)),
    "signed.tif": tiff(lambda m: m.astype(np.int16) * 300),
    "32 bits.tif": tiff(lambda m: m.astype(np.uint32) * np.uint32(3_000_000_000)),
    "32 bits packed.tif": tiff(lambda m: m.astype(np.uint32) * 70_000, tile=(32, 32), compression="zlib"),
    "64 bits.tif": tiff(lambda m: m.astype(np.uint64) * 5_000_000_000, compression="zlib"),
    "whole floats.tif": tiff(lambda m: m.astype(np.float32) * 3),
    "doubles.tif": tiff(lambda m: m.astype(np.float64)),
    "bool.npy": lambda p, m: np.save(p, m > 0),
    "integers.npy": lambda p, m: np.save(p, m.astype(">i8")[..., None]),
}

TWO_MEANINGS: dict[str, tuple[str, Writer]] = {
    "inverted.tif": ("inverted lookup table", tiff(grey, photometric="miniswhite")),
    "shown white.tif": ("inverted lookup table", tiff(lambda m: grey(1 - m), photometric="miniswhite")),
    "inverted 16 bits.tif": ("inverted lookup table", tiff(lambda m: m * np.uint16(9), photometric="miniswhite")),
    "inverted doubles.tif": ("inverted lookup table", tiff(lambda m: m * 1.0, photometric="miniswhite")),
    "white first.png": ("palette shows as black", palette([255, 255, 255, 0, 0, 0])),
    "light first.png": ("palette shows as black", palette([200, 200, 200, 90, 90, 90])),
    "red first.gif": ("palette shows as black", palette([200, 0, 0, 0, 0, 0])),
    "index 1 transparent.png": ("transparent, and these differ", palette([0, 0, 0, 200, 0, 0], transparency=1)),
    "white transparent.png": ("transparent, and these differ", pillow(grey, transparency=255)),
    "in alpha.png": ("transparent, and these differ", pillow(layers(0, 0, 0, 255))),
    "half transparent.png": ("transparent, and these differ", pillow(layers(9, 9, 9, 128))),
    "minus 1.tif": ("holds -1, which may be background", tiff(lambda m: m.astype(np.int16) - 1)),
    "minus 1 in bytes.tif": ("holds -1, which may be background", tiff(lambda m: m.astype(np.int8) - 1)),
    "minus 1.npy": ("holds -1, which may be background", lambda p, m: np.save(p, m.astype(int) - 1)),
    "soft.png": (r"soft edges \(ROI from 128 up\) or classes \(ROI from 1 up\)", pillow(soft)),
    "soft colours.bmp": ("soft edges", pillow(lambda m: np.dstack([soft(m)] * 3))),
    "soft 16 bits.png": (r"ROI from 32768 up", pillow(lambda m: soft(m).astype(np.uint16) * 257)),
    "lossy.jpg": ("lossy compression", pillow(grey, quality=75)),
    "lossy named.png": ("lossy compression", pillow(grey, format="JPEG", quality=75)),
    "lossy.tif": ("lossy compression", pillow(grey, compression="jpeg", quality=75)),
    "lossy.webp": ("coloured picture", pillow(layers(255, 255, 255), quality=50)),
    "fractions.tif": ("holds fractions", tiff(lambda m: m.astype(np.float32) / 3)),
    "nan.npy": ("holds fractions", lambda p, m: np.save(p, np.where(m, np.nan, 0))),
    "red.png": ("coloured picture", pillow(layers(255, 0, 0))),
    "pages.tif": ("several pages", tiff(lambda m: np.stack([grey(m)] * 2), photometric="minisblack")),
    "stack.npy": (r"the shape \(2, 48, 64\)", lambda p, m: np.save(p, np.stack([m, m]))),
    "cmyk.tif": ("colour mode CMYK", pillow(layers(255, 255, 255), "CMYK")),
}  # fmt: skip

MAPS: dict[str, Writer] = {
    "float.npy": lambda p, m: np.save(p, m.astype(np.float32)),
    "half.npy": lambda p, m: np.save(p, m.astype(np.float16)),
    "big endian, by columns.npy": lambda p, m: np.save(p, np.asfortranarray(m.astype(">f4"))),
    "rounded.npy": lambda p, m: np.save(p, m.astype(np.float32) + np.float32(1e-7)),
    "with a channel.npy": lambda p, m: np.save(p, m.astype(np.float32)[..., None]),
    "in a batch.npy": lambda p, m: np.save(p, m.astype(np.float32)[None, None]),
    "bool.npy": lambda p, m: np.save(p, m > 0),
    "0 and 1 as int64.npy": lambda p, m: np.save(p, m.astype(int)),
    "8 bits.npy": lambda p, m: np.save(p, grey(m)),
    "UPPER.NPY": lambda p, m: np.save(p.open("wb"), m.astype(np.float32)),
    "8 bits.png": pillow(grey),
    "equal.png": pillow(layers(255, 255, 255)),
    "16 bits.png": pillow(lambda m: m * np.uint16(65535)),
    "4 bits.png": lambda p, m: png(p, 4, 0, np.packbits(np.repeat(m, 4, axis=1), axis=1)),
    "8 bits.tif": tiff(grey, tile=(32, 32), compression="zlib"),
    "lzw.tif": pillow(lambda m: m * np.uint16(65535), compression="tiff_lzw"),
    "float.tif": tiff(lambda m: m.astype(np.float32), tile=(32, 32), compression="zlib"),
    "imagej.tif": tiff(lambda m: m.astype(np.float32), imagej=True),
    "double.tif": tiff(lambda m: m.astype(np.float64)),
    "half.tif": tiff(lambda m: m.astype(np.float16)),
}

NO_MAPS: dict[str, tuple[str, Writer]] = {
    "inverted.tif": ("inverted lookup table", tiff(grey, photometric="miniswhite")),
    "inverted floats.tif": ("inverted lookup table", tiff(lambda m: m.astype(np.float32), photometric="miniswhite")),
    "lossy.tif": ("lossy compression, a palette", pillow(grey, compression="jpeg")),
    "lossy.png": ("lossy compression, a palette", pillow(grey, format="JPEG")),
    "palette.png": ("lossy compression, a palette", pillow(grey, "P")),
    "transparent.png": ("palette or transparency", pillow(grey, transparency=0)),
    "red.png": ("coloured picture", pillow(layers(255, 0, 0))),
    "percent.tif": ("from 0 to 100; scale", tiff(lambda m: m.astype(np.int32) * 100)),
    "above.npy": ("from 0 to 1.001; scale", lambda p, m: np.save(p, m * 1.001)),
    "archive.npy": ("not one array", lambda p, m: np.savez(p.open("wb"), m)),
}
