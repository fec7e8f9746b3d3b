"""Prompts that change with time: what is a list of spans, what is plain text, and which clip takes which."""

from __future__ import annotations

import json
from fractions import Fraction

import command_line
import pytest
import torch
from command_line import FAST, IMAGE, VOICE
from conftest import MEDIA
from models import random_pipeline

from wan_s2v import WanS2VPipeline
from wan_s2v.errors import UsageError
from wan_s2v.prompt_spans import map_prompts, prompts_of, read_spans

model, wan_s2v = command_line.model, command_line.wan_s2v
PORTRAIT = MEDIA / "person_small.png"
SMALL = {"height": 64, "width": 64, "num_inference_steps": 1, "guidance_scale": 1.0, "seed": 7}
THREE_CLIPS = SMALL | {"fps": 16, "num_frames": 45, "frames_per_clip": 16}  # shown at 0, 13/16 and 29/16 s


@pytest.fixture(scope="module")
def pipeline() -> WanS2VPipeline:
    return random_pipeline()


def test_a_list_is_read_with_its_times():
    spans = read_spans("0-4: she smiles | 4s-1:02.5: she looks away | 62.5-: she nods")
    assert [(span.start_s, span.stop_s, span.prompt) for span in spans] == [
        (0, 4, "she smiles"),
        (4, Fraction(125, 2), "she looks away"),
        (Fraction(125, 2), None, "she nods"),
    ]
    assert [span.prompt for span in read_spans("0-4：她微笑｜4–：她看向别处")] == ["她微笑", "她看向别处"]
    assert read_spans("0-4:30 birds | 4-: none")[0].prompt == "30 birds"


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        "she smiles",
        "9-5: a day at the office",
        "0-4: the away team has lost",
        "at 0-4: she smiles | 4-: not a list, it begins with a word",
        "a clock that shows 12:30 | a second clock, 4-5: late",
        "16:9 film, 1980s: grain",
        "a red | blue sign",
    ],
)
def test_plain_prompts_stay_as_they_are(prompt):
    (span,) = read_spans(prompt)
    assert (span.start_s, span.stop_s, span.prompt) == (0, None, prompt)
    assert map_prompts(prompt, str.upper) == prompt.upper()


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("0-4: a | b", r"Part 2 of the prompt, 'b', has no times"),
        ("0-4: a | 4-:", r"Part 2 of the prompt \(4- s\) has no text"),
        ("0-4: a | 5-: b", r"Parts 1 and 2 of the prompt \(0-4 s, 5- s\) leave a gap. Begin part 2 at 4"),
        ("0-4: a | 3.5-6: b | 6-: c", r"Parts 1 and 2 .* overlap. Begin part 2 at 4"),
        ("0-4: a | 4-: b | 6-: c", r"Part 2 of the prompt \(4- s\) is open, but part 3 follows. End it at 6"),
        ("1-4: a | 4-: b", r"begin at 1 s, not at 0"),
        ("0-4: a | 4-2: b", r"Part 2 of the prompt \(4-2 s\) ends before it begins"),
    ],
)
def test_broken_lists_name_the_part(prompt, message):
    with pytest.raises(UsageError, match=message):
        read_spans(prompt)


def test_every_text_is_changed_and_the_times_stay():
    assert map_prompts("0-1:30: a | 90-: b", lambda text: f"{text}!") == "0-90: a! | 90-: b!"
    assert read_spans(map_prompts("0-1.5: a | 1.5-: b", str.upper))[1].start_s == Fraction(3, 2)


def test_a_stretch_takes_the_prompt_of_its_larger_share():
    spans = read_spans("0-4: a | 4-: b")
    times = [(Fraction(0), Fraction(3)), (Fraction(3), Fraction(6)), (Fraction(6), Fraction(7))]
    assert prompts_of(spans, times) == ("a", "b", "b")
    closed = read_spans("0-4: a | 4-6: b")
    with pytest.raises(UsageError, match=r"The prompts end at 6 s, the video at 7.00 s.* 4-: …"):
        prompts_of(closed, times)
    assert prompts_of(closed, times[:2]) == ("a", "b")


def test_each_clip_takes_its_prompt(pipeline, monkeypatch):
    """The first clip is that of its own prompt alone; the last differs only by its prompt."""
    encoded = []
    original = WanS2VPipeline._prompt_embeds
    monkeypatch.setattr(
        WanS2VPipeline, "_prompt_embeds", lambda self, *given: encoded.append(given[1]) or original(self, *given)
    )
    options = THREE_CLIPS | {"output_type": "latent"}
    spoken = list(pipeline.stream(VOICE, PORTRAIT, prompt="0-1.9: a cat | 1.9-: a dog", **options))
    assert encoded == ["a cat", "a dog"]  # each once
    cats = list(pipeline.stream(VOICE, PORTRAIT, prompt="a cat", **options))
    assert [torch.equal(one.frames, other.frames) for one, other in zip(spoken, cats, strict=True)] == [
        True,
        True,
        False,
    ]
    last_dog = list(pipeline.stream(VOICE, PORTRAIT, prompt="0-1.9: a cat | 1.9-2.9: a dog", **options))
    assert torch.equal(last_dog[2].frames, spoken[2].frames)


def test_the_plan_tells_which_clip_takes_what_and_what_none_takes(pipeline):
    plan = pipeline.plan(VOICE, PORTRAIT, prompt="0-1: a | 1-1.1: b | 1.1-: c", **THREE_CLIPS)
    assert plan.clip_prompts == ("a", "c", "c")
    assert plan.summary()["clip_prompts"] == ["a", "c", "c"]
    assert [text for text in plan.warnings if text.startswith("No clip takes the prompt of 1-1.1 s")]


def test_spans_on_the_command_line_with_a_style_and_in_a_batch(wan_s2v, model, tmp_path):
    spans = "0-0.1: she smiles | 0.1-: she looks away"
    words = ("--model", model, *FAST, "--num-frames", 8, "--frames-per-clip", 4, "--fps", 16, "--dry-run")
    done = wan_s2v(
        "generate", "-i", IMAGE, "-a", VOICE, "-o", tmp_path / "a.mp4", *words, "--prompt", spans, "--style", "close-up"
    )
    shown = " ".join(done.err.split())
    assert "prompt clip 1 she smiles. Close-up of the face." in shown
    assert "prompt clips 2-3 she looks away. Close-up of the face." in shown
    (tmp_path / "jobs.jsonl").write_text(
        "".join(
            json.dumps({"image": str(IMAGE), "audio": str(VOICE), "output": f"{name}.mp4", "prompt": prompt}) + "\n"
            for name, prompt in (("good", spans), ("bad", "0-1: a | 2-: b"))
        )
    )
    report = wan_s2v("batch", tmp_path / "jobs.jsonl", *words)
    assert report.code == 1
    assert [line for line in report.errors if "leave a gap" in line]
