"""The flags of the official `generate.py`, turned into ours, so that a command pasted from its README works.

Works on the words of a command line, before they are parsed; knows nothing of what the options do.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from wan_s2v.errors import UsageError

_TASKS: Final = {"s2v-14b": "s2v", "t2v-a14b": "t2v", "i2v-a14b": "i2v", "ti2v-5b": "ti2v"}
_TASKS_HERE: Final = frozenset(_TASKS.values())
_RENAMED: Final = {
    "--ckpt-dir": "--model",
    "--sample-steps": "--num-inference-steps",
    "--sample-shift": "--flow-shift",
    "--sample-guide-scale": "--guidance-scale",
    "--sample-solver": "--scheduler",
    "--num-clip": "--num-clips",
    "--pose-video": "--pose-video-path",
    "--infer-frames": "--frames-per-clip",
    "--save-file": "--output",
    "--n-prompt": "--negative-prompt",
}
_RENAMED_SWITCHES: Final = {"--start-from-ref": "--start-from-reference"}
_IDLE_SWITCHES: Final = {
    "--convert-model-dtype": "the transformer is loaded as stored; --torch-dtype changes that",
    "--t5-cpu": "--enable-cpu-offload keeps the text encoder off the GPU while it is idle",
    "--dit-fsdp": "one GPU is used",
    "--t5-fsdp": "one GPU is used",
}
_NOT_SUPPORTED: Final = {
    "--enable-tts": "Here it is --text with --voice. A cloned voice has to be made before, and passed as --audio.",
    "--use-prompt-extend": "Here it is --extend-prompt, with the folder of a language model or a URL.",
}
_SIZE: Final = re.compile(r"(\d+)[*xX×](\d+)")
_FLAG: Final = re.compile(r"--[a-z][\w-]*(=.*)?", re.DOTALL)


@dataclass(frozen=True)
class Translation:
    """A command line in our flags, and what the user should know about it."""

    args: tuple[str, ...]
    notes: tuple[str, ...]


def translate(args: Sequence[str]) -> Translation:
    """Our command line for one that may use official flags; underscores and hyphens in names are the same.

    Raises: UsageError for an official flag or value that this program cannot honour.
    """
    words = iter(args)
    request = _Request.read(args)
    ours: list[str] = []
    notes: list[str] = []
    for word in words:
        if word == "--":
            ours += [word, *words]
        elif not _FLAG.fullmatch(word):
            ours.append(word)
        else:
            flag, equals, value = word.partition("=")
            flag = flag.replace("_", "-")
            ours += _translate(flag, value if equals else None, words, notes, request)
    return Translation(tuple(ours), tuple(notes))


@dataclass(frozen=True)
class _Request:
    """What the meaning of some official flags depends on.

    Args:
        task: as we name it, where it is given.
        from_picture: whether there is an image.
    """

    task: str | None
    from_picture: bool

    @classmethod
    def read(cls, args: Sequence[str]) -> _Request:
        flags = [word.partition("=") for word in args]
        following = [*args[1:], ""]
        given = [value or after for (flag, _, value), after in zip(flags, following, strict=True) if flag == "--task"]
        task = given[-1].lower() if given else None
        return cls(_TASKS.get(task or "", task), any(flag in ("--image", "-i") for flag, _, _ in flags))


def _translate(flag: str, given: str | None, words: Iterator[str], notes: list[str], request: _Request) -> list[str]:
    """Our words for one flag; takes its value from `words` where the flag is official and has one."""
    if flag in _RENAMED_SWITCHES:
        return [_RENAMED_SWITCHES[flag]]
    if flag in _IDLE_SWITCHES:
        notes.append(f"{_official(flag)} has no effect here: {_IDLE_SWITCHES[flag]}.")
        return []
    prefix = flag.replace("--prompt-extend", "--use-prompt-extend").replace("--tts-", "--enable-tts-")
    for unsupported, reason in _NOT_SUPPORTED.items():
        if prefix.startswith(unsupported):
            raise UsageError(f"{_official(flag)} is not supported. {reason}")
    if flag in _RENAMED:
        return [_RENAMED[flag], _value(flag, given, words)]
    if flag in ("--task", "--size", "--base-seed", "--offload-model", "--frame-num", "--ulysses-size"):
        return _converted(flag, _value(flag, given, words), notes, request)
    return [flag if given is None else f"{flag}={given}"]


def _converted(flag: str, value: str, notes: list[str], request: _Request) -> list[str]:
    """Our words for an official flag whose value means something else here, or nothing."""
    if flag == "--size":
        width, height = _sides(value)
        if request.task in ("t2v", "ti2v") and not request.from_picture:
            return ["--width", str(width), "--height", str(height)]
        return ["--area", str(width * height)]
    if flag == "--base-seed":
        return [] if value.startswith("-") else ["--seed", value]
    if flag == "--offload-model":
        return ["--enable-cpu-offload"] if _truth(flag, value) else []
    if flag == "--frame-num":
        if request.task not in (None, "s2v"):
            return ["--num-frames", value]
        notes.append("--frame_num has no effect on S2V, as in the official program; --num-frames sets the length.")
    elif flag == "--task" and request.task not in _TASKS_HERE:
        raise UsageError(f"--task {value} is another model. This program runs s2v, t2v, i2v and ti2v.")
    elif flag == "--task":
        return [] if value.lower() == "s2v-14b" else ["--task", str(request.task)]
    elif flag == "--ulysses-size" and value != "1":
        raise UsageError(f"--ulysses_size {value}: several GPUs are not supported yet. Pass 1, or leave it out.")
    return []


def _value(flag: str, given: str | None, words: Iterator[str]) -> str:
    value = next(words, None) if given is None else given
    if value is None:
        raise UsageError(f"{_official(flag)} needs a value. Write it after the flag, or see --help.")
    return value


def _sides(value: str) -> tuple[int, int]:
    """Width and height."""
    match = _SIZE.fullmatch(value.strip())
    if not match:
        raise UsageError(f"--size {value} is not a size. Pass it as 1024*704 or 1024x704; it is an area budget.")
    return int(match[1]), int(match[2])


def _truth(flag: str, value: str) -> bool:
    words = {"true": True, "yes": True, "1": True, "y": True, "t": True}
    words |= {"false": False, "no": False, "0": False, "n": False, "f": False}
    if value.lower() not in words:
        raise UsageError(f"{_official(flag)} {value} is not a choice. Pass True or False.")
    return words[value.lower()]


def _official(flag: str) -> str:
    return "--" + flag.removeprefix("--").replace("-", "_")
