"""Video from text or a picture, with T2V-A14B, I2V-A14B and TI2V-5B: diffusers' pipelines by name, parts and keywords.

What diffusers lacks is here: official checkpoint folders, noise levels, defaults per model, and the official way of a
picture into the frame. The run itself is that of video_pipeline.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import WanImageToVideoPipeline, WanPipeline

from wan_s2v.experts import settled_boundary
from wan_s2v.first_frame import CroppedFrame, StretchedFrame
from wan_s2v.image import load_image
from wan_s2v.memory_planning import starting_device
from wan_s2v.pipeline import WanS2VPipeline
from wan_s2v.runtime.precision import as_dtype, usable_dtype
from wan_s2v.schedulers import new_scheduler
from wan_s2v.video_pipeline import VideoPipeline
from wan_s2v.video_plan import SPECS
from wan_s2v.weights import load_components
from wan_s2v.weights.checkpoint import Checkpoint, find_checkpoint, fingerprint, read_task
from wan_s2v.weights.names import TASKS


class WanTextToVideo(WanPipeline, VideoPipeline):
    """To diffusers its `WanPipeline`; keywords default to the official settings of the model."""

    usual_task = "t2v"

    def __call__(self, prompt: str | list[str] | None = None, **options: Any) -> Any:
        """Make a video; keywords are those of `VideoPipeline.make` and of `VideoOptions`."""
        return self.make(None, prompt=prompt, **options)


class WanPictureToVideo(WanImageToVideoPipeline, VideoPipeline):
    """To diffusers its `WanImageToVideoPipeline`; height and width follow the picture."""

    usual_task = "i2v"

    def __call__(self, image: Any, prompt: str | list[str] | None = None, **options: Any) -> Any:
        """Make a video; keywords are those of `VideoPipeline.make` and of `VideoOptions`.

        Args:
            image: a PIL image, a file, an array (H, W, 3), or a tensor as diffusers takes it (with height and width).
        Raises: ImageError for a file that is no picture.
        """
        picture = image if isinstance(image, torch.Tensor) else load_image(image).image
        return self.make(picture, prompt=prompt, **options)


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
            official program computes. The VAE runs in float32, but on GPUs in float16 unless this is float32; the text
            encoder in bfloat16 unless this is float32.
        device_map: "auto" (the GPU computes if there is one; weights stay in main memory where it has no room for
            them), "cuda" (weights on the GPU), "cpu", or None (the CPU; move with `.to`).
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
    checkpoint = find_checkpoint(model, components=components, boundary_ratio=boundary_ratio, tasks=TASKS)
    has_gpu = torch.cuda.is_available() and device_map != "cpu"
    dtype, note = settled_dtype(checkpoint, torch_dtype, torch.device("cuda" if has_gpu else "cpu"))
    device = starting_device(device_map, _loaded_bytes(checkpoint, dtype))
    pipeline = _build(checkpoint, task == "i2v", dtype, device, progress)
    pipeline.notes = (note,) if note else ()
    pipeline.source = {"model": str(model), "weights": fingerprint(checkpoint)}
    if device_map == "auto" and torch.cuda.is_available():
        pipeline.compute_on(torch.device("cuda", torch.cuda.current_device()))
    return pipeline


def settled_dtype(
    checkpoint: Checkpoint, wanted: torch.dtype | str | None, device: torch.device
) -> tuple[torch.dtype, str | None]:
    """What the transformers compute in: as asked, or as stored, but bfloat16 for what is stored in float32.

    Returns: the dtype, and what is other than that because the device cannot.
    """
    stored = checkpoint.models["transformer"].dtype
    usual = torch.bfloat16 if stored == torch.float32 else stored
    return usable_dtype(usual if wanted is None else as_dtype(wanted), device)


def _loaded_bytes(checkpoint: Checkpoint, dtype: torch.dtype) -> int:
    """What the weights take once transformers are in `dtype`, where that is the smaller one."""
    return sum(
        model.total_bytes * min(dtype.itemsize, model.dtype.itemsize) // model.dtype.itemsize
        if name.startswith("transformer")
        else model.total_bytes
        for name, model in checkpoint.models.items()
    )


def _build(
    checkpoint: Checkpoint,
    from_picture: bool,
    dtype: torch.dtype,
    device: torch.device,
    progress: Callable[[str, int, int], None] | None,
) -> WanTextToVideo | WanPictureToVideo:
    """The pipeline with its weights on a device; TI2V-5B's takes a picture if that is asked for."""
    spec, per_token = SPECS[checkpoint.task], checkpoint.task == "ti2v"
    loaded = load_components(checkpoint, torch_dtype=dtype, device=device, progress=progress)
    parts = {name: value for name, value in loaded.items() if not name.startswith("audio_")}
    parts |= {"scheduler": new_scheduler(spec.scheduler, spec.flow_shift), "expand_timesteps": per_token}
    pipeline: WanTextToVideo | WanPictureToVideo
    if checkpoint.task == "i2v" or from_picture:
        pipeline = WanPictureToVideo(**parts)
        frame = CroppedFrame if per_token else StretchedFrame
        pipeline.video_processor = frame(vae_scale_factor=pipeline.vae_scale_factor_spatial)
    else:
        pipeline = WanTextToVideo(**parts)
    return pipeline
