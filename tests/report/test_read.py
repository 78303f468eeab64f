import json

import pytest

from histoloc.errors import InputError
from histoloc.results import read_runs


def test_a_run_is_read_with_its_evaluation_and_selected_epoch(runs):
    (run, _), skipped = read_runs(runs)
    assert (run.name, run.method, run.selected_epoch, skipped) == ("first", "maxmin", 1, [])
    (evaluation,) = run.evaluations
    assert evaluation.key == ("glands.csv", None, "test", None, None, None, None)
    assert evaluation.images["f1_plus"].isna().tolist() == [False, False, True, False, False, False]
    assert sorted(name for name in evaluation.result.record() if name.startswith("oracle")) == [
        "oracle_f1_mean",
        "oracle_f1_plus",
        "oracle_threshold",
    ]


def test_without_a_model_folder_the_log_tells_the_selected_epoch(runs):
    (runs[0] / "model" / "config.json").unlink()
    assert read_runs(runs[:1])[0][0].selected_epoch == 1


def test_an_evaluation_folder_alone_is_a_run(runs):
    (run,), _ = read_runs([runs[0] / "evaluation" / "test"])
    assert (run.name, run.log, len(run.evaluations[0].images)) == ("test", None, 6)


def test_equal_folder_names_are_told_apart(runs):
    paths = [run / "evaluation" / "test" for run in runs]
    assert len({run.name for run in read_runs([*paths, paths[0]])[0]}) == 3


def test_a_class_named_na_is_no_missing_value(runs):
    path = runs[0] / "evaluation" / "test" / "per_image.csv"
    path.write_text(path.read_text().replace("malignant", "NA"))
    assert read_runs(runs[:1])[0][0].evaluations[0].images["label"].iloc[5] == "NA"


def test_what_is_no_run_is_skipped_with_a_sentence(runs, tmp_path):
    result, skipped = read_runs([*runs, tmp_path / "data"])
    assert len(result) == 2
    assert str(tmp_path / "data") in skipped[0]


@pytest.mark.parametrize("name", ["data", "absent"])
def test_no_run_at_all_is_an_error(runs, tmp_path, name):
    with pytest.raises(InputError, match=r"run"):
        read_runs([tmp_path / name])


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("evaluation/test/metrics.json", '{"n_images": 6,', "metrics.json"),
        ("evaluation/test/metrics.json", "[]", "metrics.json"),
        ("evaluation/test/metrics.json", '{"n_images": 6}', "`metrics`"),
        ("evaluation/test/per_image.csv", "", "per_image.csv"),
        ("evaluation/test/per_image.csv", "label\nbenign\n", "column `name`"),
        ("evaluation/test/per_image.csv", "name,f1_plus\na,high\n", "`f1_plus`"),
        ("evaluation/test/per_image.csv", "name\na\na\n", "`a` is listed twice"),
        ("log.csv", "seconds\n1\n", "log.csv"),
        ("log.csv", "epoch,train/a\n0,x\n", "`train/a`"),
        ("run.yaml", "a: [", "run.yaml"),
        ("run.yaml", "just text", "run.yaml"),
        ("model/config.json", "{", "config.json"),
    ],
)
def test_a_broken_file_is_named(runs, file, content, says):
    (runs[0] / file).write_text(content)
    with pytest.raises(InputError, match=says) as error:
        read_runs(runs)
    assert str(runs[0] / file) in str(error.value)


def test_a_metric_that_is_no_percentage_is_refused(runs):
    path = runs[0] / "evaluation" / "test" / "metrics.json"
    value = json.loads(path.read_text())
    value["metrics"]["f1_plus"]["value"] = 7000.0
    path.write_text(json.dumps(value))
    with pytest.raises(InputError, match=r"`numbers\.f1_plus\.value`"):
        read_runs(runs)
