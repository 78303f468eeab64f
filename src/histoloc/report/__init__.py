"""One self-contained HTML page about one or several runs: table, pictures, curves, settings."""

from histoloc.report.html import write_report
from histoloc.report.read import Run, read_runs
from histoloc.report.tables import results_frame, to_html, to_markdown

__all__ = ["Run", "read_runs", "results_frame", "to_html", "to_markdown", "write_report"]
