"""A step in a process of its own: what it breaks, it breaks there."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from edgekit.cli.progress import ProgressLine
from edgekit.progress import Progress
from gpu_check.job import Job, Outcome
from gpu_check.lines import Line, Part, failed, must
from gpu_check.rig import real_rig
from gpu_check.table import steps_of

_ROOT = Path(__file__).resolve().parents[2]
_INTERRUPTED = 130
_PATIENCE_S = 30.0
"""For a step that was told to end: a compiler ends between two of its own steps."""
_VARIABLES = {
    # as NVML counts; by default CUDA puts the fastest card first
    "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
}
_ONE_CARD = "CUDA_VISIBLE_DEVICES"
"""Nothing of a step runs on another card than the one whose memory is read."""
_WITHOUT_KERNELS = {"CUDA_CACHE_DISABLE": "1"}
"""The driver keeps compiled kernels, too."""


def isolated(step: str, job: Job) -> Outcome:
    """Run a step of `steps_of` in a new process; one that dies is a line that failed.

    On Ctrl-C it waits for the process, which hears it as well, and then raises
    `KeyboardInterrupt`.
    """
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as folder:
        given, taken = Path(folder) / "job.json", Path(folder) / "out.json"
        given.write_text(job.to_json(), encoding="utf-8")
        variables = {**os.environ, **_VARIABLES}
        variables |= {} if job.gpu_uuid is None else {_ONE_CARD: job.gpu_uuid}
        variables |= _WITHOUT_KERNELS if step == "first load" else {}
        variables["PYTHONPATH"] = os.pathsep.join([str(_ROOT), str(_ROOT / "scripts")])
        command = [sys.executable, "-m", "gpu_check.processes", step, str(given), str(taken)]
        code = _run(command, variables)
        if code == _INTERRUPTED:
            raise KeyboardInterrupt
        if not taken.is_file():
            name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            return Outcome(lines=[must(step, False, f"the process died: {name}")])
        data = json.loads(taken.read_text(encoding="utf-8"))
    part = Part.from_dict({"step": step, "subject": "", "seconds": 0.0, "lines": data["lines"]})
    return Outcome(lines=list(part.lines), facts=data["facts"])


def _run(command: list[str], variables: dict[str, str]) -> int:
    process = subprocess.Popen(command, env=variables, stdin=subprocess.DEVNULL)
    try:
        return process.wait()
    except KeyboardInterrupt:
        _end(process)
        raise
    except BaseException:
        process.kill()
        process.wait()
        raise


def _end(process: subprocess.Popen[bytes]) -> None:
    """A terminal has told the process as well, `kill` has not."""
    try:
        process.wait(1.0)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def perform(step: str, job: Job, report: Progress) -> Outcome:
    """Run a step in this process; what it raises is a line that failed."""
    try:
        return steps_of(job.backend)[step](job, real_rig(job.gpu_index), report)
    except Exception as exc:  # the border: a driver may raise anything, and the rest is to go on
        return Outcome(lines=[failed(step, exc)])


def main(arguments: list[str]) -> int:
    """`python -m gpu_check.processes STEP JOB.json OUT.json`."""
    step, given, taken = arguments[0], Path(arguments[1]), Path(arguments[2])
    try:
        with ProgressLine() as report:
            outcome = perform(step, Job.from_json(given.read_text(encoding="utf-8")), report)
    except KeyboardInterrupt:
        return _INTERRUPTED
    lines = [_plain(line) for line in outcome.lines]
    taken.write_text(json.dumps({"lines": lines, "facts": outcome.facts}), encoding="utf-8")
    return 0


def _plain(line: Line) -> dict[str, object]:
    return {**asdict(line), "samples": list(line.samples)}


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
