"""Who a request comes from; and, without tokens, that it comes from this machine's own pages and programs."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlsplit

from fastapi import Depends, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from wan_s2v.server.problems import Problem
from wan_s2v.server.tokens import COOKIE, LOCAL_OWNER, Tokens, is_loopback

_bearer = HTTPBearer(auto_error=False, description="A token of the server's --tokens file.")


def find_owner(
    request: Request, given: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)] = None
) -> str:
    """The owner of the token, or of the cookie where something is only read.

    Raises: Problem for everybody else.
    """
    tokens: Tokens = request.app.state.tokens
    if tokens.is_open:
        _require_local(request)
        return LOCAL_OWNER
    if given is not None:
        owner = tokens.owner_of(given.credentials)
    else:
        cookie = request.cookies.get(COOKIE) if request.method in ("GET", "HEAD") else None
        owner = None if cookie is None else tokens.owner_of_cookie(cookie)
    if owner is None:
        raise Problem("unauthorized", "This needs a token of this server. Send it as Authorization: Bearer TOKEN.")
    return owner


def _require_local(request: Request) -> None:
    """A page from elsewhere can make a browser send requests here, also under a name that it made resolve to here."""
    origin = request.headers.get("origin")
    own = (request.url.scheme, request.url.netloc)
    if not is_loopback(request.url.hostname or ""):
        raise Problem(
            "forbidden", f"Host {request.url.netloc[:200]!r} is not this machine. Use http://127.0.0.1 or set tokens."
        )
    if origin is not None and urlsplit(origin)[:2] != own:
        raise Problem("forbidden", f"Pages of {origin[:200]!r} may not use this server. Open the server's own page.")


Owner = Annotated[str, Depends(find_owner)]
