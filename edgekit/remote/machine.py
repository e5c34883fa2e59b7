"""Another machine that compiles: asked first, sent a stage, told to go on."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgekit.engine import STAGE_FILE, Manifest, engine_path, read_manifest, stage_path
from edgekit.errors import EngineError
from edgekit.pipeline import BuildResult, staged_key
from edgekit.plan import Plan
from edgekit.planning import Request
from edgekit.progress import Progress
from edgekit.remote.drive import Say, drive, parse_json
from edgekit.remote.facts import Facts, ask_facts, request_there, require_space
from edgekit.remote.send import send_commands, send_stage
from edgekit.remote.ssh import Address, Ssh, open_ssh


class Machine:
    """Another machine, connected to, whose facts are known and fit."""

    def __init__(self, ssh: Ssh, facts: Facts, *, runtimes: Sequence[str]) -> None:
        self._ssh = ssh
        self._runtimes = runtimes
        self.facts = facts

    def request(self, asked: Request) -> Request:
        """See `request_there`."""
        return request_there(self.facts, asked)

    def require_space(self, plan: Plan) -> None:
        """See `facts.require_space`."""
        require_space(self.facts, plan)

    def go_on(
        self, stage: Path, plan: Plan, *, force: bool, report: Progress, say: Say
    ) -> BuildResult:
        """The rest of a build from a stage, there; the engine's path is one there.

        On success nothing but the engine is left there; else the stage is, to be gone on with.
        Raises the errors of `send_stage` and those that `edgekit compile` there ends with.
        """
        if not force and (found := self._find(stage, plan)):
            say(f"this engine is on {self.facts.host} already; nothing to do")
            return found
        arrived = self._arrival(stage)
        send_stage(stage, self._ssh, arrived, report=report)
        try:
            words = self._words(arrived, plan) + (["--force"] if force else [])
            text = drive(self._ssh, words, report=report, say=say)
        except EngineError:
            self._ssh.run("rm", "-rf", "--", arrived)  # what arrived is not what was sent
            raise
        self._ssh.run("rm", "-rf", "--", arrived)
        return _read_engine(parse_json(self.facts.host, text), was_reused=False)

    def commands(self, plan: Plan, store: Path) -> list[str]:
        """What `go_on` runs for a stage in the store here, to be read."""
        stage = stage_path(
            engine_path(
                store,
                model=plan.model,
                profile=plan.profile,
                precision=plan.precision,
                backend=plan.backend,
            )
        )
        arrived, address = self._arrival(stage), self._ssh.address
        compiles = shlex.join([address.command, *self._words(arrived, plan)])
        return [
            *send_commands(stage, self._ssh, arrived),
            shlex.join(["ssh", address.host, compiles]),
        ]

    def _words(self, arrived: str, plan: Plan) -> list[str]:
        """Of `edgekit` there, which compiles what arrived."""
        words = ["compile", arrived, "--store", self._store, "--json"]
        words += ["--profile", plan.profile, "--context", str(plan.context_tokens)]
        words += ["--batch", str(plan.batch), "--speculation", plan.speculation]
        return [*words, *self._runtimes]

    def _arrival(self, stage: Path) -> str:
        """Where a stage is sent: the next one of its model, profile and kind replaces it."""
        return f"{self._store}/.work/arriving/{'--'.join(stage.absolute().parts[-3:])}"

    @property
    def _store(self) -> str:
        return self._ssh.address.path(self._ssh.address.store)

    def _find(self, stage: Path, plan: Plan) -> BuildResult | None:
        """The engine there that was compiled from the same stage."""
        staged = read_manifest(stage, file=STAGE_FILE)
        address = self._ssh.address
        done = self._ssh.run(address.command, "engines", "--json", "--store", self._store)
        text = done.stdout.decode(errors="replace")
        try:
            engines = json.loads(text[text.index("[") :])  # behind what a login shell prints
        except ValueError:
            return None
        for engine in engines:
            version = engine["backend"]["version"]
            if engine["build_key"] == staged_key(staged, version, plan):
                return _read_engine(engine, was_reused=True)
        return None


@contextmanager
def connect(address: Address, *, runtimes: Sequence[str] = ()) -> Iterator[Machine]:
    """Connect to a machine and ask it for its facts. Raises what `open_ssh` and `ask_facts` do.

    `runtimes`: options of edgekit there that say where NVIDIA's runtimes are.
    """
    with open_ssh(address) as ssh:
        yield Machine(ssh, ask_facts(ssh, runtimes=runtimes), runtimes=runtimes)


def _read_engine(data: dict[str, Any], *, was_reused: bool) -> BuildResult:
    """What `edgekit compile --json` or an entry of `edgekit engines --json` says."""
    engine = Path(data.pop("engine"))
    return BuildResult(engine=engine, manifest=Manifest(**data), was_reused=was_reused)
