"""What both stand-ins for TensorRT-LLM answer with: the logits of one of edgekit's readers."""

import asyncio
import os
from types import SimpleNamespace
from typing import Any, Self

import numpy as np
import torch

from edgekit.backends.tensorrt_llm.network import Network

torch.cuda.get_device_capability = lambda device=0: (8, 9)
torch.cuda.get_device_name = lambda device=0: "NVIDIA GeForce RTX 4090"
torch.set_num_threads(1)


class Answer:
    """A `RequestOutput`. With drafts, several tokens may come at once, and some behind the end."""

    def __init__(
        self, reader: Network, prompt: list[int], params: Any, *, gathers: bool, drafts: Any = None
    ) -> None:
        self.outputs = [
            SimpleNamespace(
                token_ids=[], finish_reason=None, stop_reason=None, generation_logits=None
            )
        ]
        self.finished = False
        self._reader, self._prompt, self._params = reader, prompt, params
        self._gathers = (
            gathers
            and getattr(params, "return_generation_logits", False)
            and os.environ.get("STANDIN_BREAKS") != "logits"
        )
        self._drafts = drafts

    def abort(self) -> None:
        self.finished = True

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Self:
        if self.finished:
            raise StopAsyncIteration
        await asyncio.sleep(0)
        stops = [*(self._params.stop_token_ids or []), self._params.end_id]
        ids = self.outputs[0].token_ids
        for guess in [*self._drafted([*self._prompt, *ids]), None]:
            ids.append(self._next())
            if ids[-1] in stops or len(ids) >= self._params.max_tokens:
                self.finished = True
                self.outputs[0].finish_reason = "stop" if ids[-1] in stops else "length"
            if ids[-1] != guess:
                break
        return self

    async def aresult(self) -> Self:
        async for _ in self:
            pass
        return self

    def _next(self) -> int:
        # others may have been answered in between
        logits = _prefill(self._reader, [*self._prompt, *self.outputs[0].token_ids])
        if os.environ.get("STANDIN_BREAKS") == "spread":
            logits = logits / 2
        logits = np.roll(logits, _ROLLED.get(os.environ.get("STANDIN_BREAKS", ""), 0), axis=1)
        if self._gathers:
            self.outputs[0].generation_logits = torch.from_numpy(logits.copy())
        return int(logits[0].argmax())

    def _drafted(self, ids: list[int]) -> list[int]:
        """What followed the last tokens the last time that they came."""
        if self._drafts is None:
            return []
        for size in range(min(self._drafts.max_matching_ngram_size, len(ids) - 1), 0, -1):
            last = ids[-size:]
            for start in range(len(ids) - size - 1, -1, -1):
                if ids[start : start + size] == last:
                    return ids[start + size :][: self._drafts.max_draft_len]
        return []


_ROLLED = {"answers": 1}
"""By how many ids each token is taken for another one."""
_held: list[int] = []


def _prefill(reader: Network, prompt: list[int]) -> Any:
    """As an engine that keeps prompts: what begins like the last one is not computed again."""
    pairs = zip(_held, prompt[:-1], strict=False)
    same = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(_held), len(prompt) - 1))
    reader.truncate(0, min(same, reader.length(0)))
    _held[:] = prompt
    return reader.prefill(0, prompt[reader.length(0) :])
