"""The tables of a benchmark: printed line by line while it runs, and kept for JSON and the documentation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rskd.bench import computer

WIDTH = 56
"""Of the first column, in characters."""


class Sheet:
    """What one benchmark measures."""

    def __init__(self, name: str, *, quick: bool = False) -> None:
        self.quick = quick
        """Whether fewer rounds will do."""
        self.value: dict[str, Any] = {"name": name, "quick": quick, "computer": computer(), "tables": []}
        """Ready for JSON."""

    def rounds(self, usual: int) -> int:
        """Return how many rounds to do."""
        return 3 if self.quick else usual

    def table(self, title: str, *columns: str) -> None:
        """Begin a table; a column is its head, and after a bar the format of its figures: ``ms|.1f``."""
        heads, formats = zip(*(column.rpartition("|")[::2] for column in columns), strict=True)
        self.value["tables"].append({"title": title, "columns": heads, "formats": formats, "rows": [], "notes": []})
        _say(f"\n{title}")
        _say(_padded("", heads, heads))

    def row(self, name: str, *figures: float | str | None) -> None:
        """Add a line to the table."""
        table = self.value["tables"][-1]
        table["rows"].append([name, *figures])
        _say(_padded(name, cells(figures, table["formats"]), table["columns"]))

    def note(self, words: str) -> None:
        """Say something about the last table."""
        self.value["tables"][-1]["notes"].append(words)
        _say(words)


def cells(figures: Sequence[float | str | None], formats: Sequence[str]) -> list[str]:
    """Return figures as words.

    Examples
    --------
    >>> cells([1.234, None, "2 / 3"], [".1f", ".0f", ""])
    ['1.2', '–', '2 / 3']
    """
    return [
        "–" if figure is None else figure if isinstance(figure, str) else format(figure, wanted)
        for figure, wanted in zip(figures, formats, strict=True)
    ]


def markdown(value: Mapping[str, Any]) -> str:
    """Return what was stored as tables for the documentation."""
    parts = []
    for table in value["tables"]:
        lines = [["", *table["columns"]], ["---", *["---:"] * len(table["columns"])]]
        lines += [[name, *cells(figures, table["formats"])] for name, *figures in table["rows"]]
        parts += [f"{table['title']}:", "\n".join(f"| {' | '.join(line)} |" for line in lines), *table["notes"]]
    parts.append(f"Measured on {value['computer']['processor']} ({value['computer']['cores']} cores).")
    return "\n\n".join(parts) + "\n"


def _padded(name: str, words: Sequence[str], heads: Sequence[str]) -> str:
    fitted = (word.rjust(max(len(head), 9)) for word, head in zip(words, heads, strict=True))
    return f"  {name:<{WIDTH}}" + "  ".join(fitted)


def _say(words: str) -> None:
    print(words, flush=True)
