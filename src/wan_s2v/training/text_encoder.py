"""The embedded model's text encoder: a UMT5 of under a million weights that knows what a prompt directs.

It learns by telling from its features what a prompt says: expression, head, camera, and then what the person and the
place look like. What a prompt leaves open means the plain choice (neutral, lively, still camera), as in `describe`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from wan_s2v.prompt import clean_prompt
from wan_s2v.training.free_prompts import describe_freely
from wan_s2v.training.identities import BACKGROUNDS, BEARDS, CLOTHES, COVERS, HAIR_NAMES, HAIR_STYLES, sample_identities
from wan_s2v.training.loop import Budget, Loop
from wan_s2v.training.motion import Camera, Controls, Expression, Head, sample_controls
from wan_s2v.training.prompts import Facts, Language, describe, identity_facts
from wan_s2v.training.text_tokenizer import VOCAB_SIZE
from wan_s2v.training.wordings import CHINESE_FILLERS, CHINESE_IDLE, ENGLISH_FILLERS, ENGLISH_IDLE, Part

MAX_TOKENS = 64
TEXT_CONFIG: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "d_model": 128,
    "d_kv": 32,
    "d_ff": 256,
    "num_layers": 3,
    "num_heads": 4,
    "feed_forward_proj": "gated-gelu",
    "dropout_rate": 0.0,
    "pad_token_id": 0,
    "eos_token_id": 1,
}
CONTROLS = ("expression", "head", "camera")
ATTRIBUTES: dict[str, tuple[Any, ...]] = {
    "expression": get_args(Expression), "head": get_args(Head), "camera": get_args(Camera),
    "background": BACKGROUNDS, "woman": (False, True), "hair_style": tuple(HAIR_STYLES),
    "hair_colour": tuple(dict.fromkeys(HAIR_NAMES)), "cover": COVERS, "glasses": (False, True), "beard": BEARDS,
    "clothes": CLOTHES,
    "clothes_colour": ("white", "black", "grey", "beige", "brown", "orange", "red", "yellow", "green", "teal", "blue",
                       "purple", "pink"),
}  # fmt: skip

# What in a text of `describe` tells that it mentions a fact.
_MENTIONS = {
    "background": "background|room with|背景|身后", "woman": "", "hair_style": " hair|bald|光头|留着[^、]*色",
    "hair_colour": " hair|留着[^、]*色", "cover": "beanie|headscarf|毛线帽|头巾", "glasses": "glasses|眼镜",
    "beard": "beard|moustache|goatee|胡", "clothes": "shirt|v-neck|turtleneck|jacket|blouse|穿着",
    "clothes_colour": "shirt|v-neck|turtleneck|jacket|blouse|穿着",
}  # fmt: skip
_CONTROL_WEIGHT, _FACT_WEIGHT, _MEAN_WEIGHT = 1.0, 0.3, 0.3
_FEATURE_NOISE = 0.2  # so that what is read stands out from a feature's other parts
_SUBWORD_DROPOUT, _DROPOUT_EVERY = 0.1, 6  # one prompt in six is cut into other pieces, as a slip of the pen would
_HELD_OUT_COMBINATIONS = 6  # one in so many combinations of movements is left to measure with
_EMPTY_SHARE = 0.05  # of the prompts that ask for nothing


@dataclass(frozen=True)
class Prompt:
    """A prompt, the index of what is true of the clip for each of `ATTRIBUTES`, and which of them the text mentions."""

    text: str
    labels: tuple[int, ...]
    said: frozenset[str]


@dataclass(frozen=True)
class TextData:
    """Encoded prompts.

    Args:
        input_ids: (N, MAX_TOKENS) int64, padded with 0.
        labels, said: (N, attributes) int64 and bool.
        lengths: tokens of every prompt.
    """

    input_ids: Tensor
    labels: Tensor
    said: Tensor
    lengths: list[int]

    def draw(self, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Token ids (batch, L) and what to read from them.

        Returns: ids, and labels with -1 for facts that a prompt does not mention; of controls it means the plain ones.
        """
        several = torch.randint(len(self.lengths), (2 * batch,), generator=generator).tolist()
        several.sort(key=lambda row: self.lengths[row])  # the shorter or the longer half: less padding
        chosen = several[:batch] if _maybe(0.5, generator) else several[batch:]
        longest = self.lengths[chosen[-1]]
        rows = torch.tensor(chosen).to(self.labels.device)
        read = self.said[rows]
        read[:, : len(CONTROLS)] = True
        return self.input_ids[rows, :longest], self.labels[rows].masked_fill(~read, -1)


def sample_prompts(
    count: int,
    generator: torch.Generator,
    *,
    part: Part = "all",
    templates: float = 0.35,
    disturbed: float = 0.5,
    language: Language | None = None,
    combinations: Part = "all",
) -> list[Prompt]:
    """Prompts about random people and directions.

    Args:
        part: wordings to choose from.
        templates: share worded by `describe`; the others are worded freely.
        disturbed: share with another order, typing errors, missing punctuation, or remarks beside the point.
        language: one language, or both at random.
        combinations: of expression, head and camera to choose from.
    """
    people = sample_identities(max(1, min(count, 2000)), generator)
    facts = [identity_facts(people, row) for row in range(len(people))]
    prompts: list[Prompt] = []
    while len(prompts) < count:
        for controls in _sample_controls(count, generator):
            if combinations != "all" and _is_held_out(controls) != (combinations == "held out"):
                continue
            fact = facts[_number(len(facts), generator)]
            spoken = language or ("en", "zh")[_number(2, generator)]
            if _maybe(templates, generator):
                text = describe(controls, fact, spoken, generator)
                said = frozenset([*CONTROLS, *(name for name, sign in _MENTIONS.items() if re.search(sign, text))])
            else:
                free = describe_freely(controls, fact, spoken, generator, part)
                text, said = free.text, free.said
            if _maybe(disturbed, generator):
                text = disturb(text, spoken, generator)
                text = "" if controls == Controls() and _maybe(_EMPTY_SHARE, generator) else text
            prompts.append(Prompt(text, _labels(controls, fact), said))
    return prompts[:count]


def _sample_controls(count: int, generator: torch.Generator) -> list[Controls]:
    """Directions as clips have them, all combinations alike, and those with two sides: which is whose takes longest."""
    chosen = sample_controls(count, generator)
    kinds = [ATTRIBUTES[name] for name in CONTROLS]
    sides = (kinds[0], ("looking left", "looking right", "tilting"), ("pan left", "pan right"))
    for row in range(count // 2):
        options = sides if row % 3 == 0 else kinds
        chosen[row] = Controls(*(values[_number(len(values), generator)] for values in options))
    return [chosen[row] for row in torch.randperm(count, generator=generator).tolist()]


def _is_held_out(controls: Controls) -> bool:
    """A share of the combinations of two movements.

    Both sides of one movement go together, and what need not be said is always trained: a single side that never
    occurs beside an expression, or a movement that is never left out, would teach its absence.
    """
    if controls.head == "lively" or controls.camera == "still":
        return False
    expression, head, camera = (ATTRIBUTES[name].index(getattr(controls, name)) for name in CONTROLS)
    head, camera = head - (controls.head == "looking right"), camera - (controls.camera == "pan right")
    return (expression + 2 * head + 3 * camera) % _HELD_OUT_COMBINATIONS == 1


def _labels(controls: Controls, facts: Facts) -> tuple[int, ...]:
    values = vars(controls) | vars(facts)
    return tuple(options.index(values[name]) for name, options in ATTRIBUTES.items())


def _number(below: int, generator: torch.Generator) -> int:
    return int(torch.randint(below, (), generator=generator))


def _maybe(probability: float, generator: torch.Generator) -> bool:
    return float(torch.rand((), generator=generator)) < probability


def disturb(text: str, language: Language, generator: torch.Generator) -> str:
    """The same prompt as a careless or wordy person writes it."""
    comma = ", " if language == "en" else "，"
    clauses = text.split(comma)
    if _maybe(0.4, generator):
        order = torch.randperm(len(clauses), generator=generator).tolist()
        clauses = [clauses[i].strip(".。") for i in order]
    for _ in range(_number(3, generator)):
        fillers = ENGLISH_FILLERS if language == "en" else CHINESE_FILLERS
        filler = fillers[_number(len(fillers), generator)].format(she="she")
        filler = _idle_words(language, generator) if _maybe(0.5, generator) else filler
        clauses.insert((0, len(clauses))[_number(2, generator)], filler)
    text = comma.join(clauses)
    if language == "en" and _maybe(0.4, generator):
        text = _with_typing_error(text, generator)
    if _maybe(0.25, generator):
        text = text.replace(comma, (" ", comma.strip())[_number(2, generator)]).replace(".", "")
    return text


def _idle_words(language: Language, generator: torch.Generator) -> str:
    """Words that direct nothing, known ones and inventions, so that the unknown is not taken for a direction."""
    words = []
    for _ in range(1 + _number(3, generator)):
        if _maybe(0.5, generator):
            idle = ENGLISH_IDLE if language == "en" else CHINESE_IDLE
            words.append(idle[_number(len(idle), generator)])
        elif language == "en":
            syllables = (("b", "cl", "d", "f", "gr", "k", "m", "n", "p", "st", "tr", "w")[_number(12, generator)]
                         + ("an", "er", "i", "on", "u", "ist", "ea", "or", "el")[_number(9, generator)]
                         for _ in range(1 + _number(3, generator)))  # fmt: skip
            words.append("".join(syllables))
        else:
            words.append("".join(chr(0x4E00 + _number(0x5000, generator)) for _ in range(1 + _number(2, generator))))
    return (" " if language == "en" else "").join(words)


def _with_typing_error(text: str, generator: torch.Generator) -> str:
    """One letter inside a longer word dropped, doubled, or swapped with its neighbour."""
    words = text.split(" ")
    long = [i for i, word in enumerate(words) if len(word) >= 5 and word.isalpha()]
    if not long:
        return text
    index = long[_number(len(long), generator)]
    word = words[index]
    at = 1 + _number(len(word) - 3, generator)
    a, b = word[at], word[at + 1]
    words[index] = word[:at] + (b, a + a + b, b + a)[_number(3, generator)] + word[at + 2 :]
    return " ".join(words)


def prepare_text_data(
    prompts: list[Prompt],
    tokenizer: PreTrainedTokenizerFast,
    device: torch.device | str = "cpu",
    *,
    vary_subwords: bool = False,
) -> TextData:
    """Encode prompts as `encode_prompt` does.

    Args:
        vary_subwords: leave out some merges of some prompts, for training.
    """
    encoded = _encode(prompts, tokenizer)
    if vary_subwords:
        model = tokenizer.backend_tokenizer.model
        model.dropout = _SUBWORD_DROPOUT
        encoded[::_DROPOUT_EVERY] = _encode(prompts[::_DROPOUT_EVERY], tokenizer)
        model.dropout = None
    rows = [F.pad(torch.tensor(ids), (0, MAX_TOKENS - len(ids))) for ids in encoded]
    labels = torch.tensor([prompt.labels for prompt in prompts])
    said = torch.tensor([[name in prompt.said for name in ATTRIBUTES] for prompt in prompts])
    return TextData(torch.stack(rows).to(device), labels.to(device), said.to(device), [len(ids) for ids in encoded])


def _encode(prompts: list[Prompt], tokenizer: PreTrainedTokenizerFast) -> list[list[int]]:
    texts = [clean_prompt(prompt.text) for prompt in prompts]
    encoded: list[list[int]] = tokenizer(texts, max_length=MAX_TOKENS, truncation=True).input_ids
    return encoded


class PromptReader(nn.Module):
    """A text encoder and the readers that train it: for every attribute one query over the tokens, and their mean."""

    def __init__(self, encoder: UMT5EncoderModel) -> None:
        super().__init__()
        width = encoder.config.d_model
        self.encoder = encoder
        self.queries = nn.Parameter(torch.randn(len(ATTRIBUTES), width) * width**-0.5)
        self.from_query = nn.ModuleList(nn.Linear(width, len(options)) for options in ATTRIBUTES.values())
        self.from_mean = nn.ModuleList(nn.Linear(width, len(options)) for options in ATTRIBUTES.values())

    def forward(self, input_ids: Tensor, noise: Tensor | None = None) -> tuple[list[Tensor], list[Tensor]]:
        """Logits (B, options) for every attribute, by query and from the mean; `noise` (B, L, C) joins the features."""
        mask = input_ids != 0
        features = self.encoder(input_ids, mask.long()).last_hidden_state.float()
        features = features if noise is None else features + noise
        scores = (features @ self.queries.T).masked_fill(~mask[..., None], -torch.inf)  # (B, L, attributes)
        pooled = scores.softmax(dim=1).transpose(1, 2) @ features
        mean = (features * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)
        by_query = [head(pooled[:, i]) for i, head in enumerate(self.from_query)]
        return by_query, [head(mean) for head in self.from_mean]


def build_text_encoder(config: dict[str, Any] = TEXT_CONFIG) -> UMT5EncoderModel:
    """A new encoder. Its last norm keeps a scale of 1, so that every token's features have unit mean square."""
    encoder = UMT5EncoderModel(UMT5Config(**config))
    encoder.encoder.final_layer_norm.weight.requires_grad_(False)
    return encoder


def prepare_training_data(
    count: int,
    tokenizer: PreTrainedTokenizerFast,
    generator: torch.Generator,
    *,
    part: Part = "all",
    device: torch.device | str = "cpu",
) -> TextData:
    """Prompts to train on, both languages, cut into subwords in varying ways.

    Args:
        part: "all", or "trained" to keep wordings and combinations of controls aside for a measurement.
    """
    prompts = sample_prompts(count, generator, part=part, combinations=part)
    return prepare_text_data(prompts, tokenizer, device, vary_subwords=True)


def train_text_encoder(
    reader: PromptReader,
    data: TextData,
    budget: Budget,
    *,
    batch: int = 128,
    learning_rate: float = 3e-3,
    seed: int = 0,
    checkpoint: Path | None = None,
    report: Callable[[str], None] = print,
) -> Loop:
    """Train encoder and readers in place; afterwards they hold the average of their weights."""
    device = data.input_ids.device
    draws = torch.Generator().manual_seed(seed)
    noises = torch.Generator(device).manual_seed(seed)
    loop = Loop(
        reader,
        muon_lr=learning_rate,
        adamw_lr=learning_rate,
        budget=budget,
        checkpoint=checkpoint,
        generators=(draws, noises),
        report=report,
        average=0.99,
        clip=1.0,
    )
    for _ in loop:
        input_ids, labels = data.draw(batch, draws)
        shape = (*input_ids.shape, reader.encoder.config.d_model)
        noise = _FEATURE_NOISE * torch.randn(shape, generator=noises, device=device)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            by_query, from_mean = reader(input_ids, noise)
        loop.step(_loss(by_query, labels) + _MEAN_WEIGHT * _loss(from_mean, labels))
    loop.finish()
    return loop


def _loss(logits: list[Tensor], labels: Tensor) -> Tensor:
    """Cross-entropy of what can be read; guesses of what is not said would be mere noise."""
    total = torch.zeros((), device=labels.device)
    for name, row, label in zip(ATTRIBUTES, logits, labels.T, strict=True):
        weight = (_CONTROL_WEIGHT if name in CONTROLS else _FACT_WEIGHT) / len(label)
        total = total + weight * F.cross_entropy(row.float(), label, ignore_index=-1, reduction="sum")
    return total


@torch.no_grad()
def evaluate_text_encoder(reader: PromptReader, data: TextData, batch: int = 256) -> dict[str, float]:
    """Share of the prompts mentioning an attribute from which it is read rightly; and "controls", all three at once.

    Attributes that no prompt mentions are left out.
    """
    right = []
    for start in range(0, len(data.lengths), batch):
        rows = slice(start, start + batch)
        logits, _ = reader(data.input_ids[rows, : max(data.lengths[rows])])
        right.append(torch.stack([row.argmax(1) for row in logits], dim=1) == data.labels[rows])
    correct = torch.cat(right)
    figures = {
        name: float(correct[data.said[:, i], i].float().mean())
        for i, name in enumerate(ATTRIBUTES)
        if bool(data.said[:, i].any())
    }
    return figures | {"controls": float(correct[:, : len(CONTROLS)].all(1).float().mean())}


@torch.no_grad()
def measure_features(encoder: UMT5EncoderModel, data: TextData) -> dict[str, float]:
    """Mean and deviation of the features of tokens, padding left out, and how much of them is the same for all."""
    hidden = encoder(data.input_ids, (data.input_ids != 0).long()).last_hidden_state[data.input_ids != 0].float()
    return {"mean": float(hidden.mean()), "std": float(hidden.std()), "common": float(hidden.mean(0).square().mean())}
