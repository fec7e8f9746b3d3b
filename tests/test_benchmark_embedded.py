"""The benchmark of the embedded model: what it asks for, how it resumes and merges, what its tables say."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from models import random_pipeline

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import documents
import embedded
import embedded_clips
import embedded_table
import experts
from embedded_clips import LANGUAGES, Settings, Task, make_sample, read_recording

CPU = torch.device("cpu")
TOY = Settings(seconds=1.0, size=64, steps=1)


def record(kind="held-out", index=0, correlation=0.9, **values):
    names = ("opening_lag_frames", "sync_offset_frames")
    side = dict.fromkeys(names, 0) | dict.fromkeys(("psnr_db", "ssim", "first_frames_sharpness", "seam_ratio"), 1.0)
    side |= {"opening_correlation": correlation, "closure_rate": 1.0, "closed_in_silence": None, "flicker": 0.1}
    side |= {"sync_confidence": 0.3, "colour_drift": []}
    language = list(LANGUAGES)[index % 6]
    fixed = {"key": f"{kind} {index}", "kind": kind, "index": index, "recording": "", "language": language}
    own = {"still": True, "clips": 1, "closures": 1, "silent_frames": 0, "seconds": 1.0, "length_error_frames": None}
    return fixed | own | {"found": side, "truth": side} | values


def row(rows, start):
    return next(r for r in rows if r.measure.startswith(start))


def test_tasks_cover_languages_evenly_and_stillness_in_each():
    tasks = [task for task in embedded.plan_tasks(24, 0, []) if task.kind == "held-out"]
    assert Counter(task.language for task in tasks) == dict.fromkeys(LANGUAGES, 4)
    assert Counter(task.language for task in tasks if task.is_still) == dict.fromkeys(LANGUAGES, 1)


def test_parts_are_disjoint_and_complete():
    tasks = embedded.plan_tasks(40, 4, ["a.wav", "b.wav"])
    keys = [task.key for task in tasks]
    assert len(set(keys)) == len(keys) == 4 + 40 + 24 + 48
    assert sorted(key for k in range(3) for key in keys[k::3]) == sorted(keys)
    assert embedded._part("2/3") == (2, 3)
    for wrong in ("0/3", "4/3", "2", "a/b"):
        with pytest.raises(embedded.argparse.ArgumentTypeError):
            embedded._part(wrong)


def test_a_sample_depends_on_its_task_alone_and_reference_timing_repeats_it():
    first, again = (make_sample(Task("held-out", 3), TOY, CPU, 80) for _ in range(2))
    timed = make_sample(Task("reference", 3), TOY, CPU, 80)
    other = make_sample(Task("held-out", 9), TOY, CPU, 80)
    assert first.film.shape == (16, 64, 64, 3)
    assert first.truth.shape == (16, 6)
    np.testing.assert_array_equal(first.film, again.film)
    np.testing.assert_array_equal(first.waveform, timed.waveform)
    assert first.prompt == again.prompt == timed.prompt
    assert timed.film is None
    assert not np.array_equal(first.reference, other.reference)


def test_long_runs_last_ten_of_the_models_clips():
    sample = make_sample(Task("long", 0), TOY, CPU, longest_clip=4)
    assert sample.film.shape[0] == 40
    assert sample.controls == embedded_clips.STILL


@pytest.mark.parametrize("path", sorted(embedded_clips.DEMO.glob("*.wav")), ids=lambda path: path.name)
def test_recordings_are_read_in_different_stretches(path):
    first, second = (read_recording(path, 1.5, index) for index in (0, 1))
    assert len(first) == len(second) == 24_000
    assert first.dtype == np.float32
    assert np.abs(first).max() > 0.05
    assert not np.array_equal(first, second)


def test_command_measures_resumes_and_draws(tmp_path, monkeypatch, capsys):
    torch.set_num_threads(1)
    folder = tmp_path / "model"
    random_pipeline().save_pretrained(folder)
    monkeypatch.setattr(embedded, "COMPARED", 1)
    monkeypatch.setattr(embedded_clips, "_FILES", 1)
    work, results, document = (tmp_path / name for name in ("w.jsonl", "r.json", "docs/model.md"))
    words = ["--model", str(folder), "--clips", "2", "--seconds", "1.5", "--size", "64", "--steps", "1"]
    words += ["--long-runs", "0", "--workers", "0", "--device", "cpu", "--work", str(work)]
    words += ["--results", str(results), "--document", str(document)]
    embedded.main([*words, "--part", "1/2"])
    embedded.main([*words, "--part", "2/2"])
    assert not document.exists()
    sheets = ["--sheet", str(tmp_path / "s.png"), "--mouths", str(tmp_path / "m.png")]
    embedded.main([*words, "--merge", *sheets])
    assert all((tmp_path / name).is_file() for name in ("s.png", "m.png"))
    values = json.loads(results.read_text())["clips"]
    recordings = len(list(embedded_clips.DEMO.glob("*.wav")))
    assert values["videos"] == {"held-out": 2, "recording": recordings, "reference": 1}
    rows = {r["measure"]: r for r in values["rows"]}
    assert rows["PSNR outside mouth and eyes, all clips, median"]["result"] < 20  # noise is no portrait
    assert rows["PSNR outside mouth and eyes, all clips, median"]["truth"] > 15
    assert rows["length error of the file, longest"]["result"] < 1
    assert "| measure | goal | reached | rendered |" in document.read_text()

    part = work.with_name("w.1-of-2.jsonl")
    part.write_text(part.read_text()[:-20])  # as an interruption leaves it
    capsys.readouterr()
    embedded.main([*words, "--part", "1/2"])
    assert capsys.readouterr().out.count("\n") == 1  # the one clip that was cut off
    with pytest.raises(ValueError, match="made otherwise"):
        embedded.main([*words, "--part", "1/2", "--seconds", "2"])


def test_merging_takes_each_clip_once_and_refuses_mixtures(tmp_path):
    work = tmp_path / "w.jsonl"
    with pytest.raises(FileNotFoundError):
        embedded.merge(work)
    embedded.WorkFile(tmp_path / "w.2-of-2.jsonl", {"size": 1}).add(record(index=1))
    file = embedded.WorkFile(tmp_path / "w.1-of-2.jsonl", {"size": 1})
    for index in (2, 1):
        file.add(record(index=index))
    assert [r["index"] for r in embedded.merge(work)[1]] == [1, 2]
    embedded.WorkFile(work, {"size": 2})
    with pytest.raises(ValueError, match="circumstances"):
        embedded.merge(work)


def test_rows_judge_against_their_goals():
    records = [record(index=i, correlation=c) for i, c in enumerate((0.95, 0.9, 0.86, 0.84, 0.5, None))]
    rows = embedded_table.summarise(records)
    median, tenth = row(rows, "mouth opening"), row(rows, "the same, 10th")
    assert (median.result, median.reached, median.count) == (0.86, True, 5)
    assert not tenth.reached
    assert "(missed)" in tenth.cells()[2]
    assert row(rows, "the same, French").result is None
    assert row(rows, "the same, French").cells()[2] == "–"
    assert row(rows, "best at lag 0").result == 1
    assert row(rows, "mouth closed in silences").reached is None


def test_shares_count_closures_not_clips():
    seen, missed = (record(index=i, closures=count) for i, count in ((0, 9), (1, 1)))
    missed["found"] = missed["found"] | {"closure_rate": 0.0}
    shut = row(embedded_table.summarise([seen, missed]), "m, b and p")
    assert (shut.result, shut.truth, shut.reached) == (0.9, 1.0, True)


def test_drift_is_that_of_the_last_of_ten_clips():
    side = {"colour_drift": [0.5] * 8 + [2.5]}
    long = record("long") | {"clips": 10, "found": side, "truth": {"colour_drift": [0.1] * 9}}
    short = record("long", 1) | {"clips": 9}
    drift = row(embedded_table.summarise([long, short]), "colour distance")
    assert (drift.result, drift.truth, drift.reached, drift.count) == (2.5, 0.1, False, 1)


def test_recorded_voices_stand_beside_synthetic_ones():
    heard = record("recording", recording="talk.wav", truth=None)
    heard["found"] = heard["found"] | {"sync_confidence": 0.24}
    rows = embedded_table.summarise([record(), heard])
    assert row(rows, "sync confidence, recorded talk.wav").result == 0.24
    relative = row(rows, "the same, relative")
    assert relative.result == pytest.approx(0.8)
    assert not relative.reached


def test_a_section_is_replaced_and_the_prose_around_it_stays(tmp_path):
    document = tmp_path / "docs" / "model.md"
    document.parent.mkdir()
    document.write_text("# The embedded model\n\nProse.\n")
    documents.write_section(document, "a", "first")
    documents.write_section(document, "b", "other")
    documents.write_section(document, "a", "second")
    text = document.read_text()
    assert text.startswith("# The embedded model\n\nProse.\n\n<!-- measured: a -->\n\nsecond\n")
    assert "first" not in text
    assert text.index("<!-- measured: b -->") > text.index("<!-- end of measured: a -->")


@pytest.fixture
def stages(tmp_path):
    levels = {
        "transformer": (0.1, 0.5, 0.9),
        "baseline": (0.1, 0.5, 0.9),
        "high-noise": (0.9,),
        "low-noise": (0.1, 0.5),
    }
    ranges = {"transformer": (0, 1), "baseline": (0, 1), "high-noise": (0.6, 1), "low-noise": (0, 0.9)}
    losses = {"transformer": 0.5, "baseline": 0.4, "high-noise": 0.3, "low-noise": 0.2}
    for name, sigmas in levels.items():
        held_out = dict.fromkeys(map(str, sigmas), losses[name])
        values = {"stage": name, "steps": 1000, "seconds": 2.0, "noise_range": ranges[name], "held_out": held_out}
        (tmp_path / f"{name}.json").write_text(json.dumps(values))
    return tmp_path


def test_experts_replace_their_part_of_the_baseline(stages):
    found = experts.load_comparison(stages)
    assert found.boundary == 0.9
    assert found.curves[experts.HIGH] == (0.4, 0.4, 0.3)
    assert found.curves[experts.BOTH] == (0.2, 0.2, 0.3)
    assert found.relative(experts.BOTH) == pytest.approx([-50, -50, -25])
    assert "expert for 1,000 on those from 0.6, the" in experts.caption(found)
    assert "| against the baseline | +25.00 % | +0.00 % | -8.33 % | -41.67 % |" in experts.table(found)


def test_experts_are_drawn_as_svg(stages):
    embedded.main(["--losses", str(stages), "--results", str(stages / "r.json"), "--document", str(stages / "d.md")])
    svg = (stages / "images" / "experts.svg").read_text()
    assert len(ElementTree.fromstring(svg).findall("{http://www.w3.org/2000/svg}polyline")) == 6
    assert "![Held-out loss per noise level](images/experts.svg)" in (stages / "d.md").read_text()
    assert json.loads((stages / "r.json").read_text())["experts"]["means"]["baseline"] == 0.4
    (stages / "baseline.json").unlink()
    with pytest.raises(FileNotFoundError):
        experts.load_comparison(stages)


def test_ticks_enclose_any_values():
    for values in ((0.2, 0.51), (-1.3, 2.4), (0.0, 0.0), (5.0, 5.0), (-0.001, 0.002)):
        ticks = experts._ticks(values)
        assert 2 <= len(ticks) <= 9
        assert ticks[0] <= min(values) <= max(values) <= ticks[-1]
