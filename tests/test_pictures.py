import base64
import io

import numpy as np
import pytest
from PIL import Image
from skimage.color import deltaE_ciede2000, rgb2lab

from histoloc.pictures import agreement, data_uri, heat_scale, outline, overlay

# Machado, Oliveira and Fernandes (2009), complete deficiency, linear RGB.
DEFICIENCIES = {
    "none": np.eye(3),
    "protan": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deutan": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritan": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}


def seen(colour, matrix):
    linear = (np.asarray(colour) / 255) ** 2.2
    return rgb2lab(np.clip(np.asarray(matrix) @ linear, 0, 1) ** (1 / 2.2))


@pytest.mark.parametrize("deficiency", DEFICIENCIES)
@pytest.mark.parametrize("tissue", [(240, 235, 240), (220, 150, 200), (110, 50, 140)])
def test_agreement_colours_stay_apart_on_stained_tissue(deficiency, tissue):
    image = np.full((1, 4, 3), tissue, np.uint8)
    mask, truth = np.array([[True, True, False, False]]), np.array([[True, False, True, False]])
    colours = [seen(colour, DEFICIENCIES[deficiency]) for colour in agreement(image, mask, truth)[0]]
    for a in range(4):
        for b in range(a):
            assert deltaE_ciede2000(colours[a], colours[b]) > 10, (a, b)


def test_agreement_names_the_right_pixels():
    image = np.full((1, 4, 3), 200, np.uint8)
    tp, fp, fn, tn = agreement(image, np.array([[True, True, False, False]]), np.array([[True, False, True, False]]))[
        0
    ].astype(int)
    assert tp.argmax() == 1
    assert fp.argmax() == 0
    assert fn.argmax() == 2
    assert np.ptp(tn) == 0


def test_overlay_leaves_the_image_where_the_map_is_low():
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    none = np.zeros((20, 30), bool)
    assert (overlay(image, np.zeros((20, 30)), none) == image).all()
    full = overlay(image, np.ones((20, 30), np.float32), none)
    expected = 0.35 * image + 0.65 * 255 * np.array([0.993248, 0.906157, 0.143936])  # the end of viridis
    assert np.abs(full - expected).max() <= 0.51


def test_outline_is_white_inside_black_and_leaves_the_rest():
    image = np.full((9, 9, 3), 100, np.uint8)
    mask = np.zeros((9, 9), bool)
    mask[2:7, 2:7] = True
    line = outline(image, mask)[:, 4, 0]
    assert line.tolist() == [100, 0, 255, 100, 100, 100, 255, 0, 100]
    assert (outline(image, np.ones((9, 9), bool)) == image).all()


def test_maps_of_another_size_are_refused():
    with pytest.raises(ValueError, match="does not fit"):
        overlay(np.zeros((4, 4, 3), np.uint8), np.zeros((4, 5)), np.zeros((4, 4), bool))


def test_data_uri_is_the_picture():
    picture = heat_scale(40, 5)
    content = base64.b64decode(data_uri(picture, photo=False).split(",")[1])
    assert (np.asarray(Image.open(io.BytesIO(content))) == picture).all()
