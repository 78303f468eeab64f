"""Tables of results: their columns, what is best in them, and one writer of HTML, Markdown and LaTeX."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pandas as pd
from markupsafe import Markup, escape
from pandas.io.formats.style import Styler

from histoloc.results import Result

# Name in metrics.json -> heading, in the order of the columns. Classification error alone is better where it is less.
METRICS = {
    "cl_error": "Cl. error",
    "balanced_accuracy": "balanced accuracy",
    "auc": "AUC",
    "kappa": "kappa",
    "f1_plus": "F1⁺",
    "f1_minus": "F1⁻",
    "f1_mean": "mean F1",
    "pxap": "PxAP",
    "pxap_with_roi": "PxAP, images with ROI",
    "tpr": "TPR",
    "tnr": "TNR",
    "specificity_without_roi": "specificity",
}
ALWAYS = ("f1_plus", "f1_minus", "f1_mean", "pxap", "tpr", "tnr")
RULES = {"argmax": "argmax rule", "per_image": "per image"}  # other rules of making maps: headings above their columns
NOT_DEFINED = "–"
SYMBOLS = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "–": "--",
    "−": "$-$",
    "±": r"$\pm$",
    "×": r"$\times$",
    "µ": r"$\mu$",
    "Δ": r"$\Delta$",
    "λ": r"$\lambda$",
    "τ": r"$\tau$",
    "⁺": "$^{+}$",
    "⁻": "$^{-}$",
}


class Entry(NamedTuple):
    """What stands in one place of a table; `spread` is the smaller text behind or below it."""

    text: str = ""
    spread: str = ""
    bold: bool = False


@dataclass(frozen=True)
class Line:
    """A row of a table.

    Attributes:
        title: its name.
        cells: one for each heading.
        group: a line is drawn between neighbours of different groups.
        notes: its footnotes.
        aside: whether it only stands for comparison.
        heading: whether it is the title of the lines below it, with empty cells.
    """

    title: str
    cells: Sequence[Entry]
    group: str = ""
    notes: Sequence[str] = ()
    aside: bool = False
    heading: bool = False


@dataclass(frozen=True)
class Table:
    """A finished table, before it is HTML, Markdown or LaTeX.

    Attributes:
        title: its caption.
        headings: of the columns behind the rows' titles: what stands above neighbouring ones, and their own.
        rows: from above.
        general: sentences about all of it.
        corner: the heading of the titles.
    """

    title: str
    headings: Sequence[tuple[str, str]]
    rows: Sequence[Line]
    general: Sequence[str] = ()
    corner: str = "Method"

    @property
    def notes(self) -> list[str]:
        """The footnotes; equal ones are given once."""
        return list(dict.fromkeys(note for row in self.rows for note in row.notes))

    def marks(self, row: Line) -> str:
        """The numbers of a row's footnotes, from 1: `1,3`."""
        return ",".join(str(number) for number, note in enumerate(self.notes, 1) if note in row.notes)

    def begins_group(self, number: int) -> bool:
        """Whether a row is of another group than the one above."""
        return number > 0 and self.rows[number].group != self.rows[number - 1].group


def headings(results: Sequence[Result], names: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Headings of those of `names` that are always shown or say something of the results, by name.

    Shown is the specificity where a class is named without ROI, PxAP over the images with ROI where its pool has
    others, and of the rest what is defined.
    """
    empty = sorted({result.empty_class for result in results if result.empty_class is not None})
    columns = {}
    for name in names:
        rule = next((rule for rule in RULES if name.startswith(f"{rule}_")), "")
        heading = METRICS[name.removeprefix(f"{rule}_")]
        if name == "specificity_without_roi":
            relevant, heading = bool(empty), f"specificity on {' or '.join(empty)} images"
        elif name == "pxap_with_roi":
            relevant = any(result.pools_without_roi for result in results)
        else:
            relevant = name in ALWAYS or not results or any(result.value(name) is not None for result in results)
        if relevant:
            columns[name] = (RULES.get(rule, ""), heading)
    return columns


def best(values: pd.DataFrame, keys: Sequence[Any], models: Sequence[str]) -> pd.DataFrame:
    """Where the best values are, at the two decimals shown, equal ones together.

    Args:
        values: in percent, a column for each metric.
        keys: of the rows, hashable: only those of equal keys are compared, and None takes no part.
        models: of the rows; nothing is best among fewer than two.
    """
    less = values.astype(float).round(2)
    less *= [1 if name == "cl_error" else -1 for name in less]
    by = pd.Series(list(keys), index=less.index, dtype=object)
    named = less.notna().apply(lambda defined: pd.Series(list(models), index=less.index, dtype=object).where(defined))
    return (less == less.groupby(by).transform("min")) & (named.groupby(by).transform("nunique") > 1)


def percent(value: float | None) -> str:
    """A percentage with two decimals, `–` where it is not defined."""
    return NOT_DEFINED if value is None or math.isnan(value) else f"{value:.2f}"


def interval(low: float | None, high: float | None, form: str = ".1f") -> str:
    """A 95 % interval in percent, empty where it is not defined."""
    if low is None or high is None or math.isnan(low) or math.isnan(high):
        return ""
    return f"[{low:{form}}, {high:{form}}]".replace("-", "−")


def to_html(table: Table) -> Markup:
    """The table with its sentences and footnotes as HTML."""

    def title(number: int) -> str:
        row, marks = table.rows[number], table.marks(table.rows[number])
        kind = " ".join(["aside"] * row.aside + ["tier"] * row.heading + ["new"] * table.begins_group(number))
        return f'<span class="{kind}">{escape(row.title)}</span>' + (f"<sup>{marks}</sup>" if marks else "")

    def cell(entry: Entry) -> str:
        text = Markup("<b>{}</b>").format(entry.text) if entry.bold else escape(entry.text)
        return text + (Markup("<small>{}</small>").format(entry.spread) if entry.spread else "")

    style = _styler(table, title, cell, escape)
    style.set_caption(escape(table.title))
    general = "".join(f'\n<p class="note">{escape(sentence)}</p>' for sentence in table.general)
    notes = "".join(f"<li>{escape(note)}</li>" for note in table.notes)
    notes = f'\n<ol class="notes">{notes}</ol>' if notes else ""
    return Markup(f'<div class="wide results">\n{style.to_html(exclude_styles=True)}</div>{general}{notes}\n')


def to_markdown(table: Table) -> str:
    """The table with its sentences and footnotes as Markdown; what stands above a heading is written before it."""

    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"

    lines = [f"### {table.title}", "", line([table.corner, *(" ".join(filter(None, h)) for h in table.headings)])]
    lines.append("|---|" + "---:|" * len(table.headings))
    for row in table.rows:
        marks = f" <sup>{marks}</sup>" if (marks := table.marks(row)) else ""
        title = f"**{row.title}**" if row.heading else row.title
        texts = [f"**{cell.text}**" if cell.bold else cell.text for cell in row.cells]
        lines.append(
            line([title + marks, *(f"{t} {c.spread}".rstrip() for t, c in zip(texts, row.cells, strict=True))])
        )
    lines += [text for sentence in table.general for text in ("", sentence)]
    lines += ["", *(f"{number}. {note}" for number, note in enumerate(table.notes, 1))] if table.notes else []
    return "\n".join(lines) + "\n"


def to_latex(table: Table) -> str:
    """The table as a LaTeX float (packages booktabs and, to fit the page, graphicx), footnotes below it."""

    def title(number: int) -> str:
        row, marks = table.rows[number], table.marks(table.rows[number])
        rule = "\\midrule\n" if table.begins_group(number) else ""
        name = f"\\textit{{{latex(row.title)}}}" if row.heading else latex(row.title)
        return rule + name + (f"\\textsuperscript{{{marks}}}" if marks else "")

    def cell(entry: Entry) -> str:
        text = f"\\textbf{{{latex(entry.text)}}}" if entry.bold else latex(entry.text)
        return text + (f" {{\\scriptsize {latex(entry.spread)}}}" if entry.spread else "")

    style = _styler(table, title, cell, latex)
    tabular = style.to_latex(hrules=True, multicol_align="c", column_format="l" + "r" * len(table.headings))
    notes = [f"\\par\\footnotesize \\textsuperscript{{{n}}} {latex(note)}\n" for n, note in enumerate(table.notes, 1)]
    return (
        "% needs \\usepackage{booktabs,graphicx}\n\\begin{table*}\n\\centering\n"
        f"\\caption{{{latex(' '.join([f'{table.title}.', *table.general]))}}}\n"
        f"\\resizebox{{\\textwidth}}{{!}}{{%\n{tabular.strip()}}}\n{''.join(notes)}\\end{{table*}}\n"
    )


def latex(text: str) -> str:
    """Text as LaTeX prints it literally."""
    return text.translate(str.maketrans({sign: f"\\{sign}" for sign in "&%$#_{}"} | SYMBOLS))


def _styler(table: Table, title: Any, cell: Any, heading: Any) -> Styler:
    """The table for pandas to write; headings have a second level where any group is named.

    Args:
        table: what to write.
        title: writes the title of a row by its number.
        cell: writes a `Entry`.
        heading: writes a heading.
    """
    columns = pd.MultiIndex.from_tuples(table.headings, names=["", table.corner])
    frame = pd.DataFrame([row.cells for row in table.rows], columns=columns)
    if not any(group for group, _ in table.headings):
        frame.columns = columns.droplevel(0)
    return frame.style.format(cell).format_index(title, axis=0).format_index(heading, axis=1)
