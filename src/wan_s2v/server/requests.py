"""A job as the request that the commands know, and its plan as clients may see it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from wan_s2v.commands.request import Preview, Request
from wan_s2v.plan import GenerationOptions
from wan_s2v.prompt_spans import map_prompts
from wan_s2v.server.storage import JobFiles
from wan_s2v.styles import with_styles

_OF_THE_SERVER: Final = ("styles", "text", "voice")  # the voice lies beside the picture, as a recording would
_HIDDEN: Final = ("image", "audio", "output", "model", "loras")


def request_of(params: Mapping[str, Any], files: JobFiles) -> Request:
    """The request for a job's parameters.

    Raises: UsageError for values that are not accepted.
    """
    keywords = {name: value for name, value in params.items() if name not in _OF_THE_SERVER}
    prompt = map_prompts(params.get("prompt", ""), lambda part: with_styles(part, params.get("styles", ())))
    paths = {"pose_video_path": files.pose_video, "vocals_path": files.vocals}
    sent = {name: path for name, path in paths.items() if path.exists()}
    options = GenerationOptions.from_keywords(keywords | sent | {"prompt": prompt})
    return Request(files.image, files.audio, files.video, options, overwrite=True, preview_path=files.preview)


def public_plan(wanted: Preview) -> dict[str, Any]:
    """The plan without what only the operator may know: where files lie."""
    summary = {name: value for name, value in wanted.summary().items() if name not in _HIDDEN}
    summary["options"] = {name: value for name, value in summary["options"].items() if not name.endswith("_path")}
    return summary
