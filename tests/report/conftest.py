"""Fixtures of the report tests."""

from pathlib import Path

import pytest
from written_runs import write_run


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    return [
        write_run(tmp_path / "first", error=100 / 6, f1_plus=70.004, seed=1),
        write_run(tmp_path / "second", error=0.0, f1_plus=70.003, seed=2),
    ]
