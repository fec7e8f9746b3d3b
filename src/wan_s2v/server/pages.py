"""The web page: files of the package, each under a route of its own, so that no path is ever made from a request."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Final

from fastapi import FastAPI
from fastapi.responses import FileResponse

FOLDER: Final = Path(__file__).parent / "web"
_HEADERS: Final = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data: blob:; media-src 'self' data: blob:; "
    "style-src 'self' 'unsafe-inline'; object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "Cache-Control": "no-cache",
}


def add_pages(app: FastAPI) -> None:
    """One route per file, and `index.html` at the root."""
    for path in sorted(path for path in FOLDER.rglob("*") if path.is_file()):
        name = path.relative_to(FOLDER).as_posix()
        answer = partial(_answer, path)
        for route in (f"/{name}", "/") if name == "index.html" else (f"/{name}",):
            app.add_api_route(route, answer, methods=["GET", "HEAD"], include_in_schema=False)


async def _answer(path: Path) -> FileResponse:
    return FileResponse(path, headers=_HEADERS)
