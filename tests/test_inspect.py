"""`wan-s2v inspect`: what a file says about its making, and what it does not say."""

from __future__ import annotations

import json
import sys

import command_line
import numpy as np
import pytest
from command_line import POSE, VOICE

from wan_s2v.errors import UsageError, VideoError
from wan_s2v.inspection import inspect_file
from wan_s2v.marking import Marking
from wan_s2v.video import write_video

wan_s2v = command_line.wan_s2v
GREY = np.full((24, 64, 96, 3), 120, np.uint8)


def test_a_marked_file_is_told_apart_from_any_other(tmp_path):
    path = tmp_path / "a.mp4"
    write_video(path, GREY, 24, audio=VOICE, metadata={"title": "A film"}, marking=Marking(content_producer="A studio"))
    found = inspect_file(path)
    assert found.verdict == "The file says that it is AI-generated."
    assert found.aigc["ContentProducer"] == "A studio"
    assert found.digital_source_type.endswith("/trainedAlgorithmicMedia")
    assert found.tags == {"title": "A film"}
    assert found.container["plays_while_loading"] is True
    assert found.container["duration_s"] == 1.0
    video, audio = found.streams
    assert (video["codec"], video["width"], video["height"], video["fps"], video["num_frames"]) == (
        "h264",
        96,
        64,
        24,
        24,
    )
    assert (audio["codec"], audio["sample_rate"], audio["channels"]) == ("aac", 48_000, 2)
    assert (found.credentials, found.sidecar, found.notes) == (None, None, [])
    other = inspect_file(POSE)
    assert (other.aigc, other.digital_source_type) == (None, None)
    assert other.verdict == "The file does not say how it was made."


def test_labels_that_others_wrote(tmp_path):
    for label, verdict in (("2", "may be AI-generated"), ("3", "suspected to be AI-generated")):
        found = inspect_file(_labelled(tmp_path / f"{label}.mp4", json.dumps({"Label": label})))
        assert found.verdict == f"The file says that it is {verdict}."
    broken = inspect_file(_labelled(tmp_path / "broken.mp4", "{Label: 1"))
    assert broken.aigc == "{Label: 1"
    assert "does not say" in broken.verdict


def _labelled(path, text):
    import av

    flags = {"movflags": "use_metadata_tags"}
    with av.open(str(path), "w", format="mp4", options=flags) as container:
        container.metadata["AIGC"] = text
        stream = container.add_stream("libx264", rate=24)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        for packet in stream.encode(av.VideoFrame.from_ndarray(GREY[0, :32, :32], format="rgb24")):
            container.mux(packet)
        container.mux(stream.encode(None))
    return path


def test_the_record_beside_a_file_is_read(tmp_path, wan_s2v):
    path = tmp_path / "a.mp4"
    write_video(path, GREY, 24, marking=Marking())
    (tmp_path / "a.mp4.json").write_text(json.dumps({"version": "0.1.0", "seed": 5, "prompt": "she smiles"}))
    assert inspect_file(path).sidecar["seed"] == 5
    shown = " ".join(wan_s2v("inspect", path).out.split())
    assert "a.mp4.json: version 0.1.0, prompt she smiles, seed 5" in shown
    assert "The file says that it is AI-generated." in shown
    (tmp_path / "a.mp4.json").write_text("{")
    assert "cannot be read as JSON" in inspect_file(path).notes[0]


def test_credentials_without_their_package_are_reported(tmp_path, monkeypatch):
    pytest.importorskip("c2pa", reason="needs the extra c2pa")
    from certificates import make_chain

    chain = make_chain(tmp_path)
    path = tmp_path / "a.mp4"
    write_video(path, GREY, 24, marking=Marking(sign_certificate=chain.certificate, sign_key=chain.key))
    found = inspect_file(path)
    assert found.credentials["state"] == "Valid"
    assert found.credentials["signer"]["common_name"] == "A studio"
    assert found.credentials["problems"] == ["signingCredential.untrusted"]
    monkeypatch.setitem(sys.modules, "c2pa", None)
    unread = inspect_file(path)
    assert unread.credentials["state"] == "not read"
    assert "pip install wan-s2v[c2pa]" in unread.notes[0]


def test_what_is_no_video(tmp_path, wan_s2v):
    with pytest.raises(UsageError, match="There is no video"):
        inspect_file(tmp_path / "none.mp4")
    with pytest.raises(VideoError, match="no video stream"):
        inspect_file(VOICE)
    assert wan_s2v("inspect", tmp_path / "none.mp4").code == 2
