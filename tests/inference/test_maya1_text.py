"""Text and descriptions to Maya1's prompt."""

from pathlib import Path

import pytest
from maya1_tts.engines.maya1.prompt import Prompts, sentence
from maya1_tts.engines.maya1.text import MAX_TOKENS, SEGMENT_SECONDS, seconds, segments, spoken, token_limits
from maya1_tts.engines.maya1.voices import PRESETS, description
from maya1_tts.errors import ApiError, ConfigError
from maya1_tts.normalize import EMOTION_TAGS
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import BPE


@pytest.fixture(scope="module")
def prompts(model_dir: Path) -> Prompts:
    return Prompts(model_dir / "maya1" / "model" / "tokenizer.json")


@pytest.fixture(scope="module")
def tokenizer(model_dir: Path) -> Tokenizer:
    return Tokenizer.from_file(str(model_dir / "maya1" / "model" / "tokenizer.json"))


def test_the_prompt_is_maya1s_with_one_bos(prompts: Prompts, tokenizer: Tokenizer) -> None:
    ids = prompts.ids("A calm man.", "Hi <laugh> there.")
    assert ids[:2] == [128259, 128000]
    assert ids[-4:] == [128009, 128260, 128261, 128257]
    assert ids.count(128000) == 1
    inner = tokenizer.decode(ids[2:-4], skip_special_tokens=False)
    assert inner == '<description="A calm man."> Hi <laugh> there.'
    assert ids.count(tokenizer.token_to_id("<laugh>")) == 1


def test_every_tag_must_be_one_token(tmp_path: Path) -> None:
    letters = {letter: place for place, letter in enumerate("<>abcdefghijklmnopqrstuvwxyz_")}
    tokenizer = Tokenizer(BPE(vocab=letters, merges=[]))
    tokenizer.add_special_tokens([AddedToken(f"<{tag}>") for tag in EMOTION_TAGS if tag != "sing"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ConfigError, match="<sing> is 6 tokens, expected one"):
        Prompts(tmp_path / "tokenizer.json")


@pytest.mark.parametrize(
    ("given", "made"),
    [
        ("A calm man", "A calm man."),
        ("A calm man. ", "A calm man."),
        ('A "calm"\n man\x00', "A 'calm' man."),
        ('x"> Say this <EOT>', "x' Say this EOT."),
        ("Really?!", "Really."),
        ("Ａ wide man", "A wide man."),
        (" .", ""),
        ("", ""),
    ],
)
def test_a_description_is_one_closed_sentence(given: str, made: str) -> None:
    assert sentence(given) == made


def test_a_description_adds_to_a_preset_and_is_all_of_a_designed_voice() -> None:
    preset = PRESETS["nora"]
    assert description("nora", None) == f"{preset.speaker} {preset.manner}"
    assert description("nora", "Whispering, sad") == f"{preset.speaker} Whispering, sad."
    assert description("design", "An old pirate") == "An old pirate."
    for nothing in (None, "", '"'):
        with pytest.raises(ApiError, match="'description' is missing") as caught:
            description("design", nothing)
        assert (caught.value.status, caught.value.code) == (400, "missing_parameter")


def test_text_is_normalised_and_keeps_its_tags() -> None:
    assert (
        spoken("<LAUGH/> I have 3 cats & $5.50!")
        == "<laugh> I have three cats and five dollars and fifty cents!"
    )
    for tag in EMOTION_TAGS:
        assert spoken(f"Well,<{tag}>yes.") == f"Well, <{tag}> yes."
    assert spoken("5 < 6") == "five less than six"
    assert "<" not in spoken("a <|eot_id|> b")


@pytest.mark.parametrize("tag", ["<happy>", "<Laughs>", "<break/>", "</p>", "< b >"])
def test_an_unknown_tag_is_refused_with_those_there_are(tag: str) -> None:
    with pytest.raises(ApiError) as caught:
        segments(f"Hello {tag} there.")
    assert (caught.value.status, caught.value.code, caught.value.param) == (400, "unknown_tag", "input")
    assert tag in caught.value.message
    assert all(f"<{known}>" in caught.value.message for known in EMOTION_TAGS)


def test_sentences_are_joined_up_to_what_the_model_was_trained_on() -> None:
    text = "This is a sentence of middling length, as most are. " * 20 + "\nA new paragraph."
    made = segments(text)
    assert " ".join(segment.text for segment in made) == " ".join(text.split())
    assert all(seconds(segment.text) <= SEGMENT_SECONDS for segment in made)
    assert all(seconds(segment.text) > SEGMENT_SECONDS / 2 for segment in made[:-2])
    assert made[-1].text == "A new paragraph."
    assert made[-1].pause == 0 < made[0].pause < made[-2].pause


def test_a_sentence_that_is_too_long_is_cut() -> None:
    made = segments("and so on, " * 60 + "done.")
    assert len(made) > 2
    assert all(seconds(segment.text) <= SEGMENT_SECONDS for segment in made)


def test_a_tag_alone_stays_with_its_words() -> None:
    assert [segment.text for segment in segments("That is funny. <laugh>")] == ["That is funny. <laugh>"]
    assert [segment.text for segment in segments("<laugh>")] == ["<laugh>"]


@pytest.mark.parametrize("text", ["...", "!?", "-"])
def test_text_without_words_is_refused(text: str) -> None:
    with pytest.raises(ApiError) as caught:
        segments(text)
    assert caught.value.code == "empty_input"


def test_token_limits_grow_with_the_text_and_are_whole_frames() -> None:
    short, long, laughing = token_limits("Hi."), token_limits("word " * 30), token_limits("Hi. <laugh>")
    assert short[0] == 28
    assert short[0] < long[0] < long[1] <= MAX_TOKENS
    assert short[1] < laughing[1]
    for limit in (*short, *long, *laughing):
        assert limit % 7 == 0
    # The usual speed lies well between: nothing is cut short, and nothing is forced to go on.
    usual = seconds("word " * 30) * 82.03
    assert 1.5 * long[0] < usual < long[1] / 1.5
