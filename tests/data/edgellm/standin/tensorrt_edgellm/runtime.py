"""What `worker.py` and `onnx_build.py` use of Edge-LLM's bindings: its names, its signatures.

`fake.json` in the engine's directory says how loading goes, the first token of a prompt how the
answer goes; `seen.jsonl` there is written with what was asked. A prompt is a text of numbers; token
i of an answer is `prompt[0] + 1 + i`, and `eos_token_id` of `config.json` ends it. Without that
file answers are those of the checkpoint (`computed.py`).
"""

from __future__ import annotations

import enum
import importlib
import json
import os
import signal
import sys
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

VOCAB = 1000
(
    EXIT,
    KILL,
    SEGV,
    OOM,
    OOM_TEXT,
    HANG,
    PRINT,
    SILENT,
    BURST,
    BAD_ALLOC,
    LOST,
    DEAF,
    NO_END,
    UNREAD,
) = range(900, 914)


class NativeRuntimeError(RuntimeError):
    """The base of Edge-LLM's own."""


class NativeSelectionError(NativeRuntimeError):
    """No payload of the wheel fits."""


class SubmitError(RuntimeError):
    """The queue is full: come again."""


class FinishReason(enum.Enum):
    NOT_FINISHED, END_ID, LENGTH, CANCELLED, ERROR, STOP_WORDS = range(6)


class ShutdownMode(enum.Enum):
    DRAIN, CANCEL = range(2)


@dataclass
class LogprobEntry:
    token_id: int
    logprob: float
    piece: bytes = b""


@dataclass
class StreamChunk:
    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    prompt_token_count: int = -1
    finished: bool = False
    reason: FinishReason = FinishReason.NOT_FINISHED
    logprobs: list[list[LogprobEntry]] = field(default_factory=list)


class StreamChannel:
    def __init__(self) -> None:
        self._chunks: deque[StreamChunk] = deque()
        self._change = threading.Condition()
        self._finished = self._cancelled = False
        self._skips = True

    @staticmethod
    def create() -> StreamChannel:
        return StreamChannel()

    def wait_pop(self, timeout_ms: int) -> StreamChunk | None:
        with self._change:
            ended = lambda: self._chunks or self._finished or self._cancelled  # noqa: E731
            self._change.wait_for(ended, timeout_ms / 1000)
            return self._chunks.popleft() if self._chunks else None

    def try_pop(self) -> StreamChunk | None:
        return self.wait_pop(0)

    def is_finished(self) -> bool:
        return self._finished

    def is_cancelled(self) -> bool:
        return self._cancelled

    def cancel(self) -> None:
        with self._change:
            self._cancelled = True
            self._change.notify_all()

    def set_skip_special_tokens(self, skip: bool) -> None:
        self._skips = skip

    def push(self, chunk: StreamChunk) -> None:
        with self._change:
            self._chunks.append(chunk)
            self._finished = self._finished or chunk.finished
            self._change.notify_all()


@dataclass
class Message:
    role: str
    text: str


def create_text_message(role: str, text: str) -> Message:
    return Message(role, text)


class Request:
    def __init__(self, messages: list[Message]) -> None:
        self.messages = messages
        self.stop_strings: list[str] = []
        self.sampling_seed: int | None = None
        self.logit_bias: dict[int, float] = {}


class LLMGenerationRequest:
    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.stream_channels: list[StreamChannel] = []
        self.temperature, self.top_p, self.top_k = 1.0, 0.8, 50
        self.max_generate_length = 256
        self.apply_chat_template = self.add_generation_prompt = True
        self.enable_thinking = self.disable_spec_decode = False
        self.skip_special_tokens = True
        self.num_logprobs = 0


class ContextCacheConfig:
    enabled = False


class LLMRuntime:
    """One request at a time."""

    def __init__(
        self,
        engine_dir: str,
        multimodal_engine_dir: str = "",
        lora_weights_map: dict[str, str] | None = None,
        checkpoint_dir: str = "",
        context_cache_config: ContextCacheConfig | None = None,
    ) -> None:
        self._directory = Path(engine_dir)
        self._lock = threading.Lock()
        self._see({"kind": type(self).__name__, "checkpoint_dir": checkpoint_dir})
        config = json.loads((self._directory / "config.json").read_text(encoding="utf-8"))
        self._end_id = config.get("eos_token_id")
        self.behaviour: dict[str, Any] = {}
        self._computed: Any = None
        if not (self._directory / "fake.json").is_file():
            kind: Any = importlib.import_module("tensorrt_edgellm.computed").Computed
            self._computed = kind(self._directory, Path(checkpoint_dir), config)
            return
        self.behaviour = json.loads((self._directory / "fake.json").read_text(encoding="utf-8"))
        how = self.behaviour.get("load", "well")
        if how == "hang":
            time.sleep(600)
        elif how == "log":
            os.write(1, self.behaviour["says"].encode() + b"\n")
            raise RuntimeError("Failed to initialize the runtime")
        elif how != "well":
            _misbehave(int(how))

    def capture_decoding_cuda_graph(self) -> bool:
        return True

    def count_prompt_tokens(self, request: LLMGenerationRequest) -> list[int]:
        assert not request.apply_chat_template
        if self._computed is not None:
            return [self._computed.count(request)]
        prompt = self._prompt(request)
        return [0 if prompt[0] == UNREAD else len(prompt) + self.behaviour.get("more", 0)]

    def handle_request(self, request: LLMGenerationRequest) -> None:
        with self._lock:
            self._see(self._shown(request))
            for _ in self._steps(request):
                time.sleep(0.002)

    def _steps(self, request: LLMGenerationRequest) -> Any:
        """One step of the answer at a time, into the request's channel."""
        if self._computed is not None:
            yield from self._computed.steps(request, sys.modules[__name__])
            return
        (channel,), prompt = request.stream_channels, self._prompt(request)
        made, first, reason = 0, prompt[0], FinishReason.NOT_FINISHED
        if request.top_k < 1 and request.top_p >= 1:
            raise ValueError("Either topK or topP must be set")
        while reason is FinishReason.NOT_FINISHED:
            yield
            if made == 2:
                if first == LOST:
                    raise RuntimeError("the sequence failed during generation")
                _misbehave(first)
            while first == SILENT and made == 2 and not channel.is_cancelled():
                yield
            if channel.is_cancelled():
                channel.push(StreamChunk(finished=True, reason=FinishReason.CANCELLED))
                return
            new = []
            for _ in range(3 if first == BURST else 1):
                token = (first + 1 + made) % VOCAB
                made += 1
                if token == self._end_id and token not in request.requests[0].logit_bias:
                    reason = FinishReason.END_ID
                    break
                new.append(token)
                if made >= request.max_generate_length and first != BURST:
                    reason = FinishReason.LENGTH
                    break
            if made > 30 and first == BURST:
                reason = FinishReason.LENGTH
            channel.push(self._chunk(request, new, len(prompt), reason))
        if first == NO_END:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def _chunk(
        self, request: LLMGenerationRequest, new: list[int], prompt: int, reason: FinishReason
    ) -> StreamChunk:
        count = request.num_logprobs
        if self._prompt(request)[0] == DEAF:
            prompt = 0
        if self._prompt(request)[0] == NO_END and reason is not FinishReason.NOT_FINISHED:
            reason = FinishReason.ERROR
        return StreamChunk(
            token_ids=new,
            text=" ".join(map(str, new)),
            prompt_token_count=prompt,
            finished=reason is not FinishReason.NOT_FINISHED,
            reason=reason,
            # the token itself has 0.5, the next one 0.25, and so on
            logprobs=[
                [LogprobEntry((t + i) % VOCAB, -0.6931472 * (i + 1)) for i in range(count)]
                for t in new
            ]
            if count
            else [],
        )

    def _prompt(self, request: LLMGenerationRequest) -> list[int]:
        return [
            int(word) for message in request.requests[0].messages for word in message.text.split()
        ]

    def _shown(self, request: LLMGenerationRequest) -> dict[str, Any]:
        (item,) = request.requests
        plain = {k: v for k, v in vars(request).items() if isinstance(v, int | float)}
        return {**plain, "text": item.messages[0].text, "seed": item.sampling_seed,
                "logit_bias": item.logit_bias}  # fmt: skip

    def _see(self, what: dict[str, Any]) -> None:
        if (self._directory / "fake.json").is_file():  # else it is an engine that is not touched
            with (self._directory / "seen.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(what) + "\n")


class RequestHandle:
    def __init__(self, channel: StreamChannel) -> None:
        self._channel = channel
        self.error: Exception | None = None
        self.over = threading.Event()

    def ready(self) -> bool:
        return self.over.is_set()

    def get(self) -> None:
        self.over.wait()
        if self.error is not None:
            raise self.error
        if self._channel.is_cancelled():
            raise RuntimeError("the request was cancelled")

    def cancel(self) -> None:
        self._channel.cancel()


class RequestEngine(LLMRuntime):
    """Several at once, by one thread; its queue is short."""

    def __init__(self, *args: Any, max_batch_size: int = 1, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._see({"max_batch_size": max_batch_size})
        self._size = max_batch_size
        self._running: list[Any] = []
        self._queue: deque[Any] = deque()
        threading.Thread(target=self._act, daemon=True).start()

    def submit(self, request: LLMGenerationRequest) -> RequestHandle:
        if len(self._queue) >= 2:
            raise SubmitError("RequestEngine command queue is full; retry later.")
        self._see(self._shown(request))
        handle = RequestHandle(request.stream_channels[0])
        self._queue.append((handle, self._steps(request)))
        return handle

    def _act(self) -> None:
        while True:
            time.sleep(0.002)
            while self._queue and len(self._running) < self._size:
                self._running.append(self._queue.popleft())
            for entry in list(self._running):
                handle, steps = entry
                try:
                    next(steps)
                    continue
                except StopIteration:
                    pass
                except Exception as exc:
                    handle.error = exc
                self._running.remove(entry)
                handle.over.set()


class LLMBuilderConfig:
    max_input_len = max_batch_size = max_kv_cache_capacity = 0


class LLMBuilder:
    """Writes an engine that says what it was built with; `build.json` beside the ONNX: how."""

    def __init__(self, onnx_dir: str, engine_dir: str, config: LLMBuilderConfig) -> None:
        self._source, self._out, self._config = Path(onnx_dir), Path(engine_dir), config

    def build(self) -> bool:
        building: Any = importlib.import_module("tensorrt_edgellm.building")
        sizes = {name: getattr(self._config, name) for name in building.SIZES}
        stamp = "[12:03:01.123] [{}] [a.cpp:1:b] "
        return bool(building.build(self._source, self._out, sizes, stamp=stamp))


def load() -> ModuleType:
    """This module; `EDGELLM_STANDIN=unselected`: no payload fits."""
    if os.environ.get("EDGELLM_STANDIN") == "unselected":
        raise NativeSelectionError("Expected one exact TensorRT Edge-LLM native payload, found 0")
    return sys.modules[__name__]


def _misbehave(how: int) -> None:
    if how == EXIT:
        os.write(2, b"\xff\xfe last words\n")
        os._exit(3)
    elif how in (KILL, SEGV):
        os.kill(os.getpid(), signal.SIGKILL if how == KILL else signal.SIGSEGV)
    elif how == OOM:
        raise MemoryError
    elif how == OOM_TEXT:
        raise RuntimeError("CUDA runtime error: out of memory")
    elif how == HANG:
        os.kill(os.getpid(), signal.SIGSTOP)
    elif how == PRINT:
        sys.stdout.write('{"type": "done", "id": 1, "reason": "stop"}\n' * 3)
        sys.stdout.flush()
        os.write(1, b"\xff\xfe\x00 not text\n" + b"x" * 3_000_000 + b"\n")
    elif how == BAD_ALLOC:
        os.write(2, b"terminate called after throwing an instance of 'std::bad_alloc'\n")
        os.abort()
