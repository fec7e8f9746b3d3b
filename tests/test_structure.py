"""Imports point one way: command line → pipeline → plan → stages → models → ops."""

from __future__ import annotations

import ast
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "src" / "wan_s2v"
RANKS = {
    "errors": 0,
    "ops": 0,
    "models": 1,
    "weights": 2,
    "runtime": 2,
    "plan": 3,
    "video_plan": 3,
    "components": 4,
    "result": 4,
    "job": 4,
    "memory_planning": 4,
    "model_runtime": 4,
    "pipeline": 5,
    "video_experts": 4,
    "video_pipeline": 5,
    "family": 6,
    "training": 7,
    "evaluation": 7,
    "commands": 8,
    "server": 9,
    "cli": 10,
    "__main__": 11,
}
STAGE = 2  # audio, image, prompt, video, latents, denoise, …


def _rank(part: str) -> int:
    return RANKS.get(part, STAGE)


def _imports(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("wan_s2v."):
            found.add((node.module or "").split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("wan_s2v.")}
    return found


def test_no_import_points_back():
    wrong = []
    for file in PACKAGE.rglob("*.py"):
        part = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if part == "__init__":
            continue
        wrong += [f"{file.name} imports {other}" for other in _imports(file) if _rank(other) > _rank(part)]
    assert wrong == []


def test_models_and_ops_touch_no_files_and_no_environment():
    forbidden = {"os", "pathlib", "io", "json", "safetensors"}
    for folder in ("models", "ops"):
        for file in (PACKAGE / folder).glob("*.py"):
            names = set()
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Import):
                    names |= {alias.name.split(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom):
                    names.add((node.module or "").split(".")[0])
            assert not names & forbidden, f"{file.name}: {names & forbidden}"
