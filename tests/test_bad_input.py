"""Whatever a user passes, the answer is one line that names it, the right exit code, and no file left behind."""

from __future__ import annotations

import json
import os
import re
import shutil
import wave
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import av
import command_line
import numpy as np
import pytest
import torch
from command_line import FAST, IMAGE, POSE, VOICE
from conftest import MEDIA
from PIL import Image
from safetensors.torch import load_file, save_file

from wan_s2v import video
from wan_s2v.video import read_video_info

model, wan_s2v = command_line.model, command_line.wan_s2v

Maker = Callable[[Path], object]


@dataclass(frozen=True)
class Case:
    """One misuse.

    Args:
        words: of the command line after image, audio, output and model; "{dir}" is the case's input folder.
        image, audio, model: make an input in the folder and give it; None leaves the flag out.
        code: exit code.
        error: what the line must match; for code 0 what a warning must match, "" for none.
    """

    name: str
    code: int
    error: str
    words: str = ""
    image: Maker | None = lambda folder: IMAGE
    audio: Maker | None = lambda folder: VOICE
    model: Maker | None = None
    output: str = "out.mp4"


def content(name: str, data: bytes) -> Maker:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(data)
        return folder / name

    return make


def copied(source: Path, name: str, size: int | None = None) -> Maker:
    return lambda folder: content(name, source.read_bytes()[:size])(folder)


def picture(name: str, mode: str, size: tuple[int, int] = (120, 96), **save: object) -> Maker:
    def make(folder: Path) -> Path:
        Image.new(mode, size, 1 if mode in "P1" else None).save(folder / name, **save)
        return folder / name

    return make


def animation(folder: Path) -> Path:
    frames = [Image.new("RGB", (96, 96), color) for color in ("red", "green", "blue")]
    frames[0].save(folder / "moving.gif", save_all=True, append_images=frames[1:])
    return folder / "moving.gif"


def deep_grey(folder: Path) -> Path:
    Image.fromarray(np.linspace(0, 65535, 96 * 96).reshape(96, 96).astype(np.uint16)).save(folder / "deep.png")
    return folder / "deep.png"


def turned(folder: Path) -> Path:
    exif = Image.Exif()
    exif[0x0112] = 6  # on its right side
    Image.new("RGB", (320, 128)).save(folder / "turned.jpg", exif=exif)
    return folder / "turned.jpg"


def sound(name: str, num_samples: int, *, rate: int = 16_000, level: float = 0.3) -> Maker:
    def make(folder: Path) -> Path:
        samples = level * np.sin(np.arange(num_samples) * 0.05)
        with wave.open(str(folder / name), "wb") as file:
            file.setparams((1, 2, rate, 0, "NONE", ""))
            file.writeframes((samples * 32767).astype("<i2").tobytes())
        return folder / name

    return make


def nan_sound(folder: Path) -> Path:
    with av.open(str(folder / "nan.wav"), "w") as container:
        stream = container.add_stream("pcm_f32le", rate=16_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.full((1, 8000), np.nan, np.float32), format="flt", layout="mono")
        frame.sample_rate = 16_000
        container.mux([*stream.encode(frame), *stream.encode(None)])
    return folder / "nan.wav"


def folder_at(name: str) -> Maker:
    def make(folder: Path) -> Path:
        (folder / name).mkdir()
        return folder / name

    return make


def absent(name: str) -> Maker:
    return lambda folder: folder / name


def not_utf8(suffix: str) -> Maker:
    def make(folder: Path) -> str:
        return os.fsdecode(os.fsencode(folder) + b"/\xff\xfe" + suffix.encode())

    return make


def broken_model(change: Callable[[Path], None]) -> Maker:
    """The small checkpoint, with something changed in a copy; the case gets it through `_small_model`."""

    def make(folder: Path) -> Path:
        target = folder / "model"
        shutil.copytree(_small_model[0], target)
        change(target)
        return target

    return make


_small_model: list[Path] = []
SHARD = "diffusion_pytorch_model-00002-of-00002.safetensors"


def truncate(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: len(data) // 2])

    return change


def remove(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return change


def write(name: str, text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(text) and None


def without_speech_names(folder: Path) -> None:
    """What a text-to-video checkpoint looks like: the blocks alone."""
    speech = ("casual_audio_encoder", "audio_injector", "frame_packer", "cond_encoder", "trainable_cond_mask")
    for path in folder.glob("diffusion_pytorch_model-*.safetensors"):
        kept = {name: tensor for name, tensor in load_file(path).items() if not name.startswith(speech)}
        save_file(kept, path)
    (folder / "diffusion_pytorch_model.safetensors.index.json").unlink()


def changed_config(**values: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return change


IMAGES = [
    Case("missing image flag", 2, r"Missing option '--image'", image=None),
    Case("image is not there", 2, r"no\.png does not exist", image=absent("no.png")),
    Case("image is a folder", 2, r"pictures is a folder", image=folder_at("pictures")),
    Case("image is empty", 1, r"empty\.png is empty", image=content("empty.png", b"")),
    Case("image is text", 1, r"text\.png is not a picture", image=content("text.png", b"a diary, not a picture")),
    Case("image is a video", 1, r"film\.png is not a picture", image=copied(POSE, "film.png")),
    Case("image is cut off", 1, r"half\.jpg cannot be decoded", image=copied(IMAGE, "half.jpg", 2000)),
    Case("image of one pixel", 1, r"1x1 pixels.*at least 16", image=picture("dot.png", "RGB", (1, 1))),
    Case("image too large", 1, r"25000x20000 pixels", image=content("vast.pbm", b"P4 25000 20000\n")),
    Case("image path with NUL", 2, r"null byte|cannot be opened", image=lambda folder: f"{folder}/a\0b.png"),
    Case("image path too long", 2, r"cannot be opened|does not exist", image=absent("x" * 5000 + ".png")),
    Case("image path not UTF-8", 2, r"does not exist", image=not_utf8(".png")),
    Case("image with the name of a sound", 0, "", image=copied(IMAGE, "face.mp3")),
    Case("image in CMYK", 0, "", image=picture("print.jpg", "CMYK")),
    Case("image with palette", 0, "", image=picture("palette.png", "P")),
    Case("image black and white", 0, "", image=picture("fax.png", "1")),
    Case("image half transparent", 0, "transparent parts", image=picture("clear.png", "RGBA")),
    Case("image is animated", 0, "3 frames; the first is used", image=animation),
    Case("image in 16 bits", 0, "", image=deep_grey),
    Case("image lying on its side", 0, "", image=turned),
    Case("image of 20,000 pixels a side", 0, r"20000x3500", image=picture("wide.png", "1", (20_000, 3_500))),
]
SOUNDS = [
    Case("missing audio flag", 2, r"Missing option '--audio'", audio=None),
    Case("audio is not there", 2, r"no sound file at .*no\.wav", audio=absent("no.wav")),
    Case("audio is a folder", 2, r"is a folder", audio=folder_at("sounds")),
    Case("audio is empty", 1, r"empty\.wav is empty", audio=content("empty.wav", b"")),
    Case("audio is text", 1, r"not a sound file", audio=content("text.mp3", b"la la la " * 100)),
    Case("audio is a picture", 1, r"not a sound file", audio=copied(IMAGE, "face.wav")),
    Case("audio is a silent film", 1, r"has a video stream but no audio", audio=lambda folder: POSE),
    Case("audio of a few samples", 1, r"at least 0\.045 s", audio=sound("click.wav", 100)),
    Case("audio without samples", 1, r"no\.wav|lasts 0\.000 s|no sound", audio=sound("none.wav", 0)),
    Case("audio with NaN", 1, r"NaN or infinite", audio=nan_sound),
    Case("audio is silent", 0, r"is silent", audio=sound("hush.wav", 16_000, level=0.0)),
    Case("audio at 8 kHz", 0, "", audio=lambda folder: MEDIA / "talk_5s_8k.wav"),
    Case("audio cut off", 0, r"cut off|announces", audio=copied(VOICE, "cut.wav", 40_000)),
    Case("audio path not UTF-8", 2, r"no sound file", audio=not_utf8(".wav")),
]
POSES = [
    Case("pose is not there", 2, r"no video at", "--pose-video-path {dir}/no.mp4"),
    Case("pose is not a video", 1, r"cannot be decoded as video|no video stream", f"--pose-video-path {VOICE}"),
    Case("pose is shorter than the sound", 0, r"pose video covers 1\.\d s of 2\.0 s", f"--pose-video-path {POSE}"),
]
OPTIONS = [
    Case("height no multiple", 2, r"height=1283 .*Nearest allowed: 1280, 1296", "--height 1283 --width 1280"),
    Case("width zero", 2, r"width=0", "--width 0"),
    Case("width negative", 2, r"width=-64", "--width -64"),
    Case("height too small", 2, r"height=32", "--height 32"),
    Case("height not a number", 2, r"--height.*integer", "--height tall"),
    Case("height and area", 2, r"exclude each other", "--height 64 --area 4096"),
    Case("area zero", 2, r"area=0", "--area 0"),
    Case("no steps", 2, r"num_inference_steps=0", "--num-inference-steps 0"),
    Case("half a step", 2, r"--num-inference-steps", "--num-inference-steps 1.5"),
    Case("negative seed", 2, r"seed=-5", "--seed -5"),
    Case("seed too large", 2, r"seed=\d+ is outside", "--seed 9223372036854775808"),
    Case("frames per clip", 2, r"frames_per_clip=81 .*80", "--frames-per-clip 81"),
    Case("frames per clip too many", 2, r"frames_per_clip=84", "--frames-per-clip 84"),
    Case("frames per clip zero", 2, r"frames_per_clip=0", "--frames-per-clip 0"),
    Case("frames per clip zero in reference timing", 2, r"frames_per_clip=0", "--frames-per-clip 0 --timing reference"),
    Case("no clips", 2, r"num_clips=0", "--num-clips 0"),
    Case("no frames", 2, r"num_frames=0", "--num-frames 0"),
    Case("no fps", 2, r"fps=0", "--fps 0"),
    Case("negative fps", 2, r"fps=-24", "--fps -24"),
    Case("fps is text", 2, r"fps=abc is not a number", "--fps abc"),
    Case("fps is nan", 2, r"fps=nan", "--fps nan"),
    Case("fps by zero", 2, r"fps=1/0", "--fps 1/0"),
    Case("guidance is nan", 2, r"guidance_scale=nan", "--guidance-scale nan"),
    Case("guidance is infinite", 2, r"guidance_scale=inf", "--guidance-scale inf"),
    Case("shift is zero", 2, r"flow_shift=0", "--flow-shift 0"),
    Case("unknown scheduler", 2, r"scheduler='ddim'.*unipc", "--scheduler ddim"),
    Case("unknown timing", 2, r"timing='now'", "--timing now"),
    Case("unknown preset", 2, r"preset='best'", "--preset best"),
    Case("unknown fit", 2, r"fit='stretch'", "--fit stretch"),
    Case("unknown dtype", 2, r"torch_dtype=int8", "--torch-dtype int8"),
    Case("unknown device", 2, r"device='tpu'", "--device tpu"),
    Case("unknown flag", 2, r"No such option.*--stepz", "--stepz 3"),
    Case("one word too many", 2, r"unexpected extra argument", "surplus"),
    Case("official flag of another task", 2, r"another model", "--task i2v-A14B"),
]
OUTPUTS = [
    Case("output is a folder", 2, r"is a folder", output="taken.mp4"),
    Case("output in a missing folder", 2, r"Folder .* does not exist", output="nowhere/out.mp4"),
    Case("output below a file", 2, r"does not exist", output="there.mp4/out.mp4"),
    Case("output with another extension", 2, r"does not end in \.mp4", output="out.avi"),
    Case("output exists", 2, r"exists already", output="there.mp4"),
    Case("output in a place without files", 1, r"cannot be written to", output="/proc/out.mp4"),
    Case("output is the sound", 2, r"is also the audio", f"--overwrite -o {POSE}", audio=lambda folder: POSE),
]
MODELS = [
    Case("model is not there", 2, r"does not exist", model=absent("nothing")),
    Case("model not downloaded", 1, r"wan-s2v download someone/nothing", model=lambda folder: "someone/nothing"),
    Case("model folder is empty", 1, r"is not complete", model=folder_at("bare")),
    Case("shard missing", 1, rf"missing: {SHARD}", model=broken_model(remove(SHARD))),
    Case("shard cut off", 1, r"00002-of-00002", model=broken_model(truncate(SHARD))),
    Case("VAE missing", 1, r"VAE", model=broken_model(remove("Wan2.1_VAE.pth"))),
    Case("VAE cut off", 1, r"Wan2\.1_VAE\.pth", model=broken_model(truncate("Wan2.1_VAE.pth"))),
    Case("speech encoder missing", 1, r"speech encoder", model=broken_model(remove("wav2vec2-large-xlsr-53-english"))),
    Case("tokenizer missing", 1, r"tokenizer", model=broken_model(remove("google"))),
    Case("config is not JSON", 1, r"config\.json is not readable", model=broken_model(write("config.json", "{"))),
    Case("config is a list", 1, r"config\.json holds a list", model=broken_model(write("config.json", "[]"))),
    Case("config of another model", 1, r"num_layers=7", model=broken_model(changed_config(num_layers=7))),
    Case("text-to-video model", 1, r"T2V|text-to-video|not an S2V", model=broken_model(without_speech_names)),
    Case("model is a text file", 1, r"notes\.txt is not a safetensors", model=content("notes.txt", b"hello")),
    Case("components are not there", 2, r"components=", "--components {dir}/no"),
]


@pytest.mark.parametrize(
    "case", [*IMAGES, *SOUNDS, *POSES, *OPTIONS, *OUTPUTS, *MODELS], ids=lambda case: case.name.replace(" ", "-")
)
def test_input(case, wan_s2v, model, tmp_path):
    inputs, results = tmp_path / "inputs", tmp_path / "results"
    inputs.mkdir()
    results.mkdir()
    (results / "taken.mp4").mkdir()
    (results / "there.mp4").write_bytes(b"from before")
    _small_model[:] = [model]
    words: list[object] = ["generate", "--dry-run", "-o", results / case.output]
    for flag, make in (("--image", case.image), ("--audio", case.audio), ("--model", case.model or (lambda _: model))):
        words += [] if make is None else [flag, make(inputs)]
    done = wan_s2v(*words, *case.words.format(dir=inputs).split())

    assert done.code == case.code, done.err
    assert done.out == ""
    assert "Traceback" not in done.err
    assert sorted(path.name for path in results.iterdir()) == ["taken.mp4", "there.mp4"]
    if case.code:
        assert len(done.err.splitlines()) == 1, done.err
        assert re.search(case.error, done.errors[0]), done.errors[0]
    else:
        warnings = " ".join(re.split(r"^warning\s+", done.err, maxsplit=1, flags=re.MULTILINE)[1:])
        assert bool(warnings) == bool(case.error), warnings
        assert re.search(case.error, " ".join(warnings.split()))


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_that_is_not_there(wan_s2v, model, tmp_path):
    done = wan_s2v("generate", "-i", IMAGE, "-a", VOICE, "-m", model, "-o", tmp_path / "o.mp4", "--device", "cuda")
    assert done.code == 2
    assert "sees no CUDA device" in done.errors[0]


def test_full_disk_when_the_file_is_finished(wan_s2v, model, tmp_path, monkeypatch):
    monkeypatch.setattr(video, "os", _FullDisk())
    done = wan_s2v("generate", "-i", IMAGE, "-a", VOICE, "-o", tmp_path / "out.mp4", "-m", model, *FAST, "-q")
    assert (done.code, done.out) == (1, "")
    assert "No space left on device" in done.errors[0]
    kept = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file())
    assert kept == ["out.mp4.partial/clip_00000.safetensors", "out.mp4.partial/run.json"]


class _FullDisk:
    """The os module on a disk that takes no more."""

    def __getattr__(self, name: str) -> object:
        return getattr(os, name)

    def replace(self, *args: object) -> None:
        raise OSError(28, "No space left on device")


@pytest.mark.parametrize(
    ("image", "audio"),
    [
        (picture("print.jpg", "CMYK"), sound("hush.wav", 16_000, level=0.0)),
        (turned, lambda folder: MEDIA / "talk_5s_8k.wav"),
        (animation, lambda folder: MEDIA / "sing_clip.mp3"),
        (deep_grey, sound("short.wav", 800)),
    ],
    ids=["CMYK-silent", "turned-8-kHz", "animated-song", "16-bit-50-ms"],
)
def test_unusual_input_makes_a_video(image, audio, wan_s2v, model, tmp_path):
    output = tmp_path / "out.mp4"
    done = wan_s2v("generate", "-i", image(tmp_path), "-a", audio(tmp_path), "-o", output, "-m", model, *FAST, "-q")
    assert (done.code, done.out) == (0, f"{output}\n"), done.err
    info = read_video_info(output)
    assert (info.num_frames, info.height, info.width) == (4, 64, 64)
    assert info.audio_duration_s is not None


def test_names_with_brackets_spaces_and_other_scripts(wan_s2v, model, tmp_path):
    image, voice = tmp_path / "[bold]ref (1).jpg", tmp_path / "声音 ñ.wav"
    shutil.copy(IMAGE, image)
    shutil.copy(VOICE, voice)
    output = tmp_path / "out: [red].mp4"
    done = wan_s2v("generate", "-i", image, "-a", voice, "-o", output, "-m", model, *FAST)
    assert (done.code, done.out) == (0, f"{output}\n")
    assert image.name in done.err
    assert voice.name in done.err
