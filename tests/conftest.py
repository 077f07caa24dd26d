"""What all tests share: golden pages, and their order.

The expected text of a golden page lies beside its test; `--update-golden` writes it anew for a review to read.
"""

from collections.abc import Callable
from pathlib import Path

import pytest

Golden = Callable[[str, str], None]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write the golden pages anew")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the tests of the demo last: it runs from then on until the end, and takes its part of the machine."""
    items.sort(key=lambda item: "demo" in getattr(item, "fixturenames", ()))


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Golden:
    def check(name: str, text: str) -> None:
        path = Path(__file__).parent / "golden" / name
        if request.config.getoption("--update-golden"):
            path.write_text(text, encoding="utf-8")
        assert path.exists(), f"{path} is missing: write it with `make golden`"
        assert text == path.read_text(encoding="utf-8")

    return check
