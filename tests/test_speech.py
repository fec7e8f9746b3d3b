"""Synthetic speech: true times, separate splits, same seed same samples, a class for every sound."""

from __future__ import annotations

import re
from itertools import pairwise

import numpy as np
import pytest

from wan_s2v.errors import UsageError
from wan_s2v.espeak import find_library
from wan_s2v.training.corpus import energy_curve, generate_corpus, sample_utterance
from wan_s2v.training.ipa import PHONEMES, frame_labels, segments, split_ipa
from wan_s2v.training.prosody import TimeMap, change_speed, sing, stretch
from wan_s2v.training.speech import (
    ACCENTS,
    HELD_OUT_LANGUAGES,
    HELD_OUT_VOICES,
    SAMPLE_RATE,
    SILENCE,
    TRAIN_VOICES,
    Phoneme,
    Synthesizer,
    Utterance,
    Voice,
)
from wan_s2v.training.texts import LANGUAGES, is_held_out, pseudo_word, random_sentence, random_text
from wan_s2v.training.visemes import OPEN, mouth_curve

try:
    find_library()
except UsageError as error:
    ABSENT = str(error)
else:
    ABSENT = ""
needs_espeak = pytest.mark.skipif(bool(ABSENT), reason=ABSENT)

EN = Voice("en", "en-us", "m3")


@pytest.fixture(scope="module")
def synthesizer() -> Synthesizer:
    return Synthesizer()


def level(utterance: Utterance, start_s: float, end_s: float) -> float:
    part = utterance.waveform[round(start_s * SAMPLE_RATE) : round(end_s * SAMPLE_RATE)]
    return float(np.sqrt(np.mean(part**2)))


def lag_ms(utterances: list[Utterance]) -> float:
    """By how much the loudness trails the mouth opening where they correlate best; 10 ms steps, parabola between."""
    loudness, opening = [], []
    for utterance in utterances:
        steps = int(utterance.duration_s * 100)
        loudness.append(energy_curve(utterance.waveform, steps))
        opening.append(mouth_curve(utterance.phonemes, steps)[:, OPEN])
    e, o = (np.concatenate(parts) - np.mean(np.concatenate(parts)) for parts in (loudness, opening))
    score = [float(np.mean(e[30 + shift : len(e) - 30 + shift] * o[30:-30])) for shift in range(-25, 26)]
    best = int(np.argmax(score))
    left, middle, right = score[best - 1 : best + 2]
    return 10 * (best - 25 + 0.5 * (left - right) / (left - 2 * middle + right))


@needs_espeak
def test_sounds_follow_each_other_without_gaps(synthesizer: Synthesizer) -> None:
    utterance = synthesizer.synthesize("My mother bought a big blue umbrella.", EN)
    assert utterance.waveform.dtype == np.float32
    assert np.abs(utterance.waveform).max() <= 1
    assert utterance.phonemes[0].start_s == 0
    assert abs(utterance.phonemes[-1].end_s - utterance.duration_s) < 0.001
    assert all(before.end_s == after.start_s for before, after in pairwise(utterance.phonemes))
    assert all(phoneme.start_s < phoneme.end_s for phoneme in utterance.phonemes)
    assert [p.ipa for p in utterance.phonemes if p.ipa != SILENCE][:4] == ["m", "aɪ", "m", "ʌ"]
    assert any(phoneme.stressed for phoneme in utterance.phonemes)


@needs_espeak
@pytest.mark.parametrize(("variant", "loudest"), [("m3", 0.05), ("max", 0.05), ("Annie", 0.05), ("f2", 0.4)])
def test_hold_of_a_plosive_is_quiet_until_its_release(synthesizer: Synthesizer, variant: str, loudest: float) -> None:
    # f2 has an echo, so its holds are not silent.
    utterance = synthesizer.synthesize("papa, papa.", Voice("es", "es", variant), rate=140)
    inner = [p for before, p in pairwise(utterance.phonemes) if p.ipa == "p" and before.ipa == "a"]
    assert len(inner) == 2
    for plosive in inner:
        assert plosive.release_s is not None
        assert 0.03 <= plosive.release_s - plosive.start_s <= 0.10
        assert level(utterance, plosive.start_s + 0.005, plosive.release_s - 0.01) < loudest * level(utterance, 0, 1)


@needs_espeak
def test_breaks_are_silent_for_their_length(synthesizer: Synthesizer) -> None:
    utterance = synthesizer.synthesize('Hello. <break time="1200ms"/> Goodbye.', EN)
    longest = max((p for p in utterance.phonemes[1:-1] if p.ipa == SILENCE), key=lambda p: p.end_s - p.start_s)
    assert longest.end_s - longest.start_s > 1.1
    assert level(utterance, longest.start_s + 0.05, longest.end_s - 0.05) < 1e-3


@needs_espeak
def test_trill_and_glide_that_the_library_leaves_nameless_get_a_name(synthesizer: Synthesizer) -> None:
    utterance = synthesizer.synthesize("prima mia", Voice("it", "it", "m3"))
    names = [phoneme.ipa for phoneme in utterance.phonemes]
    assert "".join(names).strip(SILENCE).startswith("pr")
    assert "ja" in "".join(names)


@needs_espeak
@pytest.mark.parametrize("language", LANGUAGES)
def test_every_sound_has_a_class(synthesizer: Synthesizer, language: str) -> None:
    generator = np.random.default_rng(1)
    voices = synthesizer.voices(language)
    for split in ("train", "held-out"):
        for _ in range(12):
            voice = voices[generator.integers(len(voices))]
            spoken = synthesizer.synthesize(random_text(language, generator, 12, split), voice, rate=300)
            assert segments(spoken.phonemes, strict=True)


@needs_espeak
@pytest.mark.parametrize("language", LANGUAGES)
def test_mouth_opens_with_the_sound(synthesizer: Synthesizer, language: str) -> None:
    generator = np.random.default_rng(0)
    voices = synthesizer.voices(language)
    texts = [(random_text(language, generator, 10), voices[generator.integers(len(voices))]) for _ in range(12)]
    assert abs(lag_ms([synthesizer.synthesize(text, voice) for text, voice in texts])) <= 20


@needs_espeak
def test_same_arguments_give_the_same_samples_whatever_came_before(synthesizer: Synthesizer) -> None:
    for variant in ("m3", "whisper", "klatt", "f2"):
        voice = Voice("en", "en-us", variant)
        first = synthesizer.synthesize("Hello, six mothers.", voice)
        synthesizer.synthesize("Ganz etwas anderes.", Voice("de", "de", "croak"), rate=200, pitch=20)
        again = synthesizer.synthesize("Hello, six mothers.", voice)
        assert np.array_equal(first.waveform, again.waveform)
        assert first.phonemes == again.phonemes


@needs_espeak
def test_rate_and_pitch_change_the_voice(synthesizer: Synthesizer) -> None:
    slow, fast = (synthesizer.synthesize("A long and winding road.", EN, rate=rate) for rate in (110, 220))
    assert slow.duration_s > 1.4 * fast.duration_s
    assert not np.array_equal(slow.waveform, synthesizer.synthesize("A long and winding road.", EN, rate=110, pitch=80))


@needs_espeak
@pytest.mark.parametrize("wrong", [{"rate": 20}, {"pitch": 100}, {"pitch_range": -1}, {"volume": 500}])
def test_values_out_of_range_are_refused(synthesizer: Synthesizer, wrong: dict[str, int]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        synthesizer.synthesize("Hello.", EN, **wrong)


@needs_espeak
def test_unknown_voice_language_and_empty_text_are_refused(synthesizer: Synthesizer) -> None:
    with pytest.raises(UsageError, match="nobody"):
        synthesizer.synthesize("Hello.", Voice("en", "en-us", "nobody"))
    with pytest.raises(UsageError, match="xx"):
        synthesizer.voices("xx")
    with pytest.raises(UsageError, match="nothing"):
        synthesizer.synthesize("", EN)


@needs_espeak
def test_voices_are_installed_and_belong_to_one_split(synthesizer: Synthesizer) -> None:
    assert not set(TRAIN_VOICES) & set(HELD_OUT_VOICES)
    found = {voice.variant for voice in synthesizer.voices("en")}
    wanted = {*TRAIN_VOICES, *HELD_OUT_VOICES}
    assert found <= wanted
    # espeak-ng 1.51, as Debian packs it, lacks three of them.
    assert len(found) >= len(wanted) - 3
    for accent in (accent for accents in ACCENTS.values() for accent in accents):
        assert synthesizer.synthesize("a", Voice("", accent, "m1")).duration_s > 0


@needs_espeak
def test_sung_sounds_are_long_and_stay_in_time(synthesizer: Synthesizer) -> None:
    generator = np.random.default_rng(0)
    texts = [random_text("en", generator, 6) for _ in range(8)]
    sung = [sing(synthesizer, text, EN, generator) for text in texts]
    spoken = [synthesizer.synthesize(text, EN) for text in texts]

    def longest_vowels(utterances: list[Utterance]) -> float:
        return float(np.percentile([p.end_s - p.start_s for u in utterances for p in u.phonemes if p.ipa == "iː"], 80))

    assert longest_vowels(sung) > 2 * longest_vowels(spoken)
    assert abs(lag_ms(sung)) <= 20
    assert all(abs(u.phonemes[-1].end_s - u.duration_s) < 0.01 for u in sung)


@needs_espeak
@pytest.mark.parametrize("split", ["train", "held-out"])
def test_clip_has_the_asked_size_and_range(split: str) -> None:
    for seed in range(6):
        clip = sample_utterance(np.random.default_rng(seed), split, seconds=3.0)
        assert clip.waveform.shape == (48_000,)
        assert clip.mouth.shape == (300, 6)
        assert clip.labels.shape == (150,)
        assert clip.energy.shape == (300,)
        for values in (np.abs(clip.waveform), clip.mouth, clip.energy):
            assert values.dtype == np.float32
            assert values.min() >= 0
            assert values.max() <= 1
        assert (clip.voice.split("+")[1] in HELD_OUT_VOICES) == (split == "held-out")
        assert split == "held-out" or clip.language not in HELD_OUT_LANGUAGES


@needs_espeak
def test_corpus_depends_on_the_seed_only() -> None:
    alone = generate_corpus(0.4, seed=3, seconds=0.5)
    together = generate_corpus(0.4, seed=3, seconds=0.5, workers=2)
    other = generate_corpus(0.4, seed=4, seconds=0.5)
    for name in ("waveforms", "mouth", "labels", "energy"):
        assert np.array_equal(getattr(alone, name), getattr(together, name))
        assert not np.array_equal(getattr(alone, name), getattr(other, name))
    assert alone.languages == together.languages
    assert alone.waveforms.shape == (48, 8000)


@needs_espeak
@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"split": "test"}, "split"),
        ({"seconds": 1.005}, "seconds"),
        ({"language": "xx"}, "xx"),
        ({"language": "it"}, "held out"),
    ],
)
def test_clip_refuses_what_it_cannot_make(arguments: dict[str, object], match: str) -> None:
    with pytest.raises(UsageError, match=match):
        sample_utterance(np.random.default_rng(0), **arguments)


@pytest.mark.parametrize("language", LANGUAGES)
def test_text_is_varied_and_belongs_to_its_split(language: str) -> None:
    generator = np.random.default_rng(0)
    train = [random_sentence(language, generator) for _ in range(300)]
    held_out = [random_sentence(language, generator, "held-out") for _ in range(60)]
    assert len(set(train)) > 250
    assert not any(is_held_out(sentence) for sentence in train)
    assert all(is_held_out(sentence) for sentence in held_out)
    assert len({pseudo_word(language, generator) for _ in range(100)}) > 80
    assert not any(re.search(r"[{}|]", sentence) for sentence in train)


def test_text_has_pauses_and_questions_and_about_the_asked_length() -> None:
    generator = np.random.default_rng(0)
    text = random_text("de", generator, 120)
    assert {"?", ",", "."} <= set(text)
    assert '<break time="' in text
    assert 1200 < len(text) < 3200


def test_text_of_an_unknown_language_is_refused() -> None:
    with pytest.raises(UsageError, match="xx"):
        random_text("xx", np.random.default_rng(0), 5)


@pytest.mark.parametrize(
    ("ipa", "letters"),
    [
        ("ä", "a"),
        ("aɪ", "aɪ"),
        ("dʒ", "dʒ"),
        ("ts.h", "tʂ"),
        ("tɕh", "tɕ"),
        ("ph", "p"),
        ("ɔːɹ", "ɔɹ"),
        ("ss", "s"),
        ("ɑ̃", "ɑ"),
        ("ɯᵝ", "ɯ"),
        ("o̞", "o"),
        ("ç", "ç"),
        ("i̪", "ɨ"),
        ("i.", "ɨ"),
        ("h", "h"),
        ("ʲ", "j"),
        ("a-", "a"),
        ("ɐ̃ʊ̃", "ɐʊ"),
        ("n̩", "n"),
        ("onɡ", "onɡ"),
    ],
)
def test_sounds_are_cut_into_letters(ipa: str, letters: str) -> None:
    assert "".join(letter for letter, _ in split_ipa(ipa, strict=True)) == letters
    assert sum(share for _, share in split_ipa(ipa)) == pytest.approx(1)


def test_unknown_letter_is_an_error_only_where_asked() -> None:
    with pytest.raises(UsageError, match="U\\+0298"):
        split_ipa("ʘ", strict=True)
    assert split_ipa("ʘ") == (("ə", 1.0),)


def test_frame_labels_take_the_sound_in_the_middle_of_the_frame() -> None:
    assert len(PHONEMES) == len(set(PHONEMES)) <= 96
    phonemes = [Phoneme("a", 0.02, 0.05), Phoneme("p", 0.05, 0.09)]
    names = [PHONEMES[index] for index in frame_labels(phonemes, 6)]
    assert names == [SILENCE, "a", "p", "p", SILENCE, SILENCE]
    assert not frame_labels([], 3).any()


def test_speed_scales_times_and_length() -> None:
    tone = np.sin(2 * np.pi * 200 * np.arange(16_000) / 16_000).astype(np.float32)
    faster = change_speed(Utterance(tone, (Phoneme("p", 0.2, 1.0, release_s=0.4),)), 1.25)
    assert len(faster.waveform) == pytest.approx(12_800, abs=2)
    assert faster.phonemes[0].start_s == pytest.approx(0.16)
    assert faster.phonemes[0].release_s == pytest.approx(0.32)
    with pytest.raises(UsageError, match="3"):
        change_speed(faster, 3)


def test_stretch_keeps_the_pitch_and_moves_the_times() -> None:
    tone = np.sin(2 * np.pi * 200 * np.arange(16_000) / 16_000).astype(np.float32)
    utterance = Utterance(tone, (Phoneme("a", 0.0, 1.0),))
    longer = stretch(utterance, TimeMap(np.array([0.0, 0.5, 1.0]), np.array([0.0, 1.5, 2.0])))
    spectrum = np.abs(np.fft.rfft(longer.waveform))
    assert len(longer.waveform) == 32_000
    assert np.argmax(spectrum) / 2 == pytest.approx(200, abs=1)
    assert longer.phonemes[0].end_s == pytest.approx(2.0)
    same = stretch(utterance, TimeMap(np.array([0.0, 1.0]), np.array([0.0, 1.0])))
    assert np.abs(same.waveform - tone)[600:-600].max() < 0.01


@needs_espeak
def test_instances_do_not_pull_the_library_from_under_each_other() -> None:
    first, second = Synthesizer(), Synthesizer()
    for _ in range(3):
        second.synthesize("good morning", second.voices("en")[0])
        assert first.voices("en") == second.voices("en")
        first.synthesize("good morning", first.voices("en")[0])
