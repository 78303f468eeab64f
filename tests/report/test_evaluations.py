"""Several evaluations of one split of one run, and what is shown beside each: never one's numbers in another's row."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from written_runs import metric, write_run

from histoloc.cli.main import main
from histoloc.report import read_runs, results_frame, to_html, to_markdown, write_report
from histoloc.report.gallery import galleries
from histoloc.report.html import render
from histoloc.report.rows import table_rows
from histoloc.report.tables import METRICS, percent

ASKED = ("fold", "threshold", "range", "map_class", "empty_class")


def evaluated(run: Path, folder: str = "test", f1_plus: float = 70.0, **changes: Any) -> None:
    """Write an evaluation with an identity, of which `asked_...` are parts; a copy of the run's first one, changed."""
    own = run / "evaluation" / folder
    if folder != "test":
        shutil.copytree(run / "evaluation" / "test", own)
    file = own / "metrics.json"
    content = json.loads(file.read_text())
    asked = {name: changes.pop(f"asked_{name}", None) for name in ASKED}
    named = {"table": changes.get("table", "glands.csv"), "split": changes.get("split", "test")}
    weights = changes.pop("weights", f"weights of {run.name}")
    digest = changes.pop("content", "c0ffee0123456789")
    content["metrics"]["f1_plus"]["value"] = f1_plus
    content["metrics"] |= changes.pop("metrics", {})
    content["identity"] = {"content": digest, **named, **asked, "weights_sha256": weights}
    content["empty_class"], content["map_class"] = asked["empty_class"], asked["map_class"]
    if asked["threshold"] is not None:
        content["threshold"] = {"rule": "given", "value": asked["threshold"]}
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
    rows, _ = table_rows(read_runs(options)[0])
    shown = {(row.run, row.label): row.cells[1]["value"] for row in rows}
    assert [row.label for row in rows[:6]] == LABELS
    assert shown == {
        (run, label): value
        for run, values in (("first", (70, 50, 60, 40, 30, 20)), ("second", (71, 51, 59, 39, 31, 20)))
        for label, value in zip(LABELS, values, strict=True)
    }
    assert [row.threshold for row in rows[:6]] == ["0.5 (fixed)"] * 2 + ["0.4 (given)"] + ["0.5 (fixed)"] * 3


def test_best_is_among_evaluations_of_one_identity(options):
    frame = results_frame(read_runs(options)[0])
    plus = frame[frame["metric"] == "f1_plus"]
    best = plus[plus["best"]].groupby("evaluation")["run"].agg(list).to_dict()
    assert best == {
        "test": ["second"],
        "test, --range image": ["second"],
        "test, map of benign": ["first"],
        "test, cut at 0.40": ["first"],
        "test, no ROI in benign": ["second"],
        "valid": ["first", "second"],
    }
    assert not results_frame(read_runs(options[:1])[0])["best"].any(), "one run is compared with nobody"


def test_markdown_and_html_have_a_row_for_each_evaluation(options):
    frame = results_frame(read_runs(options[:1])[0])
    lines = to_markdown(frame).splitlines()[2:]
    assert [line.split(" | ")[1] for line in lines] == LABELS
    assert [float(line.split(" | ")[4].split()[0]) for line in lines] == [70, 50, 60, 40, 30, 20]
    assert to_html(frame).count("<tr>") == 7


def test_figures_charts_and_matrices_are_of_one_evaluation(options):
    found, _ = read_runs(options)
    made = galleries(found)
    assert [gallery.evaluation for gallery in made if not gallery.without_roi] == LABELS
    assert all(gallery.runs == ["first", "second"] for gallery in made)
    page = render(found)
    for label in LABELS:
        assert page.count(f"<figcaption>first, {label}</figcaption>") == 1
        assert page.count(f"<caption>Evaluation on {label}</caption>") == 2
        assert re.search(rf'alt="F1 plus and F1 minus over[^"]*first on {label}[,.]', page)


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
    found, _ = read_runs(runs)
    assert [run.evaluations[0].label for run in found] == labels
    same = "fold" in other
    assert results_frame(found)["best"].any() == same
    assert len(galleries(found)) == (1 if same else 2)
    names = {e.name for run in found for e in run.evaluations}
    assert len(names) == (1 if same else 2)


def test_the_class_without_roi_that_the_model_names_is_the_same_as_the_one_asked_for(runs):
    evaluated(runs[0], f1_plus=70.0, asked_empty_class="benign")
    evaluated(runs[1], f1_plus=71.0)
    assert not results_frame(read_runs(runs)[0])["best"].any()
    evaluated(runs[1], f1_plus=71.0, empty_class="benign")
    frame = results_frame(read_runs(runs)[0])
    assert frame.loc[frame["best"] & (frame["metric"] == "f1_plus"), "run"].tolist() == ["second"]


def test_default_evaluations_with_and_without_such_a_class_are_told_apart(runs):
    evaluated(runs[0])
    evaluated(runs[1], empty_class="benign")
    found, _ = read_runs(runs)
    assert [run.evaluations[0].label for run in found] == ["test", "test, no ROI in benign"]


def test_an_evaluation_of_earlier_weights_is_a_row_of_its_own(runs):
    config = runs[0] / "model" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"weights_sha256": "new"}))
    evaluated(runs[0], f1_plus=70.0, weights="old")
    evaluated(runs[0], "test-2", 75.0, weights="new")
    found, _ = read_runs(runs[:1])
    rows, _ = table_rows(found)
    assert [(row.label, row.cells[1]["value"]) for row in rows] == [("test, earlier weights", 70.0), ("test", 75.0)]
    assert [row.cells[1]["best"] for row in rows] == [False, True]
    (gallery,) = galleries(found)
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
    found, _ = read_runs([*runs, third])
    assert [run.evaluations[0].label for run in found] == ["test, content unknown"] * 2 + ["test, content c0ffee01"]
    frame = results_frame(found)
    assert set(frame.loc[frame["best"], "run"]) == {"first", "second"}
    rows, notes = table_rows(found)
    old = "An older histoloc did not write down which images it evaluated: compared with no newer evaluation."
    assert [notes.index(old) + 1 in row.notes for row in rows] == [True, True, False]
    given = json.loads((runs[0] / "evaluation" / "test" / "metrics.json").read_text())
    given["threshold"] = {"rule": "given", "value": 0.3}
    (runs[0] / "evaluation" / "test" / "metrics.json").write_text(json.dumps(given))
    assert read_runs(runs)[0][0].evaluations[0].label == "test, cut at 0.30"


# --- what is shown beside the numbers ---

FLOORS = {
    "allones": {"f1_plus": 66.5, "f1_minus": 0.0, "f1_mean": 33.25, "pxap": 41.5},
    "stain": {"f1_plus": 50.25, "f1_minus": 62.0, "f1_mean": 56.125, "pxap": None},
}


def test_methods_that_learn_nothing_are_rows_and_are_named_where_they_are_better(runs):
    said = "Stain (per image), which learns nothing, has mean F1 56.12, above 50.00"
    means = {"f1_mean": metric(50.0), "pxap": metric(61.25)}
    evaluated(runs[0], floors=FLOORS, metrics=means, notes=["a note of the table", said])
    evaluated(runs[1], floors={})
    found, _ = read_runs(runs)
    rows, notes = table_rows(found)
    assert rows[0].floors == {"All-ones": FLOORS["allones"], "Stain (per image)": FLOORS["stain"]}
    assert rows[1].floors == {}
    assert "A note of the table." in notes
    assert not any("learns nothing" in note for note in notes), "it is a sentence of its own"
    page = render(found)
    assert f'<p class="warn">first, test: {said}.</p>' in page
    assert page.count("learns nothing: All-ones") == page.count("learns nothing: Stain (per image)") == 1
    cells = re.search(r"learns nothing: All-ones</th>(.*?)</tr>", page, re.DOTALL)
    assert cells
    assert re.findall(r'<td class="num">(.*?)</td>', cells[1]) == ["", "66.50", "0.00", "33.25", "41.50", "", ""]


def test_numbers_by_the_per_image_rule_have_columns(runs):
    rule = {
        "f1_plus": metric(81.5, 70.0, 90.0),
        "f1_minus": metric(44.25),
        "f1_mean": metric(62.875),
        "pxap": metric(1.0),
    }
    evaluated(runs[0], per_image_rule=rule)
    evaluated(runs[1])
    found, _ = read_runs(runs)
    assert "| F1⁺ per image (%) | F1⁻ per image (%) |" in to_markdown(results_frame(found))
    assert "| 81.50 (70.0 to 90.0) | 44.25 |" in to_markdown(results_frame(found))
    page = render(found)
    assert '<th scope="col" class="num long">F1⁺ per image</th>' in page
    assert "published numbers are made so" in page
    assert "compare with the columns per image" in page
    assert "per image" not in render(read_runs(runs[1:])[0])


def test_range_scale_and_class_of_the_maps_are_footnotes(runs):
    scale = {"shorter side to 216 px": 4, "1.5 µm/px in tiles": 2}
    evaluated(runs[0], asked_map_class="benign", range="learned", scale=scale)
    evaluated(runs[1], range="image and probability", scale={"as it is": 6})
    _, notes = table_rows(read_runs(runs)[0])
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
    assert "ours on test, cut at 0.30: not directly comparable" in table_rows(read_runs(runs)[0])[0][0].published


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
    body = page[page.index("<tbody>") : page.index("</tbody>")]
    rows = [row for row in body.split("<tr") if 'class="value"' in row]
    for row, (label, content) in zip(rows, made.items(), strict=True):
        assert f"<td>{label}</td>" in row
        shown = re.findall(r'<td class="num">(?:<b>)?([^<]*)', row)
        names = re.findall(r'<th scope="col" class="num[^>]*>([^<]*)', page)
        by_name = dict(zip(names, shown, strict=True))
        assert [by_name[METRICS[name]] for name in MAIN] == [
            percent(content["metrics"][name]["value"]) for name in MAIN
        ]
    assert body.count("learns nothing: All-ones") == 3
    assert "Maps: learned range" in page
    assert "How the network sees images: shorter side to 64 px." in page
    assert write_report([run], tmp_path / "again.html").read_text("utf-8") == page
