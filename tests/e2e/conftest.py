"""What several end-to-end tests share."""

from pathlib import Path

import pytest

from tests.nvml.stub import build_or_skip


@pytest.fixture(scope="session")
def nvml_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The driver's library of a machine whose GPUs are a text file."""
    return build_or_skip(tmp_path_factory.mktemp("nvml"))
