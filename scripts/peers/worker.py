"""One engine in a process of its own: loads it, measures it, writes JSON, ends.

    python -m peers.worker speed ADAPTER PATH JOB.json FD
    python -m peers.worker losses ADAPTER PATH JOB.json OUT.npy

Engines print what they like to stdout and stderr, so results go to a file, or to an open pipe. In
`speed` that gets a line of JSON once the engine is loaded, `load_s`, and one for each line on
stdin, which is the number of a turn: what `measure` gives, and `peak_rss_bytes`.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any, TextIO

from peers.adapters import ADAPTERS, Adapter

SHORT_PROMPT_TOKENS = 16
_WARMUP_TOKENS = 8
_ROTATION_TOKENS = 37


def measure(adapter: Adapter, job: dict[str, Any], number: int) -> dict[str, float]:
    """Tokens per second of turn `number`.

    `pp`: the whole prompt until its first token. `tg`: the tokens after a short prompt; `tg_deep`:
    after the whole one. Every turn rotates the prompt, because some engines remember prompts that
    begin alike.
    """
    prompt_ids, new_tokens = job["prompt_ids"], job["new_tokens"]
    start = _ROTATION_TOKENS * (number + 1) % len(prompt_ids)
    ids = prompt_ids[start:] + prompt_ids[:start]
    prefill_s, deep_s = adapter.generate(ids, new_tokens)
    _, decode_s = adapter.generate(ids[:SHORT_PROMPT_TOKENS], new_tokens)
    return {
        "pp": len(ids) / prefill_s,
        "tg": new_tokens / decode_s,
        "tg_deep": new_tokens / deep_s,
    }


def take_turns(
    adapter: Adapter, job: dict[str, Any], load_s: float, asked: TextIO, answers: TextIO
) -> None:
    """Warm up, then answer every line of `asked`."""
    adapter.generate(job["prompt_ids"], _WARMUP_TOKENS)
    print(json.dumps({"load_s": load_s}), file=answers, flush=True)
    for line in asked:
        speeds = measure(adapter, job, int(line))
        result = {**speeds, "peak_rss_bytes": peak_rss_bytes()}
        print(json.dumps(result), file=answers, flush=True)


def peak_rss_bytes() -> int:
    """Of this process, where Linux says so; else 0."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def main(arguments: Sequence[str]) -> None:
    """Entry point; the arguments are in the module's docstring."""
    what, name, path, job_file, out = arguments
    job = json.loads(Path(job_file).read_text(encoding="utf-8"))
    began = perf_counter()
    adapter = ADAPTERS[name](Path(path), job["threads"])
    load_s = perf_counter() - began
    if what == "losses":
        import numpy as np

        from edgekit.eval.perplexity import score_text

        np.save(out, score_text(adapter.logits, job["text_ids"]).nll)
        return
    with os.fdopen(int(out), "w", encoding="utf-8") as answers:
        take_turns(adapter, job, load_s, sys.stdin, answers)


if __name__ == "__main__":
    main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # some engines crash while the interpreter takes them down, after the result
