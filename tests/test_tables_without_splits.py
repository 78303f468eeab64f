"""`image,label` are enough; columns have the names that the user gives."""

import json
import shutil

import pandas as pd
import pytest

from histoloc.cli.main import main
from histoloc.data.table import DRAWN, read_table
from histoloc.errors import InputError


@pytest.fixture
def rows(tmp_path, tiny_table):
    """The 20 rows of a table with absolute paths."""
    rows = pd.read_csv(tiny_table, dtype=str, keep_default_na=False)
    for column in ("image", "mask"):
        rows[column] = [str(tiny_table.parent / cell) for cell in rows[column]]
    return rows


def evaluated(out) -> dict:
    return json.loads((out / "metrics.json").read_text())


def test_splits_are_drawn_from_names_and_groups_alone(tmp_path):
    path = tmp_path / "t.csv"

    def splits(rows: list[str], header: str = "image,label") -> dict[str, str | None]:
        path.write_text("\n".join([header, *rows]) + "\n")
        return {s.name: s.split for s in read_table(path, check_files=False).samples}

    rows = [f"{label}{i:02}.png,{label}" for label in "ab" for i in range(10)]
    first = splits(rows)
    for label in "ab":
        mine = [split for name, split in first.items() if name[0] == label]
        assert (mine.count("train"), mine.count("valid"), mine.count("test")) == (6, 2, 2)
    assert splits(rows[::-1]) == first
    assert read_table(path, check_files=False).notes == (DRAWN,)
    assert splits([f"{row}," for row in rows], "image,label,split") == first
    grouped = splits([f"{row},p{i // 2}" for i, row in enumerate(rows)], "image,label,group")
    assert all(grouped[f"{x}{i:02}.png"] == grouped[f"{x}{i + 1:02}.png"] for x in "ab" for i in range(0, 10, 2))
    # One row with a split, and the others have none.
    assert (
        list(
            splits([f"{row},{'train' if i % 10 else ''}" for i, row in enumerate(rows)], "image,label,split").values()
        ).count(None)
        == 2
    )
    assert set(splits(rows[:2]).values()) == {None}  # too few
    with pytest.raises(InputError, match=r"no row is of split 'train'; there are no split \(2\); mark rows of it"):
        read_table(path, check_files=False).split("train")


def test_tiles_of_a_slide_stay_together(tmp_path):
    (tmp_path / "t.csv").write_text(
        "image,label,x,y,width,height\n"
        + "".join(f"{s}.svs,{'ab'[s % 2]},{i},0,9,9\n" for s in range(20) for i in range(5))
    )
    table = read_table(tmp_path / "t.csv", check_files=False)
    assert len({(s.image, s.split) for s in table.samples}) == 20
    assert {s.split for s in table.samples} == {"train", "valid", "test"}


def test_image_and_label_train_and_are_measured(rows, tiny_flags, tmp_path, capsys):
    table, run = tmp_path / "t.csv", tmp_path / "run"
    rows[["image", "label"]].set_axis(["Path", "Diagnosis"], axis=1).to_csv(table, index=False, sep=";")
    columns = "image=path,label=diagnosis"
    main(["train", "allones", *tiny_flags(data=table, out=run, columns=columns)])
    assert f"note: {DRAWN}" in capsys.readouterr().err
    main(["evaluate", str(run), "--data", str(table), "--columns", columns, "--device", "cpu"])
    own = evaluated(run / "evaluation" / "test")
    assert (own["n_images"], own["split"]) == (4, "test")  # never those that the model learned from
    main(["train", "allones", "--recipe", str(run / "run.yaml"), "--out", str(tmp_path / "again")])  # with its columns
    # Images of elsewhere are measured all.
    other = rows.copy()
    for number, image in enumerate(rows["image"]):
        content = bytearray((tmp_path / image).read_bytes()) + b"x"
        (tmp_path / f"{number}.png").write_bytes(content)
        other.loc[number, "image"] = f"{number}.png"
    other[["image", "label", "mask"]].to_csv(tmp_path / "other.csv", index=False)
    main(["evaluate", str(run), "--data", str(tmp_path / "other.csv"), "--device", "cpu"])
    metrics = evaluated(run / "evaluation" / "all")
    assert (metrics["n_images"], metrics["split"]) == (20, "all")
    assert DRAWN not in metrics["notes"]
    # Some of them are training images: nobody can say which rows are meant.
    rows[["image", "label"]].iloc[:9].to_csv(tmp_path / "mixed.csv", index=False)
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", str(run), "--data", str(tmp_path / "mixed.csv"), "--device", "cpu"])
    assert ended.value.code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "names no splits, and the model learned from" in error
    assert "mark rows of split test in a column split" in error


def test_a_column_that_is_not_there_is_said_with_the_remedy(rows, tmp_path, capsys, tiny_flags):
    rows.rename(columns={"image": "path", "label": "labels"}).to_csv(tmp_path / "t.csv", index=False)
    for command in (
        ["evaluate", str(tmp_path), "--data", str(tmp_path / "t.csv")],
        ["train", "gap", *tiny_flags(data=tmp_path / "t.csv", out=tmp_path / "run")],
        ["benchmark", "table1", "--data", str(tmp_path / "t.csv"), "--out", str(tmp_path / "bench")],
    ):
        with pytest.raises(SystemExit) as ended:
            main(command)
        assert ended.value.code == 2
        assert (
            "missing columns: image, label; the header has path, labels, mask, split, group, mpp, drawn_scene; rename "
            "columns, or say which they are by --columns image=NAME,label=labels"
        ) in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_model_of_six_classes_measures_a_table_of_two(rows, tiny_flags, tmp_path):
    six = rows.copy()
    six["label"] = [f"class {i % 6}" for i in range(len(rows))]
    six["split"] = ["train"] * 12 + ["valid"] * 6 + ["test"] * 2
    six.to_csv(tmp_path / "six.csv", index=False)
    main(["train", "gap", *tiny_flags(data=tmp_path / "six.csv", out=tmp_path / "run", epochs=1)])
    two = six[six["label"].isin(["class 1", "class 4"])].assign(split="test")
    two.to_csv(tmp_path / "two.csv", index=False)
    main(["evaluate", str(tmp_path / "run"), "--data", str(tmp_path / "two.csv"), "--device", "cpu"])
    metrics = evaluated(tmp_path / "run" / "evaluation" / "test")
    assert metrics["n_images"] == 7
    assert metrics["metrics"]["classes"] == [f"class {i}" for i in range(6)]
    confusion = metrics["metrics"]["confusion"]
    assert [sum(row) for row in confusion] == [0, 4, 0, 0, 3, 0]
    assert metrics["metrics"]["cl_error"]["value"] == pytest.approx(100 * (7 - confusion[1][1] - confusion[4][4]) / 7)
    main(["report", str(tmp_path / "run"), "--out", str(tmp_path / "page.html")])
    shutil.rmtree(tmp_path / "run" / "evaluation")
