import asyncio
import json
import os
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import numpy as np
import torch

from edgekit.backends.tensorrt_llm.reader import CheckpointReader

torch.cuda.get_device_capability = lambda device=0: (8, 9)
torch.cuda.get_device_name = lambda device=0: "NVIDIA GeForce RTX 4090"
torch.set_num_threads(1)


class LLM:
    def __init__(self, model: str, tokenizer: object = None, **kwargs: object) -> None:
        config = json.loads((Path(model) / "config.json").read_text(encoding="utf-8"))
        with tempfile.TemporaryDirectory() as directory:
            files = Path(directory)
            (files / "config.json").write_text(json.dumps(config["pretrained_config"]))
            (files / "rank0.safetensors").symlink_to(Path(model).absolute() / "rank0.engine")
            size = int(config["build_config"]["max_seq_len"])
            self._reader = CheckpointReader(files, context_tokens=size, num_slots=1)
            self._reader.prefill(0, [1])  # reads every tensor
        self._gathers = bool(kwargs.get("gather_generation_logits"))

    def generate_async(
        self, inputs: list[int], sampling_params: Any = None, *, streaming: bool = False
    ) -> "_Answer":
        gathers = self._gathers and os.environ.get("STANDIN_BREAKS") != "logits"
        return _Answer(self._reader, inputs, sampling_params, gathers=gathers)

    def shutdown(self) -> None:
        self._reader.close()


class _Answer:
    def __init__(
        self, reader: CheckpointReader, prompt: list[int], params: Any, *, gathers: bool
    ) -> None:
        self.outputs = [
            SimpleNamespace(
                token_ids=[], finish_reason=None, stop_reason=None, generation_logits=None
            )
        ]
        self.finished = False
        self._reader, self._prompt, self._params = reader, prompt, params
        self._gathers = gathers and getattr(params, "return_generation_logits", False)

    def abort(self) -> None:
        self.finished = True

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Self:
        if self.finished:
            raise StopAsyncIteration
        await asyncio.sleep(0)
        ids = self.outputs[0].token_ids
        # others may have been answered in between
        logits = _prefill(self._reader, [*self._prompt, *ids])
        if os.environ.get("STANDIN_BREAKS") == "spread":
            logits = logits / 2
        logits = np.roll(logits, _ROLLED.get(os.environ.get("STANDIN_BREAKS", ""), 0), axis=1)
        if self._gathers:
            self.outputs[0].generation_logits = torch.from_numpy(logits.copy())
        ids.append(int(logits[0].argmax()))
        stops = [*(self._params.stop_token_ids or []), self._params.end_id]
        if ids[-1] in stops or len(ids) >= self._params.max_tokens:
            self.finished = True
            self.outputs[0].finish_reason = "stop" if ids[-1] in stops else "length"
        return self

    async def aresult(self) -> Self:
        async for _ in self:
            pass
        return self


_ROLLED = {"answers": 1}
"""By how many ids each token is taken for another one."""
_held: list[int] = []


def _prefill(reader: CheckpointReader, prompt: list[int]) -> Any:
    """As an engine that keeps prompts: what begins like the last one is not computed again."""
    pairs = zip(_held, prompt[:-1], strict=False)
    same = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(_held), len(prompt) - 1))
    reader.truncate(0, min(same, reader.length(0)))
    _held[:] = prompt
    return reader.prefill(0, prompt[reader.length(0) :])
