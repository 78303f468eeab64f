"""A scene whose best map is known: one striped disc on noise decides the class, and nothing else does.

Stripes of benign discs are 10 pixels wide, those of malignant ones 4, at any angle; they fade and return within the
disc, as evidence in tissue does. Mean colour, contrast, noise, place and size come from one distribution for
both classes, and the disc covers 40 to 55 % of the image.
"""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from histoloc.datasets.synthetic.glands import Label

PERIOD: dict[Label, float] = {"benign": 20.0, "malignant": 8.0}  # pixels: a light and a dark stripe
SHARE = (0.4, 0.55)
_PINK = np.array([214.0, 160.0, 190.0])
_CONTRAST = np.array([26.0, 34.0, 22.0])  # of the stripes where they are strong and of the noise, one std


def disc(
    rng: np.random.Generator, label: Label, height: int, width: int
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Draw one scene.

    Args:
        rng: source of all randomness.
        label: benign (wide stripes) or malignant (narrow ones).
        height: in pixels.
        width: in pixels.

    Returns:
        The image (H, W, 3) uint8 RGB, and the disc (H, W).
    """
    area = rng.uniform(*SHARE) * height * width
    radius = np.sqrt(area / np.pi)
    y0, x0 = (_centre(rng, side, radius) for side in (height, width))
    y, x = np.mgrid[:height, :width].astype(np.float32)
    inside = (y - y0) ** 2 + (x - x0) ** 2 <= radius**2
    angle, phase = rng.uniform(0, np.pi), rng.uniform(0, 2 * np.pi)
    stripes = np.sqrt(2) * np.sin(2 * np.pi / PERIOD[label] * (np.cos(angle) * x + np.sin(angle) * y) + phase)
    noise = _unit(ndimage.gaussian_filter(rng.standard_normal((height, width)), rng.uniform(1.0, 3.0)))
    grain = _unit(ndimage.gaussian_filter(rng.standard_normal((height, width)), rng.uniform(1.0, 3.0)))
    fading = _unit(ndimage.gaussian_filter(rng.standard_normal((height, width)), radius / 3))
    strength = np.clip(1 + 0.6 * fading, 0.25, 2)
    grey = np.where(inside, strength * stripes + 0.5 * grain, noise)[..., None]
    colour = _PINK + rng.normal(0, 8, 3)
    image = colour + grey * _CONTRAST * rng.uniform(0.7, 1.2) + rng.normal(0, 6, (height, width, 3))
    return np.clip(np.rint(image), 0, 255).astype(np.uint8), inside


def _centre(rng: np.random.Generator, side: int, radius: float) -> float:
    margin = min(radius, side / 2)
    return float(rng.uniform(margin, side - margin)) if side > 2 * margin else side / 2


def _unit(values: NDArray[np.floating]) -> NDArray[np.floating]:
    return (values - values.mean()) / values.std()
