"""Is the map of an image the map of its slide, and the map in one piece that in tiles?

    python benchmarks/one_map.py RUN... --image large.png --mpp 0.62

Each run predicts the image by `predict` (in tiles, where it is larger than training images), by `slides predict`, and
in one piece. Printed, a margin of one tile left out: Dice of the masks, largest difference of the maps, and how far the
class probabilities differ.
"""

import argparse
import dataclasses
import json
import tempfile
from pathlib import Path

import numpy as np
import tifffile
import torch
from numpy.typing import NDArray

from histoloc.data.images import read_image
from histoloc.maps import place, resize
from histoloc.metrics import dice
from histoloc.options import SlideOptions
from histoloc.prediction import load
from histoloc.scale import tile_side
from histoloc.slide_cohort import predict_slides
from histoloc.types import Localization


def slide_map(folder: Path, size: tuple[int, int]) -> tuple[NDArray[np.float32], dict]:
    """The map of a slide at the image's pixels, and what slide.json says."""
    record = json.loads((folder / "slide.json").read_text(encoding="utf-8"))
    cells = torch.from_numpy(tifffile.imread(folder / "map.ome.tif").astype(np.float32) / 255)[None, None]
    scale = record["settings"]["mpp"] / record["mpp"]
    seen = (round(size[0] / scale), round(size[1] / scale))
    cell = round(record["map"]["mpp"] / record["settings"]["mpp"])
    return resize(place(cells, cell, seen), size)[0, 0].numpy(), record


def compared(a: NDArray, b: NDArray, cut: float, margin: int) -> str:
    """Dice of two maps' masks and their largest difference, without the margin."""
    inner = np.s_[margin:-margin, margin:-margin]
    return f"{float(dice(a[inner] >= cut, b[inner] >= cut)):6.2f} {np.abs(a - b)[inner].max():6.3f}"


def difference(a: Localization, b: Localization) -> str:
    """Of the class probabilities; a dash where there is no classifier."""
    if a.probabilities is None or b.probabilities is None:
        return "–"
    return f"{np.abs(a.probabilities - b.probabilities).max():.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--image", type=Path, required=True)
    parser.add_argument("--mpp", type=float, required=True)
    asked = parser.parse_args()
    image = read_image(asked.image)
    size = (image.shape[0], image.shape[1])
    print("run                      image and slide: Dice, max, p | tiles and one piece: Dice, max, p | area")
    for run in asked.runs:
        predictor = load(run, "cpu")
        tiled = predictor.predict(image, mpp=asked.mpp)
        with tempfile.TemporaryDirectory() as folder:
            options = SlideOptions(slide_mpp=asked.mpp, progress=False, device="cpu")
            predict_slides(run, [asked.image], Path(folder), options)
            slide, record = slide_map(Path(folder) / asked.image.stem, size)
        margin = round(tile_side(predictor.config) * (predictor.config.mpp or asked.mpp) / asked.mpp)
        p = list((record["probabilities"] or {}).values())
        of_slide = "–" if tiled.probabilities is None else f"{np.abs(tiled.probabilities - np.array(p)).max():.3f}"
        predictor.config = dataclasses.replace(predictor.config, extent=None)
        whole = predictor.predict(image, mpp=asked.mpp)
        print(
            f"{'/'.join(run.parts[-2:]):24} {compared(tiled.roi, slide, tiled.threshold, margin)} {of_slide:>5} | "
            f"{compared(tiled.roi, whole.roi, tiled.threshold, margin)} {difference(tiled, whole):>5} | "
            f"{tiled.roi_fraction:.2f} {record['roi']['share']:.2f} {whole.roi_fraction:.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
