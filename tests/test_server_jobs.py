"""The queue, the room it may take, the tokens, and the bounds in which strangers' files are read."""

from __future__ import annotations

import os
import re
import signal
import sqlite3
import stat
import threading
import time

import pytest

from wan_s2v.errors import UsageError
from wan_s2v.server import storage as storage_module
from wan_s2v.server.jobs import MAX_CRASHES, Job, Queue, new_id
from wan_s2v.server.limits import GIB, Limits
from wan_s2v.server.planner import run_bounded
from wan_s2v.server.problems import Problem
from wan_s2v.server.storage import Housekeeper, Storage
from wan_s2v.server.tokens import ENVIRONMENT, Tokens, is_loopback, read_tokens, require_tokens

EMPTY = {"params": {}, "plan": {}, "warnings": [], "num_bytes": 0}


@pytest.fixture
def storage(tmp_path):
    return Storage(tmp_path / "server")


@pytest.fixture
def queue(storage):
    made = Queue(storage.queue)
    yield made
    made.close()


def add(queue: Queue, owner: str = "me", num_bytes: int = 0, limits: Limits | None = None) -> Job:
    return queue.add(new_id(), owner, EMPTY | {"num_bytes": num_bytes}, limits or Limits())


def finish(queue: Queue) -> Job:
    job = queue.claim(0)
    queue.settle(job, "done", num_bytes=job.num_bytes)
    return queue.get(job.id, job.owner)


def test_jobs_are_taken_in_the_order_of_their_arrival(queue):
    jobs = [add(queue) for _ in range(3)]
    assert [queue.position(job) for job in jobs] == [1, 2, 3]
    assert [queue.claim(0).id for _ in range(3)] == [job.id for job in jobs]
    assert queue.claim(0) is None


def test_each_job_is_taken_by_one_worker(storage, queue):
    jobs = {add(queue, limits=Limits(active_jobs=100)).id for _ in range(60)}
    taken: list[str] = []

    def work(slot: int) -> None:
        mine = Queue(storage.queue)
        while (job := mine.claim(slot)) is not None:
            taken.append(job.id)
        mine.close()

    threads = [threading.Thread(target=work, args=(slot,)) for slot in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == 60
    assert set(taken) == jobs


def test_after_a_crash_of_all_running_jobs_wait_again_in_their_place(queue):
    first, second, third = (add(queue) for _ in range(3))
    queue.claim(0)
    queue.claim(1)
    queue.cancel(second.id, "me")
    assert queue.get(second.id, "me").status == "running"
    queue.recover()
    assert queue.get(second.id, "me").status == "cancelled"
    assert queue.get(first.id, "me").crashes == 0
    assert [queue.claim(0).id, queue.claim(0).id] == [first.id, third.id]


def test_a_job_that_ends_its_worker_again_and_again_fails(queue):
    job, other = add(queue), add(queue)
    for number in range(MAX_CRASHES):
        assert queue.get(job.id, "me").status == "queued"
        assert queue.claim(0).id == job.id
        queue.worker_died(0, f"signal {number}")
    failed = queue.get(job.id, "me")
    assert (failed.status, failed.crashes) == ("failed", MAX_CRASHES)
    assert re.match(r"The process that made this video ended 3 times \(signal 2\)\. Try", failed.error)
    assert queue.claim(0).id == other.id


def test_only_the_worker_that_has_a_job_settles_it(queue):
    add(queue)
    stale = queue.claim(0)
    queue.worker_died(0, "signal 9")
    current = queue.claim(1)
    queue.settle(stale, "failed", error="too late")
    assert queue.get(stale.id, "me").status == "running"
    queue.settle(current, "done")
    queue.settle(current, "failed", error="twice")
    assert queue.get(stale.id, "me").status == "done"


def test_a_key_is_used_once_per_owner(queue):
    queue.add(new_id(), "me", EMPTY, Limits(), "key")
    with pytest.raises(sqlite3.IntegrityError):
        queue.add(new_id(), "me", EMPTY, Limits(), "key")
    queue.add(new_id(), "you", EMPTY, Limits(), "key")
    assert queue.find_key("me", "key").owner == "me"
    assert queue.find_key("nobody", "key") is None


def test_places_in_the_queue_are_limited(queue):
    limits = Limits(active_jobs=2, queued_jobs=3)
    for owner in ("me", "me", "you"):
        add(queue, owner, limits=limits)
    with pytest.raises(Problem, match="2 of your videos wait or run"):
        add(queue, "me", limits=limits)
    with pytest.raises(Problem, match="The queue is full"):
        add(queue, "you", limits=limits)


def test_the_oldest_results_make_room_and_those_that_wait_stay(queue, storage):
    for _ in range(3):
        job = add(queue, num_bytes=40)
        storage.files(job.id).folder.mkdir()
    first, second = finish(queue), finish(queue)
    waiting = queue.newest("me", 1)[0]
    Housekeeper(queue, storage, Limits(disk_bytes=100, keep_s=1e9, spare_bytes=0)).tidy()
    assert [job.id for job in queue.newest("me", 9)] == [waiting.id, second.id]
    assert not storage.files(first.id).folder.exists()
    keeper = Housekeeper(queue, storage, Limits(token_bytes=100, spare_bytes=0))
    keeper.make_room("me", 60)
    assert [job.id for job in queue.newest("me", 9)] == [waiting.id]
    assert keeper.evicted == 1
    with pytest.raises(Problem, match="Your jobs take") as refused:
        keeper.make_room("me", 61)
    assert refused.value.status == 507
    keeper.make_room("you", 61)


def test_old_results_are_removed(queue, storage):
    job = add(queue)
    storage.files(job.id).folder.mkdir()
    finish(queue)
    Housekeeper(queue, storage, Limits(keep_s=60)).tidy()
    assert len(queue.newest("me", 9)) == 1
    Housekeeper(queue, storage, Limits(keep_s=0)).tidy()
    assert queue.newest("me", 9) == []
    assert list(storage.jobs.iterdir()) == []


def test_a_disk_without_space_is_told(queue, storage):
    with pytest.raises(Problem, match="disk is full"):
        Housekeeper(queue, storage, Limits(spare_bytes=10**9 * GIB)).make_room("me", 1)


def test_strays_of_a_crash_are_removed(queue, storage):
    job = add(queue)
    for folder in (storage.files(job.id).folder, storage.jobs / "stray", storage.incoming / "tmp"):
        folder.mkdir()
        (folder / "image").write_bytes(b"x")
    storage.remove_strays(queue)
    assert [path.name for path in storage.jobs.iterdir()] == [job.id]
    assert list(storage.incoming.iterdir()) == []


def test_a_folder_has_one_server(storage, monkeypatch):
    monkeypatch.setattr(storage_module, "_LOCK_WAIT_S", 0.2)
    held = storage.lock()
    with pytest.raises(UsageError, match="belongs to another server"):
        storage.lock()
    os.close(held)
    os.close(storage.lock())


def test_secrets_are_for_the_owner_of_the_folder_alone(storage):
    assert storage.secret() == storage.secret()
    assert stat.S_IMODE((storage.folder / "secret").stat().st_mode) == 0o600
    assert stat.S_IMODE(storage.folder.stat().st_mode) == 0o700


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "holds no token"),
        ("me short", "too short"),
        ("me 0123456789abcdef extra", "is not NAME TOKEN"),
        ("m.e 0123456789abcdef", "is not NAME TOKEN"),
        ("me 0123456789abcdef\nyou 0123456789abcdef", "is given twice"),
    ],
)
def test_token_files_that_are_not_accepted(tmp_path, text, part):
    path = tmp_path / "tokens"
    path.write_text(text)
    with pytest.raises(UsageError, match=part):
        read_tokens(path, {})


def test_tokens_come_from_a_file_and_the_environment(tmp_path):
    path = tmp_path / "tokens"
    path.write_text("# who has which\nme 0123456789abcdef\n\nme another-0123456789\n")
    found = read_tokens(path, {ENVIRONMENT: "from-the-environment"})
    assert found == {"from-the-environment": "default", "0123456789abcdef": "me", "another-0123456789": "me"}
    tokens = Tokens(found, b"secret")
    assert tokens.owner_of("0123456789abcdef") == "me"
    assert tokens.owner_of("0123456789abcdeg") is None
    assert tokens.owner_of_cookie(Tokens({}, b"secret").cookie("me")) == "me"
    assert tokens.owner_of_cookie(Tokens({}, b"secret").cookie("gone")) is None
    with pytest.raises(UsageError, match="cannot be read"):
        read_tokens(tmp_path / "none", {})


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.com", "127.evil.com"])
def test_an_open_address_needs_a_token(host):
    with pytest.raises(UsageError, match="open to other machines"):
        require_tokens(host, {})
    require_tokens(host, {"0123456789abcdef": "me"})


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "[::1]", "localhost", "127.8.8.8"])
def test_loopback(host):
    assert is_loopback(host)


def _take_memory() -> dict[str, int]:
    return {"n": len(bytes(4 * GIB))}


def _crash() -> dict[str, int]:
    os.kill(os.getpid(), signal.SIGKILL)


def _hang() -> dict[str, int]:
    while True:
        pass


@pytest.mark.parametrize("work", [_take_memory, _crash, _hang, lambda: time.sleep(60)])
def test_work_beyond_its_bounds_ends_alone(work):
    started = time.monotonic()
    assert run_bounded(work, seconds=1, num_bytes=GIB) is None
    assert time.monotonic() - started < 10


def test_work_within_its_bounds_gives_its_answer():
    large = {"text": "x" * 1_000_000}
    assert run_bounded(lambda: large, seconds=10, num_bytes=GIB) == large
