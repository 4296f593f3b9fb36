"""From float samples to bytes: clean joins, safe peaks, and five encodings that grow piece by piece."""

import io
import struct
from typing import Any, Literal, get_args

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int16]
Format = Literal["mp3", "opus", "flac", "wav", "pcm"]
FORMATS: tuple[Format, ...] = get_args(Format)
SampleRate = Literal[8000, 16000, 24000, 48000]  # what every format can hold
MEDIA_TYPES: dict[Format, str] = {
    "mp3": "audio/mpeg",
    "opus": "audio/ogg",
    "flac": "audio/flac",
    "wav": "audio/wav",
    "pcm": "audio/pcm",
}
ENCODER_REVISION = f"libsndfile {soundfile.__libsndfile_version__}, soxr {soxr.__version__}"

PEAK = 10 ** (-1 / 20)  # -1 dBFS
FADE_SECONDS = 0.005
OPUS_RATE = 24000  # Opus knows 8, 12, 16, 24 and 48 kHz; 24 kHz holds all that a 22.05 kHz voice has


def finish_segment(samples: FloatArray, rate: int, pause: float) -> FloatArray:
    """Make one synthesised segment ready to be joined to its neighbours.

    samples: mono, float, any peak. rate: Hz. pause: seconds of silence to add behind it.
    The edges are faded, so that a join never clicks; a peak above -1 dBFS scales the segment down.
    Nothing is cut off: the result is exactly `pause` seconds longer.
    """
    out = samples.astype(np.float32, copy=True)
    peak = float(np.abs(out).max(initial=0.0))
    if peak > PEAK:
        out *= PEAK / peak
    fade = np.linspace(0.0, 1.0, min(int(rate * FADE_SECONDS), len(out) // 2), dtype=np.float32)
    if len(fade):
        out[: len(fade)] *= fade
        out[-len(fade) :] *= fade[::-1]
    return np.concatenate([out, np.zeros(round(pause * rate), dtype=np.float32)])


def hasten(samples: FloatArray, rate: int, speed: float) -> FloatArray:
    """Speech made `speed` times faster at the same pitch: len / speed samples, rounded."""
    stretch = Stretch(rate, speed)
    return np.concatenate([stretch.write(samples), stretch.finish()])


class Stretch:
    """Makes speech `speed` times faster (below 1: slower) at the same pitch, block by block.

    Waveform-similarity overlap-add: windows of 30 ms are taken at a distance `speed` times the one at which
    they are laid down, each moved by up to 10 ms to where it continues the one before best. The result does
    not depend on how the samples are cut into blocks, and no more than a few windows are held.
    Source: Verhelst and Roelands, ICASSP 1993.
    """

    def __init__(self, rate: int, speed: float) -> None:
        self._speed = speed
        self._hop = hop = int(rate * 0.015)
        self._reach = int(rate * 0.010)
        self._window = np.hanning(2 * hop + 1)[:-1].astype(np.float32)  # two, one hop apart, add up to 1
        self._input = np.zeros(hop + self._reach, dtype=np.float32)  # silence, then what is still needed
        self._begin = 0  # the position of _input[0]; positions count that silence
        self._place = self._reach  # where the next window is taken
        self._step = 0
        self._half = np.zeros(hop, dtype=np.float32)  # the falling half of the window before
        self._received = self._made = 0

    def write(self, samples: FloatArray) -> FloatArray:
        self._received += len(samples)
        self._input = np.concatenate([self._input, samples.astype(np.float32)])
        return self._lay_down(None)

    def finish(self) -> FloatArray:
        """The rest: in all, received / speed samples, rounded."""
        length = round(self._received / self._speed)
        padding = np.zeros(4 * self._hop + 2 * self._reach, dtype=np.float32)
        self._input = np.concatenate([self._input, padding])
        missing = length - self._made
        return self._lay_down(length // self._hop + 2)[:missing]

    def _lay_down(self, steps: int | None) -> FloatArray:
        """Lay down all windows up to `steps`, or those for which there is input, and return what is done."""
        hop, reach = self._hop, self._reach
        end = self._begin + len(self._input)
        done = []
        while True:
            nominal = reach + round((self._step + 1) * hop * self._speed)
            if steps is not None:
                if self._step == steps:
                    break
                nominal = min(nominal, end - 3 * hop - reach)
            elif max(self._place + 3 * hop, nominal + reach + 2 * hop) > end:
                break
            faded = self._window * self._cut(self._place, 2 * hop)
            if self._step:  # the first hop is the silence in front
                done.append(self._half + faded[:hop])
            self._half = faded[hop:]
            continuation = self._cut(self._place + hop, 2 * hop)
            similar = np.correlate(self._cut(nominal - reach, 2 * reach + 2 * hop), continuation)
            self._place = nominal - reach + int(np.argmax(similar))
            self._step += 1
        passed = max(min(self._place, round((self._step + 1) * hop * self._speed)) - self._begin, 0)
        self._input = self._input[passed:]
        self._begin += passed
        made = np.concatenate(done) if done else np.zeros(0, dtype=np.float32)
        self._made += len(made)
        return made

    def _cut(self, position: int, length: int) -> FloatArray:
        return self._input[position - self._begin : position - self._begin + length]


class Edges:
    """Fades the first and the last 5 ms of a stream of unknown length, and adds a pause behind it.

    The last 5 ms are held back, since only the end tells that they were the last. Equal to what
    `finish_segment` does to the whole, except that it scales nothing.
    """

    def __init__(self, rate: int, pause: float) -> None:
        self._pause = np.zeros(round(pause * rate), dtype=np.float32)
        self._fade = np.linspace(0.0, 1.0, int(rate * FADE_SECONDS), dtype=np.float32)
        self._held = np.zeros(0, dtype=np.float32)
        self._started = False

    def write(self, samples: FloatArray) -> FloatArray:
        held = np.concatenate([self._held, samples])
        fade = len(self._fade)
        if len(held) < 2 * fade and not self._started:
            self._held = held
            return held[:0]
        if not self._started:
            self._started = True
            held[:fade] *= self._fade
        done = max(len(held) - fade, 0)
        self._held = held[done:]
        return held[:done]

    def finish(self) -> FloatArray:
        held = self._held
        fade = self._fade if self._started else np.linspace(0, 1, len(held) // 2, dtype=np.float32)
        if len(fade):
            if not self._started:
                held[: len(fade)] *= fade
            held[-len(fade) :] *= fade[::-1]
        return np.concatenate([held, self._pause])


def to_int16(samples: FloatArray) -> IntArray:
    """Full scale 1.0 becomes 32767; what lies beyond is clipped, never wrapped."""
    scaled: IntArray = np.rint(np.clip(samples, -1.0, 1.0) * 32767.0).astype(np.int16)
    return scaled


class Passing(io.RawIOBase):
    """A file that keeps only what nobody has taken yet: for streams without an end.

    What is written over bytes that have left, such as a length in a header, is lost.
    """

    def __init__(self) -> None:
        self._kept = bytearray()
        self._taken = self._position = 0

    def take(self) -> bytes:
        new = bytes(self._kept)
        self._kept.clear()
        self._taken += len(new)
        return new

    def write(self, data: Any) -> int:
        begin = self._position - self._taken
        lost = min(max(-begin, 0), len(data))
        if lost < len(data):
            place = begin + lost
            self._kept[place : place + len(data) - lost] = data[lost:]
        self._position += len(data)
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._taken + len(self._kept)}
        self._position = origin[whence] + offset
        return self._position

    def tell(self) -> int:
        return self._position


class Kept(io.BytesIO):
    """A file that keeps everything."""

    _taken = 0

    def take(self) -> bytes:
        with self.getbuffer() as buffer:
            new = bytes(buffer[self._taken :])
        self._taken += len(new)
        return new


class Encoder:
    """Encodes mono int16 samples of `rate` as they come, into a file of `file_rate`, both in Hz.

    `write` and `finish` return the bytes to send on now. `complete` is, after `finish`, the same audio as one
    file whose header also knows the length, which a stream cannot know when its first byte leaves; there is
    none with `endless`, which keeps nothing that it has returned.
    This base class is the `pcm` format: little-endian samples and nothing else.
    """

    def __init__(self, rate: int, file_rate: int, endless: bool = False) -> None:
        self.rate = file_rate
        self._file = Passing() if endless else Kept()
        self._resampler = (
            soxr.ResampleStream(rate, file_rate, 1, dtype="int16") if rate != file_rate else None
        )

    def write(self, samples: IntArray) -> bytes:
        self._append(self._resampler.resample_chunk(samples) if self._resampler else samples)
        return self._file.take()

    def finish(self) -> bytes:
        if self._resampler:
            self._append(self._resampler.resample_chunk(np.zeros(0, dtype=np.int16), last=True))
        self._close()
        return self._file.take()

    @property
    def complete(self) -> bytes:
        assert isinstance(self._file, Kept)  # noqa: S101
        return self._file.getvalue()

    def _append(self, samples: IntArray) -> None:
        self._file.write(samples.astype("<i2").tobytes())

    def _close(self) -> None:
        """Whatever the file wants when its last sample is written."""


class WavEncoder(Encoder):
    """One header, then samples. While streaming, both sizes say 0xFFFFFFFF, the usual mark for "unknown"."""

    def __init__(self, rate: int, file_rate: int, endless: bool = False) -> None:
        super().__init__(rate, file_rate, endless)
        self._file.write(self._header(0xFFFFFFFF, 0xFFFFFFFF))

    def _header(self, riff_size: int, data_size: int) -> bytes:
        mono, bits, frame = 1, 16, 2
        fmt = struct.pack("<HHIIHH", 1, mono, self.rate, self.rate * frame, frame, bits)
        riff = struct.pack("<4sI4s4sI", b"RIFF", riff_size, b"WAVE", b"fmt ", 16)
        return riff + fmt + struct.pack("<4sI", b"data", data_size)

    def _close(self) -> None:
        size = self._file.tell()
        self._file.seek(0)
        self._file.write(self._header(size - 8, size - 44))


# mp3 is constant bit rate (64 kbit/s at 22.05 kHz), so that a player can tell the length of a stream that has
# none in its header.
_SNDFILE: dict[Format, dict[str, Any]] = {
    "mp3": {
        "format": "MP3", "subtype": "MPEG_LAYER_III", "bitrate_mode": "CONSTANT", "compression_level": 0.6
    },
    "flac": {"format": "FLAC", "subtype": "PCM_16"},
    "opus": {"format": "OGG", "subtype": "OPUS"},
}  # fmt: skip


class SndfileEncoder(Encoder):
    """mp3, flac and opus through libsndfile, which rewrites its header in place when the file is closed."""

    def __init__(self, rate: int, file_rate: int, format: Format, endless: bool = False) -> None:
        super().__init__(rate, file_rate, endless)
        self._sound = soundfile.SoundFile(self._file, "w", file_rate, 1, **_SNDFILE[format])

    def _append(self, samples: IntArray) -> None:
        self._sound.write(samples)

    def _close(self) -> None:
        self._sound.close()


def file_rate(format: Format, rate: int) -> int:
    """The sample rate in Hz of a file for which none was asked. rate: that of the voice."""
    return OPUS_RATE if format == "opus" else rate


def encoder(format: Format, rate: int, rate_of_file: int | None = None, endless: bool = False) -> Encoder:
    rates = (rate, rate_of_file or file_rate(format, rate))
    if format == "pcm":
        return Encoder(*rates, endless)
    if format == "wav":
        return WavEncoder(*rates, endless)
    return SndfileEncoder(*rates, format, endless)
