"""Every answer that is not a success: a status, a type for programs and one line for people."""

from __future__ import annotations

from typing import Final

STATUS: Final = {
    "bad_request": 400,
    "unauthorized": 401,
    "forbidden": 403,
    "not_found": 404,
    "conflict": 409,
    "too_large": 413,
    "unsupported_media": 415,
    "invalid": 422,
    "too_many": 429,
    "unavailable": 503,
    "storage_full": 507,
}


class Problem(Exception):
    """A request that is refused.

    Args:
        kind: a key of `STATUS`.
        message: one line: what is wrong with the value seen, what is accepted, what to do next.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind, self.status = kind, STATUS[kind]
        self.message = " ".join(message.split())

    @property
    def content(self) -> dict[str, dict[str, str]]:
        return {"error": {"message": self.message, "type": self.kind}}
