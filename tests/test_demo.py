"""The bundled media, the demo that uses them, and the documents about the model that animates them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import command_line
import numpy as np
import pytest
from command_line import IMAGE, VOICE

from wan_s2v.audio import load_waveform
from wan_s2v.commands.request import ModelChoice, Request, open_model, plan_rows, preview
from wan_s2v.image import load_image
from wan_s2v.plan import GenerationOptions
from wan_s2v.training.stages import STAGES

REPOSITORY = Path(__file__).parent.parent
MEDIA = REPOSITORY / "src" / "wan_s2v" / "assets" / "demo"
PORTRAITS = [f"portrait_{number}.png" for number in range(1, 7)]
VOICES = ["voice_en.flac", "voice_zh.flac", "voice_es.flac", "voice_recorded.wav"]

model, wan_s2v = command_line.model, command_line.wan_s2v


@pytest.fixture
def examples(monkeypatch):
    monkeypatch.syspath_prepend(str(REPOSITORY / "examples"))


@pytest.fixture
def demo(examples, monkeypatch):
    import demo

    said: list[list[str]] = []
    monkeypatch.setattr(demo, "main", lambda words: said.append(words) or 0)
    monkeypatch.setattr(demo, "said", said, raising=False)
    return demo


@pytest.mark.parametrize("name", PORTRAITS)
def test_bundled_portraits_are_small_square_pictures(name):
    path = MEDIA / name
    loaded = load_image(path)
    assert (loaded.image.size, loaded.image.mode, loaded.warnings) == ((512, 512), "RGB", ())
    assert path.stat().st_size < 150_000


@pytest.mark.parametrize("name", VOICES)
def test_bundled_voices_last_five_seconds(name):
    path = MEDIA / name
    waveform = load_waveform(path)
    assert waveform.duration_s == pytest.approx(5.0, abs=0.02)
    assert 0.1 < np.abs(waveform.samples).max() < 1, "neither silent nor clipped"
    assert path.stat().st_size < 200_000


def test_a_portrait_is_drawn_again_as_it_is_bundled(examples):
    import make_demo_media

    drawn = np.asarray(make_demo_media.draw_portrait(*make_demo_media.PEOPLE[0])).astype(int)
    bundled = np.asarray(load_image(MEDIA / PORTRAITS[0]).image).astype(int)
    assert np.abs(drawn - bundled).max() <= 2
    assert len(make_demo_media.PEOPLE) == len(PORTRAITS)


def test_every_bundled_file_has_its_origin_stated():
    stated = (MEDIA / "README.md").read_text()
    named = stated.replace("`portrait_1.png` … `portrait_6.png`", " ".join(f"`{name}`" for name in PORTRAITS))
    assert [path.name for path in MEDIA.iterdir() if path.suffix != ".md" and f"`{path.name}`" not in named] == []


def test_demo_asks_for_the_bundled_media_and_the_embedded_model(demo):
    assert demo.generate("out.mp4") == 0
    [words] = demo.said
    assert "--model" not in words, "the default is the embedded model"
    assert words[words.index("--height") + 1] == words[words.index("--width") + 1] == "256"
    assert all(Path(words[words.index(flag) + 1]).is_file() for flag in ("--image", "--audio"))


def test_plan_says_which_pictures_the_embedded_model_is_for(model, tmp_path):
    request = Request(IMAGE, VOICE, tmp_path / "out.mp4", GenerationOptions())
    opened = open_model(ModelChoice(str(model)), request.options)
    planned = preview(request, opened)
    assert ("model", str(model)) in plan_rows(planned)
    rows = plan_rows(replace(planned, model=replace(opened, choice=ModelChoice("tiny"))))
    [text] = [text for heading, text in rows if "drawn portraits" in text]
    assert "for photographs use --model s2v-14b" in text


def test_help_states_defaults_of_both_models(wan_s2v):
    text = " ".join(wan_s2v("generate", "--help").out.replace("│", " ").split())
    for usual in ("40", "4.5", "3", "unipc", "80"):
        assert f"the model's own; {usual} for S2V-14B" in text


def test_every_stage_of_the_training_is_documented():
    text = (REPOSITORY / "docs" / "embedded-model.md").read_text()
    assert [stage for stage in STAGES if f"`{stage}`" not in text] == []
