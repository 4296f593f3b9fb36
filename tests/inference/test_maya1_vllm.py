"""The vLLM backend against a stand-in of vLLM's interface: no vLLM and no GPU here, so nothing of vLLM
itself."""

import asyncio
import enum
import sys
from collections.abc import AsyncGenerator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from maya1_tts.engines.maya1.acoustic import Sampling
from maya1_tts.engines.maya1.vllm_model import VllmModel
from maya1_tts.errors import ConfigError

SAMPLING = Sampling(3, 0.4, 0.9, 1.1, 28, 700)


class RequestOutputKind(enum.Enum):
    CUMULATIVE = 0
    DELTA = 1


class StandInEngine:
    """What this service uses of AsyncLLM: it draws the numbers from 0 on, two at a time."""

    def __init__(self, arguments: SimpleNamespace) -> None:
        self.arguments = arguments
        self.calls: list[tuple[Any, Any, str]] = []
        self.aborted: list[str] = []
        self.running = True

    @classmethod
    def from_engine_args(cls, arguments: SimpleNamespace) -> "StandInEngine":
        if not Path(arguments.model).is_dir():
            raise ValueError("no such model")
        return cls(arguments)

    async def generate(self, prompt: Any, params: Any, request_id: str) -> AsyncGenerator[Any, None]:
        self.calls.append((prompt, params, request_id))
        try:
            for token in range(0, params.max_tokens, 2):
                yield SimpleNamespace(outputs=[SimpleNamespace(token_ids=[token, token + 1])])
                yield SimpleNamespace(outputs=[SimpleNamespace(token_ids=[])])
                await asyncio.sleep(0)
        except GeneratorExit:
            self.aborted.append(request_id)
            raise

    def shutdown(self) -> None:
        self.running = False


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    modules = {
        "vllm": {"SamplingParams": SimpleNamespace},
        "vllm.engine": {},
        "vllm.engine.arg_utils": {"AsyncEngineArgs": SimpleNamespace},
        "vllm.sampling_params": {"RequestOutputKind": RequestOutputKind},
        "vllm.v1": {},
        "vllm.v1.engine": {},
        "vllm.v1.engine.async_llm": {"AsyncLLM": StandInEngine},
    }
    for name, content in modules.items():
        module = ModuleType(name)
        module.__dict__.update(content)
        monkeypatch.setitem(sys.modules, name, module)
    for name in ("HF_HUB_OFFLINE", "VLLM_NO_USAGE_STATS"):
        monkeypatch.setenv(name, "")  # so that what the backend sets is undone


@pytest.fixture
def model(stand_in: None, tmp_path: Path) -> VllmModel:
    return VllmModel(tmp_path, max_batch=12, gpu_memory=0.7)


def test_the_engine_is_offline_and_bounded(model: VllmModel, tmp_path: Path) -> None:
    given = vars(model._engine.arguments)
    wanted = {
        "model": str(tmp_path), "max_num_seqs": 12, "gpu_memory_utilization": 0.7, "max_model_len": 3072,
        "dtype": "bfloat16", "trust_remote_code": False, "skip_tokenizer_init": True,
    }  # fmt: skip
    assert wanted.items() <= given.items()


def test_a_request_says_how_to_sample_and_gets_its_tokens(model: VllmModel) -> None:
    async def speak() -> list[int]:
        return [token async for some in model.generate([5, 6], SAMPLING) for token in some]

    assert asyncio.run(speak()) == list(range(700))
    asyncio.run(speak())
    (prompt, params, first), (_, _, second) = model._engine.calls
    assert prompt == {"prompt_token_ids": [5, 6]}
    wanted = {
        "seed": 3, "temperature": 0.4, "top_p": 0.9, "repetition_penalty": 1.1, "min_tokens": 28,
        "max_tokens": 700, "stop_token_ids": [128258], "ignore_eos": True, "detokenize": False,
        "output_kind": RequestOutputKind.DELTA,
    }  # fmt: skip
    assert vars(params) == wanted
    assert first != second


def test_closing_the_iterator_aborts_the_request(model: VllmModel) -> None:
    async def leave() -> None:
        tokens = model.generate([5], SAMPLING)
        assert await anext(tokens) == [0, 1]
        await tokens.aclose()

    asyncio.run(leave())
    assert model._engine.aborted == [model._engine.calls[0][2]]


def test_closing_the_model_ends_vllm(model: VllmModel) -> None:
    model.close()
    assert not model._engine.running


def test_what_vllm_cannot_load_is_refused(stand_in: None, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"vLLM cannot load .*no such model"):
        VllmModel(tmp_path / "nothing", 1, 0.5)
