import json
import tempfile
from pathlib import Path
from typing import Any

from standin_answers import Answer  # type: ignore[import-not-found]  # on its PYTHONPATH

from edgekit.backends.tensorrt_llm.reader import CheckpointReader


class LLM:
    def __init__(self, model: str, tokenizer: object = None, **kwargs: object) -> None:
        config = json.loads((Path(model) / "config.json").read_text(encoding="utf-8"))
        with tempfile.TemporaryDirectory() as directory:
            files = Path(directory)
            (files / "config.json").write_text(json.dumps(config["pretrained_config"]))
            (files / "rank0.safetensors").symlink_to(Path(model).absolute() / "rank0.engine")
            size = int(config["build_config"]["max_seq_len"])
            self._reader = CheckpointReader(files, context_tokens=size, num_slots=1)
            self._reader.prefill(0, [1])  # reads every tensor
        self._gathers = bool(kwargs.get("gather_generation_logits"))

    def generate_async(
        self, inputs: list[int], sampling_params: Any = None, *, streaming: bool = False
    ) -> Answer:
        return Answer(self._reader, inputs, sampling_params, gathers=self._gathers)

    def shutdown(self) -> None:
        self._reader.close()
