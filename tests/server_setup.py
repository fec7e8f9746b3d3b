"""A server in the test process with its real processes behind it, and what a client sends to it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from checkpoints import write_official_s2v
from conftest import MEDIA
from starlette.testclient import TestClient

from wan_s2v.commands.request import ModelChoice
from wan_s2v.plan import GenerationOptions
from wan_s2v.server.app import create_app
from wan_s2v.server.probe import probe
from wan_s2v.server.service import Service, Settings

IMAGE = MEDIA / "beach_small.jpg"
VOICE = MEDIA / "talk_2s.wav"
SMALL = {"height": "64", "width": "64", "num_inference_steps": "2", "guidance_scale": "1", "num_frames": "4"}


@pytest.fixture(scope="session")
def facts(tmp_path_factory) -> dict[str, Any]:
    """What the probe finds about a small checkpoint in the official layout."""
    folder = write_official_s2v(tmp_path_factory.mktemp("checkpoint") / "Wan2.2-S2V-14B")
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that are started, as in this one: then frames are equal
    return probe(ModelChoice(str(folder), device="cpu"), GenerationOptions()) | {"folder": str(folder)}


@contextmanager
def served(facts: dict[str, Any], folder: Path, **settings: Any) -> Iterator[tuple[TestClient, Service]]:
    service = Service(Settings(folder, **settings), facts)
    with TestClient(create_app(service), base_url="http://127.0.0.1", raise_server_exceptions=False) as client:
        yield client, service


def inputs(image: Path = IMAGE, audio: Path = VOICE) -> dict[str, Any]:
    return {"image": image.read_bytes(), "audio": audio.read_bytes()}


def submit(client: TestClient, headers: dict[str, str] | None = None, **options: Any) -> dict[str, Any]:
    answer = client.post("/v1/videos", files=inputs(), data=SMALL | options, headers=headers)
    assert answer.status_code == 202, answer.text
    return answer.json()


def wait(client: TestClient, job: dict[str, Any], *, seconds: float = 60, **wanted: Any) -> dict[str, Any]:
    """The job when it has ended, or when it has the wanted values."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = client.get(f"/v1/videos/{job['id']}").json()
        if found["status"] in ("done", "failed", "cancelled"):
            return found
        if wanted and all(found[name] == value for name, value in wanted.items()):
            return found
        time.sleep(0.05)
    raise AssertionError(f"not finished: {found}")
