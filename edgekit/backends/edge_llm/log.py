"""What Edge-LLM's builders print: how far they are, and the last errors that they told.

    [12:03:01.123] [INFO] [llmBuilder.cpp:231:build] Parsing ONNX model: …      the native builder
    [12:03:09.456] [INFO] [TensorRT] Engine generation completed in 5.3 seconds.
    2026-11-29 12:03:01,123 INFO experimental.builder: Building component llm   the direct builder
    2026-11-29 12:03:09,456 INFO experimental.builder.core.builder: [TRT] Engine generation …

The native one says so only with `EDGELLM_LOG_LEVEL=INFO` (`cpp/common/logger.h`).
"""

from __future__ import annotations

import re

from edgekit.backends import build_log
from edgekit.backends.build_log import TOTAL, Stage

STAGES = (
    Stage(says="Using TRT_VERSION=", done=10),
    Stage(says="Building component", done=10),
    Stage(says="Parsing ONNX model", done=20),
    Stage(says="model_type=", done=20),
    Stage(says="Externalizing", done=40),
    Stage(says="Building serialized engine", done=150),
    Stage(says="Init CUDA:", done=160),
    Stage(says="Init builder kernel library", done=180),
    Stage(says="timing cache in use", done=220),
    Stage(says="network tensors", done=300),
    Stage(says="Total Weights Memory", done=780),
    Stage(says="Engine generation completed in", done=820),
    Stage(says="Engine written to", done=960),
    Stage(says="Engine saved to", done=960),
    Stage(says="Saved config with builder info", done=980),
    Stage(says="Engine outputs:", done=TOTAL),
)
"""In the order of the logs. Shares are estimates from TensorRT's usual course: tuning kernels,
between 300 and 780, is silent and takes longest."""
_NATIVE = re.compile(r"^\[[\d:.]+\] \[(?P<level>[A-Z]+)\](?: \[[^\]]*\])?\s*")
_DIRECT = re.compile(
    r"^\d{4}-\d\d-\d\d [\d:,]+ (?P<level>[A-Z]+) [\w.]+:\s*(?:\[(?:TRT|TensorRT)\]\s*)?"
)
_EMPTY = re.compile(
    r"build_serialized_network returned None|Failed to build serialized engine|^Killed$|"
    r"Failed to parse ONNX file|the builder has failed"
)
"""Errors that say no more than that there was one."""


class BuildLog(build_log.BuildLog):
    """The log of one build."""

    def __init__(self) -> None:
        super().__init__(STAGES, split=split_line, empty=_EMPTY)


def split_line(line: str) -> tuple[str, str]:
    """`"[…] [ERROR] [TensorRT] text"` -> `("ERROR", "text")`; no level: empty."""
    text = line.strip()
    for form in (_NATIVE, _DIRECT):
        if found := form.match(text):
            return found["level"], " ".join(text[found.end() :].split())
    return "", " ".join(text.split())
