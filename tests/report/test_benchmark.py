import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from written_runs import write_run

from histoloc.benchmark.report import figure, report, write_benchmark_report
from histoloc.benchmark.results import read_bench
from histoloc.cli.main import main
from histoloc.errors import InputError
from histoloc.report.charts import confusion, mean_curve, place_labels
from histoloc.report.gallery import choose, select_images

ROWS = ("gap", "lse", "maxmin-sem")
FILES = {"results.csv", "tables.md", "tables.html", "tables.tex", "report.html"}


def finish(run: Path, row: str, fold: int, seed: int, shift: float) -> None:
    """Make a finished cell of a run: its F1 moved by `shift`, and cell.json."""
    path = run / "evaluation" / "test" / "metrics.json"
    content = json.loads(path.read_text())
    content["table"], content["fold"] = "glas.csv", fold
    metrics = content["metrics"]
    metrics["f1_plus"]["value"] += shift
    metrics["f1_mean"]["value"] = (metrics["f1_plus"]["value"] + metrics["f1_minus"]["value"]) / 2
    metrics["tnr"]["value"] = 60.0 + shift
    metrics["threshold_curve"]["f1_plus"][0] += shift
    path.write_text(json.dumps(content))
    images = pd.read_csv(path.with_name("per_image.csv"))
    images["f1_plus"] = (images["f1_plus"] + shift).clip(0, 100)
    images["mask"] = [str(run.parent / "data" / f"{number}_truth.png") for number in range(6)]
    images.to_csv(path.with_name("per_image.csv"), index=False)
    cost = {"row": row, "fold": fold, "seed": seed, "train_seconds": 60.0, "evaluate_seconds": 1.0, "device": "cpu"}
    cost |= {"peak_memory_mb": 512.0, "epochs": 3, "selected_epoch": 1, "parameters": 1_250_000}
    (run / "cell.json").write_text(json.dumps(cost))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Three rows, folds 0 and 1, seeds 0 and 1 on the test split; all cells finished. Do not write into it."""
    folder = tmp_path_factory.mktemp("finished") / "bench"
    for number, row in enumerate(ROWS):
        for fold in (0, 1):
            for seed in (0, 1):
                run = folder / "cells" / row / f"fold{fold}-seed{seed}"
                write_run(run, error=10.0 * number, f1_plus=60.0, seed=number)
                finish(run, row, fold, seed, shift=4.0 * number + 2 * seed)
    settings = {"kind": "table1", "data": "glas.csv", "preset": "fast", "folds": [0, 1], "seeds": [0, 1]}
    settings |= {"rows": list(ROWS), "split": "test", "command": "histoloc benchmark table1 <x>", "overrides": {}}
    (folder / "benchmark.json").write_text(json.dumps(settings | {"machine": {"cpu": "Abacus"}, "format": 1}))
    return folder


@pytest.fixture
def bench(finished, tmp_path):
    """A copy of `finished` to change."""
    return Path(shutil.copytree(finished, tmp_path / "bench"))


@pytest.fixture(scope="module")
def text(finished, tmp_path_factory):
    """The page of `finished`."""
    folder = shutil.copytree(finished, tmp_path_factory.mktemp("page") / "bench")
    return write_benchmark_report(folder).read_text("utf-8")


def test_a_finished_bench_has_all_files_and_all_sections(bench):
    page = write_benchmark_report(bench)
    assert page == bench / "report.html"
    assert {path.name for path in bench.iterdir() if path.is_file()} == FILES | {"benchmark.json"}
    text = page.read_text("utf-8")
    assert "All 12 cells are finished." in text
    assert "Max-min (SEM) has the highest mean F1, 59.50 %: " in text
    assert "points against CAM-LSE" in text
    for heading in ("Results", "Region against background", "Compared with CAM-LSE", "Where: fold 0, seed 0", "Cost"):
        assert f"<h2>{heading}</h2>" in text
    for part in ("69.00", "± 1.15", "1.25 M", "512 MB", "Abacus", "histoloc benchmark table1 &lt;x&gt;"):
        assert part in text
    assert len(pd.read_csv(bench / "results.csv")) == 12


def test_the_page_needs_nothing_but_itself_and_is_repeatable(bench, text):
    assert not re.search(r"https?://|<script|<link|@import|url\(", text)
    assert all(source.startswith("data:image/") for source in re.findall(r'(?:src|href)="([^"]*)"', text))
    assert all('alt="' in tag and 'alt=""' not in tag for tag in re.findall(r"<img[^>]*>", text))
    assert write_benchmark_report(bench).read_text("utf-8") == text


def test_the_figure_shows_the_same_images_for_every_method(text):
    assert text.count('alt="Agreement with the truth of ') == 4 * 3  # three benign images and the malignant one
    assert text.count('alt="ROI map of ') == 4 * 3
    assert text.count('alt="ROI map of CAM-LSE') == 4


def test_an_unfinished_bench_says_so_and_lists_failures(bench):
    (bench / "cells/lse/fold1-seed1/cell.json").unlink()
    failed = bench / "cells/maxmin-sem/fold0-seed0"
    (failed / "cell.json").unlink()
    (failed / "error.txt").write_text("RuntimeError: a < b\n")
    text = write_benchmark_report(bench).read_text("utf-8")
    assert "Unfinished: 10 of 12 cells are done, 1 failed." in text
    assert "Max-min (SEM), fold0-seed0: RuntimeError: a &lt; b" in text
    assert "Where: fold 0, seed 1" in text  # the cell that most rows have
    assert len(pd.read_csv(bench / "results.csv")) == 10


def test_a_row_without_the_shown_cell_is_said_to_be_left_out(bench):
    for cell in (bench / "cells" / "lse").glob("*/cell.json"):
        cell.unlink()
    assert "CAM-LSE: this cell is not finished" in write_benchmark_report(bench).read_text("utf-8")


def test_a_bench_that_has_just_begun(bench):
    for cell in bench.glob("cells/*/*/cell.json"):
        cell.unlink()
    text = write_benchmark_report(bench).read_text("utf-8")
    assert "Unfinished: 0 of 12 cells are done." in text
    assert "No cell is finished yet" in text


def test_the_report_command_takes_a_bench(bench, tmp_path, capsys):
    main(["report", str(bench)])
    assert capsys.readouterr().out.strip() == str(bench / "report.html")
    main(["report", str(bench), "--out", str(tmp_path / "page.html"), "--title", "Mine"])
    assert "<h1>Mine</h1>" in (tmp_path / "page.html").read_text("utf-8")


def test_the_report_command_still_takes_runs(runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert report(runs) == Path("report.html")
    assert "Localization report: first, second" in (tmp_path / "report.html").read_text("utf-8")


def test_a_mixture_is_refused(bench, runs, capsys):
    with pytest.raises(InputError, match=r"is a benchmark.*name it alone"):
        report([runs[0], bench])
    with pytest.raises(SystemExit, match="2"):
        main(["report", str(bench), str(runs[0])])
    assert "name it alone" in capsys.readouterr().err


def test_pixel_matrices_are_means_over_cells(finished):
    result = read_bench(finished)
    matrices = confusion({row.title: [cell.result for cell in result.of(row)] for row in result.rows})
    assert [title for title in matrices if "pixels" not in title] == ["CAM-LSE", "GAP", "Max-min (SEM)"]
    assert matrices["CAM-LSE: pixels"].to_numpy().tolist() == [[75.0, 25.0], [35.0, 65.0]]  # TNR 60 plus shifts 4 and 6
    images = matrices["CAM-LSE"]
    assert images.index.tolist() == ["benign (12)", "malignant (12)"]
    assert images.to_numpy()[1].tolist() == pytest.approx([100 / 3, 200 / 3])  # 3 images in each of 4 cells


def test_mean_curve_by_hand(finished):
    result = read_bench(finished)
    curve = mean_curve([cell.result for cell in result.of(result.rows[0])])
    assert curve is not None
    mean, std = curve
    assert mean.index.tolist() == [0.0, 0.5, 1.0]
    assert mean["f1_plus"].tolist()[:2] == [71.0, 70.0]  # 70, 72, 70, 72
    assert std["f1_plus"].iloc[0] == pytest.approx((4 / 3) ** 0.5)
    assert np.isnan(mean["f1_plus"].iloc[2])
    assert mean_curve([]) is None


def test_images_are_chosen_by_all_methods_and_from_every_class():
    names = [f"i{number}" for number in range(8)]
    label = ["benign"] * 5 + ["malignant"] * 3
    scores = ([90, 70, 50, 30, 10, 80, 40, 20], [10, 70, 50, 30, 20, 80, 40, 20])  # i0 is easy for one method only
    tables = [
        pd.DataFrame({"label": label, "f1_plus": score, "f1_minus": np.nan, "roi_fraction": 0.5}, index=names)
        for score in scores
    ]
    ranks = ["easiest", "middle", "hardest"] * 2
    assert choose(tables, set(), 6) == dict(zip(["i1", "i2", "i4", "i5", "i6", "i7"], ranks, strict=True))
    assert choose(tables, set(), 2) == {"i1": "middle", "i5": "middle"}
    without_truth = [tables[0].assign(f1_plus=np.nan)]
    assert choose(without_truth, set(), 4) == dict.fromkeys(["i0", "i4", "i5", "i7"], "no truth")


def test_labels_of_crowded_points_do_not_overlap():
    figure = Figure(figsize=(7, 5))
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    names = ["Max-pooling", "CAM-LSE", "Grad-CAM", "WILDCAT", "U-Net", "All-ones"]
    points = pd.DataFrame({"f1_minus": [20, 20.5, 21, 20.2, 80, 0], "f1_plus": [65, 65.5, 65, 66, 85, 60]}, names)
    axis.plot(points["f1_minus"], points["f1_plus"], "o")
    axis.margins(0.12)
    figure.draw_without_rendering()
    labels = place_labels(axis, points.assign(colour="black"))
    figure.draw_without_rendering()
    boxes = [Text.get_window_extent(label) for label in labels]  # of the words, without their lines
    for number, box in enumerate(boxes):
        assert box.count_overlaps(boxes[:number]) == 0
        assert axis.get_window_extent().count_contains([(box.x0, box.y0), (box.x1, box.y1)]) == 2


def test_a_real_evaluation_is_read(gap_run, tiny_table, tmp_path):
    from histoloc.evaluation import evaluate

    run = tmp_path / "bench" / "cells" / "gap" / "nofold-seed0"
    shutil.copytree(gap_run, run)
    metrics = evaluate(run, tiny_table, split="valid", device="cpu", progress=False)
    (run / "cell.json").write_text(json.dumps({"row": "gap", "fold": None, "seed": 0, "train_seconds": 3.0}))
    settings = {"kind": "table1", "data": str(tiny_table), "folds": [None], "seeds": [0], "rows": ["gap"]}
    (tmp_path / "bench" / "benchmark.json").write_text(json.dumps(settings | {"split": "valid", "format": 1}))
    text = write_benchmark_report(tmp_path / "bench").read_text("utf-8")
    frame = pd.read_csv(tmp_path / "bench" / "results.csv")
    assert frame["f1_plus"][0] == pytest.approx(metrics.f1_plus.value)
    assert frame["tnr_low"][0] == pytest.approx(metrics.tnr.low)
    assert frame["argmax_f1_plus"].notna().all()
    assert frame["specificity_without_roi"].isna().all()
    assert "Where: seed 0" in text
    assert "argmax rule" in text
    assert "published (" not in text


def test_the_report_of_a_benchmark_does_not_load_torch():
    code = "import sys, histoloc.benchmark.report; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("shift", "said"), [(-30.0, ""), (5.0, "at least as good as 2 of the 3 methods that learn from labels")]
)
def test_a_row_that_learns_nothing_and_is_as_good_is_named(bench, shift, said):
    for fold in (0, 1):
        for seed in (0, 1):
            run = bench / "cells" / "stain" / f"fold{fold}-seed{seed}"
            write_run(run, error=0.0, f1_plus=60.0, seed=5)
            finish(run, "stain", fold, seed, shift=shift + 2 * seed)
    settings = json.loads((bench / "benchmark.json").read_text())
    (bench / "benchmark.json").write_text(json.dumps(settings | {"rows": ["stain", *ROWS]}))
    text = write_benchmark_report(bench).read_text("utf-8")
    assert ("Stain, which learns nothing, has" in text) == bool(said)
    assert said in text


def test_the_figure_shows_the_images_asked_for(bench, tmp_path):
    names = read_bench(bench).cells[0].evaluation.images["name"].tolist()
    (gallery,) = figure(read_bench(bench), [names[3], Path(names[1]).stem])
    assert [row.name for row in gallery.rows] == [names[3], names[1]]
    with pytest.raises(InputError, match="--images nowhere: no image of this name"):
        figure(read_bench(bench), ["nowhere"])
    with pytest.raises(InputError, match="--images x: several images"):
        select_images(["a/x.png", "b/x.png"], ["x"])
    with pytest.raises(InputError, match="--images chooses the figure of a benchmark"):
        report([bench / "cells" / "gap" / "fold0-seed0"], tmp_path / "r.html", images=["a"])
