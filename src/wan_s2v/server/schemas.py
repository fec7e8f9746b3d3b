"""The forms of what clients send and get; the OpenAPI document is made from them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from wan_s2v.server.jobs import Job, Status

LONGEST_TEXT = 10_000
Side = Annotated[int, Field(ge=16, le=8192)]
Scale = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]
Time = Annotated[str, Field(coerce_numbers_to_str=True, pattern=r"^[0-9:]{1,9}(\.[0-9]{1,9})?$")]
Text = Annotated[str, Field(max_length=LONGEST_TEXT)]


class VideoOptions(BaseModel):
    """Options of the pipeline, under its names; what is left out is the model's or the sound's own."""

    model_config = ConfigDict(extra="forbid")

    prompt: Text = ""
    negative_prompt: Text | None = None
    style: list[Annotated[str, Field(max_length=64)]] = Field([], max_length=16, description="Names of GET /v1/styles.")
    seed: Annotated[int, Field(ge=0, le=2**63 - 1)] | None = None
    num_frames: Annotated[int, Field(ge=1, le=10**7)] | None = None
    fps: (
        Annotated[str, Field(coerce_numbers_to_str=True, pattern=r"^[0-9]{1,4}(\.[0-9]{1,9}|/[0-9]{1,4})?$")] | None
    ) = None
    height: Side | None = None
    width: Side | None = None
    area: Annotated[int, Field(ge=256, le=2**26)] | None = None
    fit: Literal["crop", "pad"] = "crop"
    num_inference_steps: Annotated[int, Field(ge=1, le=1000)] | None = None
    guidance_scale: Scale | None = None
    audio_guidance_scale: Scale | None = None
    flow_shift: Annotated[float, Field(ge=0.01, le=100, allow_inf_nan=False)] | None = None
    scheduler: Literal["unipc", "dpm++", "euler"] | None = None
    num_clips: Annotated[int, Field(ge=1, le=10**6)] | None = None
    start_s: Time | None = None
    duration_s: Time | None = None
    silence: Literal["clean", "keep"] = "keep"
    mark: Annotated[str, Field(max_length=200)] | None = None
    frames_per_clip: Annotated[int, Field(ge=4, le=80)] | None = None
    start_from_reference: bool = False
    timing: Literal["aligned", "reference"] = "aligned"
    preset: Literal["exact", "fast", "draft", "4step"] = "exact"


class Progress(BaseModel):
    """Where a running job is. `clip` counts from 1, `step` is how many steps of it are done."""

    stage: Literal["preparing", "denoising", "decoding", "writing"]
    clip: int
    num_clips: int
    step: int
    num_steps: int
    fraction: float
    seconds_left: float


class JobBody(BaseModel):
    """A video that was asked for; times in Unix seconds."""

    id: str
    status: Status
    created_at: float
    started_at: float | None
    finished_at: float | None
    position: int | None = Field(description="Place in the queue, from 1, while it waits.")
    progress: Progress | None
    params: dict[str, Any]
    plan: dict[str, Any]
    warnings: list[str]
    error: str | None
    has_preview: bool

    @classmethod
    def of(cls, job: Job, position: int | None, has_preview: bool) -> JobBody:
        shown = {name: getattr(job, name) for name in cls.model_fields if name not in ("position", "has_preview")}
        return cls(**shown, position=position, has_preview=has_preview)


class JobList(BaseModel):
    data: list[JobBody]
    has_more: bool


class PlanBody(BaseModel):
    """What would be made, and what it would take."""

    plan: dict[str, Any]
    seconds: float
    memory_gib: float
    num_frames: int
    duration_s: float
    width: int
    height: int
    num_clips: int
    warnings: list[str]


class StyleBody(BaseModel):
    name: str
    kind: str
    english: str
    chinese: str


class StyleList(BaseModel):
    styles: list[StyleBody]


class ModelLimits(BaseModel):
    duration_s: float
    upload_bytes: int
    image_pixels: int
    frame_pixels: int
    active_jobs: int
    keep_s: float


class ModelBody(BaseModel):
    name: str
    device: str
    dtype: str
    limits: ModelLimits
    presets: list[str]
    defaults: dict[str, Any]
    voices: list[str]
    allows_urls: bool


class Health(BaseModel):
    """ "ok": videos are made; "starting": soon; "degraded": some workers are down."""

    status: Literal["ok", "starting", "degraded"]
    version: str
    workers: int
    workers_ready: int


class ErrorDetail(BaseModel):
    message: str
    type: str


class ErrorBody(BaseModel):
    error: ErrorDetail
