"""`histoloc slides predict` on slides whose truth is known, with models that train in seconds."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import pandas as pd
import pytest
import tifffile
from numpy.typing import NDArray

from factory import KINDS, blob, box, kinds_at, make_slide
from histoloc.cli.main import main
from histoloc.data.table import read_table
from histoloc.datasets.options import TileOptions
from histoloc.datasets.tiles import slide_tiles
from histoloc.errors import InputError
from histoloc.options import SlideOptions
from histoloc.prediction import Predictor, load
from histoloc.runner import JobOptions
from histoloc.slide_cohort import predict_slides
from histoloc.slides.answer import slide_probabilities, uncertainty
from histoloc.slides.geojson import read_geojson
from histoloc.slides.reader import open_slide

MPP = 0.5
SIZE = (1400, 1101)  # no multiple of anything
TISSUE = box("tissue", 130, 100, 1140, 900)
METASTASIS = (blob("metastasis", 500, 480, 250, 1), blob("metastasis", 1030, 780, 130, 2))
TILE = 128
METASTATIC = list(KINDS).index("metastasis")
OPTIONS: dict[str, Any] = {"tile": TILE, "device": "cpu", "progress": False, "empty_class": "normal"}
HALF = {"mean": [0.5] * 3, "std": [0.5] * 3}  # of random weights, with which these few epochs suffice
FILES = ("map.ome.tif", "uncertainty.ome.tif", "regions.geojson", "tiles.csv", "overview.png")


@pytest.fixture(scope="module")
def slides(tmp_path_factory) -> Path:
    """Metastatic m.tif and o.tif, normal n.tif and p.tif."""
    folder = tmp_path_factory.mktemp("slides")
    for name, regions in (("m", (TISSUE, *METASTASIS)), ("n", (TISSUE,))):
        make_slide(folder / f"{name}.tif", SIZE, MPP, regions)
    shutil.copy(folder / "m.tif", folder / "o.tif")
    shutil.copy(folder / "n.tif", folder / "p.tif")
    return folder


@pytest.fixture(scope="module")
def table(slides, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("table")
    (folder / "list.csv").write_text(
        "slide,label\n" + "".join(f"{slides / n}.tif,{'normal' if n in 'np' else 'metastatic'}\n" for n in "mnop")
    )
    # Of equal slides, those that are listed as they are here: so short a training depends on the order of its tiles.
    options = TileOptions(mpp=MPP, size=TILE, valid=0.5, test=0, tissue=0.9, seed=2)
    jobs = JobOptions(workers=1, progress=False)
    slide_tiles(folder / "list.csv", out=folder / "all.csv", options=options, jobs=jobs)
    rows = pd.read_csv(folder / "all.csv", dtype=str, keep_default_na=False)
    # A tile of a metastatic slide is metastatic where it has some metastasis.
    shares = [tumour(int(x), int(y), TILE, TILE).mean() for x, y in zip(rows["x"], rows["y"], strict=True)]
    metastatic = rows["label"] == "metastatic"
    rows = rows[~metastatic | (np.asarray(shares) > 0.3)]
    rows.to_csv(folder / "table.csv", index=False)
    assert set(read_table(folder / "table.csv").classes) == {"metastatic", "normal"}
    return folder / "table.csv"


@pytest.fixture(scope="module")
def run(tiny, table, tmp_path_factory) -> Callable[[str], Path]:
    """Runs by method, each trained when it is first asked for."""
    from histoloc.training import train

    folder = tmp_path_factory.mktemp("trained")

    def trained(method: str) -> Path:
        if not (folder / method).exists():
            train(
                tiny(method, table, epochs=4, batch=8, input={"small_side": 0, "crop": TILE} | HALF),
                folder / method,
                progress=False,
            )
        return folder / method

    return trained


def tumour(x: int, y: int, width: int, height: int) -> NDArray[np.bool_]:
    return kinds_at((TISSUE, *METASTASIS), x, y, width, height) == METASTATIC


def outputs(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in FILES}


def told(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "slide.json").read_text())


def test_metastases_are_found_where_they_are(run, slides, tmp_path):
    made = predict_slides(run("gap"), [slides / "n.tif", slides / "m.tif"], tmp_path / "out", SlideOptions(**OPTIONS))
    assert list(made.table["name"]) == ["m", "n"]
    assert made.failed == {}
    result = tmp_path / "out" / "m"
    roi = tifffile.imread(result / "map.ome.tif")
    scale = told(result)["map"]["mpp"] / MPP
    assert roi.shape == (np.ceil(SIZE[1] / scale), np.ceil(SIZE[0] / scale))
    truth = tumour(0, 0, *SIZE)
    rows = np.minimum(((np.arange(roi.shape[0]) + 0.5) * scale).astype(int), SIZE[1] - 1)
    columns = np.minimum(((np.arange(roi.shape[1]) + 0.5) * scale).astype(int), SIZE[0] - 1)
    sampled, mask = truth[np.ix_(rows, columns)], roi >= 128
    assert 2 * (sampled & mask).sum() / (sampled.sum() + mask.sum()) > 0.8
    # Registered: a shift by a cell either way fits worse.
    fits = {(i, j): (sampled == np.roll(mask, (i, j), (0, 1))).mean() for i in (-2, 0, 2) for j in (-2, 0, 2)}
    assert max(fits, key=lambda shift: fits[shift]) == (0, 0)
    answer = told(result)
    assert answer["class"] == "metastatic"
    assert answer["roi"]["mm2"] == pytest.approx(mask.sum() * (scale * MPP / 1000) ** 2, rel=1e-4)
    normal = told(tmp_path / "out" / "n")
    assert normal["roi"]["share"] < 0.02
    assert normal["score"] < answer["score"]


def test_what_is_written_agrees(run, slides, tmp_path):
    predict_slides(run("gap"), [slides / "m.tif"], tmp_path, SlideOptions(min_area_mm2=0.0, **OPTIONS))
    folder = tmp_path / "m"
    answer = told(folder)
    features, warnings = read_geojson(folder / "regions.geojson")
    assert warnings == []
    assert len(features) == answer["roi"]["regions"] > 0
    assert all(f.geometry.is_valid and f.label == "metastatic" and f.kind == "detection" for f in features)
    areas = [f.measurements["Area mm^2"] for f in features]
    assert sum(areas) == pytest.approx(answer["roi"]["mm2"], rel=1e-3)
    assert max(areas) == pytest.approx(answer["roi"]["largest_mm2"], abs=1e-6)
    with openslide.OpenSlide(folder / "map.ome.tif") as reduced:
        assert float(reduced.properties["openslide.mpp-x"]) == pytest.approx(answer["map"]["mpp"])
    tiles = pd.read_csv(folder / "tiles.csv")
    assert len(tiles) == answer["cost"]["tiles"]
    assert tiles[["prob_metastatic", "prob_normal"]].sum(axis=1).to_numpy() == pytest.approx(1, abs=1e-5)
    cohort = pd.read_csv(tmp_path / "slides.csv")
    assert cohort.loc[0, "prob_metastatic"] == pytest.approx(answer["probabilities"]["metastatic"], abs=1e-6)
    assert not (folder / "work").exists()


def test_batches_readers_and_workers_change_nothing(run, slides, tmp_path):
    items = [slides / f"{name}.tif" for name in "mnop"]
    predict_slides(run("gap"), items, tmp_path / "a", SlideOptions(batch=1, readers=1, **OPTIONS))
    predict_slides(run("gap"), items, tmp_path / "b", SlideOptions(batch=8, readers=3, workers=4, **OPTIONS))
    for name in "mnop":
        a, b = (tifffile.imread(tmp_path / x / name / "map.ome.tif").astype(int) for x in "ab")
        assert abs(a - b).max() <= 1  # float32 rounds batches of another size differently
    one, two = (pd.read_csv(tmp_path / x / "slides.csv").drop(columns="slide") for x in "ab")
    pd.testing.assert_frame_equal(one, two, atol=1e-4)


def test_killed_and_resumed_equals_uninterrupted(run, slides, tmp_path, monkeypatch):
    eights: dict[str, Any] = OPTIONS | {"batch": 8}
    predict_slides(run("gap"), [slides / "m.tif"], tmp_path / "whole", SlideOptions(**eights))
    calls = 0
    real = Predictor.evidence

    def dies(self: Predictor, tiles: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 8:
            raise KeyboardInterrupt
        return real(self, tiles, **options)

    monkeypatch.setattr(Predictor, "evidence", dies)
    with pytest.raises(KeyboardInterrupt):
        predict_slides(run("gap"), [slides / "m.tif"], tmp_path / "killed", SlideOptions(**eights))
    (evidence,) = (tmp_path / "killed/m/work").glob("evidence-*.bin")
    assert evidence.stat().st_size > 0
    assert not (tmp_path / "killed/m/slide.json").exists()
    # A torn record at the end, as a killed process may leave it.
    with evidence.open("ab") as file:
        file.write(b"torn")
    calls = 100
    predict_slides(run("gap"), [slides / "m.tif"], tmp_path / "killed", SlideOptions(**eights))
    resumed = calls - 100
    assert outputs(tmp_path / "killed/m") == outputs(tmp_path / "whole/m")
    tiles = told(tmp_path / "whole/m")["cost"]["tiles"]
    assert resumed == 1 + -(-tiles // 8) - 6  # the probe, and all batches but the six that were done
    calls = 200
    predict_slides(run("gap"), [slides / "m.tif"], tmp_path / "killed", SlideOptions(**eights))
    assert calls == 200  # nothing is left to do


def test_seams_and_false_alarms_vanish(run, slides, tmp_path):
    """Stretched by its own extremes, a tile of normal tissue shows ROI; by what was learned, it shows none."""
    model = run("maxmin")
    with open_slide(slides / "n.tif") as slide:
        tiles = [slide.read(x, y, TILE, TILE, MPP) for y in range(200, 800, TILE) for x in range(200, 1100, TILE)]
    stretched = load(model, "cpu", range="image")
    alone = np.mean([stretched.predict(tile).mask.mean() for tile in tiles])
    predict_slides(model, [slides / "n.tif", slides / "m.tif"], tmp_path, SlideOptions(**OPTIONS))
    assert alone > 0.1
    assert told(tmp_path / "n")["calibration"]["range"] == "learned"
    assert told(tmp_path / "n")["roi"]["share"] < 0.1 * alone
    assert told(tmp_path / "m")["roi"]["share"] > 0.05


def test_failed_slides_are_listed_and_completed(run, slides, tmp_path, capsys):
    value = tmp_path / "given"
    value.mkdir()
    shutil.copy(slides / "m.tif", value / "m.tif")
    (value / "broken.tif").write_bytes(b"II*\0 nothing more")
    make_slide(value / "glass.tif", (600, 500), MPP, [])
    make_slide(value / "unknown.tif", (600, 500), None, [box("tissue", 100, 100, 300, 300)])
    command = ["slides", "predict", str(run("gap")), str(value), "--out", str(tmp_path / "out"), "--tile", str(TILE),
               "--empty-class", "normal", "--device", "cpu"]  # fmt: skip
    with pytest.raises(SystemExit) as ended:
        main(command)
    assert ended.value.code == 1
    error = capsys.readouterr().err
    assert "glass.tif: no tissue was found" in error
    failed = pd.read_csv(tmp_path / "out/failed.csv").set_index("slide")["reason"]
    assert set(failed.index) == {"broken", "glass", "unknown"}
    assert "--slide-mpp" in failed["unknown"]
    assert told(tmp_path / "out/m")["class"] == "metastatic"
    shutil.copy(slides / "n.tif", value / "broken.tif")
    for name in ("glass", "unknown"):
        (value / f"{name}.tif").unlink()
    main(command)
    assert list(pd.read_csv(tmp_path / "out/slides.csv")["name"]) == ["m", "broken"]
    assert not (tmp_path / "out/failed.csv").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mpp": 0.1}, "was scanned at 0.5"),
        ({"tile": 20}, "--tile 20"),
        ({"overlap": 1.0}, "--overlap 1"),
        ({"threshold": 2.0}, "--threshold 2"),
        ({"batch": 0}, "--batch 0"),
        ({"empty_class": "benign"}, "--empty-class 'benign'"),
    ],
)
def test_bad_numbers_are_told(run, slides, tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        predict_slides(run("gap"), [slides / "m.tif"], tmp_path, SlideOptions(**(OPTIONS | options)))


def test_bad_places_are_told(run, slides, tmp_path):
    (tmp_path / "empty").mkdir()
    shutil.copy(slides / "n.tif", tmp_path / "m.tif")
    for value, message in (
        ([tmp_path / "absent.tif"], "no such slide or folder"),
        ([tmp_path / "empty"], "holds no slide"),
        ([slides / "m.tif", tmp_path / "m.tif"], "has the same name as"),
    ):
        with pytest.raises(InputError, match=message):
            predict_slides(run("gap"), value, tmp_path / "out", SlideOptions(**OPTIONS))
    predict_slides(run("gap"), [slides / "p.tif"], tmp_path / "out", SlideOptions(**OPTIONS))
    other: dict[str, Any] = OPTIONS | {"overlap": 0.5}
    with pytest.raises(InputError, match=r"overlap was 0\.25 and is 0\.5"):
        predict_slides(run("gap"), [slides / "p.tif"], tmp_path / "out", SlideOptions(**other))
    predict_slides(run("gap"), [slides / "p.tif"], tmp_path / "out", SlideOptions(resume=False, **other))
    assert told(tmp_path / "out/p")["settings"]["overlap"] == 0.5


def test_methods_without_classes_or_without_an_empty_class(run, slides, tmp_path):
    stain = predict_slides(run("stain"), [slides / "m.tif"], tmp_path / "stain", SlideOptions(**OPTIONS))
    answer = told(tmp_path / "stain/m")
    assert (answer["class"], answer["probabilities"], answer["uncertainty"]) == (None, None, None)
    assert stain.table.loc[0, "score"] == pytest.approx(answer["roi"]["share"], abs=1e-6)
    unnamed: dict[str, Any] = OPTIONS | {"empty_class": None}
    made = predict_slides(run("gap"), [slides / "n.tif"], tmp_path / "gap", SlideOptions(**unnamed))
    assert any("no class is named as having no ROI" in note for note in made.notes)
    assert told(tmp_path / "gap/n")["roi_class"] == told(tmp_path / "gap/n")["class"]


def test_the_slides_probabilities_by_hand():
    p = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]], np.float32)
    assert slide_probabilities(p, np.array([1.0, 0.5, 0.5]), None) == pytest.approx([0.65, 0.35])
    assert slide_probabilities(p, np.zeros(3), None) == pytest.approx([1.7 / 3, 1.3 / 3])
    # One per cent of three tiles is one tile: the one that is least normal (class 1).
    assert slide_probabilities(p, np.ones(3), 1) == pytest.approx([0.9, 0.1])
    many = np.tile(np.array([[0.1, 0.9]], np.float32), (200, 1))
    many[[5, 17]] = [0.8, 0.2], [0.6, 0.4]
    assert slide_probabilities(many, np.ones(200), 1) == pytest.approx([0.7, 0.3])
    assert uncertainty(np.array([[0.5, 0.5], [1, 0], [0.25, 0.75]], np.float32)) == pytest.approx(
        [1, 0, 0.811278], abs=1e-6
    )


def test_tiles_are_seen_at_the_scale_of_training(tiny, table, slides, tmp_path):
    from histoloc.model_folder import read_model_config
    from histoloc.training import train

    # Images of 128 px are resized to 64: the network was trained at 1 µm/px.
    run = train(tiny("stain", table), tmp_path / "run", progress=False)
    config = read_model_config(run)
    assert (config.shorter_side, config.extent, config.mpp) == (TILE, (64, 64), 1.0)
    options = {key: value for key, value in OPTIONS.items() if key != "tile"}
    made = predict_slides(run, [slides / "n.tif"], tmp_path / "out", SlideOptions(**options))
    settings = told(tmp_path / "out/n")["settings"]
    assert (settings["tile"], settings["mpp"]) == (64, 1.0)
    assert not any("trained at" in note for note in made.notes)
    made = predict_slides(run, [slides / "n.tif"], tmp_path / "half", SlideOptions(mpp=2.0, **options))
    assert any("trained at 1 µm/px and sees these slides at 2" in note for note in made.notes)
