import os
import re
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
    lines = [" images/a.png , tumour ,masks/a.png,test, p1,0.5,Ann", "", "images/b.png,none,,,,,"]
    path = write(tmp_path, *lines, header=HEADER + ",mpp,remark")
    table = read_table(path)
    assert table.classes == ("none", "tumour")
    a, b = table.samples
    assert (a.name, a.label, a.split, a.group, a.mpp) == ("images/a.png", "tumour", "test", "p1", 0.5)
    assert a.image == (tmp_path / "images" / "a.png").resolve()
    assert a.mask == (tmp_path / "masks" / "a.png").resolve()
    assert (b.label, b.split, b.mask, b.group, b.mpp, b.x) == ("none", None, None, None, None, None)
    assert [table.label_indices(s)[0] for s in table.samples] == [1, 0]
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
        (["1,a,,vaild,"], "unknown split 'vaild'; did you mean 'valid'?"),
        (["1,a,,zzz,"], "unknown split 'zzz'; write one of train, valid, test"),
        (["1,a,,train,", "1,a,,train,"], "1: is listed twice"),
        (["1,a,,train,", "x/../1,a,,test,"], "x/../1, which is the same file as 1: is listed twice"),
        (["1,a,,train\u00a0,"], "unknown split 'train<U+00A0>'; did you mean 'train'?"),
        (["1,a,nan,train,", "2,a,nan,None,"], "mask 'nan' (2 row(s)) is what programs write for an empty cell"),
        (["1,a,nan,train,", "2,a,nan,None,"], "split 'None' (1 row(s)) is what programs write for an empty cell"),
        (["\0,a,,train,"], "line 2 (<U+0000>): the cell image holds a zero byte"),
        (["1,a,,train,", "2,b,,test,"], "class 'b' has no samples in the split train"),
    ],
)
def test_each_problem_is_named(tmp_path, lines, message):
    assert message in bare(tmp_path, *lines)


def test_groups_on_both_sides_of_a_split_are_a_note(tmp_path):
    lines = ["1,a,,train,p", "2,b,,train,q", "3,a,,valid,p", "4,b,,valid,r"]
    lines += ["5,a,,test,p", "6,b,,test,r", "7,b,,test,s"]
    [note] = read_table(write(tmp_path, *lines, "8,a,,test,"), check_files=False).notes
    assert note.startswith(
        "2 of 4 groups (p: train, valid, test; r: valid, test) are on both sides of a split, with 50% of the samples "
        "of valid and 50% of the samples of test: numbers are optimistic there"
    )
    assert "histoloc data folder --group" in note
    assert "histoloc data glas --split patient" in note
    assert "empty" not in note
    assert read_table(write(tmp_path, *lines[:2], *lines[6:]), check_files=False).notes == ()


def test_many_torn_groups_are_counted_and_three_are_named(tmp_path):
    lines = [f"{split}{i},{'ab'[i % 2]},,{split},p{i}" for split in ("train", "test") for i in range(5)]
    [note] = read_table(write(tmp_path, *lines), check_files=False).notes
    assert note.startswith("5 of 5 groups (p0: train, test; p1: train, test; p2: train, test; and 2 more) are")
    assert "with 100% of the samples of test:" in note


def test_groups_in_several_folds_are_a_note_of_the_whole_and_of_the_fold(tmp_path):
    lines = ["1,a,,train,p,0", "2,b,,train,p,1", "3,a,,train,q,", "4,b,,train,q,1", "5,a,,train,r,2", "6,b,,train,s,2"]
    path = write(tmp_path, *lines, header=HEADER + ",fold")
    [note] = read_table(path, check_files=False).notes
    assert note.startswith(
        "2 of 4 groups (p: fold 0, fold 1; q: fold 1, no fold) are in more than one fold: validation"
    )
    [note] = read_table(path, fold=1, check_files=False).notes
    assert note.startswith("2 of 4 groups (p: train, valid; q: train, valid) are on both sides of a split, with 100%")
    assert read_table(path, fold=2, check_files=False).notes == ()


def test_labels_of_several_classes(tmp_path):
    path = write(tmp_path, "1,b,,train,", "2,c | a,,train,", "3,a|b|c,,test,")
    table = read_table(path, check_files=False)
    one, two, three = table.samples
    assert table.classes == ("a", "b", "c")
    assert (two.label, two.labels, one.labels) == ("c | a", ("c", "a"), ("b",))
    assert [table.label_indices(s) for s in table.samples] == [(1,), (2, 0), (0, 1, 2)]
    assert [table.label_indices(s)[0] for s in (one, two, three)] == [1, 2, 0]
    assert table.counts().to_dict("index") == {"train": {"a": 1, "b": 1, "c": 1}, "test": {"a": 1, "b": 1, "c": 1}}
    assert table.summary().splitlines()[-1] == "3 samples of 3 classes, 2 of several classes, 0 with mask, 0 groups"
    table = read_table(path, classes=["c", "b", "a"], check_files=False)
    assert [table.label_indices(s) for s in table.samples] == [(1,), (0, 2), (2, 1, 0)]
    assert "unknown class 'c' in 2 row(s)" in refusal(path, classes=["a", "b"], check_files=False)
    assert "class 'c' has no samples in the split train" in bare(tmp_path, "1,a|b,,train,", "2,a|c,,test,")


def test_a_table_of_one_class_cannot_be_learned_from(tmp_path):
    path = write(tmp_path, "1,a,,train,", "2,a,,train,", "3,a,,test,")
    table = read_table(path, check_files=False)
    assert "one class only (a): nothing can be learned of it" in table.notes[0]
    with pytest.raises(
        InputError, match=r"table\.csv: has one class only \(a in 2 row\(s\)\); .* add images of another"
    ):
        table.check_classes()
    known = read_table(path, classes=["a", "b"], check_files=False)
    assert (known.classes, known.notes) == (("a", "b"), ())
    both = read_table(write(tmp_path, "1,a|b,,train,", "2,b|a,,train,", "3,a,,test,"), check_files=False)
    with pytest.raises(InputError, match=r"has one label only \(a\|b in 2 row\(s\)\)"):
        both.check_classes()
    read_table(write(tmp_path, "1,a|b,,train,", "2,b,,train,"), check_files=False).check_classes()


def test_known_classes_need_not_all_be_there(tmp_path):
    path = write(tmp_path, "1,b,,train,", "2,a,,test,")
    table = read_table(path, classes=["a", "b", "c"], check_files=False)
    assert table.counts().to_dict("index") == {"train": {"a": 0, "b": 1, "c": 0}, "test": {"a": 1, "b": 0, "c": 0}}
    assert "class 'a' has no samples" in refusal(path, check_files=False)


def test_labels_and_groups_that_nobody_tells_apart_are_refused(tmp_path):
    message = bare(tmp_path, "1,Benign,,train,1", "2,benign,,train,1.0", "3,benign,,train,1", "4,x\u200b,,train,")
    assert message.splitlines()[1:] == [
        "  labels 'Benign' (1 row(s)) and 'benign' (2 row(s)) differ by case alone; write the one or rename the other",
        "  label 'x<U+200B>' (1 row(s)) has characters that cannot be seen; type it anew",
        "  groups '1' (2 row(s)) and '1.0' (1 row(s)) differ by '.0' alone; write the one or rename the other",
    ]


def test_whole_numbers_may_be_written_as_pandas_does(tmp_path):
    header = HEADER + ",fold,x,y,width,height"
    path = write(tmp_path, "s,a,,train,,0.0,0.0,8.0,64.0,32.00", "s,b,,train,,0,64,8,64,32", header=header)
    first, second = read_table(path, check_files=False).samples
    assert (first.fold, first.x, first.y, first.width, first.height) == (0, 0, 8, 64, 32)
    assert (first.name, second.fold) == ("s@0_8_64_32", 0)
    assert "fold '0.5' is no whole number" in bare(tmp_path, "1,a,,train,,0.5", header=HEADER + ",fold")
    assert "is no whole number" in bare(tmp_path, f"1,a,,train,,{'9' * 5000}", header=HEADER + ",fold")


def test_names_that_no_disk_has_are_a_problem(tmp_path):
    message = refusal(write(tmp_path, f"{'x' * 300}.png,a,,train,"))
    assert "image or mask cannot be looked at" in message
    with pytest.raises(InputError, match=r"cannot hold the name .*<U\+DCE9>.*rename the file"):
        write_table(tmp_path / "t.csv", pd.DataFrame({"image": [tmp_path / "\udce9.png"], "label": ["a"]}))


def test_the_summary_counts_everything(tmp_path):
    lines = ["1,a,m,train,p,0", "2,b,,train,p,1", "3,b,m,test,,"]
    lines = read_table(write(tmp_path, *lines, header=HEADER + ",fold"), check_files=False).summary().splitlines()
    assert [line.split() for line in lines[2:4]] == [["train", "1", "1"], ["test", "0", "1"]]
    assert lines[4] == "3 samples of 2 classes, 2 with mask, 1 groups (1 samples without), folds 0, 1"
    wide = read_table(write(tmp_path, *[f"{i},c{i},,train," for i in range(9)]), check_files=False).summary()
    assert [line.split() for line in wide.splitlines()[2:5]] == [["c0", "1"], ["c1", "1"], ["c2", "1"]]


@pytest.mark.parametrize("mpp", ["0", "-1", "nan", "inf", "half"])
def test_mpp_is_a_positive_number(tmp_path, mpp):
    assert f"mpp '{mpp}' is no positive number" in bare(tmp_path, f"1,a,,,,{mpp}", header=HEADER + ",mpp")


def test_given_classes_fix_the_order_and_refuse_others(tmp_path):
    path = write(tmp_path, "1,benign,,,", "2,malignant,,,")
    table = read_table(path, classes=["malignant", "benign", "normal"], check_files=False)
    assert table.classes == ("malignant", "benign", "normal")
    assert [table.label_indices(s)[0] for s in table.samples] == [1, 0]
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
        "text.png,a,,trian,",
        "none.png,a,no-mask.png,train,",
    )
    message = refusal(path)
    assert message.splitlines()[0] == f"{path}: 7 problems:"
    for part in ("41x36 px but its image good.png is 40x36", "1x1 px", "CMYK", "no readable image",
                 "unknown split 'trian'", "none.png: there is no such", "mask of none.png"):  # fmt: skip
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


PRINTED = ["1.png,a,m1.png,train,p", "2.png,b,,train,p", "3.png,b,,test,"]


def test_a_fingerprint_is_of_content_not_of_order_or_time(tmp_path):
    for name in ("1.png", "2.png", "3.png", "m1.png"):
        picture(tmp_path / name)
    path = write(tmp_path, *PRINTED)
    before = read_table(path).fingerprint()
    assert re.fullmatch("[0-9a-f]{64}", before)
    os.utime(tmp_path / "1.png", (0, 0))
    assert read_table(write(tmp_path, *reversed(PRINTED))).fingerprint() == before
    remarked = write(tmp_path, *[f"{line},x" for line in PRINTED], header=HEADER + ",remark")
    assert read_table(remarked).fingerprint() == before
    train = read_table(path).fingerprint(read_table(path).split("train"))
    assert train != before
    tmp_path.rename(tmp_path.with_name("moved"))
    table = read_table(tmp_path.with_name("moved") / "table.csv")
    assert (table.fingerprint(), table.fingerprint(table.split("train"))) == (before, train)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("2.png,b", "2.png,a|b"),
        ("2.png,b,", "2.png,b,m1.png"),
        ("m1.png", "m2.png"),
        ("3.png,b,,test", "3.png,b,,valid"),
        ("train,p,0", "train,p,1"),
        ("train,q,1", "train,r,1"),
        ("1,0.5", "1,0.25"),
        ("2.png", "./2x.png"),
        ("3.png,b,,test,,,\n", ""),
        ("1.png,a", "1.png,c"),
    ],
)
def test_a_fingerprint_notices_cells(tmp_path, old, new):
    lines = ["1.png,a,m1.png,train,p,0,", "2.png,b,,train,q,1,0.5", "3.png,b,,test,,,"]
    path = write(tmp_path, *lines, header=HEADER + ",fold,mpp")
    before = read_table(path, check_files=False).fingerprint()
    header, body = path.read_text().split("\n", 1)
    path.write_text(f"{header}\n{body.replace(old, new)}")
    assert body != body.replace(old, new)
    assert read_table(path, check_files=False).fingerprint() != before


@pytest.mark.parametrize("name", ["1.png", "m1.png", "scan/1.dcm"])
def test_a_fingerprint_notices_files(tmp_path, name):
    (tmp_path / "scan").mkdir()
    for file in ("1.png", "m1.png", "scan/1.dcm"):
        (tmp_path / file).write_bytes(b"\0" * 300_000)
    lines = ["1.png,a,m1.png,train,,,,,", "scan,b,,train,,0,0,64,64"]
    table = read_table(write(tmp_path, *lines, header=HEADER + ",x,y,width,height"), check_files=False)
    before = table.fingerprint()
    (tmp_path / name).write_bytes(b"\0" * 300_001)
    seen = {before, table.fingerprint()}
    assert len(seen) == 2
    if name == "scan/1.dcm":
        return
    for position in (0, 65_535, 300_000 - 65_536, 299_999):
        (tmp_path / name).write_bytes(b"\0" * position + b"x" + b"\0" * (299_999 - position))
        seen.add(table.fingerprint())
    assert len(seen) == 6
    (tmp_path / name).write_bytes(b"\0" * 150_000 + b"x" + b"\0" * 149_999)
    assert table.fingerprint() == before  # as the docstring says
    (tmp_path / name).unlink()
    assert table.fingerprint() not in seen
