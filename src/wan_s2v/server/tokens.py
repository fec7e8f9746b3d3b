"""Who asks: API tokens, and the cookie that a browser carries where it cannot send a header.

A token is compared by its hash. The cookie names its owner and its end and is signed; it opens only what is read.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from wan_s2v.errors import UsageError, reason_of

COOKIE: Final = "wan_s2v_session"
COOKIE_S: Final = 12 * 3600
LOCAL_OWNER: Final = "local"
ENVIRONMENT: Final = "WAN_S2V_API_TOKEN"
_MIN_LENGTH: Final = 16
_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")


class Tokens:
    """The tokens of a server; without any, everybody is one owner, which is for a loopback address alone.

    Args:
        tokens: owner of each token.
        secret: that signs cookies.
    """

    def __init__(self, tokens: Mapping[str, str], secret: bytes) -> None:
        self._owners = {_digest(token): owner for token, owner in tokens.items()}
        self._secret = secret

    @property
    def is_open(self) -> bool:
        return not self._owners

    def owner_of(self, token: str) -> str | None:
        return self._owners.get(_digest(token))

    def cookie(self, owner: str) -> str:
        content = f"{owner}.{int(time.time()) + COOKIE_S}"
        return f"{content}.{self._sign(content)}"

    def owner_of_cookie(self, cookie: str) -> str | None:
        """None for one that is forged or over, or whose owner has no token any more."""
        content, _, signature = cookie.rpartition(".")
        owner, _, end = content.rpartition(".")
        if not hmac.compare_digest(self._sign(content).encode(), signature.encode("utf-8", "replace")):
            return None
        return owner if int(end) > time.time() and owner in self._owners.values() else None

    def _sign(self, content: str) -> str:
        return hmac.new(self._secret, content.encode("utf-8", "replace"), hashlib.sha256).hexdigest()


def read_tokens(path: Path | None, environment: Mapping[str, str]) -> dict[str, str]:
    """Owner of each token: lines "NAME TOKEN" of a file, and the token of the environment, whose owner is "default".

    Raises: UsageError for a file that cannot be read, a line of another form, and short or repeated tokens.
    """
    found: dict[str, str] = {}
    if environment.get(ENVIRONMENT):
        _add(found, "default", environment[ENVIRONMENT], ENVIRONMENT)
    if path is None:
        return found
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"Tokens {path} cannot be read ({reason_of(error)}). Pass a file of lines NAME TOKEN."
        ) from error
    for number, line in enumerate(lines, start=1):
        words = line.split()
        if words and not words[0].startswith("#"):
            if len(words) != 2 or not _NAME.fullmatch(words[0]):
                raise UsageError(f"{path}:{number} is not NAME TOKEN. Write a name of letters and digits, and a token.")
            _add(found, words[0], words[1], f"{path}:{number}")
    if not found:
        raise UsageError(f"{path} holds no token. Write one NAME TOKEN on each line.")
    return found


def require_tokens(host: str, tokens: Mapping[str, str]) -> None:
    """Raises: UsageError for an address that others reach while there is no token."""
    if not tokens and not is_loopback(host):
        message = (
            f"Host {host} is open to other machines. Pass --tokens FILE, set {ENVIRONMENT}, or use --host 127.0.0.1."
        )
        raise UsageError(message)


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _add(found: dict[str, str], owner: str, token: str, place: str) -> None:
    if len(token) < _MIN_LENGTH or not token.isascii() or not token.isprintable():
        raise UsageError(f"The token of {place} is too short or unusual. Use {_MIN_LENGTH} ASCII characters or more.")
    if token in found:
        raise UsageError(f"The token of {place} is given twice. Make another one: openssl rand -hex 24.")
    found[token] = owner


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "replace")).digest()
