"""A document as a few kinds of block, and its two forms: Markdown and one self-contained HTML page."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jinja2 import Environment, StrictUndefined


@dataclass(frozen=True)
class Heading:
    text: str
    depth: int = 2


@dataclass(frozen=True)
class Words:
    """A paragraph; `loud` sets it apart from the others."""

    text: str
    loud: bool = False


@dataclass(frozen=True)
class Points:
    """A list of short statements."""

    items: Sequence[str]


@dataclass(frozen=True)
class Table:
    """Cells as text; the first column names the row."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Image:
    """A picture in figures/ by its name, with its caption."""

    name: str
    caption: str


Block = Heading | Words | Points | Table | Image


def markdown(title: str, blocks: Sequence[Block]) -> str:
    """The document as Markdown that names its pictures as figures/NAME.png."""
    return "\n\n".join([f"# {_flat(title)}", *(_markdown(block) for block in blocks)]) + "\n"


def _markdown(block: Block) -> str:
    match block:
        case Heading():
            return f"{'#' * block.depth} {_flat(block.text)}"
        case Words():
            return f"**{_flat(block.text)}**" if block.loud else _flat(block.text)
        case Points():
            return "\n".join(f"- {_flat(item)}" for item in block.items)
        case Table():
            return table(block)
        case Image():
            return f"![{_flat(block.caption)}](figures/{block.name}.png)\n\n*{_flat(block.caption)}*"


def table(block: Table) -> str:
    """A Markdown table; a bar in a cell is escaped."""
    rows = [block.head, ["---"] * len(block.head), *block.rows]
    return "\n".join(
        "| " + " | ".join(_flat(cell).replace("|", "\\|") for cell in row) + " |" for row in rows
    )


def _flat(text: str) -> str:
    return " ".join(text.split()).replace("<", "&lt;")


def html(title: str, blocks: Sequence[Block], pictures: Mapping[str, bytes]) -> str:
    """One page without any address in it: pictures (PNG, by name) are data URIs."""
    data = {name: base64.b64encode(png).decode("ascii") for name, png in pictures.items()}
    kinds = [(type(block).__name__, block) for block in blocks]
    return _PAGE.render(title=title, blocks=kinds, data=data)


_PAGE = Environment(
    autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
).from_string(
    """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
body { font: 16px/1.5 system-ui, "DejaVu Sans", sans-serif; color: #1c1c1c; background: #fff; margin: 0 auto;
  max-width: 62rem; padding: 1.5rem; }
h1 { font-size: 1.7rem; line-height: 1.25; } h2 { margin-top: 2.4rem; border-bottom: 1px solid #ccc; }
h3 { margin-top: 1.8rem; }
.loud { border-left: 5px solid #b00020; background: #fdf0f1; padding: .7rem 1rem; font-weight: 600; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .86rem; font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid #ddd; padding: .32rem .7rem .32rem 0; text-align: left;
  vertical-align: top; }
thead th { border-bottom: 2px solid #888; vertical-align: bottom; }
tbody th { font-weight: 600; } .whole { white-space: nowrap; }
figure { margin: 1.6rem 0; break-inside: avoid; } figure img { max-width: 100%; height: auto; }
figcaption { font-size: .88rem; color: #444; }
</style>
</head>
<body>
<h1>{{ title }}</h1>
{% for kind, block in blocks %}
{% if kind == "Heading" %}
<h{{ block.depth }}>{{ block.text }}</h{{ block.depth }}>
{% elif kind == "Words" %}
<p{% if block.loud %} class="loud"{% endif %}>{{ block.text }}</p>
{% elif kind == "Points" %}
<ul>
{% for item in block.items %}
<li>{{ item }}</li>
{% endfor %}
</ul>
{% elif kind == "Table" %}
<div class="wide"><table>
<thead><tr>{% for cell in block.head %}<th scope="col">{{ cell }}</th>{% endfor %}</tr></thead>
<tbody>
{% for row in block.rows %}
<tr><th scope="row">{{ row[0] }}</th>
{% for cell in row[1:] %}
<td{% if cell|length < 40 %} class="whole"{% endif %}>{{ cell }}</td>
{% endfor %}
</tr>
{% endfor %}
</tbody>
</table></div>
{% elif kind == "Image" %}
<figure><img alt="{{ block.caption }}" src="data:image/png;base64,{{ data[block.name] }}">
<figcaption>{{ block.caption }}</figcaption></figure>
{% endif %}
{% endfor %}
</body>
</html>
"""
)
