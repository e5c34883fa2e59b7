"""What `worker.py` uses of TensorRT-LLM, with its names and signatures, and no GPU.

Put on a worker's PYTHONPATH. `fake.json` in the model's directory says how loading goes, the first
token of a prompt how the answer goes; `seen.jsonl` there is written with what was asked.
Token i of an answer is `prompt[0] + 1 + i`, as engines do without the end token.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

__version__ = "1.2.1"
VOCAB = 1000
EXIT, KILL, SEGV, OOM, OOM_TEXT, HANG, PRINT, SILENT, BURST, BAD_ALLOC = range(900, 910)


class OutOfMemoryError(RuntimeError):
    """Named as torch's."""


@dataclass(kw_only=True)
class SamplingParams:
    end_id: int | None = None
    pad_id: int | None = None
    max_tokens: int = 32
    stop_token_ids: list[int] | None = None
    include_stop_str_in_output: bool = False
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None
    temperature: float | None = None
    repetition_penalty: float | None = None
    min_p: float | None = None
    return_generation_logits: bool = False
    detokenize: bool = True
    add_special_tokens: bool = True


@dataclass(kw_only=True)
class KvCacheConfig:
    enable_block_reuse: bool = True
    max_tokens: int | None = None
    free_gpu_memory_fraction: float | None = 0.9
    dtype: str = "auto"
    tokens_per_block: int = 32


@dataclass(kw_only=True)
class CudaGraphConfig:
    batch_sizes: list[int] | None = None
    max_batch_size: int = 0
    enable_padding: bool = False


@dataclass(kw_only=True)
class NGramDecodingConfig:
    max_draft_len: int | None = None
    max_matching_ngram_size: int = 2
    is_keep_all: bool = True
    is_use_oldest: bool = True
    is_public_pool: bool = True


@dataclass
class CompletionOutput:
    index: int
    token_ids: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    generation_logits: Any = None


class Tensor:
    """The few methods of torch's that are used."""

    def __init__(self, values: Any) -> None:
        self._values = values

    def reshape(self, *shape: int) -> Tensor:
        return Tensor(self._values.reshape(*shape))

    def float(self) -> Tensor:
        return Tensor(self._values.astype("float32"))

    def log_softmax(self, dim: int) -> Tensor:
        import numpy as np

        assert dim == -1
        return Tensor(self._values - np.log(np.exp(self._values).sum(-1, keepdims=True)))

    def cpu(self) -> Tensor:
        return self

    def numpy(self) -> Any:
        return self._values


class RequestOutput:
    def __init__(self, prompt: list[int], params: SamplingParams, *, gathers: bool) -> None:
        self.outputs = [CompletionOutput(0)]
        self.finished = False
        self._prompt, self._params, self._gathers = prompt, params, gathers
        self._aborted = False
        self._made = 0

    def abort(self) -> None:
        self._aborted = True

    def __aiter__(self) -> RequestOutput:
        return self

    async def __anext__(self) -> RequestOutput:
        if self.finished:
            raise StopAsyncIteration
        await asyncio.sleep(0.002)
        output, first = self.outputs[0], self._prompt[0]
        if self._made == 2:
            _misbehave(first)
        while first == SILENT and self._made == 2 and not self._aborted:
            await asyncio.sleep(0.01)
        if self._aborted:
            self.finished, output.finish_reason = True, "cancelled"
            return self
        for _ in range(3 if first == BURST else 1):
            self._make(output, (first + 1 + self._made) % VOCAB)
            if first != BURST and self.finished:
                break
        return self

    def _make(self, output: CompletionOutput, token_id: int) -> None:
        self._made += 1
        if token_id == self._params.end_id and self._prompt[0] != BURST:
            self.finished, output.finish_reason = True, "stop"
            return
        output.token_ids.append(token_id)
        if token_id in (self._params.stop_token_ids or []) and self._prompt[0] != BURST:
            self.finished, output.finish_reason, output.stop_reason = True, "stop", token_id
        elif len(output.token_ids) >= self._params.max_tokens:
            self.finished, output.finish_reason = True, "length"

    async def aresult(self) -> RequestOutput:
        import numpy as np

        async for _ in self:
            pass
        if self._params.return_generation_logits and self._gathers:
            logits = np.zeros((1, VOCAB), np.float32)
            logits[0, self._prompt[-1]] = len(self._prompt)
            self.outputs[0].generation_logits = Tensor(logits)
        return self


class LLM:
    def __init__(self, model: str, tokenizer: Any = None, **kwargs: Any) -> None:
        self._model = Path(model)
        self._gathers = bool(kwargs.get("gather_generation_logits"))
        shown = {k: v if isinstance(v, int | str) else asdict(v) for k, v in kwargs.items()}
        self._see({"llm": type(self).__name__, **shown})
        assert os.environ["TRTLLM_NO_USAGE_STATS"] == os.environ["HF_HUB_OFFLINE"] == "1"
        assert os.environ["TLLM_WORKER_USE_SINGLE_PROCESS"] == "1"
        behaviour = json.loads((self._model / "fake.json").read_text(encoding="utf-8"))
        if pool := behaviour.get("pool"):
            os.write(1, b"[TensorRT-LLM][INFO] [MemUsageChange] Allocated 1.00 GiB for max tokens "
                     b"in paged KV cache (%d).\n" % pool)  # fmt: skip
        how = behaviour.get("load", "well")
        if how == "hang":
            time.sleep(600)
        elif how == "oom":
            raise OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        elif how == "log":
            os.write(1, behaviour["says"].encode() + b"\n")
            raise RuntimeError("Failed to deserialize cuda engine.")
        elif how != "well":
            _misbehave(int(how))
        assert how in ("well", "hang")

    def generate_async(
        self,
        inputs: list[int],
        sampling_params: SamplingParams | None = None,
        *,
        streaming: bool = False,
    ) -> RequestOutput:
        assert sampling_params is not None
        assert sampling_params.end_id is not None
        self._see({"ids": len(inputs), "streaming": streaming, **asdict(sampling_params)})
        return RequestOutput(inputs, sampling_params, gathers=self._gathers)

    def shutdown(self) -> None:
        self._see({"shutdown": True})

    def _see(self, what: dict[str, Any]) -> None:
        with (self._model / "seen.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(what) + "\n")


class _TrtLLM(LLM):
    pass


def _misbehave(how: int) -> None:
    if how == EXIT:
        os.write(2, b"\xff\xfe last words\n")
        os._exit(3)
    elif how in (KILL, SEGV):
        os.kill(os.getpid(), signal.SIGKILL if how == KILL else signal.SIGSEGV)
    elif how == OOM:
        raise OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    elif how == OOM_TEXT:
        raise RuntimeError("[TensorRT-LLM][ERROR] CUDA runtime error: out of memory")
    elif how == HANG:
        time.sleep(600)
    elif how == PRINT:
        sys.stdout.write('{"type": "done", "id": 1, "reason": "stop"}\n' * 3)
        sys.stdout.flush()
        os.write(1, b"\xff\xfe\x00 not text\n" + b"x" * 3_000_000 + b"\n")
    elif how == BAD_ALLOC:
        os.write(2, b"terminate called after throwing an instance of 'std::bad_alloc'\n")
        os.abort()
