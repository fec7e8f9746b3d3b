"""The HTTP service from outside: routes, rights and limits, with the real processes and a small model behind them."""

from __future__ import annotations

import io
import json
import time
import wave
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import server_setup
from conftest import MEDIA
from hostile_files import hostile_files
from server_setup import IMAGE, SMALL, inputs, served, submit, wait

from wan_s2v.plan import GenerationOptions
from wan_s2v.server.jobs import new_id
from wan_s2v.server.limits import MIB, Limits
from wan_s2v.server.schemas import VideoOptions
from wan_s2v.server.tokens import COOKIE
from wan_s2v.styles import STYLES
from wan_s2v.video import read_frames, read_video_info

facts = server_setup.facts
ALICE, BOB = {"Authorization": "Bearer alice-0123456789"}, {"Authorization": "Bearer bob-0123456789abc"}
TOKENS = {"alice-0123456789": "alice", "bob-0123456789abc": "bob"}
LIMITS = Limits(upload_bytes=2 * MIB, frame_pixels=640 * 480, active_jobs=3)
NOT_HERE = {
    *("prompt_embeds", "negative_prompt_embeds", "generator"),
    *("pose_video_path", "vocals_path", "text", "voice"),  # files, and what becomes one
    *("enable_cpu_offload", "use_fp16", "content_producer", "sign_certificate", "sign_key"),  # the operator's
}


@pytest.fixture(scope="module")
def server(facts, tmp_path_factory):
    """Client, service, and what each test may leave in it."""
    with served(facts, tmp_path_factory.mktemp("served") / "server", limits=LIMITS) as (client, service):
        yield client, service


@pytest.fixture(scope="module")
def done(server):
    """A finished job."""
    client, _ = server
    return wait(client, submit(client, seed="5", style=["warm", "close-up"], prompt="A talk."))


def message(answer) -> str:
    content = answer.json()
    assert set(content) == {"error"}, content
    assert set(content["error"]) == {"message", "type"}
    assert "\n" not in content["error"]["message"]
    return content["error"]["message"]


def test_options_are_those_of_the_pipeline():
    theirs = {field.name: field.default for field in fields(GenerationOptions) if field.name not in NOT_HERE}
    ours = {name: field.default for name, field in VideoOptions.model_fields.items() if name != "style"}
    assert ours == theirs


def test_a_video_is_made_and_can_be_fetched(server, done):
    client, service = server
    assert done["status"] == "done", done["error"]
    assert done["params"]["seed"] == done["plan"]["seed"] == 5
    assert done["plan"]["options"]["prompt"] == "A talk. Warm colours of amber and orange, close-up of the face."
    assert done["created_at"] <= done["started_at"] <= done["finished_at"]
    assert (done["position"], done["progress"], done["has_preview"]) == (None, None, False)
    content = client.get(f"/v1/videos/{done['id']}/content")
    path = service.storage.folder / "fetched.mp4"
    path.write_bytes(content.content)
    info = read_video_info(path)
    assert (info.num_frames, info.height, info.width, info.fps, info.audio_codec) == (4, 64, 64, 24, "aac")
    assert content.headers["content-type"] == "video/mp4"


def test_ranges_of_a_video(server, done):
    client, _ = server
    address = f"/v1/videos/{done['id']}/content"
    whole = client.get(address).content
    part = client.get(address, headers={"Range": "bytes=10-19"})
    assert (part.status_code, part.content) == (206, whole[10:20])
    assert part.headers["content-range"] == f"bytes 10-19/{len(whole)}"
    assert client.get(address, headers={"Range": "bytes=-5"}).content == whole[-5:]
    assert client.get(address, headers={"Range": f"bytes={len(whole)}-"}).status_code == 416
    assert client.head(address).headers["content-length"] == str(len(whole))


def test_the_record_of_a_video_names_no_place_on_the_server(server, done):
    client, service = server
    record = client.get(f"/v1/videos/{done['id']}/sidecar").json()
    assert record["seed"] == 5
    assert record["model"] == "Wan2.2-S2V-14B"
    for text in (json.dumps(record), json.dumps(done)):
        assert str(service.storage.folder) not in text


def test_the_same_request_gives_the_frames_of_the_command_line(server, facts, done, tmp_path):
    from wan_s2v.cli import main

    client, _ = server
    output = tmp_path / "out.mp4"
    words = [word for name, value in SMALL.items() for word in (f"--{name.replace('_', '-')}", value)]
    words += ["--style", "warm", "--style", "close-up", "--prompt", "A talk.", "--seed", "5", "--device", "cpu", "-q"]
    model = Path(facts["folder"])
    files = ["--image", str(IMAGE), "--audio", str(server_setup.VOICE), "-o", str(output), "--model", str(model)]
    assert main(["generate", *files, *words]) == 0
    fetched = tmp_path / "fetched.mp4"
    fetched.write_bytes(client.get(f"/v1/videos/{done['id']}/content").content)
    assert np.array_equal(list(read_frames(output)), list(read_frames(fetched)))


def test_events_tell_of_every_change_and_end_with_the_job(server):
    client, _ = server
    job = submit(client, num_inference_steps="60")
    with client.stream("GET", f"/v1/videos/{job['id']}/events") as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        text = "".join(stream.iter_text())
    blocks = [block.split("\n") for block in text.strip().split("\n\n")]
    assert all(block[0] == "event: job" and block[1].startswith("data: ") for block in blocks)
    jobs = [json.loads(block[1][6:]) for block in blocks]
    assert jobs[-1]["status"] == "done"
    assert any(job["progress"] for job in jobs)
    fractions = [job["progress"]["fraction"] for job in jobs if job["progress"]]
    assert fractions == sorted(fractions)


def test_a_plan_is_made_and_nothing_is_kept(server):
    client, service = server
    before = sorted(service.storage.folder.rglob("*"))
    plan = client.post("/v1/plan", files=inputs(), data=SMALL).json()
    assert (plan["width"], plan["height"], plan["num_frames"], plan["num_clips"]) == (64, 64, 4, 1)
    assert plan["seconds"] > 0
    assert plan["memory_gib"] > 0
    assert plan["plan"]["num_inference_steps"] == 2
    assert sorted(service.storage.folder.rglob("*")) == before


def test_a_stretch_of_a_long_sound_and_its_vocals(server):
    client, _ = server
    sound = io.BytesIO()
    with wave.open(sound, "wb") as writer:
        writer.setparams((1, 1, 2000, 0, "NONE", ""))
        writer.writeframes(np.random.default_rng(1).integers(0, 255, 2000 * 310, np.uint8).tobytes())
    options = {name: value for name, value in SMALL.items() if name != "num_frames"}
    files = inputs() | {"audio": sound.getvalue(), "vocals": sound.getvalue()}
    plan = client.post("/v1/plan", files=files, data=options | {"start_s": "0:01", "duration_s": "0.5"}).json()
    assert plan["duration_s"] == 0.5, plan
    for length in ({}, {"duration_s": "301"}):
        assert "At most 300 s" in message(client.post("/v1/plan", files=files, data=options | length))


def test_text_is_spoken_where_a_voice_is_installed(server):
    client, _ = server
    picture = {"image": IMAGE.read_bytes()}
    answer = client.post("/v1/plan", files=picture, data=SMALL | {"text": "Say this.", "voice": "en"})
    voices = client.get("/v1/model").json()["voices"]
    if find_spec("wan_s2v.speech_synthesis") is None:
        assert "which is not installed" in message(answer)
        assert voices == []
        return
    assert answer.status_code == 200, answer.text
    assert "en" in voices
    both = client.post("/v1/plan", files=inputs(), data=SMALL | {"text": "Say this."})
    assert "audio is, too" in message(both)
    assert "no text" in message(client.post("/v1/plan", files=picture, data=SMALL | {"voice": "en"}))


def test_a_size_that_is_left_out_keeps_to_the_limit(server):
    client, _ = server
    plan = client.post("/v1/plan", files=inputs(), data={"num_frames": "4"}).json()
    assert plan["width"] * plan["height"] <= LIMITS.frame_pixels


def test_pose_video_and_pages_of_the_list(server):
    client, _ = server
    files = inputs() | {"pose_video": (MEDIA / "pose_small.mp4").read_bytes()}
    first = client.post("/v1/videos", files=files, data=SMALL).json()
    second = submit(client)
    assert wait(client, first)["status"] == wait(client, second)["status"] == "done"
    page = client.get("/v1/videos", params={"limit": 1}).json()
    assert ([job["id"] for job in page["data"]], page["has_more"]) == ([second["id"]], True)
    page = client.get("/v1/videos", params={"limit": 1, "after": second["id"]}).json()
    assert [job["id"] for job in page["data"]] == [first["id"]]
    assert client.get("/v1/videos", params={"after": new_id()}).status_code == 404
    assert client.get("/v1/videos", params={"limit": 0}).status_code == 422


def test_cancel_and_delete(server):
    client, service = server
    running = submit(client, num_inference_steps="900")
    waiting = submit(client)
    assert wait(client, running, status="running")["status"] == "running"
    assert client.get(f"/v1/videos/{running['id']}/content").status_code == 409
    assert client.get(f"/v1/videos/{running['id']}/preview").status_code == 404
    assert client.get(f"/v1/videos/{waiting['id']}").json()["position"] == 1
    assert client.post(f"/v1/videos/{waiting['id']}/cancel").json()["status"] == "cancelled"
    assert client.post(f"/v1/videos/{waiting['id']}/cancel").status_code == 409
    client.post(f"/v1/videos/{running['id']}/cancel")
    assert wait(client, running)["status"] == "cancelled"
    running = submit(client, num_inference_steps="900")
    wait(client, running, status="running")
    for job in (running, waiting):
        assert client.delete(f"/v1/videos/{job['id']}").status_code == 204
        assert client.get(f"/v1/videos/{job['id']}").status_code == 404
    deadline = time.monotonic() + 20
    while service.storage.files(running["id"]).folder.exists() and time.monotonic() < deadline:
        service.housekeeper.tidy()
        time.sleep(0.1)
    assert not service.storage.files(running["id"]).folder.exists()
    assert not service.storage.files(waiting["id"]).folder.exists()


def test_a_key_gives_one_job_however_often_it_is_sent(server):
    client, _ = server
    first, again = (submit(client, {"Idempotency-Key": "once"}) for _ in range(2))
    assert first["id"] == again["id"]
    wait(client, first)


def test_only_so_many_jobs_of_one_owner(server):
    client, _ = server
    jobs = [submit(client, num_inference_steps="900") for _ in range(LIMITS.active_jobs)]
    refused = client.post("/v1/videos", files=inputs(), data=SMALL)
    assert refused.status_code == 429
    assert "3 of your videos" in message(refused)
    for job in jobs:
        client.delete(f"/v1/videos/{job['id']}")
    time.sleep(0.5)


HOSTILE = hostile_files()


def test_there_are_enough_hostile_files():
    assert len(HOSTILE) >= 60


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_get_one_clear_line(server, name):
    client, service = server
    field, data = HOSTILE[name]
    # names and types are lies, too
    files = inputs() | {field: ("../../../../etc/passwd\0.png", data, "image/png")}
    options = {name: value for name, value in SMALL.items() if name != "num_frames"}  # all of the sound
    refused = client.post("/v1/videos", files=files, data=options)
    assert refused.status_code in (413, 415, 422), refused.text
    text = message(refused)
    assert field in text
    assert str(service.storage.folder) not in text
    assert list(service.storage.incoming.iterdir()) == []


@pytest.mark.parametrize("name", ["../../../escape", "/etc/passwd", "C:\\windows\\x", "a\0b", "x" * 2000, "..", ""])
def test_names_of_files_do_not_matter(server, name):
    client, service = server
    files = {field: (name or "blob", data, "text/html") for field, data in inputs().items()}
    assert client.post("/v1/plan", files=files, data=SMALL).status_code == 200
    assert list(service.storage.incoming.iterdir()) == []


@pytest.mark.parametrize(
    ("data", "part"),
    [
        ({"height": "banana"}, "height='banana'"),
        ({"heigth": "64"}, "Did you mean height?"),
        ({"guidance_scale": "nan"}, "guidance_scale='nan'"),
        ({"seed": "-1"}, "seed='-1'"),
        ({"scheduler": "magic"}, "scheduler='magic'"),
        ({"style": "golden"}, "style 'golden' does not exist"),
        ({"style": ["warm", "cool"]}, "are both of colour"),
        ({"num_frames": "10000000"}, "At most 300 s"),
        ({"height": "4096", "width": "4096"}, "At most 307200 pixels"),
        ({"height": "1024"}, "At most 307200 pixels"),
        ({"width": "70"}, "not a multiple of 16"),
        ({"fps": "1000"}, "outside 1…240"),
        ({"fps": "1e999999999"}, "fps='1e999999999'"),
        ({"frames_per_clip": "7"}, "frames_per_clip"),
        ({"prompt": "x" * 20_000}, "prompt="),
        ({"prompt": ["a", "b"]}, "prompt is given 2 times"),
        ({"image": "text"}, "image is not one file"),
        ({"pose_video_path": "/etc/passwd"}, "'pose_video_path' is not an option"),
        ({"enable_cpu_offload": "true"}, "is not an option"),
    ],
)
def test_options_that_are_not_accepted(server, data, part):
    client, _ = server
    files = [(name, value) for name, value in inputs().items() if name not in data]
    refused = client.post("/v1/plan", files=files, data=data if {"height", "width"} & data.keys() else SMALL | data)
    assert refused.status_code in (413, 422), refused.text
    assert part in message(refused)


def test_bodies_that_cannot_be_read(server):
    client, service = server
    post = client.post
    assert "There is no audio" in message(post("/v1/plan", files={"image": IMAGE.read_bytes()}, data=SMALL))
    broken = post("/v1/plan", content=b"--x\r\nbroken", headers={"Content-Type": "multipart/form-data; boundary=y"})
    assert broken.status_code == 400 or "There is no image" in message(broken)
    assert post("/v1/plan", content=b"x", headers={"Content-Type": "multipart/form-data"}).status_code == 400
    assert post("/v1/plan", json={"image_url": "http://example.com/a.png"}).status_code == 415
    assert post("/v1/plan").status_code == 415
    many = [*inputs().items(), *(("style", (None, f"{number}")) for number in range(200))]
    assert post("/v1/plan", files=many).status_code == 400
    large = post("/v1/plan", files=inputs() | {"image": bytes(3 * MIB)}, data=SMALL)
    assert (large.status_code, large.json()["error"]["type"]) == (413, "too_large")
    huge = post("/v1/plan", files=inputs() | {"image": bytes(10 * MIB)}, data=SMALL)
    assert "The request has more than" in message(huge)
    assert list(service.storage.incoming.iterdir()) == []


def test_facts(server):
    client, _ = server
    model = client.get("/v1/model").json()
    assert (model["name"], model["device"]) == ("Wan2.2-S2V-14B", "cpu")
    assert model["limits"]["upload_bytes"] == 2 * MIB
    styles = client.get("/v1/styles").json()["styles"]
    assert [style["name"] for style in styles] == [style.name for style in STYLES]
    assert client.get("/health").json()["status"] in ("ok", "degraded")
    assert "wan_s2v_jobs{status=" in client.get("/metrics").text
    page = client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'self'" in page.headers["content-security-policy"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("GET", "/../../etc/passwd", 404),
        ("GET", "/%2e%2e/%2e%2e/etc/passwd", 404),
        ("GET", "/v1/videos/..%2f..%2fsecret", 404),
        ("GET", "/v1/videos/../../queue.sqlite/content", 404),
        ("GET", "/v1/videos/%00/content", 404),
        ("GET", "/v1/videos/" + "a" * 5000, 404),
        ("PUT", "/v1/videos", 405),
        ("GET", "/v1/plan", 405),
    ],
)
def test_paths_that_lead_nowhere(server, method, path, status):
    client, _ = server
    refused = client.request(method, path)
    assert refused.status_code == status
    message(refused)


def test_pages_of_others_cannot_use_a_server_without_tokens(server):
    client, _ = server
    for headers in ({"Host": "evil.example"}, {"Origin": "http://evil.example"}, {"Origin": "null"}):
        assert client.get("/v1/videos", headers=headers).status_code == 403
        assert client.post("/v1/plan", headers=headers).status_code == 403
    assert client.get("/v1/videos", headers={"Origin": "http://127.0.0.1"}).status_code == 200


@pytest.fixture(scope="module")
def guarded(facts, tmp_path_factory):
    """A server with two tokens, whose queue is filled by hand; its processes are not started."""
    from starlette.testclient import TestClient

    from wan_s2v.server.app import create_app
    from wan_s2v.server.service import Service, Settings

    service = Service(Settings(tmp_path_factory.mktemp("guarded"), TOKENS), facts)
    client = TestClient(create_app(service), base_url="http://example.com")  # without its lifespan
    yield client, service
    service.close()


def test_without_a_token_nothing_is_told(guarded):
    client, _ = guarded
    for path in ("/v1/videos", "/v1/model", "/v1/styles", "/metrics", f"/v1/videos/{new_id()}/content"):
        refused = client.get(path)
        assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer"), path
        message(refused)
    for header in ("Bearer wrong-token-0123", "Basic YWxpY2U6eA==", "Bearer", "Bearer \u00e9\u00e9".encode("latin-1")):
        assert client.get("/v1/videos", headers={"Authorization": header}).status_code == 401
    assert client.post("/v1/videos", files=inputs()).status_code == 401
    assert client.get("/health").status_code == 503  # open to all; nothing runs


def test_owners_see_their_own_videos_alone(guarded):
    client, service = guarded
    job = service.queue.add(new_id(), "alice", {"params": {}, "plan": {}, "warnings": [], "num_bytes": 0}, Limits())
    assert [found["id"] for found in client.get("/v1/videos", headers=ALICE).json()["data"]] == [job.id]
    assert client.get("/v1/videos", headers=BOB).json()["data"] == []
    for method, path in (("GET", ""), ("GET", "/content"), ("GET", "/events"), ("POST", "/cancel"), ("DELETE", "")):
        assert client.request(method, f"/v1/videos/{job.id}{path}", headers=BOB).status_code == 404
    assert client.get(f"/v1/videos/{job.id}", headers=ALICE).status_code == 200


def test_the_cookie_of_a_page_only_reads(guarded):
    client, service = guarded
    answer = client.get("/v1/model", headers=ALICE)
    attributes = answer.headers["set-cookie"].lower()
    assert all(word in attributes for word in ("httponly", "samesite=strict", "path=/v1"))
    cookie = {"Cookie": f"{COOKIE}={answer.cookies[COOKIE]}"}
    client.cookies.clear()
    assert client.get("/v1/videos", headers=cookie).status_code == 200
    assert client.post("/v1/plan", headers=cookie).status_code == 401
    assert client.delete(f"/v1/videos/{new_id()}", headers=cookie).status_code == 401
    owner, end, signature = answer.cookies[COOKIE].split(".")
    for forged in (f"bob.{end}.{signature}", f"{owner}.{int(end) + 9}.{signature}", "x", "..", f"{owner}.{end}."):
        assert client.get("/v1/videos", headers={"Cookie": f"{COOKIE}={forged}"}).status_code == 401
    past = f"alice.{int(time.time()) - 1}"
    late = f"{past}.{service.tokens._sign(past)}"
    assert client.get("/v1/videos", headers={"Cookie": f"{COOKIE}={late}"}).status_code == 401
