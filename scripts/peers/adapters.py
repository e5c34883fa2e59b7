"""Each engine behind one question: how long until the first token, and how long for the next ones?

All are greedy, without speculation, and do not stop at an end-of-text token. Choosing the likeliest
token is inside the timed region for all, because some engines do it where nobody can look. An
adapter imports its engine when it is made, so this module loads in both environments.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from time import perf_counter
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

CONTEXT_TOKENS = 1024


class Adapter(Protocol):
    """A loaded engine."""

    def generate(self, prompt_ids: Sequence[int], new_tokens: int) -> tuple[float, float]:
        """From an empty cache: seconds until the first token is known, and for `new_tokens` more.

        The second is 0.0 for none.
        """
        ...


class Edgekit:
    """A session of edgekit, called as `edgekit bench` calls it."""

    def __init__(self, path: Path, threads: int) -> None:
        from edgekit.runtime.load import load_engine

        self.session = load_engine(path, context_tokens=CONTEXT_TOKENS, threads=threads).session

    def generate(self, prompt_ids: Sequence[int], new_tokens: int) -> tuple[float, float]:
        """As `Adapter`."""
        session = self.session
        session.truncate(0, 0)
        start = perf_counter()
        token = int(session.prefill(0, prompt_ids)[-1].argmax())
        first = perf_counter()
        for _ in range(new_tokens):
            token = int(session.decode([0], [token])[0].argmax())
        return first - start, perf_counter() - first

    def logits(self, ids: Sequence[int]) -> list[NDArray[np.float32]]:
        """Of a whole window, for perplexity."""
        from edgekit.eval.perplexity import session_logits

        return session_logits(self.session)(ids)


class LlamaCpp:
    """llama.cpp through the C interface of llama-cpp-python."""

    def __init__(self, path: Path, threads: int) -> None:
        self.api: Any = import_module("llama_cpp")
        api = self.api
        api.llama_backend_init()
        self.model = api.llama_model_load_from_file(
            str(path).encode(), api.llama_model_default_params()
        )
        params = api.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = CONTEXT_TOKENS, 512, 512
        params.n_threads = params.n_threads_batch = threads
        self.context = api.llama_init_from_model(self.model, params)
        self.vocab_size = api.llama_vocab_n_tokens(api.llama_model_get_vocab(self.model))
        self.batch = api.llama_batch_init(512, 0, 1)

    def generate(self, prompt_ids: Sequence[int], new_tokens: int) -> tuple[float, float]:
        """As `Adapter`."""
        self._clear()
        start = perf_counter()
        token = int(self._run(prompt_ids, 0, all_logits=False)[-1].argmax())
        first = perf_counter()
        for place in range(len(prompt_ids), len(prompt_ids) + new_tokens):
            token = int(self._run([token], place, all_logits=False)[-1].argmax())
        return first - start, perf_counter() - first

    def logits(self, ids: Sequence[int]) -> list[NDArray[np.float32]]:
        """Of a whole window, for perplexity."""
        self._clear()
        return [
            self._run(ids[start : start + 256], start, all_logits=True).copy()
            for start in range(0, len(ids), 256)
        ]

    def _clear(self) -> None:
        self.api.llama_memory_clear(self.api.llama_get_memory(self.context), True)

    def _run(self, ids: Sequence[int], start: int, *, all_logits: bool) -> NDArray[np.float32]:
        """Logits of every position or of the last one; valid until the next call."""
        batch = self.batch
        batch.n_tokens = len(ids)
        for i, token in enumerate(ids):
            batch.token[i], batch.pos[i] = token, start + i
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
            batch.logits[i] = all_logits or i == len(ids) - 1
        if code := self.api.llama_decode(self.context, batch):
            raise RuntimeError(f"llama_decode failed: {code}")
        rows = len(ids) if all_logits else 1
        pointer = self.api.llama_get_logits(self.context)
        return np.ctypeslib.as_array(pointer, (rows, self.vocab_size))


class GenAi:
    """ONNX Runtime GenAI. Left alone it takes half of the cores, so the number is set."""

    def __init__(self, path: Path, threads: int) -> None:
        self.api: Any = import_module("onnxruntime_genai")
        config = self.api.Config(str(path))
        options = f'{{"session_options": {{"intra_op_num_threads": {threads}}}}}'
        config.overlay(f'{{"model": {{"decoder": {options}}}}}')
        self.model = self.api.Model(config)

    def generate(self, prompt_ids: Sequence[int], new_tokens: int) -> tuple[float, float]:
        """As `Adapter`."""
        params = self.api.GeneratorParams(self.model)
        length = len(prompt_ids) + new_tokens + 2
        params.set_search_options(do_sample=False, max_length=length, min_length=length)
        generator = self.api.Generator(self.model, params)
        start = perf_counter()
        generator.append_tokens(np.array(prompt_ids, np.int32))
        generator.generate_next_token()
        first = perf_counter()
        for _ in range(new_tokens):
            generator.generate_next_token()
        return first - start, perf_counter() - first


class OpenVino:
    """OpenVINO GenAI; its own clock, because it returns when all tokens are done."""

    def __init__(self, path: Path, threads: int) -> None:
        self.api: Any = import_module("openvino_genai")
        self.pipeline = self.api.LLMPipeline(
            str(path), "CPU", INFERENCE_NUM_THREADS=threads, PERFORMANCE_HINT="LATENCY"
        )

    def generate(self, prompt_ids: Sequence[int], new_tokens: int) -> tuple[float, float]:
        """As `Adapter`."""
        openvino: Any = import_module("openvino")
        config = self.api.GenerationConfig()
        config.max_new_tokens = config.min_new_tokens = new_tokens + 1
        config.ignore_eos, config.do_sample = True, False
        ids = openvino.Tensor(np.array([prompt_ids], np.int64))
        mask = openvino.Tensor(np.ones((1, len(prompt_ids)), np.int64))
        result = self.pipeline.generate(self.api.TokenizedInputs(ids, mask), config)
        measured = result.perf_metrics
        if measured.get_num_generated_tokens() != new_tokens + 1:
            raise RuntimeError("OpenVINO GenAI stopped early")
        later = measured.get_tpot().mean * new_tokens if new_tokens else 0.0
        return measured.get_ttft().mean / 1e3, later / 1e3


class CTranslate2:
    """CTranslate2, which takes tokens as texts."""

    def __init__(self, path: Path, threads: int) -> None:
        api: Any = import_module("ctranslate2")
        self.generator = api.Generator(
            str(path), device="cpu", compute_type="int8", inter_threads=1, intra_threads=threads
        )
        self.texts = json.loads((path / "vocabulary.json").read_text(encoding="utf-8"))

    def generate(self, prompt_ids: Sequence[int], new_tokens: int) -> tuple[float, float]:
        """As `Adapter`."""
        arrived: list[float] = []

        def note(step: object) -> bool:
            arrived.append(perf_counter())
            return False

        length = new_tokens + 1
        start = perf_counter()
        self.generator.generate_batch(
            [[self.texts[i] for i in prompt_ids]],
            max_length=length, min_length=length, include_prompt_in_result=False, callback=note,
        )  # fmt: skip
        return arrived[0] - start, arrived[-1] - arrived[0]


ADAPTERS: Mapping[str, type[Any]] = MappingProxyType(
    {
        "edgekit": Edgekit,
        "llamacpp": LlamaCpp,
        "genai": GenAi,
        "openvino": OpenVino,
        "ctranslate2": CTranslate2,
    }
)
