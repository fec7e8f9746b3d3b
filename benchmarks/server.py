"""What the server promises, measured on this machine: jobs under kill -9, wild requests, memory, and its own cost.

    python benchmarks/server.py kills --jobs 200 --clients 8 --kills 20
    python benchmarks/server.py fuzz --examples 200
    python benchmarks/server.py memory --jobs 300
    python benchmarks/server.py overhead --jobs 3

Prints one JSON object. `kills`, `fuzz` and `memory` use a small checkpoint with golden weights, whose jobs take about a
second; `overhead` uses the embedded model and the bundled portrait and voice.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import httpx2

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))
from checkpoints import write_official_s2v  # noqa: E402

MEDIA = ROOT / "tests" / "media"
DEMO = ROOT / "src" / "wan_s2v" / "assets" / "demo"
TOKEN = "a-token-for-this-run"
SMALL = {"height": "64", "width": "64", "num_inference_steps": "2", "guidance_scale": "1", "num_frames": "4"}
# Counts what happens to rows inside the database itself, whoever does it.
AUDIT = """
CREATE TABLE IF NOT EXISTS finishes (id TEXT);
CREATE TABLE IF NOT EXISTS starts (id TEXT, after_done INTEGER);
CREATE TRIGGER IF NOT EXISTS on_done AFTER UPDATE OF status ON jobs WHEN NEW.status = 'done'
    BEGIN INSERT INTO finishes VALUES (NEW.id); END;
CREATE TRIGGER IF NOT EXISTS on_start AFTER UPDATE OF status ON jobs WHEN NEW.status = 'running'
    BEGIN INSERT INTO starts VALUES (NEW.id, OLD.status = 'done'); END;
"""


class Server:
    """`wan-s2v serve` as a process."""

    def __init__(self, folder: Path, model: str, *flags: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.folder, self.address = folder, f"http://127.0.0.1:{self.port}"
        self._words = [sys.executable, "-m", "wan_s2v", "serve", "--port", str(self.port), "--folder", str(folder)]
        self._words += ["--model", model, "--device", "cpu", *flags]
        self._log = (folder.parent / "server.log").open("a")

    def start(self, *, ready: bool = True) -> Server:
        self.process = subprocess.Popen(self._words, stderr=self._log)
        while True:
            assert self.process.poll() is None, "the server ended; see server.log"
            try:
                health = httpx2.get(f"{self.address}/health").json()
            except httpx2.TransportError:
                time.sleep(0.1)
                continue
            if health["status"] == "ok" or not ready:
                return self
            time.sleep(0.1)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait()

    def memory_mib(self) -> dict[str, float]:
        """Resident memory of the server and of the processes below it."""
        found = {}
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                status = (entry / "status").read_text()
            except (OSError, IndexError, ValueError):
                continue
            if self.process.pid in (parent, int(entry.name)):
                name = "server" if int(entry.name) == self.process.pid else words[2].decode().rpartition(".")[2]
                found[name] = int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024
        return found


def inputs() -> dict[str, bytes]:
    return {"image": (MEDIA / "beach_small.jpg").read_bytes(), "audio": (MEDIA / "talk_0s3.wav").read_bytes()}


def kills(words: argparse.Namespace, folder: Path, model: str) -> dict[str, object]:
    """Clients send jobs and wait for them while the server is killed again and again."""
    server = Server(folder / "server", model, "--max-jobs-per-token", str(words.jobs)).start()
    with sqlite3.connect(server.folder / "queue.sqlite", timeout=60) as database:
        database.executescript(AUDIT)
    keys, accepted, lock = list(range(words.jobs)), {}, threading.Lock()
    stop = threading.Event()

    def client() -> None:
        while not stop.is_set():
            with lock:
                if not keys:
                    return
                key = keys.pop()
            while key not in accepted:
                try:
                    headers = {"Idempotency-Key": f"job-{key}"}
                    data = SMALL | {"seed": str(key)}
                    answer = httpx2.post(
                        f"{server.address}/v1/videos", files=inputs(), data=data, headers=headers, timeout=60
                    )
                    if answer.status_code == 202:
                        accepted[key] = answer.json()["id"]
                except httpx2.TransportError:
                    time.sleep(0.2)

    clients = [threading.Thread(target=client) for _ in range(words.clients)]
    for thread in clients:
        thread.start()
    chance, started = random.Random(1), time.monotonic()
    for number in range(words.kills):
        time.sleep(chance.uniform(0.5, words.pause))
        server.kill()
        print(f"kill {number + 1} after {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
        server.start(ready=chance.random() < 0.7)  # sometimes again before anything is loaded
    for thread in clients:
        thread.join()
    while True:
        with sqlite3.connect(server.folder / "queue.sqlite", timeout=60) as database:
            states = Counter(row[0] for row in database.execute("SELECT status FROM jobs"))
        if not states["queued"] + states["running"]:
            break
        time.sleep(1)
    code = server.stop()
    with sqlite3.connect(server.folder / "queue.sqlite") as database:
        finishes = Counter(row[0] for row in database.execute("SELECT id FROM finishes"))
        starts = Counter(row[0] for row in database.execute("SELECT id FROM starts"))
        repeated = database.execute("SELECT count(*) FROM starts WHERE after_done").fetchone()[0]
    return {
        "accepted": len(accepted),
        "distinct": len(set(accepted.values())),
        "statuses": states,
        "finished_exactly_once": sum(finishes[job] == 1 for job in accepted.values()),
        "finished_jobs_started_again": repeated,
        "jobs_taken_up_again": sum(count > 1 for count in starts.values()),
        "videos": len(list(server.folder.glob("jobs/*/video.mp4"))),
        "partial_files_left": len(list(server.folder.glob("jobs/*/.*"))),
        "kills": words.kills,
        "exit_code_of_sigterm": code,
        "seconds": round(time.monotonic() - started, 1),
    }


def fuzz(words: argparse.Namespace, folder: Path, model: str) -> dict[str, object]:
    """schemathesis against the OpenAPI document."""
    (folder / "tokens").write_text(f"fuzz {TOKEN}\n")
    server = Server(folder / "server", model, "--max-jobs-per-token", "1000", "--tokens", str(folder / "tokens"))
    server.start()
    headers = {"Authorization": f"Bearer {TOKEN}"}
    made = [
        httpx2.post(f"{server.address}/v1/videos", files=inputs(), data=SMALL, headers=headers).json()["id"]
        for _ in range(2)
    ]
    # half of what is asked is about videos that there are
    (folder / "schemathesis.toml").write_text(f'[parameters]\n"path.video_id" = {json.dumps([*made, "0" * 32])}\n')
    command = [str(Path(sys.executable).with_name("schemathesis")), "run", f"{server.address}/openapi.json"]
    command += ["--max-examples", str(words.examples), "--seed", "1", "--workers", "1", "--no-color"]
    command += ["--continue-on-failure", "--suppress-health-check", "all", "--generation-database", "none"]
    command += ["--request-timeout", "60", "--header", f"Authorization: Bearer {TOKEN}"]
    # bytes made up from a schema are no picture: that they are refused is right
    command += ["--exclude-checks", "positive_data_acceptance"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    health = httpx2.get(f"{server.address}/health").json()
    server.stop()
    print(done.stdout, file=sys.stderr)
    cases = re.search(r"(\d+) generated", done.stdout)
    return {
        "cases": int(cases[1]) if cases else None,
        "failures": re.findall(r"❌ (ST\d.*)", done.stdout),
        "exit_code": done.returncode,
        "health_after": health["status"],
    }


def memory(words: argparse.Namespace, folder: Path, model: str) -> dict[str, object]:
    """Resident memory while many jobs pass through."""
    server = Server(folder / "server", model).start()
    measured = []
    for number in range(words.jobs):
        answer = httpx2.post(
            f"{server.address}/v1/videos", files=inputs(), data=SMALL | {"seed": str(number)}, timeout=60
        )
        address = f"{server.address}/v1/videos/{answer.json()['id']}"
        with httpx2.stream("GET", f"{address}/events", timeout=60) as events:
            events.read()
        assert httpx2.get(address).json()["status"] == "done"
        httpx2.get(f"{address}/content")
        if (number + 1) % max(1, words.jobs // 12) == 0:
            measured.append({"jobs": number + 1} | {k: round(v, 1) for k, v in server.memory_mib().items()})
            print(measured[-1], file=sys.stderr, flush=True)
    server.stop()
    return {"mib": measured}


def overhead(words: argparse.Namespace, folder: Path, _model: str) -> dict[str, object]:
    """The same jobs by `wan-s2v batch` and by the server, both with the model loaded; from start to start."""
    image, audio = words.image, words.audio
    options = json.loads(words.options)
    jobs = folder / "jobs.jsonl"
    common = {"image": str(image), "audio": str(audio), **options}
    count = words.jobs + 1  # the first one warms up
    lines = [json.dumps(common | {"seed": n, "output": f"cli{n}.mp4"}) for n in range(count)]
    jobs.write_text("\n".join(lines) + "\n")
    command = [
        sys.executable,
        "-m",
        "wan_s2v",
        "batch",
        str(jobs),
        "--output-dir",
        str(folder),
        "--device",
        "cpu",
        "-q",
    ]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    report = [json.loads(line) for line in (folder / "jobs.jsonl.report.jsonl").read_text().splitlines()]
    batch_s = [entry["seconds"] for entry in report][1:]
    server = Server(folder / "server", "tiny").start()
    files = {"image": image.read_bytes(), "audio": audio.read_bytes()}
    served_s, working_s, making_s = [], [], []
    for number in range(count):
        started = time.perf_counter()
        data = {name: str(value) for name, value in options.items()} | {"seed": str(number)}
        answer = httpx2.post(f"{server.address}/v1/videos", files=files, data=data, timeout=60)
        address = f"{server.address}/v1/videos/{answer.json()['id']}"
        with httpx2.stream("GET", f"{address}/events", timeout=600) as events:
            events.read()
        served_s.append(time.perf_counter() - started)
        job = httpx2.get(address).json()
        working_s.append(job["finished_at"] - job["started_at"])
        making_s.append(httpx2.get(f"{address}/sidecar").json()["seconds"]["total"])
        same = len(httpx2.get(f"{address}/content").content) == (folder / f"cli{number}.mp4").stat().st_size
        print(f"job {number}: {served_s[-1]:.2f} s, same size: {same}", file=sys.stderr, flush=True)
    server.stop()
    served_s, working_s, making_s = served_s[1:], working_s[1:], making_s[1:]
    ratio = statistics.median(served_s) / statistics.median(batch_s) - 1
    # within one job, which other programs on the machine do not disturb
    beside, busy = (
        statistics.median(whole / making - 1 for whole, making in zip(times, making_s, strict=True))
        for times in (served_s, working_s)
    )
    return {
        "batch_s": [round(s, 2) for s in batch_s],
        "server_s": [round(s, 2) for s in served_s],
        "worker_s": [round(s, 2) for s in working_s],
        "making_s": [round(s, 2) for s in making_s],
        "over_batch_percent": round(100 * ratio, 2),
        "client_over_making_percent": round(100 * beside, 2),
        "worker_over_making_percent": round(100 * busy, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["kills", "fuzz", "memory", "overhead"])
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--pause", type=float, default=15.0, help="most seconds from a start to the next kill")
    parser.add_argument("--examples", type=int, default=200, help="per operation")
    parser.add_argument("--image", type=Path, default=DEMO / "portrait.png")
    parser.add_argument("--audio", type=Path, default=DEMO / "voice.wav")
    parser.add_argument("--options", default="{}", help="of the overhead's jobs, as JSON")
    words = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = write_official_s2v(folder / "Wan2.2-S2V-14B")
        run = {"kills": kills, "fuzz": fuzz, "memory": memory, "overhead": overhead}[words.what]
        print(json.dumps({"what": words.what} | run(words, folder, str(model)), indent=1))


if __name__ == "__main__":
    main()
