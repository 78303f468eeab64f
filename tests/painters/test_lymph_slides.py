"""The second painter of lymph nodes: its slides can be read, its truth is where it says, and it stays as it is."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from scipy import ndimage

import histoloc
from histoloc.slides.reader import open_slide
from painters import lymph_slides
from painters.lymph_slides import GLASS, NEST, paint_slide

SIZE, SEED = (512, 448), 1


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("lymph")
    return {t: paint_slide(folder / f"{t}.tif", tumour=t, seed=SEED, size=SIZE) for t in (False, True)}


def test_a_slide_has_its_scale_and_levels(slides):
    with open_slide(slides[True].path) as slide:
        assert (slide.mpp, slide.height, slide.width) == (0.5, *SIZE)
        assert [level.downsample for level in slide.levels] == [1, 2, 4, 8]


def test_only_tumour_slides_have_nests(slides):
    assert not slides[False].truth.any()
    truth = slides[True].truth
    assert truth.shape == SIZE
    assert 0.01 < truth.mean() < 0.7
    # The plan is four times coarser, and the truth's outline is smoothed by less than one of its pixels.
    plan = np.kron(slides[True].zones == NEST, np.ones((4, 4), bool))
    assert not (truth & ~ndimage.binary_dilation(plan, iterations=3)).any()
    assert not (~truth & ndimage.binary_erosion(plan, iterations=3)).any()


def test_nests_are_paler_than_the_lymphocytes_around_them_and_glass_is_light(slides):
    image = tifffile.imread(slides[True].path, key=0).astype(float).mean(2)
    zones = np.kron(slides[True].zones, np.ones((4, 4), np.uint8))
    nests, cortex, glass = (image[zones == zone].mean() for zone in (NEST, lymph_slides.CORTEX, GLASS))
    assert cortex + 10 < nests < glass
    assert glass > 225


def test_the_same_seed_paints_the_same_slide(slides, tmp_path):
    again = paint_slide(tmp_path / "again.tif", tumour=True, seed=SEED, size=SIZE)
    assert again.path.read_bytes() == slides[True].path.read_bytes()


def test_the_painter_is_as_it_was_committed_and_the_package_does_not_know_it():
    source = Path(lymph_slides.__file__).read_bytes()
    assert hashlib.sha256(source).hexdigest() == "ba917cc5302498f495e06530764716c2d82f8a74e9d0bd3065d0709758fd2067"
    package = Path(histoloc.__file__).parent
    assert not [path for path in package.rglob("*.py") if "lymph_slides" in path.read_text(encoding="utf-8")]
