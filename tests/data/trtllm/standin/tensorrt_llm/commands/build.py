"""`trtllm-build` in form: takes the real one's flags and writes the real one's files."""

import argparse
import json
import os
import shutil
import sys
from pathlib import Path

FLAGS = Path(__file__).parents[3] / "build_flags_1.2.json"


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    for name in json.loads(FLAGS.read_text(encoding="utf-8"))["flags"]:
        parser.add_argument(name)
    asked = parser.parse_args()
    sys.stdout.write("[TensorRT-LLM] TensorRT LLM version: 1.2.1\n")
    if os.environ.get("STANDIN_BREAKS") == "build":
        sys.stderr.write("[TRT-LLM] [E] CUDA out of memory\n")
        raise SystemExit(1)
    checkpoint, out = Path(asked.checkpoint_dir), Path(asked.output_dir)
    pretrained = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    built = {key.lstrip("-"): value for key, value in vars(asked).items()}
    config = {"version": "1.2.1", "pretrained_config": pretrained, "build_config": built}
    (out / "config.json").write_text(json.dumps(config), encoding="utf-8")
    shutil.copyfile(checkpoint / "rank0.safetensors", out / "rank0.engine")


if __name__ == "__main__":
    main()
