"""`maya1-tts optimize` on the real Piper voice and on a SNAC with random weights."""

import dataclasses
import json
import math
import os
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from maya1_tts import cli
from maya1_tts.audio import FloatArray
from maya1_tts.engines.maya1.codec import SnacDecoder, load_decoder
from maya1_tts.engines.maya1.tiny import make_tiny_model
from maya1_tts.engines.onnx_session import Profile
from maya1_tts.engines.onnx_voice import JOE, OnnxVoiceEngine
from maya1_tts.optimize.export import export_decoder, torch_render
from maya1_tts.optimize.graph import decides_lengths, name_nodes, quantisable
from maya1_tts.optimize.judge import Bounds, write_if_good
from maya1_tts.optimize.quality import compare, log_mel_distance_db, snr_db
from maya1_tts.optimize.subject import SNAC_INPUTS, snac_feed, snac_subject
from maya1_tts.optimize.trt import Key, wrapper
from test_speech import SENTENCE, heard, speak, word_errors

LINES = (
    "My brother has three dogs and two very small cats.\n"
    "The river runs past the old mill and into the sea.\n"
    "We will meet again on Monday morning at ten.\n"
    "Nobody knew why the lights went out last night.\n"
)


def optimize(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr("sys.argv", ["maya1-tts", "optimize", *map(str, arguments), "--runs", "1"])
    return cli.main()


@pytest.fixture(scope="module")
def snac(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("tiny") / "maya1"
    make_tiny_model(folder)
    return folder / "snac"


@pytest.fixture(scope="module")
def decoder(snac: Path) -> SnacDecoder:
    return load_decoder(snac)


@pytest.fixture(scope="module")
def graph(decoder: SnacDecoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("graph") / "decoder_model.onnx"
    export_decoder(decoder, path)
    return path


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    path = tmp_path / "lines.txt"
    path.write_text(LINES)
    return path


def tone(seconds: float = 0.5, rate: int = 24000) -> FloatArray:
    random = np.random.default_rng(1)
    return (0.1 * random.standard_normal(int(seconds * rate))).astype(np.float32)


def test_measures_have_their_textbook_values() -> None:
    sound = tone()
    assert snr_db(sound, sound) == math.inf
    assert snr_db(sound, 1.1 * sound) == pytest.approx(20, abs=0.01)  # a tenth of the amplitude is 20 dB down
    assert log_mel_distance_db(sound, sound, 24000) == 0
    louder = (sound * 10 ** (1 / 20)).astype(np.float32)
    assert log_mel_distance_db(sound, louder, 24000) == pytest.approx(1, abs=0.01)
    assert log_mel_distance_db(sound, -sound, 24000) == 0  # phase is not for this measure
    muffled = np.convolve(sound, np.ones(8) / 8, "same").astype(np.float32)
    assert log_mel_distance_db(sound, muffled, 24000) > 5


def test_what_is_longer_or_no_number_is_not_alike() -> None:
    sound = tone()
    assert compare(sound, sound[:-1], 24000).log_mel_db == math.inf
    broken = sound.copy()
    broken[100] = np.nan
    difference = compare(sound, broken, 24000)
    assert (difference.snr_db, difference.log_mel_db) == (-math.inf, math.inf)


def test_the_exported_decoder_is_the_one_in_torch(decoder: SnacDecoder, graph: Path) -> None:
    session = onnxruntime.InferenceSession(graph)
    assert [value.name for value in session.get_inputs()] == SNAC_INPUTS
    assert [value.name for value in session.get_outputs()] == ["audio_values"]
    random = np.random.default_rng(3)
    for batch, frames in ((1, 1), (1, 23), (3, 7)):
        feeds = [snac_feed(random.integers(0, 4096, (frames, 7))) for _ in range(batch)]
        together = {name: np.concatenate([feed[name] for feed in feeds]) for name in SNAC_INPUTS}
        audio = session.run(None, together)[0]
        assert audio.shape == (batch, 1, 2048 * frames)
        for row, feed in zip(audio, feeds, strict=True):
            np.testing.assert_allclose(row.reshape(-1), torch_render(decoder)(feed), atol=1e-5)


def test_run_does_what_this_machine_can_and_says_what_it_cannot(
    snac: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert optimize(monkeypatch, "run", snac, tmp_path) == 0
    output = capsys.readouterr().out
    assert "[1/6] export" in output
    assert "[6/6] tensorrt from int8" in output
    report = json.loads((tmp_path / "optimize.json").read_text())
    steps = {step["step"]: step for step in report["steps"]}
    for step in ("export", "fp16", "int8", "int8-tensorrt"):
        assert steps[step]["status"] == "written", steps[step]
        assert (tmp_path / steps[step]["file"]).stat().st_size == steps[step]["bytes"]
        assert steps[step]["quality"]["snr_db"] > 12
    assert steps["fp16"]["bytes"] < 0.6 * steps["fp16"]["reference_bytes"]
    for step in ("tensorrt decoder_model-fp16", "tensorrt decoder_model-int8-tensorrt"):
        assert steps[step]["status"] == "not run"
        assert steps[step]["why"] == ["the package tensorrt is not installed"]
    assert "the package tensorrt is not installed" in (tmp_path / "optimize.md").read_text()
    assert "random codes" in report["note"]
    kinds = {node.op_type for node in onnx.load(tmp_path / "decoder_model-int8-tensorrt.onnx").graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= kinds


def test_tensorrt_alone_has_an_exit_code_of_its_own(
    graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert optimize(monkeypatch, "tensorrt", graph, tmp_path) == 4
    assert "not run; the package tensorrt is not installed" in capsys.readouterr().out


def test_a_result_beyond_the_bounds_is_not_put_into_place(
    graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "decoder_model-fp16.onnx").write_bytes(b"what was here before")
    assert optimize(monkeypatch, "fp16", graph, tmp_path, "--min-snr", "200") == 3
    assert "allowed: 200 and more" in capsys.readouterr().out
    assert (tmp_path / "decoder_model-fp16.onnx").read_bytes() == b"what was here before"
    assert sorted(os.listdir(tmp_path)) == ["decoder_model-fp16.onnx", "optimize.json", "optimize.md"]
    assert json.loads((tmp_path / "optimize.json").read_text())["steps"][0]["status"] == "refused"


def test_a_graph_that_says_something_else_is_refused(
    decoder: SnacDecoder, graph: Path, tmp_path: Path
) -> None:
    def turn_down(target: Path) -> None:
        model = onnx.load(graph)
        model.graph.node.append(onnx.helper.make_node("Mul", ["audio_values", "half"], ["quiet"]))
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(0.5), "half"))
        model.graph.output[0].name = "quiet"
        onnx.save(model, target)

    result = write_if_good(
        "test",
        tmp_path / "out.onnx",
        turn_down,
        torch_render(decoder),
        graph,
        snac_subject(None),
        Bounds(60, 9),
        1,
    )
    assert result.status == "refused"
    assert result.why == ["SNR 6.0 dB; allowed: 60 and more"]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("step", ["fp16", "int8"])
def test_a_smaller_voice_keeps_its_timing_and_is_understood(
    step: str, lines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    voice = tmp_path / "jim.onnx"
    voice.symlink_to(JOE)
    (tmp_path / "jim.onnx.json").write_bytes(Path(f"{JOE}.json").read_bytes())
    models = tmp_path / "models"
    assert optimize(monkeypatch, step, voice, models, "--data", lines) == 0
    (result,) = json.loads((models / "optimize.json").read_text())["steps"]
    assert result["bytes"] < result["reference_bytes"]
    assert result["quality"]["wer"] <= result["quality"]["wer_reference"] + 0.05
    # The service finds it in MODEL_DIR like any other voice.
    engine = OnnxVoiceEngine(models, workers=1, threads=1)
    assert list(engine.voices) == ["joe", f"jim-{step}"]
    changed, original = speak(engine, SENTENCE, f"jim-{step}")[0], speak(engine, SENTENCE)[0]
    assert len(changed) == len(original)
    assert 10 < snr_db(original, changed) < 80  # not the same file under another name
    assert word_errors(SENTENCE.lower().rstrip(".").split(), heard(changed)) <= 2
    engine.close()


def test_8_bits_stay_away_from_the_timing_and_from_the_waveform() -> None:
    model = onnx.load(JOE)
    name_nodes(model)
    chosen = quantisable(model, ("/flow/",))
    assert "/dec/resblocks.0/convs.0/Conv" in chosen
    assert not [name for name in chosen if not name.startswith("/dec/")]
    assert not [name for name in chosen if "resblocks.6" in name or "conv_post" in name]
    assert any(name.startswith("/flow/") for name in quantisable(model, ()))
    lengths = decides_lengths(model)
    assert any(name.startswith("/dp/") for name in lengths)
    assert not any(name.startswith(("/flow/", "/dec/")) for name in lengths)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("fp16", "/nonexistent.onnx"), "/nonexistent.onnx cannot be read as an ONNX graph"),
        (("export", "/nonexistent.onnx"), "/nonexistent.onnx cannot be read as an ONNX graph"),
        (("int8", "FOLDER"), "is a folder; allowed: an ONNX graph"),
        (("fp16", "OTHER"), "has the inputs x; allowed: a Piper voice"),
        (("fp16", "GRAPH", "--data", "CODES"), "holds (5, 3); allowed: [frames, 7]"),
    ],
)
def test_what_it_cannot_work_on_is_refused_by_name(
    arguments: tuple[str, ...],
    message: str,
    graph: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    value = onnx.helper.make_tensor_value_info
    other = onnx.helper.make_graph(
        [onnx.helper.make_node("Neg", ["x"], ["y"])], "other", [value("x", 1, [1])], [value("y", 1, [1])]
    )
    onnx.save(onnx.helper.make_model(other), tmp_path / "other.onnx")
    np.save(tmp_path / "codes.npy", np.zeros((5, 3)))
    real = {
        "FOLDER": tmp_path, "OTHER": tmp_path / "other.onnx", "CODES": tmp_path / "codes.npy", "GRAPH": graph
    }  # fmt: skip
    step, source, *options = (real.get(word, word) for word in arguments)
    assert optimize(monkeypatch, step, source, tmp_path / "out", *options) == 2
    assert message in capsys.readouterr().err


def test_an_engine_is_known_by_all_that_it_depends_on(graph: Path) -> None:
    sizes = {"codes": (1, 4)}
    key = Key("90", "11.0.0.1", "580", "ab", Profile(sizes, sizes, sizes))
    changes = {
        "compute_capability": "89", "tensorrt": "11.0.0.2", "driver_branch": "535", "model_sha256": "ac",
        "profile": Profile(sizes, sizes, {"codes": (2, 4)}),
    }  # fmt: skip
    others = [dataclasses.replace(key, **{name: value}) for name, value in changes.items()]  # type: ignore[arg-type]
    assert len({one.digest for one in [key, *others]}) == 6
    node, source = wrapper(graph, "x.engine", key), onnx.load(graph).graph
    assert list(node.graph.input) == list(source.input)
    assert list(node.graph.output) == list(source.output)
    attributes = {one.name: onnx.helper.get_attribute_value(one) for one in node.graph.node[0].attribute}
    assert attributes["ep_cache_context"] == b"x.engine"
    assert attributes["source"] == b"TensorrtExecutionProvider"
