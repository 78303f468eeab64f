"""Tables of one's own slides: coordinates, labels and splits by hand; equal for any number of workers."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from distributed import LocalCluster
from shapely import Polygon

from factory import box, make_slide
from histoloc.cli.main import main
from histoloc.data.pixels import read_pixels, read_truth
from histoloc.data.table import read_table
from histoloc.datasets.options import TileOptions
from histoloc.datasets.slide_list import ListedSlide, read_slides
from histoloc.datasets.tiles import slide_splits, slide_tiles, tiles_of_slide
from histoloc.errors import InputError
from histoloc.runner import JobOptions
from histoloc.slides.geojson import Feature, write_geojson

MPP = 0.5
SIZE = 256
# Whole tiles of 256 px: columns 1 to 4 and rows 1 to 3 of 6 x 5. Closing and the mask's pixels of 16 px blur edges.
TISSUE = box("tissue", SIZE, SIZE, 4 * SIZE, 3 * SIZE)
LIST = Path("list.csv")
TILES = [(column * SIZE, row * SIZE) for row in (1, 2, 3) for column in (1, 2, 3, 4)]


def tissue_slide(path: Path, mpp: float | None = MPP, regions=(TISSUE,)) -> Path:
    make_slide(path, (6 * SIZE, 5 * SIZE), mpp, regions)
    return path


def write_list(path: Path, header: str, *rows: str) -> Path:
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Six slides a.tif to f.tif; metastases on a, b, c, outlined; an empty slide, and one that is none."""
    folder = tmp_path_factory.mktemp("own")
    for name in "abcdef":
        tissue_slide(folder / f"{name}.tif")
    # Of tile (1, 1) all, of (2, 1) three quarters, of (3, 1) nothing, of (1, 2) a quarter, of (2, 2) 3/16.
    outline = Polygon([(256, 256), (704, 256), (704, 512), (704, 576), (256, 576)])
    for name in "abc":
        write_geojson(folder / f"{name}.geojson", [Feature(outline, "tumor")])
    tissue_slide(folder / "glass.tif", regions=())
    (folder / "broken.tif").write_bytes(b"II*\0 nothing more")
    write_list(
        folder / "list.csv",
        "slide,label,annotation",
        *[f"{name}.tif,tumor,{name}.geojson" for name in "abc"],
        *[f"{name}.tif,normal," for name in "def"],
    )
    write_list(folder / "plain.csv", "slide,label", *[f"{n}.tif,{'ab'[n > 'c']}" for n in "abcdef"])
    return folder


def tiles(folder, out, table="plain.csv", **options):
    jobs = JobOptions(workers=1, progress=False, scheduler=options.pop("scheduler", None))
    options = {"mpp": MPP, "size": SIZE, "tissue": 0.8} | options
    made = slide_tiles(folder / table, out=out, options=TileOptions(**options), jobs=jobs)
    return made, pd.read_csv(out, keep_default_na=False)


def corners(rows, image) -> list[tuple[int, int]]:
    rows = rows[rows["image"].map(lambda cell: Path(cell).name) == image]
    return list(zip(rows["x"], rows["y"], strict=True))


def test_tiles_lie_where_the_tissue_is(folder, tmp_path):
    made, rows = tiles(folder, tmp_path / "tiles.csv")
    for name in "abcdef":
        assert corners(rows, f"{name}.tif") == TILES
    assert len(rows) == 72
    assert (made.remarks, made.failed, made.warnings) == ([], {}, [])
    assert (rows[["width", "height"]] == SIZE).all(axis=None)
    assert (rows["mpp"] == MPP).all()
    assert (rows["tissue"] > 0.8).all()
    assert (rows["mask"] == "").all()
    assert {"roi", "slide_mpp"}.isdisjoint(rows.columns)
    assert (rows["group"] == rows["image"].map(lambda cell: Path(str(cell)).name)).all()
    table = read_table(tmp_path / "tiles.csv")
    assert read_pixels(table.samples[0]).mean() < 215  # tissue is darker than glass
    counts = table.counts()
    assert counts.to_numpy().tolist() == [[12, 12]] * 3


def test_scale_and_stride_by_hand(folder):
    item = {"slide": str(folder / "a.tif"), "annotations": None}
    settings = {"mpp": 2 * MPP, "size": 128, "stride": 64, "tissue": 0.95}
    result = tiles_of_slide(item, settings)
    # 128 px at 1 µm/px are 256 px of level 0, half of it from tile to tile: 7 x 5 tiles lie within the tissue.
    within = {(x, y) for x in range(256, 1025, 128) for y in range(256, 769, 128)}
    assert {(tile["x"], tile["y"]) for tile in result["tiles"]} == within
    everything = tiles_of_slide(item, settings | {"tissue": 0.0})
    assert len(everything["tiles"]) == 11 * 9
    assert everything["warnings"] == []
    uneven = tiles_of_slide(item, settings | {"mpp": 0.7, "size": 100, "stride": 150, "tissue": 0.0})
    # 100 px are 140 px of level 0, steps 210 px: (1536 - 140) / 210 = 6.6 and (1280 - 140) / 210 = 5.4.
    assert [(t["x"], t["y"]) for t in uneven["tiles"]] == [(x * 210, y * 210) for y in range(6) for x in range(7)]


def test_labels_by_annotation(folder, tmp_path):
    made, rows = tiles(folder, tmp_path / "tiles.csv", "list.csv", roi=0.7)
    a = rows[rows["group"] == "a.tif"]
    roi = {(x // SIZE, y // SIZE): float(share) for x, y, share in zip(a["x"], a["y"], a["roi"], strict=True)}
    assert (roi.pop((1, 1)), roi.pop((2, 1))) == (1, 0.75)
    assert len(roi) == 8
    assert set(roi.values()) == {0}
    assert made.remarks == ["outlines, ROI: tumor (3)", "6 tiles with less ROI than asked for are left out"]
    assert list(a["label"]) == ["tumor"] * 2 + ["normal"] * 8
    assert (rows[rows["group"] == "d.tif"]["label"] == "normal").all()
    assert (rows.loc[rows["group"].isin(["d.tif", "e.tif", "f.tif"]), "mask"] == "").all()
    for sample in read_table(tmp_path / "tiles.csv").samples:
        truth = read_truth(sample)
        if sample.group == "a.tif":
            assert truth is not None
            assert truth.any() == (sample.label == "tumor")
        elif sample.group == "d.tif":
            assert truth is None
    # Another share needs no slide again: the quarter counts now, the 3/16 do not.
    before = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "tiles.jobs" / "parts").iterdir()}
    made, rows = tiles(folder, tmp_path / "tiles.csv", "list.csv", roi=0.25)
    assert made.remarks[1:] == ["3 tiles with less ROI than asked for are left out"]
    assert (rows["label"] == "tumor").sum() == 9
    assert {p.name: p.stat().st_mtime_ns for p in (tmp_path / "tiles.jobs" / "parts").iterdir()} == before


def test_a_class_without_roi_can_be_named(folder, tmp_path):
    write_list(folder / "annotated.csv", "slide,label,annotation", *[f"{n}.tif,tumor,{n}.geojson" for n in "abc"])
    _, rows = tiles(folder, tmp_path / "tiles.csv", "annotated.csv", roi=0.7, empty_class="stroma")
    assert list(rows.loc[rows["group"] == "a.tif", "label"]) == ["tumor"] * 2 + ["stroma"] * 8
    with pytest.raises(InputError, match=r"--empty-class tumor: .* has annotated slides of it"):
        tiles(folder, tmp_path / "no.csv", "annotated.csv", empty_class="tumor")


def test_one_process_and_three_workers_write_equal_tables(folder, tmp_path):
    _, one = tiles(folder, tmp_path / "one.csv", "list.csv", per_slide=5, seed=3)
    # Threads, since processes are slow to start; test_jobs.py has these.
    threads: dict[str, Any] = {"processes": False, "protocol": "tcp", "dashboard_address": None}
    cluster = LocalCluster(n_workers=3, threads_per_worker=1, **threads)
    with cluster:
        address = cluster.scheduler_address
        _, three = tiles(folder, tmp_path / "three.csv", "list.csv", per_slide=5, seed=3, scheduler=address)
    assert (tmp_path / "one.csv").read_text() == (tmp_path / "three.csv").read_text().replace("three.out", "one.out")
    assert len(one) == len(three) == 30
    tiles(folder, tmp_path / "one.csv", "list.csv", per_slide=5, seed=4)
    assert (tmp_path / "one.csv").read_text() != (tmp_path / "three.csv").read_text().replace("three.out", "one.out")


def test_fewer_tiles_of_a_slide_are_among_more(folder, tmp_path):
    five, seven = (tiles(folder, tmp_path / "t.csv", per_slide=n)[1] for n in (5, 7))
    for name in "abcdef":
        few, more = corners(five, f"{name}.tif"), corners(seven, f"{name}.tif")
        assert len(few) == 5
        assert set(few) < set(more) < set(TILES)
    assert len({tuple(corners(five, f"{name}.tif")) for name in "abcdef"}) > 1


def test_failed_slides_are_listed_and_completed(folder, tmp_path):
    slides = {name: tissue_slide(tmp_path / f"{name}.tif") for name in "abcdef"}
    tissue_slide(slides["b"], mpp=None)
    whole = slides["c"].read_bytes()
    slides["c"].write_bytes(whole[: len(whole) // 2])
    tissue_slide(slides["f"], regions=())
    rows = [f"{name}.tif,{'xy'[name > 'c']}" for name in "abcdef"]
    write_list(tmp_path / "plain.csv", "slide,label", *rows)
    made, first = tiles(tmp_path, tmp_path / "t.csv", valid=0)
    assert list(made.failed) == ["b.tif", "c.tif", "f.tif"]
    assert "does not say how large its pixels are; give mpp in the table" in made.failed["b.tif"]
    assert str(slides["c"]) in made.failed["c.tif"]
    assert "no tile has 80 % of tissue, the best has 0.0 %" in made.failed["f.tif"]
    assert list(pd.read_csv(tmp_path / "t.jobs" / "failed.csv")["slide"]) == list(made.failed)
    parts = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "t.jobs" / "parts").iterdir()}
    assert set(parts) == {"a.tif.json", "d.tif.json", "e.tif.json"}
    slides["c"].write_bytes(whole)
    tissue_slide(slides["f"])
    rows[1] += f",{MPP}"
    write_list(tmp_path / "plain.csv", "slide,label,mpp", *(row if row.count(",") == 2 else f"{row}," for row in rows))
    made, second = tiles(tmp_path, tmp_path / "t.csv", valid=0)
    assert made.failed == {}
    assert len(second) == 72
    now = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "t.jobs" / "parts").iterdir()}
    assert {name: now[name] for name in parts} == parts
    assert not (tmp_path / "t.jobs" / "failed.csv").exists()
    assert set(second.loc[second["slide_mpp"] != "", "image"]) == {"b.tif"}
    # A slide that failed moved no other.
    splits = dict(zip(second["image"], second["split"], strict=True))
    assert dict(zip(first["image"], first["split"], strict=True)).items() <= splits.items()


def test_another_grid_in_the_same_place_is_refused(folder, tmp_path):
    tiles(folder, tmp_path / "t.csv")
    with pytest.raises(InputError, match=r"t\.jobs: was begun with other settings \(tissue was 0\.8 and is 0\.7\)"):
        tiles(folder, tmp_path / "t.csv", tissue=0.7)


def test_two_calls_do_not_write_one_table(folder, tmp_path, another_call):
    with another_call(tmp_path / "t.jobs"), pytest.raises(InputError, match=r"t\.jobs: another call is writing here"):
        tiles(folder, tmp_path / "t.csv")
    assert [file.name for file in tmp_path.iterdir()] == ["t.jobs"]
    assert not any((tmp_path / "t.jobs").iterdir())


def test_nothing_at_all_is_an_error(folder, tmp_path):
    write_list(folder / "none.csv", "slide,label", "glass.tif,a", "broken.tif,a")
    with pytest.raises(InputError, match=r"none\.csv: 2 problems:\n  glass\.tif: .*\n  broken\.tif: "):
        tiles(folder, tmp_path / "t.csv", "none.csv", valid=0, test=0.5)
    assert not (tmp_path / "t.csv").exists()
    for name, value, message in (("size", 4000, "smaller than a tile of 4000 px"), ("mpp", 0.25, "cannot be enlarged")):
        with pytest.raises(InputError, match=message):
            tiles(folder, tmp_path / f"{name}.csv", "plain.csv", **{name: value})


def test_the_command(folder, tmp_path, capsys):
    write_list(folder / "some.csv", "slide,label", *[f"{n}.tif,{'ab'[n > 'c']}" for n in "abcdef"], "glass.tif,b")
    out = tmp_path / "tiles.csv"
    words = ["--mpp", str(MPP), "--size", str(SIZE), "--tissue", "0.8", "--workers", "1", "--per-slide", "4"]
    with pytest.raises(SystemExit) as stopped:
        main(["data", "slides", str(folder / "some.csv"), "--out", str(out), *words])
    assert stopped.value.code == 1
    output = capsys.readouterr()
    assert re.search(r"train +\d+ +\d+\n", output.out)
    assert output.out.splitlines()[-1] == str(out)
    [record] = [line for line in output.err.splitlines() if line.startswith("failed: ")]
    failed = pd.read_csv(tmp_path / "tiles.jobs" / "failed.csv")
    assert failed["slide"].tolist() == ["glass.tif"]
    assert record == f"failed: glass.tif: {failed['reason'][0]}"
    assert len(read_table(out).samples) == 6 * 4
    main(["data", "slides", str(folder / "plain.csv"), "--out", str(out), *words])  # no failure, no exit code
    assert "failed: " not in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        main(["data", "slides", str(folder / "missing.csv"), "--out", str(out), "--mpp", "0.5"])
    assert stopped.value.code == 2
    assert "missing.csv: there is no such table" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("header", "rows", "message"),
    [
        ("slide,class", ["a.tif,x"], "missing columns: label; the header has slide, class"),
        ("slide,label", [], "is empty"),
        ("slide,label", ["a.tif,x", "z.tif,x"], r"line 3 \(z\.tif\): there is no such file"),
        ("slide,label", ["a.tif,x", ",x"], r"line 3 \(no slide\): the cell slide is empty"),
        ("slide,label", ["a.tif,"], r"line 2 \(a\.tif\): the cell label is empty"),
        ("slide,label", ["a.tif,x", "./a.tif,y"], "is the same slide as line 2"),
        ("slide,label,annotation", ["a.tif,x,z.xml"], r"there is no annotation z\.xml"),
        ("slide,label,mpp", ["a.tif,x,-1"], "mpp '-1' is no positive number"),
        ("slide,label,annotation", ["a.tif,x,a.geojson"], "exactly one, not none"),
        ("slide,label,annotation", ["a.tif,x,a.geojson", "b.tif,y,", "c.tif,z,"], "exactly one, not y, z"),
        ("slide,label,annotation", ["a.tif,x,a.geojson", "b.tif,x,"], "class x has slides with and without"),
        (
            "slide,label",
            ["a.tif,x", "b.tif,X"],
            r"labels 'X' \(1 row\(s\)\) and 'x' \(1 row\(s\)\) differ by case alone",
        ),
        ("slide,label", ["a.tif,x\u00a0"], r"label 'x<U\+00A0>' \(1 row\(s\)\) has characters that cannot be seen"),
        ("slide,label,group", ["a.tif,x,p 1", "b.tif,y,P1"], r"groups 'P1' .* and 'p 1' .* differ by case and spaces"),
        ("slide,label,group", ["a.tif,x,nan", "b.tif,y,nan"], r"group 'nan' \(2 row\(s\)\) is what programs write"),
        ("slide,label", ["a.tif,x", "b.tif,y"], r"bad\.csv: the class x has too few samples \(1\)"),
    ],
)
def test_bad_tables(folder, tmp_path, header, rows, message):
    write_list(folder / "bad.csv", header, *rows)
    with pytest.raises(InputError, match=message):
        tiles(folder, tmp_path / "t.csv", "bad.csv")


@pytest.mark.parametrize(
    "options",
    [
        {"mpp": 0.0}, {"size": 0}, {"stride": 0}, {"per_slide": 0}, {"tissue": 1.1}, {"tissue": float("nan")},
        {"roi": 0.0}, {"seed": -1}, {"valid": 0.5, "test": 0.5},
    ],
)  # fmt: skip
def test_numbers_out_of_range(folder, tmp_path, options):
    with pytest.raises(InputError, match=next(iter(options)).replace("_", "-")):
        tiles(folder, tmp_path / "t.csv", **options)


def test_the_list_is_never_overwritten(folder):
    with pytest.raises(InputError, match="is one of the given files"):
        tiles(folder, folder / "plain.csv")


def test_groups_and_paths_of_the_list(folder, tmp_path):
    write_list(folder / "groups.csv", "slide,label,group,annotation", "a.tif, x ,p1,a.geojson", "b.tif,y,,")
    first, second = read_slides(folder / "groups.csv")
    assert (first.label, first.group, first.annotations) == ("x", "p1", folder / "a.geojson")
    assert (second.name, second.group, second.annotations, second.mpp) == ("b.tif", "b.tif", None, None)
    rows = [f"{n}.tif,{'xy'[n > 'c']},{g}" for n, g in zip("abcdef", "112345", strict=True)]
    write_list(folder / "groups.csv", "slide,label,group", *rows)
    _, made = tiles(folder, tmp_path / "t.csv", "groups.csv", valid=0)
    assert (made.groupby("group")["split"].nunique() == 1).all()
    assert sorted(made["group"].astype(str).unique()) == list("12345")


def test_a_list_as_people_have_it(folder, tmp_path):
    (tmp_path / "a.svs").symlink_to(folder / "a.tif")  # a store has no suffixes
    (tmp_path / "b.svs").symlink_to(folder / "a.tif")
    path = tmp_path / "list.csv"
    path.write_bytes("Path;Diagnosis;MPP;Case\r\na.svs;x;0,5;7\r\nb.svs;y;;\r\n".encode("utf-8-sig"))
    a, b = read_slides(path, "slide=Path,label=Diagnosis,group=case")
    assert (a.path, a.name, a.label, a.mpp, a.group) == (tmp_path / "a.svs", "a.svs", "x", 0.5, "7")
    assert (b.path, b.mpp) == (tmp_path / "b.svs", None)
    write_list(path, "slide,label,annotation", "a\0b,x,", f"{'n' * 300}.tif,x,", f"a.svs,y,{'n' * 300}.xml")
    with pytest.raises(InputError) as caught:
        read_slides(path)
    assert [line.split(": ", 1)[1][:30] for line in str(caught.value).splitlines()[1:]] == [
        "a cell holds a zero byte; writ",
        "there is no such file; correct",
        "there is no annotation nnnnnnn",
    ]
    (folder / "other.csv").write_text("file,label\na.tif,x\n")
    with pytest.raises(
        InputError, match=r"missing columns: slide; the header has file, label; .* --columns slide=NAME"
    ):
        read_slides(folder / "other.csv")


def test_slides_are_split_by_group_and_class_whatever_their_order(folder):
    names = [f"{label}{i:02}" for label in "xy" for i in range(30)]
    slides = [ListedSlide(f"{n}.tif", folder / "a.tif", n[0], group=f"{n}.tif") for n in names]
    options = TileOptions(mpp=1.0)
    splits = slide_splits(LIST, slides, options)
    for label in "xy":
        mine = [split for name, split in splits.items() if name[0] == label]
        assert (mine.count("test"), mine.count("valid")) == (6, 6)
    assert slide_splits(LIST, slides[::-1], options) == splits != slide_splits(LIST, slides, replace(options, seed=1))
    patients = [replace(slide, group=f"p{number // 3}") for number, slide in enumerate(slides)]
    splits = slide_splits(LIST, patients, options)
    assert slide_splits(LIST, patients[::-1], options) == splits
    of_patient = {slide.group: {splits[s.name] for s in patients if s.group == slide.group} for slide in patients}
    assert all(len(several) == 1 for several in of_patient.values())
    assert set(splits.values()) == {"train", "test", "valid"}


def test_a_real_slide(shared_data, tmp_path):
    slide = shared_data / "slides" / "CMU-1-Small-Region.svs"
    if not slide.is_file():
        pytest.skip("no real slide")
    settings = {"mpp": 0.5, "size": 512, "stride": 512, "tissue": 0.5}
    result = tiles_of_slide({"slide": str(slide), "annotations": None}, settings)
    assert 5 <= len(result["tiles"]) <= 4 * 5
