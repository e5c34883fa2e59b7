"""What both builders of the stand-in do. `build.json` in the source says how it goes:

says   lines of the log; `fails`: and then there is no engine
kill   a signal for itself   hang  seconds   drops_cache  an fp8 cache becomes fp16
small  the sizes are Edge-LLM's defaults     loses  a file that it does not write
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

SIZES = ("max_input_len", "max_kv_cache_capacity", "max_batch_size")


def build(source: Path, out: Path, sizes: dict[str, int], *, stamp: str) -> bool:
    """Whether there is an engine now."""
    how_file = source / "build.json"
    how = json.loads(how_file.read_text(encoding="utf-8")) if how_file.is_file() else {}

    def say(level: str, text: str) -> None:
        if level != "INFO" or os.environ.get("EDGELLM_LOG_LEVEL") == "INFO":
            sys.stdout.write(stamp.format(level) + text + "\n")
            sys.stdout.flush()

    say("INFO", f"Using __LUNOWUD={os.environ.get('__LUNOWUD', '')}")
    say("INFO", "Parsing ONNX model: model.onnx")
    say("INFO", "Global timing cache in use.")
    for text in how.get("says", []):
        say("ERROR", text)
    if "kill" in how:
        os.kill(os.getpid(), how["kill"])
    time.sleep(how.get("hang", 0))
    if how.get("fails"):
        return False
    say("INFO", "Engine generation completed in 5.3 seconds.")
    if how.get("small"):
        sizes = dict(zip(SIZES, (32, 96, 1), strict=True))
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    if how.get("drops_cache"):
        config["kv_cache_dtype"] = "fp16"
    files = {
        "llm.engine": "plan",
        "config.json": json.dumps({**config, "builder_config": sizes}),
        "tokenizer.json": (source / "tokenizer.json").read_text(encoding="utf-8"),
        "environment.json": json.dumps(dict(os.environ)),
    }
    out.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        if name != how.get("loses"):
            (out / name).write_text(text, encoding="utf-8")
    say("INFO", f"Engine saved to {out}/llm.engine")
    return True
