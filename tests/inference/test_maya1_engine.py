"""The engine around the acoustic model: windows, vocoder, edges, speed, and tokens that are wrong."""

import asyncio
import contextlib
import functools
from collections.abc import AsyncGenerator, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from maya1_tts.audio import PEAK, FloatArray
from maya1_tts.config import Settings
from maya1_tts.engine import Delivery, Segment
from maya1_tts.engines import load_engine
from maya1_tts.engines.maya1.acoustic import Sampling
from maya1_tts.engines.maya1.codec import _fold
from maya1_tts.engines.maya1.engine import Maya1Engine
from maya1_tts.engines.maya1.runaway import LoopDetector
from maya1_tts.engines.maya1.tokens import AUDIO_END, CODES, FIRST_CODE, FRAME_SAMPLES, FrameReader
from maya1_tts.engines.maya1.vocoder import OnnxVocoder, TorchVocoder, Vocoder, VocoderStage, Windows
from maya1_tts.engines.onnx_session import CPU
from maya1_tts.errors import ApiError, ConfigError
from maya1_tts.metrics import Metrics
from snac import SNAC

HELLO = Segment("Hello there.", 0.15, 1.0)


def settings(model_dir: Path, **others: Any) -> Settings:
    fields = {"environment": "development", "engine": "maya1", "maya1_device": "cpu", "maya1_max_batch": 4}
    return Settings(model_dir=model_dir, **(fields | others))


@pytest.fixture(scope="module")
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture(scope="module")
def engine(model_dir: Path, metrics: Metrics) -> Iterator[Maya1Engine]:
    made = load_engine(settings(model_dir), metrics)
    assert isinstance(made, Maya1Engine)
    yield made
    made.close()


@pytest.fixture(scope="module")
def vocoder(model_dir: Path) -> TorchVocoder:
    return TorchVocoder(model_dir / "maya1" / "snac", "cpu")


def value(metrics: Metrics, name: str, **labels: str) -> float:
    return metrics.registry.get_sample_value(f"maya1_tts_{name}", labels) or 0.0


async def blocks(engine: Maya1Engine, segment: Segment, **delivery: Any) -> list[FloatArray]:
    return [block async for block in engine.stream(segment, Delivery("nora", **delivery))]


def say(engine: Maya1Engine, segment: Segment = HELLO, **delivery: Any) -> FloatArray:
    return np.concatenate(asyncio.run(blocks(engine, segment, **delivery)))


def random_frames(count: int, seed: int = 0) -> list[tuple[int, ...]]:
    codes = np.random.default_rng(seed).integers(0, CODES, (count, 7))
    return [tuple(int(code) for code in frame) for frame in codes]


def decoded(vocoder: Vocoder, frames: Sequence[tuple[int, ...]]) -> FloatArray:
    return vocoder.decode(np.array([frames], dtype=np.int64))[0]


# ---- windows and vocoder -----------------------------------------------------------------------------------


@pytest.mark.parametrize("hop", [1, 2, 5])
@pytest.mark.parametrize("count", [1, 3, 4, 5, 7, 8, 13])
def test_windows_give_the_samples_of_the_whole(vocoder: TorchVocoder, hop: int, count: int) -> None:
    frames, windows = random_frames(count), Windows(hop)
    cut = [window for frame in frames if (window := windows.add(frame))]
    if last := windows.finish():
        cut.append(last)
    parts = [
        decoded(vocoder, window.frames)[window.skip * FRAME_SAMPLES :][: window.keep * FRAME_SAMPLES]
        for window in cut
    ]
    whole = decoded(vocoder, frames)
    assert sum(len(part) for part in parts) == len(whole) == count * FRAME_SAMPLES
    assert np.abs(np.concatenate(parts) - whole).max() < 2e-6
    assert max(len(window.frames) for window in cut) <= hop + 6


def test_the_first_sound_needs_four_frames_and_later_windows_seven() -> None:
    windows = Windows(1)
    sizes = [len(window.frames) if (window := windows.add(frame)) else 0 for frame in random_frames(9)]
    assert sizes == [0, 0, 0, 4, 5, 6, 7, 7, 7]


def test_a_compiled_vocoder_speaks_as_the_plain_one(
    vocoder: TorchVocoder, model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = model_dir / "maya1" / "snac"
    # Traced for real, but run by torch itself: the default backend calls a C++ compiler for a minute.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    fast = TorchVocoder(folder, "cpu", compile=True)
    frames = np.array([random_frames(9)], dtype=np.int64)
    assert np.abs(fast.decode(frames) - vocoder.decode(frames)).max() < 1e-5
    monkeypatch.setattr(torch, "compile", lambda decoder, **_: lambda *codes: decoder(*codes) * 0.9)
    with pytest.raises(ConfigError, match="compiled samples differ by"):
        TorchVocoder(folder, "cpu", compile=True)


def test_an_exported_vocoder_speaks_as_the_torch_one(vocoder: TorchVocoder, tmp_path: Path) -> None:
    codes = tuple(torch.zeros((1, 5 * k), dtype=torch.int64) for k in (1, 2, 4))
    names = [f"audio_codes.{level}" for level in range(3)]
    axes = {name: {0: "batch", 1: f"n{level}"} for level, name in enumerate(names)}
    torch.onnx.export(
        vocoder._decoder,
        codes,
        str(tmp_path / "decoder_model.onnx"),
        input_names=names,
        output_names=["audio_values"],
        dynamic_axes=axes | {"audio_values": {0: "batch", 2: "samples"}},
        dynamo=False,
    )
    exported = OnnxVocoder(tmp_path, CPU, threads=1, max_batch=8, max_frames=7)
    batch = np.array([random_frames(7, seed) for seed in range(3)], dtype=np.int64)
    assert np.abs(exported.decode(batch) - vocoder.decode(batch)).max() < 1e-5


def test_a_graph_that_draws_its_noise_speaks_as_the_torch_one(model_dir: Path, tmp_path: Path) -> None:
    """SNAC as the package has it, exported: what public files look like."""

    class Plain(torch.nn.Module):
        def __init__(self, snac: SNAC) -> None:
            super().__init__()
            self.snac = snac

        def forward(self, *codes: torch.Tensor) -> torch.Tensor:
            return self.snac.decode(list(codes))

    folder = model_dir / "maya1" / "snac"
    names = [f"audio_codes.{level}" for level in range(3)]
    plain = Plain(SNAC.from_pretrained(str(folder)))
    _fold(plain)  # SNAC's scripted Snake cannot be exported by this PyTorch
    torch.onnx.export(
        plain,
        tuple(torch.zeros((1, 5 * k), dtype=torch.int64) for k in (1, 2, 4)),
        str(tmp_path / "decoder_model.onnx"),
        input_names=names,
        output_names=["audio_values"],
        dynamic_axes={name: {0: "batch", 1: f"n{level}"} for level, name in enumerate(names)},
        dynamo=False,
    )
    kinds = [node.op_type for node in onnx.load(tmp_path / "decoder_model.onnx").graph.node]
    assert kinds.count("RandomNormalLike") == 4
    public = OnnxVocoder(tmp_path, CPU, threads=1, max_batch=8, max_frames=7)
    frames = np.array([random_frames(5, seed) for seed in range(2)], dtype=np.int64)
    assert np.abs(public.decode(frames) - TorchVocoder(folder, "cpu").decode(frames)).max() < 1e-5


def test_an_exported_vocoder_that_draws_noise_is_refused(tmp_path: Path) -> None:
    class Noisy(torch.nn.Module):
        def forward(self, codes: torch.Tensor) -> torch.Tensor:
            return torch.randn_like(codes.float()) * codes

    with pytest.raises(ConfigError, match=r"decoder_model\.onnx cannot be used.*MAYA1_TTS_MAYA1_VOCODER"):
        OnnxVocoder(tmp_path, CPU, threads=1, max_batch=8, max_frames=7)
    example = torch.zeros((1, 5), dtype=torch.int64)
    torch.onnx.export(Noisy(), (example,), str(tmp_path / "decoder_model.onnx"), dynamo=False)
    with pytest.raises(ConfigError, match="draws new noise in each run"):
        OnnxVocoder(tmp_path, CPU, threads=1, max_batch=8, max_frames=7)


class FullGpu:
    """Stand-in for a vocoder on a GPU without room for more than `room` windows at once."""

    name = "full"

    def __init__(self, vocoder: Vocoder, room: int) -> None:
        self._vocoder, self.room = vocoder, room

    def decode(self, frames: Any) -> FloatArray:
        if len(frames) > self.room:
            raise torch.OutOfMemoryError("stand-in")
        return self._vocoder.decode(frames)


def decode_all(stage: VocoderStage, streams: Sequence[list[tuple[int, ...]]]) -> list[Any]:
    async def one(frames: list[tuple[int, ...]]) -> FloatArray:
        windows = Windows(10_000)
        for frame in frames:
            windows.add(frame)
        window = windows.finish()
        assert window
        return await stage.decode(window)

    async def run() -> list[Any]:
        with contextlib.ExitStack() as stack:
            for _ in streams:
                stack.enter_context(stage.stream())
            return await asyncio.gather(*(one(frames) for frames in streams), return_exceptions=True)

    return asyncio.run(run())


def test_windows_of_all_streams_are_decoded_together(vocoder: TorchVocoder) -> None:
    sizes: list[int] = []
    stage = VocoderStage(vocoder, 4, lambda windows, waited: sizes.append(windows))
    streams = [random_frames(3, seed) for seed in range(6)] + [random_frames(2, 9)]
    made = decode_all(stage, streams)
    stage.close()
    for frames, samples in zip(streams, made, strict=True):
        assert np.array_equal(samples[-FRAME_SAMPLES:], decoded(vocoder, frames)[-FRAME_SAMPLES:])
    assert sum(sizes) == 7
    assert max(sizes) == 4  # as many as are allowed, and never two lengths together


def test_a_full_gpu_decodes_smaller_batches_and_refuses_only_what_never_fits(vocoder: TorchVocoder) -> None:
    sizes: list[int] = []
    full = FullGpu(vocoder, room=2)
    stage = VocoderStage(full, 8, lambda windows, waited: sizes.append(windows))
    streams = [random_frames(3, seed) for seed in range(5)]
    made = decode_all(stage, streams)
    assert all(isinstance(samples, np.ndarray) for samples in made)
    full.room = 0
    (refused,) = decode_all(stage, streams[:1])
    assert isinstance(refused, ApiError)
    assert refused.code == "out_of_memory"
    full.room = 2
    assert len(decode_all(stage, streams[:1])[0]) > 0
    stage.close()
    assert max(sizes) <= 2


# ---- speech ------------------------------------------------------------------------------------------------


def test_a_stream_is_what_the_vocoder_makes_of_all_frames_at_once(
    engine: Maya1Engine, vocoder: TorchVocoder
) -> None:
    async def tokens() -> list[int]:
        prompt, sampling = engine._prompt(HELLO, Delivery("nora"))
        return [token async for some in engine._acoustic.generate(prompt, sampling) for token in some]

    drawn = asyncio.run(tokens())
    frames = list(FrameReader().read(token for token in drawn if token != AUDIO_END))
    whole = decoded(vocoder, frames) * np.float32(PEAK)
    spoken = say(engine)
    pause = round(0.15 * 24000)
    assert len(spoken) == len(whole) + pause
    assert np.abs(spoken[120 : len(whole) - 120] - whole[120:-120]).max() < 2e-6


def test_speech_comes_in_pieces_and_equal_requests_are_equal(engine: Maya1Engine, metrics: Metrics) -> None:
    async def crowd() -> list[list[FloatArray]]:
        return await asyncio.gather(*(blocks(engine, HELLO, seed=seed) for seed in (1, 1, 2, 3)))

    alone = asyncio.run(blocks(engine, HELLO, seed=1))
    assert len(alone) > 1
    first, again, other, _ = (np.concatenate(one) for one in asyncio.run(crowd()))
    assert np.array_equal(first, np.concatenate(alone))
    assert np.array_equal(first, again)
    assert len(other) != len(first) or not np.array_equal(first, other)
    assert value(metrics, "acoustic_batch_size_count") > value(
        metrics, "acoustic_batch_size_bucket", le="2.0"
    )
    assert value(metrics, "acoustic_tokens_total") > 100
    assert value(metrics, "vocoder_batch_size_sum") > value(metrics, "vocoder_batch_size_count") > 0
    assert value(metrics, "vocoder_wait_seconds_count") == value(metrics, "vocoder_batch_size_count")


def test_description_voice_and_sampling_change_the_speech(engine: Maya1Engine) -> None:
    plain = say(engine)
    changes: list[dict[str, Any]] = [
        {"description": "Whispering."}, {"seed": 5}, {"temperature": 0.9}, {"top_p": 0.3},
        {"repetition_penalty": 1.5},
    ]  # fmt: skip

    async def all_changed() -> list[list[FloatArray]]:
        return await asyncio.gather(*(blocks(engine, HELLO, **change) for change in changes))

    for change, parts in zip(changes, asyncio.run(all_changed()), strict=True):
        changed = np.concatenate(parts)
        assert len(changed) != len(plain) or not np.array_equal(changed, plain), change


def test_segments_join_without_a_click(engine: Maya1Engine) -> None:
    segments = engine.segments("One sentence.\nAnother one here.\nAnd the last.", Delivery("nora"))
    spoken = [say(engine, segment) for segment in segments]
    joined = np.concatenate(spoken)
    inside = max(float(np.abs(np.diff(part[240:-240])).max()) for part in spoken)
    at = 0
    for part in spoken:
        assert part[0] == part[-1] == 0.0
        assert np.abs(np.diff(joined[max(0, at - 240) : at + 240])).max() <= inside
        at += len(part)
    assert np.abs(joined).max() <= PEAK


@pytest.mark.parametrize("speed", [0.25, 0.5, 1.7, 4.0])
def test_speed_changes_the_duration_and_nothing_else_of_the_request(
    engine: Maya1Engine, speed: float
) -> None:
    segment = Segment("Hello there.", 0.0, 1.0)
    assert len(say(engine, segment, speed=speed)) == round(len(say(engine, segment)) / speed)


def test_a_closed_stream_draws_no_more_tokens(engine: Maya1Engine, metrics: Metrics) -> None:
    async def leave() -> float:
        stream = engine.stream(Segment("word " * 30, 0.0, 10.0), Delivery("nora"))
        await anext(stream)
        await stream.aclose()
        drawn = value(metrics, "acoustic_batch_size_sum")
        await blocks(engine, HELLO)
        return value(metrics, "acoustic_batch_size_sum") - drawn

    # All that was drawn since belongs to the second one, but for a step under way when the first was closed.
    begin = value(metrics, "acoustic_batch_size_sum")
    say(engine)
    alone = value(metrics, "acoustic_batch_size_sum") - begin
    assert asyncio.run(leave()) <= alone + 1


def test_descriptions_that_leave_no_room_are_refused_before_anything_is_spoken(engine: Maya1Engine) -> None:
    long = Delivery("design", description="é" * 600)
    with pytest.raises(ApiError) as caught:
        engine.segments("word " * 60, long)
    assert (caught.value.status, caught.value.code, caught.value.param) == (
        400,
        "input_too_long",
        "description",
    )
    with pytest.raises(ApiError, match="'description' is missing"):
        engine.segments("Hello.", Delivery("design"))


# ---- tokens that are wrong
# -----------------------------------------------------------------------------------


class Script:
    """Stand-in for an acoustic model: draws the tokens that a test gives it."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self._tokens = tokens
        self.drawn = 0

    async def generate(self, prompt: Sequence[int], sampling: Sampling) -> AsyncGenerator[list[int], None]:
        for token in self._tokens:
            self.drawn += 1
            yield [token]

    def close(self) -> None:
        pass


def tokens_of(frames: Sequence[tuple[int, ...]]) -> list[int]:
    return [FIRST_CODE + slot * CODES + code for frame in frames for slot, code in enumerate(frame)]


@pytest.fixture
def scripted(engine: Maya1Engine, monkeypatch: pytest.MonkeyPatch) -> Any:
    def script(tokens: Sequence[int]) -> Script:
        made = Script(tokens)
        monkeypatch.setattr(engine, "_acoustic", made)
        return made

    return script


def test_a_lost_token_is_counted_and_costs_a_frame(
    engine: Maya1Engine, metrics: Metrics, scripted: Any
) -> None:
    before = value(metrics, "token_resyncs_total")
    tokens = [*tokens_of(random_frames(10)), AUDIO_END]
    del tokens[30]
    scripted(tokens)
    assert len(say(engine, Segment("Hi.", 0.0, 1.0))) == 9 * FRAME_SAMPLES
    assert value(metrics, "token_resyncs_total") == before + 1


@pytest.mark.parametrize("tokens", [[42] * 200, [AUDIO_END], [FIRST_CODE, AUDIO_END]])
def test_tokens_that_are_no_audio_are_an_error(engine: Maya1Engine, scripted: Any, tokens: list[int]) -> None:
    script = scripted(tokens)
    with pytest.raises(ApiError) as caught:
        say(engine)
    assert (caught.value.status, caught.value.code) == (500, "bad_tokens")
    assert script.drawn <= 72


def test_speech_that_never_ends_is_ended_and_counted(
    engine: Maya1Engine, metrics: Metrics, scripted: Any, caplog: pytest.LogCaptureFixture
) -> None:
    before = value(metrics, "runaways_total", reason="length")
    scripted(tokens_of(random_frames(20)))  # as many as were asked for, and no end
    spoken = say(engine, Segment("Hi.", 0.0, 1.0))
    assert len(spoken) == 20 * FRAME_SAMPLES
    assert spoken[-1] == 0.0
    assert value(metrics, "runaways_total", reason="length") == before + 1
    assert "speech did not end by itself" in caplog.text


@pytest.mark.parametrize("period", [1, 3, 8])
def test_speech_that_goes_round_in_circles_is_ended(
    engine: Maya1Engine, metrics: Metrics, scripted: Any, period: int
) -> None:
    before = value(metrics, "runaways_total", reason="loop")
    script = scripted(tokens_of(random_frames(10) + random_frames(period, 1) * 200))
    spoken = say(engine, Segment("Hi.", 0.0, 1.0))
    assert len(spoken) == (10 + period + 35) * FRAME_SAMPLES
    assert script.drawn == (10 + period + 35) * 7
    assert value(metrics, "runaways_total", reason="loop") == before + 1


def test_speech_that_repeats_itself_now_and_then_is_no_loop() -> None:
    loop = LoopDetector()
    phrase = random_frames(20)
    assert not any(loop.add(frame) for _ in range(20) for frame in phrase)
    assert not any(loop.add(frame) for frame in phrase[:1] * 30)


# ---- settings
# ------------------------------------------------------------------------------------------------


def test_what_changes_the_sound_changes_the_revision(model_dir: Path, engine: Maya1Engine) -> None:
    def revision(**others: Any) -> str:
        made = load_engine(settings(model_dir, **others))
        made.close()
        return made.voices["nora"].revision

    assert revision() == engine.voices["nora"].revision
    assert revision(maya1_constrain_tokens=False) != revision()
    assert revision(maya1_hop_frames=4) != revision()


def test_random_weights_are_refused_in_production(model_dir: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"tiny model with random weights.*MAYA1_TTS_ENVIRONMENT='production'"
    ):
        load_engine(settings(model_dir, environment="production"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_default_device_is_refused(model_dir: Path) -> None:
    with pytest.raises(ConfigError, match="MAYA1_TTS_MAYA1_DEVICE='cuda', but PyTorch sees no GPU"):
        load_engine(settings(model_dir, maya1_device="cuda"))


def test_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"maya1/SHA256SUMS cannot be read"):
        load_engine(settings(tmp_path))
