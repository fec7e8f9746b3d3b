"""Downloads fetch what is needed and nothing else, and say in one line why they failed. The hub is faked."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.errors import OfflineModeIsEnabled

from wan_s2v.errors import DownloadError, UsageError
from wan_s2v.weights.download import download, needed_files

SPEECH = "wav2vec2-large-xlsr-53-english"
NEEDED = [
    "config.json",
    "configuration.json",
    "diffusion_pytorch_model-00001-of-00002.safetensors",
    "diffusion_pytorch_model-00002-of-00002.safetensors",
    "diffusion_pytorch_model.safetensors.index.json",
    "Wan2.1_VAE.pth",
    "models_t5_umt5-xxl-enc-bf16.pth",
    "google/umt5-xxl/spiece.model",
    "google/umt5-xxl/tokenizer.json",
    f"{SPEECH}/config.json",
    f"{SPEECH}/preprocessor_config.json",
    f"{SPEECH}/model.safetensors",
]
UNUSED = ["README.md", "assets/logo.png", f"{SPEECH}/flax_model.msgpack", f"{SPEECH}/pytorch_model.bin"]


@dataclass
class FakeHub:
    files: dict[str, int]
    fetched: list[dict[str, Any]] = field(default_factory=list)
    error: Exception | None = None

    def model_info(self, repository: str, *, files_metadata: bool) -> SimpleNamespace:
        assert files_metadata
        if self.error:
            raise self.error
        siblings = [SimpleNamespace(rfilename=name, size=size) for name, size in self.files.items()]
        return SimpleNamespace(siblings=siblings)

    def snapshot_download(self, repository: str, **options: Any) -> str:
        self.fetched.append({"repository": repository, **options})
        return str(options["local_dir"] or "cache")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    fake = FakeHub(dict.fromkeys(NEEDED + UNUSED, 1000))
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: fake)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake.snapshot_download)
    return fake


@pytest.mark.parametrize("model", ["Wan-AI/Wan2.2-S2V-14B", "s2v-14b"])
def test_only_the_needed_files_are_fetched(hub: FakeHub, tmp_path: Path, model: str) -> None:
    assert download(model, tmp_path / "model") == tmp_path / "model"
    assert [call["repository"] for call in hub.fetched] == ["Wan-AI/Wan2.2-S2V-14B"]
    assert sorted(hub.fetched[0]["allow_patterns"]) == sorted(NEEDED)


def test_without_a_target_the_cache_is_used(hub: FakeHub) -> None:
    assert download("s2v-14b") == Path("cache")
    assert hub.fetched[0]["local_dir"] is None


def test_the_older_speech_weights_are_fetched_where_no_newer_ones_are() -> None:
    files = dict.fromkeys([*NEEDED, *UNUSED], 1)
    del files[f"{SPEECH}/model.safetensors"]
    assert f"{SPEECH}/pytorch_model.bin" in needed_files(files)


def test_a_diffusers_repository_is_fetched_by_its_folders() -> None:
    files = ["model_index.json", "transformer/config.json", "transformer/diffusion_pytorch_model.safetensors"]
    files += ["tokenizer/spiece.model", "audio_processor/preprocessor_config.json"]
    assert needed_files(dict.fromkeys([*files, "README.md", "examples/clip.mp4"], 1)) == files


@pytest.mark.parametrize("model", ["nonsense", "a/b/c", "https://huggingface.co/Wan-AI/Wan2.2-S2V-14B", "", "../x"])
def test_what_is_no_hub_id_is_misuse(hub: FakeHub, model: str) -> None:
    with pytest.raises(UsageError, match="is not a hub id"):
        download(model)
    assert hub.fetched == []


NETWORK_ERRORS = [ConnectionError("no route\nto host"), OfflineModeIsEnabled("offline"), TimeoutError()]


@pytest.mark.parametrize("error", NETWORK_ERRORS)
def test_network_trouble_is_one_line(hub: FakeHub, error: Exception) -> None:
    hub.error = error
    with pytest.raises(DownloadError, match="could not be fetched") as caught:
        download("s2v-14b")
    assert "\n" not in str(caught.value)


def test_a_repository_without_weights_is_refused(hub: FakeHub) -> None:
    hub.files = {"README.md": 1, "config.json": 1}
    with pytest.raises(DownloadError, match="no checkpoint that can be loaded"):
        download("someone/something")
    assert hub.fetched == []


def test_space_is_checked_first_and_counts_what_is_there(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.files["Wan2.1_VAE.pth"] = 40 * 2**30
    free = 20 * 2**30
    monkeypatch.setattr("shutil.disk_usage", lambda path: shutil._ntuple_diskusage(free * 2, free, free))
    with pytest.raises(DownloadError, match=r"needs 40.0 GiB, .* has 20.0 GiB free"):
        download("s2v-14b", tmp_path)
    assert hub.fetched == []
    with (tmp_path / "unfinished.incomplete").open("wb") as part:
        part.truncate(30 * 2**30)
    assert download("s2v-14b", tmp_path) == tmp_path
