"""TensorRT-LLM's LLM API of 1.3 in form: no engines, a checkpoint in Hugging Face's layout, and no
argument that it has not (`TorchLlmArgs`, llmapi/llm_args.py, forbids others). Answers are those of
edgekit's reader. What it was given is added to the file that `STANDIN_SEEN` names."""

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from standin_answers import Answer  # type: ignore[import-not-found]  # on its PYTHONPATH

from edgekit.backends.tensorrt_llm.unified_reader import UnifiedReader
from tensorrt_llm.llmapi import CudaGraphConfig, KvCacheConfig, NGramDecodingConfig

__version__ = "1.3.0"
_BLOCK = 32


class SamplingParams:
    def __init__(self, **fields: object) -> None:
        self.__dict__.update(fields)


class LLM:
    def __init__(
        self, model: str, tokenizer: object = None, *, skip_tokenizer_init: bool = False,
        dtype: str = "auto", kv_cache_config: KvCacheConfig | None = None,
        cuda_graph_config: CudaGraphConfig | None = None, max_batch_size: int = 2048,
        max_seq_len: int | None = None, max_num_tokens: int = 8192, max_beam_width: int = 1,
        enable_chunked_prefill: bool = False, gather_generation_logits: bool = False,
        speculative_config: NGramDecodingConfig | None = None,
        disable_overlap_scheduler: bool = False,
    ) -> None:  # fmt: skip
        if kv_cache_config is None or cuda_graph_config is None or max_seq_len is None:
            raise ValueError("left to defaults, which take all memory that is free")
        pool = kv_cache_config.max_tokens or 0
        os.write(1, b"[MemUsageChange] Allocated 1.00 GiB for max tokens in paged KV cache "
                    b"(%d).\n" % (-(-pool // _BLOCK) * _BLOCK))  # fmt: skip
        if seen := os.environ.get("STANDIN_SEEN"):
            given = {name: value for name, value in locals().items() if name in _SHOWN}
            configs = (kv_cache_config, cuda_graph_config, speculative_config)
            given |= {type(each).__name__: asdict(each) for each in configs if each is not None}
            with Path(seen).open("a", encoding="utf-8") as file:
                file.write(json.dumps(given) + "\n")
        files = Path(model)
        self._reader = UnifiedReader(files, context_tokens=max_seq_len, num_slots=1)
        self._reader.prefill(0, [1])  # reads every tensor
        self._gathers, self._drafts = gather_generation_logits, speculative_config

    def generate_async(
        self, inputs: list[int], sampling_params: Any = None, *, streaming: bool = False
    ) -> Answer:
        return Answer(
            self._reader, inputs, sampling_params, gathers=self._gathers, drafts=self._drafts
        )

    def shutdown(self) -> None:
        self._reader.close()


_SHOWN = {"dtype", "max_batch_size", "max_seq_len", "max_num_tokens", "enable_chunked_prefill",
          "disable_overlap_scheduler", "gather_generation_logits"}  # fmt: skip
