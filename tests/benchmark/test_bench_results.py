import json
import math

import pandas as pd
import pytest
from fake_bench import flat, write_bench, write_cell, write_settings

from histoloc.benchmark.results import cell_name, dataset_of, is_bench, read_bench, results_frame
from histoloc.errors import InputError


@pytest.fixture
def folder(tmp_path):
    return write_bench(tmp_path / "bench")


def test_rows_come_in_the_tables_order_and_cells_by_fold_and_seed(folder):
    bench = read_bench(folder)
    assert [row.name for row in bench.rows] == ["gap", "maxmin-sem", "unet"]
    assert [(cell.row.name, cell.name) for cell in bench.cells][:6] == [
        ("gap", "fold0-seed0"),
        ("gap", "fold0-seed1"),
        ("gap", "fold1-seed0"),
        ("gap", "fold1-seed1"),
        ("maxmin-sem", "fold0-seed0"),
        ("maxmin-sem", "fold0-seed1"),
    ]
    assert len(bench.cells) == 10


def test_a_failed_cell_is_named_by_its_last_line(folder):
    (failure,) = read_bench(folder).failures
    assert (failure.row.name, failure.cell, failure.reason) == (
        "maxmin-sem",
        "fold1-seed0",
        "RuntimeError: out of memory",
    )


def test_a_cell_that_succeeded_later_is_no_failure(folder):
    run = folder / "cells" / "gap" / "fold0-seed0"
    (run / "error.txt").write_text("earlier")
    assert all(failure.row.name != "gap" for failure in read_bench(folder).failures)


def test_results_are_tidy(folder):
    results_frame(read_bench(folder)).to_csv(folder / "results.csv", index=False)
    frame = pd.read_csv(folder / "results.csv")
    assert len(frame) == 10
    first = frame.iloc[2]
    assert (first["row"], first["title"], first["group"], first["fold"], first["seed"]) == (
        "gap",
        "GAP",
        "baseline",
        1,
        0,
    )
    assert (first["f1_plus"], first["f1_plus_low"], first["f1_plus_high"]) == (70.0, 65.0, 75.0)
    assert (first["f1_mean"], first["argmax_f1_plus"], first["argmax_f1_minus"]) == (45.0, 50.0, 25.0)
    assert (first["recall_benign"], first["oracle_threshold"], first["threshold"]) == (75.0, 0.25, 0.5)
    assert math.isnan(first["recall_malignant"])
    assert math.isnan(frame.iloc[9]["cl_error"])
    assert (first["train_seconds"], first["epochs"], first["parameters"]) == (100.0, 40, 3_400_000)
    assert "oracle_threshold_low" not in frame
    assert "classes" not in frame
    assert frame["epochs"].dtype == int


def test_without_a_finished_cell_the_table_is_empty_but_has_its_columns(tmp_path):
    frame = results_frame(read_bench(write_settings(tmp_path / "bench", ["gap"])))
    assert frame.empty
    assert {"row", "fold", "train_seconds"} <= set(frame.columns)


def test_no_folds(tmp_path):
    folder = write_settings(tmp_path / "bench", ["gap"], folds=[None], seeds=[3])
    write_cell(folder, "gap", None, 3, flat(60.0), flat(20.0))
    bench = read_bench(folder)
    assert [cell.name for cell in bench.cells] == bench.wanted == ["nofold-seed3"] == [cell_name(None, 3)]
    assert results_frame(bench)["fold"].isna().all()


@pytest.mark.parametrize(
    ("table", "dataset"),
    [
        ("glas.csv", "glas"),
        ("GlaS-patient.csv", "glas"),
        ("my_camelyon16.csv", None),
        ("glass.csv", None),
        ("glands.csv", None),
    ],
)
def test_the_data_set_is_told_by_the_tables_name(table, dataset):
    assert dataset_of(table) == dataset


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("benchmark.json", "{", "cannot be read"),
        ("benchmark.json", json.dumps({"kind": "table9"}), "table9"),
        ("benchmark.json", json.dumps({"kind": "table1", "format": 2}), "format 2"),
        ("benchmark.json", json.dumps({"kind": "table1", "rows": ["gap"], "seeds": [0]}), "`folds`"),
        ("cells/gap/fold0-seed0/cell.json", "[]", "no mapping"),
        ("cells/gap/fold0-seed0/run.yaml", "a: [", "not valid YAML"),
        ("cells/gap/fold0-seed0/evaluation/valid/metrics.json", "{", "metrics.json"),
    ],
)
def test_a_broken_file_is_named(folder, file, content, says):
    (folder / file).write_text(content)
    with pytest.raises(InputError, match=says) as error:
        read_bench(folder)
    assert str(folder / file) in str(error.value)


def test_a_finished_cell_without_evaluation_is_named(folder):
    (folder / "cells/gap/fold0-seed0/evaluation/valid/metrics.json").unlink()
    with pytest.raises(InputError, match=r"fold0-seed0.*no metrics\.json"):
        read_bench(folder)


def test_what_is_no_benchmark_is_said(tmp_path):
    assert not is_bench(tmp_path)
    with pytest.raises(InputError, match=r"has no benchmark\.json"):
        read_bench(tmp_path)


def test_numbers_by_the_per_image_rule_have_columns(tmp_path):
    folder = write_settings(tmp_path / "bench", ["gap", "unet"], folds=[None], seeds=[0])
    write_cell(folder, "gap", None, 0, flat(60.0), flat(20.0), per_image=40.0, maps="learned")
    write_cell(folder, "unet", None, 0, flat(90.0), flat(88.0), maps="probability")
    frame = results_frame(read_bench(folder))
    gap, unet = frame.to_dict("records")
    columns = ["per_image_f1_plus", "per_image_f1_minus", "per_image_f1_mean", "per_image_pxap"]
    assert [gap[name] for name in columns] == [40.0, 20.0, 30.0, 10.0]
    assert [gap[name] for name in ("per_image_pxap_low", "per_image_pxap_high", "f1_plus")] == [5.0, 15.0, 60.0]
    assert all(math.isnan(unet[name]) for name in columns)
    assert [gap["range"], unet["range"]] == ["learned", "probability"]
