"""Fixtures that every folder of tests shares."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data: HISTOLOC_DATA, or `../shared/data` beside the checkout; skips where absent."""
    folder = Path(os.environ.get("HISTOLOC_DATA") or Path(__file__).parents[2] / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no real data: {folder} is absent and HISTOLOC_DATA does not name a folder")
    return folder
