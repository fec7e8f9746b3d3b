"""Text in place of a recording: who speaks it, how loud, and what the plan and the file say about it."""

from __future__ import annotations

import json
import sys

import command_line
import numpy as np
import pytest
import soxr
from command_line import FAST, IMAGE, VOICE
from conftest import MEDIA
from models import random_pipeline

from wan_s2v import WanS2VPipeline, espeak
from wan_s2v.errors import UsageError
from wan_s2v.espeak import find_library
from wan_s2v.loudness import measure_loudness
from wan_s2v.speech_synthesis import synthesize, voices
from wan_s2v.video import read_video_info

model, wan_s2v = command_line.model, command_line.wan_s2v
PORTRAIT = MEDIA / "person_small.png"
SMALL = {"height": 64, "width": 64, "num_inference_steps": 1, "guidance_scale": 1.0, "seed": 7}

try:
    find_library()
except UsageError as error:
    ABSENT = str(error)
else:
    ABSENT = ""
needs_espeak = pytest.mark.skipif(bool(ABSENT), reason=ABSENT)


@pytest.fixture(autouse=True)
def _no_voices_of_this_machine(monkeypatch, tmp_path):
    monkeypatch.setenv("WAN_S2V_VOICES", str(tmp_path / "no voices"))


@pytest.fixture(scope="module")
def pipeline() -> WanS2VPipeline:
    return random_pipeline()


@needs_espeak
def test_the_script_of_the_text_chooses_the_voice():
    assert synthesize("Good morning, everybody.").voice == "en"
    assert synthesize("大家早上好。").voice == "zh"
    spanish = synthesize("Buenos días a todos.", "es")
    assert (spanish.voice, spanish.engine) == ("es", "espeak-ng")
    assert len(spanish.samples) != len(synthesize("Buenos días a todos.", "en").samples)


@needs_espeak
@pytest.mark.parametrize("voice", ["en", "en-us+f3", "zh", "de+m3"])
def test_speech_is_as_loud_as_a_recording(voice):
    text = "今天天气很好。" if voice == "zh" else "The weather is fine today."
    speech = synthesize(text, voice)
    assert 1 < len(speech.samples) / speech.sample_rate < 4
    assert np.abs(speech.samples).max() <= 0.9 + 1e-6
    level = measure_loudness(soxr.resample(speech.samples, speech.sample_rate, 16_000)).integrated
    assert -24 < level < -19.9


@needs_espeak
def test_the_same_text_gives_the_same_samples():
    first = synthesize("One, two, three.").samples
    synthesize("Something else.", "es")
    np.testing.assert_array_equal(first, synthesize("One, two, three.").samples)


@needs_espeak
def test_what_looks_like_markup_is_spoken():
    assert len(synthesize("a <b> c").samples) > len(synthesize("a c").samples)


@needs_espeak
def test_voices_are_listed_and_can_speak(wan_s2v):
    found = voices()
    assert {"en", "en-us", "es", "zh", "cmn", "de", "fr"} <= set(found)
    assert set(found.values()) == {"espeak-ng"}
    lines = wan_s2v("voices").out.splitlines()
    assert "zh\tespeak-ng" in lines
    assert len(lines) == len(found)
    assert {"name": "es", "engine": "espeak-ng"} in wan_s2v("voices", "--json").json["voices"]


@needs_espeak
@pytest.mark.parametrize(
    ("text", "voice", "message"),
    [
        ("  ", None, "nothing to say"),
        ("…", "en", "nothing that espeak-ng can say"),
        ("hello", "klingonese", "There is no voice 'klingonese'"),
        ("hello", "en+nobody", r"There is no voice 'en\+nobody'.*wan-s2v voices"),
    ],
)
def test_what_cannot_be_spoken(text, voice, message):
    with pytest.raises(UsageError, match=message):
        synthesize(text, voice)


def test_without_espeak_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    monkeypatch.setattr(espeak.ctypes.util, "find_library", lambda name: None)
    find_library.cache_clear()
    try:
        with pytest.raises(UsageError, match=r"pip install wan-s2v\[sound\]"):
            synthesize("hello")
    finally:
        find_library.cache_clear()


def test_a_piper_voice_without_piper_says_what_to_install(monkeypatch):
    monkeypatch.setenv("WAN_S2V_VOICES", str(MEDIA / "voices"))
    monkeypatch.setitem(sys.modules, "piper", None)
    with pytest.raises(UsageError, match="pip install piper-tts"):
        synthesize("hello", "tones")


def test_a_piper_voice_speaks(monkeypatch):
    pytest.importorskip("piper", reason="needs piper-tts")
    monkeypatch.setenv("WAN_S2V_VOICES", str(MEDIA / "voices"))
    assert voices()["tones"] == "piper"
    speech = synthesize("abba", "tones")
    assert (speech.engine, speech.sample_rate) == ("piper", 16_000)
    tones = speech.samples.reshape(-1, 128)  # start, pad, a, pad, b, pad, b, pad, a, pad, end
    assert len(tones) == 11
    np.testing.assert_allclose(tones[1:-1], tones[1:-1][::-1], atol=1e-6)  # a palindrome
    assert not np.allclose(tones[2], tones[4], atol=0.01)


@needs_espeak
def test_a_text_becomes_a_video_that_says_who_spoke(pipeline, tmp_path):
    result = pipeline(None, PORTRAIT, text="Good morning.", voice="en-us+f3", **SMALL)
    speech = synthesize("Good morning.", "en-us+f3")
    assert result.frames.shape[0] == round(len(speech.samples) / speech.sample_rate * 24)
    assert result.metadata["speech"] == {"voice": "en-us+f3", "engine": "espeak-ng"}
    assert result.metadata["options"]["text"] == "Good morning."
    info = read_video_info(result.save(tmp_path / "a.mp4"))
    assert abs(info.audio_duration_s - len(result.frames) / 24) < 1 / 24


def test_a_text_takes_the_place_of_a_sound(pipeline):
    with pytest.raises(UsageError, match="both given"):
        pipeline.plan(VOICE, PORTRAIT, text="hello", **SMALL)
    with pytest.raises(UsageError, match="There is no sound"):
        pipeline.plan(None, PORTRAIT, **SMALL)
    with pytest.raises(UsageError, match="has nothing to say"):
        pipeline.plan(VOICE, PORTRAIT, voice="en", **SMALL)


@needs_espeak
def test_text_on_the_command_line_and_in_a_batch(wan_s2v, model, tmp_path):
    words = ("--model", model, *FAST, "--dry-run")
    done = wan_s2v("generate", "-i", IMAGE, "--text", "你好", "-o", tmp_path / "a.mp4", *words, "--json")
    plan = done.json["plan"]
    assert plan["speech"] == {"voice": "zh", "engine": "espeak-ng"}
    assert plan["audio"] is None
    assert "a text spoken by espeak-ng, voice zh" in " ".join(done.err.split())
    jobs = [
        {"image": str(IMAGE), "text": "Hello there.", "voice": "en"},
        {"image": str(IMAGE), "text": "Hello there.", "audio": str(VOICE), "output": "b.mp4"},
        {"image": str(IMAGE), "output": "c.mp4"},
    ]
    (tmp_path / "jobs.jsonl").write_text("".join(json.dumps(job) + "\n" for job in jobs))
    report = wan_s2v("batch", tmp_path / "jobs.jsonl", *words, "--json").json["jobs"]
    assert [job["status"] for job in report] == ["checked", "failed", "failed"]
    assert report[0]["output"].endswith(f"{IMAGE.stem}.mp4")
    assert "both given" in report[1]["error"]
    assert "has no audio" in report[2]["error"]
