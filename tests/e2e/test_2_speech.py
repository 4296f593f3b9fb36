"""What comes out of the gateway is speech: decoded, measured, and read back by a recogniser."""

import io
import subprocess
import wave
from collections.abc import Sequence
from pathlib import Path

import httpx2
import numpy as np
import openai
import pytest
import soundfile
from pocketsphinx import Decoder

from tests.e2e.lab import SENTENCE, Client, Lab

# Samples of one frame at the format's own rate, and the decoder's rate.
FRAMES = {"mp3": 1152, "flac": 4608, "opus": 960}


def heard(audio: Path | bytes) -> list[str]:
    """Words that a recogniser finds in an audio file."""
    source = str(audio) if isinstance(audio, Path) else "-"
    command = ["ffmpeg", "-v", "error", "-i", source, "-ar", "16000", "-ac", "1", "-f", "s16le", "-"]
    stdin = audio if isinstance(audio, bytes) else None
    samples = subprocess.run(command, input=stdin, capture_output=True, check=True).stdout
    decoder = Decoder(samprate=16000, loglevel="FATAL")
    decoder.start_utt()
    decoder.process_raw(samples, full_utt=True)
    decoder.end_utt()
    return decoder.hyp().hypstr.split() if decoder.hyp() else []


def word_errors(wanted: Sequence[str], got: Sequence[str]) -> int:
    """Levenshtein distance in words."""
    row = list(range(len(got) + 1))
    for i, word in enumerate(wanted, 1):
        previous, row[0] = row[0], i
        for j, other in enumerate(got, 1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (word != other))
    return row[-1]


WORDS = SENTENCE.lower().strip(".").split()


def test_the_operators_command_writes_a_wav_that_speaks_the_sentence(
    client: Client, lab: Lab, wav: Path
) -> None:
    spoken = lab.say(SENTENCE, wav)
    assert spoken.code == 0, spoken.output
    for fact in ("TTFA", "RTF", "onnx_voice"):
        assert fact in spoken.output
    with wave.open(str(wav)) as audio:
        assert (audio.getframerate(), audio.getnchannels(), audio.getsampwidth()) == (22050, 1, 2)
        seconds = audio.getnframes() / audio.getframerate()
        samples = np.frombuffer(audio.readframes(audio.getnframes()), "<i2").astype(int)
    # Ten short words: nobody speaks them in under 1.5 s or needs 6 s.
    assert 1.5 < seconds < 6
    assert 3000 < np.abs(samples).max() < 32767
    assert len(WORDS) == 10
    assert word_errors(WORDS, heard(wav)) <= 2


def test_another_sentence_is_not_taken_for_this_one(client: Client) -> None:
    other = client.speak("She bought seven red apples and two bottles of milk.").content
    assert word_errors(WORDS, heard(other)) > 5


@pytest.mark.parametrize("audio_format", list(FRAMES))
def test_compressed_formats_decode_to_the_same_length(client: Client, audio_format: str) -> None:
    pcm = client.speak(response_format="pcm").content
    audio = client.speak(response_format=audio_format).content
    samples, rate = soundfile.read(io.BytesIO(audio))
    assert abs(len(samples) / rate - len(pcm) / 2 / 22050) <= FRAMES[audio_format] / rate
    assert word_errors(WORDS, heard(audio)) <= 2


def test_streamed_and_whole_pcm_are_equal_sample_for_sample(client: Client) -> None:
    text = "First comes one sentence. Then comes another, which is longer. And this is the third one."
    # Different words each way, so that neither answer can come from the cache of the other.
    whole = client.speak(text, response_format="pcm", stream=False)
    streamed = client.speak(text, response_format="pcm", stream=True)
    assert whole.headers["X-Cache"] == "miss"
    assert streamed.headers.get("Transfer-Encoding") == "chunked" or streamed.headers["X-Cache"] == "hit"
    assert whole.content == streamed.content
    assert len(whole.content) > 22050 * 2 * 3


def test_the_official_client_works_unchanged(client: Client, lab: Lab, token: str, tmp_path: Path) -> None:
    http = httpx2.Client(verify=lab.tls(), trust_env=False)
    api = openai.OpenAI(base_url=f"{lab.url}/v1", api_key=token, http_client=http)
    assert "tts-1" in [model.id for model in api.models.list()]
    path = tmp_path / "speech.mp3"
    with api.audio.speech.with_streaming_response.create(
        model="tts-1", voice="joe", input=SENTENCE
    ) as answer:
        answer.stream_to_file(path)
    assert word_errors(WORDS, heard(path)) <= 2
    with pytest.raises(openai.NotFoundError, match="nobody"):
        api.audio.speech.create(model="tts-1", voice="nobody", input=SENTENCE)
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{lab.url}/v1", api_key="wrong", http_client=http).models.list()


def test_the_second_asking_comes_from_the_cache(client: Client) -> None:
    text = "This sentence is asked for twice."
    first, second = client.speak(text), client.speak(text)
    assert (first.headers["X-Cache"], second.headers["X-Cache"]) == ("miss", "hit")
    assert first.content == second.content
    faster = client.speak(text, speed=1.5)
    assert faster.headers["X-Cache"] == "miss"
    assert len(faster.content) < len(first.content)


def test_voices_are_listed(client: Client) -> None:
    voices = client.request("GET", "/v1/audio/voices").json()["voices"]
    assert "joe" in [voice["id"] for voice in voices]
