"""The table of a benchmark as Markdown, HTML and LaTeX."""

from __future__ import annotations

from html import escape
from itertools import groupby

from histoloc.benchmark.tables import Entry, Heading, Line, Table

_STYLE = """body { font: 15px/1.45 "Helvetica Neue", Helvetica, Arial, sans-serif; margin: 2rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding-bottom: .5rem; }
th, td { padding: .3rem .55rem; text-align: right; vertical-align: top; }
th:first-child { text-align: left; } thead th.group { text-align: center; border-bottom: 1px solid #999; }
thead tr:first-child > * { border-top: 1.5px solid; } thead tr:last-child > *, tbody tr:last-child > * {
  border-bottom: 1.5px solid; }
tr.new > * { border-top: 1px solid #ccc; } small { display: block; color: #666; white-space: nowrap; }
p, ol { max-width: 60rem; font-size: .9rem; color: #444; }
"""
_LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "&": r"\&",
        "%": r"\%",
        "$": r"\$",
        "#": r"\#",
        "_": r"\_",
        "{": r"\{",
        "}": r"\}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "–": "--",
        "−": "$-$",
        "±": r"$\pm$",
        "×": r"$\times$",
        "Δ": r"$\Delta$",
        "λ": r"$\lambda$",
        "τ": r"$\tau$",
        "⁺": "$^{+}$",
        "⁻": "$^{-}$",
    }
)


def to_markdown(table: Table) -> str:
    """The table with its footnotes as Markdown; a column's group is written into its heading."""
    heads = [f"{heading.prefix} {heading.text}".strip() for heading in table.headings]
    lines = [
        f"### {table.title}",
        "",
        "| " + " | ".join(["Method", *map(_pipe, heads)]) + " |",
        "|---|" + "---:|" * len(heads),
    ]
    for line in table.lines:
        marks = f" <sup>{','.join(map(str, line.notes))}</sup>" if line.notes else ""
        lines.append("| " + " | ".join([_pipe(line.title) + marks, *map(_markdown, line.entries)]) + " |")
    lines += [text for sentence in table.general for text in ("", sentence)]
    lines += ["", *(f"{number}. {note}" for number, note in enumerate(table.notes, 1))] if table.notes else []
    return "\n".join(lines) + "\n"


def to_html(table: Table) -> str:
    """The table with its footnotes as an HTML fragment: `table.results`, `p.note`, `ol.notes`."""
    rows = []
    before = table.lines[0].group if table.lines else ""
    for line in table.lines:
        marks = f"<sup>{','.join(map(str, line.notes))}</sup>" if line.notes else ""
        new, before = line.group != before, line.group
        cells = "".join(f'<td class="num">{_html(entry)}</td>' for entry in line.entries)
        kind = ' class="value new"' if new else ' class="value"'
        rows.append(f'<tr{kind}><th scope="row">{escape(line.title)}{marks}</th>{cells}</tr>')
    notes = "".join(f"<li>{escape(note)}</li>" for note in table.notes)
    return "\n".join(
        [
            f'<div class="wide"><table class="results bench"><caption>{escape(table.title)}</caption>',
            _html_head(table.headings),
            "<tbody>",
            *rows,
            "</tbody></table></div>",
            *(f'<p class="note">{escape(sentence)}</p>' for sentence in table.general),
            *([f'<ol class="notes">{notes}</ol>'] if notes else []),
        ]
    )


def to_html_page(table: Table) -> str:
    """`to_html` as a page of its own."""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(table.title)}</title>\n'
        f"<style>\n{_STYLE}</style></head>\n<body>\n{to_html(table)}\n</body></html>\n"
    )


def to_latex(table: Table) -> str:
    """The table as a LaTeX float (packages booktabs and, to fit the page, graphicx), footnotes below it."""
    groups = _groups(table.headings)
    top, rules, at = [""], "", 2
    for group, width in groups:
        top.append(f"\\multicolumn{{{width}}}{{c}}{{{latex(group)}}}" if group else " & " * (width - 1))
        rules += f"\\cmidrule(lr){{{at}-{at + width - 1}}}" if group else ""
        at += width
    lines = [
        "% needs \\usepackage{booktabs,graphicx}",
        "\\begin{table*}",
        "\\centering",
        f"\\caption{{{latex(table.title)}. {latex(' '.join(table.general))}}}",
        "\\resizebox{\\textwidth}{!}{%",
        f"\\begin{{tabular}}{{l{'r' * len(table.headings)}}}",
        "\\toprule",
        " & ".join(top) + " \\\\",
        rules,
        " & ".join(["Method", *(latex(heading.text) for heading in table.headings)]) + " \\\\",
        "\\midrule",
        *_latex_rows(table.lines),
        "\\bottomrule",
        "\\end{tabular}}",
        *(f"\\par\\footnotesize \\textsuperscript{{{n}}} {latex(note)}" for n, note in enumerate(table.notes, 1)),
        "\\end{table*}",
    ]
    return "\n".join(line for line in lines if line) + "\n"


def latex(text: str) -> str:
    """Text as LaTeX prints it literally."""
    return text.translate(_LATEX)


def _latex_rows(lines: tuple[Line, ...]) -> list[str]:
    rows = []
    before = lines[0].group if lines else ""
    for line in lines:
        if line.group != before:
            rows.append("\\midrule")
            before = line.group
        marks = f"\\textsuperscript{{{','.join(map(str, line.notes))}}}" if line.notes else ""
        rows.append(" & ".join([latex(line.title) + marks, *map(_latex_entry, line.entries)]) + " \\\\")
    return rows


def _latex_entry(entry: Entry) -> str:
    text = f"\\textbf{{{latex(entry.text)}}}" if entry.bold else latex(entry.text)
    return text + (f" {{\\scriptsize {latex(entry.spread)}}}" if entry.spread else "")


def _groups(headings: tuple[Heading, ...]) -> list[tuple[str, int]]:
    """Neighbouring headings of one group, as name of the group and number of columns."""
    return [(group, len(list(members))) for group, members in groupby(headings, key=lambda heading: heading.group)]


def _html_head(headings: tuple[Heading, ...]) -> str:
    top = "".join(
        f'<th class="group" scope="colgroup" colspan="{width}">{escape(group)}</th>'
        if group
        else f'<td colspan="{width}"></td>'
        for group, width in _groups(headings)
    )
    heads = "".join(f'<th scope="col" class="num">{escape(heading.text)}</th>' for heading in headings)
    return f'<thead><tr><td></td>{top}</tr><tr><th scope="col">Method</th>{heads}</tr></thead>'


def _html(entry: Entry) -> str:
    text = f"<b>{escape(entry.text)}</b>" if entry.bold else escape(entry.text)
    return text + (f"<small>{escape(entry.spread)}</small>" if entry.spread else "")


def _markdown(entry: Entry) -> str:
    text = f"**{_pipe(entry.text)}**" if entry.bold else _pipe(entry.text)
    return text + (f" {_pipe(entry.spread)}" if entry.spread else "")


def _pipe(text: str) -> str:
    return text.replace("|", "\\|")
