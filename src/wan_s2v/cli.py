"""The command line: options become keywords, results go to stdout, everything else to stderr.

Light until a command runs: `wan-s2v --help` must not wait for PyTorch. Exit codes: 0 done, 1 failed, 2 misused,
130 interrupted.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option

from wan_s2v import __version__
from wan_s2v.commands.flags import (
    CLIPS,
    INPUTS,
    LORA,
    MACHINE,
    OUTPUT,
    SAMPLING,
    flag,
    generation_options,
    model_choice,
    run_options,
    takes,
)
from wan_s2v.commands.official_flags import translate
from wan_s2v.errors import UsageError, WanS2VError
from wan_s2v.server.flags import limit_flags, network_flags

if TYPE_CHECKING:
    from rich.console import Console

INTERRUPTED = 130
# Errors of the parser; typer has its own copy of click in some versions and click's in others.
_ParseError: Any = typer.BadParameter.__mro__[2]

app = typer.Typer(
    name="wan-s2v",
    help="A portrait and a voice become a video whose lips, face and body follow the sound; or text and pictures do.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


@app.command()
@takes(generation_options, model_choice, run_options)
def generate(
    options: dict[str, Any],
    choice: dict[str, Any],
    run: dict[str, Any],
    task: Annotated[
        str | None,
        flag("s2v, t2v, i2v or ti2v: what the model must be for.", INPUTS, default="read from the model"),
    ] = None,
    image: Annotated[
        Path | None,
        flag("The picture to animate or to start from; t2v has none.", INPUTS, "--image", "-i", default="none"),
    ] = None,
    audio: Annotated[
        Path | None,
        flag("The voice, for s2v: a sound file, or a video with sound.", INPUTS, "--audio", "-a", default="none"),
    ] = None,
    style: Annotated[
        list[str] | None,
        flag(
            "A look to add to the prompt, by name (wan-s2v styles); may be given several times.",
            INPUTS,
            default="none",
        ),
    ] = None,
    extend_prompt: Annotated[
        str | None,
        flag(
            "Have a language model write the prompt out: a Qwen's folder, or the URL of an OpenAI-compatible endpoint "
            "(WAN_S2V_PROMPT_MODEL and WAN_S2V_PROMPT_KEY in the environment).",
            INPUTS,
            default="off",
        ),
    ] = None,
    lora: Annotated[list[str] | None, LORA] = None,
    guidance_scale_2: Annotated[
        float | None,
        flag("Of the low-noise expert (t2v, i2v).", SAMPLING, default="the model's own; 3 for T2V-A14B"),
    ] = None,
    output: Annotated[
        Path | None,
        flag(
            "The mp4 to write.", OUTPUT, "--output", "-o", default="<image>_<audio>.mp4, <image>.mp4 or video.mp4 here"
        ),
    ] = None,
    overwrite: Annotated[bool, flag("Replace an existing output.", OUTPUT)] = False,
    redo_clip: Annotated[
        int | None,
        flag(
            "Make one clip of --output anew, with --seed or --prompt of its own, and those that follow from it; "
            "everything else is as it was.",
            CLIPS,
            default="none",
        ),
    ] = None,
    events: Annotated[
        Path | None, flag("Append progress to a file or pipe, as JSON lines.", OUTPUT, default="off")
    ] = None,
    dry_run: Annotated[bool, flag("Print the plan and stop.", OUTPUT, "--dry-run")] = False,
    as_json: Annotated[bool, flag("Print one JSON object on stdout.", OUTPUT, "--json")] = False,
    quiet: Annotated[bool, flag("No plan and no progress on stderr.", OUTPUT, "--quiet", "-q")] = False,
    debug: Annotated[bool, flag("Show the traceback of an error.", OUTPUT, "--debug")] = False,
) -> None:
    """Make a video from a picture and a sound (s2v), from text (t2v) or from a picture and text (i2v).

    Flags of the official generate.py work as well.
    """
    from wan_s2v.commands.request import ModelChoice, plan_rows
    from wan_s2v.plan import GenerationOptions
    from wan_s2v.prompt_extension import extended_prompt, open_writer
    from wan_s2v.prompt_spans import map_prompts
    from wan_s2v.styles import with_styles
    from wan_s2v.weights.checkpoint import read_task

    console = _console(stderr=True)
    _silence_libraries()
    if redo_clip is not None:
        planned = _redo(redo_clip, output, options, image, audio, dry_run)
        _finish(console, planned, plan_rows(planned), _maker(planned), {}, dry_run, as_json, quiet, events)
        return
    found, machine, prompt = read_task(choice["model"], task), ModelChoice(**choice), options["prompt"]
    writer = None if extend_prompt is None else open_writer(extend_prompt)

    def plan(text: str) -> tuple[Any, Callable[[Any], dict[str, Any]]]:
        settings = GenerationOptions(
            **options | {"prompt": map_prompts(text, lambda part: with_styles(part, style or []))}
        )
        if found == "s2v":
            _require_none(found, guidance_scale_2=guidance_scale_2)
            return _speech_job(settings, machine, image, audio, output, lora or [], overwrite, run)
        _require_none(found, audio=audio)
        return _video_job(found, settings, machine, image, guidance_scale_2, output, lora or [], overwrite)

    planned, make = plan(prompt)
    written: dict[str, Any] = {}
    if writer is not None:  # after everything cheap is checked; the plan shows the text that is used
        written = {"prompt_extension": {"prompt": prompt, "by": extend_prompt}}
        planned, make = plan(
            map_prompts(prompt, lambda part: extended_prompt(part, writer, from_picture=image is not None))
        )
    rows = plan_rows(planned) if found == "s2v" else _video_rows(planned)
    rows += [("written by", f"{extend_prompt}, from: {prompt}")] if written else []
    _finish(console, planned, rows, make, written, dry_run, as_json, quiet, events)


@app.command()
def replay(
    sidecar: Annotated[Path, Argument(help="The .mp4.json beside a video.")],
    output: Annotated[
        Path | None, flag("The mp4 to write.", OUTPUT, "--output", "-o", default="<video>_again.mp4 beside it")
    ] = None,
    overwrite: Annotated[bool, flag("Replace an existing output.", OUTPUT)] = False,
    dry_run: Annotated[bool, flag("Print the plan and stop.", OUTPUT, "--dry-run")] = False,
    as_json: Annotated[bool, flag("Print one JSON object on stdout.", OUTPUT, "--json")] = False,
    quiet: Annotated[bool, flag("No plan and no progress on stderr.", OUTPUT, "--quiet", "-q")] = False,
    debug: Annotated[bool, flag("Show the traceback of an error.", OUTPUT, "--debug")] = False,
) -> None:
    """Make a video again from its record; inputs and weights must be the same."""
    from wan_s2v.commands.replay import plan_replay
    from wan_s2v.commands.request import plan_rows

    console = _console(stderr=True)
    _silence_libraries()
    output = sidecar.with_name(f"{sidecar.name.split('.mp4')[0]}_again.mp4") if output is None else output
    planned, notes = plan_replay(sidecar, output, overwrite=overwrite)
    rows = [*plan_rows(planned), *(("note", note) for note in notes)]
    _finish(console, planned, rows, _maker(planned), {}, dry_run, as_json, quiet, None)


def _finish(
    console: Console,
    planned: Any,
    rows: list[tuple[str, str]],
    make: Callable[[Any], dict[str, Any]],
    written: dict[str, Any],
    dry_run: bool,
    as_json: bool,
    quiet: bool,
    events: Path | None,
) -> None:
    """Show a plan and, unless it is all that was asked for, make the video.

    Args:
        written: what a language model did with the prompt.
    """
    from wan_s2v.commands.events import EventLog
    from wan_s2v.commands.progress import make_reporter

    if not quiet:
        _print_plan(console, [*rows, *(("warning", warning) for warning in planned.warnings)])
    if dry_run:
        if as_json:
            _print_json({"status": "planned", "plan": planned.summary() | written})
        return
    path, plain = planned.request.output, make_reporter(console, quiet=quiet)
    with plain if events is None else EventLog(plain, events) as reporter:
        record = make(reporter)
        if isinstance(reporter, EventLog):
            reporter.done(path)
    if as_json:
        plan_made = planned.summary() | written
        _print_json({"status": "done", "path": str(path), "plan": plan_made, "metadata": record | written})
    else:
        _print_path(path)


def _maker(planned: Any) -> Callable[[Any], dict[str, Any]]:
    """What makes a planned video that follows a sound."""
    from wan_s2v.commands.make import make_video
    from wan_s2v.commands.request import load_pipeline

    return lambda reporter: make_video(load_pipeline(planned.model, reporter), planned, reporter)


def _redo(
    clip: int, output: Path | None, options: dict[str, Any], image: Path | None, audio: Path | None, dry_run: bool
) -> Any:
    """The plan that makes one clip of a kept run anew. Raises: UsageError for flags that would change others."""
    from wan_s2v.commands.replay import plan_redo
    from wan_s2v.plan import GenerationOptions

    if output is None:
        raise UsageError("--redo-clip needs --output: the video whose clip is made again.")
    plain = GenerationOptions()
    given = [
        name for name, value in options.items() if value != getattr(plain, name) and name not in ("seed", "prompt")
    ]
    given += [name for name, value in (("image", image), ("audio", audio)) if value is not None]
    if given:
        raise UsageError(
            f"--redo-clip takes all but --seed and --prompt from the run; leave out --{given[0].replace('_', '-')}."
        )
    return plan_redo(output, clip - 1, options["seed"], options["prompt"] or None, dry_run=dry_run)


def _require_none(task: str, **given: Any) -> None:
    """Raises: UsageError for the first flag that a model has no use for."""
    for name, value in given.items():
        if value is not None:
            raise UsageError(f"--{name.replace('_', '-')} is not for this model, which is for {task}. Leave it out.")


def _speech_job(
    options: Any,
    choice: Any,
    image: Path | None,
    audio: Path | None,
    output: Path | None,
    loras: list[str],
    overwrite: bool,
    run: dict[str, Any],
) -> tuple[Any, Callable[[Any], dict[str, Any]]]:
    """The plan of a video that follows a sound, and what makes it."""
    from wan_s2v.commands.request import Request, open_model, parse_loras, preview

    for name, value in (("image", image), ("audio", audio or options.text)):
        if value is None:
            raise UsageError(
                f"Missing option '--{name}': this model makes a picture speak. See wan-s2v generate --help."
            )
    assert image is not None
    output = Path(f"{image.stem}_{'speech' if audio is None else audio.stem}.mp4") if output is None else output
    growing = output.with_name(f"{output.name}.preview.mp4") if run["preview"] else None
    kept = {name: run[name] for name in ("fresh", "keep_clips", "clip_span")}
    request = Request(image, audio, output, options, overwrite, parse_loras(loras), preview_path=growing, **kept)
    planned = preview(request, open_model(choice, options))
    return planned, _maker(planned)


def _video_job(
    task: Any,
    options: Any,
    choice: Any,
    image: Path | None,
    guidance_scale_2: float | None,
    output: Path | None,
    loras: list[str],
    overwrite: bool,
) -> tuple[Any, Callable[[Any], dict[str, Any]]]:
    """The plan of a video from text or a picture, and what makes it."""
    from wan_s2v.commands.request import parse_loras
    from wan_s2v.commands.video_request import VideoRequest, make_text_video, preview_video

    output = Path("video.mp4" if image is None else f"{image.stem}.mp4") if output is None else output
    request = VideoRequest(choice, options, guidance_scale_2, image, output, overwrite, parse_loras(loras))
    planned = preview_video(request, task)
    return planned, lambda reporter: make_text_video(planned, reporter)


def _video_rows(planned: Any) -> list[tuple[str, str]]:
    from wan_s2v.commands.video_request import video_rows

    return video_rows(planned)


@app.command()
@takes(generation_options, model_choice)
def batch(
    options: dict[str, Any],
    choice: dict[str, Any],
    jobs: Annotated[Path, Argument(help="JSON lines or CSV with image, audio and options; or a folder of pairs.")],
    lora: Annotated[list[str] | None, LORA] = None,
    output_dir: Annotated[
        Path | None, flag("Where the videos go, as <audio>.mp4.", OUTPUT, default="beside the jobs")
    ] = None,
    report: Annotated[
        Path | None, flag("JSON lines with the outcome of every job.", OUTPUT, default="<jobs>.report.jsonl")
    ] = None,
    overwrite: Annotated[bool, flag("Make videos again that exist.", OUTPUT)] = False,
    dry_run: Annotated[bool, flag("Check every job and stop.", OUTPUT, "--dry-run")] = False,
    as_json: Annotated[bool, flag("Print one JSON object on stdout.", OUTPUT, "--json")] = False,
    quiet: Annotated[bool, flag("No table and no progress on stderr.", OUTPUT, "--quiet", "-q")] = False,
    debug: Annotated[bool, flag("Show the traceback of an error.", OUTPUT, "--debug")] = False,
) -> None:
    """Make many videos with one loaded model. The flags are defaults that a job may override."""
    from wan_s2v.commands.batch import BatchRun, print_outcomes, read_jobs
    from wan_s2v.commands.progress import make_reporter
    from wan_s2v.commands.request import ModelChoice, open_model, parse_loras
    from wan_s2v.plan import GenerationOptions

    console = _console(stderr=True)
    _silence_libraries()
    model = open_model(ModelChoice(**choice), GenerationOptions(**options))
    found = read_jobs(jobs, output_dir, options, parse_loras(lora or ()))
    report = report or jobs.resolve().parent / f"{jobs.resolve().name}.report.jsonl"
    with make_reporter(console, quiet=quiet) as reporter:
        run = BatchRun(found, model, reporter, overwrite=overwrite)
        for outcome in run.check() if dry_run else run.make(report):
            if outcome.status == "failed":
                _print_error(f"job {outcome.number}: {outcome.error}")
            elif not (as_json or dry_run):
                _print_path(Path(outcome.output))
    failed = sum(outcome.status == "failed" for outcome in run.outcomes)
    if not quiet:
        print_outcomes(console, run.outcomes)
    if as_json:
        _print_json({"status": "failed" if failed else "done", "jobs": [o.record() for o in run.outcomes]})
    if failed:
        raise typer.Exit(1)


@app.command()
@takes(network_flags, limit_flags, model_choice)
def serve(
    network: dict[str, Any],
    limits: Any,
    choice: dict[str, Any],
    folder: Annotated[Path, flag("Where queue, uploads and results lie.", OUTPUT)] = Path("wan-s2v-server"),
    enable_cpu_offload: Annotated[
        bool, flag("Keep only the part that works on the GPU.", MACHINE, "--enable-cpu-offload")
    ] = False,
    use_fp16: Annotated[bool, flag("Compute in float16.", MACHINE, "--use-fp16")] = False,
    debug: Annotated[bool, flag("Show the traceback of an error.", OUTPUT, "--debug")] = False,
) -> None:
    """Make videos for others over HTTP: a queue that survives restarts, progress, and a web page."""
    try:
        from wan_s2v.server.serve import serve as run
    except ModuleNotFoundError as error:
        raise UsageError(f"serve needs {error.name}, which is not installed. Install wan-s2v[server].") from error

    run(choice, {"enable_cpu_offload": enable_cpu_offload, "use_fp16": use_fp16}, limits, network, folder)


@app.command()
def evaluate(
    videos: Annotated[list[Path], Argument(help="Finished videos.")],
    image: Annotated[
        Path | None, flag("The portrait they show.", INPUTS, "--image", "-i", default="the first frame")
    ] = None,
    as_json: Annotated[bool, flag("Print one JSON object on stdout.", OUTPUT, "--json")] = False,
    quiet: Annotated[bool, flag("No progress on stderr.", OUTPUT, "--quiet", "-q")] = False,
    debug: Annotated[bool, flag("Show the traceback of an error.", OUTPUT, "--debug")] = False,
) -> None:
    """Measure lip sync, identity, colour drift, sharpness, seams, silence and length of videos.

    Mouths are read on illustrated portraits like those of the embedded model; on photographs they are guessed.
    """
    from wan_s2v.commands.evaluate import evaluate_files, print_findings

    progress = _console(stderr=True)
    findings = evaluate_files(videos, image, lambda line: None if quiet else progress.print(line, soft_wrap=True))
    errors = [finding.error for finding in findings if finding.error is not None]
    for error in errors:
        _print_error(error)
    if as_json:
        _print_json({"status": "failed" if errors else "done", "videos": [found.record() for found in findings]})
    else:
        print_findings(_console(), findings)
    if errors:
        raise typer.Exit(1)


@app.command()
def inspect(
    file: Annotated[Path, Argument(help="A video.")],
    as_json: Annotated[bool, flag("Print one JSON object on stdout.", OUTPUT, "--json")] = False,
    debug: Annotated[bool, flag("Show the traceback of an error.", OUTPUT, "--debug")] = False,
) -> None:
    """Show what a video says about its making: streams, tags, AIGC label, C2PA credentials, and its record."""
    from wan_s2v.commands.inspect import print_inspection, record
    from wan_s2v.inspection import inspect_file

    found = inspect_file(file)
    if as_json:
        _print_json(record(found))
    else:
        print_inspection(_console(), found)


@app.command()
def voices(
    as_json: Annotated[bool, flag("Print one JSON object on stdout.", OUTPUT, "--json")] = False,
    debug: Annotated[bool, flag("Show the traceback of an error.", OUTPUT, "--debug")] = False,
) -> None:
    """List the voices that speak --text: those of espeak-ng, and those for piper in the folder WAN_S2V_VOICES."""
    from wan_s2v.speech_synthesis import voices as find

    found = find()
    if as_json:
        _print_json({"voices": [{"name": name, "engine": engine} for name, engine in found.items()]})
    else:
        for name, engine in found.items():
            print(f"{name}\t{engine}")


@app.command()
def styles(
    as_json: Annotated[bool, flag("Print one JSON object on stdout.", OUTPUT, "--json")] = False,
) -> None:
    """List the looks that --style adds to a prompt: light, shot size, lens, colour and camera movement."""
    from dataclasses import asdict

    from rich.table import Table

    from wan_s2v.styles import STYLES

    if as_json:
        _print_json({"styles": [asdict(style) for style in STYLES]})
        return
    table = Table.grid(padding=(0, 2))
    for column in ("bold", "none", "none", "none"):
        table.add_column(style=column, no_wrap=column == "bold", overflow="fold")
    kind = ""
    for style in STYLES:
        table.add_row("" if style.kind == kind else style.kind, style.name, style.english, style.chinese)
        kind = style.kind
    _console().print(table)


@app.command()
def doctor(
    model: Annotated[str | None, Argument(help="A model whose every file and tensor is checked.")] = None,
    as_json: Annotated[bool, flag("Print one JSON object on stdout.", OUTPUT, "--json")] = False,
    debug: Annotated[bool, flag("Show the traceback of an error.", OUTPUT, "--debug")] = False,
) -> None:
    """Show versions, devices, encoders and models, and what fits into memory."""
    from wan_s2v.commands.doctor import examine, print_findings

    _silence_libraries()
    findings = examine(model)
    if as_json:
        _print_json(findings)
    else:
        print_findings(_console(), findings)
    if findings["problems"]:
        for problem in findings["problems"]:
            _print_error(problem)
        raise typer.Exit(1)


@app.command()
def download(
    model: Annotated[str, Argument(help="A hub id, or s2v-14b.")],
    target: Annotated[Path | None, flag("Folder for the files.", OUTPUT, default="the Hugging Face cache")] = None,
    as_json: Annotated[bool, flag("Print one JSON object on stdout.", OUTPUT, "--json")] = False,
    debug: Annotated[bool, flag("Show the traceback of an error.", OUTPUT, "--debug")] = False,
) -> None:
    """Fetch a model from the Hugging Face hub: only the files that are needed."""
    from wan_s2v.weights import download as fetch

    _print_result(fetch(model, target), as_json)


@app.command()
def convert(
    source: Annotated[str, Argument(help="A model: folder, .safetensors or .gguf file, or hub id.")],
    target: Annotated[Path, Argument(help="Folder to make, or file with fp8 and gguf-q8_0.")],
    layout: Annotated[str | None, flag("official or diffusers, for a folder.", OUTPUT, default="none")] = None,
    quantization: Annotated[
        str | None,
        flag("fp8 or gguf-q8_0 (the transformer as one file), or int8 (a diffusers folder).", OUTPUT, default="none"),
    ] = None,
    torch_dtype: Annotated[
        str | None, flag("bf16, fp16 or fp32, for the transformer.", OUTPUT, default="as stored")
    ] = None,
    as_json: Annotated[bool, flag("Print one JSON object on stdout.", OUTPUT, "--json")] = False,
    quiet: Annotated[bool, flag("No progress on stderr.", OUTPUT, "--quiet", "-q")] = False,
    debug: Annotated[bool, flag("Show the traceback of an error.", OUTPUT, "--debug")] = False,
) -> None:
    """Rewrite a model in another layout or precision; give --layout or --quantization."""
    from wan_s2v.commands.progress import make_reporter
    from wan_s2v.runtime.precision import as_dtype
    from wan_s2v.weights import convert as rewrite

    dtype = None if torch_dtype is None else as_dtype(torch_dtype)
    _silence_libraries()
    with make_reporter(_console(stderr=True), quiet=quiet) as reporter:
        made = rewrite(
            source,
            target,
            layout=layout,  # type: ignore[arg-type]
            quantization=quantization,  # type: ignore[arg-type]
            torch_dtype=dtype,
            progress=reporter.loading,
        )
    _print_result(made, as_json)


@app.callback(invoke_without_command=True)
def _start(version: Annotated[bool, Option("--version", help="Show the version and exit.")] = False) -> None:
    if version:
        print(__version__)
        raise typer.Exit


@app.command()
def train(
    model: Annotated[str, Argument(help="What to train: tiny, the embedded model.")],
    stage: Annotated[str, Option(help="Part of the model; an unknown name lists them all.")],
    folder: Annotated[Path, Option(help="Where all stages leave and find their results.")] = Path("runs/tiny"),
    minutes: Annotated[float, Option(help="Time to train, without preparing the data.")] = 10.0,
    steps: Annotated[int | None, Option(help="Stop after so many steps.", show_default="by time")] = None,
    clips: Annotated[int, Option(help="Made-up people, one clip of each, per process.")] = 1000,
    hours: Annotated[float, Option(help="Speech for the stage speech.")] = 8.0,
    workers: Annotated[int, Option(help="Processes that synthesise speech.")] = 1,
    seed: Annotated[int, Option(help="Same seed, same data.")] = 0,
    learning_rate: Annotated[float | None, Option(help="Peak learning rate.", show_default="the stage's")] = None,
    device: Annotated[str, Option(help="auto, cuda or cpu.")] = "auto",
) -> None:
    """Train a stage of the embedded model, with torchrun on several GPUs. A second run goes on from the first."""
    from wan_s2v.commands.train import train as run

    _silence_libraries()
    record = run(
        model,
        stage,
        folder,
        minutes=minutes,
        max_steps=steps,
        clips=clips,
        hours=hours,
        workers=workers,
        seed=seed,
        learning_rate=learning_rate,
        device=device,
    )
    _print_json(record)


def main(args: Sequence[str] | None = None) -> int:
    """Run a command line and give its exit code; errors a user can act on become one line on stderr."""
    words = list(sys.argv[1:] if args is None else args) or ["--help"]
    try:
        return _run(words)
    except WanS2VError as error:
        _show_traceback(words)
        return _fail(str(error), error.exit_code, words)
    except (KeyboardInterrupt, typer.Abort):
        return _fail("interrupted", INTERRUPTED, words)
    except (MemoryError, RuntimeError) as error:
        from wan_s2v.commands.request import is_out_of_memory, out_of_memory_message

        if not is_out_of_memory(error):
            raise
        _show_traceback(words)
        return _fail(out_of_memory_message(), 1, words)


def _run(words: list[str]) -> int:
    if words[0] in ("generate", "batch"):
        translation = translate(words[1:])
        words = [words[0], *translation.args]
        for note in translation.notes:
            print(f"note: {note}", file=sys.stderr)
    try:
        code = app(words, prog_name="wan-s2v", standalone_mode=False)
    except _ParseError as error:
        known = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
        place = f"wan-s2v {words[0]}" if words[0] in known else "wan-s2v"
        raise UsageError(f"{error.format_message().rstrip('.')}. See {place} --help.") from error
    if code == INTERRUPTED:  # newer typer turns the interrupt into this code
        raise KeyboardInterrupt
    return int(code or 0)


def _fail(message: str, exit_code: int, words: Sequence[str]) -> int:
    _print_error(message)
    if "--json" in words:
        _print_json({"status": "failed", "error": message, "exit_code": exit_code})
    return exit_code


def _show_traceback(words: Sequence[str]) -> None:
    if "--debug" in words:
        import traceback

        traceback.print_exc()


def _console(*, stderr: bool = False) -> Console:
    from rich.console import Console

    return Console(stderr=stderr, markup=False, highlight=False, emoji=False)


def _print_plan(console: Console, rows: Sequence[tuple[str, str]]) -> None:
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for row in rows:
        table.add_row(*row)
    console.print(table)


def _print_error(message: str) -> None:
    print("error:", " ".join(message.split()), file=sys.stderr)


def _print_result(path: Path, as_json: bool) -> None:
    if as_json:
        _print_json({"status": "done", "path": str(path)})
    else:
        _print_path(path)


def _print_path(path: Path) -> None:
    """The bytes of the path, which need not be UTF-8."""
    sys.stdout.flush()
    sys.stdout.buffer.write(os.fsencode(path) + b"\n")
    sys.stdout.buffer.flush()


def _print_json(content: dict[str, Any]) -> None:
    print(json.dumps(content), flush=True)


def _silence_libraries() -> None:
    """Advice and bars of the libraries, which are about themselves and not about the user's files."""
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.logging.set_verbosity_error()
        library.logging.disable_progress_bar()
