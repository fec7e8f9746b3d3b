"""The stages in which the embedded model is made. Each reads what those before it left in one folder and adds to it.

A stage that finds its own result there goes on training it. Its record, `<stage>.json`, says on what, for how long and
with which outcome.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from diffusers import AutoencoderKLWan
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, UMT5EncoderModel, Wav2Vec2FeatureExtractor, Wav2Vec2Model

from wan_s2v.clips import FRAMES_PER_LATENT
from wan_s2v.errors import CheckpointError
from wan_s2v.evaluation.mouth_reader import MouthReader
from wan_s2v.evaluation.readers import Readers, write_readers
from wan_s2v.evaluation.sync import SyncScorer
from wan_s2v.models.transformer import WanS2VTransformer
from wan_s2v.pipeline import WanS2VPipeline
from wan_s2v.training.corpus import generate_corpus
from wan_s2v.training.distillation import distil
from wan_s2v.training.examples import MOTION_FRAMES, USUAL_WINDOW, Encoders, Examples, join_examples, make_examples
from wan_s2v.training.loop import Budget, Loop, is_main
from wan_s2v.training.mouth_clips import render_clips, render_faces, render_mouths, speech_curves
from wan_s2v.training.pack import write_small_checkpoint
from wan_s2v.training.pool import random_babble, render_pool
from wan_s2v.training.readers import (
    evaluate_mouth_reader,
    evaluate_sync_scorer,
    train_mouth_reader,
    train_sync_scorer,
)
from wan_s2v.training.speech_encoder import SpeechReader, evaluate_speech_encoder, train_speech_encoder
from wan_s2v.training.text_encoder import (
    PromptReader,
    build_text_encoder,
    evaluate_text_encoder,
    prepare_text_data,
    prepare_training_data,
    sample_prompts,
    train_text_encoder,
)
from wan_s2v.training.text_tokenizer import train_tokenizer
from wan_s2v.training.texts import Split
from wan_s2v.training.transformer import (
    FLOW_SHIFT,
    TRANSFORMER_CONFIG,
    boundary_ratio,
    build_transformer,
    measure_loss,
    train_transformer,
)
from wan_s2v.training.vae import Stage, build_vae, evaluate_vae, measure_latents, process_whole_sequences, train_vae

SIZE = 256  # side of the frames
NUM_STEPS = 8
CLIP_SECONDS = 8.0
HELD_OUT_SEED = 987654
SHARD_SIZE = "14MB"
HIGH_NOISE_FROM = 0.7  # sigma; trained on its own levels alone, that expert learns its people by heart
_TRUNK = "transformer_trunk"
_RANK_SEEDS, _MOST_RANKS = 1000, 64  # distance of the seeds of processes that train together
SAMPLING_DEFAULTS: dict[str, Any] = {
    "motion_frames": MOTION_FRAMES,
    "max_area": SIZE * SIZE,
    "frames_per_clip": FRAMES_PER_LATENT * USUAL_WINDOW,
    "num_inference_steps": NUM_STEPS,
    "guidance_scale": 1.0,
    "flow_shift": FLOW_SHIFT,
    "scheduler": "euler",
}
LONG_CLIPS = (Stage(0.1, 5, 128, 48), Stage(0.15, 17, 192, 10), Stage(0.75, 81, 256, 4))
MEASURED_SIGMAS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.875, 0.9, 0.925, 0.95, 0.975, 0.995)

NoiseRange = tuple[float, float]


@dataclass(frozen=True)
class Run:
    """One stage's circumstances.

    Args:
        folder: results of all stages.
        clips: people rendered, one clip of each; also utterances of about 8 s, per process. 60 prompts for each.
        hours: of speech for the speech encoder.
        workers: processes that synthesise speech.
        learning_rate: the stage's own if None.
    """

    folder: Path
    device: torch.device
    budget: Budget
    seed: int = 0
    clips: int = 1000
    hours: float = 8.0
    workers: int = 1
    learning_rate: float | None = None
    report: Callable[[str], None] = print

    @property
    def rank_seed(self) -> int:
        """Differs between processes that train together."""
        return self.seed + _RANK_SEEDS * (dist.get_rank() if dist.is_initialized() else 0)

    def checkpoint(self, stage: str) -> Path:
        return self.folder / f"{stage}.checkpoint.safetensors"

    @property
    def dtype(self) -> torch.dtype:
        """In which transformers are trained."""
        return torch.bfloat16 if self.device.type == "cuda" else torch.float32

    def rate(self, default: float) -> float:
        return default if self.learning_rate is None else self.learning_rate


def vae(run: Run) -> dict[str, Any]:
    """Train the VAE on clips of made-up people."""
    pool = render_pool(run.clips, 85, SIZE, 1000 + run.rank_seed, run.device)
    continues = (run.folder / "vae").is_dir()
    with run.device:
        model = load_vae(run.folder, run.device) if continues else build_vae()
    options = {"stages": LONG_CLIPS} if continues else {}
    rate = run.rate(1e-3 if continues else 3e-3)
    checkpoint = run.checkpoint("vae")
    loop = train_vae(
        model,
        pool,
        run.budget,
        learning_rate=rate,
        seed=run.rank_seed,
        checkpoint=checkpoint,
        report=run.report,
        **options,
    )
    measure_latents(model, pool)
    if is_main():
        _save(model, run.folder / "vae")
    figures, _ = evaluate_vae(model, render_pool(8, 81, SIZE, HELD_OUT_SEED, run.device))
    return _record(loop, run, figures=figures)


def speech(run: Run) -> dict[str, Any]:
    """Train the speech encoder on synthetic speech."""
    corpus = generate_corpus(60 * run.hours, "train", run.rank_seed, run.workers)
    held_out = generate_corpus(max(2.0, min(45.0, 5 * run.hours)), "held-out", HELD_OUT_SEED, run.workers)
    torch.manual_seed(run.seed)
    reader = SpeechReader()
    heads = run.folder / "speech_heads.safetensors"
    if heads.is_file():
        reader.encoder.load_state_dict(load_speech(run.folder, torch.device("cpu")).state_dict())
        reader.load_state_dict(load_file(heads), strict=False)
    reader.to(run.device)
    loop = train_speech_encoder(
        reader,
        corpus,
        run.budget,
        learning_rate=run.rate(3e-3),
        seed=run.rank_seed,
        checkpoint=run.checkpoint("speech"),
        report=run.report,
        compile=run.device.type == "cuda",
    )
    reader.bfloat16().float()  # as it will be stored
    if is_main():
        _save(reader.encoder, run.folder / "audio_encoder")
        others = {k: v.cpu().contiguous() for k, v in reader.state_dict().items() if not k.startswith("encoder.")}
        save_file(others, heads)
    return _record(loop, run, figures=evaluate_speech_encoder(reader, held_out))


def text(run: Run) -> dict[str, Any]:
    """Train tokenizer and text encoder on prompts; small enough for a CPU."""

    def generator(part: int) -> torch.Generator:
        return torch.Generator().manual_seed(run.rank_seed + part)

    torch.manual_seed(run.seed)
    network = PromptReader(build_text_encoder())
    if (run.folder / "text_encoder").is_dir():
        tokenizer = AutoTokenizer.from_pretrained(run.folder / "tokenizer")
        network.encoder = UMT5EncoderModel.from_pretrained(run.folder / "text_encoder").float()
    else:
        tokenizer = train_tokenizer([prompt.text for prompt in sample_prompts(8000, generator(1), disturbed=0.0)])
    network.to(run.device)
    data = prepare_training_data(60 * run.clips, tokenizer, generator(2), device=run.device)
    loop = train_text_encoder(
        network,
        data,
        run.budget,
        learning_rate=run.rate(3e-3),
        seed=run.rank_seed,
        checkpoint=run.checkpoint("text"),
        report=run.report,
    )
    network.eval().bfloat16().float()  # as it will be stored
    figures = {}
    for name, templates in (("templates", 1.0), ("free", 0.0)):
        prompts = sample_prompts(2000, generator(3), templates=templates, disturbed=0.0)
        figures[name] = evaluate_text_encoder(network, prepare_text_data(prompts, tokenizer, run.device))
    if is_main():
        _save(network.encoder, run.folder / "text_encoder")
        tokenizer.save_pretrained(run.folder / "tokenizer")
    return _record(loop, run, figures=figures)


def readers(run: Run) -> dict[str, Any]:
    """Train the networks that judge results: a reader of mouths and a scorer of lip sync."""
    count = max(2, run.clips // 2)
    corpus = generate_corpus(count * CLIP_SECONDS / 60, "train", 500 + run.seed, run.workers)
    held_out_corpus = generate_corpus(max(1.0, count / 300), "held-out", HELD_OUT_SEED, run.workers, seconds=5.0)
    speech_shapes, speech_energy = speech_curves(corpus)
    babble = random_babble(max(1, count // 3), speech_shapes.shape[1], torch.Generator().manual_seed(run.seed))
    shapes, energy = torch.cat((speech_shapes, babble[0])), torch.cat((speech_energy, babble[1]))
    mouths = render_mouths(shapes, energy, run.seed + 1, run.device)
    looks, loudness = random_babble(4 * count, 96, torch.Generator().manual_seed(run.seed + 2))
    faces = render_faces(looks, loudness, run.seed + 3, run.device)
    torch.manual_seed(run.seed)
    networks = Readers(MouthReader().to(run.device), SyncScorer().to(run.device))
    half = replace(run.budget, seconds=run.budget.seconds / 2)
    first = train_mouth_reader(networks.mouth, faces, mouths, half, seed=run.seed, report=run.report)
    networks.mouth.eval()
    sounds = torch.from_numpy(corpus.waveforms).to(run.device)
    loop = train_sync_scorer(networks.sync, mouths[: len(sounds)], sounds, half, seed=run.seed, report=run.report)
    networks.sync.eval()
    (run.folder / "evaluation").mkdir(exist_ok=True)
    write_readers(networks, run.folder / "evaluation")
    held_out = render_clips(*speech_curves(held_out_corpus), HELD_OUT_SEED, run.device)
    figures = {
        "mouth": evaluate_mouth_reader(networks.mouth, held_out),
        "damaged": evaluate_mouth_reader(networks.mouth, held_out, damage_seed=run.seed),
        "sync": evaluate_sync_scorer(networks, held_out, torch.from_numpy(held_out_corpus.waveforms)),
    }
    return _record(loop, run, mouth_steps=first.steps, figures=figures)


def transformer(run: Run) -> dict[str, Any]:
    """Train one transformer for all noise levels: the trunk of both experts."""
    examples = prepare_examples(run)
    held_out = prepare_examples(run, held_out=True)
    return _train(run, examples, held_out, _TRUNK, (0.0, 1.0), (0.0, 1.0), 1e-3)


def high_noise(run: Run) -> dict[str, Any]:
    """Train the trunk on as the expert for the noisy part, on a wider one."""
    return _expert(run, "transformer_high", (HIGH_NOISE_FROM, 1.0), (boundary_ratio(), 1.0))


def low_noise(run: Run) -> dict[str, Any]:
    """Train the trunk on as the expert for the rest."""
    low = (0.0, boundary_ratio())
    return _expert(run, "transformer_low", low, low)


def baseline(run: Run) -> dict[str, Any]:
    """Train the trunk on for all noise levels, to compare the experts with."""
    return _expert(run, "transformer_baseline", (0.0, 1.0), (0.0, 1.0))


def distil_high(run: Run) -> dict[str, Any]:
    """Teach the high-noise expert to need few steps and no guidance."""
    return _distil(run, "transformer", "transformer_high", (boundary_ratio(), 1.0))


def distil_low(run: Run) -> dict[str, Any]:
    """Teach the low-noise expert to need few steps and no guidance."""
    return _distil(run, "transformer_2", "transformer_low", (0.0, boundary_ratio()))


def pack(run: Run) -> dict[str, Any]:
    """Write the whole model as it ships, into the subfolder `tiny`."""
    total = write_small_checkpoint(assemble(run.folder), run.folder / "tiny", report=run.report)
    return {"bytes": total}


STAGES: Mapping[str, Callable[[Run], dict[str, Any]]] = {
    "vae": vae,
    "speech": speech,
    "text": text,
    "readers": readers,
    "transformer": transformer,
    "high-noise": high_noise,
    "low-noise": low_noise,
    "baseline": baseline,
    "distil-high": distil_high,
    "distil-low": distil_low,
    "pack": pack,
}


def run_stage(name: str, run: Run) -> dict[str, Any]:
    """Do one stage and write its record."""
    run.folder.mkdir(parents=True, exist_ok=True)
    record = {"stage": name, **STAGES[name](run)}
    if is_main():
        (run.folder / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    return record


def prepare_examples(run: Run, *, held_out: bool = False) -> Examples:
    """Examples made once and kept in the folder: of this process's seed, or those of all processes if it is alone."""
    seed = HELD_OUT_SEED if held_out else run.rank_seed
    count = max(4, min(64, run.clips // 8)) if held_out else run.clips
    path = run.folder / f"examples-{seed}-{count}.safetensors"
    if not path.is_file():
        split: Split = "held-out" if held_out else "train"
        corpus = generate_corpus(count * CLIP_SECONDS / 60, split, seed, run.workers, CLIP_SECONDS)
        examples = make_examples(corpus, load_encoders(run.folder, run.device), size=SIZE, seed=seed)
        run.report(f"{len(examples)} examples ({split}) made")
        if not held_out or is_main():
            save_file(examples.tensors(), path)
        return examples
    paths = [path]
    if not dist.is_initialized() and not held_out:
        paths = [
            run.folder / f"examples-{seed + _RANK_SEEDS * rank}-{count}.safetensors" for rank in range(_MOST_RANKS)
        ]
    parts = [Examples(**load_file(path, device=str(run.device))) for path in paths if path.is_file()]
    return join_examples(parts)


def load_encoders(folder: Path, device: torch.device) -> Encoders:
    """The trained VAE, speech encoder and text encoder."""
    text_encoder = UMT5EncoderModel.from_pretrained(_existing(folder, "text_encoder", "text"))
    return Encoders(
        load_vae(folder, device).eval(),
        load_speech(folder, device).eval(),
        AutoTokenizer.from_pretrained(_existing(folder, "tokenizer", "text")),
        text_encoder.to(device).float().eval(),
        TRANSFORMER_CONFIG["text_len"],
    )


def load_vae(folder: Path, device: torch.device) -> AutoencoderKLWan:
    model = AutoencoderKLWan.from_pretrained(_existing(folder, "vae", "vae"))
    process_whole_sequences(model)
    return model.to(device).float()


def load_speech(folder: Path, device: torch.device) -> Wav2Vec2Model:
    return Wav2Vec2Model.from_pretrained(_existing(folder, "audio_encoder", "speech")).to(device).float()


def load_transformer(folder: Path, name: str, device: torch.device) -> WanS2VTransformer:
    model = WanS2VTransformer.from_pretrained(_existing(folder, name, "transformer"), torch_dtype=torch.float32)
    return model.to(device)


def assemble(folder: Path) -> WanS2VPipeline:
    """The pipeline of the parts in a folder, on the CPU."""
    cpu = torch.device("cpu")
    encoders = load_encoders(folder, cpu)
    return WanS2VPipeline(
        transformer=load_transformer(folder, "transformer", cpu).eval(),
        transformer_2=load_transformer(folder, "transformer_2", cpu).eval(),
        boundary_ratio=boundary_ratio(),
        vae=encoders.vae,
        audio_encoder=encoders.speech,
        audio_processor=Wav2Vec2FeatureExtractor(do_normalize=True),
        text_encoder=encoders.text,
        tokenizer=encoders.tokenizer,
        sampling_defaults=SAMPLING_DEFAULTS,
    )


def start_processes(device: str) -> torch.device:
    """This process's device; joins the others where `torchrun` started several."""
    if "LOCAL_RANK" not in os.environ or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return torch.device(device)
    place = torch.device(device, int(os.environ["LOCAL_RANK"])) if device == "cuda" else torch.device(device)
    if place.type == "cuda":
        torch.cuda.set_device(place)
    dist.init_process_group("nccl" if place.type == "cuda" else "gloo")
    return place


def _expert(run: Run, name: str, learned: NoiseRange, measured: NoiseRange) -> dict[str, Any]:
    held_out = prepare_examples(run, held_out=True)
    return _train(run, prepare_examples(run), held_out, name, learned, measured, 5e-4)


def _train(
    run: Run,
    examples: Examples,
    held_out: Examples,
    name: str,
    learned: NoiseRange,
    measured: NoiseRange,
    learning_rate: float,
) -> dict[str, Any]:
    """Train the transformer `name`, from itself or from the trunk where it is new.

    Args:
        learned, measured: lowest and highest sigma of the training and of the held-out losses.
    """
    source = name if (run.folder / name).is_dir() else _TRUNK
    exists = (run.folder / source).is_dir()
    model = load_transformer(run.folder, source, run.device) if exists else build_transformer().to(run.device)
    model.to(run.dtype)
    loop = train_transformer(
        model,
        examples,
        run.budget,
        noise_range=learned,
        learning_rate=run.rate(learning_rate),
        seed=run.rank_seed,
        checkpoint=run.checkpoint(name),
        report=run.report,
    )
    if is_main():
        _save(model, run.folder / name)
    low, high = measured
    sigmas = tuple(sigma for sigma in MEASURED_SIGMAS if low <= sigma <= high)
    losses = measure_loss(lambda _sigma: model, held_out, sigmas)
    return _record(loop, run, noise_range=list(learned), held_out=dict(zip(map(str, sigmas), losses, strict=True)))


def _distil(run: Run, name: str, expert: str, noise_range: NoiseRange) -> dict[str, Any]:
    """Train the student `name`, from itself or from its expert where it is new."""
    examples = prepare_examples(run)
    high, low = (load_transformer(run.folder, f"transformer_{k}", run.device).to(run.dtype) for k in ("high", "low"))
    start = name if (run.folder / name).is_dir() else expert
    student = load_transformer(run.folder, start, run.device).to(run.dtype)
    loop = distil(
        student,
        lambda sigma: high if sigma >= boundary_ratio() else low,
        examples,
        run.budget,
        noise_range=noise_range,
        num_steps=NUM_STEPS,
        learning_rate=run.rate(3e-4),
        seed=run.rank_seed,
        checkpoint=run.checkpoint(name),
        report=run.report,
    )
    if is_main():
        _save(student, run.folder / name)
    return _record(loop, run)


def _record(loop: Loop, run: Run, **outcome: Any) -> dict[str, Any]:
    processes = dist.get_world_size() if dist.is_initialized() else 1
    return {
        "seed": run.seed,
        "processes": processes,
        "clips": run.clips,
        "hours": run.hours,
        "steps": loop.steps,
        "seconds": round(loop.seconds, 1),
        "losses": [round(loss, 5) for loss in loop.losses],
        **outcome,
    }


def _save(model: Any, folder: Path) -> None:
    """In bfloat16, in files that travel easily; the model itself stays as it is."""
    stored = type(model).from_config(model.config) if hasattr(model, "from_config") else type(model)(model.config)
    stored.load_state_dict(model.state_dict())
    stored.bfloat16().save_pretrained(folder, max_shard_size=SHARD_SIZE)


def _existing(folder: Path, name: str, stage: str) -> Path:
    if not (folder / name).is_dir():
        raise CheckpointError(f"{folder} has no {name}. Run the stage {stage!r} first.")
    return folder / name
