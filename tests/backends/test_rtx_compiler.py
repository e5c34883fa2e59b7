"""The compiler itself, which needs no card: what is in the plan, and what is refused."""

from __future__ import annotations

import errno
import io
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from edgekit.backends import find_backend
from edgekit.backends.base import Wanted
from edgekit.backends.engine_file import LAYOUT_FILE
from edgekit.backends.tensorrt_rtx import compiler
from edgekit.backends.tensorrt_rtx.compiler import compile_graph, profile_shapes
from edgekit.backends.tensorrt_rtx.layout import PLAN_FILE, EngineLayout
from edgekit.checkpoint import read_checkpoint
from edgekit.errors import BackendError, EngineError, InputError, StorageError
from edgekit.footprint import FOOTPRINTS, engine_bytes, weights_by_class
from edgekit.profile import Storage
from edgekit.progress import no_progress

pytest.importorskip("tensorrt_rtx_bindings")

MakePath = Callable[..., Path]

CONTEXT = 256
QUANTIZED = ["int8", "int4_awq", "fp8"]
PRECISIONS = ["fp16", *QUANTIZED]


def wanted(precision: str, *capabilities: int, batch: int = 1) -> Wanted:
    return Wanted(
        precision=precision, context_tokens=CONTEXT, batch=batch, capabilities=capabilities
    )


def both_cards(precision: str) -> tuple[int, ...]:
    """FP8 begins with sm_89."""
    return (89,) if precision == "fp8" else (86, 89)


@dataclass(frozen=True)
class Compiled:
    directory: Path
    layout: EngineLayout
    reported: list[tuple[str, int, int]]

    @property
    def plan(self) -> bytes:
        return (self.directory / PLAN_FILE).read_bytes()


@pytest.fixture(scope="module")
def compiled(
    rtx_graph: MakePath, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Compiled]:
    """`compiled(precision)`: the engine for both cards, made once."""
    made: dict[str, Compiled] = {}

    def get(precision: str) -> Compiled:
        if precision not in made:
            out, reported = tmp_path_factory.mktemp("engine"), list[tuple[str, int, int]]()
            layout = compile_graph(
                rtx_graph(precision),
                out,
                wanted(precision, *both_cards(precision)),
                version="9.8.7",
                report=lambda *what: reported.append(what),
            )
            made[precision] = Compiled(out, layout, reported)
        return made[precision]

    return get


@pytest.mark.parametrize("precision", PRECISIONS)
def test_one_plan_holds_kernels_for_every_card_that_was_named(
    precision: str, compiled: Callable[[str], Compiled]
) -> None:
    held = set(re.findall(rb"accelerators=\{(sm[^}]*)\}", compiled(precision).plan))
    assert held == {b"".join(b"sm%d " % sm for sm in both_cards(precision))}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_attention_is_one_kernel(precision: str, compiled: Callable[[str], Compiled]) -> None:
    plan = compiled(precision).plan
    assert b"_gemm_mha_v2" in plan
    # the decode profile's: it reads the cache once for all heads that share it
    assert (b"_gemv_mha_v1" in plan) == (precision != "fp16")
    # a softmax by itself is __myl_MaxrSubExpSumDivMul_0x…
    assert not re.search(rb"__myl_\w*Exp\w*", plan)


def test_the_search_for_a_softmax_would_find_one(
    rtx_graph: MakePath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgekit.backends.tensorrt_rtx import network

    def unfused(self: Any, node: Any) -> None:
        trt, built = self._trt, self._network
        operation = trt.MatrixOperation
        # in fp32 there is no kernel of attention
        query, key, value = (
            built.add_cast(self._tensor(name), trt.float32).get_output(0) for name in node.input[:3]
        )
        rows = self._reshaped(query, (0, key.shape[1], -1, query.shape[3]))
        scores = built.add_matrix_multiply(rows, operation.NONE, key, operation.TRANSPOSE)
        softmax = built.add_softmax(scores.get_output(0))
        softmax.axes = 1 << 3
        mixed = built.add_matrix_multiply(
            softmax.get_output(0), operation.NONE, value, operation.NONE
        )
        half = built.add_cast(mixed.get_output(0), trt.float16).get_output(0)
        self._tensors[node.output[0]] = self._reshaped(half, (0, query.shape[1], -1, 64))

    monkeypatch.setitem(network._OPERATORS, "Attention", unfused)
    compile_graph(
        rtx_graph("int8"), tmp_path, wanted("int8", 89), version="", report=no_progress
    )  # fmt: skip
    assert re.search(rb"__myl_\w*Exp\w*", (tmp_path / PLAN_FILE).read_bytes())


@pytest.mark.parametrize("precision", PRECISIONS)
def test_int4_weights_are_multiplied_as_they_are(
    precision: str, compiled: Callable[[str], Compiled]
) -> None:
    assert (b"int4_block_dq" in compiled(precision).plan) == (precision == "int4_awq")


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_size_of_an_engine_is_the_one_that_is_planned(
    precision: str, compiled: Callable[[str], Compiled], rtx_checkpoint: MakePath,
    rtx_storage: Callable[[str], Storage],
) -> None:  # fmt: skip
    planned = engine_bytes(
        read_checkpoint(rtx_checkpoint(precision)).spec,
        rtx_storage(precision),
        FOOTPRINTS["tensorrt-rtx"].compilations[precision],
        context_tokens=CONTEXT,
        batch=1,
    )
    assert len(compiled(precision).plan) == pytest.approx(planned, rel=0.03)


def test_an_fp16_engine_holds_its_weights_once(
    compiled: Callable[[str], Compiled], rtx_checkpoint: MakePath,
    rtx_storage: Callable[[str], Storage],
) -> None:  # fmt: skip
    spec = read_checkpoint(rtx_checkpoint("fp16")).spec
    # 2 layers x (960 x 576 + 576 x 576 + 3 x 576 x 1536) weights of 2 bytes
    linears = 2 * (960 * 576 + 576 * 576 + 3 * 576 * 1536) * 2
    assert weights_by_class(spec, rtx_storage("fp16"))["linears"] == linears
    fixed, per_layer = FOOTPRINTS["tensorrt-rtx"].compilations["fp16"].code_bytes
    assert len(compiled("fp16").plan) <= 1.1 * linears + fixed + 2 * per_layer
    assert b"[profile 1]" not in compiled("fp16").plan


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_layout_beside_the_plan_says_what_is_in_it(
    precision: str, compiled: Callable[[str], Compiled]
) -> None:
    engine = compiled(precision)
    assert engine.layout == EngineLayout(
        version="9.8.7",
        capabilities=both_cards(precision),
        num_layers=2,
        num_kv_heads=3,
        head_dim=64,
        vocab_size=512,
        context_tokens=256,
        batch=1,
        chunk_tokens=256,
        max_logits=32,
        has_decode_profile=precision != "fp16",
    )
    assert EngineLayout.read(engine.directory) == engine.layout
    assert sorted(p.name for p in engine.directory.iterdir()) == [LAYOUT_FILE, PLAN_FILE]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_progress_begins_at_nothing_and_ends_with_everything(
    precision: str, compiled: Callable[[str], Compiled]
) -> None:
    reported = compiled(precision).reported
    steps = 2 if precision == "fp16" else 3  # the profiles, and writing
    assert reported[0] == ("compile", 0, steps)
    assert reported[-1] == ("compile", steps, steps)
    assert [done for _, done, _ in reported] == sorted(done for _, done, _ in reported)


def layout(**changes: Any) -> EngineLayout:
    fields: dict[str, Any] = {
        "version": "",
        "capabilities": (86,),
        "num_layers": 1,
        "num_kv_heads": 3,
        "head_dim": 64,
        "vocab_size": 512,
        "context_tokens": 1024,
        "batch": 4,
        "chunk_tokens": 512,
        "max_logits": 32,
        "has_decode_profile": True,
    }
    return EngineLayout(**{**fields, **changes})


def test_a_prompt_has_one_slot_and_a_step_has_all() -> None:
    prompt, step = profile_shapes(layout())
    assert prompt == {
        "input_ids": ((1, 1), (1, 512), (1, 512)),
        "position_ids": ((1, 1), (1, 512), (1, 512)),
        "write_indices": ((1,), (1,), (1,)),
        "kv_lengths": ((1,), (1,), (1,)),
        "logits_index": ((1,), (1,), (32,)),
        "past.0.key": ((1, 3, 1024, 64),) * 3,
        "past.0.value": ((1, 3, 1024, 64),) * 3,
    }
    assert step == {
        "input_ids": ((1, 1), (4, 1), (4, 1)),
        "position_ids": ((1, 1), (4, 1), (4, 1)),
        "write_indices": ((1,), (4,), (4,)),
        "kv_lengths": ((1,), (4,), (4,)),
        "logits_index": ((1,), (1,), (1,)),
        "past.0.key": ((1, 3, 1024, 64), (4, 3, 1024, 64), (4, 3, 1024, 64)),
        "past.0.value": ((1, 3, 1024, 64), (4, 3, 1024, 64), (4, 3, 1024, 64)),
    }


def test_a_single_profile_is_tuned_for_steps_and_has_room_for_prompts() -> None:
    (both,) = profile_shapes(layout(has_decode_profile=False))
    assert both["input_ids"] == both["position_ids"] == ((1, 1), (4, 1), (4, 512))
    assert both["write_indices"] == both["kv_lengths"] == ((1,), (4,), (4,))
    assert both["logits_index"] == ((1,), (1,), (32,))
    assert both["past.0.key"] == ((1, 3, 1024, 64), (4, 3, 1024, 64), (4, 3, 1024, 64))


@pytest.mark.parametrize("precision", ["fp16", "int4_awq"])
def test_several_slots_are_compiled_as_well(
    precision: str, rtx_graph: MakePath, tmp_path: Path
) -> None:
    made = compile_graph(
        rtx_graph(precision), tmp_path, wanted(precision, 89, batch=3), version="",
        report=no_progress,
    )  # fmt: skip
    assert made.batch == 3
    assert (tmp_path / PLAN_FILE).stat().st_size > 1_000_000


@pytest.mark.parametrize(
    ("precision", "capabilities", "message"),
    [
        ("fp8", (89, 86), r"fp8 is not possible on sm_86: it begins with sm_89"),
        ("int4_awq", (75,), r"int4_awq is not possible on sm_75: it begins with sm_80"),
        ("fp16", (110,), r"does not compile for sm_110"),
        ("int8", (86, 90), r"does not compile for sm_90"),
        ("fp16", (), r"none was named"),
    ],
)
def test_what_cannot_be_compiled_for_is_refused_before_the_compiler_is_called(
    precision: str, capabilities: tuple[int, ...], message: str, tmp_path: Path
) -> None:
    # there is no graph at all
    with pytest.raises(InputError, match=message) as caught:
        compile_graph(
            tmp_path / "none", tmp_path, wanted(precision, *capabilities), version="",
            report=no_progress,
        )  # fmt: skip
    assert caught.value.hint
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("precision", "capability"), [("fp16", 75), ("int8", 75), ("int4_awq", 80), ("fp8", 120)]
)
def test_the_first_card_of_a_precision_is_one_that_the_compiler_takes(
    precision: str, capability: int, rtx_graph: MakePath, tmp_path: Path
) -> None:
    compile_graph(
        rtx_graph(precision), tmp_path, wanted(precision, capability), version="",
        report=no_progress,
    )  # fmt: skip
    assert (b"accelerators={sm%d }" % capability) in (tmp_path / PLAN_FILE).read_bytes()


_COMPILES = """
import signal, sys
from pathlib import Path
from edgekit.backends.base import Wanted
from edgekit.backends.tensorrt_rtx.compiler import compile_graph
source, out = map(Path, sys.argv[1:])
kind = Wanted(precision="int4_awq", context_tokens=256, batch=1, capabilities=(86, 89))
try:
    while True:
        compile_graph(source, out, kind, version="", report=lambda *_: None)
except KeyboardInterrupt:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # those that come when all has ended
    sys.exit(130)
"""


# an interrupt at any moment: once it crashed the process in one of two
@pytest.mark.parametrize("presses", [1, 2, 500])
@pytest.mark.parametrize("delay_s", [0.0, 0.25])
def test_ctrl_c_ends_a_compiling_process_in_order(
    delay_s: float, presses: int, rtx_graph: MakePath, tmp_path: Path
) -> None:
    words = [sys.executable, "-c", _COMPILES, str(rtx_graph("int4_awq")), str(tmp_path)]
    with subprocess.Popen(words, stderr=subprocess.PIPE) as process:
        plan = tmp_path / PLAN_FILE
        while not plan.exists() and process.poll() is None:
            time.sleep(0.01)
        time.sleep(delay_s)
        for _ in range(presses):
            process.send_signal(signal.SIGINT)
            time.sleep(0.02 if presses == 2 else 0.001)
        said = process.communicate(timeout=60)[1].decode()
    assert process.returncode == 130, said


def test_ctrl_c_waits_for_the_compiler_wherever_it_comes(
    rtx_graph: MakePath, tmp_path: Path
) -> None:
    went_on = []

    def press(*_: object) -> None:
        signal.raise_signal(signal.SIGINT)
        went_on.append(True)

    usual = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        compile_graph(
            rtx_graph("int4_awq"), tmp_path, wanted("int4_awq", 86, 89), version="", report=press
        )
    assert went_on
    assert signal.getsignal(signal.SIGINT) is usual
    require_no_engine(tmp_path)


def require_no_engine(directory: Path) -> None:
    with pytest.raises(EngineError):
        EngineLayout.read(directory)


def test_an_interrupted_compilation_is_outlasted(rtx_graph: MakePath, tmp_path: Path) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compile_graph(
            rtx_graph("int4_awq"), tmp_path, wanted("int4_awq", 86, 89), version="",
            report=interrupt,
        )  # fmt: skip
    require_no_engine(tmp_path)


def test_the_compiler_stops_at_its_next_step_when_it_is_told_to(
    rtx_graph: MakePath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Cancelled(compiler._Watch):
        def __init__(self) -> None:
            super().__init__()
            self.is_cancelled = True

    monkeypatch.setattr(compiler, "_Watch", Cancelled)
    with pytest.raises(BackendError, match="TensorRT-RTX failed at compiling"):
        compile_graph(
            rtx_graph("int8"), tmp_path, wanted("int8", 86), version="", report=no_progress
        )  # fmt: skip
    require_no_engine(tmp_path)


class FullDisk:
    """Takes some bytes, then no more."""

    def __init__(self, file: Any, room: int) -> None:
        self._file, self._room = file, room

    def write(self, data: bytes) -> int:
        taken = data[: self._room]
        self._room -= len(taken)
        self._file.write(taken)
        if len(taken) < len(data):
            raise OSError(errno.ENOSPC, "No space left on device")
        return len(taken)


@pytest.mark.parametrize("room", [0, 5_000_000])
def test_a_full_disk_is_told_and_leaves_no_engine(
    room: int, rtx_graph: MakePath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Output(compiler._Output):
        def __init__(self, file: Any) -> None:
            super().__init__(FullDisk(file, room))  # type: ignore[arg-type]

    monkeypatch.setattr(compiler, "_Output", Output)
    with pytest.raises(StorageError, match=r"full|No space left"):
        compile_graph(
            rtx_graph("int8"), tmp_path, wanted("int8", 86), version="", report=no_progress
        )  # fmt: skip
    assert (tmp_path / PLAN_FILE).stat().st_size == room
    require_no_engine(tmp_path)


def test_a_write_that_failed_is_refused_without_an_exception() -> None:
    # an engine comes in pieces of 64 MiB: the first one that fails ends it
    output = compiler._Output(FullDisk(io.BytesIO(), 4))  # type: ignore[arg-type]
    assert output.writer.write(b"abc") == 3
    assert output.problem is None
    assert output.writer.write(b"def") == -1
    assert output.problem is not None


def test_the_compiler_s_own_words_are_told(
    make_tiny: MakePath, export_standard: MakePath, tmp_path: Path
) -> None:
    # no kernel of attention has heads of 8
    graph = export_standard(make_tiny("qwen3", head_dim=8), context_tokens=CONTEXT)
    with pytest.raises(BackendError, match="not supported by a dedicated kernel") as caught:
        compile_graph(graph, tmp_path, wanted("fp16", 86), version="", report=no_progress)
    assert str(caught.value).startswith("TensorRT-RTX failed at compiling: ")
    require_no_engine(tmp_path)


def test_what_was_said_of_an_earlier_compilation_is_forgotten(
    make_tiny: MakePath, export_standard: MakePath, rtx_graph: MakePath, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    graph = export_standard(make_tiny("qwen3", head_dim=8), context_tokens=CONTEXT)
    with pytest.raises(BackendError):
        compile_graph(graph, tmp_path, wanted("fp16", 86), version="", report=no_progress)
    monkeypatch.setattr(compiler, "_build", lambda *_, **__: False)
    with pytest.raises(BackendError) as caught:
        compile_graph(
            rtx_graph("fp16"), tmp_path, wanted("fp16", 86), version="", report=no_progress
        )  # fmt: skip
    assert "dedicated kernel" not in str(caught.value)


def test_the_backend_says_what_it_compiled_with_and_for(
    rtx_graph: MakePath, tmp_path: Path
) -> None:
    backend = find_backend("tensorrt-rtx")
    out = tmp_path / "backend"
    record = backend.compile(
        rtx_graph("int8"), out, wanted("int8", 89, 86, 89), report=no_progress
    )  # fmt: skip
    assert record == {
        "runtime": f"tensorrt-rtx {backend.version()}",
        "capabilities": [86, 89],
    }
    assert EngineLayout.read(out).version == backend.version()


_PAIR = """
import json, sys
from pathlib import Path
from edgekit.backends.base import Wanted
from edgekit.backends.tensorrt_rtx.compiler import compile_graph
from edgekit.checkpoint import read_checkpoint
from edgekit.export import export_standard_decoder
from edgekit.footprint import FOOTPRINTS, engine_bytes, weights_bytes
source, work = map(Path, sys.argv[1:])
checkpoint, row = read_checkpoint(source), FOOTPRINTS["tensorrt-rtx"]
storage, compilation = row.storage["int4_awq"], row.compilations["int4_awq"]
graph, out = work / "graph", work / "out"
graph.mkdir(), out.mkdir()
export_standard_decoder(checkpoint, storage, graph, context_tokens=2048)
kind = Wanted(precision="int4_awq", context_tokens=2048, batch=1, capabilities=(86, 89))
compile_graph(graph, out, kind, version="", report=lambda *_: None)
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
factor = max(compilation.ram_factor, compilation.twin_factor)
spec = checkpoint.spec
print(json.dumps({
    "bytes": (out / "engine.plan").stat().st_size,
    "planned_bytes": engine_bytes(spec, storage, compilation, context_tokens=2048, batch=1),
    "peak": int(status["VmHWM"].split()[0]) * 1024,
    "planned_peak": weights_bytes(spec, storage) * factor + row.compile_fixed_bytes,
}))
"""


@pytest.mark.slow
def test_two_layers_of_an_8b_compile_within_their_plan(make_tiny: MakePath, tmp_path: Path) -> None:
    source = tmp_path / "pair"
    _write_pair(source, make_tiny())
    words = [sys.executable, "-c", _PAIR, str(source), str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert abs(said["bytes"] / said["planned_bytes"] - 1) <= 0.03
    assert said["peak"] <= said["planned_peak"]


def _write_pair(path: Path, texts: Path) -> None:
    """Two layers of the true size in ModelOpt's INT4 layout, random; a small vocabulary."""
    hidden, inner, heads, kv_heads, size, vocabulary = 4096, 14336, 32, 8, 128, 2048
    path.mkdir()
    for file in texts.glob("*.json"):
        if file.name != "config.json" and "safetensors" not in file.name:
            (path / file.name).write_bytes(file.read_bytes())
    config = json.loads((texts / "config.json").read_text())
    config |= {
        "hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": 2,
        "num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": size,
        "vocab_size": vocabulary, "max_position_embeddings": 131072,
    }  # fmt: skip
    (path / "config.json").write_text(json.dumps(config))
    (path / "hf_quant_config.json").write_text("{}")
    random = np.random.default_rng(0)
    tensors = {
        name: (0.02 * random.standard_normal((vocabulary, hidden), np.float32)).astype(np.float16)
        for name in ("model.embed_tokens.weight", "lm_head.weight")
    }
    tensors["model.norm.weight"] = np.ones(hidden, np.float16)
    for index in range(2):
        name = f"model.layers.{index}"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{name}.{norm}.weight"] = np.ones(hidden, np.float16)
        for layer, rows, columns in (
            ("self_attn.q_proj", heads * size, hidden),
            ("self_attn.k_proj", kv_heads * size, hidden),
            ("self_attn.v_proj", kv_heads * size, hidden),
            ("self_attn.o_proj", hidden, heads * size),
            ("mlp.gate_proj", inner, hidden),
            ("mlp.up_proj", inner, hidden),
            ("mlp.down_proj", hidden, inner),
        ):
            codes = random.integers(0, 256, (rows // 2, columns), np.uint8)
            scales = random.uniform(0.001, 0.003, (rows, columns // 128)).astype(np.float16)
            tensors[f"{name}.{layer}.weight"] = codes
            tensors[f"{name}.{layer}.weight_scale"] = scales
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
