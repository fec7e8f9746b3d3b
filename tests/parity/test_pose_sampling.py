"""Which frames of a pose video are taken, against numbers of the official code."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import MEDIA, assert_close, load_golden

from wan_s2v.pose_video import PoseVideo
from wan_s2v.video import read_frames, read_video_info

TENSORS, _ = load_golden("pose_video_sampling")
POSE = MEDIA / "pose_small.mp4"


def _means(frames: torch.Tensor) -> torch.Tensor:
    return ((frames + 1) * 127.5).mean(dim=(1, 2, 3))


def test_every_decoded_frame_has_the_official_mean():
    means = torch.tensor([frame.mean(dtype=np.float64) for frame in read_frames(POSE)], dtype=torch.float32)
    assert_close(means, TENSORS["all.mean_per_frame"], 0.5, "all frames")  # decoders differ by a fraction of a level
    info = read_video_info(POSE)
    assert [info.num_frames, info.fps] == TENSORS["info.frames_fps"].tolist()


@pytest.mark.parametrize("key", [key for key in TENSORS if ".first." in key])
def test_reference_timing_takes_the_official_frames(key):
    count, fps = (int(part.lstrip("nfps")) for part in key.split(".")[:2])
    expected = TENSORS[key]
    pose = PoseVideo(POSE, fps, timing="reference")
    frames = pose.read(0, count)
    assert_close(_means(frames[: len(expected)]), expected, 0.5, key)
    assert frames.shape[0] == count
    assert (frames[len(expected) :] == -1).all(), "missing frames are black"
    assert min(pose.num_frames, count) == len(expected)
