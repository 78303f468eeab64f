import itertools
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from histoloc.cli.main import main
from histoloc.data.groups import balance, divide, groups_by_pattern, torn_names
from histoloc.data.table import read_table
from histoloc.errors import InputError


def images(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32)).save(folder / name)
    return folder


def breakhis(folder: Path, patients: int = 10, each: int = 3) -> Path:
    """As the real set has them: benign patients with even, malignant ones with odd numbers."""
    kinds = (("benign", "B_A"), ("malignant", "M_DC"))
    return images(
        folder,
        *[
            f"{label}/SOB_{kind}-14-{1000 + 2 * p + k}AB-{zoom}-{i:03}.png"
            for k, (label, kind) in enumerate(kinds)
            for p in range(patients // 2)
            for zoom in (40, 400)
            for i in range(each)
        ],
    )


def data_folder(capsys, *arguments: object) -> tuple[str, str]:
    main(["data", "folder", *map(str, arguments)])
    output = capsys.readouterr()
    return output.out, output.err


def refusal(capsys, *arguments: object) -> str:
    with pytest.raises(SystemExit) as ended:
        main(["data", "folder", *map(str, arguments)])
    assert ended.value.code == 2
    return " ".join(capsys.readouterr().err.split())


def test_names_of_patients_bring_a_warning_whose_remedy_works(tmp_path, capsys):
    root, out = breakhis(tmp_path / "images"), tmp_path / "t.csv"
    _, err = data_folder(capsys, root, "--out", out)
    assert "warning: file names look like patients or slides, and 10 of 10 groups (14-1000AB: train" in err
    pattern = err.split("--group '")[1].split("'")[0]
    printed, err = data_folder(capsys, root, "--out", out, "--group", pattern)
    assert err == ""
    assert "60 samples of 2 classes, 0 with mask, 10 groups" in printed
    table = read_table(out)
    assert table.notes == ()
    assert table.counts().to_dict("index") == {
        "train": {"benign": 18, "malignant": 18},
        "valid": {"benign": 6, "malignant": 6},
        "test": {"benign": 6, "malignant": 6},
    }
    assert {s.group for s in table.samples} == {f"14-{1000 + p}AB" for p in range(10)}
    assert all(s.group and s.group in s.name for s in table.samples)


def test_the_group_is_the_first_group_of_the_match_or_all_of_it():
    paths = ["a/p1_x_2.png", "b/p12_x_3.png"]
    assert groups_by_pattern(paths, r"p\d+") == ["p1", "p12"]
    assert groups_by_pattern(paths, r"p(\d+)_(x)") == ["1", "12"]
    assert groups_by_pattern(paths, r"^\w/p\d") == ["a/p1", "b/p1"]
    assert groups_by_pattern(paths, r"p1(\d*)") == [None, "2"]  # an empty group is none
    assert groups_by_pattern(paths, r"p1(2)?") == [None, "2"]
    assert groups_by_pattern([*paths, "a/q.png"], r"p\d+")[-1] is None
    with pytest.raises(InputError, match=r"--group '\(p': is no regular expression \(missing \)"):
        groups_by_pattern(paths, "(p")


def test_groups_that_cannot_be_used_are_refused_before_anything_is_written(tmp_path, capsys):
    root, out = breakhis(tmp_path / "images"), tmp_path / "t.csv"
    images(root, "benign/other.png")
    message = refusal(capsys, root, "--out", out, "--group", r"14-\d+AB")
    assert (
        "images: benign/other.png: --group '14-\\d+AB' does not match it; rename it or widen the expression" in message
    )
    assert "31 problems:" in refusal(capsys, root, "--out", out, "--group", "SOB_B_.*")
    (root / "benign/other.png").unlink()
    message = refusal(capsys, root, "--out", out, "--group", "SOB_[BM]")
    assert "the class benign has too few groups (1) to be cut into train, test, valid; add images of other" in message
    images(root, *[f"malignant/SOB_M_DC-14-1001ab-40-{i}.png" for i in range(3)])
    message = refusal(capsys, root, "--out", out, "--group", r"14-\w+(?=-)")
    assert "groups '14-1001AB' (6 image(s)) and '14-1001ab' (3 image(s)) differ by case alone" in message
    assert not out.exists()


def test_folders_of_splits_are_kept_and_torn_groups_are_a_note(tmp_path, capsys):
    names = [f"{s}/{c}/p{p}_{i}.png" for s in ("train", "test") for c in "ab" for p in range(8) for i in range(2)]
    root = images(tmp_path / "images", *[n for n in names if n.startswith("train") or "p7" in n])
    _, err = data_folder(capsys, root, "--out", tmp_path / "t.csv", "--group", r"p\d")
    assert err.startswith("warning: 1 of 8 groups (p7: ")
    assert "100% of the samples of test" in err
    table = read_table(tmp_path / "t.csv")
    assert [len(table.split(s)) for s in ("train", "valid", "test")] == [24, 8, 4]
    in_train, in_valid = ({s.group for s in table.split(name)} for name in ("train", "valid"))
    assert not in_train & in_valid


def test_shares_of_zero_leave_everything_in_train():
    assert divide(["a", "b"], ["p", "q"], {"train": 1, "test": 0, "valid": 0.0}, seed=0) == ["train", "train"]


@pytest.mark.parametrize("seed", [0, 1])
def test_whole_groups_get_their_share_of_every_class(seed):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 40, (60, 3)) * (rng.random((60, 3)) < 0.5)
    cells = [(f"g{g}", f"c{c}") for g, c in itertools.product(range(60), range(3)) for _ in range(sizes[g, c])]
    groups, labels = zip(*cells, strict=True)
    shares = {"train": 0.6, "test": 0.3, "valid": 0.1}
    splits = dict(zip(groups, divide(labels, groups, shares, seed), strict=True))
    for c in range(3):
        for split, share in (("train", 0.6), ("valid", 0.1), ("test", 0.3)):
            mine = sum(sizes[g, c] for g in range(60) if splits.get(f"g{g}") == split)
            assert mine / sizes[:, c].sum() == pytest.approx(share, abs=0.02)
    shuffled = rng.permutation(len(cells))
    groups, labels = [groups[i] for i in shuffled], [labels[i] for i in shuffled]
    assert dict(zip(groups, divide(labels, groups, shares, seed), strict=True)) == splits


def test_one_large_patient_does_not_fill_a_split_alone():
    groups = ["big"] * 20 + [f"p{i}" for i in range(40) for _ in range(2)]
    splits = divide(["a"] * 100, groups, {"train": 0.8, "test": 0.2, "valid": 0}, seed=0)
    assert list(dict(zip(groups, splits, strict=True)).values()).count("test") > 4


def test_balance_of_many_groups_is_quick_and_good():
    counts = np.random.default_rng(0).integers(0, 9, (3000, 4))
    where = balance(counts, np.array([0.7, 0.2, 0.1]), np.ones(3), seed=0)
    shares = np.stack([counts[where == part].sum(axis=0) for part in range(3)]) / counts.sum(axis=0)
    np.testing.assert_allclose(shares, np.repeat([[0.7], [0.2], [0.1]], 4, axis=1), atol=0.002)


# --- names ---


def warned(make, patients: int = 6, each: int = 4) -> list[str]:
    """The warning for images of two classes whose names `make` makes, every second one in test."""
    paths = [
        f"{label}/{make(p + k * patients, i)}"
        for k, label in enumerate(("x", "y"))
        for p in range(patients)
        for i in range(each)
    ]
    labels = [path[0] for path in paths]
    splits = [("train", "test")[i % 2] for i in range(len(paths))]
    return torn_names(paths, labels, splits)


PATIENTS = {
    "TCGA-A{p:01X}-{p:04}-01Z-00-DX1_{i}_7.png": "TCGA-A0-0000",
    "SOB_B_TA-14-{p}9AB-40-{i:03}.png": "14-09AB",
    "patient{p}_roi{i}_4.png": "patient0",
    "patient_{p:03}_node_{i}_77.tif": "patient_000",
    "P{p:03}_{i}.png": "P000",
    "case-{p} ({i}).png": "case-0",
    "sub-{p:02}_{i}.png": "sub-00",
    "train_tumor_{p:03}_x{i}.png": "tumor_000",
    "slide{p}_x{i}00_y200.png": "slide0",
    "CMU-{p} [x={i},y=7,w=512,h=512].svs.png": "CMU-0",
    "s{p}_{i}024_2048.png": "s0",
    "S12-{p}456_A{i}_3.png": "S12-0456",
    "{p:04}{i}.png": None,
    "{p:04}_{i}.png": "0000",
    "slice {p}-{i}.jpeg": "slice 0",
}


@pytest.mark.parametrize("name", PATIENTS)
def test_names_that_look_like_patients_or_slides(name):
    result = warned(lambda p, i: name.format(p=p, i=i))
    if PATIENTS[name] is None:
        assert result == []
        return
    assert f"and 12 of 12 groups ({PATIENTS[name]}: train, test;" in result[0]


def test_letters_after_a_number_are_tiles():
    [result] = warned(lambda p, i: f"{p:03}{'abcd'[i]}.png")
    assert "12 of 12 groups (000: train, test;" in result


@pytest.mark.parametrize(
    "make",
    [
        lambda p, i: f"benign_{4 * p + i:05}.png",
        lambda p, i: f"benign ({4 * p + i}).png",
        lambda p, i: f"colonca{4 * p + i}.jpeg",
        lambda p, i: f"{4 * p + i}.png",
        lambda p, i: f"test_{4 * p + i:03}.png",
        lambda p, i: f"{('train', 'testA', 'testB')[i % 3]}_{4 * p + i}.png",
        lambda p, i: f"20x_{4 * p + i}.png",
        lambda p, i: f"{hash((p, i)) & 0xFFFFFFFF:08x}.png",
        lambda p, i: f"patient{4 * p + i}.png",
    ],
)
def test_names_that_only_number_images_bring_no_warning(make):
    assert warned(make) == []


def test_names_that_are_on_one_side_bring_no_warning():
    paths = [f"{c}/patient{p}_{i}.png" for c in "xy" for p in range(4) for i in range(3)]
    splits = [("train", "train", "valid", "test")[int(path[9])] for path in paths]
    assert torn_names(paths, [path[0] for path in paths], splits) == []


def test_names_that_do_not_fit_are_counted():
    [result] = warned(lambda p, i: f"patient{p}_{i}.png" if (p, i) != (0, 0) else "other.png")
    assert result.endswith(
        "--group '(?i)patient[-_ ]?\\d+' (where the folders are splits, move images); 1 names do not match it"
    )
