"""The acoustic model in transformers: one running batch, requests that join and leave it, and equal
tokens."""

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import wait_for
from maya1_tts.engines.maya1 import transformers_model
from maya1_tts.engines.maya1.acoustic import Sampling
from maya1_tts.engines.maya1.tokens import AUDIO_END, CODES, FIRST_CODE
from maya1_tts.engines.maya1.transformers_model import Rows, TransformersModel
from maya1_tts.errors import ApiError, ConfigError
from transformers import LlamaForCausalLM


def sampling(seed: int, min_tokens: int = 28, max_tokens: int = 140, **others: float) -> Sampling:
    fields: dict[str, Any] = {"temperature": 0.4, "top_p": 0.9, "repetition_penalty": 1.1} | others
    return Sampling(seed=seed, min_tokens=min_tokens, max_tokens=max_tokens, **fields)


def prompt(number: int) -> list[int]:
    return [128259, 128000, *range(40 + number, 60 + 5 * number), 128009, 128260, 128261, 128257]


class Steps:
    """Counts the rows of each step, and can hold the model's thread before the next one."""

    def __init__(self) -> None:
        self.rows: list[int] = []

    def __call__(self, rows: int) -> None:
        self.rows.append(rows)


@pytest.fixture(scope="module")
def steps() -> Steps:
    return Steps()


@pytest.fixture(scope="module")
def model(model_dir: Path, steps: Steps) -> Iterator[TransformersModel]:
    made = TransformersModel(model_dir / "maya1" / "model", "cpu", 8, True, False, steps)
    yield made
    made.close()


async def speak(model: TransformersModel, number: int, how: Sampling | None = None) -> list[int]:
    return [token async for some in model.generate(prompt(number), how or sampling(number)) for token in some]


def test_tokens_are_frames_and_end_by_the_stop_token(model: TransformersModel) -> None:
    spoken = [asyncio.run(speak(model, number, sampling(number, 28, 700))) for number in range(3)]
    for tokens in spoken:
        *audio, last = tokens
        assert last == AUDIO_END or len(tokens) == 700
        assert len(audio) >= 28
        assert all((token - FIRST_CODE) // CODES == place % 7 for place, token in enumerate(audio[:693]))
    assert any(tokens[-1] == AUDIO_END for tokens in spoken)


def test_a_request_gets_the_same_tokens_alone_and_in_any_company(
    model: TransformersModel, steps: Steps
) -> None:
    alone = [asyncio.run(speak(model, number)) for number in range(6)]
    before = len(steps.rows)

    async def together(numbers: list[int], stagger: int) -> list[list[int]]:
        started: list[asyncio.Task[list[int]]] = []
        for number in numbers:
            started.append(asyncio.create_task(speak(model, number)))
            joined = len(steps.rows) + stagger
            while len(steps.rows) < joined and not all(task.done() for task in started):
                await asyncio.sleep(0)
        return await asyncio.gather(*started)

    assert asyncio.run(together([0, 1, 2, 3, 4, 5], 0)) == alone
    assert max(steps.rows[before:]) == 6
    assert asyncio.run(together([5, 3, 1], 9)) == [alone[5], alone[3], alone[1]]
    assert len({tuple(tokens) for tokens in alone}) == 6


def test_rows_that_idle_beside_others_never_fill_up(model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transformers_model, "CONTEXT_TOKENS", 192)  # soon full, if idle rows filled up
    model = TransformersModel(model_dir / "maya1" / "model", "cpu", 1, True, False, lambda rows: None)
    try:
        for number in range(4):
            assert len(asyncio.run(speak(model, number, sampling(number, 105, 105)))) == 105
    finally:
        model.close()


def test_company_does_not_change_a_bit_of_the_logits(
    model: TransformersModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor] = []
    real = model._rows.sample

    def sample(logits: torch.Tensor, rows: slice) -> torch.Tensor:
        if rows.start == 0:
            seen.append(logits[0].clone())
        return real(logits, rows)

    monkeypatch.setattr(model._rows, "sample", sample)

    async def first_of(others: int) -> None:
        first = model.generate(prompt(0), sampling(0, 140, 140))
        await anext(first)  # so that it has the first row
        company = [asyncio.create_task(speak(model, number)) for number in range(1, others + 1)]
        async for _ in first:
            pass
        await asyncio.gather(*company)

    asyncio.run(first_of(0))
    alone = seen[:140]
    seen.clear()
    asyncio.run(first_of(5))
    assert all(torch.equal(one, other) for one, other in zip(alone, seen[:140], strict=True))


def test_seeds_and_sampling_decide(model: TransformersModel) -> None:
    first, again, other = (asyncio.run(speak(model, 1, sampling(seed))) for seed in (1, 1, 2))
    assert first == again != other
    greedy = [asyncio.run(speak(model, 1, sampling(seed, temperature=0.0))) for seed in (1, 2)]
    assert greedy[0] == greedy[1]
    assert asyncio.run(speak(model, 1, sampling(1, 70, 70)))[-1] != AUDIO_END  # no end before min_tokens


def test_the_first_token_is_what_the_model_says(model: TransformersModel, model_dir: Path) -> None:
    """Against transformers' own forward pass and a plain reading of the probabilities, without a batch or
    cache."""
    reference = LlamaForCausalLM.from_pretrained(model_dir / "maya1" / "model", dtype=torch.float32)
    greedy = sampling(0, temperature=0.0, repetition_penalty=1.0, max_tokens=28)
    tokens = asyncio.run(speak(model, 3, greedy))
    sequence = prompt(3)
    with torch.inference_mode():
        for place, token in enumerate(tokens):
            logits = reference(torch.tensor([sequence])).logits[0, -1]
            first = FIRST_CODE + place % 7 * CODES
            assert token == first + int(logits[first : first + CODES].argmax())
            sequence.append(token)


def test_sampling_keeps_to_top_p_penalty_and_temperature() -> None:
    rows = Rows(1, torch.device("cpu"), constrain=False)
    logits = torch.full((1, 156_960), -100.0)
    for token, odds in {10: 0.5, 11: 0.3, 12: 0.15, 13: 0.05}.items():
        logits[0, token] = torch.tensor(odds).log() + 10

    def drawn(**how: float) -> set[int]:
        made = set()
        for seed in range(200):
            rows.join(0, torch.tensor([12]), sampling(seed, 0, 10, **how))
            made.add(int(rows.sample(logits, slice(0, 1))))
        return made

    plain = {"temperature": 1.0, "top_p": 1.0, "repetition_penalty": 1.0}
    assert drawn(**plain) == {10, 11, 12, 13}
    assert drawn(**plain | {"top_p": 0.9}) == {10, 11, 12}
    assert drawn(**plain | {"top_p": 0.75}) == {10, 11}
    assert drawn(**plain | {"temperature": 0.0}) == {10}
    assert drawn(**plain | {"repetition_penalty": 2.0}) == {10, 11, 13}  # 12 was in the prompt


def test_closing_the_iterator_stops_generation_within_one_step(
    model: TransformersModel, steps: Steps
) -> None:
    async def leave_early() -> int:
        tokens = model.generate(prompt(0), sampling(0, 1400, 1400))
        await anext(tokens)
        await anext(tokens)
        await tokens.aclose()
        closed = len(steps.rows)
        await speak(model, 1, sampling(1, 28, 28))
        return closed

    closed = asyncio.run(leave_early())
    # The second request has its steps to itself, but for the one that was under way.
    assert sum(rows > 1 for rows in steps.rows[closed:]) <= 1
    assert len(steps.rows) - closed <= 28 + 1


def test_a_request_that_is_cancelled_before_its_turn_is_never_run(model_dir: Path) -> None:
    steps = Steps()
    model = TransformersModel(model_dir / "maya1" / "model", "cpu", 1, True, False, steps)

    async def run() -> None:
        first = asyncio.create_task(speak(model, 0, sampling(0, 140, 140)))
        second = asyncio.create_task(speak(model, 1, sampling(1, 140, 140)))
        while not steps.rows:
            await asyncio.sleep(0)
        second.cancel()
        await first

    asyncio.run(run())
    model.close()
    assert len(steps.rows) == 140


class OutOfMemory:
    """Stand-in for a GPU that is full: raises what PyTorch raises, in the steps it is told."""

    def __init__(self, model: TransformersModel, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        self.times = 0
        real = getattr(model, name)

        def raising(*arguments: object) -> object:
            if self.times:
                self.times -= 1
                raise torch.OutOfMemoryError("stand-in")
            return real(*arguments)

        monkeypatch.setattr(model, name, raising)


def test_out_of_memory_in_a_step_costs_the_youngest_request_only(
    model: TransformersModel, steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = [asyncio.run(speak(model, number)) for number in range(2)]
    full = OutOfMemory(model, monkeypatch, "_decode")

    async def run() -> list[Any]:
        older = [asyncio.create_task(speak(model, number)) for number in range(2)]
        await asyncio.sleep(0)
        begin = len(steps.rows)
        while len(steps.rows) < begin + 5:
            await asyncio.sleep(0)
        youngest = model.generate(prompt(2), sampling(2, 1400, 1400))
        await anext(youngest)
        full.times = 1
        with pytest.raises(ApiError) as caught:
            async for _ in youngest:
                pass
        assert (caught.value.status, caught.value.code) == (503, "out_of_memory")
        assert caught.value.headers == {"Retry-After": "1"}
        return await asyncio.gather(*older)

    assert asyncio.run(run()) == alone


def test_out_of_memory_at_a_prompt_costs_that_request_only(
    model: TransformersModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = asyncio.run(speak(model, 0))
    full = OutOfMemory(model, monkeypatch, "_prefill")

    async def run() -> list[Any]:
        full.times = 1
        return await asyncio.gather(speak(model, 1), speak(model, 0), return_exceptions=True)

    failed, spoken = asyncio.run(run())
    assert isinstance(failed, ApiError)
    assert failed.code == "out_of_memory"
    assert spoken == alone


def test_an_error_at_a_prompt_costs_that_request_only(model: TransformersModel) -> None:
    async def run() -> list[Any]:
        async def broken() -> list[int]:
            return [token async for some in model.generate([10**6], sampling(0)) for token in some]

        return await asyncio.gather(speak(model, 0), broken(), return_exceptions=True)

    spoken, failed = asyncio.run(run())
    assert isinstance(failed, IndexError)
    assert spoken == asyncio.run(speak(model, 0))


def test_an_error_in_a_step_ends_its_requests_and_not_the_thread(
    model: TransformersModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(model, "_decode", lambda rows: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            asyncio.run(speak(model, 0))
    assert len(asyncio.run(speak(model, 0))) > 28


def test_closing_the_model_ends_its_requests_and_its_thread(model_dir: Path) -> None:
    steps = Steps()
    model = TransformersModel(model_dir / "maya1" / "model", "cpu", 2, True, False, steps)
    caught: list[Exception] = []

    def listen() -> None:
        try:
            asyncio.run(speak(model, 0, sampling(0, 1400, 1400)))
        except RuntimeError as error:
            caught.append(error)

    listener = threading.Thread(target=listen)
    listener.start()
    wait_for(lambda: steps.rows, "the first token")
    model.close()
    listener.join()
    assert len(caught) == 1


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be loaded on cpu"):
        TransformersModel(tmp_path, "cpu", 1, True, False, Steps())
