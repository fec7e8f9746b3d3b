"""The embedded model's prompts: any text is encoded, free wordings say what is asked for, a short training reads it."""

from __future__ import annotations

import re
from typing import get_args

import pytest
import torch
from conftest import assert_close
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, UMT5EncoderModel

from wan_s2v.errors import UsageError
from wan_s2v.prompt import NEGATIVE_PROMPT, clean_prompt, encode_prompt
from wan_s2v.training.free_prompts import describe_freely
from wan_s2v.training.identities import sample_identities
from wan_s2v.training.loop import Budget
from wan_s2v.training.motion import Camera, Controls, Expression, Head
from wan_s2v.training.prompts import identity_facts
from wan_s2v.training.text_encoder import (
    ATTRIBUTES,
    CONTROLS,
    MAX_TOKENS,
    TEXT_CONFIG,
    PromptReader,
    build_text_encoder,
    disturb,
    evaluate_text_encoder,
    measure_features,
    prepare_text_data,
    prepare_training_data,
    sample_prompts,
    train_text_encoder,
)
from wan_s2v.training.text_tokenizer import VOCAB_SIZE, train_tokenizer
from wan_s2v.training.wordings import CHINESE, ENGLISH, gerund, third_person

SMALL = TEXT_CONFIG | {"d_model": 48, "d_kv": 16, "num_heads": 3, "d_ff": 96, "num_layers": 1}
PLAIN = {"expression": "neutral", "head": "lively", "camera": "still"}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def tokenizer():
    torch.set_num_threads(1)
    return train_tokenizer([prompt.text for prompt in sample_prompts(2500, generator())])


@pytest.fixture(scope="module")
def facts():
    people = sample_identities(20, generator())
    return [identity_facts(people, row) for row in range(20)]


def ids(tokenizer, text):
    return tokenizer(clean_prompt(text)).input_ids


def test_special_tokens_are_those_of_umt5(tokenizer):
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (0, 1, 2)
    assert len(tokenizer) == VOCAB_SIZE == TEXT_CONFIG["vocab_size"]
    assert ids(tokenizer, "") == [1]
    assert ids(tokenizer, "A woman smiles.")[-1] == 1


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=40))
def test_any_text_is_encoded_without_unknown_tokens(tokenizer, text):
    plain = clean_prompt(text).replace("<unk>", "").replace("<pad>", "").replace("</s>", "")
    tokens = tokenizer(plain).input_ids
    assert tokens[-1] == 1
    assert not {0, 1, 2} & set(tokens[:-1])
    assert max(tokens) < VOCAB_SIZE


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("A Woman SMILES", "a woman smiles"),
        ("smiling,zoom in", "smiling, zoom in"),
        ("微笑，镜头推近", "微笑, 镜头推近"),
        ("鏡頭慢慢拉遠", "镜头慢慢拉远"),
        ("V領毛衣", "v领毛衣"),
    ],
)
def test_case_spaces_width_and_traditional_characters_make_no_difference(tokenizer, text, same):
    assert ids(tokenizer, text) == ids(tokenizer, same)


@pytest.mark.parametrize("text", ["a woman smiles, zoom in slowly.", "镜头拉近,微笑", "café ünder naïve"])
def test_decoding_gives_the_text_back(tokenizer, text):
    assert tokenizer.decode(ids(tokenizer, text), skip_special_tokens=True) == text


@pytest.mark.parametrize("word", ["woman", "smiling", "camera", "slowly", "left", "right", "nodding", "镜头", "微笑"])
def test_frequent_words_are_one_token(tokenizer, word):
    assert len(ids(tokenizer, word)) == 2


def test_a_text_that_spells_a_byte_is_not_that_byte(tokenizer):
    assert tokenizer.convert_tokens_to_ids("<0x41>") not in ids(tokenizer, "<0x41>")


def test_prompts_fit_the_encoder(tokenizer):
    for language in ("en", "zh"):
        prompts = sample_prompts(300, generator(1), language=language, templates=0.5, disturbed=0.0)
        assert max(len(ids(tokenizer, prompt.text)) for prompt in prompts) <= MAX_TOKENS
    assert len(ids(tokenizer, NEGATIVE_PROMPT)) <= 2 * MAX_TOKENS


def test_tokenizer_and_encoder_load_as_a_checkpoint_does(tokenizer, tmp_path):
    torch.manual_seed(0)
    encoder = build_text_encoder(SMALL)
    encoder.bfloat16().save_pretrained(tmp_path / "text_encoder")
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "tokenizer", local_files_only=True)
    text_encoder = UMT5EncoderModel.from_pretrained(tmp_path / "text_encoder", local_files_only=True).eval()
    for text in ("A man nods, zoom in", "", NEGATIVE_PROMPT):
        embeds = encode_prompt(text, loaded, text_encoder, MAX_TOKENS)
        tokens = ids(tokenizer, text)
        assert embeds.shape == (min(len(tokens), MAX_TOKENS), 48)
        assert ids(loaded, text) == tokens
        expected = encoder(torch.tensor([[*tokens[:-1][: MAX_TOKENS - 1], 1]])).last_hidden_state[0]
        assert_close(embeds, expected, 0.05, text)  # bfloat16, with and without padding


@pytest.mark.parametrize("tables", [ENGLISH, CHINESE], ids=["en", "zh"])
def test_every_direction_has_wordings_to_train_on_and_others_held_out(tables):
    for field, kind in (("expression", Expression), ("head", Head), ("camera", Camera)):
        assert set(tables[field]) == set(get_args(kind))
        for value, entries in tables[field].items():
            trained, held_out = (
                {text for texts in entries.of_part(part).kinds() for text in texts} for part in ("trained", "held out")
            )
            assert held_out, value
            assert len(trained) > 4 * len(held_out), value
            assert not trained & held_out, value


def test_no_wording_asks_for_two_things():
    for tables in (ENGLISH, CHINESE):
        for field in tables.values():
            owners = [(text, v) for v, entries in field.items() for kind in entries.kinds() for text in set(kind)]
            assert len({text for text, _ in owners}) == len(set(owners))


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    language=st.sampled_from(["en", "zh"]),
    part=st.sampled_from(["trained", "held out", "all"]),
    controls=st.builds(Controls, *(st.sampled_from(get_args(kind)) for kind in (Expression, Head, Camera))),
)
def test_free_prompts_say_what_is_asked_for(facts, seed, language, part, controls):
    prompt = describe_freely(controls, facts[seed % 20], language, generator(seed), part)
    asked = {field for field, plain in PLAIN.items() if getattr(controls, field) != plain}
    assert asked <= prompt.said
    assert prompt.text
    assert "{" not in prompt.text
    assert prompt.text == describe_freely(controls, facts[seed % 20], language, generator(seed), part).text


@pytest.mark.parametrize(("side", "wrong", "language"), [("left", r"\bright", "en"), ("right", "左", "zh")])
def test_sides_are_not_confused(facts, side, wrong, language):
    controls = Controls("smiling", f"looking {side}", f"pan {side}")
    for seed in range(100):
        text = describe_freely(controls, facts[seed % 20], language, generator(seed)).text
        assert not re.search(wrong, text, re.IGNORECASE), text


def test_unknown_languages_and_parts_are_refused(facts):
    with pytest.raises(UsageError, match="language='fr'"):
        describe_freely(Controls(), facts[0], "fr", generator())
    with pytest.raises(UsageError, match="part='test'"):
        describe_freely(Controls(), facts[0], "en", generator(), "test")


@pytest.mark.parametrize(
    ("verb", "she", "doing"),
    [
        ("nod", "nods", "nodding"),
        ("cry", "cries", "crying"),
        ("stay still", "stays still", "staying still"),
        ("move closer", "moves closer", "moving closer"),
        ("push in", "pushes in", "pushing in"),
        ("agree with nods", "agrees with nods", "agreeing with nods"),
        ("go back", "goes back", "going back"),
    ],
)
def test_verb_forms(verb, she, doing):
    assert third_person(verb) == she
    assert gerund(verb) == doing


def test_combinations_held_out_are_never_among_the_trained():
    def combinations(part):
        return {p.labels[: len(CONTROLS)] for p in sample_prompts(600, generator(2), combinations=part)}

    trained, held_out = combinations("trained"), combinations("held out")
    assert not trained & held_out
    assert held_out & combinations("all")
    assert len(held_out) > 12
    assert {labels[1] for labels in held_out} == set(range(7)) - {get_args(Head).index("lively")}


def test_disturbing_keeps_what_was_said():
    text = "A woman with long red hair smiles while talking, nodding, slow push in."
    made = {disturb(text, "en", generator(seed)) for seed in range(60)}
    assert len(made) > 30
    for other in made:
        kept = set(text.replace(",", "").replace(".", "").lower().split())
        missing = kept - set(other.replace(",", " ").replace(".", "").lower().split())
        assert len(missing) <= 1, other  # the word with a typing error


def test_padding_changes_nothing(tokenizer):
    torch.manual_seed(0)
    reader = PromptReader(build_text_encoder(SMALL)).eval()
    data = prepare_text_data(sample_prompts(4, generator()), tokenizer)
    length = data.lengths[0]
    alone, padded = reader(data.input_ids[:1, :length]), reader(data.input_ids)
    for short, long in zip((*alone[0], *alone[1]), (*padded[0], *padded[1]), strict=True):
        assert_close(short[0], long[0], 1e-5, "logits")


def test_data_holds_what_the_prompts_say(tokenizer):
    prompts = sample_prompts(200, generator(3))
    data = prepare_text_data(prompts, tokenizer)
    assert data.lengths == (data.input_ids != 0).sum(1).tolist()
    assert [tuple(row) for row in data.labels.tolist()] == [prompt.labels for prompt in prompts]
    input_ids, labels = data.draw(16, generator())
    assert input_ids.shape[0] == labels.shape[0] == 16
    assert (input_ids != 0).any(0).all()
    assert (labels[:, : len(CONTROLS)] >= 0).all()
    assert (labels == -1).any()


def test_a_short_training_learns_to_read(tokenizer):
    torch.manual_seed(0)
    reader = PromptReader(build_text_encoder(SMALL))
    data = prepare_training_data(1500, tokenizer, generator(4))
    test = prepare_text_data(sample_prompts(300, generator(5), templates=1.0, disturbed=0.0), tokenizer)
    before = evaluate_text_encoder(reader, test)
    loop = train_text_encoder(reader, data, Budget(600.0, 120), batch=64, learning_rate=2e-2, report=lambda _line: None)
    after = evaluate_text_encoder(reader, test)
    assert loop.steps == 120
    assert set(after) == {*ATTRIBUTES, "controls"}
    for name in CONTROLS:
        assert after[name] > max(before[name], 0.6), (name, before, after)
    statistics = measure_features(reader.encoder, test)
    assert statistics["std"] == pytest.approx(1, abs=0.05)
    assert abs(statistics["mean"]) < 0.2


def test_attributes_are_those_of_controls_and_facts(facts):
    named = vars(Controls()) | vars(facts[0])
    assert set(named) == set(ATTRIBUTES)
    assert all(getattr(fact, name) in ATTRIBUTES[name] for fact in facts for name in vars(fact))
