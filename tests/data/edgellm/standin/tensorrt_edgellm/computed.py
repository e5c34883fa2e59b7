"""Answers of a checkpoint, by edgekit's reader, which computes what a real engine would.

`STANDIN_BREAKS` breaks it: "answers" (each token is taken for the next), "spread" (the likeliest
tokens are right, how likely they are is not), "unread" (no token of a prompt is read).
"""

from __future__ import annotations

import os
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import tokenizers
import torch

from edgekit.backends.edge_llm.reader import CheckpointReader

torch.set_num_threads(1)
_BREAKS = os.environ.get("STANDIN_BREAKS", "")


class Computed:
    """One request at a time."""

    def __init__(self, engine: Path, checkpoint: Path, config: dict[str, Any]) -> None:
        size = int(config["builder_config"]["max_kv_cache_capacity"])
        self._reader = CheckpointReader(checkpoint, context_tokens=size, num_slots=1)
        self._tokenizer = tokenizers.Tokenizer.from_file(str(engine / "tokenizer.json"))
        ends = config.get("eos_token_id")
        self._ends = set(ends if isinstance(ends, list) else [ends])
        self._held: list[int] = []

    def count(self, request: Any) -> int:
        return 0 if _BREAKS == "unread" else len(self._prompt(request))

    def steps(self, request: Any, names: ModuleType) -> Any:
        """Into the request's channel, with the classes of `names`."""
        (channel,), prompt = request.stream_channels, self._prompt(request)
        bias, count, new = request.requests[0].logit_bias, request.num_logprobs, list[int]()
        reasons = names.FinishReason
        while True:
            yield
            if channel.is_cancelled():
                channel.push(names.StreamChunk(finished=True, reason=reasons.CANCELLED))
                return
            row = self._log_probs([*prompt, *new])
            likeliest = np.argsort(-row, kind="stable")
            allowed = (int(i) for i in likeliest if bias.get(int(i), 0.0) > -50)
            token = next(allowed)
            has_ended = token in self._ends
            is_last = len(new) + 1 >= request.max_generate_length
            new += [] if has_ended else [token]
            reason = reasons.END_ID if has_ended else reasons.LENGTH
            entries = [names.LogprobEntry(int(i), float(row[i])) for i in likeliest[:count]]
            channel.push(
                names.StreamChunk(
                    token_ids=[] if has_ended else [token],
                    prompt_token_count=len(prompt),
                    finished=has_ended or is_last,
                    reason=reason if has_ended or is_last else reasons.NOT_FINISHED,
                    logprobs=[entries] if count and not has_ended else [],
                )
            )
            if has_ended or is_last:
                return

    def _prompt(self, request: Any) -> list[int]:
        text = request.requests[0].messages[0].text
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def _log_probs(self, ids: list[int]) -> Any:
        """As an engine that keeps prompts: what begins like the last one is not computed again."""
        pairs = zip(self._held, ids[:-1], strict=False)
        same = next(
            (i for i, (a, b) in enumerate(pairs) if a != b), min(len(self._held), len(ids) - 1)
        )
        self._reader.truncate(0, min(same, self._reader.length(0)))
        self._held = ids
        row = self._reader.prefill(0, ids[self._reader.length(0) :])[-1].astype(np.float64)
        row = np.roll(row / 2 if _BREAKS == "spread" else row, int(_BREAKS == "answers"))
        row -= row.max()
        return row - np.log(np.exp(row).sum())
