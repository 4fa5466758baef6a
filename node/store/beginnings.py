"""What begins with some text, in any case of its letters, in words that an index of each database helps with.

PostgreSQL uses an index on `lower(column)` with `text_pattern_ops` for LIKE, SQLite one that collates NOCASE;
neither uses one for what SQLAlchemy makes of `istartswith`. The indexes stand in node.store.tables.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Boolean, Column, ColumnElement, literal
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

ESCAPE = "/"


class _Begins(FunctionElement[bool]):
    """column LIKE pattern, case-insensitive."""

    type = Boolean()
    inherit_cache = True

    def self_group(self, against: Any = None) -> Any:
        """As it is: SQLAlchemy would compare it with 1 for SQLite, and no index would be used."""
        return self


@compiles(_Begins)
def _lowered(element: _Begins, compiler: Any, **options: Any) -> str:
    column, pattern = (compiler.process(clause, **options) for clause in element.clauses)
    return f"lower({column}) LIKE lower({pattern}) ESCAPE '{ESCAPE}'"


@compiles(_Begins, "sqlite")
def _as_it_is(element: _Begins, compiler: Any, **options: Any) -> str:
    """LIKE ignores the case of ASCII letters there, and needs the bare column to use the index."""
    column, pattern = (compiler.process(clause, **options) for clause in element.clauses)
    return f"{column} LIKE {pattern} ESCAPE '{ESCAPE}'"


def begins(column: Column[Any], words: str) -> ColumnElement[bool]:
    """Whether the column begins with these words; no character of them is a wildcard."""
    for special in (ESCAPE, "%", "_"):
        words = words.replace(special, ESCAPE + special)
    return _Begins(column, literal(f"{words}%"))
