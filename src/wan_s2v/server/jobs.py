"""The queue: one SQLite file (WAL) that the server and its workers share.

A job is accepted when its row is committed and done when its row says so; both are single transactions that reach the
disk. Only one server has a folder, so a row that runs without a living worker is free to be taken again.
"""

from __future__ import annotations

import json
import secrets
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from wan_s2v.server.limits import Limits
from wan_s2v.server.problems import Problem

Status = Literal["queued", "running", "done", "failed", "cancelled"]
ACTIVE: Final = ("queued", "running")
MAX_CRASHES: Final = 3
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS jobs (
    number INTEGER PRIMARY KEY AUTOINCREMENT,  -- order of arrival
    id TEXT NOT NULL UNIQUE,
    owner TEXT NOT NULL,
    idempotency_key TEXT,
    status TEXT NOT NULL DEFAULT 'queued',
    created_at REAL NOT NULL,
    started_at REAL,
    finished_at REAL,
    params TEXT NOT NULL,
    plan TEXT NOT NULL,
    warnings TEXT NOT NULL,
    progress TEXT,
    error TEXT,
    worker INTEGER,
    crashes INTEGER NOT NULL DEFAULT 0,
    cancelling INTEGER NOT NULL DEFAULT 0,
    deleted INTEGER NOT NULL DEFAULT 0,
    num_bytes INTEGER NOT NULL,
    UNIQUE (owner, idempotency_key)
);
CREATE INDEX IF NOT EXISTS jobs_by_status ON jobs (status, number);
CREATE INDEX IF NOT EXISTS jobs_by_owner ON jobs (owner, number);
"""
_JSON: Final = ("params", "plan", "warnings", "progress")


@dataclass(frozen=True)
class Job:
    """A row of the queue; times in Unix seconds."""

    number: int
    id: str
    owner: str
    idempotency_key: str | None
    status: Status
    created_at: float
    started_at: float | None
    finished_at: float | None
    params: dict[str, Any]
    plan: dict[str, Any]
    warnings: list[str]
    progress: dict[str, Any] | None
    error: str | None
    worker: int | None
    crashes: int
    cancelling: bool
    deleted: bool
    num_bytes: int

    @property
    def is_active(self) -> bool:
        return self.status in ACTIVE


def new_id() -> str:
    """A name that nobody guesses."""
    return secrets.token_hex(16)


class Queue:
    """The jobs of one folder. Safe to use from several threads and processes."""

    def __init__(self, path: Path) -> None:
        self._lock = threading.RLock()
        self._db = sqlite3.connect(path, timeout=60, isolation_level=None, check_same_thread=False)
        self._db.row_factory = sqlite3.Row
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")  # an accepted job outlives a power cut, too
        self._db.executescript(_SCHEMA)

    def close(self) -> None:
        self._db.close()

    # what clients ask for

    def require_place(self, owner: str, limits: Limits) -> None:
        """Raises: Problem if as many jobs wait or run as may."""
        mine = self._num_active(owner)
        if mine >= limits.active_jobs:
            raise Problem("too_many", f"{mine} of your videos wait or run, the most there may be. Wait for one to end.")
        if self._num_active(None) >= limits.queued_jobs:
            raise Problem("too_many", f"The queue is full ({limits.queued_jobs} videos). Try again later.")

    def add(self, job_id: str, owner: str, content: Mapping[str, Any], limits: Limits, key: str | None = None) -> Job:
        """Accept a job.

        Args:
            content: its params, plan, warnings and num_bytes.
        Raises: Problem as `require_place`; sqlite3.IntegrityError if the owner has used the idempotency key before.
        """
        packed = [json.dumps(content[name]) for name in ("params", "plan", "warnings")]
        values = (job_id, owner, key, time.time(), *packed, content["num_bytes"])
        names = "id, owner, idempotency_key, created_at, params, plan, warnings, num_bytes"
        with self._transaction() as db:
            self.require_place(owner, limits)
            db.execute(f"INSERT INTO jobs ({names}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)", values)
        return self.get(job_id, owner)

    def get(self, job_id: str, owner: str) -> Job:
        """Raises: Problem if the owner has no such job."""
        found = self._select("id = ? AND owner = ? AND NOT deleted", job_id, owner)
        if not found:
            raise Problem("not_found", f"There is no video {job_id[:64]!r}. See GET /v1/videos.")
        return found[0]

    def find_key(self, owner: str, key: str) -> Job | None:
        """The job that was accepted with an idempotency key; a deleted one keeps its key until it is gone."""
        found = self._select("owner = ? AND idempotency_key = ?", owner, key)
        return found[0] if found else None

    def newest(self, owner: str, limit: int, after: str | None = None) -> list[Job]:
        """The owner's jobs, newest first, those before the job `after`."""
        before = 2**62 if after is None else self.get(after, owner).number
        wanted = "owner = ? AND number < ? AND NOT deleted ORDER BY number DESC LIMIT ?"
        return self._select(wanted, owner, before, limit)

    def position(self, job: Job) -> int | None:
        """Place in the queue, from 1; None for a job that does not wait."""
        if job.status != "queued":
            return None
        return 1 + self._value("SELECT count(*) FROM jobs WHERE status = 'queued' AND number < ?", job.number)

    def cancel(self, job_id: str, owner: str) -> Job:
        """End a queued job now and have a running one ended by its worker. Raises: Problem for one that is finished."""
        if not self.get(job_id, owner).is_active:
            raise Problem("conflict", f"Video {job_id} is finished already. Delete it to remove it.")
        self._end("id = ?", job_id)
        return self.get(job_id, owner)

    def delete(self, job_id: str, owner: str) -> None:
        """Hide a job, and end it as `cancel` does; its files and row go when no worker has it any more."""
        self.get(job_id, owner)
        self.evict(job_id)

    # what workers do

    def claim(self, worker: int) -> Job | None:
        """The job that has waited longest, which this worker now runs."""
        update = """UPDATE jobs SET status = 'running', worker = ?, started_at = coalesce(started_at, ?)
            WHERE number = (SELECT number FROM jobs WHERE status = 'queued' ORDER BY number LIMIT 1) RETURNING *"""
        with self._transaction() as db:
            row = db.execute(update, (worker, time.time())).fetchone()
        return None if row is None else _job(row)

    def report(self, job: Job, progress: Mapping[str, Any]) -> None:
        with self._transaction() as db:
            db.execute("UPDATE jobs SET progress = ? WHERE number = ?", (json.dumps(progress), job.number))

    def is_cancelled(self, job: Job) -> bool:
        return bool(self._value("SELECT cancelling FROM jobs WHERE number = ?", job.number))

    def settle(self, job: Job, status: Status, *, error: str | None = None, num_bytes: int | None = None) -> None:
        """A running job of this worker is done, failed or cancelled, or waits again ("queued")."""
        finished = None if status in ACTIVE else time.time()
        update = """UPDATE jobs SET status = ?, error = ?, finished_at = ?, num_bytes = coalesce(?, num_bytes),
            progress = NULL, worker = NULL WHERE number = ? AND status = 'running' AND worker = ?"""
        with self._transaction() as db:
            db.execute(update, (status, error, finished, num_bytes, job.number, job.worker))

    # what the server does when processes end

    def recover(self) -> None:
        """Nothing runs any more: what did waits again."""
        with self._transaction() as db:
            _requeue(db, "status = 'running'")

    def worker_died(self, worker: int, how: str) -> None:
        """Its job waits again; one that has ended `MAX_CRASHES` workers fails."""
        mine = f"status = 'running' AND worker = {worker:d}"
        error = f"The process that made this video ended {MAX_CRASHES} times ({how}). Try a smaller or shorter video."
        failing = f"""UPDATE jobs SET status = 'failed', error = ?, finished_at = ?, worker = NULL, progress = NULL
            WHERE {mine} AND crashes >= {MAX_CRASHES}"""
        with self._transaction() as db:
            db.execute(f"UPDATE jobs SET crashes = crashes + 1 WHERE {mine}")
            db.execute(failing, (error, time.time()))
            _requeue(db, mine)

    # what is counted and thrown away

    def counts(self) -> dict[str, int]:
        """Jobs by status."""
        with self._lock:
            rows = self._db.execute("SELECT status, count(*) FROM jobs WHERE NOT deleted GROUP BY status").fetchall()
        return dict(rows)

    def _num_active(self, owner: str | None) -> int:
        return self._value(f"SELECT count(*) FROM jobs WHERE status IN {ACTIVE} AND owner = coalesce(?, owner)", owner)

    def num_bytes(self, owner: str | None = None) -> int:
        return self._value("SELECT coalesce(sum(num_bytes), 0) FROM jobs WHERE owner = coalesce(?, owner)", owner)

    def finished(self, owner: str | None = None) -> list[Job]:
        """Jobs that may be evicted, those first that were finished first."""
        wanted = "owner = coalesce(?, owner) AND finished_at IS NOT NULL AND NOT deleted ORDER BY finished_at LIMIT 100"
        return self._select(wanted, owner)

    def evict(self, job_id: str) -> None:
        """Hide a job from its owner; it is purged when nobody works on it."""
        self._end("id = ?", job_id)
        with self._transaction() as db:
            db.execute("UPDATE jobs SET deleted = 1 WHERE id = ?", (job_id,))

    def deleted(self) -> list[Job]:
        """Hidden jobs that nobody works on."""
        return self._select(f"deleted AND status NOT IN {ACTIVE}")

    def purge(self, job: Job) -> None:
        with self._transaction() as db:
            db.execute("DELETE FROM jobs WHERE number = ?", (job.number,))

    def ids(self) -> set[str]:
        with self._lock:
            return {row[0] for row in self._db.execute("SELECT id FROM jobs")}

    def _end(self, which: str, *values: Any) -> None:
        """Cancel queued jobs, and ask for the end of running ones."""
        with self._transaction() as db:
            db.execute(f"UPDATE jobs SET cancelling = 1 WHERE {which} AND status IN {ACTIVE}", values)
            ended = f"UPDATE jobs SET status = 'cancelled', finished_at = ? WHERE {which} AND status = 'queued'"
            db.execute(ended, (time.time(), *values))

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    def _select(self, where: str, *values: Any) -> list[Job]:
        with self._lock:
            rows = self._db.execute(f"SELECT * FROM jobs WHERE {where}", values).fetchall()
        return [_job(row) for row in rows]

    def _value(self, query: str, *values: Any) -> int:
        with self._lock:
            row = self._db.execute(query, values).fetchone()
        return 0 if row is None else int(row[0])


def _requeue(db: sqlite3.Connection, which: str) -> None:
    """Running jobs wait again, or end if that was wanted."""
    ended = f"UPDATE jobs SET status = 'cancelled', finished_at = ?, worker = NULL WHERE {which} AND cancelling"
    db.execute(ended, (time.time(),))
    db.execute(f"UPDATE jobs SET status = 'queued', worker = NULL, progress = NULL WHERE {which}")


def _job(row: sqlite3.Row) -> Job:
    values = {name: row[name] for name in row.keys()}  # noqa: SIM118 - iterating a row gives its values
    loaded = {name: None if values[name] is None else json.loads(values[name]) for name in _JSON}
    flags = {name: bool(values[name]) for name in ("cancelling", "deleted")}
    return Job(**values | loaded | flags)
