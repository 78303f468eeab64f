"""`histoloc data`: a data set becomes a table."""

import sys
from typing import TYPE_CHECKING

from cyclopts import App

from histoloc.cli.failures import list_failed

if TYPE_CHECKING:
    from histoloc.datasets.result import TableResult


def show_result(result: "TableResult | None") -> None:
    """Tell what a data set became."""
    if result is None:  # help was asked for
        return
    from histoloc.data.table import read_table

    table = read_table(result.table)
    for warning in (*result.warnings, *table.notes):
        print(f"warning: {warning}", file=sys.stderr)
    print("\n".join([table.summary(), *result.remarks, str(result.table)]))
    list_failed(result.failed)


app = App(
    name="data",
    help="Turn a data set into a table (CSV); nothing downstream knows where it came from.",
    result_action=show_result,
)
FAILED = (
    "A second call does only what is missing. Slides that fail are listed in failed.csv; the table is made without "
    "them, and the exit code is 1."
)
# The functions of the data sets are the commands; they are imported when they are called.
for name, function, about in (
    ("glas", "glas:glas_table", "The GlaS challenge's folder -> a table with the published folds, or by patient."),
    ("folder", "folder:folder_table", "One folder of images per class -> a table."),
    ("synthetic", "synthetic.dataset:synthetic_table", "Procedural H&E glands with masks -> images and a table."),
    ("slides", "tiles:slide_tiles", f"Your own slides -> a table of tiles, read from the slides on the fly. {FAILED}"),
    (
        "camelyon16",
        "camelyon16.table:camelyon16_table",
        f"Camelyon16's slides and annotations -> a table of patches. {FAILED}",
    ),
):
    app.command(f"histoloc.datasets.{function}", name=name, help=about)
