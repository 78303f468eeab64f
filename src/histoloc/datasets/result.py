"""What is left of a data set once it is a table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class TableResult:
    """A table that was written, and what to tell its user.

    Attributes:
        table: the CSV file.
        warnings: one sentence each.
        remarks: lines on its contents, besides its counts.
        failed: the reason by name of each slide that gave no rows.
    """

    table: Path
    warnings: Sequence[str] = ()
    remarks: Sequence[str] = ()
    failed: Mapping[str, str] = field(default_factory=dict)
