"""A short prompt → a full description of a film shot, written by a language model.

The models were trained on long descriptions, and follow short prompts less well. The language model runs here, from a
folder, or behind an endpoint with the interface of OpenAI's chat completions. What it is told is below, in our words.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from wan_s2v.errors import PromptExtensionError, UsageError, reason_of

KEY_VARIABLE: Final = "WAN_S2V_PROMPT_KEY"
MODEL_VARIABLE: Final = "WAN_S2V_PROMPT_MODEL"
Writer = Callable[[str, str], str]  # instructions, prompt → answer

_TIMEOUT_S: Final = 120.0
_MAX_NEW_TOKENS: Final = 512  # what the video models read of a prompt
_MAX_ANSWER_BYTES: Final = 1 << 20
_THOUGHTS: Final = re.compile(r"<think>.*?</think>", re.DOTALL)
_INSTRUCTIONS: Final = """\
You write shot descriptions for a model that turns text into a few seconds of film.
Turn the user's idea into one paragraph of 80 to 120 words that a cinematographer could shoot.
Keep every person, object, action, number and quoted word of the idea; add only what makes it visible.
Say in plain, concrete words, as far as they fit the idea:
- who or what is seen: looks, clothes, expression, and how many;
- the one action that happens, in the order in which it happens, at a pace that fits a few seconds;
- the place, the time of day and the weather;
- light: its source, direction, hardness and colour;
- camera: shot size, angle, lens and depth of field, and one movement or that it stands still;
- composition: where the subject is in the frame, what is before and behind it;
- colour and mood of the picture, and its medium if it is not live action.
Describe one continuous shot: no cuts, no sound, no story before or after, nothing that cannot be seen.
Answer with the paragraph alone, in the language of the idea, without title, list, quotes around it or remarks.\
"""
_FROM_PICTURE: Final = """
The film starts from a picture that you cannot see. Do not invent looks, clothes, places or colours: describe the
movement of the people, of the things around them and of the camera, and how expression and light change.\
"""


def extended_prompt(prompt: str, writer: Writer, *, from_picture: bool) -> str:
    """A longer prompt of the same content and language.

    Args:
        writer: see `open_writer`.
        from_picture: whether the video starts from a picture, whose looks are not to be invented.
    Raises: UsageError for an empty prompt; PromptExtensionError if no text comes back.
    """
    if not prompt.strip():
        raise UsageError("There is no prompt to extend. Describe the video in a few words.")
    answer = writer(_INSTRUCTIONS + (_FROM_PICTURE if from_picture else ""), prompt)
    text = " ".join(_THOUGHTS.sub("", answer).split()).strip('"“”「」 ')
    if not text:
        raise PromptExtensionError("The language model gave no text. Try another one, or leave the extension out.")
    return text


def open_writer(where: str) -> Writer:
    """A language model to write with; nothing is loaded or called yet.

    Args:
        where: folder of a chat model (such as Qwen's) for transformers, or the URL of an endpoint, up to "/v1". For a
            URL the environment gives the model's name (WAN_S2V_PROMPT_MODEL) and, if needed, a key
            (WAN_S2V_PROMPT_KEY).
    Raises: UsageError if there is no such folder, or the environment lacks the name.
    """
    if where.startswith(("http://", "https://")):
        name = os.environ.get(MODEL_VARIABLE)
        if not name:
            raise UsageError(f"{MODEL_VARIABLE} is not set. Set it to the name of the endpoint's language model.")
        key = os.environ.get(KEY_VARIABLE)
        url = f"{where.rstrip('/')}/chat/completions"
        return lambda instructions, prompt: _ask(url, name, key, instructions, prompt)
    folder = Path(where).expanduser()
    if not (folder / "config.json").is_file():
        raise UsageError(f"{where!r} is neither the folder of a language model (with config.json) nor an http(s) URL.")
    return lambda instructions, prompt: _generate(folder, instructions, prompt)


def _messages(instructions: str, prompt: str) -> list[dict[str, str]]:
    return [{"role": "system", "content": instructions}, {"role": "user", "content": prompt}]


def _ask(url: str, name: str, key: str | None, instructions: str, prompt: str) -> str:
    body = json.dumps({"model": name, "messages": _messages(instructions, prompt), "stream": False}).encode()
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    request = urllib.request.Request(url, body, headers)
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response:
            content = json.loads(response.read(_MAX_ANSWER_BYTES))["choices"][0]["message"]["content"]
    except urllib.error.HTTPError as error:
        raise PromptExtensionError(
            f"{url} answered {error.code} ({error.reason}). Check the URL, {MODEL_VARIABLE} and {KEY_VARIABLE}."
        ) from error
    except (OSError, http.client.HTTPException) as error:
        raise PromptExtensionError(
            f"{url} cannot be reached ({reason_of(error)}). Check it, and the network."
        ) from error
    except (ValueError, LookupError, TypeError) as error:
        raise PromptExtensionError(f"{url} gave no chat completion. It should be the URL up to /v1.") from error
    return content if isinstance(content, str) else ""


def _generate(folder: Path, instructions: str, prompt: str) -> str:
    """The likeliest answer of a local model, which leaves memory afterwards."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", local_files_only=True).to(device)
        inputs = tokenizer.apply_chat_template(
            _messages(instructions, prompt), add_generation_prompt=True, return_dict=True, return_tensors="pt"
        ).to(device)
    except (OSError, ValueError) as error:
        raise PromptExtensionError(
            f"{folder} holds no chat model that transformers can run ({str(error).splitlines()[0]}). Pass the folder of"
            " an instruction-tuned model, such as Qwen2.5-7B-Instruct."
        ) from error
    with torch.no_grad():
        made = model.generate(**inputs, max_new_tokens=_MAX_NEW_TOKENS, do_sample=False)
    return str(tokenizer.decode(made[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
