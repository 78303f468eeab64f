"""Patches per second of the Camelyon16-P512 protocol against a plain loop over OpenSlide, and of ways to keep patches.

    python benchmarks/patches.py [SLIDE] [--size 512] [--side 12288] [--wanted 60] [--repeats 3]

On a slide of the tests' factory and, where one is given, on a real slide (with patches of 128 px and an outline drawn
over its middle, for slides may be small), everything on one core and in this run:

1. Sampling. Ours: `scan_slide` for tumour and `draw_slide` for normal patches. Plain: `read_region` patch by patch on
   the grid, tissue by scikit-image for each patch, tumour drawn by Pillow for each patch; for tumour all of the
   outline's box, without the 1-pixel search for the first window; for normal ones in random order until as many are
   found. Rates are patches found per second, the ratio is ours / plain; the third way is the plain loop with our
   tissue test, which shows how much of the ratio is the test and how much the order of reading.
2. Keeping. Regions of the slide read on the fly against PNG and JPEG files that `write_slide` wrote, all through
   `read_pixels` in the same random order, from a warm disk cache: samples per second and bytes on disk.
"""

import argparse
import importlib
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openslide
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from skimage.color import rgb2hsv
from skimage.filters import threshold_otsu

from histoloc.data.pixels import read_pixels
from histoloc.data.table import Sample
from histoloc.datasets.camelyon16.protocol import draw_slide, scan_slide, write_slide
from histoloc.datasets.options import Sampling
from histoloc.slides.reader import open_slide
from histoloc.slides.tissue import protocol_tissue

Outline = list[tuple[int, int]]
Tissue = Callable[[NDArray[np.uint8]], float]


def make_factory_slide(folder: Path, side: int) -> tuple[Path, Outline]:
    """A slide of `side` px, a quarter of it tissue as whole slides have it, and the outline of its metastasis."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "slides"))
    factory = importlib.import_module("factory")
    margin = side // 4
    tumour = factory.blob("metastasis", 0.45 * side, 0.5 * side, side / 8, corners=60)
    tissue = factory.box("tissue", margin, margin, side - 2 * margin, side - 2 * margin)
    factory.make_slide(folder / "factory.tif", (side, side), 0.25, [tissue, tumour], downsamples=(1, 4, 16, 64))
    return folder / "factory.tif", [(round(x), round(y)) for x, y in tumour.vertices]


def middle(path: Path) -> Outline:
    """An ellipse over the middle of a slide."""
    with open_slide(path) as slide:
        width, height = slide.size
    angles = np.linspace(0, 2 * math.pi, 60, endpoint=False)
    return [(round(width * (0.5 + 0.3 * math.cos(a))), round(height * (0.5 + 0.3 * math.sin(a)))) for a in angles]


def write_outline(path: Path, outline: Outline) -> Path:
    points = "".join(f'<Coordinate Order="{i}" X="{x}" Y="{y}" />' for i, (x, y) in enumerate(outline))
    path.write_text(
        f'<ASAP_Annotations><Annotations><Annotation Name="0" Type="Polygon" PartOfGroup="Tumor"><Coordinates>'
        f"{points}</Coordinates></Annotation></Annotations></ASAP_Annotations>"
    )
    return path


def plain_tissue(rgb: NDArray[np.uint8]) -> float:
    """Share of tissue by the protocol's rule, as one writes it down."""
    background = np.all([rgb[..., c] > threshold_otsu(rgb[..., c]) for c in range(3)], axis=0)
    saturation = rgb2hsv(rgb)[..., 1]
    return float((~background & (saturation > threshold_otsu(saturation)) & (rgb > 10).all(axis=2)).mean())


def our_tissue(rgb: NDArray[np.uint8]) -> float:
    return float(protocol_tissue(rgb).mean())


def plain_pixels(slide: openslide.OpenSlide, x: int, y: int, size: int) -> NDArray[np.uint8]:
    return np.asarray(slide.read_region((x, y), 0, (size, size)).convert("RGB"))


def plain_scan(path: Path, outline: Outline, size: int, tissue: Tissue) -> int:
    """Number of tumour patches on the grid of the outline's box."""
    xs, ys = zip(*outline, strict=True)
    found = 0
    with openslide.OpenSlide(str(path)) as slide:
        width, height = slide.dimensions
        for y in range(max(min(ys) - size // 2, 0), min(max(ys) + size, height) - size + 1, size):
            for x in range(max(min(xs) - size, 0), min(max(xs) + size, width) - size + 1, size):
                share = tissue(plain_pixels(slide, x, y, size))
                picture = Image.new("1", (size, size))
                ImageDraw.Draw(picture).polygon([(u - x, v - y) for u, v in outline], fill=1, outline=1)
                found += share >= Sampling.tissue and float(np.asarray(picture).mean()) >= Sampling.p0
    return found


def plain_draw(path: Path, size: int, wanted: int, tissue: Tissue) -> int:
    """Number of normal patches drawn from the grid of the slide."""
    with openslide.OpenSlide(str(path)) as slide:
        width, height = slide.dimensions
        cells = [(x, y) for y in range(0, height - size + 1, size) for x in range(0, width - size + 1, size)]
        found = 0
        for index in np.random.default_rng(0).permutation(len(cells)):
            if found == wanted:
                break
            x, y = cells[index]
            found += tissue(plain_pixels(slide, x, y, size)) >= Sampling.tissue
    return found


def timed(action: Callable[[], Any]) -> tuple[float, Any]:
    start = time.process_time()
    result = action()
    return time.process_time() - start, result


def compare(title: str, actions: dict[str, Callable[[], int]], repeats: int) -> None:
    """Print patches per second of each way, interleaved so that a busy machine hurts all alike."""
    times: dict[str, list[float]] = {name: [] for name in actions}
    found: dict[str, int] = {}
    for _ in range(repeats):
        for name, action in actions.items():
            seconds, found[name] = timed(action)
            times[name].append(seconds)
    rates = {name: found[name] / statistics.median(times[name]) for name in actions}
    for name, rate in rates.items():
        ratio = rates["histoloc"] / rate
        print(f"  {title}: {name:28} {rate:6.1f} patches/s ({found[name]} found), ratio {ratio:4.1f}x", flush=True)


def sampling(path: Path, outline: Outline, xml: Path, arguments: argparse.Namespace, size: int) -> None:
    settings = {"size": size, "coarse": 6 if size >= 512 else 3}
    item = {"slide": str(path), "annotations": str(xml), "name": path.name, "seed": 0, "wanted": arguments.wanted}
    compare(
        "tumour",
        {
            "histoloc": lambda: len(scan_slide(item, settings)["patches"]),
            "plain loop": lambda: plain_scan(path, outline, size, plain_tissue),
            "plain loop, our tissue test": lambda: plain_scan(path, outline, size, our_tissue),
        },
        arguments.repeats,
    )
    compare(
        "normal",
        {
            "histoloc": lambda: len(draw_slide(item, settings)["patches"]),
            "plain loop": lambda: plain_draw(path, size, arguments.wanted, plain_tissue),
            "plain loop, our tissue test": lambda: plain_draw(path, size, arguments.wanted, our_tissue),
        },
        arguments.repeats,
    )


def kept_samples(path: Path, xml: Path, folder: Path, wanted: int, size: int) -> Iterator[tuple[str, list[Sample]]]:
    """The same patches as regions, as PNG and as JPEG."""
    settings = {"size": size, "coarse": 6 if size >= 512 else 3}
    item = {"slide": str(path), "annotations": str(xml), "name": path.name, "seed": 0, "wanted": wanted}
    drawn = draw_slide(item, settings)
    places = [(x, y) for x, y, _ in drawn["patches"]]
    yield (
        "regions",
        [
            Sample(str(i), path, "normal", mpp=drawn["mpp"], x=x, y=y, width=size, height=size)
            for i, (x, y) in enumerate(places)
        ],
    )
    for suffix in ("png", "jpg"):
        files = [folder / suffix / f"{path.stem}-{i}.{suffix}" for i in range(len(places))]
        rows = [[str(file), None, x, y, size, size] for file, (x, y) in zip(files, places, strict=True)]
        write_slide(item | {"patches": rows}, settings)
        yield suffix, [Sample(file.name, file, "normal") for file in files]


def keeping(path: Path, xml: Path, folder: Path, arguments: argparse.Namespace, size: int) -> None:
    print(f"  keeping: the slide itself has {path.stat().st_size / 1e6:.1f} MB")
    ways = dict(kept_samples(path, xml, folder, arguments.wanted, size))
    times: dict[str, list[float]] = {way: [] for way in ways}
    order = np.random.default_rng(1).permutation(len(next(iter(ways.values()))))
    for repeat in range(arguments.repeats + 1):  # the first round warms the cache of the disk
        for way, samples in ways.items():
            seconds, _ = timed(lambda samples=samples: [read_pixels(samples[i]) for i in order])
            if repeat:
                times[way].append(seconds)
    rates = {way: len(order) / statistics.median(times[way]) for way in ways}
    for way, samples in ways.items():
        size_on_disk = 0 if way == "regions" else sum(sample.image.stat().st_size for sample in samples)
        print(
            f"    {way:8} {size_on_disk / 1e3 / len(order):7.1f} kB per patch besides the slide, "
            f"{rates[way]:6.1f} samples/s ({rates[way] / rates['regions']:.2f}x of regions)"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("slide", type=Path, nargs="?")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--side", type=int, default=12_288)
    parser.add_argument("--wanted", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=2)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        slides = [(*make_factory_slide(folder, arguments.side), arguments.size)]
        if arguments.slide is not None:
            slides.append((arguments.slide.absolute(), middle(arguments.slide), 128))
        for path, outline, size in slides:
            print(f"{path.name}, patches of {size} px, per second of one core's time")
            xml = write_outline(folder / f"{path.stem}.xml", outline)
            sampling(path, outline, xml, arguments, size)
            keeping(path, xml, folder, arguments, size)


if __name__ == "__main__":
    main()
