"""An engine from an ONNX folder, by Edge-LLM's native builder: `PYTHON onnx_build.py …`.

The wheel has this builder as a Python class only (`LLMBuilder` in `edgellm_pybind.cpp`). This file
imports nothing of edgekit and runs on Python 3.10 and later; all that it says is its log.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path
from typing import Any


def build(words: list[str]) -> bool:
    """Whether there is an engine now. Every size must be given."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("--onnx-dir", "--engine-dir"):
        parser.add_argument(name, required=True)
    for name in ("--max-input-len", "--max-kv-cache-capacity", "--max-batch-size"):
        parser.add_argument(name, type=int, required=True)
    asked = parser.parse_args(words)
    native: Any = importlib.import_module("tensorrt_edgellm.runtime").load()
    config = native.LLMBuilderConfig()
    config.max_input_len = asked.max_input_len
    config.max_kv_cache_capacity = asked.max_kv_cache_capacity
    config.max_batch_size = asked.max_batch_size
    return bool(native.LLMBuilder(asked.onnx_dir, asked.engine_dir, config).build())


def main() -> None:
    """Build, and end with 0 when there is an engine."""
    here = Path(__file__).resolve().parent  # its neighbours are no libraries
    sys.path[:] = [path for path in sys.path if Path(path).resolve() != here]
    if not build(sys.argv[1:]):
        sys.exit("the builder has failed")


if __name__ == "__main__":
    main()
