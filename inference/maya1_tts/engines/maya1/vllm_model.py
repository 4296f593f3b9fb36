"""Acoustic model in vLLM, for GPUs: paged attention, CUDA graphs, and one cache for equal prompt beginnings.

Written against AsyncLLM (vllm/v1/engine/async_llm.py) as the wheels of vLLM 0.19.1 and 0.33.0 have it, and
tested against a stand-in of it only: not run on a GPU yet. Its tokens are checked, not constrained.
"""

import contextlib
import itertools
import os
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Any

from maya1_tts.engines.maya1.acoustic import CONTEXT_TOKENS, Sampling
from maya1_tts.engines.maya1.tokens import AUDIO_END
from maya1_tts.errors import ConfigError


class VllmModel:
    def __init__(self, folder: Path, max_batch: int, gpu_memory: float) -> None:
        """gpu_memory: the share of the GPU's memory that weights and cache may take, 0 to 1.

        Raises ConfigError when vLLM is not installed or cannot load the folder.
        """
        # vLLM and its worker process read these on import: nothing is fetched, nothing is reported.
        os.environ |= {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
        try:
            from vllm import SamplingParams
            from vllm.engine.arg_utils import AsyncEngineArgs
            from vllm.sampling_params import RequestOutputKind
            from vllm.v1.engine.async_llm import AsyncLLM
        except ImportError as error:
            raise ConfigError(
                f"MAYA1_TTS_MAYA1_BACKEND='vllm' needs vLLM, which cannot be imported ({error}); allowed: "
                "'transformers', or an installation from a requirements-cuda lock file."
            ) from None
        self._params, self._delta = SamplingParams, RequestOutputKind.DELTA
        arguments = AsyncEngineArgs(
            model=str(folder),
            skip_tokenizer_init=True,  # prompts are ids, and so is what comes back
            dtype="bfloat16",
            load_format="safetensors",
            max_model_len=CONTEXT_TOKENS,
            max_num_seqs=max_batch,
            gpu_memory_utilization=gpu_memory,
            enable_prefix_caching=True,  # requests for a voice begin with the same description
            generation_config="vllm",  # no stop tokens or sampling defaults from the folder
            trust_remote_code=False,
            disable_log_stats=True,
        )
        try:
            self._engine: Any = AsyncLLM.from_engine_args(arguments)
        except Exception as error:
            raise ConfigError(f"vLLM cannot load {folder}: {str(error)[:300]}.") from None
        self._numbers = itertools.count()

    async def generate(self, prompt: Sequence[int], sampling: Sampling) -> AsyncGenerator[list[int], None]:
        params = self._params(
            seed=sampling.seed,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            repetition_penalty=sampling.repetition_penalty,
            min_tokens=sampling.min_tokens,
            max_tokens=sampling.max_tokens,
            stop_token_ids=[AUDIO_END],
            ignore_eos=True,  # the one in config.json may be another
            detokenize=False,
            output_kind=self._delta,
        )
        outputs = self._engine.generate(
            {"prompt_token_ids": list(prompt)}, params, request_id=f"segment-{next(self._numbers)}"
        )
        # Closing vLLM's generator aborts the request in its engine.
        async with contextlib.aclosing(outputs):
            async for output in outputs:
                if tokens := list(output.outputs[0].token_ids):
                    yield tokens

    def close(self) -> None:
        self._engine.shutdown()
