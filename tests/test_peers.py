"""The comparison script: turns and their ratios, and engines that are shown an older processor."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

hides = pytest.mark.skipif(
    (platform.system(), platform.machine()) != ("Linux", "x86_64")
    or not (shutil.which("cc") and shutil.which("objdump")),
    reason="hides instructions of x86-64 on Linux, with cc and objdump",
)
_FEATURES = """
from numpy._core._multiarray_umath import __cpu_features__ as found
print(*(int(found[name]) for name in ("AVX2", "AVX512F", "AVX512_SPR")))
"""


@pytest.fixture
def processor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The module of scripts/peers, with a folder of its own to keep things in."""
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "scripts")
    found = import_module("peers.processor")
    monkeypatch.setattr(found, "CACHE", tmp_path)
    return found


def features(**variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", _FEATURES],
        env={**os.environ, **variables}, capture_output=True, text=True, check=False,
    )  # fmt: skip


@hides
def test_a_library_sees_avx2_and_nothing_newer(processor: Any) -> None:
    library = Path(np.__file__).parent.glob("_core/_multiarray_umath*.so")
    hidden = features(**processor.hiding(library))
    assert hidden.stdout.split() == [features().stdout.split()[0], "0", "0"], hidden.stderr


@hides
def test_another_instruction_is_left_alone(processor: Any) -> None:
    [library] = Path(np.__file__).parent.glob("_core/_multiarray_umath*.so")
    variables = processor.hiding([library])
    Path(variables["HIDE_CPUID_PLACES"]).write_text(f"1000 {library.resolve()}\n")
    done = features(**variables)
    assert done.returncode == 97
    assert "not the library that was looked at" in done.stderr


def test_a_ratio_is_taken_within_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "scripts")
    rounds, catalog = import_module("peers.rounds"), import_module("peers.catalog")
    engine = next(iter(catalog.ENGINES.values()))

    def outcome(*speeds: tuple[int, float]) -> Any:
        found = rounds.Outcome(engine=engine, processor=None)
        found.turns += [{"turn": number, "tg": speed} for number, speed in speeds]
        return found

    # the machine slows down to a half, and the peer's second turn is missing: 1.1, 1.2, 1.3
    ours = outcome((0, 110), (1, 90), (2, 60), (3, 65))
    peer = outcome((0, 100), (2, 50), (3, 50))
    assert ours.ratio(peer, "tg") == pytest.approx(1.2)
    assert ours.median("tg") == 77.5
    assert outcome((1, 5)).ratio(peer, "tg") is None


WORKER = """
import json, os, sys
out = open(int(sys.argv[-1]), "w")
def say(**values):
    print(json.dumps(values), file=out, flush=True)
{loads}
for line in sys.stdin:
    {turn}
"""


@pytest.fixture
def make_worker(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Callable[[str, str], Any]]:
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "scripts")
    made = []

    def make(loads: str, turn: str) -> Any:
        worker = import_module("peers.turns").Worker(
            [sys.executable, "-c", WORKER.format(loads=loads, turn=turn)],
            title="an engine", environment=os.environ, log=tmp_path / "log", timeout_s=60,
        )  # fmt: skip
        made.append(worker)
        return worker

    yield make
    for worker in made:
        worker.close()


def test_engines_wait_for_their_turn(make_worker: Callable[[str, str], Any]) -> None:
    first, second = (make_worker(f"say(load_s={n})", f"say(tg={n}0 + int(line))") for n in (1, 2))
    found = [worker.turn(number) for number in (3, 4) for worker in (first, second)]
    assert [row["tg"] for row in found] == [13, 23, 14, 24]
    assert [row["load_s"] for row in found] == [1, 2, 1, 2]


@pytest.mark.parametrize(
    ("loads", "turn", "reason"),
    [
        ("sys.exit('no such kernel')", "", "an engine: no such kernel"),
        ("say(load_s=1)", "sys.exit('out of memory')", "an engine: out of memory"),
        ("say(load_s=1)", "os.kill(os.getpid(), 11)", r"an engine: crashed \(SIGSEGV\)"),
    ],
)
def test_an_engine_that_fails_says_why(
    loads: str, turn: str, reason: str, make_worker: Callable[[str, str], Any]
) -> None:
    with pytest.raises(import_module("peers.environment").PeerError, match=reason):
        make_worker(loads, turn or "pass").turn(0)


def test_an_engine_that_says_nothing_is_not_waited_for(
    make_worker: Callable[[str, str], Any],
) -> None:
    worker = make_worker("say(load_s=1)", "pass")
    worker.timeout_s = 0.2
    with pytest.raises(import_module("peers.environment").PeerError, match="not done after 0 s"):
        worker.turn(0)
    worker.close()
    worker.close()


def test_an_engine_that_fails_in_its_turn_is_left_out_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "scripts")
    rounds, catalog = import_module("peers.rounds"), import_module("peers.catalog")
    failure = import_module("peers.environment").PeerError
    called: list[tuple[str, int]] = []
    closed: list[str] = []

    class Fake:
        def __init__(self, name: str) -> None:
            self.name = name

        def turn(self, number: int) -> dict[str, float]:
            called.append((self.name, number))
            if (self.name, number) == (names[1], 1):
                raise failure("out of memory")
            return {"pp": 1.0, "tg": 1.0}

        def __enter__(self) -> Fake:
            return self

        def __exit__(self, *_: object) -> None:
            closed.append(self.name)

    engines = list(catalog.ENGINES.values())[:2]
    names = [engine.name for engine in engines]
    outcomes = [rounds.Outcome(engine=each, processor=None, opened=tmp_path) for each in engines]
    monkeypatch.setattr(rounds, "CACHE", tmp_path)
    monkeypatch.setattr(rounds, "_worker", lambda outcome, job: Fake(outcome.engine.name))
    monkeypatch.setattr(rounds, "_wait_until_quiet", lambda patience: 0.0)
    rounds.run_rounds(outcomes, rounds=2, turns=2, job={}, label="model")
    first, second = names
    # the second turn begins with the second engine, which fails and is not loaded again
    assert called == [(first, 0), (second, 0), (second, 1), (first, 1), (first, 2), (first, 3)]
    assert [len(outcome.turns) for outcome in outcomes] == [4, 1]
    assert [outcome.error for outcome in outcomes] == [None, "out of memory"]
    assert sorted(closed) == sorted([first, second, first])
