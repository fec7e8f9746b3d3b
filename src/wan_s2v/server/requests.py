"""A job as the request that the commands know, and its plan as clients may see it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from wan_s2v.commands.request import Preview, Request
from wan_s2v.plan import GenerationOptions
from wan_s2v.server.storage import JobFiles
from wan_s2v.styles import with_styles

_HIDDEN: Final = ("image", "audio", "output", "model", "loras")


def request_of(params: Mapping[str, Any], files: JobFiles) -> Request:
    """The request for a job's parameters.

    Raises: UsageError for values that are not accepted.
    """
    keywords = {name: value for name, value in params.items() if name != "styles"}
    options = GenerationOptions.from_keywords(keywords)
    prompt = with_styles(options.prompt, params.get("styles", ()))
    pose = files.pose_video if files.pose_video.exists() else None
    return Request(files.image, files.audio, files.video, replace(options, prompt=prompt, pose_video_path=pose), True)


def public_plan(wanted: Preview) -> dict[str, Any]:
    """The plan without what only the operator may know: where files lie."""
    summary = {name: value for name, value in wanted.summary().items() if name not in _HIDDEN}
    summary["options"] = {name: value for name, value in summary["options"].items() if name != "pose_video_path"}
    return summary
