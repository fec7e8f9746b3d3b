"""Tables, and their places in the documentation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def write_section(document: Path, name: str, text: str) -> None:
    """Put text between the two marker comments of a section, which are added to the end of a document without them."""
    first, last = f"<!-- measured: {name} -->", f"<!-- end of measured: {name} -->"
    old = document.read_text(encoding="utf-8") if document.is_file() else ""
    if first not in old or last not in old:
        old = f"{old.rstrip()}\n\n{first}\n{last}\n"
    before, rest = old.split(first, 1)
    after = rest.split(last, 1)[1]
    document.parent.mkdir(parents=True, exist_ok=True)
    document.write_text(f"{before}{first}\n\n{text.strip()}\n\n{last}{after}", encoding="utf-8")
