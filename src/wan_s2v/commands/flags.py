"""The flags that commands share, and how a command takes them.

A flag of the pipeline has the name of its keyword; one group of flags is one function, whose signature the commands
that take it show as their own.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from typer import Option

from wan_s2v.errors import UsageError
from wan_s2v.experts import settled_boundary

PANELS = INPUTS, VIDEO, SAMPLING, CLIPS, MACHINE, OUTPUT = (
    "Inputs",
    "Video",
    "Sampling",
    "Clips",
    "Machine",
    "Output",
)


def flag(text: str, panel: str, *names: str, default: str | bool = True) -> Any:
    return Option(*names, help=text, rich_help_panel=panel, show_default=default)


def generation_options(
    prompt: Annotated[
        str, flag('What the video shows, in words; by time as "0-4: … | 4-: …" in seconds.', INPUTS, default="empty")
    ] = "",
    negative_prompt: Annotated[str | None, flag("What it must not show.", INPUTS, default="the official text")] = None,
    text: Annotated[
        str | None, flag("Words to speak in place of --audio, by a synthetic voice.", INPUTS, default="none")
    ] = None,
    voice: Annotated[
        str | None, flag("Who speaks them (wan-s2v voices).", INPUTS, default="by the script: zh or en")
    ] = None,
    start_s: Annotated[
        str | None, flag("Where in the sound to begin: seconds or m:ss.", INPUTS, "--start", "--start-s", default="0")
    ] = None,
    duration_s: Annotated[
        str | None,
        flag("How much of it to take: seconds or m:ss.", INPUTS, "--duration", "--duration-s", default="all"),
    ] = None,
    vocals_path: Annotated[
        Path | None,
        flag("The isolated voice, which drives the lips; --audio is heard.", INPUTS, "--vocals", "--vocals-path"),
    ] = None,
    silence: Annotated[
        str, flag("clean: where nobody speaks, the model hears nothing (needs silero-vad); or keep.", INPUTS)
    ] = "keep",
    pose_video_path: Annotated[
        Path | None, flag("Video of a pose skeleton to follow, from the start of the sound.", INPUTS)
    ] = None,
    height: Annotated[int | None, flag("Height in pixels.", VIDEO, default="follows the picture")] = None,
    width: Annotated[int | None, flag("Width in pixels.", VIDEO, default="follows the picture")] = None,
    area: Annotated[
        int | None, flag("Most pixels per frame, in place of height and width.", VIDEO, default="the model's own")
    ] = None,
    fit: Annotated[str, flag("crop fills the frame; pad shows all of the picture between bars.", VIDEO)] = "crop",
    fps: Annotated[str | None, flag("Frames per second.", VIDEO, default="24, or 16 with --timing reference")] = None,
    num_frames: Annotated[
        int | None, flag("Length in frames; the sound is cut or padded.", VIDEO, default="follows the sound")
    ] = None,
    num_inference_steps: Annotated[
        int | None, flag("Denoising steps per clip.", SAMPLING, default="the model's own; 40 for S2V-14B")
    ] = None,
    guidance_scale: Annotated[
        float | None,
        flag(
            "How strictly prompt and sound are followed; 1 takes half the time of other values.",
            SAMPLING,
            default="the model's own; 4.5 for S2V-14B",
        ),
    ] = None,
    audio_guidance_scale: Annotated[
        float | None, flag("The same for the sound alone; a third pass per step.", SAMPLING, default="off")
    ] = None,
    flow_shift: Annotated[
        float | None, flag("Weight of the noisy steps.", SAMPLING, default="the model's own; 3 for S2V-14B")
    ] = None,
    scheduler: Annotated[
        str | None, flag("unipc, dpm++ or euler.", SAMPLING, default="the model's own; unipc for S2V-14B")
    ] = None,
    seed: Annotated[
        int | None, flag("Same seed, same video; clip r uses seed + r.", SAMPLING, default="random, shown")
    ] = None,
    preset: Annotated[
        str, flag("exact, fast, draft for a quick look, or 4step for a few-step LoRA.", SAMPLING)
    ] = "exact",
    num_clips: Annotated[int | None, flag("Make at most so many clips.", CLIPS, default="all")] = None,
    frames_per_clip: Annotated[
        int | None,
        flag("Longest clip at 16 fps, a multiple of 4 up to 80.", CLIPS, default="the model's own; 80 for S2V-14B"),
    ] = None,
    start_from_reference: Annotated[
        bool, flag("Begin with the picture itself.", CLIPS, "--start-from-reference")
    ] = False,
    timing: Annotated[
        str, flag("aligned, or reference: as the official program, lips 3 frames early.", CLIPS)
    ] = "aligned",
    mark: Annotated[
        str | None, flag('A text on every frame; auto for "AI generated" or "AI生成".', OUTPUT, default="none")
    ] = None,
    content_producer: Annotated[str, flag("Who answers for the video, for its AIGC label.", OUTPUT)] = "wan_s2v",
    sign_certificate: Annotated[
        Path | None, flag("PEM certificates, to sign C2PA content credentials.", OUTPUT, default="unsigned")
    ] = None,
    sign_key: Annotated[Path | None, flag("Their PEM key.", OUTPUT, default="none")] = None,
    enable_cpu_offload: Annotated[
        bool, flag("Keep only the part that works on the GPU.", MACHINE, "--enable-cpu-offload")
    ] = False,
    use_fp16: Annotated[bool, flag("Compute in float16.", MACHINE, "--use-fp16")] = False,
) -> dict[str, Any]:
    """The flags that are keywords of the pipeline."""
    return dict(locals())


def model_choice(
    model: Annotated[
        str,
        flag("tiny (embedded, for drawn portraits), s2v-14b, folder, .safetensors or hub id.", INPUTS, "--model", "-m"),
    ] = "tiny",
    components: Annotated[
        Path | None, flag("Folder with VAE and encoders, where the model is a single file.", INPUTS)
    ] = None,
    boundary_ratio: Annotated[
        float | None, flag("Noise level where two experts change.", MACHINE, default="the checkpoint's")
    ] = None,
    boundary_snr: Annotated[
        float | None, flag("The same as a signal-to-noise ratio.", MACHINE, default="the checkpoint's")
    ] = None,
    torch_dtype: Annotated[str | None, flag("bf16, fp16 or fp32.", MACHINE, default="as stored")] = None,
    device: Annotated[str, flag("auto, cuda or cpu.", MACHINE)] = "auto",
) -> dict[str, Any]:
    """The flags that say which model runs where, as fields of `ModelChoice`."""
    values = dict(locals())
    return values | {"boundary_ratio": settled_boundary(boundary_ratio, values.pop("boundary_snr"))}


def run_options(
    clips: Annotated[
        str | None,
        flag("Show only these, such as 3-5; those before are made if they are not there.", CLIPS, default="all"),
    ] = None,
    keep_clips: Annotated[
        bool, flag("Leave finished clips in <output>.partial/, for --redo-clip.", OUTPUT, "--keep-clips")
    ] = False,
    fresh: Annotated[
        bool, flag("Begin anew although <output>.partial/ could be gone on with.", OUTPUT, "--fresh")
    ] = False,
    preview: Annotated[
        bool, flag("Write <output>.preview.mp4, which grows, and a .png of every step.", OUTPUT, "--preview")
    ] = False,
) -> dict[str, Any]:
    """The flags about the run itself."""
    return {"clip_span": clip_span(clips), "keep_clips": keep_clips, "fresh": fresh, "preview": preview}


def clip_span(text: str | None) -> tuple[int, int] | None:
    """First and last clip, from 0, of "3" or "3-5". Raises: UsageError for anything else."""
    if text is None:
        return None
    first, dash, last = text.partition("-")
    if not first.strip().isdecimal() or (dash and not last.strip().isdecimal()):
        raise UsageError(f"--clips {text!r} is not a clip or a span of clips. Give a number, or two, such as 3-5.")
    return int(first) - 1, int(last if dash else first) - 1


LORA: Any = flag(
    "A LoRA to put on the model; may be given several times. FILE:WEIGHT for another strength than 1; of two experts, "
    "FILE:high or FILE:low (also FILE:high:WEIGHT) names one, as high_noise or low_noise in the file's name does.",
    INPUTS,
    "--lora",
    default="none",
)


def _panel_index(parameter: inspect.Parameter) -> int:
    """Place of a parameter's panel in the help; positional arguments come first."""
    panel = parameter.annotation.__metadata__[0].rich_help_panel
    if not panel:
        return -1
    return PANELS.index(panel) if panel in PANELS else len(PANELS)


def takes(*groups: Callable[..., Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the flags of other functions; it receives what they return, in their order, and then its own."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        signatures = [inspect.signature(group, eval_str=True) for group in groups]
        own = list(inspect.signature(command, eval_str=True).parameters.values())[len(groups) :]

        def run(**values: Any) -> None:
            made = [
                group(**{name: values.pop(name) for name in signature.parameters})
                for group, signature in zip(groups, signatures, strict=True)
            ]
            command(*made, **values)

        parameters = own + [parameter for signature in signatures for parameter in signature.parameters.values()]
        keyword_only = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters]
        keyword_only.sort(key=_panel_index)
        run.__signature__ = inspect.Signature(keyword_only)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        run.__name__, run.__doc__ = command.__name__, command.__doc__
        return run

    return decorate
