"""The flags of `wan-s2v serve`; nothing heavy is imported for them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from wan_s2v.commands.flags import flag
from wan_s2v.server.limits import GIB, MIB, Limits

_NETWORK, _LIMITS, _MACHINE = "Network", "Limits", "Machine"
_DEFAULT = Limits()


def network_flags(
    host: Annotated[str, flag("Address to listen on.", _NETWORK)] = "127.0.0.1",
    port: Annotated[int, flag("Port to listen on.", _NETWORK)] = 8000,
    tokens: Annotated[
        Path | None,
        flag("File of lines NAME TOKEN; or one in WAN_S2V_API_TOKEN.", _NETWORK, default="none, on loopback alone"),
    ] = None,
    allow_urls: Annotated[
        bool, flag("Let clients name public addresses instead of sending files.", _NETWORK, "--allow-urls")
    ] = False,
    workers: Annotated[int, flag("Processes that make videos.", _MACHINE, default="one per device")] = 0,
) -> dict[str, Any]:
    """Where the server listens, and for whom."""
    return dict(locals())


def limit_flags(
    max_upload_mib: Annotated[float, flag("Largest file.", _LIMITS)] = _DEFAULT.upload_bytes / MIB,
    max_image_pixels: Annotated[int, flag("Largest picture.", _LIMITS)] = _DEFAULT.image_pixels,
    max_seconds: Annotated[float, flag("Longest sound and video.", _LIMITS)] = _DEFAULT.duration_s,
    max_frame_pixels: Annotated[int, flag("Largest frame of a video.", _LIMITS)] = _DEFAULT.frame_pixels,
    max_jobs_per_token: Annotated[int, flag("Queued and running.", _LIMITS)] = _DEFAULT.active_jobs,
    max_queue: Annotated[int, flag("Queued and running of all tokens.", _LIMITS)] = _DEFAULT.queued_jobs,
    max_disk_gib: Annotated[float, flag("Of all jobs; the oldest finished ones make room.", _LIMITS)] = (
        _DEFAULT.disk_bytes / GIB
    ),
    max_token_gib: Annotated[float, flag("The same of one token.", _LIMITS)] = _DEFAULT.token_bytes / GIB,
    keep_days: Annotated[float, flag("A finished job is removed after so long.", _LIMITS)] = _DEFAULT.keep_s / 86400,
) -> Limits:
    """What clients may ask for."""
    return Limits(
        upload_bytes=round(max_upload_mib * MIB),
        image_pixels=max_image_pixels,
        duration_s=max_seconds,
        frame_pixels=max_frame_pixels,
        active_jobs=max_jobs_per_token,
        queued_jobs=max_queue,
        disk_bytes=round(max_disk_gib * GIB),
        token_bytes=round(max_token_gib * GIB),
        keep_s=keep_days * 86400,
    )
