"""Parse, run the checks, print a table."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from edgekit.bench.tables import markdown_table
from edgekit.device import read_device
from edgekit.errors import EdgekitError
from edgekit.eval.perplexity import HELDOUT_TEXT
from peers.environment import CACHE, PeerError, say
from serve_load.checks import CHECKS, Plan, Row
from serve_load.client import LostError
from serve_load.llama_server import llama_tool
from serve_load.prepare import smollm2_engine, smollm2_q4_0

_MARKS = {True: "ok", False: "FAILED", None: ""}


def main() -> int:
    """`scripts/serve-load`. Exit code 1: a check failed."""
    options = _parse(sys.argv[1:])
    # leaves by way of every `finally`, so that no server goes on alone
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    CACHE.mkdir(exist_ok=True)
    try:
        plan = _plan(options)
        rows = [row for name in options.only or CHECKS for row in CHECKS[name](plan)]
    except (PeerError, LostError, EdgekitError) as exc:
        say(f"error: {exc}")
        return 1
    device = read_device()
    print(f"{device.cpu}, {device.cores} cores; {plan.engine.name}, {plan.slots} slots\n")
    print(_table(rows))
    if options.json is not None:
        options.json.write_text(_as_json(device.to_dict(), rows), encoding="utf-8")
    return int(any(row.is_met is False for row in rows))


def _table(rows: Sequence[Row]) -> str:
    lines = [[row.name, row.measured, row.wanted, _MARKS[row.is_met]] for row in rows]
    return markdown_table(["check", "measured", "wanted", ""], lines, text_columns=4)


def _as_json(device: dict[str, object], rows: Sequence[Row]) -> str:
    checks = [
        {"name": row.name, "measured": row.measured, "wanted": row.wanted, "is_met": row.is_met,
         "value": row.value}
        for row in rows
    ]  # fmt: skip
    return json.dumps({"device": device, "checks": checks}, indent=2)


def _plan(options: argparse.Namespace) -> Plan:
    llama = None
    if not options.no_peer and (not options.only or "throughput" in options.only):
        llama = (
            options.llama_server or llama_tool("llama-server"),
            options.llama_model or smollm2_q4_0(),
        )
    return Plan(
        engine=(options.engine or smollm2_engine()).resolve(),
        slots=options.slots,
        clients=options.clients,
        soak_s=20 if options.quick else options.seconds,
        rounds=1 if options.quick else options.rounds,
        requests=1 if options.quick else 2,
        samples=20 if options.quick else 60,
        seed=options.seed,
        threads=read_device().cores,
        llama=llama,
        text=HELDOUT_TEXT.read_text(encoding="utf-8"),
    )


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/serve-load", description="See whether `edgekit serve` holds, and how fast."
    )
    parser.add_argument("--only", action="append", choices=list(CHECKS), help="may be given again")
    parser.add_argument("--engine", type=Path, metavar="DIR", help="default: SmolLM2, int4_awq")
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--clients", type=int, default=64, help="of the soak")
    parser.add_argument("--seconds", type=float, default=180, help="of the soak")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--no-peer", action="store_true", help="without llama.cpp")
    parser.add_argument("--llama-server", type=Path, metavar="PROGRAM", help="default: compiled")
    parser.add_argument("--llama-model", type=Path, metavar="FILE.gguf", help="default: Q4_0")
    parser.add_argument("--quick", action="store_true", help="seconds instead of minutes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="every sample, too")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
