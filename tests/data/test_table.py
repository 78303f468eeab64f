from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from histoloc.data.table import read_table, write_table
from histoloc.errors import InputError

HEADER = "image,label,mask,split,group"


def picture(path: Path, width: int = 40, height: int = 36, mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (width, height)).save(path)
    return path


def write(folder: Path, *lines: str, header: str = HEADER) -> Path:
    path = folder / "table.csv"
    path.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    return path


def refusal(path: Path, **options) -> str:
    with pytest.raises(InputError) as caught:
        read_table(path, **options)
    assert str(caught.value).startswith(f"{path}: ")
    return str(caught.value)


def bare(folder: Path, *lines: str, header: str = HEADER, **options) -> str:
    return refusal(write(folder, *lines, header=header), check_files=False, **options)


def test_rows_become_samples(tmp_path):
    picture(tmp_path / "images" / "a.png")
    picture(tmp_path / "images" / "b.png")
    picture(tmp_path / "masks" / "a.png", mode="L")
    path = write(
        tmp_path,
        " images/a.png , tumour ,masks/a.png,test, p1,0.5,Ann",
        "",
        "images/b.png,NA,,,,,",
        header=HEADER + ",mpp,remark",
    )
    table = read_table(path)
    assert table.classes == ("NA", "tumour")
    a, b = table.samples
    assert (a.name, a.label, a.split, a.group, a.mpp) == ("images/a.png", "tumour", "test", "p1", 0.5)
    assert a.image == (tmp_path / "images" / "a.png").resolve()
    assert a.mask == (tmp_path / "masks" / "a.png").resolve()
    assert (b.label, b.split, b.mask, b.group, b.mpp, b.x) == ("NA", None, None, None, None, None)
    assert [table.label_index(s) for s in table.samples] == [1, 0]
    assert table.has_masks([a])
    assert not table.has_masks([a, b])
    assert not table.has_masks([])


def test_regions_of_a_slide_are_samples_of_their_own(tmp_path):
    header = HEADER + ",x,y,width,height"
    path = write(tmp_path, "s.svs,a,,train,,0,10,512,256", "s.svs,a,,train,,512,10,512,256", header=header)
    table = read_table(path, check_files=False)
    assert [s.name for s in table.samples] == ["s.svs@0_10_512_256", "s.svs@512_10_512_256"]
    first = table.samples[0]
    assert (first.x, first.y, first.width, first.height) == (0, 10, 512, 256)
    assert "listed twice" in bare(tmp_path, *["s.svs,a,,train,,0,10,512,256"] * 2, header=header)
    assert "come together" in bare(tmp_path, "s.svs,a,,train,,0,10,512,", header=header)
    assert "whole numbers" in bare(tmp_path, "s.svs,a,,train,,-1,10,512,9", header=header)
    assert "at least 1" in bare(tmp_path, "s.svs,a,,train,,0,10,0,9", header=header)
    assert "no such file" in refusal(write(tmp_path, "s.svs,a,,train,,0,10,5,9", header=header))


def test_splits_and_counts(tmp_path):
    path = write(tmp_path, "1,a,,train,", "2,b,,train,", "3,b,,train,", "4,b,,test,", "5,a,,,")
    table = read_table(path, check_files=False)
    assert [s.name for s in table.split("train")] == ["1", "2", "3"]
    expected = pd.DataFrame({"a": [1, 0, 1], "b": [2, 1, 0]}, index=["train", "test", "none"])
    pd.testing.assert_frame_equal(table.counts(), expected, check_names=False)
    with pytest.raises(InputError, match=r"train \(3\), test \(1\), no split \(1\); mark rows"):
        table.split("valid")
    with pytest.raises(InputError, match="did you mean 'test'"):
        table.split("tets")


FOLDED = ["1,a,,train,,0", "2,b,,train,,0", "3,a,,train,,1", "4,b,,train,,1", "5,a,,test,,"]


def test_a_fold_becomes_the_validation_set(tmp_path):
    path = write(tmp_path, *FOLDED, header=HEADER + ",fold")
    table = read_table(path, fold=1, check_files=False)
    assert table.folds == (0, 1)
    assert [s.name for s in table.split("valid")] == ["3", "4"]
    assert [s.name for s in table.split("train")] == ["1", "2"]
    assert [s.name for s in table.split("test")] == ["5"]
    unfolded = read_table(path, check_files=False)
    assert len(unfolded.split("train")) == 4
    with pytest.raises(InputError, match=r"choose a fold \(0, 1\)"):
        unfolded.split("valid")


def test_folds_that_make_no_sense_are_refused(tmp_path):
    header = HEADER + ",fold"
    assert "no fold 2; the folds are 0, 1" in bare(tmp_path, *FOLDED, header=header, fold=2)
    assert "no fold in the table" in bare(tmp_path, "1,a,,train,", fold=0)
    assert "besides the folds" in bare(tmp_path, *FOLDED, "6,a,,valid,,", header=header, fold=0)
    assert "only rows of split train" in bare(tmp_path, "1,a,,test,,0", header=header)
    assert "no whole number" in bare(tmp_path, "1,a,,train,,one", header=header)
    only_a_left = ["1,a,,train,,0", "2,b,,train,,1"]
    assert "class 'b' has no samples" in bare(tmp_path, *only_a_left, header=header, fold=1)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "the table is empty"),
        ([",,,,"], "the table is empty"),
        (["1,,,train,"], "line 2 (1): the cell label is empty"),
        ([",a,,train,"], "line 2 (no image): the cell image is empty"),
        (["1,a,,val,"], "unknown split 'val'; did you mean 'valid'?"),
        (["1,a,,Train,"], "unknown split 'Train'; did you mean 'train'?"),
        (["1,a,,zzz,"], "unknown split 'zzz'; write one of train, valid, test"),
        (["1,a,,train,", "1,a,,train,"], "1: is listed twice"),
        (["1,a,,train,", "x/../1,a,,test,"], "x/../1, which is the same file as 1: is listed twice"),
        (["1,a,,train,p", "2,a,,test,p"], "group 'p' is on both sides of a split (train and test)"),
        (["1,a,,train,", "2,b,,test,"], "class 'b' has no samples in the split train"),
        (["1,a,,train,,,,"], "is no readable CSV"),
    ],
)
def test_each_problem_is_named(tmp_path, lines, message):
    assert message in bare(tmp_path, *lines)


def test_groups_are_kept_apart_in_folds_too(tmp_path):
    lines = ["1,a,,train,p,0", "2,a,,train,p,1", "3,a,,train,q,", "4,a,,train,q,1"]
    message = bare(tmp_path, *lines, header=HEADER + ",fold")
    assert "group 'p' is in more than one fold (fold 0 and fold 1)" in message
    assert "group 'q' is in more than one fold (fold 1 and no fold)" in message
    read_table(write(tmp_path, "1,a,,train,p,0", "2,a,,train,p,0", header=HEADER + ",fold"), check_files=False)


@pytest.mark.parametrize("mpp", ["0", "-1", "nan", "inf", "half"])
def test_mpp_is_a_positive_number(tmp_path, mpp):
    assert f"mpp '{mpp}' is no positive number" in bare(tmp_path, f"1,a,,,,{mpp}", header=HEADER + ",mpp")


def test_headers_are_strict_about_what_they_need(tmp_path):
    assert "missing columns: mask, group" in bare(tmp_path, "1,a,train", header="image,label,split")
    assert "not semicolons" in bare(tmp_path, "1;a;;;", header=HEADER.replace(",", ";"))
    assert "'label' is there twice" in bare(tmp_path, "1,a,,,,b", header=HEADER + ",label")
    assert "'MPP' is to be called 'mpp'" in bare(tmp_path, "1,a,,,,1", header=HEADER + ",MPP")
    assert "no such table" in refusal(tmp_path / "none.csv")
    (tmp_path / "empty.csv").touch()
    assert "the table is empty" in refusal(tmp_path / "empty.csv")
    (tmp_path / "latin.csv").write_bytes(HEADER.encode() + b"\n\xe9,a,,,\n")
    assert "UTF-8" in refusal(tmp_path / "latin.csv")
    (tmp_path / "bom.csv").write_bytes(b"\xef\xbb\xbf" + HEADER.encode() + b"\r\n1,a,,,\r\n")
    assert read_table(tmp_path / "bom.csv", check_files=False).classes == ("a",)


def test_given_classes_fix_the_order_and_refuse_others(tmp_path):
    path = write(tmp_path, "1,benign,,,", "2,malignant,,,")
    table = read_table(path, classes=["malignant", "benign", "normal"], check_files=False)
    assert table.classes == ("malignant", "benign", "normal")
    assert [table.label_index(s) for s in table.samples] == [1, 0]
    message = refusal(path, classes=["benign", "malign"], check_files=False)
    assert "unknown class 'malignant' in 1 row(s); did you mean 'malign'?" in message
    with pytest.raises(InputError, match="named twice"):
        read_table(path, classes=["benign", "benign"], check_files=False)


def test_all_problems_of_files_are_found_at_once(tmp_path):
    picture(tmp_path / "good.png")
    picture(tmp_path / "mask.png", width=41, mode="L")
    picture(tmp_path / "tiny.png", width=1, height=1)
    picture(tmp_path / "cmyk.jpg", mode="CMYK")
    (tmp_path / "text.png").write_text("text")
    path = write(
        tmp_path,
        "good.png,a,mask.png,train,",
        "tiny.png,a,,train,",
        "cmyk.jpg,a,,train,",
        "text.png,a,,training,",
        "none.png,a,no-mask.png,train,",
    )
    message = refusal(path)
    assert message.splitlines()[0] == f"{path}: 7 problems:"
    for part in ("41x36 px but its image good.png is 40x36", "1x1 px", "CMYK", "no readable image",
                 "unknown split 'training'", "none.png: there is no such", "mask of none.png"):  # fmt: skip
        assert message.count(part) == 1, part


def test_a_long_list_of_problems_is_cut(tmp_path):
    message = bare(tmp_path, *[f"{i},a,,wrong," for i in range(33)])
    assert len(message.splitlines()) == 22
    assert message.startswith(f"{tmp_path / 'table.csv'}: 33 problems:")
    assert message.endswith("... and 13 more")


def test_written_tables_hold_relative_paths_and_read_back(tmp_path, monkeypatch):
    inside = picture(tmp_path / "tables" / "images" / "a b.png")
    outside = picture(tmp_path / "elsewhere" / "ä,b.png")
    monkeypatch.chdir(tmp_path)
    rows = pd.DataFrame(
        {
            "patient": ["7", "8"],
            "image": [inside.relative_to(tmp_path), str(outside)],
            "label": ["x", "y"],
            "mask": [np.nan, None],
            "split": ["train", "train"],
            "fold": [0.0, np.nan],
            "mpp": [0.62, np.nan],
        }
    )
    path = tmp_path / "tables" / "table.csv"
    write_table(path, rows)
    assert path.read_text(encoding="utf-8").splitlines() == [
        HEADER + ",fold,mpp,patient",
        "images/a b.png,x,,train,,0,0.62,7",
        '"../elsewhere/ä,b.png",y,,train,,,,8',
    ]
    assert [p.name for p in path.parent.iterdir() if p.is_file()] == ["table.csv"]
    table = read_table(path)
    assert [s.image for s in table.samples] == [inside.resolve(), outside.resolve()]
    assert [s.mpp for s in table.samples] == [0.62, None]
    (tmp_path / "tables").rename(tmp_path / "moved")
    read_table(tmp_path / "moved" / "table.csv")


def test_writing_needs_the_two_columns(tmp_path):
    with pytest.raises(ValueError, match="image and label"):
        write_table(tmp_path / "t.csv", pd.DataFrame({"image": ["a"]}))
