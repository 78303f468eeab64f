"""The table of tiers: means over seeds, standard deviations and folds apart by hand."""

import json
from pathlib import Path

import pytest
from fake_bench import flat, write_cell, write_settings

from histoloc.benchmark.compare import best_baseline
from histoloc.benchmark.report import write_benchmark_report
from histoloc.benchmark.results import Bench, read_bench
from histoloc.benchmark.tiers import over_seeds, tier_of, tiers_table, within_folds
from histoloc.report.tables import to_html, to_latex, to_markdown

# F1⁺ of GAP by fold and seed; F1⁻ is 50 everywhere, so that mean F1 is half of it and 25.
PLUS = {(0, 0): 40.0, (0, 1): 60.0, (3, 0): 70.0, (3, 1): 50.0}
SUPERVISION = {"stain": [], "gap": ["image"], "prior": ["synthetic"], "student-prior": ["image", "synthetic"]}
SUPERVISION["unet"] = ["pixel"]


@pytest.fixture
def bench(tmp_path) -> Bench:
    """Folds 0 and 3, seeds 0 and 1; in fold 0 GAP is measured on four images, in fold 3 on two."""
    folder = write_settings(tmp_path / "bench", list(SUPERVISION), kind="maps", folds=[0, 3])
    for fold, seed in PLUS:
        put(folder, "stain", fold, seed, flat(52.0))
        images = flat(PLUS[fold, seed]) if fold == 0 else dict.fromkeys("ef", PLUS[fold, seed])
        put(folder, "gap", fold, seed, images)
        put(folder, "prior", fold, seed, flat(80.0 + fold))
        put(folder, "unet", fold, seed, flat(82.0))
    return read_bench(folder)


def put(folder: Path, row: str, fold: int, seed: int, plus: dict[str, float]) -> None:
    run = write_cell(folder, row, fold, seed, plus, dict.fromkeys(plus, 50.0), cl_error=None)
    file = run / "evaluation" / "valid" / "metrics.json"
    record = json.loads(file.read_text()) | {"supervision": SUPERVISION[row]}
    for name in ("f1_plus", "f1_minus", "f1_mean", "pxap"):
        record["metrics"][name]["n"] = len(plus)
    file.write_text(json.dumps(record))


def test_images_of_folds_are_pooled_within_a_seed(bench):
    """Seed 0: (4 * 40 + 2 * 70) / 6 = 50; seed 1: (4 * 60 + 2 * 50) / 6 = 56.67; their deviation 6.67 / sqrt(2)."""
    mean, std = over_seeds(bench, ["f1_plus", "f1_mean", "cl_error"])
    assert mean.loc["gap", "f1_plus"] == pytest.approx((50 + 340 / 6) / 2)
    assert std.loc["gap", "f1_plus"] == pytest.approx((340 / 6 - 50) / 2**0.5)
    assert mean.loc["gap", "f1_mean"] == pytest.approx((50 + 340 / 6) / 4 + 25)
    assert mean["cl_error"].isna().all()
    assert mean.isna().to_dict("index")["student-prior"] == dict.fromkeys(mean, True)
    assert over_seeds(bench, ["f1_plus"], [3])[0].loc["gap", "f1_plus"] == 60.0


def test_the_deviation_within_folds_does_not_cancel(bench):
    """Mean F1: 45 and 55 in fold 0, 60 and 50 in fold 3: the variance over seeds is 50 in both."""
    assert within_folds(bench, "f1_mean")["gap"] == pytest.approx(50**0.5)
    assert within_folds(bench, "f1_mean")["prior"] == 0


def test_tiers_are_apart_in_every_format(bench):
    table = tiers_table(bench)
    tiers = ["Learns nothing", "Labels only", "+ synthetic prior (no human masks)", "+ masks"]
    assert [line.title for line in table.rows if line.heading] == tiers
    assert [line.title for line in table.rows][:4] == ["Learns nothing", "Stain", "Labels only", "GAP"]
    lines = [line for line in to_markdown(table).splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines}) == 1
    assert [line.split("|")[1].strip() for line in lines if line.startswith("| **")] == [
        f"**{tier}**" for tier in tiers
    ]
    assert to_html(table).count('class="tier new"') == 3
    assert to_latex(table).count("\\textit{") == 4
    assert to_latex(table).count("\\midrule") == 4


def test_a_row_shows_the_folds_apart_the_difference_to_unet_and_cells_below_stain(bench):
    table = tiers_table(bench)
    (line,) = [line for line in table.rows if line.title == "GAP"]
    heads = [f"{group} {text}".strip() for group, text in table.headings]
    values = {head: f"{cell.text} {cell.spread}".strip() for head, cell in zip(heads, line.cells, strict=True)}
    assert values["learned from"] == "labels only"
    assert values["n"] == "4"
    assert values["ours mean F1"] == "51.67 ± 2.36"
    assert values["SD of mean F1 within folds"] == "7.07"
    assert values["folds 0 (looked at) mean F1"] == "50.00"
    assert values["folds 3 (not looked at) mean F1"] == "55.00"
    assert values["Δ mean F1 to U-Net"] == "−16.00 [−16.00, −16.00]"  # on the four images that both have
    assert table.marks(line)
    assert "2 of 4 cells have a mean F1 below that of Stain." in table.notes
    baseline = best_baseline(bench)
    assert baseline is not None
    assert baseline.name == "unet"


def test_folds_are_apart_only_where_somebody_looked_at_some(bench):
    for text, count in (("none", 0), ("0-3", 0), ("3", 2), (None, 2)):
        bench.settings["looked_at"] = text
        assert len({group for group, _ in tiers_table(bench).headings if group.startswith("folds")}) == count
    bench.settings.update({"looked_at": None, "data": "mine.csv"})
    assert not [group for group, _ in tiers_table(bench).headings if group.startswith("folds")]


def test_masks_make_another_tier_whatever_the_row_says(bench):
    (row,) = [row for row in bench.rows if row.name == "prior"]
    assert tier_of(bench, row) == "prior"
    bench.of(row)[0].result.supervision = ["image", "pixel"]
    assert tier_of(bench, row) == "masks"
    (row,) = [row for row in bench.rows if row.name == "student-prior"]
    assert tier_of(bench, row) == "prior"


def test_the_page_names_the_best_of_each_tier(bench):
    page = write_benchmark_report(bench.folder).read_text()
    best = "labels only: GAP, 51.67 % (−16.00 to U-Net); + synthetic prior (no human masks): Prior, 65.75 %"
    assert best in page
    assert "of the paper" not in page
