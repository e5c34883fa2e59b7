"""One engine in a process of its own: loads it, measures it, writes JSON, ends.

    python -m peers.worker speed ADAPTER PATH JOB.json OUT.json
    python -m peers.worker losses ADAPTER PATH JOB.json OUT.npy

Engines print what they like to stdout and stderr, so results go to a file.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

from peers.adapters import ADAPTERS, Adapter

SHORT_PROMPT_TOKENS = 16
_WARMUP_TOKENS = 8
_ROTATION_TOKENS = 37


def measure(adapter: Adapter, job: dict[str, Any]) -> dict[str, float]:
    """Tokens per second, medians over the job's repetitions.

    `pp`: the whole prompt until its first token. `tg`: the tokens after a short prompt; `tg_deep`:
    after the whole one. Every repetition rotates the prompt, because some engines remember
    prompts that begin alike.
    """
    prompt_ids, new_tokens = job["prompt_ids"], job["new_tokens"]
    adapter.generate(prompt_ids, _WARMUP_TOKENS)
    speeds: dict[str, list[float]] = {"pp": [], "tg": [], "tg_deep": []}
    for number in range(job["repetitions"]):
        start = _ROTATION_TOKENS * (number + 1) % len(prompt_ids)
        ids = prompt_ids[start:] + prompt_ids[:start]
        prefill_s, decode_s = adapter.generate(ids, new_tokens)
        speeds["pp"].append(len(ids) / prefill_s)
        speeds["tg_deep"].append(new_tokens / decode_s)
        _, decode_s = adapter.generate(ids[:SHORT_PROMPT_TOKENS], new_tokens)
        speeds["tg"].append(new_tokens / decode_s)
    return {name: median(values) for name, values in speeds.items()}


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
    result = measure(adapter, job)
    memory = {"load_s": load_s, "peak_rss_bytes": peak_rss_bytes()}
    Path(out).write_text(json.dumps({**result, **memory}), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    import os

    os._exit(0)  # some engines crash while the interpreter takes them down, after the result
