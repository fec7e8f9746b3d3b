"""Prompt → prompt_embeds."""

from __future__ import annotations

import html
import re
from typing import Any

import ftfy
import torch
from torch import Tensor

NEGATIVE_PROMPT = (  # the official default of Wan2.2-S2V
    "画面模糊，最差质量，画面模糊，细节模糊不清，情绪激动剧烈，手快速抖动，字幕，丑陋的，残缺的，多余的手指，画得不好的手部，"
    "画得不好的脸部，畸形的，毁容的，形态畸形的肢体，手指融合，静止不动的画面，杂乱的背景，三条腿，背景人很多，倒着走"
)
VIDEO_NEGATIVE_PROMPT = (  # the official default of Wan2.2 T2V, I2V and TI2V
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，低质量，JPEG压缩残留，丑陋的，残缺的，"
    "多余的手指，画得不好的手部，画得不好的脸部，畸形的，毁容的，形态畸形的肢体，手指融合，静止不动的画面，杂乱的背景，三条腿，背景人很多，"
    "倒着走"
)


def clean_prompt(text: str) -> str:
    """Repair encoding, unescape HTML twice and fold white space, as the official tokenizer wrapper does.

    ftfy also turns full-width punctuation into ASCII; the model has seen its Chinese prompts that way.
    """
    text = html.unescape(html.unescape(ftfy.fix_text(text))).strip()
    return re.sub(r"\s+", " ", text).strip()


@torch.no_grad()
def encode_prompt(text: str, tokenizer: Any, text_encoder: torch.nn.Module, max_length: int) -> Tensor:
    """Embed one prompt.

    Args:
        max_length: tokens kept, the end token included.
    Returns: (tokens, C) in the encoder's dtype and on its device, without padding.
    """
    tokens = tokenizer(
        clean_prompt(text),
        padding="max_length",
        max_length=max_length,
        truncation=True,
        add_special_tokens=True,
        return_attention_mask=True,
        return_tensors="pt",
    )
    device = next(text_encoder.parameters()).device
    mask = tokens.attention_mask.to(device)
    hidden_states = text_encoder(tokens.input_ids.to(device), mask).last_hidden_state
    return hidden_states[0, : int(mask.sum())]
