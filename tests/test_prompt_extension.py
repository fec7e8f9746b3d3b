"""Prompts written out by a language model: a small one from a folder, and an endpoint on this machine."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import command_line
import pytest
import torch
from checkpoints import write_official_wan, write_tokenizer
from command_line import IMAGE, VOICE
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

from wan_s2v import prompt_extension
from wan_s2v.commands import video_request
from wan_s2v.errors import PromptExtensionError, UsageError
from wan_s2v.prompt_extension import KEY_VARIABLE, MODEL_VARIABLE, extended_prompt, open_writer
from wan_s2v.runtime.estimate import Rates

wan_s2v, speech_model = command_line.wan_s2v, command_line.model
TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }} {% endfor %}a:"
LONG = "A man talks by a window in low light; the camera stands still."


class Endpoint(BaseHTTPRequestHandler):
    """Answers with what the test has put into `answer`, and keeps what was asked."""

    answer: bytes = b""
    status = 200
    asked: list[tuple[str, str | None, dict[str, Any]]]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        type(self).asked.append((self.path, self.headers["Authorization"], body))
        self.send_response(type(self).status)
        self.end_headers()
        self.wfile.write(type(self).answer)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Endpoint]]:
    server = HTTPServer(("127.0.0.1", 0), Endpoint)
    Endpoint.asked, Endpoint.status, Endpoint.answer = [], 200, completion(LONG)
    Endpoint.url = f"http://127.0.0.1:{server.server_port}/v1"
    monkeypatch.setenv(MODEL_VARIABLE, "writer-1")
    monkeypatch.setenv(KEY_VARIABLE, "secret")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield Endpoint
    server.shutdown()
    server.server_close()


def completion(text: str | None) -> bytes:
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]}).encode()


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Qwen2 with random weights and a chat template."""
    folder = tmp_path_factory.mktemp("qwen")
    write_tokenizer(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    torch.manual_seed(8)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Qwen2Config(vocab_size=96, num_key_value_heads=2, eos_token_id=1, pad_token_id=0, **sizes)
    Qwen2ForCausalLM(config).save_pretrained(folder)
    return folder


def test_a_local_model_is_asked_in_its_own_format(chat_model, monkeypatch):
    monkeypatch.setattr(prompt_extension, "_MAX_NEW_TOKENS", 6)
    answer = open_writer(str(chat_model))("rules", "a man")
    tokenizer, model = AutoTokenizer.from_pretrained(chat_model), Qwen2ForCausalLM.from_pretrained(chat_model)
    tokens = tokenizer("system: rules user: a man a:", return_tensors="pt", add_special_tokens=False).input_ids
    start = tokens.shape[1]
    for _ in range(6):  # the likeliest token, one by one
        tokens = torch.cat((tokens, model(tokens).logits[:, -1:].argmax(-1)), dim=1)
        if tokens[0, -1] == 1:
            break
    assert answer == tokenizer.decode(tokens[0, start:], skip_special_tokens=True)
    assert answer


def test_an_endpoint_is_asked_with_key_and_model_from_the_environment(endpoint):
    assert extended_prompt("a man", open_writer(endpoint.url), from_picture=False) == LONG
    path, key, body = endpoint.asked[0]
    assert (path, key, body["model"]) == ("/v1/chat/completions", "Bearer secret", "writer-1")
    assert [message["role"] for message in body["messages"]] == ["system", "user"]
    assert body["messages"][1]["content"] == "a man"


def test_a_picture_changes_what_the_writer_is_told(endpoint):
    for from_picture in (False, True):
        extended_prompt("a man", open_writer(endpoint.url), from_picture=from_picture)
    told = [body["messages"][0]["content"] for _, _, body in endpoint.asked]
    assert "picture that you cannot see" not in told[0]
    assert "picture that you cannot see" in told[1]
    assert all(word in told[0] for word in ("light", "lens", "composition", "colour", "movement"))


@pytest.mark.parametrize(
    ("answer", "text"),
    [("<think>let me\nsee</think>\n A man.\n", "A man."), ('"A man  talks."', "A man talks."), ("「男人」", "男人")],
)
def test_only_the_paragraph_is_taken_from_an_answer(answer, text):
    assert extended_prompt("a man", lambda *_: answer, from_picture=False) == text


@pytest.mark.parametrize(
    ("status", "answer", "message"),
    [
        (401, b"", r"answered 401 .*WAN_S2V_PROMPT_KEY"),
        (200, b"<html>", "gave no chat completion"),
        (200, b"[]", "gave no chat completion"),
        (200, completion(None), "gave no text"),
        (200, completion("  "), "gave no text"),
    ],
)
def test_answers_that_are_none_are_errors(endpoint, status, answer, message):
    Endpoint.status, Endpoint.answer = status, answer
    with pytest.raises(PromptExtensionError, match=message) as caught:
        extended_prompt("a man", open_writer(endpoint.url), from_picture=False)
    assert "secret" not in str(caught.value)


def test_what_cannot_write_is_named(tmp_path, monkeypatch, chat_model):
    with pytest.raises(UsageError, match="neither the folder of a language model"):
        open_writer(str(tmp_path))
    monkeypatch.delenv(MODEL_VARIABLE, raising=False)
    with pytest.raises(UsageError, match=f"{MODEL_VARIABLE} is not set"):
        open_writer("http://127.0.0.1:9/v1")
    monkeypatch.setenv(MODEL_VARIABLE, "x")
    with pytest.raises(PromptExtensionError, match="cannot be reached"):
        extended_prompt("a man", open_writer("http://127.0.0.1:9/v1"), from_picture=False)
    with pytest.raises(UsageError, match="no prompt to extend"):
        extended_prompt(" ", open_writer(str(chat_model)), from_picture=False)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(PromptExtensionError, match="holds no chat model"):
        extended_prompt("a man", open_writer(str(tmp_path)), from_picture=False)


def test_the_text_that_is_used_is_shown_and_recorded(wan_s2v, endpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(video_request, "measure_rates", lambda *model: Rates(1e11, 5e10))
    folder, output = write_official_wan(tmp_path / "model", "t2v"), tmp_path / "x.mp4"
    size = ("--height", 64, "--width", 64, "--num-inference-steps", 1, "--num-frames", 1)
    words = ("generate", "-m", folder, "--prompt", "a man", "--extend-prompt", endpoint.url, "-o", output)
    done = wan_s2v(*words, *size, "--style", "warm", "--json")
    assert done.code == 0, done.err
    used = f"{LONG} Warm colours of amber and orange."
    assert used in " ".join(done.err.split())
    assert done.json["metadata"]["prompt"] == done.json["plan"]["prompt"] == used
    assert done.json["metadata"]["prompt_extension"] == {"prompt": "a man", "by": endpoint.url}
    assert len(endpoint.asked) == 1


def test_nothing_is_asked_before_the_inputs_are_checked(wan_s2v, speech_model, endpoint, tmp_path):
    common = ("generate", "-m", speech_model, "--prompt", "a man", "--extend-prompt", endpoint.url, "-a", VOICE)
    wrong = wan_s2v(*common, "-i", tmp_path / "no.png", "-o", tmp_path / "x.mp4")
    assert (wrong.code, endpoint.asked) == (2, [])
    done = wan_s2v(*common, "-i", IMAGE, "-o", tmp_path / "x.mp4", "--dry-run", "--json")
    assert done.json["plan"]["options"]["prompt"] == LONG
    assert "picture that you cannot see" in endpoint.asked[0][2]["messages"][0]["content"]
