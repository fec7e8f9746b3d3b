"""The routes of videos: ask for one, follow it, fetch it, remove it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Final

from fastapi import APIRouter, Header, Query, Request
from fastapi import Path as InPath
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse

from wan_s2v.server.access import Owner
from wan_s2v.server.documents import problems, submission
from wan_s2v.server.jobs import Job
from wan_s2v.server.problems import Problem
from wan_s2v.server.schemas import JobBody, JobList, PlanBody
from wan_s2v.server.service import Service

_PIECE: Final = 1 << 18
_LOOK_S: Final = 0.1
_SILENCE_S: Final = 15.0  # an event is sent at least so often, so that proxies keep the connection
_UPLOAD: Final = ("bad_request", "too_large", "unsupported_media", "invalid", "too_many", "unavailable", "storage_full")
Key = Annotated[
    str | None,
    Header(pattern=r"^[\x21-\x7e]{1,128}$", description="The same key gives the same job, however often it is sent."),
]
VideoId = Annotated[str, InPath(description="As given by POST /v1/videos.")]


def video_routes(service: Service, is_stopping: Callable[[], bool]) -> APIRouter:
    """The routes under /v1.

    Args:
        is_stopping: whether the server ends, so that streams do, too.
    """
    router = APIRouter(prefix="/v1")
    body = submission(allow_urls=service.settings.allow_urls)

    @router.post("/videos", status_code=202, response_model=JobBody, openapi_extra=body, responses=problems(*_UPLOAD))
    async def ask_for_video(request: Request, owner: Owner, idempotency_key: Key = None) -> JobBody:
        """Have a video made of a picture and a sound."""
        return service.body(await service.submit(request, owner, idempotency_key))

    @router.post("/plan", openapi_extra=body, responses=problems(*_UPLOAD))
    async def plan_video(request: Request, owner: Owner) -> PlanBody:
        """What would be made, and what it would take; nothing is kept."""
        return _plan_body(await service.plan(request, owner))

    @router.get("/videos", responses=problems("not_found", "invalid"))
    def list_videos(
        owner: Owner, limit: Annotated[int, Query(ge=1, le=100)] = 20, after: Annotated[str | None, Query()] = None
    ) -> JobList:
        """Your videos, newest first; `after` is the id of the last one of the page before."""
        found = service.queue.newest(owner, limit + 1, after)
        return JobList(data=[service.body(job) for job in found[:limit]], has_more=len(found) > limit)

    @router.get("/videos/{video_id}", responses=problems("not_found"))
    def show_video(owner: Owner, video_id: VideoId) -> JobBody:
        return service.body(service.queue.get(video_id, owner))

    @router.post("/videos/{video_id}/cancel", responses=problems("not_found", "conflict"))
    def cancel_video(owner: Owner, video_id: VideoId) -> JobBody:
        """End a video that waits at once, and one that is being made after its step."""
        return service.body(service.queue.cancel(video_id, owner))

    @router.delete("/videos/{video_id}", status_code=204, responses=problems("not_found"))
    def delete_video(owner: Owner, video_id: VideoId) -> None:
        """Remove a video and what belongs to it; one that is being made is cancelled first."""
        service.queue.delete(video_id, owner)
        service.housekeeper.purge()

    _add_file_routes(router, service, is_stopping)
    return router


def _add_file_routes(router: APIRouter, service: Service, is_stopping: Callable[[], bool]) -> None:
    missing = problems("not_found", "conflict")

    @router.head("/videos/{video_id}/content", include_in_schema=False)
    @router.get(
        "/videos/{video_id}/content",
        response_class=FileResponse,
        responses=missing | _file("video/mp4") | {206: {"description": "Part"}, 416: {"description": "No such part"}},
    )
    def send_video(owner: Owner, video_id: VideoId) -> FileResponse:
        """The mp4; ranges are answered."""
        job = _done(service.queue.get(video_id, owner))
        name = f"{job.id}.mp4"
        headers = {"Cache-Control": "private, max-age=3600"}
        path = service.files(job).video
        return FileResponse(path, 200, headers, "video/mp4", filename=name, content_disposition_type="inline")

    @router.get("/videos/{video_id}/sidecar", responses=missing | _file("application/json"))
    def send_record(owner: Owner, video_id: VideoId) -> JSONResponse:
        """Versions, options, seeds, times and warnings: all that is needed to make the video again."""
        files = service.files(_done(service.queue.get(video_id, owner)))
        record = json.loads(files.public(files.sidecar.read_text(encoding="utf-8")))
        return JSONResponse(record | {"model": service.facts["name"]})  # not where it lies

    @router.get(
        "/videos/{video_id}/preview",
        response_class=StreamingResponse,
        responses=problems("not_found") | _file("video/mp4"),
    )
    def send_preview(owner: Owner, video_id: VideoId) -> StreamingResponse:
        """The clips that are finished so far, as an mp4 that grows."""
        job = service.queue.get(video_id, owner)
        pieces, size = _open_now(service.files(job).preview)
        headers = {"Content-Length": str(size), "Cache-Control": "no-store"}
        return StreamingResponse(pieces, headers=headers, media_type="video/mp4")

    @router.get(
        "/videos/{video_id}/events",
        response_class=StreamingResponse,
        responses=problems("not_found") | _file("text/event-stream"),
    )
    async def send_events(owner: Owner, video_id: VideoId) -> StreamingResponse:
        """Server-sent events: `job` with the job as data, on every change until it is finished."""
        await run_in_threadpool(service.queue.get, video_id, owner)
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        events = _events(service, video_id, owner, is_stopping)
        return StreamingResponse(events, headers=headers, media_type="text/event-stream")


async def _events(service: Service, video_id: str, owner: str, is_stopping: Callable[[], bool]) -> AsyncIterator[str]:
    before, sent, is_active = "", 0.0, True
    while is_active and not is_stopping():
        try:
            job = await run_in_threadpool(service.queue.get, video_id, owner)
        except Problem:  # deleted
            return
        text = (await run_in_threadpool(service.body, job)).model_dump_json()
        if text != before or time.monotonic() - sent > _SILENCE_S:
            before, sent = text, time.monotonic()
            yield f"event: job\ndata: {text}\n\n"
        is_active = job.is_active
        if is_active:
            await asyncio.sleep(_LOOK_S)


def _done(job: Job) -> Job:
    if job.status != "done":
        raise Problem("conflict", f"Video {job.id} is {job.status}. Its files are there when it is done.")
    return job


def _open_now(path: Path) -> tuple[Iterator[bytes], int]:
    """What a file that grows holds now, and how much that is."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        raise Problem("not_found", "There is no preview yet. It appears with the first clip.") from None
    size = file.seek(0, 2)

    def pieces() -> Iterator[bytes]:
        with file:
            for start in range(0, size, _PIECE):
                file.seek(start)
                yield file.read(min(_PIECE, size - start))

    return pieces(), size


def _plan_body(planned: dict[str, Any]) -> PlanBody:
    plan = planned["plan"]
    needed = {name: plan["estimate"][name] for name in ("seconds", "memory_gib")}
    sizes = {name: plan[name] for name in ("num_frames", "duration_s", "width", "height", "num_clips")}
    return PlanBody(plan=plan, warnings=planned["warnings"], **needed, **sizes)


def _file(kind: str) -> dict[int | str, dict[str, Any]]:
    return {200: {"description": "The file", "content": {kind: {}}}}
