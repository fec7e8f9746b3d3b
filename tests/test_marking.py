"""Labels for machines, a mark for people, and signatures that hold as long as nobody touches the file."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import av
import command_line
import numpy as np
import pytest
from command_line import FAST, IMAGE, VOICE
from conftest import MEDIA
from models import random_pipeline

from wan_s2v import WanS2VPipeline
from wan_s2v.errors import OutputError, UsageError, VideoError
from wan_s2v.marking import Marking
from wan_s2v.mp4_boxes import append_content, read_boxes, read_content
from wan_s2v.video import read_frames, read_video_info, write_video
from wan_s2v.visible_mark import CHINESE, ENGLISH, VisibleMark, mark_text

model, wan_s2v = command_line.model, command_line.wan_s2v
PORTRAIT = MEDIA / "person_small.png"
SMALL = {"height": 64, "width": 80, "num_inference_steps": 1, "guidance_scale": 1.0, "seed": 7, "num_frames": 4}
GREY = np.full((4, 96, 128, 3), 120, np.uint8)
SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"


@pytest.fixture(scope="module")
def pipeline() -> WanS2VPipeline:
    return random_pipeline()


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    pytest.importorskip("c2pa", reason="needs the extra c2pa")
    from certificates import make_chain

    return make_chain(tmp_path_factory.mktemp("chain"))


def _tags(path: Path) -> dict[str, str]:
    with av.open(str(path)) as container:
        return dict(container.metadata)


def test_every_video_carries_the_chinese_label_and_iptcs_term(pipeline, tmp_path):
    result = pipeline(VOICE, PORTRAIT, content_producer="电影工作室", **SMALL)
    path = result.save(tmp_path / "out.mp4")
    label = json.loads(_tags(path)["AIGC"])
    assert list(label) == [
        "Label",
        "ContentProducer",
        "ProduceID",
        "ReservedCode1",
        "ContentPropagator",
        "PropagateID",
        "ReservedCode2",
    ]
    assert (label["Label"], label["ContentProducer"]) == ("1", "电影工作室")
    assert label["ProduceID"] == result.plan.marking.produce_id
    assert _tags(path)["comment"].startswith("AI-generated video (wan_s2v ")
    packet = read_content(path, "be7acfcb97a942e89c71999491e3afac").decode()
    assert f'DigitalSourceType="{SOURCE_TYPE}"' in packet
    assert packet.startswith('<?xpacket begin="\ufeff"')


def test_numbers_of_videos_are_their_own(pipeline):
    one, other = (pipeline.plan(VOICE, PORTRAIT, **SMALL).marking.produce_id for _ in range(2))
    assert one != other
    assert len(one) == 32


def test_labels_leave_the_file_a_plain_mp4_that_plays_while_it_loads(tmp_path):
    write_video(tmp_path / "plain.mp4", GREY, 24, audio=VOICE)
    write_video(tmp_path / "marked.mp4", GREY, 24, audio=VOICE, marking=Marking())
    plain, marked = (read_boxes(tmp_path / name) for name in ("plain.mp4", "marked.mp4"))
    assert [box.kind for box in marked] == [*(box.kind for box in plain), "uuid"]
    assert [box.kind for box in marked].index("moov") < [box.kind for box in marked].index("mdat")
    assert _tags(tmp_path / "marked.mp4")["compatible_brands"] == _tags(tmp_path / "plain.mp4")["compatible_brands"]
    assert read_video_info(tmp_path / "marked.mp4") == read_video_info(tmp_path / "plain.mp4")
    for one, other in zip(read_frames(tmp_path / "plain.mp4"), read_frames(tmp_path / "marked.mp4"), strict=True):
        np.testing.assert_array_equal(one, other)


def test_boxes_of_every_size_are_read_and_others_refused(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"\0\0\0\x08free" + b"\0\0\0\x01mdat" + (18).to_bytes(8, "big") + b"xy" + b"\0\0\0\0skip..")
    assert [(box.kind, box.size) for box in read_boxes(path)] == [("free", 0), ("mdat", 2), ("skip", 2)]
    other = tmp_path / "b.mp4"
    other.write_bytes(b"\0\0\0\x08free")
    append_content(other, "00" * 16, b"hello")
    assert read_content(other, "00" * 16) == b"hello"
    assert read_content(other, "11" * 16) is None
    other.write_bytes(b"not boxes at all, but long enough")
    with pytest.raises(VideoError, match="not made of mp4 boxes"):
        read_boxes(other)


# The visible mark


@pytest.mark.parametrize("text", [ENGLISH, CHINESE, "X"])
@pytest.mark.parametrize(("height", "width"), [(480, 832), (832, 480), (256, 256), (720, 1280)])
def test_the_mark_is_high_enough_and_at_the_edge(text, height, width):
    mark = VisibleMark(text, height, width)
    drawn = mark.drawn_on(np.zeros((height, width, 3), np.uint8))
    rows, columns = np.nonzero(drawn[..., 0] > 100)
    assert rows.max() - rows.min() + 1 >= 0.05 * min(height, width)
    assert rows.min() > height * 0.85
    assert columns.max() > width * 0.95
    assert drawn[: mark.place[0].start].max() == 0


@pytest.mark.parametrize("level", [0, 120, 255])
def test_the_mark_can_be_read_on_dark_and_on_white(level):
    mark = VisibleMark(ENGLISH, 480, 832)
    drawn = mark.drawn_on(np.full((480, 832, 3), level, np.uint8))[mark.place].astype(int)
    assert drawn.max() - drawn.min() > 80
    assert drawn.max() > 210


def test_the_frame_given_stays_as_it_is():
    frame = np.zeros((96, 128, 3), np.uint8)
    VisibleMark(ENGLISH, 96, 128).drawn_on(frame)
    assert not frame.any()


def test_the_text_follows_the_language():
    assert mark_text("auto", "she smiles") == mark_text("auto", "") == "AI generated"
    assert mark_text("auto", "她对着镜头微笑") == "AI生成"
    assert mark_text(" made by a machine ", "她") == "made by a machine"


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "shows nothing"), ("x" * 200, "too long for 128x96"), ("\U0001f9ff\u16a0", "No font here can show")],
)
def test_marks_that_cannot_be_drawn(text, message):
    with pytest.raises(UsageError, match=message):
        VisibleMark(text, 96, 128)


def test_the_mark_is_in_every_frame_of_the_file_and_not_in_the_result(pipeline, tmp_path):
    marked = pipeline(VOICE, PORTRAIT, mark="auto", prompt="她微笑", **SMALL)
    plain = pipeline(VOICE, PORTRAIT, prompt="她微笑", **SMALL)
    np.testing.assert_array_equal(marked.frames, plain.frames)
    paths = [result.save(tmp_path / f"{name}.mp4") for name, result in (("marked", marked), ("plain", plain))]
    place = VisibleMark("AI生成", 64, 80).place
    for with_mark, without in zip(*(read_frames(path) for path in paths), strict=True):
        difference = np.abs(with_mark.astype(int) - without.astype(int)).max(axis=-1)
        assert difference[place].max() > 40
        assert np.median(difference) <= 2


def test_marks_are_refused_before_any_work(pipeline):
    with pytest.raises(UsageError, match="too long for 80x64"):
        pipeline.plan(VOICE, PORTRAIT, mark="made by a machine " * 4, **SMALL)
    with pytest.raises(UsageError, match="names nobody"):
        pipeline.plan(VOICE, PORTRAIT, content_producer=" ", **SMALL)


# Signatures


def test_a_signed_file_says_who_signed_what_and_keeps_its_labels(pipeline, chain, tmp_path):
    import c2pa

    result = pipeline(VOICE, PORTRAIT, sign_certificate=chain.certificate, sign_key=chain.key, **SMALL)
    path = result.save(tmp_path / "out.mp4")
    with c2pa.Reader(str(path)) as reader:
        found, state = json.loads(reader.json()), reader.get_validation_state()
    assert state == "Valid"
    manifest = found["manifests"][found["active_manifest"]]
    assert manifest["signature_info"]["common_name"] == "A studio"
    actions = [a["data"]["actions"] for a in manifest["assertions"] if a["label"].startswith("c2pa.actions")]
    assert actions[0][0]["action"] == "c2pa.created"
    assert actions[0][0]["digitalSourceType"] == SOURCE_TYPE
    assert json.loads(_tags(path)["AIGC"])["Label"] == "1"
    assert SOURCE_TYPE in read_content(path, "be7acfcb97a942e89c71999491e3afac").decode()
    assert [box.kind for box in read_boxes(path)][:3] == ["ftyp", "uuid", "moov"]
    assert sorted(tmp_path.iterdir()) == [path]


def test_a_changed_file_is_no_longer_valid(chain, tmp_path):
    import c2pa

    path = tmp_path / "a.mp4"
    write_video(path, GREY, 24, marking=Marking(sign_certificate=chain.certificate, sign_key=chain.key))
    content = bytearray(path.read_bytes())
    content[-600] ^= 1  # in the pictures or the packet
    path.write_bytes(content)
    with c2pa.Reader(str(path)) as reader:
        assert reader.get_validation_state() == "Invalid"


@pytest.mark.parametrize("kind", ["rsa", "ed25519", "p384"])
def test_other_keys_sign_too(tmp_path, chain, kind):
    from certificates import make_chain
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    keys = {
        "rsa": lambda: rsa.generate_private_key(65537, 2048),
        "ed25519": ed25519.Ed25519PrivateKey.generate,
        "p384": lambda: ec.generate_private_key(ec.SECP384R1()),
    }
    other = make_chain(tmp_path, key=keys[kind]())
    marking = Marking(sign_certificate=other.certificate, sign_key=other.key)
    marking.check(96, 128)
    write_video(tmp_path / "a.mp4", GREY, 24, marking=marking)
    assert "d8fec3d61b0e483c92975828877ec481" in [box.uuid for box in read_boxes(tmp_path / "a.mp4")]


def test_what_cannot_sign_is_refused_before_any_work(pipeline, chain, tmp_path):
    with pytest.raises(UsageError, match="sign_key is missing"):
        pipeline.plan(VOICE, PORTRAIT, sign_certificate=chain.certificate, **SMALL)
    with pytest.raises(UsageError, match=r"sign_key=.* cannot be read"):
        pipeline.plan(VOICE, PORTRAIT, sign_certificate=chain.certificate, sign_key=tmp_path / "none.pem", **SMALL)
    with pytest.raises(UsageError, match="cannot sign"):
        pipeline.plan(VOICE, PORTRAIT, sign_certificate=chain.certificate, sign_key=chain.certificate, **SMALL)


def test_an_expired_certificate_leaves_no_file(chain, tmp_path):
    from certificates import make_chain

    old = make_chain(tmp_path, days=-1)
    with pytest.raises(OutputError, match="cannot be signed"):
        write_video(tmp_path / "a.mp4", GREY, 24, marking=Marking(sign_certificate=old.certificate, sign_key=old.key))
    assert sorted(tmp_path.iterdir()) == [old.certificate, old.key]


def test_signing_without_its_package_says_what_to_install(monkeypatch, pipeline, chain):
    monkeypatch.setitem(sys.modules, "c2pa", None)
    with pytest.raises(UsageError, match=r"pip install wan-s2v\[c2pa\]"):
        pipeline.plan(VOICE, PORTRAIT, sign_certificate=chain.certificate, sign_key=chain.key, **SMALL)


def test_marking_on_the_command_line(wan_s2v, model, chain, tmp_path):
    words = ("generate", "-i", IMAGE, "-a", VOICE, "-o", tmp_path / "a.mp4", "--model", model, *FAST, "-q")
    signed = ("--sign-certificate", chain.certificate, "--sign-key", chain.key)
    done = wan_s2v(*words, "--mark", "AI", "--content-producer", "A studio", *signed)
    assert done.code == 0
    assert json.loads(_tags(tmp_path / "a.mp4")["AIGC"])["ContentProducer"] == "A studio"
    found = wan_s2v("inspect", tmp_path / "a.mp4", "--json").json
    assert found["c2pa"]["state"] == "Valid"
