"""Files from addresses that clients name, for servers that were started with --allow-urls.

Only public addresses: a name is resolved once, every address it has must be public, and the connection goes to the one
that was checked. Redirects are checked again.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import time
from pathlib import Path
from typing import Any, Final
from urllib.parse import SplitResult, urljoin, urlsplit

from wan_s2v.server.limits import MIB
from wan_s2v.server.problems import Problem

_REDIRECTS: Final = (301, 302, 303, 307, 308)
_MOST_REDIRECTS: Final = 3
_SILENCE_S: Final = 10.0
_WHOLE_S: Final = 60.0
_PIECE: Final = 1 << 16


def fetch(address: str, path: Path, most: int) -> None:
    """Write the file behind an address.

    Args:
        most: bytes that are accepted.
    Raises: Problem for addresses that are not public, answers other than success, and files that are too large or slow.
    """
    deadline = time.monotonic() + _WHOLE_S
    for _ in range(1 + _MOST_REDIRECTS):
        try:
            place = _parsed(address)
            connection = _connect(place)
            try:
                target = place.path or "/"
                connection.request("GET", f"{target}?{place.query}" if place.query else target)
                answer = connection.getresponse()
                if answer.status not in _REDIRECTS:
                    _write(answer, address, path, most, deadline)
                    return
                address = urljoin(address, answer.headers.get("Location", ""))
            finally:
                connection.close()
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise _refused(address, f"cannot be fetched ({error or type(error).__name__})") from error
    raise _refused(address, f"is redirected more than {_MOST_REDIRECTS} times")


def public_address(host: str, port: int) -> str:
    """An address of a host, all of whose addresses are public.

    Raises: Problem for others; OSError for unknown hosts.
    """
    found = {str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)}
    for text in found:
        address = ipaddress.ip_address(text.partition("%")[0])
        mapped = getattr(address, "ipv4_mapped", None) or address
        if not mapped.is_global or mapped.is_multicast:
            raise _refused(host, "is not a public address")
    return sorted(found)[0]


def _parsed(address: str) -> SplitResult:
    place = urlsplit(address)
    if place.scheme not in ("http", "https") or not place.hostname or place.username is not None:
        raise _refused(address, "is not a plain http or https address")
    if not address.isascii() or not address.isprintable() or " " in address:
        raise _refused(address, "holds characters that must be escaped")
    return place


def _connect(place: SplitResult) -> http.client.HTTPConnection:
    assert place.hostname is not None
    port = place.port or (443 if place.scheme == "https" else 80)
    checked = public_address(place.hostname, port)
    connection: Any
    if place.scheme == "https":
        connection = http.client.HTTPSConnection(place.hostname, port, timeout=_SILENCE_S)
    else:
        connection = http.client.HTTPConnection(place.hostname, port, timeout=_SILENCE_S)
    stream = socket.create_connection((checked, port), _SILENCE_S)
    if place.scheme == "https":
        stream = ssl.create_default_context().wrap_socket(stream, server_hostname=place.hostname)
    connection.sock = stream  # an open one is used as it is: the name is not resolved again
    return connection


def _write(answer: http.client.HTTPResponse, address: str, path: Path, most: int, deadline: float) -> None:
    if answer.status != 200:
        raise _refused(address, f"answers with status {answer.status}")
    size = 0
    with path.open("xb") as file:
        while piece := answer.read1(_PIECE):
            size += len(piece)
            if size > most:
                raise Problem("too_large", f"{address[:200]!r} has more than {most / MIB:g} MiB. Name a smaller file.")
            if time.monotonic() > deadline:
                raise _refused(address, f"took longer than {_WHOLE_S:g} s")
            file.write(piece)


def _refused(address: str, why: str) -> Problem:
    return Problem("invalid", f"{address[:200]!r} {why}. Name a file that anybody can fetch, or send it in a form.")
