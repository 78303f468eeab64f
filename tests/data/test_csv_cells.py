"""Tables as spreadsheets, R, pandas and people write them: read where they have one meaning, else one sentence."""

import os
import re
from pathlib import Path

import pytest

from histoloc.data.csv_cells import column_names, number_in, read_cells
from histoloc.data.table import read_table
from histoloc.errors import InputError

COLUMNS = ("mask", "split", "group", "mpp")
ROWS = [("image", "label", "split", "mpp"), ("a b.png", "benign", "train", "0.5"), ("ä,.png", "tumour", "test", "")]


def cells(path: Path, columns: str = "") -> list[dict[str, str]]:
    return read_cells(path, ("image", "label"), COLUMNS, columns).to_dict("records")  # pyright: ignore


def refusal(path: Path, content: bytes | str, columns: str = "") -> str:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError) as caught:
        cells(path, columns)
    return str(caught.value)


def text(separator: str = ",", quote: str = '"', end: str = "\n", rows=ROWS) -> str:
    return "".join(separator.join(f"{quote}{cell}{quote}" for cell in row) + end for row in rows)


WRITTEN = {
    "quoted": text().encode(),
    "bom": text().encode("utf-8-sig"),
    "utf-16": text().encode("utf-16"),
    "utf-16, big end first": b"\xfe\xff" + text().encode("utf-16-be"),
    "utf-32": text().encode("utf-32"),
    "unicode text of Excel": text("\t", "", "\r\n").encode("utf-16"),
    "semicolons": text(";", "").encode(),
    "semicolons with the line of Excel": b"sep=;\r\n" + text(";", "", "\r\n").encode(),
    "tabs": text("\t", "").encode(),
    "spaces after commas": text(", ").encode(),
    "old line ends of the Mac": text(end="\r").encode(),
    "no line end at the end": text().rstrip("\n").encode(),
    "blank lines and lines of commas": text(end="\n\n").replace("\n\n", "\n,,,\n\n \n").encode(),
    "a comma too much in every line": text(end=",\n").encode(),
    "a nameless column before": text(rows=[("", *ROWS[0]), ("0", *ROWS[1]), ("1", *ROWS[2])]).encode(),
    "other case": text(rows=[("Image", "LABEL", "Split", "mpp"), *ROWS[1:]]).encode(),
    "columns in another order, with others": text(
        rows=[(row[3], "x", row[2], "x", row[1], row[0]) for row in [("image", "label", "split", "mpp"), *ROWS[1:]]]
    ).encode(),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_what_has_one_meaning_is_read(tmp_path, name):
    (tmp_path / "t.csv").write_bytes(WRITTEN[name])
    plain = dict.fromkeys(("mask", "split", "group", "mpp"), "")
    assert cells(tmp_path / "t.csv") == [
        {"image": "a b.png", "label": "benign", **plain, "split": "train", "mpp": "0.5"},
        {"image": "ä,.png", "label": "tumour", **plain, "split": "test"},
    ]


def test_lines_are_those_of_the_file(tmp_path):
    (tmp_path / "t.csv").write_text('sep=,\n\nimage,label\n"a\nb.png",x\n\nc.png,y\n')
    rows = read_cells(tmp_path / "t.csv", ("image", "label"), ())
    assert rows["image"].to_dict() == {4: "a\nb.png", 7: "c.png"}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "the table is empty"),
        ("image,label\n", "the table is empty"),
        ("image,label\n,,\n \n", "the table is empty"),
        ("image,label\na,b,c\n", "line 2 has 3 cells and the header 2; quote cells with commas"),
        ('image,label\n"a,b\nc,d\n', "is no readable CSV from line 2 on (unexpected end of data)"),
        ('image,label\n"a"x,b\n', "is no readable CSV from line 2 on"),
        ("image,label\n" + "a" * 200_000 + ",b\n", "is no readable CSV from line 2 on (field larger"),
        ("image,label,Label\na,b,c\n", "the columns 'label' and 'Label' may both be label; rename one of them"),
        ("image,label,label\na,b,c\n", "the columns 'label' and 'label' may both be label"),
        ("# mine\nimage,label\na,b\n", "missing columns: image, label; the header has # mine"),
        ("images,class\na,b\n", "say which they are by --columns image=images,label=NAME"),
        ("image,label\nä,b\n".encode("cp1252"), "is no CSV in UTF-8 (line 2)"),
        ("image,label\na,b\n".encode("utf-16-le"), "has zero bytes in its header"),
        (b"PK\x03\x04\x14\0\x06\0\x08\0\xff\xfe", "save it as UTF-8 CSV, in Excel by Save As, CSV UTF-8"),
    ],
)
def test_what_has_none_is_one_sentence(tmp_path, content, says):
    assert says in refusal(tmp_path / "t.csv", content)


def test_tables_that_are_none(tmp_path):
    for path, says in (
        (tmp_path, "is a folder; make a table of it with `histoloc data folder`"),
        (tmp_path / "no.csv", "there is no such table"),
        (tmp_path / ("x" * 300 + ".csv"), "correct the path"),
    ):
        with pytest.raises(InputError, match=re.escape(says)):
            cells(path)


def test_columns_are_called_as_the_user_says(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("Path,image,dia,gnosis=x,split\na.png,7,m,b,train\n")
    assert (
        cells(path, "image=Path, label=gnosis=x")[0] | {"image": "a.png", "label": "b"}
        == cells(path, "label=gnosis=x,image=Path")[0]
    )
    assert [row["image"] for row in cells(path, "image=path,label=dia")] == ["a.png"]  # whatever the case
    assert cells(path, "image=Path,label=dia,group=image")[0]["group"] == "7"
    with pytest.raises(InputError, match="missing columns: diagnosis; the header has Path, image, dia"):
        cells(path, "image=Path,label=diagnosis")
    with pytest.raises(InputError, match="there is no column 'lable'; did you mean 'label'"):
        cells(path, "lable=dia")
    for wrong in ("image", "image=", "image:Path", "image=Path,image=dia"):
        with pytest.raises(InputError, match="write it as image=path,label=diagnosis"):
            cells(path, wrong)
    assert column_names("image=a,b,label=c", ("image", "label")) == {"image": "a,b", "label": "c"}


@pytest.mark.parametrize(
    ("cell", "whole", "number"),
    [
        ("0.5", False, 0.5), ("0,5", False, 0.5), (",25", False, 0.25), ("5e-1", False, 0.5), ("1", False, 1),
        ("1_0", False, None), ("١", False, None), ("0x1", False, None), ("1,000.5", False, None), ("nan", False, None),
        ("inf", False, None), ("0", False, None), ("-1", False, None), ("1e999", False, None), ("", False, None),
        ("7", True, 7), ("7.0", True, 7), ("7,0", True, None), ("7.5", True, None), ("-1", True, None),
        ("1e3", True, 1000), ("9" * 5000, True, None), ("1_0", True, None),
    ],
)  # fmt: skip
def test_numbers_as_people_write_them(cell, whole, number):
    assert number_in(cell, whole=whole) == number


def test_paths_of_windows(tmp_path):
    (tmp_path / "a").mkdir()
    path = tmp_path / "t.csv"
    path.write_text("image,label\na\\b.png,x\na/c\\d.png,y\n")
    table = read_table(path, check_files=False)
    assert [s.name for s in table.samples] == ["a/b.png", "a/c/d.png"]
    assert table.samples[0].image == tmp_path / "a" / "b.png"
    if os.name != "nt":
        (tmp_path / "a\\b.png").touch()  # a name that is allowed there
        assert read_table(path, check_files=False).samples[0].name == "a\\b.png"
        path.write_text("image,label\nC:\\x\\a.png,x\n\\\\server\\x\\b.png,y\n")
        with pytest.raises(InputError, match=r"line 3 .* is a path of a Windows drive; write it relative to the table"):
            read_table(path, check_files=False)


@pytest.mark.parametrize("word", ["Train", "TRAIN", "training", "val", "Validation", "valid", "testing", "Test"])
def test_splits_in_other_words(tmp_path, word):
    (tmp_path / "t.csv").write_text(f"image,label,split\n1,a,train\n2,b,train\n3,a,{word}\n")
    split = read_table(tmp_path / "t.csv", check_files=False).samples[2].split
    assert split == {"r": "train", "a": "valid", "e": "test"}[word[1].lower()]


def test_a_link_is_called_as_it_is_written(tmp_path):
    """Stores (DVC, git-annex, hub caches) keep files under other names, without their suffixes."""
    store = tmp_path / "store"
    store.mkdir()
    (tmp_path / "data").mkdir()
    for name, blob in (("a.svs", "d41d"), ("b.svs", "8cd9"), ("a.geojson", "e980")):
        (store / blob).write_bytes(blob.encode())
        (tmp_path / "data" / name).symlink_to(store / blob)
    (tmp_path / "t.csv").symlink_to(store / "table")
    header = "image,label,mask,x,y,width,height"
    (store / "table").write_text(f"{header}\ndata/a.svs,x,data/a.geojson,0,0,9,9\ndata/b.svs,y,,0,0,9,9\n")
    a, b = read_table(tmp_path / "t.csv").samples
    assert (a.image, b.image) == (tmp_path / "data" / "a.svs", tmp_path / "data" / "b.svs")
    assert a.mask == tmp_path / "data" / "a.geojson"
    # One content under two names is two images; one name in two ways is one.
    (tmp_path / "data" / "b.svs").unlink()
    (tmp_path / "data" / "b.svs").symlink_to(store / "d41d")
    assert len(read_table(tmp_path / "t.csv").samples) == 2
    (tmp_path / "linked").symlink_to(tmp_path / "data")
    (store / "table").write_text("image,label,x,y,width,height\ndata/a.svs,x,0,0,9,9\nlinked/a.svs,x,0,0,9,9\n")
    with pytest.raises(InputError, match=r"linked/a\.svs.*same file as data/a\.svs.*listed twice"):
        read_table(tmp_path / "t.csv")
    (tmp_path / "data" / "a.svs").unlink()
    (tmp_path / "data" / "a.svs").symlink_to("a.svs")  # a circle
    with pytest.raises(InputError):
        read_table(tmp_path / "t.csv")
