"""How well are nests of tumour found on slides of the second painter, by a model that has seen none of them?

    python benchmarks/nests.py prior:nests --out nests/ --tumour 8 --normal 4

Slides are painted by `tests/painters/lymph_slides.py`, which the scene of the package knows nothing of, and predicted
by `slides predict`. Printed, at 2 µm per pixel: area Dice of each tumour slide and over all, and specificity, the
share of background that is found background, over all pixels and over the tissue alone. OUT keeps the slides, so that
another model is measured on the same ones.
"""

import argparse
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tifffile
import torch
from numpy.typing import NDArray
from one_map import slide_map
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from histoloc.metrics import dice
from histoloc.options import SlideOptions
from histoloc.slide_cohort import predict_slides
from painters.lymph_slides import FAT, GLASS, paint_slide

FIRST_SEED = 1000
_SHRUNK = 4  # pixels of level 0 per pixel of the comparison: 2 µm


class Painted(NamedTuple):
    """One slide and its truth, at 2 µm per pixel."""

    path: Path
    truth: NDArray[np.bool_]
    tissue: NDArray[np.bool_]


def painted(folder: Path, *, tumour: bool, seed: int) -> Painted:
    """A slide and its truth, painted where they are not in the folder yet."""
    path = folder / f"{'tumour' if tumour else 'normal'}_{seed}.tif"
    known = path.with_suffix(".npz")
    if not known.exists():
        slide = paint_slide(path, tumour=tumour, seed=seed)
        truth = slide.truth[_SHRUNK // 2 :: _SHRUNK, _SHRUNK // 2 :: _SHRUNK]
        np.savez_compressed(known, truth=truth, tissue=~np.isin(slide.zones, (GLASS, FAT)))
    with np.load(known) as arrays:
        return Painted(path, arrays["truth"], arrays["tissue"])


def specificity(found: NDArray[np.bool_], background: NDArray[np.bool_]) -> float:
    return float((~found)[background].mean())


def picture(slide: Painted, found: NDArray[np.bool_], path: Path) -> None:
    """The slide at 2 µm per pixel: truth outlined in green, what was found in yellow."""
    image = tifffile.imread(slide.path, key=2).copy()
    for mask, colour in ((slide.truth, (0, 130, 0)), (found, (255, 220, 0))):
        edge = mask ^ (torch.nn.functional.max_pool2d(torch.from_numpy(~mask)[None].float(), 3, 1, 1)[0].numpy() < 0.5)
        image[edge] = colour
    Image.fromarray(image).save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tumour", type=int, default=8)
    parser.add_argument("--normal", type=int, default=4)
    parser.add_argument("--mpp", type=float)
    asked = parser.parse_args()
    (folder := asked.out / "slides").mkdir(parents=True, exist_ok=True)
    kinds = [True] * asked.tumour + [False] * asked.normal
    slides = [painted(folder, tumour=kind, seed=FIRST_SEED + i) for i, kind in enumerate(kinds)]
    results = asked.out / asked.model.name.replace(":", "-")
    options = SlideOptions(progress=False, device="cpu", mpp=asked.mpp)
    predict_slides(asked.model, [slide.path for slide in slides], results, options)
    found, truth, tissue = [], [], []
    print("slide          truth   Dice  specificity, of tissue")
    for slide in slides:
        chances, record = slide_map(results / slide.path.stem, slide.truth.shape)
        mask = chances >= record["map"]["threshold"]
        picture(slide, mask, results / f"{slide.path.stem}.png")
        score = f"{dice(mask, slide.truth):6.3f}" if slide.truth.any() else "     –"
        every, inside = (specificity(mask, ~slide.truth & where) for where in (True, slide.tissue))
        print(f"{slide.path.stem:13} {slide.truth.mean():6.3f} {score} {every:12.4f} {inside:10.4f}", flush=True)
        for values, new in ((found, mask), (truth, slide.truth), (tissue, slide.tissue)):
            values.append(new.ravel())
    found, truth, tissue = map(np.concatenate, (found, truth, tissue))
    every, inside = (specificity(found, ~truth & where) for where in (True, tissue))
    area = dice(found[None], truth[None])
    print(f"{'all':13} {truth.mean():6.3f} {area:6.3f} {every:12.4f} {inside:10.4f}")


if __name__ == "__main__":
    main()
