from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from histoloc.data.groups import balance
from histoloc.data.table import read_table
from histoloc.datasets.glas import FOLDS, glas_table
from histoloc.errors import InputError

ALL = [f"{part}_{i}" for part, n in (("train", 85), ("testA", 60), ("testB", 20)) for i in range(1, n + 1)]
TRAIN = ALL[:85]


def grade(name: str) -> str:
    """Ten patients; the class changes with the patient, and one patient has both."""
    number = sum(map(ord, name)) % 10
    label = "benign" if number % 2 or (number == 0 and "3" in name) else "malignant"
    return f"{name},{number}, {label}, moderately differentiated"


def fabricate(folder: Path, names: list[str], extension: str = "bmp") -> Path:
    folder.mkdir(parents=True)
    Image.new("RGB", (40, 36)).save(folder / f"any.{extension}")
    Image.new("L", (40, 36)).save(folder / f"any_anno.{extension}")
    image, mask = (folder / f"any.{extension}").read_bytes(), (folder / f"any_anno.{extension}").read_bytes()
    for name in names:
        (folder / f"{name}.{extension}").write_bytes(image)
        (folder / f"{name}_anno.{extension}").write_bytes(mask)
    lines = ["name,patient ID, grade (GlaS), grade (Sirinukunwattana et al. 2015)", *map(grade, names)]
    (folder / "Grade.csv").write_text("\n".join(lines) + "\n")
    return folder


def listed(root: Path, **options) -> tuple[pd.DataFrame, list[str], Path]:
    """The rows of the table, the warnings, and the table."""
    out = root.parent / "glas.csv" if "out" not in options else options.pop("out")
    result = glas_table(root, out=out, **options)
    rows = pd.read_csv(result.table, keep_default_na=False, dtype={"patient": str, "group": str, "fold": str})
    return rows, list(result.warnings), result.table


def patients(table: pd.DataFrame, column: str) -> list[set[str]]:
    return [set(part["patient"]) for _, part in table.groupby(column)]


def test_published_folds_cut_the_training_images():
    assert sorted(number for fold in FOLDS for number in fold) == list(range(1, 86))
    assert [len(fold) for fold in FOLDS] == [18, 18, 18, 18, 13]
    assert FOLDS[4] == (10, 13, 15, 23, 29, 35, 39, 45, 49, 66, 67, 84, 85)


@pytest.mark.parametrize("extension", ["bmp", "png"])
def test_the_whole_official_set(tmp_path, extension):
    folder = fabricate(tmp_path / "Warwick QU Dataset (Released 2016_07_08)", ALL, extension)
    table, warnings, path = listed(tmp_path, out=tmp_path / "glas.csv")
    assert [Path(p).stem for p in table["image"]] == ALL
    assert table["split"].value_counts().to_dict() == {"train": 85, "test": 80}
    assert (table.loc[table["split"] == "test", "fold"] == "").all()
    assert (table["group"] == table["patient"]).all()
    assert (table["mpp"] == 0.62).all()
    assert set(table["label"]) == {"benign", "malignant"}
    assert warnings == []
    assert any("10 of 10 groups" in n and "are in more than one fold" in n for n in read_table(path).notes)
    read = read_table(path, fold=0)
    assert read.folds == (0, 1, 2, 3, 4)
    assert [s.image.stem for s in read.split("valid")] == [f"train_{n}" for n in FOLDS[0]]
    assert read.has_masks(read.samples)
    assert "10 of 10 groups" in read.notes[0]
    assert read.samples[0].image.parent == folder.resolve()


def test_a_split_that_is_absent_is_a_warning(tmp_path):
    folder = fabricate(tmp_path / "glas", ALL[:145])
    _, warnings, _ = listed(folder)
    assert warnings[0] == "145 of 165 images: testB (20) is absent"


def test_a_part_of_a_split_that_is_absent_is_an_error(tmp_path):
    folder = fabricate(tmp_path / "glas", TRAIN)
    for number in range(1, 8):
        (folder / f"train_{number}.bmp").unlink()
    (folder / "train_80_anno.bmp").unlink()
    grades = (folder / "Grade.csv").read_text().splitlines()
    (folder / "Grade.csv").write_text("\n".join(grades[:-2]))
    with pytest.raises(InputError) as caught:
        listed(folder)
    message = str(caught.value)
    assert "7 image(s) of train missing (train_1, train_2, train_3, train_4, train_5, ...)" in message
    assert "1 annotation(s) of train missing (train_80)" in message
    assert "2 row(s) of train in Grade.csv missing (train_84, train_85)" in message


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["train_1,2, healthy, x"], "line 2 is not"),
        (["train_1, , benign"], "line 2 is not"),
        (["train_1,2,benign", "train_1,2,benign"], "line 3 names an image again"),
    ],
)
def test_a_foreign_grade_table_is_refused(tmp_path, rows, message):
    folder = fabricate(tmp_path / "glas", TRAIN)
    (folder / "Grade.csv").write_text("\n".join(["name,patient,grade", *rows]))
    with pytest.raises(InputError, match=message):
        listed(folder)
    (folder / "Grade.csv").unlink()
    with pytest.raises(InputError, match="is absent"):
        listed(folder)


def test_folders_that_are_not_glas_are_refused(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        listed(tmp_path / "none")
    with pytest.raises(InputError, match="holds no GlaS images"):
        listed(tmp_path)
    fabricate(tmp_path / "one", TRAIN)
    fabricate(tmp_path / "two", TRAIN)
    with pytest.raises(InputError, match="2 folders in it look like GlaS"):
        listed(tmp_path)
    with pytest.raises(InputError, match="official split has 5"):
        listed(tmp_path / "one", folds=4)
    with pytest.raises(InputError, match="official or patient"):
        listed(tmp_path / "one", split="image")  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match="ask for fewer folds"):
        listed(tmp_path / "one", split="patient", folds=9)


def test_patients_stay_together(tmp_path):
    folder = fabricate(tmp_path / "glas", ALL)
    table, _, _ = listed(folder, split="patient", folds=3)
    assert sum(map(len, patients(table, "split"))) == 10
    assert sum(map(len, patients(table, "fold"))) == 10
    assert (table["group"] == table["patient"]).all()
    again, _, _ = listed(folder, split="patient", folds=3)
    pd.testing.assert_frame_equal(table, again)


def test_balance_finds_the_only_perfect_assignment():
    # Set 0 is to get half of both classes: only the groups (5, 1) and (1, 5) together give 6 + 6 of 12 + 12.
    counts = np.array([[5, 1], [1, 5], [4, 2], [2, 4]])
    where = balance(counts, np.array([0.5, 0.5]), np.ones(2), seed=0)
    assert where[0] == where[1] != where[2] == where[3]


def test_balance_reaches_the_best_of_all_assignments():
    rng = np.random.default_rng(3)
    for seed in range(5):
        counts = rng.integers(0, 9, (8, 2)) + np.array([1, 0])
        counts[0, 1] += 1
        shares, weights = np.array([0.3, 0.4, 0.3]), np.array([3.0, 1.0, 1.0])
        every = np.stack(np.meshgrid(*[np.arange(3)] * 8, indexing="ij"), axis=-1).reshape(-1, 8)

        def cost(where: np.ndarray, counts=counts, shares=shares, weights=weights) -> np.ndarray:
            sizes = np.stack([(where == s).astype(int) @ counts for s in range(3)], axis=1)
            misfit = (sizes / counts.sum(axis=0) - shares[:, None]) ** 2
            return (weights[:, None] * misfit + 100 * (sizes == 0)).sum(axis=(1, 2))

        result = cost(balance(counts, shares, weights, seed)[None])[0]
        assert result == pytest.approx(cost(every).min(), abs=1e-9)


@pytest.fixture(scope="module")
def real(shared_data) -> Path:
    if not (shared_data / "glas").is_dir():
        pytest.skip(f"no GlaS under {shared_data}")
    return shared_data / "glas"


def test_real_images_have_the_published_folds(real, tmp_path):
    table, warnings, path = listed(real, out=tmp_path / "glas.csv")
    assert len(table) == 85
    assert warnings[0] == "85 of 165 images: testA (60) and testB (20) are absent"
    assert any(note.startswith("11 of 15 groups") for note in read_table(path).notes)
    assert table["label"].value_counts().to_dict() == {"malignant": 48, "benign": 37}
    for fold, numbers in enumerate(FOLDS):
        read = read_table(path, fold=fold)
        assert {s.image.stem for s in read.split("valid")} == {f"train_{number}" for number in numbers}
        expected = [[29, 38], [8, 10]] if fold < 4 else [[32, 40], [5, 8]]
        assert read.classes == ("benign", "malignant")
        assert read.counts().loc[["train", "valid"]].to_numpy().tolist() == expected


def test_real_images_by_patient(real, tmp_path):
    table, warnings, path = listed(real, out=tmp_path / "glas.csv", split="patient")
    assert len(table) == 85
    assert sum(map(len, patients(table, "split"))) == sum(map(len, patients(table, "fold"))) == 15
    share = (table["split"] == "test").mean()
    assert 0.25 <= share <= 0.35
    assert f"which is {share:.0%} of the images" in warnings[1]
    assert table.groupby(["fold", "label"]).size().unstack().notna().all(axis=None)
    for fold in range(5):  # groups are checked here
        assert (read_table(path, fold=fold).counts() > 0).all(axis=None)
