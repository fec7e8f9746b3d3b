"""What one client may ask of a server; plain numbers that the operator sets and every check reads."""

from __future__ import annotations

from dataclasses import dataclass

GIB = 2**30
MIB = 2**20


@dataclass(frozen=True)
class Limits:
    """Bounds of a server.

    Args:
        upload_bytes: of one file.
        image_pixels: of a picture.
        duration_s: of a sound, a pose video and a video.
        frame_pixels: height x width of a video, and of a pose video's frames.
        active_jobs: queued or running of one token.
        queued_jobs: of all tokens.
        disk_bytes: of all jobs with their results; the oldest finished ones make room.
        token_bytes: the same of one token.
        spare_bytes: that stay free on the disk.
        keep_s: a finished job is removed after so long.
        check_s: to read and plan the inputs of a job.
        check_bytes: of memory for that, beside what the program itself takes.
    """

    upload_bytes: int = 64 * MIB
    image_pixels: int = 50_000_000
    duration_s: float = 300.0
    frame_pixels: int = 1280 * 720
    active_jobs: int = 20
    queued_jobs: int = 1000
    disk_bytes: int = 50 * GIB
    token_bytes: int = 20 * GIB
    spare_bytes: int = GIB
    keep_s: float = 7 * 86400.0
    check_s: float = 30.0
    check_bytes: int = 3 * GIB
