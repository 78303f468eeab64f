"""What users do to `histoloc slides predict` besides using it: mistyped options, removed files, two calls at once."""

import errno
import json
import shutil
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from factory import blob, box, make_slide
from histoloc import slide_prediction
from histoloc.cli.main import main
from histoloc.errors import InputError
from histoloc.options import SlideOptions
from histoloc.prediction import Predictor
from histoloc.slide_cohort import predict_slides
from histoloc.slides.reader import Slide
from histoloc.work_folder import LOCK

OPTIONS: dict[str, Any] = {"mpp": 0.5, "tile": 64, "tissue": False, "device": "cpu", "progress": False}


def changed(**options: Any) -> dict[str, Any]:
    return OPTIONS | options


@pytest.fixture(scope="module")
def slide(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("slides") / "a.tif"
    make_slide(path, (300, 200), 0.5, [box("tissue", 20, 20, 250, 160), blob("metastasis", 120, 100, 40)])
    return path


@pytest.fixture
def calls(monkeypatch) -> list[int]:
    """Number of tiles of each batch given to the network."""
    seen: list[int] = []
    real = Predictor.evidence

    def counted(self: Predictor, tiles: Any, **options: Any) -> Any:
        seen.append(len(tiles))
        return real(self, tiles, **options)

    monkeypatch.setattr(Predictor, "evidence", counted)
    return seen


def stopped(*_: Any) -> None:
    raise KeyboardInterrupt


def told(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "slide.json").read_text())


def test_a_slide_whose_folder_was_removed_is_done_again(gap_run, slide, tmp_path, calls):
    predict_slides(gap_run, [slide], tmp_path, SlideOptions(**OPTIONS))
    before = told(tmp_path / "a")
    shutil.rmtree(tmp_path / "a")
    predict_slides(gap_run, [slide], tmp_path, SlideOptions(**OPTIONS))
    assert {**told(tmp_path / "a"), "cost": 0} == {**before, "cost": 0}
    del calls[:]
    predict_slides(gap_run, [slide], tmp_path, SlideOptions(**OPTIONS))
    assert calls == []


def test_a_slide_replaced_by_another_of_its_name_and_size_is_done_again(gap_run, tmp_path, calls):
    path = tmp_path / "a.tif"
    make_slide(path, (300, 200), 0.5, [box("tissue", 20, 20, 250, 160)])
    predict_slides(gap_run, [path], tmp_path / "out", SlideOptions(**OPTIONS))
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    del calls[:]
    predict_slides(gap_run, [path], tmp_path / "out", SlideOptions(**OPTIONS))
    assert sum(calls) > 1
    # Broken now: what the earlier one left must not be taken for it.
    path.write_bytes(b"II*\0 nothing more")
    with pytest.raises(InputError, match="copy it again"):
        predict_slides(gap_run, [path], tmp_path / "out", SlideOptions(**OPTIONS))
    assert not (tmp_path / "out/a/slide.json").exists()
    assert not (tmp_path / "out/slides.csv").exists()


def test_a_slide_that_another_device_began_starts_over_and_says_so(gap_run, slide, tmp_path, calls, monkeypatch, capfd):
    real = slide_prediction._fingerprint

    def of_another_device(item: Any, asked: Any, grid: Any, arithmetic: str) -> str:
        assert arithmetic == "cpu float32"
        return real(item, asked, grid, "cuda bf16")

    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(slide_prediction, "_fingerprint", of_another_device)
        elsewhere.setattr(slide_prediction, "_write", stopped)
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                predict_slides(gap_run, [slide], tmp_path, SlideOptions(**OPTIONS))
            assert "tiles are made again" not in capfd.readouterr().err, "the same device goes on"
    tiles = sum(calls) - 2  # one in each call to see what the network gives
    del calls[:]
    predict_slides(gap_run, [slide], tmp_path, SlideOptions(**OPTIONS))
    assert told(tmp_path / "a")["cost"]["tiles"] == tiles == sum(calls) - 1 > 1
    assert (
        f"note: {tmp_path}/a/work: was begun on another device, in another precision or of another slide file; its "
        "tiles are made again\n"
    ) in capfd.readouterr().err


def test_an_out_folder_may_be_moved(gap_run, slide, tmp_path, calls):
    predict_slides(gap_run, [slide], tmp_path / "here", **OPTIONS)
    (tmp_path / "here").rename(tmp_path / "there")
    del calls[:]
    predict_slides(gap_run, [slide], tmp_path / "there", SlideOptions(**OPTIONS))
    assert calls == []


def test_the_model_may_be_moved(gap_run, slide, tmp_path, calls):
    shutil.copytree(gap_run / "model", tmp_path / "here")
    predict_slides(tmp_path / "here", [slide], tmp_path / "out", **OPTIONS)
    assert str(tmp_path / "here") not in json.dumps(told(tmp_path / "out" / "a"))
    (tmp_path / "here").rename(tmp_path / "there")
    del calls[:]
    predict_slides(tmp_path / "there", [slide], tmp_path / "out", **OPTIONS)
    assert calls == []


@pytest.mark.parametrize(
    ("failure", "times"),
    [
        (InputError("is broken"), 1),
        (OSError(errno.EIO, "Input/output error"), 3),
        (FileNotFoundError(errno.ENOENT, "No such file"), 1),
    ],
    ids=["damaged", "disk", "absent"],
)
def test_only_what_may_change_is_tried_again(gap_run, slide, tmp_path, monkeypatch, failure, times):
    tries: list[Path] = []

    def opened(path: Path, **_: Any) -> None:
        tries.append(path)
        raise failure

    monkeypatch.setattr(slide_prediction, "open_slide", opened)
    with pytest.raises(InputError, match=r"a: .*(is broken|Input/output|No such file)"):
        predict_slides(gap_run, [slide], tmp_path, SlideOptions(**changed(retries=2)))
    assert len(tries) == times


def test_slides_given_one_by_one_end_in_one_table(gap_run, slide, tmp_path):
    other = shutil.copy(slide, tmp_path / "b.tif")
    out = tmp_path / "out"
    predict_slides(gap_run, [slide], out, SlideOptions(**OPTIONS))
    made = predict_slides(gap_run, [other], out, SlideOptions(**OPTIONS))
    assert list(made.table["name"]) == ["b"]
    assert sorted(pd.read_csv(out / "slides.csv")["name"]) == ["a", "b"]
    # With other settings only what was done with them.
    predict_slides(gap_run, [other], out, SlideOptions(**changed(overlap=0.5), resume=False))
    assert list(pd.read_csv(out / "slides.csv")["name"]) == ["b"]


def test_mistaken_settings_do_not_bind_a_folder(gap_run, slide, tmp_path):
    with pytest.raises(InputError, match="was scanned at"):
        predict_slides(gap_run, [slide], tmp_path, SlideOptions(**changed(mpp=0.1)))
    predict_slides(gap_run, [slide], tmp_path, SlideOptions(**OPTIONS))
    with pytest.raises(InputError, match="begun with other settings"):
        predict_slides(gap_run, [slide], tmp_path, SlideOptions(**changed(mpp=1.0)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tile": 509}, "--tile 509: give a multiple of 16 from 32 up, as 512"),
        ({"tile": 0}, "--tile 0 is wrong .must be at least 1"),
        ({"mpp": 0.0}, "--mpp 0.0 is wrong .must be above 0"),
        ({"overlap": float("nan")}, "--overlap nan"),
        ({"device": "warp"}, "--device warp"),
        ({"scheduler": "nonsense"}, "--scheduler nonsense: give an address with a port"),
    ],
)
def test_what_no_slide_could_be_done_with_is_told_before_any_is_begun(gap_run, slide, tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        predict_slides(gap_run, [slide], tmp_path / "out", SlideOptions(**changed(**options)))
    assert not (tmp_path / "out").exists()


def test_no_range_is_made_up_where_that_of_the_model_was_asked_for(gap_run, slide, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(gap_run / "model", model)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"learned": None}))
    with pytest.raises(InputError, match=r"the model has no learned range.*--range image does without"):
        predict_slides(model, [slide], tmp_path / "out", SlideOptions(**OPTIONS))


def test_a_slide_is_not_worked_at_twice_at_once(gap_run, slide, tmp_path, another_call):
    with another_call(tmp_path / "a"):
        for resume in (True, False):
            with pytest.raises(InputError, match="a: another call is writing here"):
                predict_slides(gap_run, [slide], tmp_path, SlideOptions(**OPTIONS, resume=resume))
    assert not (tmp_path / "a" / LOCK).exists()
    (tmp_path / "a" / LOCK).touch()  # as a killed process leaves it
    predict_slides(gap_run, [slide], tmp_path, SlideOptions(**OPTIONS))
    assert sorted(file.name for file in (tmp_path / "a").iterdir()) == [
        "map.ome.tif", "overview.png", "regions.geojson", "slide.json", "tiles.csv", "uncertainty.ome.tif",
    ]  # fmt: skip


def test_out_that_is_a_file_is_told(gap_run, slide, tmp_path, capsys):
    (tmp_path / "out").touch()
    for more in ([], ["--no-resume"]):
        with pytest.raises(SystemExit) as ended:
            main(["slides", "predict", str(gap_run), str(slide), "--out", str(tmp_path / "out"), "--mpp", "0.5", *more])
        assert ended.value.code == 2
        assert "out: cannot be written" in capsys.readouterr().err


def test_a_folder_without_permission_is_told(gap_run, tmp_path, monkeypatch):
    def refused(path: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.scandir", refused)
    with pytest.raises(InputError, match=r"cannot be read \(Permission denied\); check the path and its permissions"):
        predict_slides(gap_run, [tmp_path], tmp_path / "out", SlideOptions(**OPTIONS))


def test_hidden_files_are_no_slides_and_reserved_names_are_told(gap_run, slide, tmp_path):
    value = tmp_path / "given"
    value.mkdir()
    shutil.copy(slide, value / "Gewebe Ä 'x\" ü.tif")
    (value / "._a.tif").write_bytes(b"finder")
    made = predict_slides(gap_run, [value], tmp_path / "out", SlideOptions(**OPTIONS))
    assert (list(made.table["name"]), made.failed) == (["Gewebe Ä 'x\" ü"], {})
    shutil.copy(slide, value / "parts.tif")
    with pytest.raises(InputError, match="rename the slide"):
        predict_slides(gap_run, [value], tmp_path / "out", SlideOptions(**OPTIONS))


def test_a_truncated_slide_is_told_from_another_process(gap_run, tmp_path):
    slides = [tmp_path / "cut.tif", tmp_path / "whole.tif"]
    make_slide(slides[1], (700, 600), 0.5, [box("tissue", 20, 20, 600, 500)])
    slides[0].write_bytes(slides[1].read_bytes()[:30_000])
    made = predict_slides(gap_run, slides, tmp_path / "out", SlideOptions(**OPTIONS, workers=2, memory_gb=3))
    assert list(made.table["name"]) == ["whole"]
    assert "cut.tif: is truncated" in made.failed["cut"]


def test_of_many_failures_some_are_listed(gap_run, tmp_path):
    for number in range(25):
        (tmp_path / f"{number}.tif").touch()
    with pytest.raises(InputError, match=r"out: 25 problems:\n  0: .*\n  1: (?s:.)*\n  \.\.\. and 5 more"):
        predict_slides(gap_run, [tmp_path], tmp_path / "out", SlideOptions(**OPTIONS))
    assert len(pd.read_csv(tmp_path / "out/failed.csv")) == 25


def test_want_of_memory_names_what_to_make_smaller(gap_run, slide, tmp_path, monkeypatch):
    real = Predictor.evidence

    def large(self: Predictor, tiles: Any, **options: Any) -> Any:
        if len(tiles) > 1:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 12 bytes")
        return real(self, tiles, **options)

    reading: list[int] = []
    read, close = Slide.read, Slide.close

    def slowly(self: Slide, *area: Any) -> Any:
        reading.append(1)
        time.sleep(0.05)
        pixels = read(self, *area)
        reading.pop()
        return pixels

    def closed(self: Slide) -> None:
        assert not reading, "a thread reads from a slide that is being closed"
        close(self)

    monkeypatch.setattr(Slide, "read", slowly)
    monkeypatch.setattr(Slide, "close", closed)
    monkeypatch.setattr(Predictor, "evidence", large)
    with pytest.raises(InputError, match="not enough memory for 4 tiles of 64 px at a time; choose a smaller --batch"):
        predict_slides(gap_run, [slide], tmp_path, SlideOptions(**OPTIONS, batch=4))


def test_the_largest_region_is_none_where_all_are_too_small_for_an_outline(gap_run, slide, tmp_path):
    predict_slides(gap_run, [slide], tmp_path / "all", SlideOptions(**OPTIONS, threshold=0.0, min_area_mm2=0.0))
    predict_slides(gap_run, [slide], tmp_path / "none", SlideOptions(**OPTIONS, threshold=0.0, min_area_mm2=9.0))
    every, none = (told(tmp_path / name / "a")["roi"] for name in ("all", "none"))
    assert every["mm2"] == none["mm2"] > 0
    assert every["share"] <= 1
    assert (every["largest_mm2"] > 0, none["regions"], none["largest_mm2"]) == (True, 0, None)
    assert pd.read_csv(tmp_path / "none/slides.csv")["largest_mm2"].isna().all()
