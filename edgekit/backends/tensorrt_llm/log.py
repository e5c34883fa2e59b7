"""What `trtllm-build` prints: how far it is, and the last errors that it told.

[08/27/2025-08:22:30] [TRT] [I] Engine generation completed in 5.37531 seconds.
[08/27/2025-08:22:31] [TRT-LLM] [I] Serializing engine to …/rank0.engine...
"""

from __future__ import annotations

import re

from edgekit.backends import build_log
from edgekit.backends.build_log import TOTAL, Stage

STAGES = (
    Stage(says="TensorRT LLM inited", done=60),
    Stage(says="TensorRT-LLM inited", done=60),
    Stage(says="padding removal and fMHA are both enabled", done=120),
    Stage(says="Init CUDA:", done=140),
    Stage(says="Init builder kernel library", done=180),
    Stage(says="Total time of constructing network", done=230),
    Stage(says="Total time to initialize the weights", done=250),
    Stage(says="Build TensorRT engine", done=260),
    Stage(says="timing cache in use", done=270),
    Stage(says="network tensors", done=330),
    Stage(says="Total Weights Memory", done=700),
    Stage(says="Engine generation completed in", done=740),
    Stage(says="Total time of building Unnamed Network", done=800),
    Stage(says="Timing cache serialized", done=810),
    Stage(says="Serializing engine to", done=820),
    Stage(says="Engine serialized", done=980),
    Stage(says="Total time of building all engines", done=TOTAL),
)
"""In the order of the log. Shares are those of logs of 1B to 8B models; tuning kernels, between
330 and 700, is silent."""
_STAMP = re.compile(r"^\s*\[[\d/:. -]+\]\s*")
_LEVEL = re.compile(
    r"^(?:\[(?:TRT|TRT-LLM|TensorRT-LLM)\]\s*)?(?:\[MPI_Rank \d+\]\s*)?"
    r"\[(?P<level>[FEWIVD]|ERROR|FATAL|WARNING|INFO|DEBUG|TRACE)\]\s*"
)
_EMPTY = re.compile(r"Engine building failed, please check|^AssertionError:?$|^Killed$")
"""Errors that say no more than that there was one."""


class BuildLog(build_log.BuildLog):
    """The log of one `trtllm-build`."""

    def __init__(self) -> None:
        super().__init__(STAGES, split=split_line, empty=_EMPTY)


def split_line(line: str) -> tuple[str, str]:
    """`"[…] [TRT] [E] text"` -> `("E", "text")`; the level is empty where there is none."""
    text = _STAMP.sub("", line).strip()
    found = _LEVEL.match(text)
    if found is not None:
        text = text[found.end() :]
    return found["level"] if found is not None else "", " ".join(text.split())
