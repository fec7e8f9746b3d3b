"""Many videos with one loaded model: a list of jobs is read, all of them are checked, then they are made in turn.

A bad job never stops the others. The report on disk grows by a line per job, so that it survives whatever happens.
"""

from __future__ import annotations

import csv
import difflib
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from rich.console import Console
from rich.table import Table

from wan_s2v.commands.make import make_video
from wan_s2v.commands.progress import Reporter, duration_text
from wan_s2v.commands.request import (
    OpenedModel,
    Preview,
    Request,
    check_files,
    is_out_of_memory,
    load_pipeline,
    out_of_memory_message,
    parse_loras,
    preview,
)
from wan_s2v.errors import OtherRunError, OutputError, RunStoppedError, UsageError, WanS2VError
from wan_s2v.pipeline import WanS2VPipeline
from wan_s2v.plan import GenerationOptions
from wan_s2v.video import read_video_info
from wan_s2v.weights.lora import LoRAFile

PICTURES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif"}
SOUNDS = {".wav", ".mp3", ".flac", ".m4a", ".aac", ".ogg", ".opus", ".wma", ".mp4", ".mov", ".mkv", ".webm"}

_FILES = ("image", "audio", "output", "lora")
_PATHS = ("pose_video_path", "vocals_path", "sign_certificate", "sign_key")  # relative to the list
_OF_THE_RUN = {"enable_cpu_offload", "use_fp16"}  # they decide how the one model is loaded
_NOT_IN_JOBS = {"prompt_embeds", "negative_prompt_embeds", "generator", *_OF_THE_RUN}
_OPTIONS = tuple(f.name for f in fields(GenerationOptions) if f.name not in _NOT_IN_JOBS)
_TYPES = get_type_hints(GenerationOptions)
_TRUTH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}

Status = Literal["done", "skipped", "checked", "failed"]


@dataclass(frozen=True)
class Job:
    """One entry of a job list, not checked yet; `error` says why it could not even be read."""

    number: int
    image: str = ""
    audio: str = ""
    output: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    loras: tuple[LoRAFile, ...] | None = None
    error: str | None = None


@dataclass(frozen=True)
class Outcome:
    """What became of a job."""

    number: int
    image: str
    audio: str
    output: str
    status: Status
    error: str | None = None
    seconds: float = 0.0
    seed: int | None = None
    warnings: tuple[str, ...] = ()

    def record(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if value not in (None, ())}


def read_jobs(
    path: Path, output_dir: Path | None, defaults: Mapping[str, Any], loras: tuple[LoRAFile, ...] = ()
) -> list[Job]:
    """The jobs of a .jsonl or .csv file, or of a folder.

    Args:
        path: of a file whose entries have the keys image, audio, output, lora and the names of options, with paths
            relative to it; or a folder with pairs of the same stem (a.png and a.wav), or one picture and any number of
            sounds.
        output_dir: where outputs go, named after the sound, made if needed; beside `path` if None.
        defaults: options that an entry may override.
        loras: of entries that name none.
    Raises: UsageError if there is no such file, it is of another kind, or it holds no job; OutputError if `output_dir`
        cannot be made.
    """
    try:
        if path.is_dir():
            base, entries = path, _pair_up(path)
        elif not path.is_file():
            raise UsageError(f"There is no job list at {path}. Pass a .jsonl or .csv file, or a folder.")
        else:
            base, entries = path.parent, _read_entries(path)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{path} cannot be read as a job list ({error}). Save it as UTF-8 text.") from error
    if not any(isinstance(entry, dict) for entry in entries):
        first = f" ({entries[0]})" if entries else ""
        raise UsageError(f"{path} holds no job{first}. Give each job an image and a sound.")
    target = base if output_dir is None else output_dir
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"Folder {target} cannot be made ({error}). Pass another --output-dir.") from error
    jobs = [_job(number, entry, base, target, defaults) for number, entry in enumerate(entries, start=1)]
    return [job if job.loras is not None else replace(job, loras=loras) for job in jobs]


class BatchRun:
    """The jobs of one list, with what became of each in `outcomes`, in the order of the list.

    Args:
        model: that makes all of them.
        overwrite: make videos again whose output is there already.
    """

    def __init__(self, jobs: list[Job], model: OpenedModel, reporter: Reporter, *, overwrite: bool) -> None:
        self._jobs, self._model, self._reporter, self._overwrite = jobs, model, reporter, overwrite
        self._made: dict[int, Outcome] = {}

    @property
    def outcomes(self) -> list[Outcome]:
        return [self._made[number] for number in sorted(self._made)]

    def check(self) -> Iterator[Outcome]:
        """Settle every job without making anything; good ones are "checked"."""
        for job, result in self._checked():
            yield self._settle(result if isinstance(result, Outcome) else _outcome(job, "checked"))

    def make(self, report: Path) -> Iterator[Outcome]:
        """Settle every job, bad ones and finished ones first, then make the others; `report` gets a line for each.

        Raises: OutputError if the report cannot be written.
        """
        _write_report(report, "w", "")
        for outcome in self._work():
            _write_report(report, "a", json.dumps(outcome.record()) + "\n")
            yield self._settle(outcome)

    def _settle(self, outcome: Outcome) -> Outcome:
        self._made[outcome.number] = outcome
        return outcome

    def _work(self) -> Iterator[Outcome]:
        ready: list[tuple[Job, Request]] = []
        for job, result in self._checked():
            if isinstance(result, Outcome):
                yield result
            else:
                ready.append((job, result))
        if ready:
            pipeline = load_pipeline(self._model, self._reporter)
            for job, request in ready:
                yield self._attempt(job, request, pipeline)

    def _checked(self) -> Iterator[tuple[Job, Outcome | Request]]:
        """Every job with its outcome if that is known already, else with the request to make.

        Plans are not kept: each holds its whole sound, and a list may have thousands.
        """
        taken: dict[Path, int] = {}
        for job in self._jobs:
            try:
                request = _request(job, taken, self._overwrite)
                if not self._overwrite and _is_finished(request.output):
                    yield job, _outcome(job, "skipped")
                    continue
                self._planned(request)
            except WanS2VError as error:
                yield job, _outcome(job, "failed", error=str(error))
            else:
                yield job, request

    def _planned(self, request: Request) -> Preview:
        """The plan, which goes on from what was kept of the video, unless the job has changed since."""
        try:
            return preview(request, self._model)
        except OtherRunError:
            return preview(replace(request, fresh=True), self._model)

    def _attempt(self, job: Job, request: Request, pipeline: WanS2VPipeline) -> Outcome:
        started = time.perf_counter()
        try:
            record = make_video(pipeline, self._planned(request), self._reporter)
        except RunStoppedError:  # the user wants no other video now, either
            raise
        except WanS2VError as error:
            return _outcome(job, "failed", error=str(error))
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            return _outcome(job, "failed", error=out_of_memory_message())
        seconds = round(time.perf_counter() - started, 3)
        return _outcome(job, "done", seconds=seconds, seed=record["seed"], warnings=tuple(record["warnings"]))


def _write_report(report: Path, mode: Literal["w", "a"], text: str) -> None:
    try:
        with report.open(mode, encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise OutputError(f"The report {report} cannot be written ({error}). Pass another --report.") from error


def print_outcomes(console: Console, outcomes: list[Outcome]) -> None:
    """The report as a table, and the totals."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading, style in (("job", "dim"), ("status", ""), ("time", ""), ("output", "")):
        table.add_column(heading, style=style, justify="right" if heading in ("job", "time") else "left")
    for item in outcomes:
        spent = duration_text(item.seconds) if item.status == "done" else ""
        style = "red" if item.status == "failed" else ""
        table.add_row(str(item.number), item.status, spent, item.output or "(unreadable job)", style=style)
    console.print(table)
    counts = {status: sum(item.status == status for item in outcomes) for status in get_args(Status)}
    console.print(", ".join(f"{count} {status}" for status, count in counts.items() if count))


def _read_entries(path: Path) -> list[dict[str, Any] | str]:
    """One mapping per job, or the reason why there is none."""
    if path.suffix.lower() in (".jsonl", ".ndjson"):
        lines = path.read_text(encoding="utf-8-sig").splitlines()
        return [_json_entry(line) for line in lines if line.strip()]
    if path.suffix.lower() != ".csv":
        raise UsageError(f"{path} is not a job list. Pass a .jsonl or .csv file, or a folder.")
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file, skipinitialspace=True)
        header = [name.strip() for name in rows.fieldnames or ()]
        if not {"image", "audio"} <= set(header):
            raise UsageError(f"{path} has the columns {', '.join(header) or 'none'}. It needs image and audio.")
        rows.fieldnames = header
        return [_csv_entry(row) for row in rows]


def _json_entry(line: str) -> dict[str, Any] | str:
    try:
        entry = json.loads(line)
    except ValueError as error:
        return f"This line is not JSON ({error}). Write one object per line."
    return entry if isinstance(entry, dict) else f"This line is a {type(entry).__name__}. Write one object per line."


def _csv_entry(row: dict[str, Any]) -> dict[str, Any] | str:
    if None in row:
        return "This row has more fields than the header. Put a field that holds a comma in double quotes."
    try:
        return {name: _from_text(name, text.strip()) for name, text in row.items() if text and text.strip()}
    except ValueError as error:
        return str(error)


def _from_text(name: str, text: str) -> Any:
    """The value that an option takes, from a field of a table."""
    kinds = get_args(_TYPES.get(name)) or (_TYPES.get(name),)
    if bool in kinds:
        if text.lower() not in _TRUTH:
            raise UsageError(f"{name}={text!r} is not a choice. Write true or false.")
        return _TRUTH[text.lower()]
    if str in kinds:
        return text
    for kind, what in ((int, "whole number"), (float, "number")):
        if kind in kinds:
            try:
                return kind(text)
            except ValueError:
                raise UsageError(f"{name}={text!r} is not a {what}. Write digits.") from None
    return text


def _pair_up(folder: Path) -> list[dict[str, Any] | str]:
    """Pairs of the same stem, or one picture with every sound; what finds no partner becomes a job that fails."""
    files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    pictures = [path for path in files if path.suffix.lower() in PICTURES]
    sounds = [path for path in files if path.suffix.lower() in SOUNDS]
    stems = [path.stem for path in sounds]
    # an earlier run's output lies beside its sound under the same stem; it is no input
    sounds = [path for path in sounds if path.suffix.lower() != ".mp4" or stems.count(path.stem) == 1]
    matching = {path.stem: path.name for path in pictures if path.stem in stems}
    if len(pictures) == 1 and not matching:
        matching = dict.fromkeys(stems, pictures[0].name)
    alone = [path for path in sounds if path.stem not in matching]
    alone += [path for path in pictures if path.name not in matching.values()]
    pairs: list[dict[str, Any] | str] = [
        {"image": matching[path.stem], "audio": path.name} for path in sounds if path.stem in matching
    ]
    return pairs + [f"{path.name} has no partner of the same name. Add it, or move this file away." for path in alone]


def _job(number: int, entry: dict[str, Any] | str, base: Path, target: Path, defaults: Mapping[str, Any]) -> Job:
    """A job with its paths resolved, or with the reason why it cannot be one."""
    if isinstance(entry, str):
        return Job(number, error=entry)
    try:
        for name in entry:
            _check_key(name)
        options = {**defaults, **{name: value for name, value in entry.items() if name not in _FILES}}
        for name in ("image",) if options.get("text") and "audio" not in entry else ("image", "audio"):
            if not isinstance(entry.get(name), str) or not entry[name]:
                raise UsageError(f"This job has no {name}. Give the path of a file.")
        for name, value in options.items():
            _check_type(name, value)
        options |= {name: base / str(entry[name]) for name in _PATHS if name in entry}
        output = entry.get("output") or f"{Path(entry.get('audio') or entry['image']).stem}.mp4"
        _check_type("output", output)
        loras = _loras(entry["lora"], base) if "lora" in entry else None
    except UsageError as error:
        return Job(number, str(entry.get("image", "")), str(entry.get("audio", "")), error=str(error))
    audio = str(base / entry["audio"]) if "audio" in entry else ""
    return Job(number, str(base / entry["image"]), audio, str(target / output), options, loras)


def _loras(value: Any, base: Path) -> tuple[LoRAFile, ...]:
    """One FILE or FILE:WEIGHT, or a list of them; an empty list leaves out those of the command."""
    words = value if isinstance(value, list) else [value]
    for word in words:
        _check_type("lora", word)
    return parse_loras(words, base)


def _check_key(name: str) -> None:
    if name in _OF_THE_RUN:
        raise UsageError(f"{name} holds for all jobs. Pass --{name.replace('_', '-')} to the command.")
    known = (*_FILES, *_OPTIONS)
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f"Did you mean {close[0]}?" if close else f"Known: {', '.join(known)}."
        raise UsageError(f"{name!r} is not an option of a job. {hint}")


def _check_type(name: str, value: Any) -> None:
    """Raises: UsageError where JSON holds a list, text for a number, or the like."""
    kinds = get_args(_TYPES.get(name, str)) or (_TYPES.get(name, str),)
    plain = tuple(kind for kind in kinds if isinstance(kind, type) and get_origin(kind) is None)
    allowed = plain if plain and plain != (type(None),) else (str,)
    if float in allowed:
        allowed = (*allowed, int)
    wrong_bool = isinstance(value, bool) and bool not in allowed
    if value is not None and (wrong_bool or not isinstance(value, allowed)):
        names = " or ".join(kind.__name__ for kind in allowed if kind is not type(None))
        raise UsageError(f"{name}={value!r} has the type {type(value).__name__}. Give {names}.")


def _request(job: Job, taken: dict[Path, int], overwrite: bool) -> Request:
    if job.error is not None:
        raise UsageError(job.error)
    output = Path(job.output)
    other = taken.setdefault(output.absolute(), job.number)
    if other != job.number:
        raise UsageError(f"Output {output} is that of job {other} already. Give this job another output.")
    options = GenerationOptions.from_keywords(dict(job.options))
    audio = Path(job.audio) if job.audio else None
    request = Request(Path(job.image), audio, output, options, overwrite, job.loras or ())
    check_files(request)
    return request


def _is_finished(output: Path) -> bool:
    """Whether there is a video that can be read. Raises: UsageError for a file that is something else."""
    if not output.exists():
        return False
    try:
        return read_video_info(output).audio_duration_s is not None
    except WanS2VError as error:
        message = f"Output {output} exists but is not a finished video. Delete it, or pass --overwrite."
        raise UsageError(message) from error


def _outcome(job: Job, status: Status, **more: Any) -> Outcome:
    return Outcome(job.number, job.image, job.audio, job.output, status, **more)
