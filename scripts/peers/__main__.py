"""Parse, measure, print."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from edgekit.bench.conditions import BUSY_PERCENT
from edgekit.device import read_device
from edgekit.eval.perplexity import HELDOUT_TEXT
from edgekit.runtime.tokenizer import Tokenizer
from peers.catalog import DEFAULT_ENGINES, ENGINES, MODELS, Engine, Model
from peers.environment import CACHE, PeerError, say
from peers.memory import compare_memory
from peers.processor import PROCESSORS, Processor
from peers.quality import compare_quality
from peers.rounds import METRICS, Outcome, prepare_engines, run_rounds
from peers.speculation import compare_speculation
from peers.tables import speed_table

_TURNS = 4
"""In a round."""


def main() -> int:
    """`scripts/bench`."""
    options = _parse(sys.argv[1:])
    CACHE.mkdir(exist_ok=True)
    models = [MODELS[name] for name in options.models]
    engines = [ENGINES[name] for name in options.engines]
    try:
        if options.quality:
            return compare_quality(
                [model for model in models if model.has_quality],
                engines,
                text=options.text or HELDOUT_TEXT,
                threads=options.threads,
                processor=PROCESSORS[options.processor],
                rebuild=options.rebuild,
                out=options.out,
            )
        if options.memory:
            return compare_memory(
                models, threads=options.threads, rebuild=options.rebuild, out=options.out
            )
        if options.speculation:
            return compare_speculation(
                options.engine or _our_engines(options, models, engines),
                new_tokens=options.new_tokens, rounds=options.rounds, threads=options.threads,
                cost=options.marginal_cost, out=options.out,
            )  # fmt: skip
        return _compare_speed(options, models, engines)
    except PeerError as exc:
        say(f"error: {exc}")
        return 1


def _compare_speed(
    options: argparse.Namespace, models: Sequence[Model], engines: Sequence[Engine]
) -> int:
    processor: Processor = PROCESSORS[options.processor]
    turns = 1 if options.quick else _TURNS
    prepared = {
        model.name: prepare_engines(model, engines, processor, rebuild=options.rebuild)
        for model in models
    }
    for model in models:
        job = {
            "prompt_ids": _prompt_ids(model, options.prompt_tokens),
            "new_tokens": options.new_tokens,
            "threads": options.threads,
        }
        run_rounds(
            prepared[model.name],
            rounds=options.rounds,
            turns=turns,
            job=job,
            label=model.name,
            patience_s=options.patience,
        )
    device = read_device()
    name = f"{device.cpu}, {processor.title}" if processor.title else device.cpu
    of_rounds = f"medians of {options.rounds} rounds of {turns} turns, ratios within a turn"
    print(f"{name}; {options.threads} threads, {of_rounds}")
    disturbed = _disturbed([o for outcomes in prepared.values() for o in outcomes])
    if disturbed:
        print(f"Not quiet: in {disturbed} other programs used the processor; trust no ratio.")
    for model in models:
        print(f"\n{model.title}\n")
        print(speed_table(prepared[model.name], options.prompt_tokens, options.new_tokens))
    data = {
        "device": device.to_dict(),
        "processor": processor.name,
        "threads": options.threads,
        "rounds": options.rounds,
        "prompt_tokens": options.prompt_tokens,
        "new_tokens": options.new_tokens,
        "models": {name: _results(outcomes) for name, outcomes in prepared.items()},
    }
    out = options.out or CACHE / "speed.json"
    out.write_text(json.dumps(data, indent=2), encoding="utf-8")
    say(f"\nwritten to {out}")
    return 0


def _our_engines(
    options: argparse.Namespace, models: Sequence[Model], engines: Sequence[Engine]
) -> list[Path]:
    ours = [engine for engine in engines if engine.is_ours]
    outcomes = [
        outcome
        for model in models
        for outcome in prepare_engines(
            model, ours, PROCESSORS[options.processor], rebuild=options.rebuild
        )
    ]
    return [outcome.opened for outcome in outcomes if outcome.opened]


def _disturbed(outcomes: Sequence[Outcome]) -> str:
    """How many measurements began while others were busy; empty for none."""
    busy = [row["busy_percent"] > BUSY_PERCENT for outcome in outcomes for row in outcome.turns]
    return f"{sum(busy)} of {len(busy)} measurements" if any(busy) else ""


def _results(outcomes: Sequence[Outcome]) -> dict[str, object]:
    return {
        outcome.engine.name: {
            "medians": {metric: outcome.median(metric) for metric in METRICS},
            "turns": outcome.turns,
            "error": outcome.error,
        }
        for outcome in outcomes
    }


def _prompt_ids(model: Model, count: int) -> list[int]:
    """The first tokens of the held-out text; the same for every engine."""
    tokenizer = Tokenizer.load(model.checkpoint(CACHE / model.name))
    return tokenizer.encode(HELDOUT_TEXT.read_text(encoding="utf-8"), add_special=False)[:count]


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/bench", description="Compare edgekit with other engines on this machine."
    )
    parser.add_argument(
        "--models", type=_names(MODELS), default=["smollm2"], help=f"of {', '.join(MODELS)}"
    )
    parser.add_argument(
        "--engines", type=_names(ENGINES), default=list(DEFAULT_ENGINES),
        help=f"of {', '.join(ENGINES)}",
    )  # fmt: skip
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=read_device().cores, help="default: cores")
    parser.add_argument("--prompt-tokens", type=int, default=512, metavar="N")
    parser.add_argument("--new-tokens", type=int, metavar="N", help="128, or 200 for --speculation")
    parser.add_argument(
        "--patience", type=float, default=30, metavar="S",
        help="wait so long for other programs to be quiet before each round (30)",
    )  # fmt: skip
    parser.add_argument(
        "--processor", choices=list(PROCESSORS), default="native",
        help="avx2: hide this processor's AVX-512, AMX and VNNI from every engine",
    )  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="one round of one turn")
    parser.add_argument("--rebuild", action="store_true", help="build edgekit's engines again")
    parser.add_argument("--quality", action="store_true", help="perplexity instead of speed")
    parser.add_argument("--memory", action="store_true", help="planned against measured memory")
    parser.add_argument("--speculation", action="store_true", help="what prompt lookup gains")
    parser.add_argument(
        "--engine", type=Path, action="append", metavar="DIR",
        help="for --speculation: an engine directory; may be given again (default: --engines)",
    )  # fmt: skip
    parser.add_argument(
        "--marginal-cost", type=float, metavar="M",
        help="for --speculation: what the drafter takes a drafted token to cost, in passes",
    )  # fmt: skip
    parser.add_argument("--text", type=Path, metavar="FILE", help="for --quality")
    parser.add_argument("--out", type=Path, metavar="FILE", help="JSON; default: below .bench")
    options = parser.parse_args(arguments)
    if options.quick:
        options.rounds = 1
    if options.new_tokens is None:
        options.new_tokens = 200 if options.speculation else 128
    if options.prompt_tokens + options.new_tokens > 1000:
        parser.error("prompt and new tokens must stay below 1000 together")
    return options


def _names(known: Mapping[str, object]) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        names = text.split(",")
        if unknown := [name for name in names if name not in known]:
            raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}")
        return names

    return parse


if __name__ == "__main__":
    raise SystemExit(main())
