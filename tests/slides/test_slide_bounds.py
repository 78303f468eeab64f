"""Slides with an empty margin: outlines are read and written, and maps made, as QuPath shows such a slide."""

import io
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import shapely
import tifffile
from PIL import Image
from written_slides import GLASS, MARGIN, MPP, SIZE, TUMOUR, WHOLE, write_scn, write_tiff

from histoloc.cli.main import main
from histoloc.data.pixels import read_truth
from histoloc.data.table import read_table
from histoloc.slide_cohort import predict_slides
from histoloc.slides.geojson import Feature, read_geojson, write_geojson
from histoloc.slides.reader import open_slide
from histoloc.viewer.catalog import Catalog
from histoloc.viewer.tiles import render_tile


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """a.scn with the tumour, b.scn without; its outline as QuPath (q), OpenSlide (o) and ASAP (o.xml) have it."""
    folder = tmp_path_factory.mktemp("scn")
    write_scn(folder / "a.scn")
    write_scn(folder / "b.scn", tumour=False)
    write_tiff(folder / "plain.tif")
    square, (x, y) = shapely.box(*TUMOUR), MARGIN
    moved = shapely.transform(square, lambda points: points + np.array([x, y]))
    write_geojson(folder / "q.geojson", [Feature(square, "Tumor")])
    write_geojson(folder / "o.geojson", [Feature(moved, "Tumor")])
    points = shapely.get_coordinates(moved)[:-1].tolist()
    corners = "".join(f'<Coordinate Order="{i}" X="{u}" Y="{v}"/>' for i, (u, v) in enumerate(points))
    text = f'<Annotation Type="Polygon" PartOfGroup="Tumor"><Coordinates>{corners}</Coordinates></Annotation>'
    (folder / "o.xml").write_text(f"<ASAP_Annotations><Annotations>{text}</Annotations></ASAP_Annotations>")
    return folder


@pytest.mark.parametrize(
    ("outline", "options"),
    [("q.geojson", []), ("q.geojson", ["--origin", "bounds"]), ("o.geojson", ["--origin", "level0"]), ("o.xml", [])],
)
def test_outlines_of_a_slide_with_a_margin(folder, tmp_path, outline, options):
    table = f"slide,label,annotation\n{folder / 'a.scn'},tumour,{folder / outline}\n{folder / 'b.scn'},normal,\n"
    (tmp_path / "list.csv").write_text(table)
    out = tmp_path / "t.csv"
    words = ["--mpp", str(MPP), "--size", "128", "--tissue", "0.1", "--test", "0", "--valid", "0", "--workers", "1"]
    main(["data", "slides", str(tmp_path / "list.csv"), "--out", str(out), *words, *options])
    rows = pd.read_csv(out)
    rows = rows[rows["label"] == "tumour"]
    assert sorted(zip(rows["x"], rows["y"], strict=True)) == [(384, 768), (384, 896), (512, 768), (512, 896)]
    for sample in read_table(out).samples:  # the masks that training and evaluation read are there too
        truth = read_truth(sample)
        assert truth is None or truth.mean() == (sample.label == "tumour")


def outline_box(file: Path) -> tuple[float, ...]:
    features, _ = read_geojson(file)
    return tuple(shapely.total_bounds([feature.geometry for feature in features]))


def test_maps_and_outlines_are_written_where_the_slide_begins(folder, tmp_path, allones_run):
    options = {"mpp": 1.0, "tile": 32, "overlap": 0, "batch": 64, "device": "cpu", "progress": False, "threshold": 0.5}
    boxes, sizes = {}, {}
    for origin in ("bounds", "level0"):
        out = tmp_path / origin
        predict_slides(allones_run, [folder / "a.scn", folder / "plain.tif"], out, origin=origin, **options)
        for name in ("a", "plain"):
            boxes[origin, name] = outline_box(out / name / "regions.geojson")
            sizes[origin, name] = tifffile.imread(out / name / "map.ome.tif").shape
            picture = np.asarray(Image.open(out / name / "overview.png"))[..., :3].astype(int)
            assert not (abs(picture - GLASS).max(axis=-1) < 30).any(), "no picture of label or glass"
        record = json.loads((out / "a" / "slide.json").read_text())
        assert (record["width"], record["height"]) == (SIZE if origin == "bounds" else WHOLE)
        assert (pd.read_csv(out / "a" / "tiles.csv")["y"].min() >= MARGIN[1]) == (origin == "level0")
        (entry,) = [e for e in Catalog([out]).entries.values() if e.name == "a"]
        with open_slide(folder / "a.scn", origin=origin) as slide:
            assert (entry.width, entry.height) == slide.size
            shown = np.asarray(Image.open(io.BytesIO(render_tile(entry, "picture", 0, 0, 0) or b""))).astype(int)
            assert abs(shown - slide.thumbnail(max_side=shown.shape[1])[: shown.shape[0]]).mean() < 12
    cell = 64  # pixels of level 0
    assert boxes["bounds", "plain"] == boxes["level0", "plain"] == boxes["bounds", "a"]
    assert boxes["bounds", "a"] == pytest.approx((64, 64, 704, 448), abs=cell)
    np.testing.assert_allclose(np.subtract(boxes["level0", "a"], boxes["bounds", "a"]), MARGIN * 2, atol=cell)
    assert sizes["bounds", "plain"] == sizes["bounds", "a"] == (SIZE[1] / cell, SIZE[0] / cell)
    assert sizes["level0", "a"] == (WHOLE[1] / cell, WHOLE[0] / cell)


@pytest.mark.parametrize(("stored", "said"), [(MPP, 0.25), (None, MPP), (MPP, MPP)])
def test_a_scale_that_is_given_fills_a_gap_and_a_contradiction_is_said(tmp_path, allones_run, capsys, stored, said):
    """One rule for the list, the option, the table and `slides info`: the slide's own scale counts."""
    scale = {} if stored else {"resolution": (1, 1), "resolutionunit": "NONE"}
    slide, other = (write_tiff(tmp_path / f"{name}.tif", **scale) for name in ("a", "b"))
    differs = stored is not None and said != stored
    (tmp_path / "list.csv").write_text(f"slide,label,mpp\na.tif,x,{said}\nb.tif,y,{said}\n")
    words = ["--mpp", "1", "--size", "64", "--test", "0", "--valid", "0", "--workers", "1"]
    main(["data", "slides", str(tmp_path / "list.csv"), "--out", str(tmp_path / "t.csv"), *words])
    note = f"a.tif: says 0.5 µm/px, but {{}} {said}; its own 0.5 are used"
    assert (note.format("mpp in the table") in capsys.readouterr().err) == differs
    rows = pd.read_csv(tmp_path / "t.csv")
    assert rows["x"].diff().max() == 128, "tiles are cut at the scale of 0.5"
    assert ("slide_mpp" in rows.columns) == (stored is None)
    main(["slides", "info", str(slide), "--mpp", str(said)])
    output = capsys.readouterr()
    assert f"mpp          {MPP}" in output.out
    assert (note.format("--mpp") in output.err) == differs
    options = {"mpp": 2.0, "tile": 64, "device": "cpu", "progress": False, "slide_mpp": said}
    cohort = predict_slides(allones_run, [slide, other], tmp_path / "out", **options)
    assert any(note.format("--slide-mpp") in line for line in cohort.notes) == differs
    assert json.loads((tmp_path / "out" / "a" / "slide.json").read_text())["mpp"] == MPP
