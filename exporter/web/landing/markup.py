"""HTML that cannot be broken by what is in it: text is escaped unless an element was made of it here."""

from html import escape


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def element(tag: str, *content: str, **attributes: str | None) -> Markup:
    """Return an element; in names of attributes `_` stands for `-`, at the end for nothing. None: no attribute."""
    named = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{escape(value)}"'
        for name, value in attributes.items()
        if value is not None
    )
    return Markup(f"<{tag}{named}>{joined(*content)}</{tag}>")


def joined(*content: str) -> Markup:
    """Return parts one after the other."""
    return Markup("".join(part if isinstance(part, Markup) else escape(part) for part in content))
