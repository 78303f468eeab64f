"""Which outlines are ROI: as QuPath, ASAP, Camelyon17 and others write them, on a slide whose tumour is known."""

import json
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import shapely

from factory import box, make_slide
from histoloc.cli.main import main
from histoloc.data.pixels import read_truth
from histoloc.data.table import read_table
from histoloc.errors import InputError
from histoloc.slides.annotations import rasterise, read_annotations

SIDE = 128  # of a tile; the slide has 8 x 6 of them, the tumour 2 x 2
SIZE = (8 * SIDE, 6 * SIDE)
TUMOUR = (256, 256, 512, 512)
EDGES = (20, 20, 1000, 750)  # around 6 x 4 whole tiles
PART = (256, 256, 384, 384)  # one tile of the tumour
OTHER = (640, 256, 768, 512)  # two tiles beside it


def ring(left, top, right, bottom):
    return [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]


def feature(where, label: object = "Tumor", kind="Polygon", **properties):
    entry = {"classification": {"name": label, "color": [200, 0, 0]}} if isinstance(label, str) else {}
    coordinates = [ring(*where)] if kind == "Polygon" else where
    return {
        "type": "Feature",
        "geometry": {"type": kind, "coordinates": coordinates},
        "properties": {"objectType": "annotation", **entry, **properties},
    }


def write_features(path: Path, *features) -> Path:
    path.write_text(json.dumps({"type": "FeatureCollection", "features": list(features)}))
    return path


def write_groups(path: Path, *annotations) -> Path:
    """ASAP's XML of (group, type, points)."""
    body = "".join(
        f'<Annotation Name="a" Type="{kind}" PartOfGroup="{group}"><Coordinates>'
        + "".join(f'<Coordinate Order="{i}" X="{x}" Y="{y}"/>' for i, (x, y) in enumerate(points))
        + "</Coordinates></Annotation>"
        for group, kind, points in annotations
    )
    path.write_text(f"<ASAP_Annotations><Annotations>{body}</Annotations></ASAP_Annotations>")
    return path


def area(path: Path, **options) -> int:
    return int(rasterise(read_annotations(path, size=SIZE, **options), 0, 0, *SIZE).sum())


WHOLE = 256 * 256
SQUARE = feature(TUMOUR)


@pytest.mark.parametrize(
    ("features", "expected", "roles"),
    [
        ([SQUARE], WHOLE, [("roi", "Tumor", 1)]),
        ([feature(EDGES, "Region*"), SQUARE], WHOLE, [("limit", "Region*", 1), ("roi", "Tumor", 1)]),
        ([feature(EDGES, None), SQUARE], WHOLE, [("roi", "Tumor", 1)]),
        ([SQUARE, feature(PART, "Ignore*")], WHOLE - SIDE**2, [("roi", "Tumor", 1), ("ignore", "Ignore*", 1)]),
        ([SQUARE, feature(OTHER, "Immune cells*")], WHOLE, [("roi", "Tumor", 1)]),
        ([SQUARE, feature(PART, "Exclusion")], WHOLE - SIDE**2, [("roi", "Tumor", 1), ("hole", "Exclusion", 1)]),
        ([SQUARE, feature(OTHER, None)], WHOLE + 2 * SIDE**2, [("roi", "Tumor", 1), ("roi", "", 1)]),
        ([feature(TUMOUR, None)], WHOLE, [("roi", "", 1)]),
        ([SQUARE, SQUARE, feature(PART, "TUMOR")], WHOLE, [("roi", "Tumor", 2), ("roi", "TUMOR", 1)]),
        ([SQUARE, feature([5, 5], "a", "Point"), feature([[0, 0], [9, 9]], "b", "LineString")], WHOLE, None),
        ([SQUARE, feature([[1, 1], [9, 9], [700, 700]], "Tumor", "MultiPoint")], WHOLE, [("roi", "Tumor", 1)]),
        ([feature(TUMOUR, None, classification="Tumor"), feature(EDGES, None, classification="Region*")], WHOLE, None),
        # GeoPandas turns what is nested into text
        ([feature(TUMOUR, None, classification=json.dumps({"name": "Tumor"})), feature(EDGES, "Region*")], WHOLE, None),
    ],
)
def test_default_roles(tmp_path, features, expected, roles):
    path = write_features(tmp_path / "a.geojson", *features)
    assert area(path) == expected
    if roles:
        assert list(read_annotations(path, size=SIZE).counts) == roles


def test_forms_of_geojson(tmp_path):
    """One feature, a list, a geometry, a collection of geometries: one meaning."""
    geometry = SQUARE["geometry"]
    collection = {"type": "GeometryCollection", "geometries": [geometry, {"type": "Point", "coordinates": [5, 5]}]}
    for content in (SQUARE, [SQUARE], geometry, collection, SQUARE | {"geometry": collection}):
        (tmp_path / "a.geojson").write_text(json.dumps(content), encoding="utf-8-sig")
        assert area(tmp_path / "a.geojson") == WHOLE
    for content in ({"shapes": [{"label": "Tumor", "points": ring(*TUMOUR)}]}, {"annotations": []}, 3, "x", None):
        (tmp_path / "a.json").write_text(json.dumps(content))
        with pytest.raises(InputError, match=r"a\.json: holds no list of features; export the annotations as GeoJSON"):
            read_annotations(tmp_path / "a.json")


def test_several_classes_have_to_be_named(tmp_path):
    path = write_features(tmp_path / "a.geojson", SQUARE, feature(OTHER, "Stroma"), feature(PART, "Necrosis"))
    with pytest.raises(InputError, match=r"Tumor \(1\), Stroma \(1\), Necrosis \(1\), and which .* by --roi-class"):
        read_annotations(path)
    assert area(path, roi=["tumor"]) == WHOLE
    assert area(path, roi=["Tumor", "Stroma"]) == WHOLE + 2 * SIDE**2
    assert area(path, roi=["Tumor"], holes=["necrosis"]) == WHOLE - SIDE**2
    assert read_annotations(path, roi=["Tumor"]).warnings == (f"{path}: left out, as no ROI: Stroma (1), Necrosis (1)",)
    with pytest.raises(
        InputError, match=r"no outline of a ROI on the slide, of these: Tumor \(1\), Stroma \(1\), Necro"
    ):
        read_annotations(path, roi=["Tumour"])
    with pytest.raises(InputError, match="the class tumor is named as ROI and as a hole"):
        read_annotations(path, roi=["Tumor"], holes=["tumor"])
    # What a star says holds beside named classes, unless it is named itself.
    path = write_features(tmp_path / "b.geojson", SQUARE, feature(PART, "Ignore*"), feature(OTHER, "Region*"))
    assert area(path, roi=["Tumor"]) == WHOLE - SIDE**2
    assert area(path, roi=["Region*"]) == 2 * SIDE**2


POINTS = ring(*TUMOUR)[:-1]
STAR = [(200 + 37 * i % 700, 100 + 61 * i % 500) for i in range(40)]


@pytest.mark.parametrize(
    ("annotations", "expected"),
    [
        ([("Tumor", "Polygon", POINTS)], WHOLE),
        ([("tumor", "Polygon", POINTS)], WHOLE),
        ([("None", "Polygon", POINTS)], WHOLE),
        ([("carcinoma", "Spline", POINTS)], WHOLE),
        ([("metastases", "Polygon", POINTS), ("normal", "Polygon", ring(*PART)[:-1])], WHOLE - SIDE**2),
        ([("_0", "Polygon", POINTS), ("_1", "Polygon", POINTS), ("_2", "Polygon", ring(*PART))], WHOLE - SIDE**2),
        ([("Tumor", "Polygon", POINTS), ("Exclusion", "Rectangle", ring(*PART)[:-1])], WHOLE - SIDE**2),
        ([("Tumor", "Polygon", POINTS), ("Tumor", "PointSet", STAR)], WHOLE),
        ([("Tumor", "Polygon", POINTS), ("Tumor", "Dot", STAR[:1]), ("Tumor", "Measurement", STAR[:3])], WHOLE),
    ],
)
def test_groups_of_asap(tmp_path, annotations, expected):
    assert area(write_groups(tmp_path / "a.xml", *annotations)) == expected


def test_the_order_of_asap_counts_and_decimal_commas_are_refused(tmp_path):
    text = write_groups(tmp_path / "a.xml", ("Tumor", "Polygon", POINTS)).read_text()
    swapped = text.replace('Order="1"', 'Order="x"').replace('Order="2"', 'Order="1"').replace('Order="x"', 'Order="2"')
    (tmp_path / "a.xml").write_text(swapped)
    assert area(tmp_path / "a.xml") == shapely.make_valid(shapely.Polygon([POINTS[i] for i in (0, 2, 1, 3)])).area
    (tmp_path / "a.xml").write_text(text.replace('X="256"', 'X="256,0"'))
    with pytest.raises(InputError, match=r"annotation 0: has no readable shape \(could not convert .* '256,0'\)"):
        read_annotations(tmp_path / "a.xml")


@pytest.mark.parametrize("vertices", [240, 3000, 30_000])
@pytest.mark.parametrize("suffix", ["geojson", "xml"])
def test_an_outline_that_crosses_itself_all_over_ends_soon(tmp_path, vertices, suffix):
    points = (np.random.default_rng(0).random((vertices, 2)) * SIZE).round(2).tolist()
    path = tmp_path / f"a.{suffix}"
    if suffix == "xml":
        write_groups(path, ("Tumor", "Polygon", points))
    else:
        geometry = {"type": "Polygon", "coordinates": [[*points, points[0]]]}
        path.write_text(json.dumps({"type": "Feature", "geometry": geometry, "properties": {}}))
    started = time.process_time()
    with pytest.raises(InputError, match="its outlines cross themselves more than 5,000 times; draw them again"):
        read_annotations(path, size=SIZE)
    assert time.process_time() - started < 10


def test_a_hand_that_crosses_its_line_is_repaired(tmp_path):
    """A spiral of two turns is what lies within it, once."""
    angles = np.linspace(0, 4 * np.pi, 4000, endpoint=False)
    radii = 200 + 20 * np.sin(7.3 * angles)
    points = np.c_[500 + radii * np.cos(angles), 400 + radii * np.sin(angles)].round(3).tolist()
    path = write_groups(tmp_path / "a.xml", ("Tumor", "Polygon", points))
    annotations = read_annotations(path, size=SIZE)
    assert "is no valid polygon" in annotations.warnings[0]
    loops = shapely.polygonize([shapely.node(shapely.LinearRing(points))])
    assert annotations.regions[0].polygon.area == pytest.approx(shapely.union_all(loops).area, rel=1e-3)


def test_too_many_polygons_too_many_bytes_and_too_deep(tmp_path, monkeypatch):
    from histoloc.slides import geojson

    monkeypatch.setattr(geojson, "_MOST_POLYGONS", 3)
    monkeypatch.setattr(geojson, "_MOST_BYTES", 10**6)
    path = write_features(tmp_path / "a.geojson", *[SQUARE] * 4)
    with pytest.raises(InputError, match="holds more than 3 polygons; export only outlines of the ROI"):
        read_annotations(path)
    path.write_text(" " * 10**6 + "[]")
    with pytest.raises(InputError, match="is larger than 1 MB; simplify the outlines"):
        read_annotations(path)
    inner = '{"type": "GeometryCollection", "geometries": ['
    deep = {
        "a.json": ["[" * 100_000, inner * 9000 + "]}" * 9000, '[{"type": "Feature", "geometry": ' + "[" * 50_000],
        "a.xml": ["<a>" * 200_000, "<ASAP_Annotations>" + "<a>" * 60_000 + "</a>" * 60_000 + "</ASAP_Annotations>"],
    }
    bomb = '<!DOCTYPE a [<!ENTITY a "' + "x" * 9999 + '">' + "".join(
        f'<!ENTITY {b} "{f"&{a};" * 99}">' for a, b in zip("abcd", "bcde", strict=True)
    )  # fmt: skip
    deep["a.xml"].append(f"{bomb}]><ASAP_Annotations>&e;</ASAP_Annotations>")
    for name, texts in deep.items():
        for text in texts:
            (tmp_path / name).write_text(text)
            with pytest.raises(InputError, match=r"readable|holds no"):
                read_annotations(tmp_path / name)


@pytest.fixture(scope="module")
def slides(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("outlined")
    for name in "ab":
        make_slide(folder / f"{name}.tif", SIZE, 0.5, (box("tissue", 0, 0, *SIZE),), downsamples=(1, 16))
    return folder


def cut(folder, out, *options, header="slide,label,annotation", row="a.tif,tumour,a.geojson", plain="b.tif,normal,"):
    """`histoloc data slides`: the exit code and the table."""
    (folder / "list.csv").write_text(f"{header}\n{row}\n{plain}\n")
    words = ["--mpp", "0.5", "--size", str(SIDE), "--tissue", "0", "--workers", "1", "--test", "0", "--valid", "0"]
    code = 0
    try:
        main(["data", "slides", str(folder / "list.csv"), "--out", str(out), *words, *options])
    except SystemExit as stopped:
        code = stopped.code
    table = pd.read_csv(out) if out.exists() else pd.DataFrame({"image": [], "label": []})
    return code, table[table["image"].map(lambda cell: Path(str(cell)).name) == "a.tif"]


def test_the_command_prints_what_it_took_and_trains_on_it(slides, tmp_path, capsys):
    write_features(slides / "a.geojson", feature(EDGES, "Region*"), SQUARE, feature(PART, "Ignore*"))
    code, rows = cut(slides, tmp_path / "t.csv")
    assert (code, (rows["label"] == "tumour").sum(), len(rows)) == (0, 3, 6 * 4 - 1)
    text = capsys.readouterr().out.splitlines()
    assert "outlines, ROI: Tumor (1)" in text
    assert "outlines, cut out and without a label: Ignore* (1)" in text
    assert "outlines, where tiles are taken: Region* (1)" in text
    assert f"{48 - 23} tiles touch Ignore* or leave Region* and are left out" in text
    samples = [sample for sample in read_table(tmp_path / "t.csv").samples if sample.image.name == "a.tif"]
    for sample in samples:
        truth = read_truth(sample)
        assert truth is not None
        assert truth.mean() == (sample.label == "tumour")


def test_classes_by_option_and_by_column(slides, tmp_path):
    write_features(slides / "a.geojson", SQUARE, feature(OTHER, "Stroma"), feature(PART, "Necrosis"))
    names = ["--roi-class", "Tumor", "--roi-class", "Stroma", "--hole-class", "Necrosis"]
    code, rows = cut(slides, tmp_path / "a.csv", *names)
    assert (code, (rows["label"] == "tumour").sum()) == (0, 5)
    header, row = "slide,label,annotation,roi_class,hole_class", "a.tif,tumour,a.geojson,Tumor|Stroma,Necrosis"
    code, rows = cut(slides, tmp_path / "b.csv", header=header, row=row, plain="b.tif,normal,,,")
    assert (code, (rows["label"] == "tumour").sum()) == (0, 5)
    for sample in read_table(tmp_path / "b.csv").samples:  # its masks are those, without any column
        truth = read_truth(sample)
        assert truth is None or truth.mean() == (sample.label == "tumour")
    code, rows = cut(slides, tmp_path / "b.csv", "--roi-class", "Tumor")
    assert (code, (rows["label"] == "tumour").sum()) == (0, 4), "other classes, other tiles"


def test_an_outline_of_two_meanings_is_one_slides_problem(slides, tmp_path, capsys):
    write_features(slides / "a.geojson", SQUARE, feature(OTHER, "Stroma"))
    code, rows = cut(slides, tmp_path / "t.csv")
    assert (code, len(rows)) == (1, 0)
    error = capsys.readouterr().err
    assert "failed: a.tif: " in error
    assert "has outlines of Tumor (1), Stroma (1), and which of them are ROI is not clear" in error
