"""The server as a process: killed at any moment it loses nothing and repeats nothing; told to stop it stops."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx2
import pytest
import server_setup
from server_setup import submit, wait

from wan_s2v.cli import main
from wan_s2v.server.jobs import Queue

facts = server_setup.facts
PROGRAM = """
import json, sys
from pathlib import Path
from wan_s2v.server.serve import run
from wan_s2v.server.service import Service, Settings
run(Service(Settings(Path(sys.argv[1])), json.loads(Path(sys.argv[2]).read_text())), "127.0.0.1", int(sys.argv[3]))
"""


class Served:
    """A server process that can be killed and started again on its folder."""

    def __init__(self, folder, facts) -> None:
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            self._port = found.getsockname()[1]
        self.folder, self._facts = folder / "server", folder / "facts.json"
        self._facts.write_text(json.dumps(facts))
        self.client = httpx2.Client(base_url=f"http://127.0.0.1:{self._port}", timeout=120)

    def start(self) -> None:
        words = [sys.executable, "-c", PROGRAM, str(self.folder), str(self._facts), str(self._port)]
        self.process = subprocess.Popen(words)
        for _ in range(600):
            try:
                self.client.get("/health")
                return
            except httpx2.TransportError:
                assert self.process.poll() is None
                time.sleep(0.1)
        raise AssertionError("the server does not answer")

    def worker(self) -> int:
        """The process that makes videos."""
        for _ in range(600):
            for children in Path(f"/proc/{self.process.pid}/task").glob("*/children"):
                for child in children.read_text().split():
                    if b"wan_s2v.server.worker" in Path(f"/proc/{child}/cmdline").read_bytes():
                        return int(child)
            time.sleep(0.1)
        raise AssertionError("there is no worker")

    def end(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        return self.process.wait(timeout=90)


@pytest.fixture
def served(tmp_path, facts):
    made = Served(tmp_path, facts)
    yield made
    if made.process.poll() is None:
        made.end(signal.SIGKILL)
    made.client.close()


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="a server's processes are found in /proc")
def test_jobs_outlive_their_worker_the_server_and_its_end(served):
    served.start()
    client = served.client
    finished = submit(client)
    assert wait(client, finished)["status"] == "done"
    video = served.folder / "jobs" / finished["id"] / "video.mp4"
    made = video.stat().st_mtime_ns
    running, waiting = submit(client, num_inference_steps="200"), submit(client)
    wait(client, running, status="running")
    os.kill(served.worker(), signal.SIGKILL)
    wait(client, running, status="queued")
    served.end(signal.SIGKILL)

    served.start()
    for job in (running, waiting):
        assert wait(client, job)["status"] == "done"
    assert video.stat().st_mtime_ns == made
    stopped, after = submit(client, num_inference_steps="900"), submit(client)
    wait(client, stopped, status="running")
    assert served.end(signal.SIGTERM) == 0

    queue = Queue(served.folder / "queue.sqlite")
    states = {job.id: (job.status, job.crashes) for job in queue.newest("local", 9)}
    queue.close()
    assert states == {
        finished["id"]: ("done", 0),
        running["id"]: ("done", 1),
        waiting["id"]: ("done", 0),
        stopped["id"]: ("queued", 0),
        after["id"]: ("queued", 0),
    }


@pytest.mark.parametrize(
    ("words", "code", "part"),
    [
        (["--host", "0.0.0.0"], 2, "error: Host 0.0.0.0 is open to other machines"),
        (["--tokens", "missing"], 2, "error: Tokens missing cannot be read"),
        (["--model", "missing"], 2, "missing"),
    ],
)
def test_what_would_not_work_is_said_at_the_start(words, code, part, capfd, monkeypatch, tmp_path):
    monkeypatch.delenv("WAN_S2V_API_TOKEN", raising=False)
    assert main(["serve", "--device", "cpu", "--folder", str(tmp_path / "server"), *words]) == code
    assert part in capfd.readouterr().err
