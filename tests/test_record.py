"""What a run leaves beside its video: the record that makes it again, previews, and events for programs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jsonschema_rs
import numpy as np
import pytest
import torch
from command_line import FAST, IMAGE, VOICE, model, wan_s2v  # noqa: F401
from PIL import Image
from test_resume import SIZE, STEPS

from wan_s2v import preview as preview_module
from wan_s2v.errors import NumericsError
from wan_s2v.preview import fitted_colours
from wan_s2v.video import read_frames, read_video_info

SCHEMA = Path(__file__).parent.parent / "docs" / "sidecar.schema.json"


@pytest.fixture
def made(wan_s2v, model, tmp_path) -> Path:  # noqa: F811
    """A video of a picture of its own, with previews and events."""
    shutil.copy(IMAGE, tmp_path / "portrait.jpg")
    words = ["generate", "-m", model, "-i", tmp_path / "portrait.jpg", "-a", VOICE, "-o", tmp_path / "out.mp4"]
    run = wan_s2v(*words, *SIZE, *STEPS, "--seed", 5, "--preview", "--events", tmp_path / "events.jsonl", "-q")
    assert run.code == 0, run.err
    return tmp_path


def test_the_record_has_the_documented_form(made):
    record = json.loads((made / "out.mp4.json").read_text())
    validator = jsonschema_rs.validator_for(json.loads(SCHEMA.read_text()))
    assert [error.message for error in validator.iter_errors(record)] == []
    assert set(record) <= set(json.loads(SCHEMA.read_text())["properties"])
    assert [clip["seed"] for clip in record["clips"]] == [5, 6, 7]
    assert sum(clip["num_frames"] for clip in record["clips"]) == record["num_frames"] == 24
    assert record["seconds"]["total"] >= record["seconds"]["denoise"] > 0


def test_replay_makes_the_same_video(wan_s2v, made):  # noqa: F811
    run = wan_s2v("replay", made / "out.mp4.json")
    assert run.code == 0, run.err
    assert run.out.strip() == str(made / "out_again.mp4")
    assert "note" not in run.err
    first, again = (np.stack(list(read_frames(made / name))) for name in ("out.mp4", "out_again.mp4"))
    assert np.array_equal(first, again)
    assert "exists already" in wan_s2v("replay", made / "out.mp4.json").errors[0]


def test_replay_refuses_other_inputs_and_weights(wan_s2v, made):  # noqa: F811
    path = made / "out.mp4.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"identity": record["identity"] | {"weights": {"vae": "0"}}}))
    assert "weights" in wan_s2v("replay", path).errors[0]
    path.write_text(json.dumps(record | {"identity": record["identity"] | {"wan_s2v": "0.0.1"}}))
    assert "wan_s2v was 0.0.1" in wan_s2v("replay", path, "--dry-run").err
    Image.new("RGB", (64, 64)).save(made / "portrait.jpg")
    refused = wan_s2v("replay", path)
    assert refused.code == 2
    assert "its content has changed" in refused.errors[0]


@pytest.mark.parametrize(
    "content", [None, "", "[]", "{}", '{"schema_version": 1}', '{"schema_version": 99, "request": {}}']
)
def test_replay_refuses_what_is_no_record(wan_s2v, tmp_path, content):  # noqa: F811
    path = tmp_path / "x.mp4.json"
    if content is not None:
        path.write_text(content)
    refused = wan_s2v("replay", path)
    assert refused.code == 2
    assert len(refused.errors) == 1


def test_replay_refuses_an_incomplete_request(wan_s2v, tmp_path):  # noqa: F811
    path = tmp_path / "x.mp4.json"
    path.write_text('{"schema_version": 1, "request": {}, "seed": 1}')
    assert "not complete" in wan_s2v("replay", path).errors[0]


def test_the_preview_plays_and_shows_every_step(made):
    info = read_video_info(made / "out.mp4.preview.mp4")
    assert (info.num_frames, info.height, info.width) == (24, 64, 64)
    assert abs(info.audio_duration_s - 1) < 0.05
    shown, result = (np.stack(list(read_frames(made / n))).astype(float) for n in ("out.mp4.preview.mp4", "out.mp4"))
    assert np.abs(shown - result).mean() < 25
    assert max(Image.open(made / "out.mp4.preview.png").size) >= 64


def test_the_preview_has_each_clip_but_its_last_frames_as_soon_as_it_is_made(wan_s2v, model, tmp_path, monkeypatch):  # noqa: F811
    counts, usual = [], preview_module.GrowingVideo.write

    def write(self, frames):
        usual(self, frames)
        counts.append((len(frames), read_video_info(tmp_path / "out.mp4.preview.mp4").num_frames))

    monkeypatch.setattr(preview_module.GrowingVideo, "write", write)
    words = ["generate", "-m", model, "-i", IMAGE, "-a", VOICE, "-o", tmp_path / "out.mp4", "--preview", "-q"]
    assert wan_s2v(*words, *SIZE, *STEPS).code == 0
    assert len(counts) == 3
    late = np.cumsum([written for written, _ in counts]) - [there for _, there in counts]
    assert (late <= 3).all()
    assert (late >= 0).all()


def test_events_tell_of_loading_steps_and_clips(made):
    events = [json.loads(line) for line in (made / "events.jsonl").read_text().splitlines()]
    assert {event["component"] for event in events if event["event"] == "loaded"} >= {"transformer", "vae"}
    steps = [(event["clip"], event["step"]) for event in events if event["event"] == "step"]
    assert steps == [(clip, step) for clip in (1, 2, 3) for step in (1, 2, 3)]
    assert [event["clip"] for event in events if event["event"] == "clip"] == [1, 2, 3]
    assert events[-1]["event"] == "done"
    assert [event["time"] for event in events] == sorted(event["time"] for event in events)


def test_events_tell_of_a_run_that_fails(wan_s2v, model, tmp_path, monkeypatch):  # noqa: F811
    def fail(*_args, **_kwargs):
        raise NumericsError("one line")

    monkeypatch.setattr("wan_s2v.pipeline.WanS2VPipeline._denoise_clip", fail)
    words = ["generate", "-m", model, "-i", IMAGE, "-a", VOICE, "-o", tmp_path / "out.mp4", *FAST]
    assert wan_s2v(*words, "--events", tmp_path / "events.jsonl").code == 1
    last = json.loads((tmp_path / "events.jsonl").read_text().splitlines()[-1])
    assert (last["event"], last["error"]) == ("failed", "one line")
    assert [path.name for path in tmp_path.iterdir()] == ["events.jsonl"]


def test_events_that_cannot_be_written_are_an_error_before_the_model_loads(wan_s2v, model, tmp_path):  # noqa: F811
    words = ["generate", "-m", model, "-i", IMAGE, "-a", VOICE, "-o", tmp_path / "out.mp4", *FAST]
    failed = wan_s2v(*words, "--events", tmp_path / "none" / "events.jsonl")
    assert failed.code == 1
    assert "Events cannot be written" in failed.errors[0]
    assert not list(tmp_path.iterdir())
    assert "loaded" not in failed.err


def test_colours_are_learned_from_the_reference():
    """Latents that are colours in disguise come back as those colours."""
    torch.manual_seed(0)
    pixels = torch.rand(3, 64, 64) * 2 - 1
    small = torch.nn.functional.interpolate(pixels[None], (8, 8), mode="area")[0]
    latents = torch.einsum("kc,chw->khw", torch.randn(16, 3), small) + 0.5
    colours = fitted_colours(latents, pixels)
    found = colours @ torch.cat((latents.flatten(1), torch.ones(1, 64)))
    assert (found - small.flatten(1)).abs().max() < 0.1
