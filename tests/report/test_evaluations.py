"""Several evaluations of one split of one run, and what is shown beside each: never one's numbers in another's row."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from written_runs import metric, write_run

from histoloc.cli.main import main
from histoloc.report import read_runs, runs_table, write_report
from histoloc.report.gallery import galleries
from histoloc.report.html import render
from histoloc.report.tables import METRICS, Entry, percent

ASKED = ("fold", "threshold", "range", "map_class", "empty_class")


def evaluated(run: Path, folder: str = "test", f1_plus: float = 70.0, **changes: Any) -> None:
    """Write an evaluation with an identity, of which `asked_...` are parts; a copy of the run's first one, changed."""
    own = run / "evaluation" / folder
    if folder != "test":
        shutil.copytree(run / "evaluation" / "test", own)
    file = own / "metrics.json"
    content = json.loads(file.read_text())
    result = {name: changes.pop(f"asked_{name}", None) for name in ASKED}
    named = {"table": changes.get("table", "glands.csv"), "split": changes.get("split", "test")}
    weights = changes.pop("weights", f"weights of {run.name}")
    digest = changes.pop("content", "c0ffee0123456789")
    content["metrics"]["f1_plus"]["value"] = f1_plus
    content["metrics"] |= changes.pop("metrics", {})
    content["identity"] = {"content": digest, **named, **result, "weights_sha256": weights}
    content["empty_class"], content["map_class"] = result["empty_class"], result["map_class"]
    if result["threshold"] is not None:
        content["threshold"] = {"rule": "given", "value": result["threshold"]}
    file.write_text(json.dumps(content | changes))


@pytest.fixture
def options(runs) -> list[Path]:
    """Two runs, each evaluated on test in five ways and on valid; the numbers differ everywhere."""
    for number, run in enumerate(runs):
        evaluated(run, f1_plus=70.0 + number)
        evaluated(run, "test-threshold0.4", 60.0 - number, asked_threshold=0.4)
        evaluated(run, "test-image", 50.0 + number, asked_range="image")
        evaluated(run, "test-map-benign", 40.0 - number, asked_map_class="benign")
        evaluated(run, "test-empty-benign", 30.0 + number, asked_empty_class="benign")
        evaluated(run, "valid", 20.0, split="valid")
    return runs


def rows_of(paths: list[Path]) -> list[tuple[str, dict[str, Entry]]]:
    """The run and the cells by heading of every evaluation."""
    table = runs_table(read_runs(paths)[0])
    heads = [" ".join(filter(None, heading)) for heading in table.headings]
    return [(line.title, dict(zip(heads, line.cells, strict=True))) for line in table.rows if not line.aside]


def has_best(paths: list[Path]) -> bool:
    return any(cell.bold for _, row in rows_of(paths) for cell in row.values())


MAIN = ("cl_error", "f1_plus", "f1_minus", "f1_mean", "pxap")
LABELS = [
    "test",
    "test, --range image",
    "test, cut at 0.40",
    "test, map of benign",
    "test, no ROI in benign",
    "valid",
]


def test_every_row_has_its_own_numbers_and_says_what_is_not_the_default(options):
    rows = rows_of(options)
    result = {(name, row["Evaluation"].text): float(row["F1⁺"].text) for name, row in rows}
    assert [row["Evaluation"].text for _, row in rows[:6]] == LABELS
    assert result == {
        (run, label): value
        for run, values in (("first", (70, 50, 60, 40, 30, 20)), ("second", (71, 51, 59, 39, 31, 20)))
        for label, value in zip(LABELS, values, strict=True)
    }
    assert [row["Threshold"].text for _, row in rows[:6]] == ["0.5 (fixed)"] * 2 + ["0.4 (given)"] + ["0.5 (fixed)"] * 3


def test_best_is_among_evaluations_of_one_identity(options):
    best: dict[str, list[str]] = {}
    for name, row in rows_of(options):
        if row["F1⁺"].bold:
            best.setdefault(row["Evaluation"].text, []).append(name)
    assert best == {
        "test": ["second"],
        "test, --range image": ["second"],
        "test, map of benign": ["first"],
        "test, cut at 0.40": ["first"],
        "test, no ROI in benign": ["second"],
        "valid": ["first", "second"],
    }
    assert not has_best(options[:1]), "one run is compared with nobody"


def test_figures_charts_and_matrices_are_of_one_evaluation(options):
    result, _ = read_runs(options)
    made = galleries(result)
    assert [gallery.title for gallery in made if not gallery.without_roi] == [
        f"{label} of glands.csv" for label in LABELS
    ]
    assert all(gallery.runs == ["first", "second"] for gallery in made)
    page = render(result)
    for label in LABELS:
        assert page.count(f"evaluation on {label}</summary>") == 2
        assert re.search(rf'alt="F1 plus and F1 minus over[^"]*first, {label}[;.]', page)
        assert re.search(rf'alt="Confusion matrices[^"]*first, {label}: ', page)


@pytest.mark.parametrize(
    ("one", "other", "labels"),
    [
        ({}, {"content": "deadbeef99"}, ["test, content c0ffee01", "test, content deadbeef"]),
        ({}, {"asked_threshold": 0.401}, ["test", "test, cut at 0.401"]),
        ({"asked_fold": 0, "fold": 0}, {"asked_fold": 1, "fold": 1}, ["test", "test"]),  # the same images
        ({}, {"table": "other.csv"}, ["test", "test"]),
    ],
)
def test_two_runs_are_compared_only_if_all_is_equal_but_the_weights(runs, one, other, labels):
    evaluated(runs[0], f1_plus=70.0, **one)
    evaluated(runs[1], f1_plus=71.0, **other)
    result, _ = read_runs(runs)
    assert [run.evaluations[0].label for run in result] == labels
    same = "fold" in other
    assert has_best(runs) == same
    assert len(galleries(result)) == (1 if same else 2)
    names = {e.name for run in result for e in run.evaluations}
    assert len(names) == (1 if same else 2)


def test_the_class_without_roi_that_the_model_names_is_the_same_as_the_one_asked_for(runs):
    evaluated(runs[0], f1_plus=70.0, asked_empty_class="benign")
    evaluated(runs[1], f1_plus=71.0)
    assert not has_best(runs)
    evaluated(runs[1], f1_plus=71.0, empty_class="benign")
    assert [name for name, row in rows_of(runs) if row["F1⁺"].bold] == ["second"]


def test_default_evaluations_with_and_without_such_a_class_are_told_apart(runs):
    evaluated(runs[0])
    evaluated(runs[1], empty_class="benign")
    result, _ = read_runs(runs)
    assert [run.evaluations[0].label for run in result] == ["test", "test, no ROI in benign"]


def test_an_evaluation_of_earlier_weights_is_a_row_of_its_own(runs):
    config = runs[0] / "model" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"weights_sha256": "new"}))
    evaluated(runs[0], f1_plus=70.0, weights="old")
    evaluated(runs[0], "test-2", 75.0, weights="new")
    result, _ = read_runs(runs[:1])
    rows = [row for _, row in rows_of(runs[:1])]
    items = [(row["Evaluation"].text, row["F1⁺"].text, row["F1⁺"].bold) for row in rows]
    assert items == [("test, earlier weights", "70.00", False), ("test", "75.00", True)]
    (gallery,) = galleries(result)
    assert gallery.runs == ["first, test, earlier weights", "first, test"]


def test_other_tables_come_last_and_are_named(runs):
    config = runs[0] / "model" / "config.json"
    config.write_text(json.dumps({"provenance": {"table": "glands.csv"}}))
    evaluated(runs[0])
    evaluated(runs[0], "train", split="train")
    evaluated(runs[0], "other-test", table="other.csv")
    evaluated(runs[0], "other-test-2", table="other.csv", content="2222222222")
    evaluated(runs[0], "valid-threshold0.3", split="valid", asked_threshold=0.3)
    (run,), _ = read_runs(runs[:1])
    assert [evaluation.name for evaluation in run.evaluations] == [
        "test of glands.csv",
        "valid, cut at 0.30 of glands.csv",
        "train of glands.csv",
        "test, content c0ffee01 of other.csv",
        "test, content 22222222 of other.csv",
    ]


def test_evaluations_of_histoloc_0_1_are_read_and_compared_with_each_other_only(runs, tmp_path):
    third = write_run(tmp_path / "third", error=0.0, f1_plus=90.0, seed=3)
    evaluated(third, f1_plus=90.0)
    result, _ = read_runs([*runs, third])
    assert [run.evaluations[0].label for run in result] == ["test, content unknown"] * 2 + ["test, content c0ffee01"]
    best = {name for name, row in rows_of([*runs, third]) if any(cell.bold for cell in row.values())}
    assert best == {"first", "second"}
    rows = [line for line in runs_table(result).rows if not line.aside]
    old = "An older histoloc did not write down which images it evaluated: compared with no newer evaluation."
    assert [old in line.notes for line in rows] == [True, True, False]
    record = json.loads((runs[0] / "evaluation" / "test" / "metrics.json").read_text())
    record["threshold"] = {"rule": "given", "value": 0.3}
    (runs[0] / "evaluation" / "test" / "metrics.json").write_text(json.dumps(record))
    assert read_runs(runs)[0][0].evaluations[0].label == "test, cut at 0.30"


# --- what is shown beside the numbers ---

FLOORS = {
    "allones": {"f1_plus": 66.5, "f1_minus": 0.0, "f1_mean": 33.25, "pxap": 41.5},
    "stain": {"f1_plus": 50.25, "f1_minus": 62.0, "f1_mean": 56.125, "pxap": None},
}


def test_methods_that_learn_nothing_are_rows_and_are_named_where_they_are_better(runs):
    message = "Stain (per image), which learns nothing, has mean F1 56.12, above 50.00"
    means = {"f1_mean": metric(50.0), "pxap": metric(61.25)}
    evaluated(runs[0], floors=FLOORS, metrics=means, notes=["a note of the table", message])
    evaluated(runs[1], floors={})
    result, _ = read_runs(runs)
    table = runs_table(result)
    floors = [line.title for line in table.rows if line.title.startswith("learns nothing")]
    assert floors == ["learns nothing: All-ones", "learns nothing: Stain (per image)"]
    assert "A note of the table." in table.notes
    assert not any("learns nothing" in note for note in table.notes), "it is a sentence of its own"
    page = render(result)
    assert f'<p class="warn">first, test: {message}.</p>' in page
    (line,) = [line for line in table.rows if line.title == floors[0]]
    assert [cell.text for cell in line.cells[4:]] == ["", "66.50", "0.00", "33.25", "41.50", "", ""]
    evaluated(runs[1], floors=FLOORS)
    titles = [row.title for row in runs_table(read_runs(runs)[0]).rows]
    assert titles[-2:] == floors, "at the end"
    assert titles.count(floors[0]) == 1, "equal ones once"


def test_numbers_by_the_per_image_rule_have_columns(runs):
    rule = {
        "f1_plus": metric(81.5, 70.0, 90.0),
        "f1_minus": metric(44.25),
        "f1_mean": metric(62.875),
        "pxap": metric(1.0),
    }
    evaluated(runs[0], per_image_rule=rule)
    evaluated(runs[1])
    result, _ = read_runs(runs)
    _, row = rows_of(runs)[0]
    assert row["per image F1⁺"][:2] == ("81.50", "[70.0, 90.0]")
    assert row["per image F1⁻"][:2] == ("44.25", "")
    page = render(result)
    assert "published numbers are made so" in page
    assert "compare with the columns per image" in page
    assert "per image" not in render(read_runs(runs[1:])[0])


def test_range_scale_and_class_of_the_maps_are_footnotes(runs):
    scale = {"shorter side to 216 px": 4, "1.5 µm/px in tiles": 2}
    evaluated(runs[0], asked_map_class="benign", range="learned", scale=scale)
    evaluated(runs[1], range="image and probability", scale={"as it is": 6})
    notes = runs_table(read_runs(runs)[0]).notes
    for note in (
        "Maps: learned range (affine map and sigmoid, learned on training images without masks).",
        "How the network sees images: shorter side to 216 px (4 images), 1.5 µm/px in tiles (2 images).",
        "The maps are those of class benign, whatever class is predicted.",
        "How the network sees images: as it is.",
    ):
        assert note in notes
    assert any("per-image rule" in note and "and evidence that is a probability already" in note for note in notes)
    assert "scale.1.5 µm/px in tiles" in render(read_runs(runs)[0])


def test_published_numbers_of_another_cut_are_called_incomparable(runs):
    evaluated(runs[0], asked_threshold=0.3)
    published = runs_table(read_runs(runs)[0]).rows[1].notes[0]
    assert "ours on test, cut at 0.30: not directly comparable" in published


def test_two_evaluations_through_the_command_line(tiny_flags, tiny_table, tmp_path, capsys):
    run = tmp_path / "run"
    main(["train", "gap", *tiny_flags(out=run)])
    call = ["evaluate", str(run), "--data", str(tiny_table), "--device", "cpu"]
    main(call)
    main([*call, "--threshold", "0.05"])
    folders = {"test": "test", "test, cut at 0.05": "test-threshold0.05", "valid": "valid"}  # training leaves the last
    made = {label: json.loads((run / "evaluation" / f / "metrics.json").read_text()) for label, f in folders.items()}
    assert len({content["metrics"]["f1_plus"]["value"] for content in made.values()}) == 3
    capsys.readouterr()
    main(["report", str(run), "--out", str(tmp_path / "page.html")])
    page = (tmp_path / "page.html").read_text("utf-8")
    for (_, row), (label, content) in zip(rows_of([run]), made.items(), strict=True):
        assert row["Evaluation"].text == label
        numbers = [percent(content["metrics"][name]["value"]) for name in MAIN]
        assert [row[METRICS[name]].text for name in MAIN] == numbers
        assert all(f">{number}<" in page for number in numbers)
    assert page.count("learns nothing: All-ones") == 3
    assert "Maps: learned range" in page
    assert "How the network sees images: shorter side to 64 px." in page
    assert write_report([run], tmp_path / "again.html").read_text("utf-8") == page
