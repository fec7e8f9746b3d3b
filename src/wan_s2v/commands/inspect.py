"""`wan-s2v inspect`: what a file says about its making, as lines for people or as plain values."""

from __future__ import annotations

from typing import Any, Final

from rich.console import Console
from rich.table import Table

from wan_s2v.inspection import Inspection

# Of the record beside a file, what tells how it was made; all of it is in the JSON.
_TOLD: Final = ("version", "model", "prompt", "text", "seed", "num_inference_steps", "guidance_scale", "scheduler")


def record(found: Inspection) -> dict[str, Any]:
    """All of it as plain values."""
    return {
        "path": str(found.path),
        "verdict": found.verdict,
        "container": found.container,
        "streams": found.streams,
        "tags": found.tags,
        "aigc": found.aigc,
        "digital_source_type": found.digital_source_type,
        "c2pa": found.credentials,
        "sidecar": found.sidecar,
        "notes": found.notes,
    }


def print_inspection(console: Console, found: Inspection) -> None:
    """One line for each thing that the file says, and for what it does not say."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for row in rows(found):
        table.add_row(*row)
    console.print(table)


def rows(found: Inspection) -> list[tuple[str, str]]:
    """A heading and what it says."""
    return [
        ("says", found.verdict),
        ("file", _joined(found.container)),
        *((stream["type"], _joined({k: v for k, v in stream.items() if k != "type"})) for stream in found.streams),
        *found.tags.items(),
        ("AIGC label", _joined(found.aigc) if isinstance(found.aigc, dict) else found.aigc or "none"),
        ("source type", found.digital_source_type or "none"),
        ("C2PA", _credentials_text(found.credentials)),
        ("record", _sidecar_text(found)),
        *(("note", note) for note in found.notes),
    ]


def _joined(values: dict[str, Any]) -> str:
    said = {name: value for name, value in values.items() if value not in (None, "", [])}
    return ", ".join(f"{name} {' '.join(value) if isinstance(value, list) else value}" for name, value in said.items())


def _credentials_text(credentials: dict[str, Any] | None) -> str:
    if credentials is None:
        return "none"
    signer = credentials["signer"]
    by = " of ".join(signer[name] for name in ("common_name", "issuer") if name in signer)
    problems = f" ({', '.join(credentials['problems'])})" if credentials["problems"] else ""
    return f"{credentials['state']}{f', signed by {by}' if by else ''}{problems}"


def _sidecar_text(found: Inspection) -> str:
    if found.sidecar is None:
        return f"none ({found.path.name}.json)"
    known = {name: found.sidecar[name] for name in _TOLD if found.sidecar.get(name) not in (None, "")}
    return f"{found.path.name}.json: {_joined(known)}" if known else f"{found.path.name}.json"
