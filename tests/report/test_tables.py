import json
import math

import pytest

from histoloc.report import read_runs, results_frame, to_html, to_markdown, write_report
from histoloc.report.rows import resampling, table_rows
from histoloc.report.tables import headings, interval, percent


def test_results_frame_is_tidy_and_in_percent(runs):
    frame = results_frame(read_runs(runs)[0])
    assert len(frame) == 14
    first = {str(row["metric"]): row for row in frame[frame["run"] == "first"].to_dict("records")}
    assert [first["f1_plus"][key] for key in ("value", "low", "high", "n")] == [70.004, 60.0, 81.0, 6]
    assert first["f1_plus"]["published"] == pytest.approx(71.94)
    assert math.isnan(first["pxap"]["low"])
    assert math.isnan(first["pxap"]["published"])


def test_best_is_least_error_and_ties_at_the_decimals_shown(runs):
    frame = results_frame(read_runs(runs)[0])
    best = frame[frame["best"]].groupby("metric")["run"].agg(list).to_dict()
    assert best["cl_error"] == ["second"]
    assert best["f1_plus"] == ["first", "second"]  # 70.004 and 70.003 are both shown as 70.00
    assert "f1_mean" not in best


def test_a_run_alone_is_not_best(runs):
    assert not results_frame(read_runs(runs[:1])[0])["best"].any()


def test_splits_are_not_compared_with_each_other(runs):
    path = runs[0] / "evaluation" / "test" / "metrics.json"
    path.write_text(path.read_text().replace('"test"', '"valid"'))
    assert not results_frame(read_runs(runs)[0])["best"].any()


def test_markdown_and_html_show_the_same_numbers(runs):
    frame = results_frame(read_runs(runs)[0])
    first = to_markdown(frame).splitlines()[2]
    assert first == (
        "| first | test | 6 | 16.67 (0.0 to 50.0) | **70.00** (60.0 to 81.0) | **50.00** | – | **61.23** "
        "| **75.00** | **25.00** |"
    )
    assert "<td><b>70.00</b><small>60.0 to 81.0</small></td>" in to_html(frame)


def test_percent_and_interval():
    assert (percent(None), percent(float("nan")), percent(12.346)) == ("–", "–", "12.35")
    assert (interval(1, float("nan")), interval(0, 100)) == ("", "0.0 to 100.0")


def test_every_use_of_masks_has_a_footnote(runs):
    rows, notes = table_rows(read_runs(runs)[0])
    assert notes == [
        "Oracle on test, chosen on the evaluated images themselves and therefore no fair result, for first: "
        "threshold 0.25, F1⁺ 80.00 %.",
        "Epoch chosen on 17 validation masks.",
        "Oracle on test, chosen on the evaluated images themselves and therefore no fair result, for second: "
        "threshold 0.25, F1⁺ 80.00 %.",
    ]
    assert [row.notes for row in rows] == [[1], [2, 3]]


def test_masks_that_only_the_model_folder_names_have_a_footnote(runs):
    path = runs[1] / "evaluation" / "test" / "metrics.json"
    path.write_text(path.read_text().replace('["epoch chosen on 17 validation masks"]', "[]"))
    assert "The epoch was chosen on 17 masks (rule b_loc)." in table_rows(read_runs(runs)[0])[1]


def test_folds_of_one_split_are_not_compared(runs):
    for number, run in enumerate(runs):
        path = run / "evaluation" / "test" / "metrics.json"
        path.write_text(path.read_text().replace('"test"', f'"valid", "fold": {number}'))
    frame = results_frame(read_runs(runs)[0])
    assert set(frame["split"]) == {"valid, fold 0", "valid, fold 1"}
    assert not frame["best"].any()


def test_published_numbers_of_another_split_are_called_incomparable(runs):
    assert table_rows(read_runs(runs)[0])[0][0].published == "Table I <a>"
    path = runs[0] / "evaluation" / "test" / "metrics.json"
    path.write_text(path.read_text().replace('"test"', '"valid"'))
    assert "not directly comparable" in table_rows(read_runs(runs)[0])[0][0].published


# --- what intervals and PxAP are computed over ---


def change_metrics(run, **values):
    path = run / "evaluation" / "test" / "metrics.json"
    content = json.loads(path.read_text())
    content["metrics"] |= values
    path.write_text(json.dumps(content))


def test_a_row_by_group_has_a_footnote_and_the_legend_says_where(runs):
    found = read_runs(runs)[0]
    assert resampling(found) == "images"
    change_metrics(runs[1], resampled="groups", groups=5, notes=["Images without a group: 2 of 6."])
    found = read_runs(runs)[0]
    rows, notes = table_rows(found)
    assert [notes[number - 1] for number in rows[1].notes[2:]] == [
        "Intervals: bootstrap over 5 groups, all images of a group together.",
        "Images without a group: 2 of 6.",
    ]
    assert len(rows[0].notes) == 1
    assert resampling(found) == "images, or over groups of images (patients, slides) where a footnote says so"
    change_metrics(runs[0], resampled="groups", groups=5)
    assert resampling(read_runs(runs)[0]) == "groups of images (patients, slides; see the footnotes)"
    page = " ".join(write_report(runs, runs[0].parent / "report.html").read_text("utf-8").split())
    assert "95 % bootstrap interval over groups of images (patients, slides; see the footnotes), none where" in page


def test_pxap_has_two_columns_where_images_without_roi_are_in_its_pool(runs):
    without = {"pxap_images_without_roi": 2, "pxap_with_roi": {"value": 80.0, "low": 70.0, "high": 90.0, "n": 4}}
    change_metrics(runs[0], **without)
    found = read_runs(runs)[0]
    assert list(headings(found).values())[4:6] == ["PxAP", "PxAP, images with ROI"]
    assert "| **61.23** | 80.00 (70.0 to 90.0) |" in to_markdown(results_frame(found))
    rows, notes = table_rows(found)
    without_roi = "2 of them without ROI (all their pixels are background)."
    assert notes[rows[0].notes[-1] - 1] == f"PxAP pools the pixels of all images whose truth is known, {without_roi}"
    change_metrics(runs[0], pxap=None, pxap_with_roi=None)
    assert "PxAP, images with ROI" not in headings(read_runs(runs)[0]).values()


def test_metrics_of_the_class_have_columns_where_they_are_defined(runs):
    kappa = {"value": -3.0, "low": -12.0, "high": 8.0, "n": 6, "groups": None}
    change_metrics(runs[0], kappa=kappa, auc={"value": 91.0, "low": 80.0, "high": 99.0, "n": 6}, balanced_accuracy=None)
    found = read_runs(runs)[0]
    assert list(headings(found))[:4] == ["cl_error", "auc", "kappa", "f1_plus"]
    assert "| 91.00 (80.0 to 99.0) | -3.00 (-12.0 to 8.0) |" in to_markdown(results_frame(found))
    page = write_report(runs, runs[0].parent / "report.html").read_text("utf-8")
    assert "AUC: area under the ROC curve" in page
    assert "Balanced" not in page
