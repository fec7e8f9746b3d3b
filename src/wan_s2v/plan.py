"""What a run will do, decided and checked before any weight is loaded.

`GenerationOptions` is the one list of user options: the pipeline's keywords, the command line's flags and job files are
made from it. `plan_generation` opens the sound and the picture, checks everything cheap and settles sizes, clips, seed
and sampling.
"""

from __future__ import annotations

import difflib
import math
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from wan_s2v.audio import ENCODER_RECEPTIVE_FIELD, ENCODER_STRIDE, MODEL_SAMPLE_RATE, Waveform
from wan_s2v.audio_features import num_audio_features, reference_num_clips
from wan_s2v.clips import FRAMES_PER_LATENT, ClipPlan, Timing, as_fps, plan_aligned, plan_reference
from wan_s2v.denoise import Guidance
from wan_s2v.errors import UsageError
from wan_s2v.image import Framing, LoadedImage, load_image, plan_framing
from wan_s2v.marking import CONTENT_PRODUCER, Marking
from wan_s2v.pose_video import PoseVideo
from wan_s2v.prompt import NEGATIVE_PROMPT
from wan_s2v.prompt_spans import prompts_of, read_spans, unused_warnings
from wan_s2v.runtime.sizes import Work
from wan_s2v.schedulers import SCHEDULERS
from wan_s2v.sound_preparation import SILENCES, Silence, choose_sound, prepare_sound
from wan_s2v.sound_span import SoundSpan, span_of
from wan_s2v.speech_synthesis import Speech
from wan_s2v.visible_mark import mark_text

AudioSource = str | Path | tuple[np.ndarray, int]
ImageSource = str | Path | Image.Image | np.ndarray

DEFAULT_FPS = 24
MAX_SEED = 2**63 - 1
DRAFT_STEPS = 12
DRAFT_AREA = 832 * 480
PRESETS = ("exact", "fast", "draft", "4step")
# Change of the prediction, relative to its norm, from which on preset="fast" computes it again: 16 of 40 steps are then
# computed and the latents differ by 4 % (embedded model before its distillation, guidance 3, unipc).
FAST_CHANGE = 0.15
# What few-step LoRAs were distilled for: 4 steps at the timesteps 1000, 937.5, 833.3 and 625, which are a shift of 5,
# each with the plain Euler step and without guidance. Source: ModelTC/Wan2.2-Lightning, README.md, issue 3 and
# `wan/configs/wan_t2v_A14B.py`.
FOUR_STEP = {"num_inference_steps": 4, "flow_shift": 5.0, "scheduler": "euler", "guidance_scale": 1.0}
_FEW_STEPS = 8  # what a model that was distilled takes at most


@dataclass(frozen=True)
class GenerationOptions:
    """Everything a user may choose besides the sound and the picture. None means the model's or the sound's own value.

    Args:
        prompt, negative_prompt: text; the official negative prompt if None. A prompt may be a list of spans in
            seconds, "0-4: she smiles | 4-: she looks away", of which each clip takes the one of its larger share.
        prompt_embeds, negative_prompt_embeds: (L, C) or (1, L, C) in place of text; no text encoder is needed.
        text, voice: words to speak in place of a sound, and one of `speech_synthesis.voices`; by the script if None.
        start_s, duration_s: the stretch of the sound to use, in seconds or as "1:23.5"; all of it if None.
        vocals_path: the isolated voice of the sound, which drives the lips while the sound itself is heard.
        silence: "clean" lets the model hear nothing where nobody speaks (needs silero-vad); "keep" leaves it all.
        pose_video_path: video of a pose skeleton to follow, from the start of the sound.
        seed: clip r draws its noise from seed + r; random and recorded if None.
        generator: draws the noise of all clips in turn, in place of `seed`.
        num_frames: length of the video in its own frames; the sound is cut, or padded with silence, to fit.
        fps: frames per second of the video; 24, or the model's 16 with timing="reference".
        height, width: exact size in pixels; with one of them the other follows the picture.
        area: most pixels per frame, in place of height and width; the size follows the picture.
        fit: "crop" fills the frame, "pad" shows the whole picture between black bars.
        num_inference_steps, guidance_scale, flow_shift, scheduler: sampling.
        audio_guidance_scale: guidance of the sound alone, beside that of the prompt; costs a third pass per step.
        num_clips: make at most this many clips.
        frames_per_clip: longest clip at the model's 16 fps, a multiple of 4 up to 80.
        start_from_reference: begin with the reference image itself.
        timing: "aligned" shows each sound at its frame; "reference" is the official behaviour, 3 frames early.
        preset: "exact"; "fast" (extrapolates the predictions of steps that change little, decodes each clip from where
            the one before ended, and computes in 8 bits where the GPU can); "draft" for a quick look (few steps, small
            frame); or "4step" for a few-step LoRA (4 steps, flow_shift 5, scheduler "euler", guidance_scale 1). What is
            given beside it has priority.
        mark: a text to draw into every frame of the file, at the lower right; "auto" for "AI generated" or "AI生成", by
            the language of prompt and text. The labels for machines are always written.
        content_producer: who answers for the video, in its AIGC label.
        sign_certificate, sign_key: PEM files that sign the file's C2PA content credentials (needs c2pa-python).
        enable_cpu_offload: keep only the part that works on the GPU.
        use_fp16: compute in float16 where the device can.
    Raises: UsageError for the first value that is not accepted.
    """

    prompt: str = ""
    negative_prompt: str | None = None
    prompt_embeds: torch.Tensor | list[torch.Tensor] | None = None
    negative_prompt_embeds: torch.Tensor | list[torch.Tensor] | None = None
    text: str | None = None
    voice: str | None = None
    start_s: float | str | None = None
    duration_s: float | str | None = None
    vocals_path: AudioSource | None = None
    silence: Silence = "keep"
    pose_video_path: str | Path | None = None
    seed: int | None = None
    generator: torch.Generator | None = None
    num_frames: int | None = None
    fps: float | str | Fraction | None = None
    height: int | None = None
    width: int | None = None
    area: int | None = None
    fit: Literal["crop", "pad"] = "crop"
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    audio_guidance_scale: float | None = None
    flow_shift: float | None = None
    scheduler: str | None = None
    num_clips: int | None = None
    frames_per_clip: int | None = None
    start_from_reference: bool = False
    timing: Timing = "aligned"
    preset: Literal["exact", "fast", "draft", "4step"] = "exact"
    mark: str | None = None
    content_producer: str = CONTENT_PRODUCER
    sign_certificate: str | Path | None = None
    sign_key: str | Path | None = None
    enable_cpu_offload: bool = False
    use_fp16: bool = False

    def __post_init__(self) -> None:
        _check_choice("timing", self.timing, ("aligned", "reference"))
        _check_choice("preset", self.preset, PRESETS)
        _check_choice("fit", self.fit, ("crop", "pad"))
        _check_choice("silence", self.silence, SILENCES)
        span_of(self.start_s, self.duration_s)
        if self.scheduler is not None:
            _check_choice("scheduler", self.scheduler, SCHEDULERS)
        _check_number("seed", self.seed, 0, MAX_SEED, whole=True, hint="or leave it out for a random one")
        _check_number(
            "num_inference_steps",
            self.num_inference_steps,
            1,
            1000,
            whole=True,
            hint="or leave it out for the model's own",
        )
        _check_number("num_frames", self.num_frames, 1, 10**7, whole=True, hint="or leave it out to follow the sound")
        for name in ("height", "width", "area", "frames_per_clip"):
            _check_number(name, getattr(self, name), -(10**9), 10**9, whole=True, hint="or leave it out")
        for name in ("start_from_reference", "enable_cpu_offload", "use_fp16"):
            if not isinstance(getattr(self, name), bool):
                raise UsageError(f"{name}={getattr(self, name)!r} is not accepted. Give True or False.")
        _check_number("num_clips", self.num_clips, 1, 10**6, whole=True, hint="or leave it out to follow the sound")
        _check_number(
            "guidance_scale", self.guidance_scale, 0, 100, hint="or leave it out for the model's own; 1 switches it off"
        )
        _check_number("audio_guidance_scale", self.audio_guidance_scale, 0, 100, hint="or leave it out")
        _check_number("flow_shift", self.flow_shift, 0.01, 100, hint="or leave it out for the model's own")
        if self.seed is not None and self.generator is not None:
            raise UsageError("seed and generator are both given. Give one of them.")
        for name in ("prompt", "negative_prompt", "text", "voice", "mark", "content_producer"):
            if not isinstance(getattr(self, name) or "", str):
                kind = type(getattr(self, name)).__name__
                raise UsageError(f"{name} is a {kind}. Give a string; one video per call.")
        read_spans(self.prompt or "")

    @classmethod
    def from_keywords(cls, keywords: dict[str, Any]) -> GenerationOptions:
        """Options from keyword arguments; a misspelt name is an error that names the nearest one."""
        check_names(keywords, [field.name for field in fields(cls)])
        return cls(**keywords)


@dataclass(frozen=True)
class ModelSpec:
    """What a plan must know about a model; read from configuration files, before weights.

    Args:
        size_multiple: sides of a frame are multiples of it (VAE stride · patch size).
        model_fps: frames per second that the model makes.
        motion_frames: frames of history that a clip sees.
        max_area: pixels per frame where the user gives no size.
    """

    size_multiple: int = 16
    model_fps: int = 16
    motion_frames: int = 73
    max_area: int = 1280 * 720
    frames_per_clip: int = 80
    num_inference_steps: int = 40
    guidance_scale: float = 4.5
    flow_shift: float = 3.0
    scheduler: str = "unipc"

    @property
    def min_side(self) -> int:
        """Smallest side of a frame: the coarsest motion patch covers 4 token rows."""
        return 4 * self.size_multiple

    @property
    def motion_latents(self) -> int:
        return (self.motion_frames + 3) // FRAMES_PER_LATENT


@dataclass(frozen=True)
class Sampling:
    """How each clip is denoised.

    Args:
        step_cache: threshold of `StepCache`; 0 computes every step.
    """

    num_inference_steps: int
    guidance: Guidance
    flow_shift: float
    scheduler: str
    step_cache: float = 0.0


@dataclass(frozen=True)
class GenerationPlan:
    """A run, ready to be made by a loaded model of the same spec.

    Args:
        waveform: what is heard, before silence is added.
        driving: what the model hears.
        audio_source, span: where the file's sound track is taken from.
        clip_prompts, clip_seeds: the prompt of each clip, and the seed of its noise; no seeds beside a generator.
        speech: the sound, where it was made from text.
    """

    options: GenerationOptions
    spec: ModelSpec
    image: LoadedImage
    waveform: Waveform
    driving: Waveform
    audio_source: AudioSource
    span: SoundSpan
    framing: Framing
    clips: ClipPlan
    clip_prompts: tuple[str, ...]
    clip_seeds: tuple[int, ...]
    sampling: Sampling
    marking: Marking
    seed: int | None
    warnings: tuple[str, ...]
    speech: Speech | None = None

    @property
    def num_driving_samples(self) -> int:
        """Samples at 16 kHz that the model hears: with timing="aligned" cut to the clips' span, or silent up to it."""
        if self.clips.timing == "reference":
            return len(self.waveform.samples)
        return self.clips.sound_span[1] * MODEL_SAMPLE_RATE // self.clips.model_fps

    @property
    def work(self) -> Work:
        """The plan as numbers."""
        guidance = self.sampling.guidance
        return Work(
            self.framing.height,
            self.framing.width,
            self.spec.size_multiple,
            tuple((clip.num_latent_frames, clip.has_motion) for clip in self.clips.clips),
            self.sampling.num_inference_steps,
            guidance.passes,
            num_prompts=1 + guidance.needs_neither,
            sound_s=float(self.clips.duration),
            has_pose=self.options.pose_video_path is not None,
            carries_past=self.options.preset == "fast",
        )

    def summary(self) -> dict[str, Any]:
        """The plan as plain numbers and strings, for people, JSON and the record beside a result."""
        values = {field.name: getattr(self.options, field.name) for field in fields(self.options)}
        options = {name: value for name, value in values.items() if isinstance(value, str | int | float | bool | Path)}
        return {
            "height": self.framing.height,
            "width": self.framing.width,
            "framing": self.framing.description,
            "sound_s": round(self.waveform.duration_s, 3),
            "duration_s": round(float(self.clips.duration), 3),
            "num_frames": self.clips.num_frames,
            "fps": float(self.clips.fps),
            "model_fps": self.clips.model_fps,
            "num_clips": self.clips.num_clips,
            "frames_per_clip": [clip.num_frames for clip in self.clips.clips],
            "num_inference_steps": self.sampling.num_inference_steps,
            "passes_per_step": self.sampling.guidance.passes,
            "guidance_scale": self.sampling.guidance.scale,
            "audio_guidance_scale": self.sampling.guidance.audio_scale,
            "flow_shift": self.sampling.flow_shift,
            "scheduler": self.sampling.scheduler,
            "step_cache": self.sampling.step_cache,
            "seed": self.seed,
            "clip_seeds": list(self.clip_seeds),
            "clip_prompts": list(self.clip_prompts),
            **({} if self.speech is None else {"speech": {"voice": self.speech.voice, "engine": self.speech.engine}}),
            "options": {name: str(v) if isinstance(v, Path) else v for name, v in options.items()},
            "warnings": list(self.warnings),
        }


def plan_generation(
    audio: AudioSource | None,
    image: ImageSource,
    options: GenerationOptions,
    spec: ModelSpec,
    *,
    has_lora: bool = False,
) -> GenerationPlan:
    """Open the inputs and settle everything that follows from them.

    Args:
        audio: None where the options have a text.
        has_lora: whether a LoRA is on the model.
    Raises: UsageError and MediaError subclasses for inputs and options that cannot be used.
    """
    picture = load_image(image)
    framing = _plan_frame(picture, options, spec)
    fps = as_fps(options.fps or (DEFAULT_FPS if options.timing == "aligned" else spec.model_fps))
    span = span_of(options.start_s, options.duration_s)
    source, speech = choose_sound(audio, options.text, options.voice)
    sound = prepare_sound(
        source, vocals=options.vocals_path, span=span, silence=options.silence, limit_s=_sound_limit(options, fps)
    )
    clips = _plan_clips(sound.heard, fps, options, spec)
    prompts = read_spans(options.prompt)
    clip_prompts = prompts_of(prompts, clips.shown_times)
    seed = options.seed
    if seed is None and options.generator is None:
        seed = secrets.randbelow(2**31)
    warnings = (
        *sound.warnings,
        *picture.warnings,
        *_sound_warnings(sound.heard, clips),
        *unused_warnings(prompts, clip_prompts),
        *_pose_warnings(options, clips),
        *preset_warnings(options.preset, spec.num_inference_steps, has_lora),
    )
    return GenerationPlan(
        options,
        spec,
        picture,
        sound.heard,
        sound.driving,
        source,
        span,
        framing,
        clips,
        clip_prompts,
        () if seed is None else tuple(seed + clip.index for clip in clips.clips),
        _plan_sampling(options, spec),
        marking_of(options, framing.height, framing.width),
        seed,
        warnings,
        speech,
    )


def marking_of(options: GenerationOptions, height: int, width: int) -> Marking:
    """How the file is marked. Raises: UsageError for what could not be drawn or signed later."""
    visible = None if options.mark is None else mark_text(options.mark, f"{options.prompt} {options.text or ''}")
    marking = Marking(visible, options.content_producer, options.sign_certificate, options.sign_key)
    marking.check(height, width)
    return marking


def _plan_frame(picture: LoadedImage, options: GenerationOptions, spec: ModelSpec) -> Framing:
    area = options.area
    if area is None and options.height is None and options.width is None:
        area = min(spec.max_area, DRAFT_AREA) if options.preset == "draft" else spec.max_area
    return plan_framing(
        picture.image.height,
        picture.image.width,
        height=options.height,
        width=options.width,
        area=area,
        fit=options.fit,
        multiple=spec.size_multiple,
        min_side=spec.min_side,
    )


def _sound_limit(options: GenerationOptions, fps: Fraction) -> float | None:
    """Seconds of sound worth decoding; the official timing looks at all of it."""
    if options.num_frames is None or options.timing == "reference":
        return None
    return math.ceil(options.num_frames / fps) + 1.0


def _plan_clips(waveform: Waveform, fps: Fraction, options: GenerationOptions, spec: ModelSpec) -> ClipPlan:
    frames_per_clip = spec.frames_per_clip if options.frames_per_clip is None else options.frames_per_clip
    common: dict[str, Any] = {
        "fps": fps,
        "model_fps": spec.model_fps,
        "num_frames": options.num_frames,
        "frames_per_clip": frames_per_clip,
        "num_clips": options.num_clips,
        "start_from_reference": options.start_from_reference,
    }
    if options.timing == "aligned":
        return plan_aligned(Fraction(waveform.duration_s).limit_denominator(10**6), **common)
    hidden_states = (len(waveform.samples) - ENCODER_RECEPTIVE_FIELD) // ENCODER_STRIDE + 1
    # A length that is not a multiple of 4 is refused by the planner; it must not divide by zero before.
    audio_clips = reference_num_clips(num_audio_features(hidden_states), max(frames_per_clip, 1), spec.model_fps)
    return plan_reference(audio_clips, **common)


def _plan_sampling(options: GenerationOptions, spec: ModelSpec) -> Sampling:
    """What the options state, else the preset, else the model."""
    preset: dict[str, Any] = {}
    if options.preset == "draft":
        preset = {"num_inference_steps": min(spec.num_inference_steps, DRAFT_STEPS)}
    elif options.preset == "4step":
        preset = FOUR_STEP

    def settled(name: str) -> Any:
        stated = getattr(options, name)
        return preset.get(name, getattr(spec, name)) if stated is None else stated

    guidance = Guidance(settled("guidance_scale"), options.audio_guidance_scale)
    step_cache = FAST_CHANGE if options.preset == "fast" else 0.0
    return Sampling(settled("num_inference_steps"), guidance, settled("flow_shift"), settled("scheduler"), step_cache)


def preset_warnings(preset: str, usual_steps: int, has_lora: bool) -> list[str]:
    """What to say of a preset for a model that takes so many steps."""
    if preset != "4step" or has_lora or usual_steps <= _FEW_STEPS:
        return []
    return [
        'preset="4step" is for a few-step LoRA or a distilled model; without one the result is blurred. Add a LoRA, or '
        f"leave the preset out: this model takes {usual_steps} steps."
    ]


def _sound_warnings(waveform: Waveform, clips: ClipPlan) -> list[str]:
    missing = float(clips.duration) - waveform.duration_s
    if clips.timing == "aligned" and missing > 1 / float(clips.fps):
        return [f"The sound ends {missing:.2f} s before the video; silence fills the rest."]
    return []


def _pose_warnings(options: GenerationOptions, clips: ClipPlan) -> list[str]:
    """Opens the pose video, so that one that cannot be used fails here; tells how far it reaches."""
    if options.pose_video_path is None:
        return []
    pose = PoseVideo(options.pose_video_path, clips.model_fps, timing=clips.timing)
    pose.close()
    covered, needed = pose.num_frames / clips.model_fps, float(clips.duration)
    if needed - covered <= 1 / clips.model_fps:
        return []
    return [f"The pose video covers {covered:.1f} s of {needed:.1f} s; the rest of the video follows no pose (black)."]


def negative_prompt_of(options: GenerationOptions) -> str:
    """The negative prompt in force; an empty one means the official default, as in the official code."""
    return options.negative_prompt or NEGATIVE_PROMPT


def check_names(names: Iterable[str], known: Sequence[str]) -> None:
    """Raises: UsageError for the first name that is not known; it names the nearest one."""
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f"Did you mean {close[0]}?" if close else f"Known options: {', '.join(known)}."
            raise UsageError(f"{name!r} is not an option. {hint}")


def _check_choice(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UsageError(f"{name}={value!r} is not accepted. Choose one of {', '.join(allowed)}.")


def _check_number(name: str, value: Any, low: float, high: float, *, whole: bool = False, hint: str = "") -> None:
    if value is None:
        return
    kinds = (int, np.integer) if whole else (int, float, np.integer, np.floating)
    if isinstance(value, bool) or not isinstance(value, kinds):
        raise UsageError(f"{name}={value!r} is not a {'whole ' if whole else ''}number. Give one, {hint}.")
    if not low <= value <= high:
        raise UsageError(f"{name}={value} is outside {low:g}…{high:g}. Give a value in that range; {hint}.")
