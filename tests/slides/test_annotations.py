import json
import pickle
from dataclasses import replace

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from shapely import MultiPolygon, Polygon

from histoloc.errors import InputError
from histoloc.slides.annotations import CAMELYON_ROI, Annotations, Region, rasterise, read_annotations
from histoloc.slides.geojson import Feature, read_geojson, write_geojson

SQUARE = [(10, 20), (110, 20), (110, 120), (10, 120)]
HOLE = [(40, 50), (60, 50), (60, 70), (40, 70)]
BOW_TIE = [(0, 0), (20, 20), (20, 0), (0, 20)]


def asap(path, *annotations):
    """As ASAP writes Camelyon16: a group, and the vertices with their order."""
    text = ['<?xml version="1.0"?>', "<ASAP_Annotations>", "\t<Annotations>"]
    for i, (group, points) in enumerate(annotations):
        text.append(f'\t\t<Annotation Name="Annotation {i}" Type="Polygon" PartOfGroup="{group}" Color="#F4FA58">')
        text.append("\t\t\t<Coordinates>")
        text += [f'\t\t\t\t<Coordinate Order="{k}" X="{x}" Y="{y}" />' for k, (x, y) in enumerate(points)]
        text += ["\t\t\t</Coordinates>", "\t\t</Annotation>"]
    text += ["\t</Annotations>", "\t<AnnotationGroups>"]
    text += [
        f'\t\t<Group Name="{g}" PartOfGroup="None" Color="#00ff00"><Attributes /></Group>'
        for g in sorted({g for g, _ in annotations})
    ]
    text += ["\t</AnnotationGroups>", "</ASAP_Annotations>"]
    path.write_text("\n".join(text))
    return path


def drawn(*polygons, holes=()):
    regions = [Region(p, Feature(p)) for p in polygons] + [Region(p, Feature(p), "hole") for p in holes]
    return Annotations(tuple(regions))


def centres(geometry, x, y, width, height, downsample=1.0):
    """The oracle: shapely asks each pixel's centre."""
    u, v = np.meshgrid(x + (np.arange(width) + 0.5) * downsample, y + (np.arange(height) + 0.5) * downsample)
    return shapely.contains_xy(geometry, u, v)


def stars(seed, count=6, size=200.0):
    rng = np.random.default_rng(seed)
    items = []
    for _ in range(count):
        angles = np.sort(rng.random(23)) * 2 * np.pi
        radii = size / 8 + rng.random(23) * size / 4
        points = rng.random(2) * size + radii[:, None] * np.c_[np.cos(angles), np.sin(angles)]
        valid = shapely.make_valid(Polygon(points))
        items += [p for p in getattr(valid, "geoms", [valid]) if isinstance(p, Polygon)]
    return items


def test_camelyon_groups(tmp_path):
    file = asap(
        tmp_path / "tumor_001.xml", ("_0", SQUARE), ("_1", BOW_TIE[:3]), ("Tumor", SQUARE), ("_2", HOLE), ("x", HOLE)
    )
    annotations = read_annotations(file, roi=CAMELYON_ROI)
    assert [(r.feature.label, r.role) for r in annotations.regions] == [
        ("_0", "roi"), ("_1", "roi"), ("Tumor", "roi"), ("_2", "hole"),
    ]  # fmt: skip
    assert annotations.regions[0].polygon.equals(Polygon(SQUARE))
    assert annotations.bounds().tolist() == [[10, 20, 110, 120], [0, 0, 20, 20], [10, 20, 110, 120]]
    (warning,) = annotations.warnings
    assert str(file) in warning
    assert warning == f"{file}: left out, as no ROI: x (1)"
    with pytest.raises(InputError, match=r"has outlines of _0 \(1\), _1 \(1\), Tumor \(1\), x \(1\), and which"):
        read_annotations(file)


def test_other_classes_can_be_the_roi(tmp_path):
    file = asap(tmp_path / "a.xml", ("carcinoma", SQUARE), ("lumen", HOLE))
    annotations = read_annotations(file, roi=["carcinoma"], holes=["lumen"])
    assert rasterise(annotations, 0, 0, 200, 200).sum() == 100 * 100 - 20 * 20
    assert annotations.warnings == ()
    with pytest.raises(InputError, match=r"has outlines of carcinoma \(1\), lumen \(1\), and which .* --roi-class"):
        read_annotations(file)


def test_holes_are_subtracted_or_ignored(tmp_path):
    annotations = read_annotations(asap(tmp_path / "a.xml", ("_2", HOLE), ("_0", SQUARE)))
    assert rasterise(annotations, 0, 0, 150, 150).sum() == 100 * 100 - 20 * 20
    assert rasterise(annotations, 0, 0, 150, 150, holes="ignore").sum() == 100 * 100
    # Outlined, the last row and column belong to it too.
    assert rasterise(annotations, 0, 0, 150, 150, holes="ignore", outlined=True).sum() == 101 * 101
    with pytest.raises(ValueError, match="holes='ignore'"):
        rasterise(annotations, 0, 0, 150, 150, outlined=True)


def test_vertices_are_rounded_when_asked(tmp_path):
    file = asap(tmp_path / "a.xml", ("_0", [(0.4, 0.6), (10.6, 0.4), (10.4, 20.7)]))
    assert read_annotations(file).regions[0].polygon.bounds == (0.4, 0.4, 10.6, 20.7)
    rounded = read_annotations(file, rounded=True).regions[0]
    assert shapely.get_coordinates(rounded.polygon).tolist() == [[0, 1], [11, 0], [10, 21], [0, 1]]


def test_damaged_polygons_are_reported(tmp_path):
    far = [(500, 500), (600, 500), (600, 600)]
    file = asap(tmp_path / "a.xml", *(("_0", shape) for shape in ([(1, 1), (2, 2)], BOW_TIE, SQUARE, far)))
    annotations = read_annotations(file, size=(60, 100))
    few, crossing, leaving, outside, gone = annotations.warnings
    assert f"{file}, annotation 0: an outline has fewer than three vertices" in few
    assert f"{file}, annotation 1: is no valid polygon (Self-intersection" in crossing
    assert f"{file}, annotation 2: leaves the slide of 60x100 px; clipped" in leaving
    assert "annotation 3: leaves the slide" in outside
    assert "annotation 3: has no area on the slide; left out" in gone
    assert [r.polygon.area for r in annotations.regions] == [200, 50 * 80]
    assert all(r.polygon.is_valid for r in annotations.regions)


def test_files_without_annotations_are_refused(tmp_path):
    whole = asap(tmp_path / "whole.xml", ("_0", SQUARE), ("_0", SQUARE)).read_text()
    cases = {
        "half.xml": (whole[: len(whole) // 2], r"half\.xml: is no readable XML, it may be cut off"),
        "empty.xml": ("", "no readable XML"),
        "none.xml": ("<ASAP_Annotations><Annotations></Annotations></ASAP_Annotations>", r"none\.xml: holds no ann"),
        "other.xml": ("<html><body/></html>", "holds no annotations as ASAP"),
        "text.xml": (whole.replace('X="10"', 'X="ten"', 1), r"text\.xml, annotation 0: has no readable shape"),
        "lost.xml": (whole.replace('X="10"', "", 1), "annotation 0: has no readable shape"),
        "inf.xml": (whole.replace('X="10"', 'X="inf"', 1), "annotation 0: has no readable shape .*not finite"),
        "hole.xml": (whole.replace('"_0"', '"_2"'), r"hole\.xml: holds no outline of a ROI"),
        "half.geojson": ('{"type": "FeatureCollection", "features": [{"ty', r"half\.geojson: is no readable GeoJSON"),
        "none.geojson": ('{"type": "FeatureCollection", "features": []}', "no outline of a ROI"),
        "list.json": ("3", "holds no list of features"),
        "wrong.json": ('[{"type": "Feature", "geometry": {"type": "Polygon"}}]', "annotation 0: has no readable shape"),
        "flat.json": (
            '[{"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [[[0], [1], [2]]]}}]',
            "annotation 0: has no readable shape",
        ),
        "notes.txt": ("", "ASAP XML"),
    }
    for name, (text, message) in cases.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(InputError, match=message):
            read_annotations(tmp_path / name)
    for name in ("absent.xml", "absent.geojson"):
        with pytest.raises(InputError, match="there is no such annotation file"):
            read_annotations(tmp_path / name)


QUPATH = {
    "type": "FeatureCollection",
    "features": [
        {
            "type": "Feature",
            "id": "0f1e2d3c-0000-4000-8000-000000000000",
            "geometry": {"type": "Polygon", "coordinates": [[*SQUARE, SQUARE[0]], [*HOLE, HOLE[0]]]},
            "properties": {
                "objectType": "annotation",
                "classification": {"name": "Tumor", "color": [200, 0, 0]},
                "isLocked": True,
                "measurements": {"Area µm^2": 12.5},
            },
        },
        {
            "type": "Feature",
            "id": "PathAnnotationObject",
            "geometry": {
                "type": "MultiPolygon",
                "coordinates": [[[[200, 0], [210, 0], [210, 5], [200, 0]]], [[[300, 0], [310, 0], [310, 5], [300, 0]]]],
            },
            "properties": {
                "classification": {"name": "Stroma", "colorRGB": -6895466},
                "measurements": [{"name": "mean", "value": 3}],
            },
        },
        {
            "type": "Feature",
            "geometry": {"type": "Point", "coordinates": [1, 2]},
            "properties": {"objectType": "annotation"},
        },
        {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": [[[0, 0], [9, 0], [9, 9], [0, 0]]]},
            "properties": {"objectType": "cell", "classification": {"names": ["Tumor", "Positive"]}},
        },
        {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": [[[0, 0], [9, 0], [0, 0]]]},
            "properties": {},
        },
    ],
}


@pytest.mark.parametrize("content", [QUPATH, QUPATH["features"]])
def test_geojson_as_qupath_writes_it(tmp_path, content):
    file = tmp_path / "a.geojson"
    file.write_text(json.dumps(content))
    features, warnings = read_geojson(file)
    tumour, stroma, cell = features
    assert tumour == Feature(Polygon(SQUARE, [HOLE]), "Tumor", measurements={"Area µm^2": 12.5})
    assert stroma.geometry.area == 50
    assert (stroma.label, stroma.measurements) == ("Stroma", {})
    assert (cell.label, cell.kind, cell.index) == ("Tumor: Positive", "detection", 3)
    assert [w.removeprefix(str(file)) for w in warnings] == [
        ", annotation 2: is no polygon; left out",
        ", annotation 4: an outline has fewer than three vertices; left out",
    ]
    annotations = read_annotations(file, roi=["Tumor", "stroma", "Tumor: Positive"])
    assert [r.feature.label for r in annotations.regions] == ["Tumor", "Stroma", "Tumor: Positive"]
    assert rasterise(annotations, 10, 20, 100, 100).sum() == 100 * 100 - 400
    with pytest.raises(
        InputError, match=r"has outlines of Tumor \(1\), Stroma \(1\), Tumor: Positive \(1\), and which"
    ):
        read_annotations(file)
    chosen = read_annotations(file, roi=["Tumor"])
    assert [r.feature.label for r in chosen.regions] == ["Tumor"]
    assert "left out, as no ROI: Stroma (1), Tumor: Positive (1)" in chosen.warnings[-1]


def test_geojson_round_trip(tmp_path):
    rng = np.random.default_rng(3)
    shapes = [Polygon(rng.random((n, 2)) * 1e5) for n in (3, 4, 9)]  # crossing themselves or not
    features = [
        Feature(shapes[0], "Tumor", (1, 2, 3), {"probability": 0.1 + 0.2}),
        Feature(MultiPolygon(shapes[1:]), "tümör", kind="detection"),
        Feature(Polygon(SQUARE, [HOLE])),
    ]
    write_geojson(tmp_path / "a.geojson", features)
    again = [replace(feature, color=None) for feature in features]
    assert read_geojson(tmp_path / "a.geojson") == (again, [])
    written = [feature["properties"] for feature in json.loads((tmp_path / "a.geojson").read_text())["features"]]
    assert written[0]["classification"] == {"name": "Tumor", "color": [1, 2, 3]}
    assert [properties["objectType"] for properties in written] == ["annotation", "detection", "annotation"]
    write_geojson(tmp_path / "none.geojson", [])
    assert read_geojson(tmp_path / "none.geojson") == ([], [])
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_geojson(tmp_path / "b.geojson", [Feature(shapes[0], measurements={"x": float("nan")})])
    assert not (tmp_path / "b.geojson").exists()


def test_xml_becomes_geojson(tmp_path):
    annotations = read_annotations(asap(tmp_path / "a.xml", ("_0", SQUARE), ("_0", BOW_TIE), ("_2", HOLE)))
    features = [Feature(region.polygon, region.feature.label) for region in annotations.regions]
    write_geojson(tmp_path / "a.geojson", features)
    again = read_annotations(tmp_path / "a.geojson")
    assert again.warnings == ()
    assert [(r.feature.label, r.role, r.polygon) for r in again.regions] == [
        (r.feature.label, r.role, r.polygon) for r in annotations.regions
    ]
    np.testing.assert_array_equal(rasterise(again, 0, 0, 120, 130), rasterise(annotations, 0, 0, 120, 130))


@settings(max_examples=60)
@given(
    st.integers(0, 10**6),
    st.floats(-50, 150),
    st.floats(-50, 150),
    st.integers(1, 90),
    st.integers(1, 90),
    st.sampled_from([1, 2, 3.7, 0.5]),
)
def test_pixels_whose_centre_is_inside(seed, x, y, width, height, downsample):
    polygons = stars(seed)
    roi, holes = polygons[:-2], polygons[-2:]
    mask = rasterise(drawn(*roi, holes=holes), x, y, width, height, downsample)
    expected = centres(shapely.union_all(roi), x, y, width, height, downsample)
    expected &= ~centres(shapely.union_all(holes), x, y, width, height, downsample)
    assert mask.shape == (height, width)
    np.testing.assert_array_equal(mask, expected)


def test_area_of_polygons_with_holes():
    ring = shapely.Point(1000.3, 900.7).buffer(700, quad_segs=64) - shapely.Point(900, 900).buffer(250, quad_segs=64)
    assert isinstance(ring, Polygon)
    mask = rasterise(drawn(ring), 200, 100, 1700, 1700)
    assert mask.sum() == pytest.approx(ring.area, rel=1e-3)
    coarse = rasterise(drawn(ring), 200, 100, 213, 213, 8)
    assert coarse.sum() * 64 == pytest.approx(ring.area, rel=1e-2)
    island = MultiPolygon([ring, shapely.Point(900, 900).buffer(100)])
    assert rasterise(drawn(island), 200, 100, 1700, 1700).sum() == pytest.approx(island.area, rel=1e-3)
    disc = Polygon(ring.exterior)
    assert rasterise(drawn(island), 200, 100, 1700, 1700, holes="ignore").sum() == pytest.approx(disc.area, rel=1e-3)


def test_neighbours_share_no_pixel_and_leave_none():
    left, right = Polygon([(0, 0), (7.5, 0), (3.5, 20), (0, 20)]), Polygon([(7.5, 0), (20, 0), (20, 20), (3.5, 20)])
    one, two = (rasterise(drawn(p), 0, 0, 20, 20) for p in (left, right))
    assert not (one & two).any()
    assert (one | two).all()


@pytest.mark.parametrize("options", [{}, {"holes": "ignore", "outlined": True}])
@pytest.mark.parametrize("downsample", [1, 4])
def test_a_region_is_a_cut_of_the_whole(options, downsample):
    annotations = drawn(*(shapely.transform(p, np.rint) for p in stars(5, 4, 300)))
    whole = rasterise(annotations, 0, 0, 120, 110, downsample, **options)
    assert 0.1 < whole.mean() < 0.95
    for x, y in [(0, 0), (17, 31), (60, 5), (99, 89)]:
        part = rasterise(annotations, x * downsample, y * downsample, 20, 20, downsample, **options)
        np.testing.assert_array_equal(part, whole[y : y + 20, x : x + 20])


def test_the_published_masks(tmp_path):
    """One 1-bit image per polygon, filled and outlined; their logical OR."""
    shapes = [[(x + 3, y + 5) for x, y in BOW_TIE], HOLE, [(5, 100), (130, 20), (90, 115), (64, 60)]]
    file = asap(tmp_path / "a.xml", *(("_0", s) for s in shapes), ("_2", [(6, 8), (12, 8), (12, 14)]))
    annotations = read_annotations(file, size=(128, 128), rounded=True)
    expected = np.zeros((128, 128), bool)
    for shape in shapes:
        image = Image.new("1", (128, 128))
        ImageDraw.Draw(image).polygon(shape, fill=1, outline=1)
        expected |= np.array(image)
    np.testing.assert_array_equal(rasterise(annotations, 0, 0, 128, 128, holes="ignore", outlined=True), expected)
    part = rasterise(annotations, 30, 40, 50, 60, holes="ignore", outlined=True)
    np.testing.assert_array_equal(part, expected[40:100, 30:80])


def test_only_polygons_that_touch_are_drawn():
    rng = np.random.default_rng(0)
    corners = rng.random((20_000, 2)) * 1e5
    annotations = drawn(*shapely.box(*corners.T, *(corners + 10).T))
    mask = rasterise(annotations, 5e4, 5e4, 512, 512)
    near = [r.polygon for r in annotations.regions if r.polygon.intersects(shapely.box(5e4, 5e4, 50_512, 50_512))]
    np.testing.assert_array_equal(mask, centres(shapely.union_all(near), 5e4, 5e4, 512, 512))
    again = pickle.loads(pickle.dumps(annotations))
    np.testing.assert_array_equal(rasterise(again, 5e4, 5e4, 512, 512), mask)


def test_impossible_regions_are_a_mistake():
    for size in [(0, 5, 1), (5, 0, 1), (5, 5, 0), (5, 5, float("nan"))]:
        with pytest.raises(ValueError, match="cannot draw"):
            rasterise(drawn(Polygon(SQUARE)), 0, 0, *size)
    assert not rasterise(drawn(), 0, 0, 5, 5).any()
    assert not rasterise(drawn(Polygon(SQUARE)), 500, 500, 5, 5).any()
    assert drawn().bounds().shape == (0, 4)
