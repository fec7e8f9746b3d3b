"""Styles become prompt text in the prompt's language, and reach the run through the command line."""

from __future__ import annotations

import re

import command_line
import pytest
from command_line import FAST, IMAGE, VOICE

from wan_s2v.errors import UsageError
from wan_s2v.styles import STYLES, is_chinese, with_styles

wan_s2v, model = command_line.wan_s2v, command_line.model
NAMES = {style.name: style for style in STYLES}


def test_every_style_has_a_name_of_its_own_and_both_languages():
    assert len(NAMES) == len(STYLES)
    assert {style.kind for style in STYLES} == {"light", "shot", "lens", "colour", "camera"}
    for style in STYLES:
        assert re.fullmatch(r"[a-z]+(-[a-z]+)*", style.name)
        assert style.english.isascii()
        assert is_chinese(style.chinese)
        assert not is_chinese(style.english)
    assert len({style.english for style in STYLES}) == len({style.chinese for style in STYLES}) == len(STYLES)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a man talks", "a man talks. Warm colours of amber and orange, close-up of the face."),
        ("A man talks.", "A man talks. Warm colours of amber and orange, close-up of the face."),
        ("Is it he? ", "Is it he? Warm colours of amber and orange, close-up of the face."),
        ("", "Warm colours of amber and orange, close-up of the face."),
        ("一个男人在说话", "一个男人在说话。琥珀与橙色的暖色调，面部特写。"),
        ("一个男人在说话。", "一个男人在说话。琥珀与橙色的暖色调，面部特写。"),
        ('a sign that says "你好"', 'a sign that says "你好". Warm colours of amber and orange, close-up of the face.'),
    ],
)
def test_phrases_follow_in_the_language_of_the_prompt(prompt, expected):
    assert with_styles(prompt, ["warm", "close-up"]) == expected


def test_no_style_leaves_the_prompt_alone_and_a_repeated_one_counts_once():
    assert with_styles("  as it was ", []) == "  as it was "
    assert with_styles("a man", ["warm", "warm"]) == with_styles("a man", ["warm"])


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["warn"], "style 'warn' does not exist. Did you mean warm?"),
        (["qqq"], "style 'qqq' does not exist. See wan-s2v styles."),
        (["warm", "cool"], "style warm and style cool are both of colour. Give one of them."),
    ],
)
def test_names_that_cannot_be_used_are_told(names, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        with_styles("a man", names)


def test_the_list_shows_every_name_with_its_text(wan_s2v):
    shown = wan_s2v("styles")
    assert shown.code == 0
    assert all(re.search(rf"\b{name}\b", shown.out) for name in NAMES)
    listed = wan_s2v("styles", "--json").json["styles"]
    assert {item["name"]: item["english"] for item in listed} == {name: s.english for name, s in NAMES.items()}


def test_a_style_reaches_the_prompt_that_is_shown_and_recorded(wan_s2v, model, tmp_path):
    words = ("generate", "-i", IMAGE, "-a", VOICE, "-o", tmp_path / "x.mp4", "-m", model, *FAST, "--dry-run", "--json")
    done = wan_s2v(*words, "--prompt", "a man", "--style", "golden-hour", "--style", "push-in")
    expected = with_styles("a man", ["golden-hour", "push-in"])
    assert done.json["plan"]["options"]["prompt"] == expected
    assert expected in " ".join(done.err.split())
    wrong = wan_s2v(*words, "--style", "sunny")
    assert (wrong.code, len(wrong.errors)) == (2, 1)
