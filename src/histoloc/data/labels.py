"""Spellings of classes and groups: which are refused, because a person cannot tell them apart."""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

from histoloc.data.sample import parts

# As pandas, numpy, R, SQL, JavaScript and spreadsheets spell them. 'none' is absent: it is a grade in many scales.
EMPTY_WORDS = frozenset(
    ("nan", "NaN", "NAN", "-nan", "NaT", "NA", "<NA>", "N/A", "n/a", "#N/A", "#NA", "None", "null", "NULL", "-", "--")
)
# Of no general category that says so: joiners, fillers of Hangul, the blank of Braille, variation selectors.
_BLANKS = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0") | {chr(c) for c in range(0xFE00, 0xFE10)}
_Step = tuple[str, Callable[[str], str]]


LONGEST_SHOWN = 100  # characters


def show(text: str) -> str:
    """The text with code points in place of what is not seen or looks like something else: `a<U+00A0>b`."""
    text = text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."
    return "".join(f"<U+{ord(c):04X}>" if _is_unseen(c) or _looks_like_another(c) else c for c in text)


def label_problems(labels: Mapping[str, int], *, known: Collection[str] = (), unit: str = "row(s)") -> Iterator[str]:
    """What is wrong with the labels of a table.

    Args:
        labels: how often each label (`a` or `a|b`) is there.
        known: classes whose names are in use already, as those of a model; they may be called anything.
        unit: what is counted.

    Yields:
        One sentence each with label, count and remedy.
    """
    classes: Counter[str] = Counter()
    for label, number in labels.items():
        names = set(parts(label))
        if "" in names:
            yield f"label '{show(label)}' ({number} {unit}) names an empty class; write one class, or several as a|b"
        if len(names) < len(parts(label)):
            yield f"label '{show(label)}' ({number} {unit}) names a class twice; name each once"
        classes.update(dict.fromkeys(names - {""}, number))
    for name in sorted(EMPTY_WORDS & classes.keys() - set(known)):
        yield (
            f"label '{name}' ({classes[name]} {unit}) is what programs write for an empty cell; name the class there, "
            f"or leave these out; if it is a class, write its name in full, such as 'no tumour' or 'not available'"
        )
    yield from _alike("label", classes, known, unit, (*_STEPS, _HYPHENS))


def group_problems(groups: Mapping[str, int], *, unit: str = "row(s)") -> Iterator[str]:
    """What is wrong with the groups of a table: as `label_problems`, but hyphens tell groups apart."""
    for name in sorted(EMPTY_WORDS & groups.keys()):
        yield f"group '{name}' ({groups[name]} {unit}) is what programs write for an empty cell; leave the cell empty"
    yield from _alike("group", groups, (), unit, _STEPS)


def _alike(
    what: str, counts: Mapping[str, int], known: Collection[str], unit: str, steps: Sequence[_Step]
) -> Iterator[str]:
    """Names that differ only by what a person overlooks, and names with characters that nobody sees."""
    alike: dict[str, list[str]] = defaultdict(list)
    for name in sorted(counts):
        alike[_reduce(name, steps)].append(name)
    for names in alike.values():
        spelled = " and ".join(f"'{show(name)}' ({counts[name]} {unit})" for name in names)
        if set(names) <= set(known):
            continue
        if len(names) > 1:
            yield f"{what}s {spelled} differ by {_difference(names, steps)} alone; write the one or rename the other"
        elif any(map(_is_unseen, names[0])):
            yield f"{what} {spelled} has characters that cannot be seen; type it anew"


def _reduce(name: str, steps: Sequence[_Step]) -> str:
    for _, step in steps:
        name = step(name)
    return name


def _difference(names: Sequence[str], steps: Sequence[_Step]) -> str:
    """The fewest steps after which the names are the same."""
    needed = list(steps)
    for step in reversed(steps):
        others = [other for other in needed if other != step]
        if len({_reduce(name, others) for name in names}) == 1:
            needed = others
    return " and ".join(what for what, _ in needed)


def _is_unseen(character: str) -> bool:
    category = unicodedata.category(character)
    return category in ("Cc", "Cf", "Cs", "Zl", "Zp") or (category == "Zs" and character != " ") or character in _BLANKS


def _looks_like_another(character: str) -> bool:
    return unicodedata.normalize("NFKC", character) != character or unicodedata.combining(character) > 0


def _without_spaces(text: str) -> str:
    text = re.sub(r"\s+", " ", text).strip()
    return re.sub(r"(?<!\d) | (?!\d)", "", text)  # but '1 0' is not '10'


_STEPS: tuple[_Step, ...] = (
    (
        "characters that cannot be seen",
        lambda text: "".join(" " if c.isspace() else "" if _is_unseen(c) else c for c in text).strip(),
    ),
    ("Unicode form", lambda text: unicodedata.normalize("NFKC", text)),
    ("case", lambda text: unicodedata.normalize("NFKC", text.casefold())),
    ("spaces", _without_spaces),
    ("'.0'", lambda text: re.sub(r"^([+-]?\d+)\.0*$", r"\1", text)),
)
# Hyphens inside words: 'HER2-' is not 'HER2'.
_HYPHENS: _Step = ("hyphens", lambda text: _without_spaces(re.sub(r"(?<=\w)[_-]+(?=\w)", " ", text)))
