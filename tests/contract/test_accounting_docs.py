"""The examples of docs/accounting.md come to what they say."""

import re
from decimal import Decimal
from fractions import Fraction

import pytest

from exporter.metrics import ROWS
from tests.promql import ROOT

PAGE = (ROOT / "docs/accounting.md").read_text(encoding="utf-8")
SECTION = PAGE.split("## Every formula, with an example")[1].split("\n## ")[0]
EXAMPLES = re.findall(r"^\| ([^|]+) \| [^|]+ \| ([^|=]+) = ([\d.]+) \|$", SECTION, re.MULTILINE)


def value(expression: str) -> Fraction:
    """Compute what stands there, exactly."""
    assert re.fullmatch(r"[\d.()+×÷−\s]+", expression), expression  # noqa: RUF001 - as the page writes them
    python = re.sub(r"[\d.]+", lambda found: f"Fraction('{found[0]}')", expression)
    for sign, operator in (("×", "*"), ("÷", "/"), ("−", "-")):  # noqa: RUF001
        python = python.replace(sign, operator)
    result = eval(python, {"Fraction": Fraction})
    assert isinstance(result, Fraction)
    return result


def test_every_row_has_an_example():
    assert len(EXAMPLES) == SECTION.count("\n| ") - 1 >= 20


@pytest.mark.parametrize(("figure", "expression", "said"), EXAMPLES, ids=[figure for figure, *_ in EXAMPLES])
def test_an_example_comes_to_what_it_says(figure: str, expression: str, said: str):
    places = -int(Decimal(said).as_tuple().exponent)
    assert round(value(expression), places) == Fraction(said)
    if name := re.fullmatch(r"`(\w+)`", figure):
        assert name[1] in {row.name for row in ROWS}
