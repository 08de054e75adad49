"""What tests of published data need. The repository holds none of it; where it lies, they run."""

from pathlib import Path

import pytest

from micronet_lib.lab.host.places import data_root

IMAGES = "cifar-100-python/test"


def require(*files: str | Path) -> None:
    """Skip the test that runs if a file is missing under the data folder."""
    missing = [str(file) for file in files if not (data_root() / file).is_file()]
    if missing:
        pytest.skip(f"no {', '.join(missing)}: python -m micronet_lib data fetch")
