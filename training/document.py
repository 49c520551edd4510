"""A document of a few kinds of blocks, written as one self-contained HTML page and as Markdown.

What a document says is decided elsewhere (`report`); here is how it looks. Text may come from users (file names,
sources): the HTML template escapes everything, and `markdown` escapes what Markdown would read as markup.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Union

TEMPLATES = Path(__file__).parent / "templates"
HTML, MARKDOWN, PICTURES = "report.html", "report.md", "pictures"
INK, PAPER = "#123456", "#fedcba"  # what a drawing calls its text and its ground; replaced by what the page has
DARK, WHITE = "#1a1a1a", "#ffffff"  # of a picture in a file of its own

SCALE = 1.42  # CSS pixels of a point in a drawing
HIDDEN = ("Cc", "Cs", "Zl", "Zp")  # categories of Unicode: controls, halves of characters, line ends
TURNING = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


@dataclass(frozen=True)
class Paragraph:
    """Running text; `caution` sets it apart: a figure beside it is not what it seems."""

    text: str
    caution: bool = False
    kind: str = "paragraph"


@dataclass(frozen=True)
class Listing:
    """Points."""

    points: tuple[str, ...]
    kind: str = "listing"


@dataclass(frozen=True)
class Table:
    """A table with a caption.

    Attributes
    ----------
    caption : what it shows.
    header : of every column; the first names the row.
    rows : cells as text.
    left : indices of the columns of words; the others are set as numbers.
    marked : indices of rows that stand out.
    notes : below the table.
    """

    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    left: tuple[int, ...] = (0,)
    marked: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()
    kind: str = "table"


@dataclass(frozen=True)
class Picture:
    """A drawing as SVG.

    Attributes
    ----------
    name : of its file, beside the Markdown; lower-case letters, digits and hyphens.
    svg : from `pictures`, in `INK` on `PAPER`.
    alt : what it shows, for those who do not see it.
    caption : below it.
    """

    name: str
    svg: str
    alt: str
    caption: str
    kind: str = "picture"


@dataclass(frozen=True)
class Row:
    """Pictures side by side where there is room."""

    pictures: tuple[Picture, ...]
    kind: str = "row"


@dataclass(frozen=True)
class Headline:
    """The few figures to remember: (name, figure, what to know about it)."""

    figures: tuple[tuple[str, str, str], ...]
    kind: str = "headline"


@dataclass(frozen=True)
class Card:
    """One example: its name, facts as (name, value), and its picture."""

    title: str
    facts: tuple[tuple[str, str], ...]
    picture: Picture


@dataclass(frozen=True)
class Gallery:
    """Examples under one heading."""

    title: str
    text: str
    cards: tuple[Card, ...]
    kind: str = "gallery"


@dataclass(frozen=True)
class Code:
    """Text as it stands in a file, folded away in the page."""

    summary: str
    text: str
    language: str
    kind: str = "code"


Block = Union[Paragraph, Listing, Table, Row, Picture, Headline, Gallery, Code]


@dataclass(frozen=True)
class Section:
    """A heading with blocks; `key` is its anchor."""

    key: str
    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Document:
    """A title, what it is about in a sentence or two, and sections."""

    title: str
    subtitle: str
    abstract: str
    sections: tuple[Section, ...]


def write(document: Document, folder: Path) -> None:
    """Write `report.html`, and `report.md` with its drawings in `pictures/`."""
    (folder / HTML).write_text(to_html(document), encoding="utf-8")
    (folder / MARKDOWN).write_text(to_markdown(document), encoding="utf-8")
    (folder / PICTURES).mkdir(exist_ok=True)
    for picture in pictures_of(document):
        (folder / PICTURES / f"{picture.name}.svg").write_text(standalone(picture), encoding="utf-8")


def pictures_of(document: Document) -> Iterator[Picture]:
    """Every picture of a document, in reading order."""
    for block in (block for section in document.sections for block in section.blocks):
        if isinstance(block, Picture):
            yield block
        elif isinstance(block, Row):
            yield from block.pictures
        elif isinstance(block, Gallery):
            yield from (card.picture for card in block.cards)


def to_html(document: Document) -> str:
    """One page: style and drawings inside, no script, nothing that is fetched."""
    from markupsafe import Markup

    environment = _environment(autoescape=True)
    environment.filters["inline"] = lambda picture: Markup(inline(picture))
    return str(environment.get_template("report.html.j2").render(document=document))


def to_markdown(document: Document) -> str:
    """The same as Markdown; drawings are links into `pictures/`."""
    environment = _environment(autoescape=False)
    environment.filters["md"] = markdown
    environment.filters["cells"] = lambda row: " | ".join(markdown(cell) for cell in row)
    text = str(environment.get_template("report.md.j2").render(document=document, folder=PICTURES))
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def _environment(autoescape: bool) -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=autoescape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["shown"] = shown
    environment.filters["fence"] = fence
    return environment


# --- text -------------------------------------------------------------------------------------------------------------


def shown(text: object) -> str:
    """Text on one line without characters that do not show or turn the direction of writing."""
    return "".join("\ufffd" if unicodedata.category(one) in HIDDEN or one in TURNING else one for one in str(text))


def markdown(text: object) -> str:
    """Text that Markdown shows as it is: markup is escaped, an underscore inside a word is none."""
    escaped = re.sub(r"([\\`*<>\[\]|#~&])", r"\\\1", shown(text))
    return re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", escaped)


def fence(text: str) -> str:
    """Backticks for a block of code: more than any run of them inside."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    return "`" * max(3, longest + 1)


# --- drawings ---------------------------------------------------------------------------------------------------------


def inline(picture: Picture) -> str:
    """A drawing for inside the page: the page's own ink, no ground, a name for screen readers, ids of its own."""
    from markupsafe import escape

    title = f'<title id="{picture.name}-title">{escape(shown(picture.alt))}</title>'
    svg = _with_ids(picture.svg, picture.name).replace(INK, "currentColor").replace(PAPER, "none")
    named = f'<svg role="img" aria-labelledby="{picture.name}-title" style="max-width:{width_px(svg):.0f}px" '
    return re.sub(r"(<svg [^>]*>)", lambda found: found[1] + title, svg.replace("<svg ", named, 1), count=1)


def width_px(svg: str) -> float:
    """Width at which a drawing's text is as large as the page's captions, CSS pixels."""
    found = re.search(r'viewBox="[-\d.]+ [-\d.]+ ([\d.]+)', svg)
    return SCALE * float(found[1]) if found else 0.0


def standalone(picture: Picture) -> str:
    """A drawing for a file of its own: dark on white."""
    return picture.svg.replace(INK, DARK).replace(PAPER, WHITE)


def _with_ids(svg: str, name: str) -> str:
    """Ids that no other drawing of the page has, and the references to them."""
    for before in (' id="', "url(#", 'href="#'):
        svg = svg.replace(before, f"{before}{name}-")
    return svg


def cells(rows: Iterable[Iterable[object]]) -> tuple[tuple[str, ...], ...]:
    """Cells as text."""
    return tuple(tuple(str(cell) for cell in row) for row in rows)
