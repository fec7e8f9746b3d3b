"""A server without its routes: what it holds, and the two things that clients have it do."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from fastapi.concurrency import run_in_threadpool
from starlette.requests import Request

from wan_s2v.server.jobs import Job, Queue, new_id
from wan_s2v.server.limits import Limits
from wan_s2v.server.metrics import Metrics
from wan_s2v.server.problems import Problem
from wan_s2v.server.schemas import JobBody
from wan_s2v.server.storage import Housekeeper, JobFiles, Storage
from wan_s2v.server.supervisor import Program, Supervisor
from wan_s2v.server.tokens import Tokens
from wan_s2v.server.uploads import Upload, received

_PLANS_AT_ONCE: Final = 4  # of one owner


@dataclass(frozen=True)
class Settings:
    """What the operator chose.

    Args:
        tokens: owner of each token; none on a loopback address.
        workers: processes that make videos; 0 for one per device.
        allow_urls: whether clients may name addresses instead of sending files.
    """

    folder: Path
    tokens: Mapping[str, str] = field(default_factory=dict)
    workers: int = 0
    allow_urls: bool = False
    limits: Limits = field(default_factory=Limits)


class Service:
    """The queue, the files and the processes of one folder, which it owns until it is closed.

    Args:
        facts: what `supervisor.probe` found.
    Raises: UsageError if another server has the folder; OutputError if it cannot be written to.
    """

    def __init__(self, settings: Settings, facts: Mapping[str, Any]) -> None:
        self.settings, self.facts = settings, facts
        self.storage = Storage(settings.folder)
        self._lock = self.storage.lock()
        self.queue = Queue(self.storage.queue)
        self.queue.recover()
        self.storage.remove_strays(self.queue)
        self.tokens = Tokens(settings.tokens, self.storage.secret())
        self.housekeeper = Housekeeper(self.queue, self.storage, settings.limits)
        program = Program(facts, self.storage.folder, self._lock, settings.workers, settings.limits)
        self.supervisor = Supervisor(program, self.queue)
        self.metrics = Metrics(self.queue, self.supervisor, self.housekeeper)
        self._planning: Counter[str] = Counter()

    def close(self) -> None:
        self.queue.close()
        os.close(self._lock)

    def files(self, job: Job) -> JobFiles:
        return self.storage.files(job.id)

    def body(self, job: Job) -> JobBody:
        """A job as its owner sees it."""
        return JobBody.of(job, self.queue.position(job), self.files(job).preview.exists())

    async def plan(self, request: Request, owner: str) -> dict[str, Any]:
        """What the planner says of a request's inputs, of which nothing is kept."""
        with self._planning_for(owner):
            async with self._received(request) as upload:
                return await self.supervisor.planner.plan(upload.folder, upload.params)

    async def submit(self, request: Request, owner: str, key: str | None) -> Job:
        """Accept a job, or give the one that was accepted before with the same idempotency key."""
        if key is not None and (before := await run_in_threadpool(self.queue.find_key, owner, key)):
            return before
        self.queue.require_place(owner, self.settings.limits)
        with self._planning_for(owner):
            async with self._received(request) as upload:
                await run_in_threadpool(self.housekeeper.make_room, owner, upload.num_bytes)
                planned = await self.supervisor.planner.plan(upload.folder, upload.params)
                job = await run_in_threadpool(self._accept, upload, planned, owner, key)
        self.metrics.accepted.inc()
        self.supervisor.wake()
        return job

    def _accept(self, upload: Upload, planned: dict[str, Any], owner: str, key: str | None) -> Job:
        job_id = new_id()
        num_bytes = self.storage.accept(upload.folder, job_id)
        try:
            return self.queue.add(job_id, owner, planned | {"num_bytes": num_bytes}, self.settings.limits, key)
        except (Problem, sqlite3.Error) as error:
            shutil.rmtree(self.storage.files(job_id).folder)
            before = None if key is None else self.queue.find_key(owner, key)
            if isinstance(error, sqlite3.IntegrityError) and before is not None:
                return before
            raise

    def _received(self, request: Request) -> Any:
        return received(request, self.storage.incoming, self.settings.limits, allow_urls=self.settings.allow_urls)

    @contextmanager
    def _planning_for(self, owner: str) -> Iterator[None]:
        if self._planning[owner] >= _PLANS_AT_ONCE:
            message = (
                f"{_PLANS_AT_ONCE} of your requests are being read, the most at once. Wait for one, then send it again."
            )
            raise Problem("too_many", message)
        self._planning[owner] += 1
        try:
            yield
        finally:
            self._planning[owner] -= 1
