"""The template of an HL7 message: which segment and field gets which value. Refuses what it cannot read.

The file explains itself: node/channels/oru_r01.txt is the one used unless a site has its own.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from node.domain.errors import SettingsError

DEFAULT = Path(__file__).with_name("oru_r01.txt")
OF_THE_NODE = (1, 2, 7, 9, 10, 11, 12, 18)
"""Fields of MSH that say what the message is; a template must not."""
ESCAPES = str.maketrans(  # HL7 v2.5.1, 2.7.1
    {"\\": "\\E\\", "|": "\\F\\", "^": "\\S\\", "&": "\\T\\", "~": "\\R\\", "\n": "\\.br\\"}
)
_SEGMENT = re.compile(r"([A-Z][A-Z0-9]{2})(?:\s+(?:(each class)|when (\w+)))?")
_FIELD = re.compile(r"\s+(\d{1,3})\s+(\S.*)")
_NAME = re.compile(r"\{(\w+)\}")


class Structured(str):
    """A value that holds separators of its own, and is escaped already."""


@dataclass(frozen=True)
class Segment:
    name: str
    fields: Mapping[int, str]
    each_class: bool = False
    when: str = ""


def escaped(value: str) -> str:
    """Text that may stand in any field."""
    if isinstance(value, Structured):
        return value
    kept = "".join(c for c in value if c == "\n" or c.isprintable())
    return kept.translate(ESCAPES)


def read_template(path: Path, names: Collection[str]) -> tuple[Segment, ...]:
    """Raises SettingsError, which names the line, for a template that is not understood."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"template {path} cannot be read: {error}") from None
    segments: list[tuple[re.Match[str], dict[int, str]]] = []
    for number, line in enumerate(lines, start=1):
        where = f"template {path}, line {number}"
        if not line.strip() or line.startswith("#"):
            continue
        if (head := _SEGMENT.fullmatch(line.rstrip())) is not None:
            segments.append((head, {}))
        elif (field := _FIELD.fullmatch(line.rstrip())) is not None and segments:
            segments[-1][1][int(field[1])] = field[2]
        else:
            raise SettingsError(f"{where}: {line.strip()!r} is no segment and no field of one")
        asked = {*_NAME.findall(line), *((head[3],) if head and head[3] else ())}
        if unknown := asked - set(names):
            raise SettingsError(f"{where}: nothing is called {', '.join(sorted(unknown))}")
    found = tuple(Segment(head[1], fields, bool(head[2]), head[3] or "") for head, fields in segments)
    if not found or found[0].name != "MSH" or not {"PID", "OBX"} <= {segment.name for segment in found}:
        raise SettingsError(f"template {path}: a result begins with MSH, and has PID and OBX")
    if taken := set(found[0].fields) & set(OF_THE_NODE):
        raise SettingsError(f"template {path}: MSH-{min(taken)} is set by the node; leave it out")
    return found


def filled(
    template: Sequence[Segment],
    header: Mapping[int, str],
    values: Mapping[str, str],
    classes: Sequence[Mapping[str, str]],
) -> str:
    """The message: segments ended by carriage returns. `header` are the fields of MSH that the node sets."""
    counts: dict[str, int] = {}
    lines = []
    for segment, known in _expanded(template, values, classes):
        counts[segment.name] = counts.get(segment.name, 0) + 1
        whole = {**known, "n": str(counts[segment.name])}
        fields = {number: _fill(text, whole) for number, text in segment.fields.items()}
        if segment.name == "MSH":
            fields |= header
        lines.append(_line(segment.name, fields))
    return "".join(f"{line}\r" for line in lines)


def _expanded(
    template: Sequence[Segment], values: Mapping[str, str], classes: Sequence[Mapping[str, str]]
) -> Iterator[tuple[Segment, Mapping[str, str]]]:
    for segment in template:
        if segment.each_class:
            yield from ((segment, {**values, **one}) for one in classes)
        elif not segment.when or values.get(segment.when):
            yield segment, values


def _fill(text: str, values: Mapping[str, str]) -> str:
    """Separators that nothing follows are left out."""
    return _NAME.sub(lambda match: escaped(values.get(match[1], "")), text).rstrip("^")


def _line(name: str, fields: Mapping[int, str]) -> str:
    first = 2 if name == "MSH" else 1  # MSH-1 is the separator itself
    last = max(fields, default=0)
    return "|".join([name, *(fields.get(number, "") for number in range(first, last + 1))])
