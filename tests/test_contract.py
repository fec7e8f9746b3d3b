"""The public contract: the documented lines run as written, and the public names are the intended ones."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from conftest import MEDIA
from models import random_pipeline

import wan_s2v
from wan_s2v.video import read_video_info
from wan_s2v.weights.convert import convert

REPOSITORY = Path(__file__).parent.parent


def test_public_names_are_the_intended_ones():
    assert set(wan_s2v.__all__) == {
        "ClipPlan",
        "S2VClip",
        "S2VOutput",
        "WanS2VError",
        "WanS2VPipeline",
        "WanS2VTransformer",
        "__version__",
        "load_pipeline",
    }
    assert all(getattr(wan_s2v, name) is not None for name in wan_s2v.__all__)


def test_importing_the_package_imports_nothing_heavy():
    heavy = ["torch", "numpy", "diffusers", "transformers", "av", "cv2", "PIL", "soxr", "safetensors"]
    code = f"import sys, wan_s2v, wan_s2v.errors; print([m for m in {heavy} if m in sys.modules])"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "[]"


def test_the_readme_snippet_runs_as_written(tmp_path):
    """Against an official folder whose coarse patches make 1280x720 cheap: 120 frames, 5.00 s, with sound."""
    snippet = re.search(r"```python\n(.*?)```", (REPOSITORY / "README.md").read_text(), re.DOTALL).group(1)
    assert 'from_pretrained("Wan-AI/Wan2.2-S2V-14B", torch_dtype=torch.float16, device_map="auto")' in snippet
    model = random_pipeline(patch_size=(1, 10, 10), num_layers=1, ffn_dim=16, vae={"base_dim": 2, "num_res_blocks": 1})
    model.save_pretrained(tmp_path / "saved")
    convert(tmp_path / "saved", tmp_path / "Wan-AI" / "Wan2.2-S2V-14B", layout="official")
    shutil.copy(MEDIA / "talk_5s_8k.wav", tmp_path / "input_audio.wav")
    shutil.copy(MEDIA / "person_small.png", tmp_path / "reference_image.jpg")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run([sys.executable, "-c", snippet], cwd=tmp_path, env=environment, check=True, capture_output=True)
    info = read_video_info(tmp_path / "output_video.mp4")
    assert (info.num_frames, info.fps, info.height, info.width) == (120, 24, 720, 1280)
    assert info.duration_s == 5.0
    assert abs(info.audio_duration_s - 5.0) < 1024 / 48_000
    assert (info.video_codec, info.pixel_format, info.audio_codec) == ("h264", "yuv420p", "aac")
