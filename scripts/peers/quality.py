"""What each engine's weights cost: perplexity over one text, by one code for all.

Beside the engines stand two models in torch: the checkpoint in fp32, and the same with every
linear layer rounded to 4 bits, to see what calibration gains.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.bench.tables import markdown_table
from edgekit.eval.perplexity import TextScore, score_text
from edgekit.profile import find_profile
from edgekit.runtime.tokenizer import Tokenizer
from peers.catalog import ENGINES, Engine, Model
from peers.environment import CACHE, PeerError, say
from peers.processor import Processor
from peers.rounds import losses, prepare_engines

_WITH_LOGITS = ("edgekit", "llamacpp")
"""Adapters that give logits of every position."""
_ALWAYS = ("edgekit-fp16", "edgekit-int8", "edgekit-int4_awq", "edgekit-int8_sq", "llamacpp-q4_0")


def compare_quality(
    models: Sequence[Model],
    engines: Sequence[Engine],
    *,
    text: Path,
    threads: int,
    processor: Processor,
    rebuild: bool,
    out: Path | None,
) -> int:
    """Print perplexities and their ratios to fp32, and write them as JSON."""
    wanted = [ENGINES[name] for name in _ALWAYS]
    wanted += [e for e in engines if e.adapter in _WITH_LOGITS and e not in wanted]
    results: dict[str, dict[str, float]] = {}
    for model in models:
        results[model.name] = scores = _scores(
            model, wanted, text, threads, processor, rebuild=rebuild
        )
        base = scores["fp32 (torch)"]
        rows = [[name, f"{value:.3f}", f"{value / base:.4f}"] for name, value in scores.items()]
        print(f"\n{model.title}, {text.name}\n")
        print(markdown_table(["model", "perplexity", "/ fp32"], rows, text_columns=1))
    out = out or CACHE / "quality.json"
    out.write_text(json.dumps({"text": text.name, "perplexity": results}, indent=2))
    say(f"\nwritten to {out}")
    return 0


def _scores(
    model: Model,
    engines: Sequence[Engine],
    text: Path,
    threads: int,
    processor: Processor,
    *,
    rebuild: bool,
) -> dict[str, float]:
    outcomes = prepare_engines(model, engines, processor, rebuild=rebuild)
    checkpoint = model.checkpoint(CACHE / model.name)
    ids = Tokenizer.load(checkpoint).encode(text.read_text(encoding="utf-8"), add_special=False)
    group_size = _group_size(checkpoint)
    scores = _torch_scores(checkpoint, ids, group_size, threads)
    job: dict[str, object] = {"text_ids": ids, "threads": threads}
    for outcome in outcomes:
        if outcome.opened is None:
            continue
        title = outcome.engine.title
        try:
            nll = np.load(losses(outcome, job))
        except PeerError as exc:
            say(f"{title} is left out: {exc}")
            continue
        scores[title] = float(np.exp(nll.astype(np.float64).mean()))
        say(f"{title}: {scores[title]:.3f}")
    return scores


def _group_size(checkpoint: Path) -> int:
    """What `edgekit build --precision int4_awq` uses for a model of this size."""
    from edgekit.checkpoint import read_checkpoint

    spec = read_checkpoint(checkpoint).spec
    return find_profile("cpu").storage_for("int4_awq", spec.size_params).group_size or 32


def _torch_scores(
    checkpoint: Path, ids: Sequence[int], group_size: int, threads: int
) -> dict[str, float]:
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.set_num_threads(threads)
    model: Any = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)

    def logits(window: Sequence[int]) -> list[Any]:
        with torch.inference_mode():
            return [model(torch.tensor([list(window)])).logits[0].numpy()]

    def score(name: str) -> TextScore:
        result = score_text(logits, ids)
        say(f"{name}: {result.perplexity:.3f} over {result.num_tokens} tokens")
        return result

    scores = {"fp32 (torch)": score("fp32 (torch)").perplexity}
    with torch.inference_mode():
        for layer in model.model.layers.modules():
            if isinstance(layer, torch.nn.Linear):
                layer.weight.copy_(rounded_to_int4(layer.weight, group_size))
    name = f"round-to-nearest int4, groups of {group_size} (torch)"
    scores[name] = score(name).perplexity
    return scores


def rounded_to_int4(weight: Any, group_size: int) -> Any:
    """Symmetric 4-bit integers, -8 to 7, in groups along the input axis: scale = largest / 7."""
    groups = weight.reshape(-1, group_size)
    scale = groups.abs().amax(dim=1, keepdim=True).clamp(min=1e-8) / 7
    return ((groups / scale).round().clamp(-8, 7) * scale).reshape(weight.shape)
