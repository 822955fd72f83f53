"""The few parts of HTML that a report needs. Whatever comes in as `str` is escaped; `Markup` is not."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import NewType

from ..errors import encodable
from .style import STYLE

Markup = NewType("Markup", str)
"""HTML that was put together here."""

MISSING = "–"
"""Of a value that is not known."""


def document(title: str, body: Sequence[Markup]) -> str:
    """A page that a browser shows without asking anybody for anything: its policy forbids it.

    In ASCII, whatever is in it: files are written and read in many encodings, and names can be of none.
    """
    lines = (
        *("<!DOCTYPE html>", '<html lang="en">', "<head>", '<meta charset="utf-8">', _POLICY),
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        *(f"<title>{escape(title)}</title>", f"<style>{STYLE}</style>", "</head>", "<body>"),
        *body,
        *("</body>", "</html>", ""),
    )
    return encodable("\n".join(lines)).encode("ascii", "xmlcharrefreplace").decode()


_POLICY = (
    '<meta http-equiv="Content-Security-Policy" '
    "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">"
)


def element(tag: str, *content: str | Markup, kind: str = "") -> Markup:
    """One element; `kind` is its class."""
    attribute = f' class="{kind}"' if kind else ""
    return Markup(f"<{tag}{attribute}>{''.join(content)}</{tag}>")


def text(value: object) -> Markup:
    """Any value as text."""
    return Markup(escape(str(value)))


def paragraph(words: str, kind: str = "") -> Markup:
    """A paragraph of plain text."""
    return element("p", text(words), kind=kind)


def bullets(lines: Sequence[str | Markup], kind: str = "") -> Markup:
    """A list of markup."""
    return element("ul", *(element("li", line) for line in lines), kind=kind)


def section(title: str, *parts: Markup) -> Markup:
    """A heading and what follows it."""
    return Markup("\n".join(("<section>", element("h2", text(title)), *parts, "</section>")))


def table(head: Sequence[str], rows: Sequence[Sequence[object]], caption: str = "") -> Markup:
    """A table whose first column names its rows; columns that hold numbers alone are set to the right."""
    numeric = [all(_is_number(row[column]) for row in rows) for column in range(len(head))]

    def cells(tag: str, row: Sequence[object]) -> Markup:
        return Markup(
            "".join(
                element(
                    "th" if column == 0 else tag,
                    text(value),
                    kind="number" if numeric[column] and column else "",
                )
                for column, value in enumerate(row)
            )
        )

    parts = [element("caption", text(caption))] if caption else []
    parts.append(element("thead", element("tr", cells("th", head))))
    parts.append(element("tbody", *(element("tr", cells("td", row)) for row in rows)))
    return element("div", element("table", *parts), kind="wide")


def _is_number(value: object) -> bool:
    """Whether a cell begins as a number does, or is empty."""
    first = str(value)[:1]
    return first.isdigit() or first in ("-", "+", MISSING, "")


def figure(picture: str, title: str, words: str) -> Markup:
    """A picture, its title, and what is drawn how."""
    caption = element("figcaption", element("b", text(title)), text(f" {words}" if words else ""))
    return element("figure", caption, Markup(picture))


def folded(title: str, *parts: Markup) -> Markup:
    """Something to be opened by a click."""
    return element("details", element("summary", text(title)), *parts)
