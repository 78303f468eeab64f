"""Images of a class without ROI have a gallery of their own, in the reports of runs and of benchmarks."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from written_runs import write_run

from histoloc.benchmark.report import figure, write_benchmark_report
from histoloc.benchmark.results import read_bench
from histoloc.report import read_runs, runs_table, write_report
from histoloc.report.gallery import choose, galleries, without_roi

# Shares marked by two runs in the images 0, 1, 2 (normal); 3, 4, 5 are metastatic.
MARKED = {"first": (0.3, 0.0, 0.125), "second": (0.05, 0.5, 0.0)}
NORMAL = [f"gland {number}.png" for number in range(3)]


def with_normal_tissue(run: Path, marked: tuple[float, ...], *, named: bool = True, specificity: float = 80.0) -> Path:
    """Turn a run of `write_run` into one on normal and metastatic images; normal ones have no mask file."""
    path = run / "evaluation" / "test" / "per_image.csv"
    images = pd.read_csv(path)
    images["label"] = ["normal"] * 3 + ["metastatic"] * 3
    images["predicted"] = ["normal"] * 4 + ["metastatic"] * 2
    images = images.rename(columns={"prob_benign": "prob_normal", "prob_malignant": "prob_metastatic"})
    normal = images["label"] == "normal"
    images.loc[normal, ["f1_plus", "true_fraction", "mask"]] = [np.nan, 0.0, ""]
    images.loc[normal, "roi_fraction"] = marked
    images.to_csv(path, index=False)
    for file in (path.with_name("metrics.json"), run / "metrics.json"):
        content = json.loads(file.read_text())
        content["empty_class"] = "normal" if named else None
        content["metrics"]["classes"] = ["metastatic", "normal"]
        content["metrics"]["specificity_without_roi"] = {"value": specificity, "low": 60.0, "high": 90.0, "n": 3}
        file.write_text(json.dumps(content))
    return run


@pytest.fixture
def tissue(runs) -> list[Path]:
    return [
        with_normal_tissue(run, MARKED[run.name], specificity=s) for run, s in zip(runs, (85.833, 81.667), strict=True)
    ]


def test_normal_and_metastatic_samples_are_two_galleries(tissue):
    normal, metastatic = galleries(read_runs(tissue)[0])
    assert (normal.classes, normal.without_roi) == (("normal",), True)
    assert (metastatic.classes, metastatic.without_roi) == (("metastatic",), False)
    # By what both runs mark, the least first: 0.0625, 0.175, 0.25.
    assert [(row.name, row.rank) for row in normal.rows] == [
        (NORMAL[2], "easiest"),
        (NORMAL[0], "middle"),
        (NORMAL[1], "hardest"),
    ]
    assert [row.name for row in metastatic.rows] == ["gland 3.png", "gland 4.png", "gland 5.png"]
    assert [[panel.score for panel in row.panels] for row in normal.rows] == [
        ["false alarm on 12.5 %", "no false alarm"],
        ["false alarm on 30.0 %", "false alarm on 5.0 %"],
        ["no false alarm", "false alarm on 50.0 %"],
    ]
    assert normal.rows[0].panels[0].prediction == "says normal, p = 0.80"
    panel = metastatic.rows[0].panels[0]
    assert (panel.score, panel.prediction) == ("F1⁺ 60.0, F1⁻ 60.0", "says normal, p = 0.80 (wrong)")
    # Without a mask file every mask is compared with nothing; there is no outline to show.
    assert all(row.truth is None and not row.missing for row in normal.rows)
    assert all(panel.agreement and panel.heatmap for row in normal.rows for panel in row.panels)
    assert all(row.truth for row in metastatic.rows)


def test_a_class_without_roi_need_not_be_named_where_every_image_has_a_truth(runs):
    result, _ = read_runs([with_normal_tissue(runs[0], MARKED["first"], named=False)])
    (evaluation,) = result[0].evaluations
    assert without_roi([evaluation]) == set(NORMAL)
    evaluation.images.loc[0, "true_fraction"] = np.nan
    assert without_roi([evaluation]) == set()
    evaluation.result.empty_class = "normal"
    assert without_roi([evaluation]) == set(NORMAL)
    evaluation.images.loc[1, "true_fraction"] = 0.01  # the mask knows better than the label
    assert without_roi([evaluation]) == {NORMAL[0], NORMAL[2]}


def test_without_such_a_class_there_is_one_gallery(runs):
    (gallery,) = galleries(read_runs(runs)[0])
    assert (gallery.classes, gallery.without_roi, len(gallery.rows)) == ((), False, 5)


def test_a_few_marked_pixels_are_not_none(runs):
    result, _ = read_runs([with_normal_tissue(runs[0], (0.0004, 0.0, np.nan))])
    by_name = {row.name: row.panels[0] for row in galleries(result)[0].rows}
    assert by_name[NORMAL[0]].score == "false alarm on < 0.1 %"
    assert by_name[NORMAL[1]].score == "no false alarm"
    assert NORMAL[2] not in by_name  # nobody knows what was marked


def test_only_images_without_roi_are_one_gallery(tissue):
    path = tissue[0] / "evaluation" / "test" / "per_image.csv"
    pd.read_csv(path).head(3).to_csv(path, index=False)
    (gallery,) = galleries(read_runs(tissue[:1])[0])
    assert (gallery.classes, len(gallery.rows)) == (("normal",), 3)


def test_images_without_roi_are_ranked_by_the_mean_false_alarm_of_all_runs():
    names = ["a", "b", "c"]
    tables = [
        pd.DataFrame({"label": "normal", "roi_fraction": share, "f1_plus": np.nan, "f1_minus": 50.0}, index=names)
        for share in ([0.1, 0.0, 0.3], [0.0, 0.5, 0.1])  # means 0.05, 0.25, 0.2
    ]
    assert choose(tables, set(names), 6) == {"a": "easiest", "c": "middle", "b": "hardest"}


def test_the_page_of_runs_shows_both_figures_and_the_specificity(tissue, tmp_path):
    page = write_report(tissue, tmp_path / "report.html").read_text("utf-8")
    assert re.findall(r"<h2>Where: (.*)</h2>", page) == [
        "normal samples, test of glands.csv",
        "metastatic samples, test of glands.csv",
    ]
    assert "Images of class normal have no ROI: whatever is marked is a false alarm" in page
    assert page.count('alt="False alarms of ') == page.count('alt="Agreement with the truth of ') == 3 * 2
    assert page.count("data:image/jpeg") == 3 * (1 + 2 * 2) + 3 * (2 + 2 * 2)
    assert "<th >specificity on normal images</th>" in page
    assert "<b>85.83</b>" in page
    assert "81.67" in page


def test_the_table_has_the_specificity_only_where_a_class_is_named(tissue, tmp_path):
    table = runs_table(read_runs(tissue)[0])
    assert table.headings[-1] == ("", "specificity on normal images")
    items = [line.cells[-1][::2] for line in table.rows if not line.aside]
    assert items == [("85.83", True), ("81.67", False)]
    other = runs_table(read_runs([write_run(tmp_path / "other" / "run", error=0.0, f1_plus=70.0, seed=3)])[0])
    assert not any("specificity" in heading for _, heading in other.headings)


@pytest.fixture
def bench(tmp_path) -> Path:
    """GAP and max-min on normal and metastatic images, one seed."""
    folder = tmp_path / "bench"
    for number, row in enumerate(("gap", "maxmin-sem")):
        run = write_run(folder / "cells" / row / "nofold-seed0", error=0.0, f1_plus=60.0, seed=number)
        with_normal_tissue(run, list(MARKED.values())[number], specificity=70.0 + number)
        (run / "cell.json").write_text(json.dumps({"row": row, "fold": None, "seed": 0, "train_seconds": 1.0}))
    settings = {"kind": "table1", "data": "p512/table.csv", "folds": [None], "seeds": [0], "split": "test"}
    settings |= {"rows": ["gap", "maxmin-sem"], "preset": "camelyon16", "empty_class": "normal"}
    (folder / "benchmark.json").write_text(json.dumps(settings | {"published": "camelyon16", "format": 1}))
    return folder


def test_the_page_of_a_benchmark_shows_both_figures(bench):
    result = read_bench(bench)
    normal, metastatic = figure(result)
    assert (normal.classes, metastatic.classes, normal.title) == (("normal",), ("metastatic",), "seed 0")
    assert [row.name for row in normal.rows] == [NORMAL[2], NORMAL[0], NORMAL[1]]  # means 0.0625, 0.175, 0.25
    page = write_benchmark_report(bench).read_text("utf-8")
    assert re.findall(r"<h2>Where: (.*)</h2>", page) == ["normal samples, seed 0", "metastatic samples, seed 0"]
    assert page.count('alt="False alarms of ') == page.count('alt="Agreement with the truth of ') == 3 * 2
    assert "specificity on normal images" in page
    assert "published (Camelyon16-P512, test)" in page


def test_images_asked_for_keep_to_their_gallery(bench):
    normal, metastatic = figure(read_bench(bench), ["gland 4", "gland 2", "gland 0"])
    assert [row.name for row in normal.rows] == ["gland 2.png", "gland 0.png"]
    assert [row.name for row in metastatic.rows] == ["gland 4.png"]
    (alone,) = figure(read_bench(bench), ["gland 4"])
    assert (alone.classes, alone.without_roi) == ((), False)
