"""Where the files of jobs lie, how much they take, and which go first.

Every name below the server's folder is made here, from random ids and fixed words; nothing a client sends becomes one.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from wan_s2v.errors import OutputError, UsageError, reason_of
from wan_s2v.server.jobs import Job, Queue
from wan_s2v.server.limits import GIB, Limits
from wan_s2v.server.problems import Problem

_LOCK_WAIT_S: Final = 60.0  # workers of a server that was killed notice within a step


@dataclass(frozen=True)
class JobFiles:
    """The files of one job; those that a client may send have no extension, for their kind is found by decoding."""

    folder: Path

    @property
    def image(self) -> Path:
        return self.folder / "image"

    @property
    def audio(self) -> Path:
        return self.folder / "audio"

    @property
    def vocals(self) -> Path:
        return self.folder / "vocals"

    @property
    def pose_video(self) -> Path:
        return self.folder / "pose_video"

    @property
    def video(self) -> Path:
        return self.folder / "video.mp4"

    @property
    def sidecar(self) -> Path:
        return self.folder / "video.mp4.json"

    @property
    def preview(self) -> Path:
        return self.folder / "preview.mp4"

    def public(self, text: str) -> str:
        """A message or record in which the job's files have their bare names."""
        return text.replace(f"{self.folder}{os.sep}", "").replace(str(self.folder), "the job")

    def num_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())

    def remove_temporaries(self) -> None:
        """Files without a name yet, of a process that was killed while it wrote them."""
        for path in self.folder.glob(".*"):
            path.unlink()

    def clear(self, *kept: Path) -> None:
        """Remove everything but the inputs, which stay until the job is deleted, and the given results."""
        for path in set(self.folder.iterdir()) - {self.image, self.audio, self.vocals, self.pose_video, *kept}:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


class Storage:
    """The folder of a server: `queue.sqlite`, `jobs/`, `incoming/` and `secret`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        try:
            for path in (self.jobs, self.incoming):
                path.mkdir(parents=True, exist_ok=True)
            self.folder.chmod(0o700)
        except OSError as error:
            message = f"Folder {folder} cannot be made or opened ({reason_of(error)}). Pass another --folder."
            raise OutputError(message) from error

    @property
    def jobs(self) -> Path:
        return self.folder / "jobs"

    @property
    def incoming(self) -> Path:
        return self.folder / "incoming"

    @property
    def queue(self) -> Path:
        return self.folder / "queue.sqlite"

    def files(self, job_id: str) -> JobFiles:
        return JobFiles(self.jobs / job_id)

    def secret(self) -> bytes:
        """Random bytes that sign what browsers carry; kept so that a restart logs nobody out."""
        path = self.folder / "secret"
        if not path.exists():
            temporary = path.with_suffix(".new")
            temporary.unlink(missing_ok=True)
            with os.fdopen(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:
                file.write(secrets.token_bytes(32))
            os.replace(temporary, path)
        return path.read_bytes()

    def lock(self) -> int:
        """Own the folder; the open file is inherited by workers, so that it is free only when the last one is gone.

        Returns: the file descriptor that holds the lock.
        Raises: UsageError if another server still runs here.
        """
        descriptor = os.open(self.folder / "lock", os.O_CREAT | os.O_RDWR, 0o600)
        deadline = time.monotonic() + _LOCK_WAIT_S
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return descriptor
            except BlockingIOError:
                if time.monotonic() > deadline:
                    os.close(descriptor)
                    message = (
                        f"Folder {self.folder} belongs to another server that runs. Stop it, or pass another --folder."
                    )
                    raise UsageError(message) from None
                time.sleep(0.1)

    def accept(self, incoming: Path, job_id: str) -> int:
        """Take checked inputs over as a job's folder, on the disk for good. Returns: their bytes."""
        for path in incoming.iterdir():
            _flush(path)
        _flush(incoming)
        os.replace(incoming, self.jobs / job_id)
        _flush(self.jobs)
        return self.files(job_id).num_bytes()

    def remove_strays(self, queue: Queue) -> None:
        """Folders that no job has: of uploads that were cut off, and of deletions."""
        known = queue.ids()
        for path in [*self.incoming.iterdir(), *(path for path in self.jobs.iterdir() if path.name not in known)]:
            shutil.rmtree(path)


class Housekeeper:
    """Removes what was deleted, what is too old, and the oldest results when room is needed."""

    def __init__(self, queue: Queue, storage: Storage, limits: Limits) -> None:
        self._queue, self._storage, self._limits = queue, storage, limits
        self._purging = threading.Lock()
        self.evicted = 0

    def tidy(self) -> None:
        """Remove deleted and old jobs, and those over the quota of the disk."""
        for job in self._queue.finished():
            if job.finished_at is not None and job.finished_at < time.time() - self._limits.keep_s:
                self._evict(job)
        self._shrink(None, self._limits.disk_bytes)
        self.purge()

    def make_room(self, owner: str, num_bytes: int) -> None:
        """Have space for an upload. Raises: Problem where finished jobs do not make enough."""
        limits = self._limits
        if not self._shrink(owner, limits.token_bytes - num_bytes):
            taken, most = self._queue.num_bytes(owner) / GIB, limits.token_bytes / GIB
            raise Problem(
                "storage_full", f"Your jobs take {taken:.2f} of {most:.2f} GiB. Wait until one is done, or cancel one."
            )
        free = shutil.disk_usage(self._storage.folder).free
        if not self._shrink(None, limits.disk_bytes - num_bytes) or free < limits.spare_bytes + num_bytes:
            raise Problem("storage_full", "The server's disk is full of jobs that wait. Try again later.")
        self.purge()

    def _shrink(self, owner: str | None, most: int) -> bool:
        """Evict finished jobs, oldest first, until the others take at most so many bytes; whether that was enough."""
        over = self._queue.num_bytes(owner) - most
        while over > 0:
            oldest = self._queue.finished(owner)
            if not oldest:
                return False
            for job in oldest:
                if over > 0:
                    self._evict(job)
                    over -= job.num_bytes
        return True

    def _evict(self, job: Job) -> None:
        self._queue.evict(job.id)
        self.evicted += 1

    def purge(self) -> None:
        """Remove the files and rows of deleted jobs that nobody works on."""
        with self._purging:
            for job in self._queue.deleted():
                folder = self._storage.files(job.id).folder
                if folder.exists():
                    shutil.rmtree(folder)
                self._queue.purge(job)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
