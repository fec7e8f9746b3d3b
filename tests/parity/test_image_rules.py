"""Size rule, reference image and pose frames against numbers of the official code."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from conftest import GOLDENS, MEDIA, assert_close, load_golden

from wan_s2v.image import apply_framing, choose_size, frame_tensor, load_image, plan_framing, reference_framing

TENSORS, METADATA = load_golden("image_preprocess")
CASES = {name: json.loads(text) for name, text in sorted(METADATA.items())}


def test_every_row_of_the_official_size_table_is_reproduced():
    rows = json.loads((GOLDENS / "size_rule.json").read_text())["rows"]
    assert len(rows) > 20
    wrong = [row for row in rows if choose_size(*row[:3]) != tuple(row[3:])]
    assert not wrong


@pytest.mark.parametrize("name", CASES)
def test_reference_image_pixels_are_the_official_ones(name):
    case = CASES[name]
    image = load_image(MEDIA / case["file"]).image
    assert [image.height, image.width] == case["src_hw"]
    framing = reference_framing(*case["src_hw"], case["height"], case["width"])
    assert [framing.resized_height, framing.resized_width] == TENSORS[f"{name}.resized_size_hw"].tolist()
    pixels = ((apply_framing(image, framing) + 1) * 127.5).round().permute(1, 2, 0)
    assert_close(pixels, TENSORS[f"{name}.pixels_u8"].float(), 0, name)


@pytest.mark.parametrize("name", CASES)
def test_pose_frames_are_resized_as_floats_with_grey_padding(name):
    case = CASES[name]
    pixels = torch.from_numpy(np.array(load_image(MEDIA / case["file"]).image)).permute(2, 0, 1)
    framing = reference_framing(*case["src_hw"], case["height"], case["width"])
    frames = frame_tensor(pixels[None].float() / 255 * 2 - 1, framing)
    # One float32 resize in another order of summation.
    assert_close(frames[0, :, ::3, ::3], TENSORS[f"{name}.tensor_path_every3"], 1e-5, name)


def test_an_area_leads_to_the_official_geometry():
    framing = plan_framing(1104, 832, area=1024 * 704)
    assert framing == reference_framing(1104, 832, 960, 704)
