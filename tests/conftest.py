"""What all tests share: golden pages, and which of them a worker takes together.

The expected text of a golden page lies beside its test; `--update-golden` writes it anew for a review to read.
"""

from collections.abc import Callable
from pathlib import Path

import pytest

Golden = Callable[[str, str], None]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write the golden pages anew")


@pytest.hookimpl(tryfirst=True)  # before the workers' plugin reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep the tests of a file with one worker, since they share fixtures.

    Those of the demo stay together, too, so that it runs once, and come last: it runs until the end.
    """
    for item in items:
        item.add_marker(pytest.mark.xdist_group("demo" if _is_of_demo(item) else item.path.name))
    items.sort(key=_is_of_demo)


def _is_of_demo(item: pytest.Item) -> bool:
    return "demo" in getattr(item, "fixturenames", ())


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Golden:
    def check(name: str, text: str) -> None:
        path = Path(__file__).parent / "golden" / name
        if request.config.getoption("--update-golden"):
            path.write_text(text, encoding="utf-8")
        assert path.exists(), f"{path} is missing: write it with `make golden`"
        assert text == path.read_text(encoding="utf-8")

    return check
