"""TensorRT-LLM's builder and LLM API in form: an "engine" is the checkpoint, and answers are those
of edgekit's reader, which computes what a real engine would. `STANDIN_BREAKS` breaks it."""

__version__ = "1.2.1"


class SamplingParams:
    def __init__(self, **fields: object) -> None:
        self.__dict__.update(fields)
