"""Samples and encodings, without a service around them."""

import io
import subprocess

import numpy as np
import pytest
import soundfile
from conftest import program
from maya1_tts.audio import FORMATS, PEAK, Edges, Format, Stretch, encoder, finish_segment, hasten, to_int16
from numpy.typing import NDArray

RATE = 22050
TONE = to_int16((0.4 * np.sin(np.arange(RATE * 3 + 777) * 0.06)).astype(np.float32))
# Samples in one frame of each codec: what a decoder may add, since frames cannot be cut.
FRAME = {"pcm": 0, "wav": 0, "flac": 0, "mp3": 576, "opus": 441}


def encode(format: Format, pieces: int) -> tuple[bytes, bytes]:
    """(what a stream sends, the complete file)"""
    file = encoder(format, RATE)
    sent = b"".join(file.write(part) for part in np.array_split(TONE, pieces)) + file.finish()
    return sent, file.complete


def by_libsndfile(data: bytes, format: str) -> tuple[NDArray[np.float32], int]:
    if format == "pcm":
        return np.frombuffer(data, "<i2").astype(np.float32) / 32768, RATE
    with soundfile.SoundFile(io.BytesIO(data)) as file:
        return file.read(dtype="float32"), file.samplerate


def by_ffmpeg(data: bytes, format: str) -> NDArray[np.int16]:
    """What ffmpeg decodes, at RATE."""
    source = ["-f", "s16le", "-ar", str(RATE), "-ac", "1"] if format == "pcm" else []
    command = [
        program("ffmpeg"),
        "-v",
        "error",
        *source,
        "-i",
        "pipe:0",
        "-f",
        "s16le",
        "-ar",
        str(RATE),
        "-",
    ]
    result = subprocess.run(command, input=data, capture_output=True, check=True)
    assert result.stderr == b""
    return np.frombuffer(result.stdout, "<i2")


@pytest.mark.parametrize("format", FORMATS)
def test_a_file_decodes_to_its_own_length(format: Format) -> None:
    _, complete = encode(format, pieces=5)
    samples, rate = by_libsndfile(complete, format)
    assert abs(len(samples) * RATE / rate - len(TONE)) <= FRAME[format] + 1
    # libswresample keeps a few samples back when it changes the rate of opus.
    assert abs(len(by_ffmpeg(complete, format)) - len(TONE)) <= FRAME[format] + (
        32 if format == "opus" else 0
    )


@pytest.mark.parametrize("format", FORMATS)
def test_a_stream_decodes_whole(format: Format) -> None:
    sent, complete = encode(format, pieces=5)
    assert len(sent) == len(complete)
    # An mp3 stream cannot say how much of its first and last frames is padding.
    padding = 4 * FRAME["mp3"] if format == "mp3" else FRAME[format] + 1
    assert -32 <= len(by_ffmpeg(sent, format)) - len(TONE) <= padding
    if format != "flac":  # libsndfile insists on a length in the header, which a flac stream does not have
        samples, rate = by_libsndfile(sent, format)
        assert 0 <= len(samples) * RATE / rate - len(TONE) <= padding


@pytest.mark.parametrize("format", ["wav", "flac", "pcm"])
def test_lossless_means_lossless(format: Format) -> None:
    for data in encode(format, pieces=3):
        assert np.array_equal(by_ffmpeg(data, format), TONE)


@pytest.mark.parametrize("format", FORMATS)
def test_the_cut_into_pieces_does_not_change_the_file(format: Format) -> None:
    assert encode(format, pieces=1)[1] == encode(format, pieces=7)[1] or format == "opus"


def test_a_wav_stream_has_one_open_header() -> None:
    sent, complete = encode("wav", pieces=4)
    assert sent[4:8] == sent[40:44] == b"\xff\xff\xff\xff"
    assert sent.count(b"RIFF") == 1
    assert int.from_bytes(complete[40:44], "little") == len(TONE) * 2 == len(complete) - 44


def test_segments_end_in_silence_and_keep_their_length() -> None:
    loud = np.full(RATE, 1.7, dtype=np.float32)
    done = finish_segment(loud, RATE, pause=0.25)
    assert len(done) == RATE + round(RATE * 0.25)
    assert done[0] == done[-1] == done[RATE - 1] == 0.0
    assert np.abs(done).max() == pytest.approx(PEAK)
    quiet = np.full(RATE, 0.3, dtype=np.float32)
    assert np.abs(finish_segment(quiet, RATE, 0)).max() == pytest.approx(0.3)


def test_full_scale_never_wraps() -> None:
    assert to_int16(np.array([-2, -1, 0, 1, 2], dtype=np.float32)).tolist() == [
        -32767,
        -32767,
        0,
        32767,
        32767,
    ]


def speech(seconds: float, rate: int) -> NDArray[np.float32]:
    """Two tones and a little noise, louder and softer by turns."""
    time = np.arange(int(seconds * rate)) / rate
    tones = np.sin(2 * np.pi * 140 * time) + 0.5 * np.sin(2 * np.pi * 610 * time)
    noise = np.random.default_rng(0).standard_normal(len(time))
    return ((0.4 * tones + 0.02 * noise) * np.sin(2 * np.pi * 1.3 * time) ** 2 * 0.5).astype(np.float32)


@pytest.mark.parametrize("speed", [0.25, 0.4, 0.8, 1.0, 1.3, 2.0, 3.7, 4.0])
@pytest.mark.parametrize("size", [1, 77, 2048])
def test_stretching_in_pieces_gives_the_samples_of_the_whole(speed: float, size: int) -> None:
    samples = speech(0.5, 24000)
    stretch = Stretch(24000, speed)
    held = 0
    parts = []
    for start in range(0, len(samples), size):
        parts.append(stretch.write(samples[start : start + size]))
        held = max(held, len(stretch._input))
    parts.append(stretch.finish())
    assert np.array_equal(np.concatenate(parts), hasten(samples, 24000, speed))
    assert sum(map(len, parts)) == round(len(samples) / speed)
    assert held <= 24000 * 0.2 + size


@pytest.mark.parametrize("speed", [0.5, 0.8, 1.25, 2.0, 4.0])
def test_stretching_keeps_the_pitch(speed: float) -> None:
    spectrum = np.abs(np.fft.rfft(hasten(speech(3, 24000), 24000, speed)))
    loudest = np.argmax(spectrum) * 24000 / (2 * (len(spectrum) - 1))
    assert loudest == pytest.approx(140, abs=4)


@pytest.mark.parametrize("length", [0, 1, 100, 239, 240, 241, 5000])
@pytest.mark.parametrize("size", [1, 100, 10_000])
def test_edges_are_those_of_a_finished_segment(length: int, size: int) -> None:
    samples = (0.5 * speech(1, 24000) + 0.3)[:length]
    edges = Edges(24000, pause=0.1)
    parts = [edges.write(samples[start : start + size]) for start in range(0, length, size)]
    done = np.concatenate([*parts, edges.finish()])
    assert np.array_equal(done, finish_segment(samples, 24000, 0.1))
