import json
import tracemalloc
from collections import deque
from pathlib import Path

import numpy as np
import pytest
import shapely
from geojson_pydantic import FeatureCollection
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from skimage import measure

from histoloc.slides.annotations import Annotations, Region, rasterise
from histoloc.slides.geojson import Feature, read_geojson
from histoloc.slides.regions import Outline, find_outlines, lowest_roi, write_regions


def find(values, threshold=0.5, scale=1.0, cell_mpp=1000.0, tall=1024, **options):
    """By default one cell has 1 mm² and one pixel, so that areas are counts of cells."""
    bands = (values[first : first + tall] for first in range(0, len(values), tall))
    return find_outlines(bands, threshold, scale, cell_mpp, **options)


def as_map(mask):
    return np.where(mask, 200, 0).astype(np.uint8)


def drawn(outlines, shape, downsample=1.0):
    regions = Annotations(tuple(Region(o.geometry, Feature(o.geometry)) for o in outlines))
    return rasterise(regions, 0, 0, shape[1], shape[0], downsample)


def smooth(height, width, seed=0, sigma=20):
    """A map in [0, 255] with regions, holes in them and islands in these."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(height, width)), sigma)
    return np.clip(127 + 80 * noise / noise.std(), 0, 255).astype(np.uint8)


def flooded(mask):
    """Sizes of the regions whose cells share edges, by flood fill, largest first."""
    left, sizes = {(int(i), int(j)) for i, j in np.argwhere(mask)}, []
    while left:
        queue, size = deque([left.pop()]), 0
        while queue:
            i, j = queue.popleft()
            size += 1
            for near in ((i + 1, j), (i - 1, j), (i, j + 1), (i, j - 1)):
                if near in left:
                    left.remove(near)
                    queue.append(near)
        sizes.append(size)
    return sorted(sizes, reverse=True)


@settings(max_examples=300, deadline=None)
@given(
    height=st.integers(1, 14), width=st.integers(1, 14), seed=st.integers(0, 10**6),
    share=st.sampled_from([0.1, 0.4, 0.5, 0.6, 0.9]), tall=st.integers(1, 16),
)  # fmt: skip
def test_exact_outlines_are_the_regions_of_any_mask(height, width, seed, share, tall):
    mask = np.random.default_rng(seed).random((height, width)) < share
    result = find(as_map(mask), simplify_cells=0, tall=tall)
    assert [o.area_mm2 for o in result] == pytest.approx(flooded(mask))
    assert [o.geometry.area for o in result] == [round(o.area_mm2) for o in result]
    assert all(o.geometry.is_valid and o.geometry.geom_type == "Polygon" for o in result)
    assert (drawn(result, mask.shape) == mask).all()


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), tall=st.integers(1, 70))
def test_bands_change_nothing(seed, tall):
    values = smooth(60, 70, seed, sigma=3)
    assert find(values, tall=tall) == find(values)


def test_regions_agree_with_skimage():
    values = smooth(500, 700, sigma=8)
    result = find(values, 0.6, simplify_cells=0, tall=128)
    expected = measure.regionprops(measure.label(values / 255 >= 0.6, connectivity=1), values / 255)
    assert len(result) == len(expected) > 20
    expected.sort(key=lambda region: (-region.area, region.bbox[0], region.bbox[1]))
    for outline, region in zip(result, expected, strict=True):
        top, left, bottom, right = region.bbox
        assert outline.geometry.bounds == (left, top, right, bottom)
        assert outline.area_mm2 == pytest.approx(region.area)
        assert outline.probability == pytest.approx(region.intensity_mean, abs=1e-12)
        background, _ = measure.label(np.pad(~region.image, 1, constant_values=True), connectivity=1, return_num=True)
        assert len(outline.geometry.interiors) == background.max() - 1


@pytest.mark.parametrize(("picture", "holes"), [
    (["###", "#.#", "###"], [1]),
    ([".#.", "#.#", ".#."], [0, 0, 0, 0]),  # four cells that touch by their corners enclose, but hold, nothing
    (["##.", "#.#", "###"], [1]),  # the hole touches the outline
    (["####", "#.##", "##.#", "####"], [2]),  # two holes touch each other
    (["#####", "#...#", "#.#.#", "#...#", "#####"], [1, 0]),  # an island in a hole
    (["######", "#....#", "#.##.#", "##...#", "######"], [1, 0]),
])  # fmt: skip
def test_holes_and_corners(picture, holes):
    mask = np.array([[cell == "#" for cell in row] for row in picture])
    result = find(as_map(mask), simplify_cells=0)
    assert [len(o.geometry.interiors) for o in result] == holes
    assert all(o.geometry.is_valid for o in result)
    assert sum(o.geometry.area for o in result) == mask.sum()


def test_a_square_in_closed_form():
    values = np.zeros((40, 50), np.uint8)
    values[10:20, 5:35] = 204
    values[10:20, 5:20] = 255
    (outline,) = find(values, 0.5, scale=32.0, cell_mpp=8.0)
    assert outline.geometry.equals(shapely.box(5 * 32, 10 * 32, 35 * 32, 20 * 32))
    assert outline.area_mm2 == pytest.approx(300 * 64e-6)
    assert outline.probability == pytest.approx(0.9)
    assert outline.geometry.exterior.is_ccw


@pytest.mark.parametrize("threshold", [0.0, 0.001, 0.2, 0.5, 0.7, 0.8, 1.0])
def test_cells_are_cut_as_maps_are(threshold):
    values = np.arange(256, dtype=np.uint8)
    expected = values / 255 >= threshold
    expected[0] = False  # outside the tissue
    assert ((values >= lowest_roi(threshold)) == expected).all()
    assert lowest_roi(204 / 255) == 204


@pytest.mark.parametrize("cells", [0.5, 1.0, 2.0])
def test_simplified_outlines_are_valid_near_and_keep_their_holes(cells):
    values = smooth(600, 800, sigma=5)
    exact, simple = find(values, scale=32.5, simplify_cells=0), find(values, scale=32.5, simplify_cells=cells)
    assert len(exact) == len(simple) > 100
    assert any(o.geometry.interiors for o in exact)
    for a, b in zip(exact, simple, strict=True):
        assert b.geometry.is_valid
        assert b.area_mm2 == a.area_mm2
        assert len(b.geometry.interiors) == len(a.geometry.interiors)
        assert b.geometry.area == pytest.approx(a.geometry.area, rel=0.1)
        # Twice, since the vertex at which a ring begins is looked at once more in the end.
        assert a.geometry.hausdorff_distance(b.geometry) <= 2 * cells * 32.5
    vertices = [sum(shapely.get_num_coordinates(o.geometry) for o in result) for result in (exact, simple)]
    assert vertices[1] < (0.9 if cells < 1 else 0.6) * vertices[0]  # diagonal steps of 0.7 stay below 0.7


def test_specks_keep_their_shape():
    values = np.zeros((20, 20), np.uint8)
    values[3, 3] = values[10:12, 10:12] = 255
    assert [o.geometry.area for o in find(values)] == [4, 1]


def test_small_regions_are_left_out_wherever_bands_cut_them():
    values = smooth(300, 300, sigma=2)
    everything = find(values, simplify_cells=0)
    for least in (1, 2, 7, 50):
        for tall in (16, 1024):
            result = find(values, simplify_cells=0, min_area_mm2=least, tall=tall)
            expected = [o for o in everything if round(o.area_mm2) >= least]
            assert len(result) == len(expected)
            assert all(a.geometry.equals(b.geometry) for a, b in zip(result, expected, strict=True))


def test_outlines_end_where_the_slide_does():
    values = as_map(np.ones((3, 4), bool))
    (outline,) = find(values, scale=32.0, size=(100.0, 90.0))
    assert outline.geometry.bounds == (0, 0, 100, 90)
    assert outline.area_mm2 == 12


def test_memory_grows_with_the_outlines_not_with_the_map():
    def peak(rows):
        values = np.zeros((64, 2000), np.uint8)
        values[20:40, 100:1900] = 255
        values[3:17:2, ::2] = 255  # specks, which are too small for an outline
        tracemalloc.start()
        result = find_outlines((values for _ in range(rows // 64)), 0.5, 1.0, 1000.0, min_area_mm2=10.0)
        assert len(result) == rows // 64
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    assert peak(6400) < 1.2 * peak(640)


def test_geojson_validates_and_reads_back_equal(tmp_path):
    result = find(smooth(200, 300, sigma=6), scale=31.7, cell_mpp=8.0)
    path = tmp_path / "regions.geojson"
    write_regions(path, result, "metastatic")
    FeatureCollection.model_validate(json.loads(path.read_text(encoding="utf-8")))
    features, warnings = read_geojson(path)
    assert warnings == []
    assert len(features) == len(result) > 5
    for feature, outline in zip(features, result, strict=True):
        assert feature.geometry == outline.geometry
        assert (feature.label, feature.kind) == ("metastatic", "detection")
        assert feature.measurements == {"Probability": outline.probability, "Area mm^2": outline.area_mm2}


def test_no_region_is_an_empty_collection(tmp_path: Path):
    path = tmp_path / "regions.geojson"
    outlines: list[Outline] = find(np.zeros((30, 30), np.uint8))
    write_regions(path, outlines, "ROI")
    assert outlines == []
    assert FeatureCollection.model_validate(json.loads(path.read_text(encoding="utf-8"))).features == []
    assert read_geojson(path) == ([], [])
