"""Draw docs/prior-scene.jpg: images as priors learn from, with the outlines of their masks."""

from pathlib import Path

import numpy as np
from PIL import Image
from skimage.segmentation import mark_boundaries

from histoloc.datasets.synthetic.dataset import render

PICTURE = Path(__file__).parent / "prior-scene.jpg"
SEED, ROWS, COLUMNS = 11, 2, 4  # not a seed that a prior was made with


def main() -> None:
    """Write the picture."""
    tiles = []
    for index in range(ROWS * COLUMNS):
        label = ("benign", "malignant")[index % 2]
        sample = render(label, seed=SEED, index=index, height=240, width=320, scene="colon")
        outlined = mark_boundaries(sample.image, sample.instances.astype(int), color=(0, 1, 0), mode="outer")
        tiles.append((outlined * 255).astype(np.uint8))
    rows = [np.hstack(tiles[row * COLUMNS : (row + 1) * COLUMNS]) for row in range(ROWS)]
    Image.fromarray(np.vstack(rows)).save(PICTURE, quality=80)
    print(PICTURE.name)


if __name__ == "__main__":
    main()
