"""What several end-to-end tests share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.demos import Demo, running_demo
from tests.nvml.stub import build_or_skip


@pytest.fixture(scope="session")
def nvml_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The driver's library of a machine whose GPUs are a text file."""
    return build_or_skip(tmp_path_factory.mktemp("nvml"))


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """The demo, started once for all tests that look at it."""
    with running_demo(tmp_path_factory.mktemp("demo")) as running:
        yield running
