"""Acoustic model in transformers' LlamaForCausalLM, with continuous batching in a thread of its own.

All requests share each decoding step: one pass over the weights, whatever the number of rows, so that a step
hardly gets slower with more of them. A request joins after its prompt has run alone, and leaves at any step.
"""

import asyncio
import logging
import threading
from collections.abc import AsyncGenerator, Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from maya1_tts.engines.maya1.acoustic import CONTEXT_TOKENS, Sampling
from maya1_tts.engines.maya1.failures import out_of_memory
from maya1_tts.engines.maya1.tokens import AUDIO_END, CODES, FIRST_CODE, SLOTS, VOCABULARY
from maya1_tts.errors import ConfigError

log = logging.getLogger(__name__)

# A matrix product of fewer rows takes another kernel, which rounds otherwise. With idle rows beside it, a
# request alone gets the very floats that it gets in a batch (seen on CPUs in float32; on a GPU they differ a
# little).
MIN_ROWS = 4
# The attended part of the cache grows in steps of so many tokens, which keeps the number of shapes small.
SPAN = 64


class KvCache:
    """Keys and values of all rows, [rows, heads, CONTEXT_TOKENS, head size] for each layer, allocated once.

    It is handed to the model in the place of transformers' own caches, whose rows all have the same length.
    """

    def __init__(self, model: LlamaForCausalLM, rows: int) -> None:
        config: Any = model.config
        shape = (rows, config.num_key_value_heads, CONTEXT_TOKENS, config.head_dim)
        layers = range(config.num_hidden_layers)
        self._keys = [torch.zeros(shape, dtype=model.dtype, device=model.device) for _ in layers]
        self._values = [torch.zeros(shape, dtype=model.dtype, device=model.device) for _ in layers]
        self._at: tuple[Any, ...] = ()
        self._span = 0

    def prefill(self, row: int, length: int) -> None:
        """What the model computes next is a whole prompt of this row."""
        self._at = (slice(row, row + 1), slice(None), slice(0, length))
        self._span = 0

    def decode(self, positions: Tensor, span: int) -> None:
        """What it computes next is one token for each of the first rows; none looks beyond `span`."""
        self._at = (torch.arange(len(positions), device=positions.device), slice(None), positions)
        self._span = span

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Called by each attention layer with [B, heads, T, head size]. Returns what to attend to."""
        if not self._span:
            self._keys[layer][self._at] = keys
            self._values[layer][self._at] = values
            return keys, values
        self._keys[layer][self._at] = keys.squeeze(2)
        self._values[layer][self._at] = values.squeeze(2)
        rows = len(keys)
        return self._keys[layer][:rows, :, : self._span], self._values[layer][:rows, :, : self._span]


class Rows:
    """What sampling needs to know of each row, on the device."""

    def __init__(self, rows: int, device: torch.device, constrain: bool) -> None:
        self._constrain = constrain
        self._codes = torch.arange(CODES, device=device)
        self.last = torch.zeros(rows, dtype=torch.int64, device=device)  # the token that comes next as input
        self.length = torch.zeros(rows, dtype=torch.int64, device=device)  # tokens in the cache
        self.count = torch.zeros(rows, dtype=torch.int64, device=device)  # tokens drawn
        self._busy = torch.zeros(rows, dtype=torch.int64, device=device)  # 1 for a row with a request
        self._seen = torch.zeros((rows, VOCABULARY), dtype=torch.bool, device=device)
        self._chance = torch.zeros((rows, CONTEXT_TOKENS), device=device)
        self._min_tokens = torch.zeros(rows, dtype=torch.int64, device=device)
        self._temperature, self._top_p, self._penalty = (
            torch.ones((rows, 1), device=device) for _ in range(3)
        )

    def join(self, row: int, prompt: Tensor, sampling: Sampling) -> None:
        """All chance of a request is drawn here, on the CPU: it depends on the seed alone, not on
        neighbours."""
        random = torch.Generator().manual_seed(sampling.seed)
        self._chance[row, : sampling.max_tokens] = torch.rand(sampling.max_tokens, generator=random)
        self._seen[row] = False
        self._seen[row, prompt] = True
        self._min_tokens[row] = sampling.min_tokens
        self._temperature[row] = max(sampling.temperature, 1e-4)  # 0 is as good as greedy
        self._top_p[row] = sampling.top_p
        self._penalty[row] = sampling.repetition_penalty
        self.length[row] = len(prompt)
        self.count[row] = 0
        self._busy[row] = 1

    def leave(self, row: int) -> None:
        """An idle row attends to its first position only, however long it is computed beside others."""
        self.length[row] = 0
        self.count[row] = 0
        self._busy[row] = 0

    def sample(self, logits: Tensor, rows: slice) -> Tensor:
        """Draw one token for each of the rows. logits: [B, VOCABULARY]. Changes nothing.

        Repetition penalty (over prompt and speech), temperature and top-p in this order, as transformers and
        vLLM have it.
        """
        logits = logits.float()
        seen, count = self._seen[rows], self.count[rows]
        may_end = count >= self._min_tokens[rows]
        tokens = None
        if self._constrain:
            slot = count % SLOTS
            codes = FIRST_CODE + slot.unsqueeze(1) * CODES + self._codes
            tokens = torch.cat([codes, torch.full_like(codes[:, :1], AUDIO_END)], dim=1)
            logits, seen = logits.gather(1, tokens), seen.gather(1, tokens)
            may_end = may_end & (slot == 0)
        end = CODES if self._constrain else AUDIO_END
        penalty = self._penalty[rows]
        logits = torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)
        logits[:, end] = logits[:, end].masked_fill(~may_end, -torch.inf)
        odds = torch.softmax(logits / self._temperature[rows], dim=-1)
        odds, order = odds.sort(descending=True, stable=True)
        below = odds.cumsum(-1) - odds  # the mass of all that is likelier
        kept = below < self._top_p[rows]
        mass = (odds * kept).sum(-1, keepdim=True)
        chance = self._chance[rows].gather(1, count.unsqueeze(1))
        drawn = ((below <= chance * mass) & kept).sum(-1, keepdim=True) - 1
        choice = order.gather(1, drawn)
        return (choice if tokens is None else tokens.gather(1, choice)).squeeze(1)

    def take(self, rows: slice, tokens: Tensor) -> None:
        """These tokens were drawn."""
        self.last[rows] = tokens
        self._seen[rows].scatter_(1, tokens.unsqueeze(1), True)
        self.count[rows] += self._busy[rows]

    def cached(self, rows: slice) -> None:
        """The token that came last is in the cache."""
        self.length[rows] += self._busy[rows]


class _Request:
    def __init__(self, prompt: Sequence[int], sampling: Sampling) -> None:
        self.prompt, self.sampling = list(prompt), sampling
        self.count = 0
        self.cancelled = False
        self.loop = asyncio.get_running_loop()
        self.queue: asyncio.Queue[int | Exception | None] = asyncio.Queue()


class TransformersModel:
    def __init__(
        self,
        folder: Path,
        device: str,
        max_batch: int,
        constrain: bool,
        compile: bool,
        on_step: Callable[[int], None],
    ) -> None:
        """bfloat16 on a GPU, float32 on a CPU. on_step: told the number of rows that drew a token.

        Raises ConfigError when the folder holds no Maya1 or the device cannot hold it.
        """
        self._device = torch.device(device)
        self._on_step = on_step
        try:
            self._model = LlamaForCausalLM.from_pretrained(
                folder,
                dtype=torch.float32 if self._device.type == "cpu" else torch.bfloat16,
                attn_implementation="sdpa",
                local_files_only=True,
                use_safetensors=True,
            )
            if self._model.config.vocab_size != VOCABULARY:
                raise ValueError(f"its vocabulary is {self._model.config.vocab_size}, expected {VOCABULARY}")
            self._model.to(self._device).eval().requires_grad_(False)  # type: ignore[arg-type]
            rows = max(max_batch, MIN_ROWS)
            self._cache = KvCache(self._model, rows)
            self._rows = Rows(rows, self._device, constrain)
        except Exception as error:
            raise ConfigError(f"{folder} cannot be loaded on {device}: {str(error)[:300]}.") from None
        self._forward: Callable[..., Any] = self._model
        if compile:
            self._forward = torch.compile(self._model, dynamic=True)
        self._active: list[_Request | None] = [None] * max_batch
        self._waiting: list[_Request] = []
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="maya1-acoustic", daemon=True)
        self._thread.start()

    async def generate(self, prompt: Sequence[int], sampling: Sampling) -> AsyncGenerator[list[int], None]:
        request = _Request(prompt, sampling)
        with self._changed:
            self._waiting.append(request)
            self._changed.notify()
        try:
            while True:
                items = [await request.queue.get()]
                while not request.queue.empty():
                    items.append(request.queue.get_nowait())
                if tokens := [item for item in items if isinstance(item, int)]:
                    yield tokens
                if isinstance(items[-1], Exception):
                    raise items[-1]
                if items[-1] is None:
                    return
        finally:
            request.cancelled = True

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    # ---- in the thread ---------------------------------------------------------------------------------

    @torch.inference_mode()
    def _run(self) -> None:
        while not self._closed:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or any(self._active) or self._closed)
            try:
                self._drop_cancelled()
                self._admit()
                if any(self._active):
                    self._step()
            except Exception as error:
                log.exception("a decoding step failed")
                for row in range(len(self._active)):
                    self._end(row, error)
        for request in [*self._active, *self._waiting]:
            if request:
                _deliver([(request, RuntimeError("the engine was closed"))])

    def _drop_cancelled(self) -> None:
        for row, request in enumerate(self._active):
            if request and request.cancelled:
                self._end(row, None)

    def _admit(self) -> None:
        """Run the prompt of one waiting request; those that are speaking wait no longer than for that."""
        with self._changed:
            self._waiting = [request for request in self._waiting if not request.cancelled]
            if not self._waiting or None not in self._active:
                return
            request = self._waiting.pop(0)
        row = self._active.index(None)
        self._active[row] = request
        try:
            tokens = self._prefill(row, request)
        except torch.OutOfMemoryError:
            self._out_of_memory(row)
        except Exception as error:
            log.exception("a prompt failed")
            self._end(row, error)
        else:
            self._take(slice(row, row + 1), tokens)

    def _prefill(self, row: int, request: _Request) -> Tensor:
        prompt = torch.tensor(request.prompt, device=self._device)
        length = len(prompt)
        self._rows.join(row, prompt, request.sampling)
        self._cache.prefill(row, length)
        mask = torch.ones((1, 1, length, length), dtype=torch.bool, device=self._device).tril()
        positions = torch.arange(length, device=self._device).unsqueeze(0)
        # By position: transformers 5.24 renamed the fourth parameter from past_key_values to cache.
        logits = self._model(prompt.unsqueeze(0), mask, positions, self._cache, logits_to_keep=1).logits
        return self._rows.sample(logits[:, -1], slice(row, row + 1))

    def _step(self) -> None:
        """One more token for each row. When memory runs out, the youngest request goes and the rest try
        again."""
        while any(self._active):
            highest = max(row for row, request in enumerate(self._active) if request)
            rows = slice(0, max(highest + 1, MIN_ROWS))
            try:
                tokens = self._decode(rows)
            except torch.OutOfMemoryError:
                youngest = min(
                    (row for row, request in enumerate(self._active) if request),
                    key=lambda row: self._count(row),
                )
                self._out_of_memory(youngest)
                continue
            self._rows.cached(rows)
            self._take(rows, tokens)
            return

    def _decode(self, rows: slice) -> Tensor:
        """Repeating it after a failure does no harm: it writes the same keys and values to the same
        places."""
        length = self._rows.length[rows]
        used = max(len(request.prompt) + request.count for request in self._active if request)
        span = min(-(-used // SPAN) * SPAN, CONTEXT_TOKENS)
        self._cache.decode(length, span)
        mask = torch.arange(span, device=self._device) <= length.unsqueeze(1)
        logits = self._forward(
            self._rows.last[rows].unsqueeze(1), mask[:, None, None], length.unsqueeze(1), self._cache
        ).logits
        return self._rows.sample(logits[:, -1], rows)

    def _take(self, rows: slice, tokens: Tensor) -> None:
        self._rows.take(rows, tokens)
        drawn = []
        for row, token in zip(range(rows.start, rows.stop), tokens.tolist(), strict=True):
            request = self._active[row] if row < len(self._active) else None
            if request:
                request.count += 1
                drawn.append((row, request, token))
        _deliver([(request, token) for _, request, token in drawn])
        self._on_step(len(drawn))
        for row, request, token in drawn:
            if token == AUDIO_END or request.count == request.sampling.max_tokens:
                self._end(row, None)

    def _count(self, row: int) -> int:
        request = self._active[row]
        return request.count if request else 0

    def _out_of_memory(self, row: int) -> None:
        log.warning("out of GPU memory: a request is given up")
        self._end(row, out_of_memory())
        torch.cuda.empty_cache()

    def _end(self, row: int, result: Exception | None) -> None:
        request, self._active[row] = self._active[row], None
        self._rows.leave(row)
        if request:
            _deliver([(request, result)])


def _deliver(items: Sequence[tuple[_Request, int | Exception | None]]) -> None:
    """Hand items over to the event loops that wait for them, with one call for each loop."""

    def put(items: list[tuple[_Request, int | Exception | None]]) -> None:
        for request, item in items:
            request.queue.put_nowait(item)

    for loop in {request.loop for request, _ in items}:
        try:
            loop.call_soon_threadsafe(put, [item for item in items if item[0].loop is loop])
        except RuntimeError:  # that loop is gone
            for request, _ in items:
                request.cancelled = request.cancelled or request.loop is loop
