"""Parse, fill, count, print."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any

from jsonschema.validators import validator_for

from edgekit.engine import find_engine
from edgekit.errors import EdgekitError, InputError
from edgekit.runtime.load import LoadedEngine, load_engine
from edgekit.runtime.sampling import Sampling
from edgekit.runtime.slot import Slot
from edgekit.runtime.structure import Structure, StructureCompiler
from structures.filling import Filled, ReplayingSampler, SteeredSampler, generate, prompt_of
from structures.suite import CACHE, Case, read_cases

ROOT = Path(__file__).resolve().parents[2]
REAL_SCHEMAS = ROOT / "tests" / "data" / "schemas"
WAYS = {"greedy": Sampling(), "sampled": Sampling(temperature=0.8, top_p=0.95, seed=7)}


def main() -> int:
    """`scripts/structure`."""
    options = _parse(sys.argv[1:])
    try:
        directory = find_engine(options.store, options.engine)
        engine = load_engine(directory, threads=options.threads)
    except EdgekitError as exc:
        print(f"error: {exc}", file=sys.stderr)
        return exc.exit_code
    with engine:
        compiler = StructureCompiler(engine.tokenizer, vocab_size=engine.session.vocab_size)
        print(f"{directory.name} of {engine.manifest.model}")
        results = {} if options.overhead else _fill_suite(engine, compiler, options)
        overhead = _overhead(engine, compiler, rounds=1 if options.quick else options.rounds)
    report = {"engine": directory.name, "suite": results, "overhead": overhead}
    CACHE.mkdir(parents=True, exist_ok=True)
    out = options.out or CACHE / "result.json"
    out.write_text(json.dumps(report, indent=2, ensure_ascii=False), encoding="utf-8")
    print(f"written to {out}", file=sys.stderr)
    return int(any(way["wrong"] for way in results.get("ways", {}).values()))


def _fill_suite(
    engine: LoadedEngine, compiler: StructureCompiler, options: argparse.Namespace
) -> dict[str, Any]:
    cases = read_cases()
    usable, refused = _choose(cases, compiler)
    judged = [case for case in usable if case.is_judged_rightly]
    print(f"{len(cases)} different schemas in the suite")
    print(f"{sum(refused.values())} refused:")
    for reason, count in refused.most_common():
        print(f"  {count:4d}  {reason}")
    print(f"{len(usable) - len(judged)} left out: jsonschema fails the suite's own tests of them")
    asked = judged[::20] if options.quick else judged
    print(f"{len(asked)} asked, at most {options.max_new_tokens} tokens each", flush=True)
    ways = {
        name: _fill(engine, compiler, asked, sampling, max_new_tokens=options.max_new_tokens)
        for name, sampling in WAYS.items()
    }
    for name, way in ways.items():
        print(
            f"{name}: {way['complete']} complete, {way['cut']} cut at the limit, "
            f"{way['parsed']} parsed, {way['valid']} valid; {way['tokens']} tokens, "
            f"mask {way['mask_us_mean']:.0f} us a token (median {way['mask_us_median']:.0f}, "
            f"largest {way['mask_us_largest']:.0f})"
        )
        for wrong in way["wrong"]:
            print(f"  WRONG {wrong['name']}: {wrong['text']!r}: {wrong['reason']}")
    return {"schemas": len(cases), "refused": refused, "asked": len(asked), "ways": ways}


def _choose(cases: Sequence[Case], compiler: StructureCompiler) -> tuple[list[Case], Counter[str]]:
    """What can be enforced, and how many of the rest for which reason."""
    usable: list[Case] = []
    refused: Counter[str] = Counter()
    for case in cases:
        try:
            compiler.constraint(Structure(json_schema=case.schema))
            usable.append(case)
        except InputError as exc:
            named = re.match(r"the schema uses what cannot be enforced: .*", str(exc))
            refused[named[0] if named else re.split(r": |\d", str(exc))[0].strip()] += 1
    return usable, refused


def _fill(
    engine: LoadedEngine,
    compiler: StructureCompiler,
    cases: Sequence[Case],
    sampling: Sampling,
    *,
    max_new_tokens: int,
) -> dict[str, Any]:
    slot = Slot(engine.session)
    wrong: list[dict[str, str]] = []
    counts: Counter[str] = Counter()
    mask_us: list[float] = []
    for number, case in enumerate(cases):
        print(f"\r{number}/{len(cases)}", end="", file=sys.stderr, flush=True)
        made = _answer(engine, compiler, slot, case.schema, sampling, max_new_tokens)
        mask_us += made.mask_us
        counts["complete" if made.is_complete else "cut"] += 1
        stage, reason = _judge(made.text, case.schema)
        counts["parsed"] += stage != "unreadable"
        counts["valid"] += stage == "valid"
        if stage != "valid":
            wrong.append({"name": case.name, "text": made.text, "reason": reason})
    print("\r", end="", file=sys.stderr)
    return {
        **{name: counts[name] for name in ("complete", "cut", "parsed", "valid")},
        "wrong": wrong,
        "tokens": len(mask_us),
        "mask_us_mean": mean(mask_us),
        "mask_us_median": median(mask_us),
        "mask_us_largest": max(mask_us),
    }


def _answer(
    engine: LoadedEngine,
    compiler: StructureCompiler,
    slot: Slot,
    schema: Any,
    sampling: Sampling,
    max_new_tokens: int,
) -> Filled:
    constraint = compiler.constraint(Structure(json_schema=schema))
    constraint.end_within(max_new_tokens)
    sampler = SteeredSampler(sampling, constraint)
    prompt_ids = prompt_of(engine, schema)
    return generate(engine, slot, prompt_ids, sampler, max_new_tokens=max_new_tokens)


def _judge(text: str, schema: Any) -> tuple[str, str]:
    try:
        value = json.loads(text)
    except ValueError as exc:
        return "unreadable", str(exc)
    error = next(validator_for(schema)(schema).iter_errors(value), None)
    return ("valid", "") if error is None else ("invalid", error.message)


def _overhead(engine: LoadedEngine, compiler: StructureCompiler, *, rounds: int) -> dict[str, Any]:
    """The same tokens with the constraint and without it, in turns, for everyday schemas."""
    slot = Slot(engine.session)
    ratios: list[float] = []
    mask_us: list[float] = []
    step_ms: list[float] = []
    for _ in range(rounds):
        for path in sorted(REAL_SCHEMAS.glob("*.json")):
            schema = json.loads(path.read_text(encoding="utf-8"))
            steered = _answer(engine, compiler, slot, schema, Sampling(), 128)
            script = [*steered.token_ids, min(engine.tokenizer.stop_ids)]
            replay = ReplayingSampler(Sampling(), script)
            free = generate(engine, slot, prompt_of(engine, schema), replay, max_new_tokens=128)
            assert free.token_ids == steered.token_ids
            mask_us += steered.mask_us
            if steered.step_ms and free.step_ms:
                ratios.append(steered.step_ms / free.step_ms)
                step_ms.append(free.step_ms)
    print(
        f"overhead: {len(mask_us)} tokens of {len(ratios)} answers, mask {mean(mask_us):.0f} us a "
        f"token (median {median(mask_us):.0f}), step {median(step_ms):.2f} ms without it: "
        f"{mean(mask_us) / median(step_ms) / 10:.2f} %; steps took {median(ratios):.3f} of the time"
    )
    return {
        "mask_us_mean": mean(mask_us),
        "mask_us_median": median(mask_us),
        "step_ms": median(step_ms),
        "ratio": median(ratios),
    }


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/structure", description=__doc__)
    parser.add_argument("engine", nargs="?", help="default: the newest in the store")
    parser.add_argument("--store", type=Path, default=ROOT / "engines")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3, help="of the overhead")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--overhead", action="store_true", help="nothing but the overhead")
    parser.add_argument("--out", type=Path)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
