"""One self-contained HTML page about one or several runs: table, pictures, curves, settings."""

from histoloc.report.html import write_report
from histoloc.report.rows import runs_table
from histoloc.report.tables import to_html, to_latex, to_markdown
from histoloc.results import Run, read_runs, results_frame

__all__ = ["Run", "read_runs", "results_frame", "runs_table", "to_html", "to_latex", "to_markdown", "write_report"]
