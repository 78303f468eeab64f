import json
from typing import Any

from histoloc.report import read_runs, results_frame, runs_table, to_html, to_latex, to_markdown, write_report
from histoloc.report.rows import resampling
from histoloc.report.tables import interval, percent


def table_of(runs):
    return runs_table(read_runs(runs)[0])


def measured(runs) -> list[dict[str, Any]]:
    """Cells of every evaluation by heading."""
    table = table_of(runs)
    heads = [" ".join(filter(None, heading)) for heading in table.headings]
    return [dict(zip(heads, line.cells, strict=True)) for line in table.rows if not line.aside]


def test_results_frame_has_a_line_for_each_evaluation_in_percent(runs):
    first, second = results_frame(read_runs(runs)[0]).to_dict("records")
    assert (first["run"], first["method"], first["evaluation"]) == ("first", "maxmin", "test")
    assert [first[key] for key in ("f1_plus", "f1_plus_low", "f1_plus_high")] == [70.004, 60.0, 81.0]
    assert (second["f1_plus"], second["oracle_threshold"]) == (70.003, 0.25)
    assert first["pxap_low"] is None


def test_best_is_least_error_and_ties_at_the_decimals_shown(runs):
    first, second = measured(runs)
    assert (first["Cl. error"].bold, second["Cl. error"].bold) == (False, True)
    assert (first["F1⁺"].bold, second["F1⁺"].bold) == (True, True)  # 70.004 and 70.003 are both shown as 70.00
    assert not first["mean F1"].bold


def test_a_run_alone_is_not_best(runs):
    assert not any(cell.bold for cell in measured(runs[:1])[0].values())


def test_splits_are_not_compared_with_each_other(runs):
    path = runs[0] / "evaluation" / "test" / "metrics.json"
    path.write_text(path.read_text().replace('"test"', '"valid"'))
    assert not any(cell.bold for row in measured(runs) for cell in row.values())


def test_every_format_shows_the_same_numbers(runs):
    table = table_of(runs)
    _, _, _, _, first, published, *_ = to_markdown(table).splitlines()
    assert first == (
        "| first <sup>1</sup> | maxmin | test | 6 | 0.5 (fixed) | 16.67 [0.0, 50.0] | **70.00** [60.0, 81.0] "
        "| **50.00** | – | **61.23** | **75.00** | **25.00** |"
    )
    assert published == "| published <sup>2</sup> |  |  |  |  | 0.00 | 71.94 | 69.23 |  |  |  |  |"
    assert "<b>70.00</b><small>[60.0, 81.0]</small></td>" in to_html(table)
    assert "Table I &lt;a&gt;" in to_html(table)
    assert "\\textbf{70.00} {\\scriptsize [60.0, 81.0]}" in to_latex(table)


def test_percent_and_interval():
    assert (percent(None), percent(float("nan")), percent(12.346)) == ("–", "–", "12.35")
    assert (interval(1, float("nan")), interval(-1, 100)) == ("", "[−1.0, 100.0]")


def test_every_use_of_masks_has_a_footnote(runs):
    table = table_of(runs)
    assert table.notes == [
        "Oracle on test, chosen on the evaluated images themselves and therefore no fair result, for first: "
        "threshold 0.25, F1⁺ 80.00 %.",
        "Published: Table I <a>.",
        "Epoch chosen on 17 validation masks.",
        "Oracle on test, chosen on the evaluated images themselves and therefore no fair result, for second: "
        "threshold 0.25, F1⁺ 80.00 %.",
    ]
    assert [table.marks(line) for line in table.rows] == ["1", "2", "3,4", "2"]


def test_masks_that_only_the_model_folder_names_have_a_footnote(runs):
    path = runs[1] / "evaluation" / "test" / "metrics.json"
    path.write_text(path.read_text().replace('["epoch chosen on 17 validation masks"]', "[]"))
    assert "The epoch was chosen on 17 masks (rule b_loc)." in table_of(runs).notes


def test_folds_of_one_split_are_not_compared(runs):
    for number, run in enumerate(runs):
        path = run / "evaluation" / "test" / "metrics.json"
        path.write_text(path.read_text().replace('"test"', f'"valid", "fold": {number}'))
    rows = measured(runs)
    assert [row["Evaluation"].text for row in rows] == ["valid, fold 0", "valid, fold 1"]
    assert not any(cell.bold for row in rows for cell in row.values())


def test_published_numbers_of_another_split_are_called_incomparable(runs):
    assert table_of(runs).rows[1].notes == ["Published: Table I <a>."]
    path = runs[0] / "evaluation" / "test" / "metrics.json"
    path.write_text(path.read_text().replace('"test"', '"valid"'))
    assert "not directly comparable" in table_of(runs).rows[1].notes[0]


# --- what intervals and PxAP are computed over ---


def change_metrics(run, **values):
    path = run / "evaluation" / "test" / "metrics.json"
    content = json.loads(path.read_text())
    content["metrics"] |= values
    path.write_text(json.dumps(content))


def test_a_row_by_group_has_a_footnote_and_the_legend_says_where(runs):
    result = read_runs(runs)[0]
    assert resampling(result) == "images"
    change_metrics(runs[1], resampled="groups", groups=5, notes=["Images without a group: 2 of 6."])
    result = read_runs(runs)[0]
    first, second = (line for line in runs_table(result).rows if not line.aside)
    assert second.notes[2:] == [
        "Intervals: bootstrap over 5 groups, all images of a group together.",
        "Images without a group: 2 of 6.",
    ]
    assert len(first.notes) == 1
    assert resampling(result) == "images, or over groups of images (patients, slides) where a footnote says so"
    change_metrics(runs[0], resampled="groups", groups=5)
    assert resampling(read_runs(runs)[0]) == "groups of images (patients, slides; see the footnotes)"
    page = " ".join(write_report(runs, runs[0].parent / "report.html").read_text("utf-8").split())
    assert "95 % bootstrap interval over groups of images (patients, slides; see the footnotes), none where" in page


def test_pxap_has_two_columns_where_images_without_roi_are_in_its_pool(runs):
    without = {"pxap_images_without_roi": 2, "pxap_with_roi": {"value": 80.0, "low": 70.0, "high": 90.0, "n": 4}}
    change_metrics(runs[0], **without)
    row = measured(runs[:1])[0]
    assert list(row)[8:10] == ["PxAP", "PxAP, images with ROI"]
    assert row["PxAP, images with ROI"][:2] == ("80.00", "[70.0, 90.0]")
    without_roi = "2 of them without ROI (all their pixels are background)."
    assert f"PxAP pools the pixels of all images whose truth is known, {without_roi}" in table_of(runs).rows[0].notes
    change_metrics(runs[0], pxap=None, pxap_with_roi=None)
    assert "PxAP, images with ROI" not in measured(runs)[0]


def test_metrics_of_the_class_have_columns_where_they_are_defined(runs):
    kappa = {"value": -3.0, "low": -12.0, "high": 8.0, "n": 6, "groups": None}
    change_metrics(runs[0], kappa=kappa, auc={"value": 91.0, "low": 80.0, "high": 99.0, "n": 6}, balanced_accuracy=None)
    row = measured(runs)[0]
    assert list(row)[4:8] == ["Cl. error", "AUC", "kappa", "F1⁺"]
    assert (row["AUC"][:2], row["kappa"][:2]) == (("91.00", "[80.0, 99.0]"), ("-3.00", "[−12.0, 8.0]"))
    page = write_report(runs, runs[0].parent / "report.html").read_text("utf-8")
    assert "AUC: area under the ROC curve" in page
    assert "Balanced" not in page
