import json
import re
from pathlib import Path

import pandas as pd
import pytest
from fake_bench import flat, write_bench, write_cell, write_settings

from histoloc.benchmark.results import read_bench
from histoloc.benchmark.tables import benchmark_table, duration
from histoloc.report.tables import best, latex, to_html, to_latex, to_markdown

NAN = float("nan")


@pytest.fixture
def bench(tmp_path):
    return read_bench(write_bench(tmp_path / "bench"))


def test_mean_and_sample_deviation_by_hand(bench):
    mean, std = bench.spread(["f1_plus", "cl_error", "auc"])
    assert mean.loc["gap", "f1_plus"] == 66.0
    assert std.loc["gap", "f1_plus"] == pytest.approx((104 / 3) ** 0.5)  # deviations -6, -4, 4, 6
    assert mean.loc[["gap", "unet"], "cl_error"].tolist() == pytest.approx([10.0, NAN], nan_ok=True)
    assert mean["auc"].isna().all()


def entries(bench, row):
    table = benchmark_table(bench)
    (title,) = [r.title for r in bench.rows if r.name == row]
    (line,) = [line for line in table.rows if line.title == title]
    heads = [f"{group} {text}".strip().removeprefix("ours ") for group, text in table.headings]
    return {head: f"{cell.text} {cell.spread}".strip() for head, cell in zip(heads, line.cells, strict=True)}


def test_a_row_shows_ours_argmax_published_difference_and_time(bench):
    assert entries(bench, "gap") == {
        "n": "4",
        "Cl. error": "10.00 ± 0.00",
        "F1⁺": "66.00 ± 5.89",
        "F1⁻": "20.00 ± 0.00",
        "mean F1": "43.00 ± 2.94",
        "PxAP": "60.00 ± 0.00",
        "argmax rule F1⁺": "50.50 ± 0.58",
        "argmax rule F1⁻": "25.25 ± 0.29",
        "published (GlaS, test) Cl. error": "0.00",
        "published (GlaS, test) F1⁺": "66.90",
        "published (GlaS, test) F1⁻": "17.88",
        "Δ mean F1 to GAP": "reference",
        "training per cell": "1.8 min",
    }
    ours = entries(bench, "maxmin-sem")
    assert ours["n"] == "2"
    assert ours["argmax rule F1⁺"] == "–"
    assert ours["Δ mean F1 to GAP"] == "+27.25 [+27.25, +27.25]"
    assert entries(bench, "unet")["Cl. error"] == "–"


def test_one_cell_has_no_deviation(tmp_path):
    folder = write_settings(tmp_path / "bench", ["gap"], folds=[0], seeds=[0])
    write_cell(folder, "gap", 0, 0, flat(60.0), flat(20.0))
    assert entries(read_bench(folder), "gap")["F1⁺"] == "60.00"


def test_cells_say_what_their_models_learned_from(tmp_path):
    folder = write_settings(tmp_path / "bench", ["gap", "unet"], folds=[0], seeds=[0])
    for row, supervision in (("gap", ["image", "synthetic"]), ("unet", ["pixel"])):
        file = write_cell(folder, row, 0, 0, flat(60.0), flat(20.0)) / "evaluation" / "valid" / "metrics.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"supervision": supervision}))
    bench = read_bench(folder)
    assert entries(bench, "gap")["learned from"] == "labels + synthetic prior (no human masks)"
    assert entries(bench, "unet")["learned from"] == "masks"


def test_bold_is_the_best_but_never_a_bound(bench):
    table = benchmark_table(bench)
    bold = {
        line.title: [text for (_, text), cell in zip(table.headings, line.cells, strict=True) if cell.bold]
        for line in table.rows
    }
    assert bold == {
        "GAP": ["PxAP"],
        "Max-min (SEM)": ["Cl. error", "F1⁺", "F1⁻", "mean F1", "PxAP"],
        "U-Net": [],
    }


def test_ties_are_bold_together_at_the_decimals_shown_and_one_alone_is_not():
    names = ["a", "b", "bound"]
    plus = {"f1_plus": [70.001, 70.003, 99.0], "cl_error": [9.0, 70.003, 1.0], "pxap": [NAN, 70.0, 99.0]}
    result = best(pd.DataFrame(plus, names), ["all", "all", None], names)
    assert result.to_dict("list") == {
        "f1_plus": [True, True, False],
        "cl_error": [True, False, False],
        "pxap": [False, False, False],
    }


def test_footnotes_name_notes_masks_rules_and_missing_cells(tmp_path):
    folder = write_bench(tmp_path / "bench")
    run = folder / "cells" / "maxmin-sem" / "fold1-seed1"
    write_cell(
        folder,
        "maxmin-sem",
        1,
        1,
        flat(70.0),
        flat(60.0),
        selection="pxap-masks",
        uses_masks=("epoch chosen on 16 validation masks",),
    )
    (run / "run.yaml").write_text("backbone: {backbone: resnet50}\ntraining: {lr: 0.1}\n")
    table = benchmark_table(read_bench(folder))
    assert table.notes == [
        "Backbone: resnet50 with all its layers.",
        "Learning rate: 0.1.",
        "Selection rule: pxap-masks.",
        "Epoch chosen on 16 validation masks.",
        "3 of 4 cells are finished; missing: fold1-seed0 (failed).",
        "Learns from masks: the upper bound.",
    ]
    assert [table.marks(line) for line in table.rows] == ["", "1,2,3,4,5", "6"]


def test_numbers_of_footnotes_ascend(tmp_path):
    folder = write_settings(tmp_path / "bench", ["gap", "unet", "maxmin-sem"], folds=[None], seeds=[0])
    for row in ("gap", "unet", "maxmin-sem"):
        run = write_cell(folder, row, None, 0, flat(60.0), flat(20.0))
        path = run / "evaluation" / "valid" / "metrics.json"
        masks = ["threshold chosen on 4 validation masks"] if row != "maxmin-sem" else []
        path.write_text(json.dumps(json.loads(path.read_text()) | {"uses_masks": masks}))
    table = benchmark_table(read_bench(folder))
    assert table.notes == ["Threshold chosen on 4 validation masks.", "Learns from masks: the upper bound."]
    assert [table.marks(line) for line in table.rows] == ["1", "", "1,2"]
    assert "over n cells (1 seed);" in table.general[0]


def test_what_holds_for_all_rows_is_said_once(bench):
    text = " ".join(benchmark_table(bench).general)
    for part in (
        "on the validation split",
        "2 folds × 2 seeds",
        "preset fast, backbone efficientnet_lite0 cut at stride 8, learning rate 0.001",
        "selection rule error-loss, threshold rule fixed 0.5",
        "the published CAM rule",
        "measured on the test set. Not directly comparable; ours: measured on the validation split; "
        "preset fast (published: paper); backbone efficientnet_lite0 (published: a ResNet-18).",
        "difference to GAP, the best label-supervised baseline",
    ):
        assert part in text


def published_footnote(folder: Path, **settings) -> str:
    """What is said of the published numbers beside those of a ResNet-18 on the test split."""
    write_settings(folder, ["gap"], **{"split": "test", "preset": "camelyon16", "published": "camelyon16"} | settings)
    run = write_cell(folder, "gap", 0, 0, flat(60.0), flat(20.0), split="test")
    (run / "run.yaml").write_text("backbone: {backbone: resnet18}\n")
    return next(text for text in benchmark_table(read_bench(folder)).general if text.startswith("Published"))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"image_sides": [512, 512]},
        {"overrides": {"epochs": 20}},
        {"preset": "paper", "published": "glas", "image_sides": [430, 775]},
    ],
)
def test_numbers_that_were_made_as_the_published_ones_are_comparable(tmp_path, settings):
    assert published_footnote(tmp_path / "bench", **settings).endswith("measured on the test set.")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"preset": "fast"}, "preset fast (published: camelyon16)"),
        ({"overrides": {"epochs": 1}}, "epochs 1 (published: 20)"),
        ({"image_sides": [64, 64]}, "images of 64 px (published: 512 px)"),
        ({"image_sides": [400, 512]}, "images of 400 to 512 px (published: 512 px)"),
        ({"published": "glas"}, "preset camelyon16 (published: paper)"),
    ],
)
def test_what_sets_ours_apart_from_the_published_numbers_is_said(tmp_path, settings, said):
    assert published_footnote(tmp_path / "bench", **settings).endswith(f" Not directly comparable; ours: {said}.")


def test_other_epochs_than_the_presets_are_said(tmp_path):
    folder = write_settings(tmp_path / "bench", ["gap"], overrides={"epochs": 3}, data="p512/table.csv")
    write_cell(folder, "gap", 0, 0, flat(60.0), flat(20.0))
    table = benchmark_table(read_bench(folder))
    assert "preset fast, epochs 3 instead of the preset's, backbone" in " ".join(table.general)
    assert table.title == "Table 1 on p512/table.csv, validation split"


def test_other_data_has_no_published_columns_and_no_class_maps_no_argmax_column(tmp_path):
    folder = write_settings(tmp_path / "bench", ["gap"], data="glands.csv")
    write_cell(folder, "gap", 0, 0, flat(60.0), flat(20.0))
    assert {group for group, _ in benchmark_table(read_bench(folder)).headings} == {"", "ours"}


def by_both_rules(folder: Path, **settings) -> Path:
    """GAP by the learned range and per image, max-min per image only in the second seed, U-Net by no range."""
    write_settings(folder, ["gap", "maxmin-sem", "unet"], folds=[None], **settings)
    for seed in (0, 1):
        write_cell(
            folder, "gap", None, seed, flat(60.0), flat(20.0), argmax=50.0, per_image=40.0 + seed, maps="learned"
        )
        image = None if seed == 0 else 80.0
        write_cell(folder, "maxmin-sem", None, seed, flat(70.0), flat(30.0), per_image=image, maps="learned")
        write_cell(folder, "unet", None, seed, flat(90.0), flat(88.0), maps="probability")
    return folder


def test_numbers_per_image_stand_beside_ours_and_the_published_ones(tmp_path):
    bench = read_bench(by_both_rules(tmp_path / "bench"))
    values = {row: entries(bench, row) for row in ("gap", "maxmin-sem", "unet")}
    assert {name: values["gap"][f"per image {name}"] for name in ("F1⁺", "F1⁻", "PxAP")} == {
        "F1⁺": "40.50 ± 0.71",
        "F1⁻": "20.25 ± 0.35",
        "PxAP": "10.12 ± 0.18",
    }
    assert values["gap"]["F1⁺"] == "60.00 ± 0.00"
    assert values["maxmin-sem"]["per image F1⁺"] == "80.00"
    assert values["unet"]["per image F1⁺"] == "–"
    table = benchmark_table(bench)
    groups = list(dict.fromkeys(group for group, _ in table.headings))
    place = groups.index("per image")
    assert groups[place + 1] == "published (GlaS, test)"
    text = " ".join(table.general)
    assert "Ours, learned range: an affine map and a sigmoid, learned on training images without masks" in text
    assert "(e - min)/(max - min) of each image, or the method's own rule" in text
    assert "compare them with the columns per image, of CAM rows also those of the argmax rule." in text
    assert "range of maps learned" in text
    assert [note for note in table.notes if note.startswith("Range")] == ["Range of maps: probability."]
    assert "per image F1⁺ | per image F1⁻ | per image PxAP | published (GlaS, test) Cl. error" in to_markdown(table)
    assert '<th colspan="3">per image</th>' in to_html(table)
    assert "\\multicolumn{3}{c}{per image}" in to_latex(table)


def test_the_range_that_all_maps_are_made_by_is_named(tmp_path):
    folder = write_settings(tmp_path / "bench", ["gap"], range="image")
    write_cell(folder, "gap", 0, 0, flat(60.0), flat(20.0), maps="image")
    table = benchmark_table(read_bench(folder))
    assert "all maps by --range image" in " ".join(table.general)
    assert "Their maps are made by the per-image rule, as ours here." in " ".join(table.general)
    assert not any(group == "per image" for group, _ in table.headings)


def test_an_unfinished_bench_is_a_table_of_dashes(tmp_path):
    folder = write_settings(tmp_path / "bench", ["gap", "unet"])
    bench = read_bench(folder)
    values = entries(bench, "gap")
    assert (values["n"], values["F1⁺"], values["Δ mean F1"], values["training per cell"]) == ("0", "–", "–", "–")
    assert "0 of 4 cells are finished; missing: fold0-seed0" in benchmark_table(bench).notes[0]


def test_markdown_has_equal_columns_and_bold(bench):
    lines = [line for line in to_markdown(benchmark_table(bench)).splitlines() if line.startswith("|")]
    assert {line.count("|") for line in lines} == {15}
    assert lines[3].startswith(
        "| Max-min (SEM) <sup>1</sup> | 2 | **5.00** ± 0.00 | **71.50** ± 0.71 | **69.00** ± 0.00 |"
    )
    assert "1. 2 of 4 cells are finished; missing: fold1-seed0 (failed), fold1-seed1." in to_markdown(
        benchmark_table(bench)
    )


def test_html_groups_columns_and_bounds(bench):
    page = to_html(benchmark_table(bench))
    assert '<th colspan="5">ours</th>' in page
    assert "<b>71.50</b><small>± 0.71</small></td>" in page
    assert page.count('class="new"') == 2


def test_latex_is_balanced_and_escaped(bench):
    text = to_latex(benchmark_table(bench))
    plain = re.sub(r"\\[{}%&_$#\\]", "", text)
    assert plain.count("{") == plain.count("}")
    assert plain.count("$") % 2 == 0
    for name in ("table*", "tabular"):
        assert text.count(f"\\begin{{{name}}}") == text.count(f"\\end{{{name}}}") == 1
    body = [line for line in text.splitlines() if line.endswith("\\\\") and not line.startswith(" &")]
    assert len(body) == 4
    assert {len(re.findall(r"(?<!\\)&", line)) for line in body} == {13}
    assert "\\textbf{71.50} {\\scriptsize $\\pm$ 0.71}" in text
    assert text.isascii()


def test_latex_escapes():
    assert latex("a_b & 5 % of {x} \\ – F1⁺") == r"a\_b \& 5 \% of \{x\} \textbackslash{} -- F1$^{+}$"


@pytest.mark.parametrize(
    ("seconds", "text"), [(4.25, "4.2 s"), (59.6, "60 s"), (110.0, "1.8 min"), (7200.0, "2.0 h"), (NAN, "–")]
)
def test_duration(seconds, text):
    assert duration(seconds) == text
