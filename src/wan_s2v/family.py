"""Video from text or a picture, with T2V-A14B, I2V-A14B and TI2V-5B: diffusers' own pipelines, run as officially.

What diffusers lacks is added around its classes: official checkpoint folders, noise levels, defaults per model, and the
official way of a picture into the frame. The denoising loop, and with it the switch between experts, is diffusers' own.

Source of the defaults: Wan-Video/Wan2.2 `wan/configs/`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from diffusers import WanImageToVideoPipeline, WanPipeline
from diffusers.utils import is_accelerate_available
from PIL import Image

from wan_s2v.errors import UsageError
from wan_s2v.experts import settled_boundary
from wan_s2v.first_frame import CroppedFrame, StretchedFrame, cropped_size, stretched_size
from wan_s2v.image import load_image
from wan_s2v.pipeline import WanS2VPipeline
from wan_s2v.prompt import VIDEO_NEGATIVE_PROMPT
from wan_s2v.runtime.memory import device_budget
from wan_s2v.runtime.precision import as_dtype, usable_dtype
from wan_s2v.schedulers import new_scheduler
from wan_s2v.weights import load_components
from wan_s2v.weights.checkpoint import Checkpoint, find_checkpoint, fingerprint, read_task
from wan_s2v.weights.names import TASKS, Task


@dataclass(frozen=True)
class VideoSpec:
    """How a model is officially sampled.

    Args:
        guidance_scale: of the only transformer, or of the high-noise expert.
        guidance_scale_2: of the low-noise expert; None without one.
        height, width: of a video from text; their product is the most pixels of one from a picture.
    """

    num_inference_steps: int
    flow_shift: float
    guidance_scale: float
    guidance_scale_2: float | None
    fps: int
    num_frames: int
    height: int
    width: int
    scheduler: str = "unipc"
    negative_prompt: str = VIDEO_NEGATIVE_PROMPT


SPECS: Final[dict[Task, VideoSpec]] = {
    "t2v": VideoSpec(40, 12.0, 4.0, 3.0, fps=16, num_frames=81, height=720, width=1280),
    "i2v": VideoSpec(40, 5.0, 3.5, 3.5, fps=16, num_frames=81, height=720, width=1280),
    "ti2v": VideoSpec(50, 5.0, 5.0, None, fps=24, num_frames=121, height=704, width=1280),
}


class WanTextToVideo(WanPipeline):
    """diffusers' `WanPipeline` whose keywords default to `spec`, the official settings of its model."""

    spec: VideoSpec

    def __call__(self, prompt: str | list[str] | None = None, **options: Any) -> Any:
        """As in diffusers; see `WanPipeline`. Raises: UsageError for guidance that diffusers would leave out."""
        size = {"height": self.spec.height, "width": self.spec.width}
        return super().__call__(prompt, **size | settled(self.spec, options))


class WanPictureToVideo(WanImageToVideoPipeline):
    """diffusers' `WanImageToVideoPipeline` whose keywords default to `spec`; height and width follow the picture."""

    spec: VideoSpec

    def __call__(
        self, image: Any, prompt: str | list[str] | None = None, *, area: int | None = None, **options: Any
    ) -> Any:
        """As in diffusers, see `WanImageToVideoPipeline`.

        Args:
            image: a PIL image, a file, an array (H, W, 3), or a tensor as diffusers takes it (with height and width).
            area: about the most pixels per frame, in place of height and width.
        Raises: UsageError for guidance that diffusers would leave out, and for a size that is half given or given
            twice; ImageError for a file that is no picture.
        """
        picture = image if isinstance(image, torch.Tensor) else load_image(image).image
        sides = {name: options.pop(name, None) for name in ("height", "width")}
        given = [name for name, value in sides.items() if value is not None]
        if len(given) == 1 or (given and area is not None) or (not given and isinstance(picture, torch.Tensor)):
            raise UsageError(
                f"height={sides['height']}, width={sides['width']}, area={area}. Give both sides, or area."
            )
        if isinstance(picture, Image.Image) and not given:
            sides["height"], sides["width"] = self.frame_size(picture, area)
        return super().__call__(picture, prompt, **sides, **settled(self.spec, options))

    def frame_size(self, picture: Image.Image, area: int | None = None) -> tuple[int, int]:
        """(height, width) of a video that starts from a picture, by its model's rule."""
        multiple = self.vae_scale_factor_spatial * self.transformer.config.patch_size[1]
        task: Task = "ti2v" if self.config.expand_timesteps else "i2v"
        return picture_size(task, picture, area or self.spec.height * self.spec.width, multiple)


def picture_size(task: Task, picture: Image.Image, area: int, multiple: int) -> tuple[int, int]:
    """(height, width) of a video of about `area` pixels at most that starts from a picture, by the model's rule."""
    rule = cropped_size if task == "ti2v" else stretched_size
    return rule(picture.height, picture.width, area, multiple)


def settled(spec: VideoSpec, options: dict[str, Any]) -> dict[str, Any]:
    """The keywords given, and the official ones where they say nothing.

    One guidance given is that of both experts, and an empty negative prompt means the official one, as officially.

    Raises: UsageError where only the second expert is to be guided, for diffusers would then guide neither.
    """
    given = {name: value for name, value in options.items() if value is not None}
    guidance: dict[str, Any] = {"guidance_scale": spec.guidance_scale}
    if "guidance_scale" not in given and spec.guidance_scale_2 is not None:
        guidance["guidance_scale_2"] = spec.guidance_scale_2
    defaults = {"num_frames": spec.num_frames, "num_inference_steps": spec.num_inference_steps} | guidance
    if not given.get("negative_prompt") and "negative_prompt_embeds" not in given:
        given["negative_prompt"] = spec.negative_prompt
    keywords = defaults | given
    if keywords["guidance_scale"] <= 1 < keywords.get("guidance_scale_2", 0):
        raise UsageError(
            f"guidance_scale={keywords['guidance_scale']} with guidance_scale_2={keywords['guidance_scale_2']}: the"
            " high-noise expert cannot go without guidance where the low-noise one has it. Give a guidance_scale above"
            " 1, such as 1.01, or a guidance_scale_2 of 1."
        )
    return keywords


def load_pipeline(
    model: str | Path,
    *,
    task: str | None = None,
    torch_dtype: torch.dtype | str | None = None,
    device_map: str | None = None,
    components: str | Path | Sequence[str | Path] | None = None,
    boundary_ratio: float | None = None,
    boundary_snr: float | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> WanS2VPipeline | WanTextToVideo | WanPictureToVideo:
    """Load any Wan2.2 model: the pipeline of what it does, with its official defaults.

    Args:
        model: a hub id that was downloaded, an official folder or a diffusers folder.
        task: "s2v", "t2v", "i2v" or "ti2v"; by default what the checkpoint does. TI2V-5B makes videos from text, or
            from a picture and text with task="i2v".
        torch_dtype: of the transformers; as stored if None, but bfloat16 for weights stored in float32, in which the
            official program computes. The VAE runs in float32, the text encoder in bfloat16 unless this is float32.
        device_map: "auto" (the GPU if there is one: all of the model on it, or one part at a time where the weights
            exceed its free memory), "cuda" (all of it on the GPU), "offload" (one part at a time), "cpu" or None.
        components: folder with the other parts, or their files, where the model is a single transformer file.
        boundary_ratio, boundary_snr: where the experts change, as a share of the noise scale or as a signal-to-noise
            ratio; by default the checkpoint's, or the official 0.875 (T2V) and 0.9 (I2V).
        progress: called with component, bytes done and bytes in all while loading.
    Returns: `WanS2VPipeline`, or subclasses of diffusers' `WanPipeline` and `WanImageToVideoPipeline`, whose `spec`
        also tells `fps`, and whose `notes` tell what is other than asked for.
    Raises: UsageError for a value that is not accepted; CheckpointError before anything large is allocated.
    """
    found = read_task(model, task)
    boundary_ratio = settled_boundary(boundary_ratio, boundary_snr)
    if found == "s2v":
        return WanS2VPipeline.from_pretrained(
            model,
            torch_dtype=torch_dtype,
            device_map=device_map,
            components=components,
            boundary_ratio=boundary_ratio,
            progress=progress,
        )
    _check_device(device_map)
    on_gpu = torch.cuda.is_available() and device_map not in (None, "cpu")
    checkpoint = find_checkpoint(model, components=components, boundary_ratio=boundary_ratio, tasks=TASKS)
    dtype, note = settled_dtype(checkpoint, torch_dtype, torch.device("cuda" if on_gpu else "cpu"))
    pipeline = _build(checkpoint, task == "i2v", dtype, progress)
    pipeline.notes = (note,) if note else ()
    pipeline.source = {"model": str(model), "weights": fingerprint(checkpoint)}
    return _placed(pipeline, device_map) if on_gpu else pipeline


def settled_dtype(
    checkpoint: Checkpoint, wanted: torch.dtype | str | None, device: torch.device
) -> tuple[torch.dtype, str | None]:
    """What the transformers compute in: as asked, or as stored, but bfloat16 for what is stored in float32.

    Returns: the dtype, and what is other than that because the device cannot.
    """
    stored = checkpoint.models["transformer"].dtype
    usual = torch.bfloat16 if stored == torch.float32 else stored
    return usable_dtype(usual if wanted is None else as_dtype(wanted), device)


def _check_device(device_map: str | None) -> None:
    if device_map not in (None, "auto", "cuda", "offload", "cpu"):
        raise UsageError(f"device_map={device_map!r} is not accepted. Choose auto, cuda, offload or cpu.")
    if device_map in ("cuda", "offload") and not torch.cuda.is_available():
        raise UsageError(f'device_map="{device_map}", but PyTorch sees no CUDA device. Use "auto" or "cpu".')


def _placed(pipeline: WanTextToVideo | WanPictureToVideo, device_map: str | None) -> WanTextToVideo | WanPictureToVideo:
    """The pipeline on the GPU, or with diffusers' hooks that bring its parts there.

    Raises: UsageError where those are needed and accelerate is not installed.
    """
    models = [module for module in pipeline.components.values() if isinstance(module, torch.nn.Module)]
    num_bytes = sum(parameter.nbytes for module in models for parameter in module.parameters())
    budget = device_budget(torch.device("cuda", torch.cuda.current_device()))
    fits = budget is None or num_bytes <= budget
    if device_map == "cuda" or (device_map == "auto" and fits):
        return pipeline.to("cuda")
    if not is_accelerate_available():
        raise UsageError(
            f"The weights take {num_bytes / 2**30:.1f} GiB. Bringing parts of them to the GPU as they work needs a"
            " package: pip install accelerate. Or pass device_map='cuda' or 'cpu'."
        )
    pipeline.enable_model_cpu_offload()
    return pipeline


def _build(
    checkpoint: Checkpoint, from_picture: bool, dtype: torch.dtype, progress: Callable[[str, int, int], None] | None
) -> WanTextToVideo | WanPictureToVideo:
    """The pipeline on the CPU; TI2V-5B's takes a picture if that is asked for."""
    spec, per_token = SPECS[checkpoint.task], checkpoint.task == "ti2v"
    loaded = load_components(checkpoint, torch_dtype=dtype, progress=progress)
    parts = {name: value for name, value in loaded.items() if not name.startswith("audio_")}
    parts |= {"scheduler": new_scheduler(spec.scheduler, spec.flow_shift), "expand_timesteps": per_token}
    pipeline: WanTextToVideo | WanPictureToVideo
    if checkpoint.task == "i2v" or from_picture:
        pipeline = WanPictureToVideo(**parts)
        frame = CroppedFrame if per_token else StretchedFrame
        pipeline.video_processor = frame(vae_scale_factor=pipeline.vae_scale_factor_spatial)
    else:
        pipeline = WanTextToVideo(**parts)
    pipeline.spec = spec
    return pipeline
