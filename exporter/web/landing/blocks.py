"""What the page's sections are built of: tiles, cards, facts, tables, bars and words for states."""

from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Final

from exporter.web.landing.markup import Markup, element, joined

_WIDE: Final = 100.0


class Tone(StrEnum):
    """How serious a word is; the colour only repeats what the word says."""

    GOOD = "good"
    WARN = "warn"
    BAD = "bad"
    PLAIN = "plain"


def section(key: str, title: str, *content: str) -> Markup:
    """Return a section under its heading; `key` makes its ids."""
    return element("section", element("h2", title, id=f"{key}-title"), *content, id=key, aria_labelledby=f"{key}-title")


def card(title: str, *content: str) -> Markup:
    """Return one thing of several with its own heading."""
    return element("article", element("h3", title), *content, class_="card")


def cards(content: Iterable[str]) -> Markup:
    """Return cards side by side."""
    return element("div", *content, class_="cards")


def badge(word: str, tone: Tone) -> Markup:
    """Return a word for a state."""
    return element("span", word, class_=f"badge {tone}")


def facts(pairs: Iterable[tuple[str, str]]) -> Markup:
    """Return names and values."""
    rows = (element("div", element("dt", name), element("dd", value)) for name, value in pairs)
    return element("dl", *rows, class_="facts")


def note(*content: str) -> Markup:
    """Return a sentence beside the figures."""
    return element("p", *content, class_="note")


def table(key: str, head: Sequence[str], rows: Iterable[Sequence[str]], *, words: int, caption: str = "") -> Markup:
    """Return a table that scrolls sideways where it is too wide; its first `words` columns are words, then numbers.

    Without a caption it is named by the heading of its section.
    """
    title = element("caption", caption, class_="unseen") if caption else ""
    header = element("tr", *(element("th", name, scope="col", class_=_of(at, words)) for at, name in enumerate(head)))
    body = (element("tr", element("th", row[0], scope="row"), *_cells(row, words)) for row in rows)
    grid = element(
        "table",
        title,
        element("thead", header),
        element("tbody", *body),
        aria_labelledby=None if caption else f"{key}-title",
    )
    named: Mapping[str, str] = {"aria_label": caption} if caption else {"aria_labelledby": f"{key}-title"}
    return element("div", grid, class_="scroll", role="group", tabindex="0", id=f"{key}-table", **named)


def _cells(row: Sequence[str], words: int) -> Iterable[Markup]:
    return (element("td", cell, class_=_of(at, words)) for at, cell in enumerate(row[1:], start=1))


def _of(column: int, words: int) -> str | None:
    return None if column < words else "n"


def bar(name: str, ratio: float, text: str, tone: Tone, marks: Iterable[float] = ()) -> Markup:
    """Return a bar that is full at 1, with marks on it; `text` says the same in words."""
    full = min(max(ratio, 0.0), 1.0)
    drawn = joined(
        element("rect", width="100", height="10", class_="track"),
        element("rect", width=_at(full), height="10", class_="fill"),
        *(element("line", x1=_at(mark), x2=_at(mark), y1="0", y2="10") for mark in marks if 0 < mark < 1),
    )
    return element(
        "svg", drawn, viewBox="0 0 100 10", preserveAspectRatio="none", class_=f"bar {tone}", role="meter",
        aria_label=name, aria_valuemin="0", aria_valuemax="1", aria_valuenow=f"{full:.4g}", aria_valuetext=text,
    )  # fmt: skip


def _at(ratio: float) -> str:
    return f"{ratio * _WIDE:.4g}"
