from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from histoloc.data.labels import group_problems, label_problems, show
from histoloc.data.sample import parts


def problems(*labels: str, known: tuple[str, ...] = ()) -> list[str]:
    return list(label_problems(Counter(labels), known=known))


def test_a_label_is_one_class_or_several():
    assert parts("a") == ("a",)
    assert parts("b | a|c d") == ("b", "a", "c d")
    assert parts("a|") == ("a", "")


def test_good_labels_have_no_problem():
    assert (
        problems("benign", "malignant", "benign|malignant", "0", "1", "01", "10", "none", "Grade 1", "HER2+", "HER2-")
        == []
    )
    assert problems("3+4", "4+3", "1 0", "1-2", "12", "Größe", "non-tumour", "tumour", "Na", "0.5", "0.0", "1.0") == []


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("a|", "label 'a|' (2 row(s)) names an empty class; write one class, or several as a|b"),
        ("|", "label '|' (2 row(s)) names an empty class; write one class, or several as a|b"),
        ("a||b", "label 'a||b' (2 row(s)) names an empty class; write one class, or several as a|b"),
        ("a|a", "label 'a|a' (2 row(s)) names a class twice; name each once"),
        ("a| b|a ", "label 'a| b|a ' (2 row(s)) names a class twice; name each once"),
    ],
)
def test_labels_that_name_no_set_are_refused(label, message):
    assert message in problems(label, label, "c")


@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        ("Benign", "benign", "labels 'Benign' (1 row(s)) and 'benign' (2 row(s)) differ by case alone"),
        ("ΤΈΛΟΣ", "τέλος", "differ by case alone"),
        ("in situ", "in  situ", "labels 'in  situ' (2 row(s)) and 'in situ' (1 row(s)) differ by spaces alone"),
        ("insitu", "in situ", "differ by spaces alone"),
        ("in-situ", "in_situ", "differ by hyphens alone"),
        ("non-tumor", "Nontumor", "differ by case and hyphens alone"),
        ("1", "1.0", "labels '1' (1 row(s)) and '1.0' (2 row(s)) differ by '.0' alone"),
        ("-1.00", "-1", "differ by '.0' alone"),
        ("\u00e9", "e\u0301", "labels 'e<U+0301>' (2 row(s)) and '\u00e9' (1 row(s)) differ by Unicode form alone"),
        ("5 \u00b5m", "5 \u03bcm", "labels '5 <U+00B5>m' (1 row(s)) and '5 \u03bcm' (2 row(s)) differ by Unicode form"),
        ("a\uff11", "a1", "'a<U+FF11>' (1 row(s)) differ by Unicode form"),
        ("a b", "a\u00a0b", "'a<U+00A0>b' (2 row(s)) differ by characters that cannot be seen"),
        ("a", "a\u00a0", "'a<U+00A0>' (2 row(s)) differ by characters that cannot be seen"),
        ("a", "a\u200b", "'a<U+200B>' (2 row(s)) differ by characters that cannot be seen"),
        ("a", "\ufeffa", "'<U+FEFF>a' (2 row(s)) differ by characters that cannot be seen"),
        ("a", "a\u00ad", "'a<U+00AD>' (2 row(s)) differ by characters that cannot be seen"),
        ("a", "a\u3164", "'a<U+3164>' (2 row(s)) differ by characters that cannot be seen"),
        ("a", "a\ufe0f", "'a<U+FE0F>' (2 row(s)) differ by characters that cannot be seen"),
        ("a|B", "b", "labels 'B' (1 row(s)) and 'b' (2 row(s)) differ by case alone"),
    ],
)  # fmt: skip
def test_labels_that_nobody_tells_apart_are_refused(one, other, message):
    [found] = problems(one, other, other, "x")
    assert message in found
    assert found.endswith("alone; write the one or rename the other")
    assert problems(one, "x") == problems(one)


def test_all_spellings_of_a_class_are_one_problem():
    [found] = problems("a b", "A b", "a  b", "ab")
    assert found.startswith(
        "labels 'A b' (1 row(s)) and 'a  b' (1 row(s)) and 'a b' (1 row(s)) and 'ab' (1 row(s)) differ"
    )


@pytest.mark.parametrize("character", "\u00a0\u2009\u3000\u200b\u200d\u2060\ufeff\u00ad\u202e\u2028\u2800\t\n\x07\x7f")
def test_a_label_with_characters_that_cannot_be_seen_is_refused(character):
    shown = f"a<U+{ord(character):04X}>b"
    assert problems(f"a{character}b") == [
        f"label '{shown}' (1 row(s)) has characters that cannot be seen; type it anew"
    ]


@pytest.mark.parametrize("word", ["nan", "NaN", "NA", "None", "null", "<NA>", "n/a", "-", "N/A", "NULL", "NaT", "#N/A"])
def test_what_programs_write_for_an_empty_cell_is_no_label(word):
    [found] = problems(word, word, "b")
    assert found.startswith(f"label '{word}' (2 row(s)) is what programs write for an empty cell; name the class there")
    assert "'no tumour'" in found
    assert problems(f"{word}|b") == [found.replace("(2 row(s))", "(1 row(s))")]
    assert problems(word, "b", known=("b", word)) == []  # a model has a class of this name


def test_classes_of_a_model_may_be_called_anything():
    assert problems("A", "a", known=("A", "a", "b")) == []
    assert len(problems("A", "a", known=("a", "b"))) == 1


def test_groups():
    assert list(group_problems(Counter(["P1", "P-1", "P_1", "P2", "1", "01"]))) == []
    found = list(group_problems(Counter(["P1", "p1", "p1", "2", "2.0", "nan", "c\u200bd", "A 1", "A\u00a01"])))
    assert found == [
        "group 'nan' (1 row(s)) is what programs write for an empty cell; leave the cell empty",
        "groups '2' (1 row(s)) and '2.0' (1 row(s)) differ by '.0' alone; write the one or rename the other",
        "groups 'A 1' (1 row(s)) and 'A<U+00A0>1' (1 row(s)) differ by characters that cannot be seen alone; "
        "write the one or rename the other",
        "groups 'P1' (1 row(s)) and 'p1' (2 row(s)) differ by case alone; write the one or rename the other",
        "group 'c<U+200B>d' (1 row(s)) has characters that cannot be seen; type it anew",
    ]


@given(st.text(max_size=12))
def test_what_is_shown_can_be_seen_and_names_can_be_anything(text):
    assert show(text) == show(show(text))
    assert show(text).isprintable() or not text.isascii()
    list(label_problems({text: 1, text.upper(): 2}))
