"""Engines for RTX cards, built on a machine without one: through the command line."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

import edgekit.backends.tensorrt_rtx.compiler as compiler
from edgekit.backends.tensorrt_rtx import DISTRIBUTIONS
from edgekit.backends.tensorrt_rtx.layout import PLAN_FILE, EngineLayout
from edgekit.checkpoint import read_checkpoint
from edgekit.cli import main
from edgekit.engine import device_cache, open_manifest, read_manifest, remove_engine
from edgekit.keys import tables_key
from edgekit.profile import find_profile
from edgekit.scratch import SCRATCH_PREFIX
from edgekit.target import with_storage
from tests.commands import ok

Run = Callable[..., Result]
QUICK = ["--calibration-tokens", "64", "--context", "256"]
CARDS = "rtx-3070,rtx-4090"
# two layers of SmolLM2's shape: the smallest model whose engine has the kernels of a real one
SHAPE = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
}
BUILDS = {
    "fp16": ["--for", CARDS],
    "int8": ["--for", CARDS],
    "int4_awq": ["--for", CARDS],
    "fp8": ["--profile", "rtx-4090"],
}


@pytest.fixture(scope="module")
def model(make_tiny: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("models") / "two-layers"
    shutil.copytree(make_tiny("llama", **SHAPE), path)
    return path


@pytest.fixture(scope="module")
def built(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Any]]:
    """`built(precision)`: the JSON of a build in a store of its own; read only."""
    done: dict[str, dict[str, Any]] = {}

    def build(precision: str) -> dict[str, Any]:
        if precision not in done:
            store = tmp_path_factory.mktemp("store")
            done[precision] = ok(invoke(model, store, precision))
        return done[precision]

    return build


def invoke(model: Path, store: Path, precision: str, *more: str) -> Result:
    words = ["build", "--model", str(model), "--store", str(store), "--precision", precision]
    words += ["--backend", "tensorrt-rtx", *QUICK, *BUILDS[precision], *more, "--json"]
    return CliRunner().invoke(main, words, prog_name="edgekit")


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("int4_awq", "fp8")]


@pytest.mark.parametrize("precision", ["fp16", "int8", *SLOW])
def test_an_engine_is_as_large_as_planned_and_agrees_with_the_simulation(
    built: Callable[[str], dict[str, Any]], precision: str
) -> None:
    engine = built(precision)
    plan = Path(engine["engine"]) / "backend" / PLAN_FILE
    assert abs(plan.stat().st_size / engine["plan"]["engine_bytes"] - 1) <= 0.03
    assert engine["quality"]["mean_kl_simulated"] <= 1e-3
    assert engine["quality"]["measured_on"] == "twin"


@pytest.mark.slow
def test_layers_with_scales_of_their_own_share_fewer_kernels(
    make_tiny: Callable[..., Path], tmp_path: Path
) -> None:
    engine = ok(invoke(make_tiny("llama", **SHAPE, num_hidden_layers=8), tmp_path, "fp8"))
    plan = Path(engine["engine"]) / "backend" / PLAN_FILE
    assert abs(plan.stat().st_size / engine["plan"]["engine_bytes"] - 1) <= 0.03


@pytest.mark.parametrize("precision", SLOW)
def test_the_manifest_says_what_the_engine_is_bound_to(
    built: Callable[[str], dict[str, Any]], precision: str
) -> None:
    from importlib import metadata

    engine = built(precision)
    capabilities = [86, 89] if precision == "int4_awq" else [89]
    version = metadata.version(DISTRIBUTIONS[0])
    assert engine["device"]["capabilities"] == engine["plan"]["capabilities"] == capabilities
    assert engine["backend"] == {"name": "tensorrt-rtx", "version": version}
    layout = EngineLayout.read(Path(engine["engine"]) / "backend")
    assert (layout.version, list(layout.capabilities)) == (version, capabilities)
    assert (layout.context_tokens, layout.batch) == (256, 1)
    open_manifest(Path(engine["engine"]), full=True)


def test_the_engine_holds_nothing_of_the_graph(built: Callable[[str], dict[str, Any]]) -> None:
    files = {Path(name).name for name in built("int8")["files"] if name.startswith("backend/")}
    assert files == {PLAN_FILE, "engine.json"}


def test_the_next_build_changes_nothing_and_other_cards_are_another_engine(
    model: Path, built: Callable[[str], dict[str, Any]], tmp_path: Path
) -> None:
    first = built("int8")
    store = tmp_path / "store"
    shutil.copytree(Path(first["engine"]).parents[2], store)
    again = ok(invoke(model, store, "int8"))
    assert again["build_key"] == first["build_key"]
    other = ok(invoke(model, store, "int8", "--for", "rtx-3070,rtx-5090"))
    assert other["device"]["capabilities"] == [86, 120]
    assert other["build_key"] != first["build_key"]
    names = [Path(made["engine"]).parent.name for made in (again, other)]
    assert names == ["rtx-3070+rtx-4090", "rtx-3070+rtx-5090"]  # neither takes the other's place
    assert Path(again["engine"]).is_dir()
    listed = CliRunner().invoke(main, ["engines", "--store", str(store)]).stdout
    assert all(name in listed for name in names)


def test_it_is_planned_for_the_card_with_the_least_memory(
    built: Callable[[str], dict[str, Any]],
) -> None:
    plan = built("int8")["plan"]
    assert (plan["profile"], plan["devices"]) == ("rtx-3070", ["rtx-3070", "rtx-4090"])


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--for", CARDS, "--precision", "fp8"], 2, "fp8 is not possible on `rtx-3070`"),
        (["--for", CARDS, "--profile", "rtx-4090", "--precision", "fp8"], 2, "on `rtx-3070`"),
        (["--for", "rtx-3070,jetson-thor"], 2, "one engine for all of rtx-3070, jetson-thor"),
        (["--for", "rtx-3070,cpu"], 2, "`cpu` is no GPU"),
        (["--for", "rtx-3070,,"], 2, "a name is empty"),
        (["--for", "rtx-3070,rtx-9999"], 2, "unknown profile: rtx-9999"),
        (["--for", CARDS, "--backend", "onnxruntime"], 2, "no backend makes one engine"),
        (
            ["--profile", "rtx-4090", "--backend", "tensorrt-rtx", "--kv", "int8"],
            2,
            "no such cache",
        ),
    ],
)
def test_what_is_not_real_is_refused_before_the_compiler_is_called(
    run_cli: Run,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    code: int,
    said: str,
) -> None:
    monkeypatch.setattr(compiler, "compile_graph", lambda *_, **__: pytest.fail("compiled"))
    for command in ("plan", "build"):
        result = run_cli(command, "--model", model, "--store", tmp_path / "s", *words)
        assert (result.exit_code, said in result.stderr) == (code, True), result.stderr
        assert "hint:" in result.stderr or "Usage:" in result.stderr
    assert not (tmp_path / "s").exists()


def test_one_engine_must_fit_every_card(run_cli: Run) -> None:
    words = ["--for", CARDS, "--profile", "rtx-4090", "--precision", "int4_awq"]
    result = run_cli("plan", *words, "--context", "65536")
    assert result.exit_code == 3
    assert "does not fit rtx-3070" in result.stderr
    assert run_cli("plan", *words, "--context", "8192").exit_code == 0


def test_the_plan_of_an_8b_has_size_peak_and_time_and_says_where_from(run_cli: Run) -> None:
    words = ["plan", "--profile", "rtx-4090", "--backend", "tensorrt-rtx", "--precision"]
    text = run_cli(*words, "int4_awq", "--context", "8192").stdout
    assert "4.37 GiB on disk, for sm_89 (extrapolated from measured layers)" in text
    step = json.loads(
        run_cli(*words, "int4_awq", "--context", "8192", "--step", "compile", "--json").stdout
    )
    linears, table, norms = 6_979_321_856 * 33 // 64, 525_336_576 + 2 * 128_256, 2 * 266_240
    weights = linears + 2 * table + norms
    assert (step["seconds"], step["peak_bytes"]) == (89, int(3.4 * weights) + 640 * 2**20)
    assert "measured with TensorRT-RTX" in step["how"]


def test_a_wrong_scale_is_found_before_the_compiler_is_called(
    model: Path, built: Callable[[str], dict[str, Any]], tmp_path: Path, monkeypatch: Any
) -> None:
    store = tmp_path / "store"
    shutil.copytree(Path(built("int8")["engine"]).parents[2], store)
    monkeypatch.setattr(compiler, "compile_graph", lambda *_, **__: pytest.fail("compiled"))
    import edgekit.export.standard_linear as linear

    half = linear.StandardLinears.per_channel
    monkeypatch.setattr(
        linear.StandardLinears,
        "per_channel",
        lambda self, name, codes, scales: half(self, name, codes, scales * np.float32(1.5)),
    )
    result = invoke(model, store, "int8", "--force")
    assert result.exit_code == 4
    assert "mean KL divergence from ModelOpt's simulation" in result.stderr


def test_opening_it_without_the_card_says_so_in_one_sentence(
    run_cli: Run, built: Callable[[str], dict[str, Any]]
) -> None:
    engine = built("int8")["engine"]
    for words in (
        ["chat", engine, "--prompt", "hello"],
        ["verify", engine],
        ["bench", engine, "-p", "8", "-n", "4"],
    ):
        result = run_cli(*words)
        assert (result.exit_code, result.stdout) == (4, "")
        assert result.stderr.count("error:") == 1
        assert "NVIDIA" in result.stderr


def test_people_are_told_that_the_twin_was_asked(
    run_cli: Run, built: Callable[[str], dict[str, Any]]
) -> None:
    engine = built("int8")["engine"]
    assert "measured on the engine's twin" in run_cli("engines", "show", engine).stdout


def test_what_a_card_keeps_of_an_engine_lies_beside_it_and_goes_with_it(
    built: Callable[[str], dict[str, Any]], tmp_path: Path
) -> None:
    store = tmp_path / "store"
    shutil.copytree(Path(built("int8")["engine"]).parents[2], store)
    [manifest] = store.glob("*/*/*/manifest.json")
    cache = device_cache(manifest.parent)
    assert cache.parent == manifest.parent.parent.absolute()
    cache.mkdir()
    (cache / "kernels").write_bytes(b"x")
    open_manifest(manifest.parent, full=True)
    remove_engine(manifest.parent, store)
    assert not cache.exists()
    assert not list(store.glob("[!.]*"))


def test_tables_that_are_rounded_otherwise_are_another_quantized_checkpoint(model: Path) -> None:
    checkpoint, card = read_checkpoint(model), find_profile("rtx-4090")
    rtx = with_storage(card, "tensorrt-rtx")
    assert tables_key(checkpoint, "int8", card) != tables_key(checkpoint, "int8", rtx)
    assert tables_key(checkpoint, "fp16", card) == tables_key(checkpoint, "fp16", rtx)


@pytest.mark.parametrize(("size", "fits"), [(12, False), (16, True), (256, True), (320, False)])
def test_heads_without_a_kernel_are_refused_when_planning(
    size: int, fits: bool, make_tiny: Callable[..., Path], run_cli: Run
) -> None:
    words = ["--model", str(make_tiny("llama", head_dim=size)), "--precision", "fp16"]
    words += ["--context", "256", "--profile", "rtx-4090"]
    result = run_cli("plan", *words, "--backend", "tensorrt-rtx")
    assert result.exit_code == (0 if fits else 2)
    if not fits:
        assert f"attention heads of 16 to 256 in steps of 8, not of {size}" in result.stderr
        assert run_cli("plan", *words, "--backend", "onnxruntime").exit_code == 0
        assert "use `--backend onnxruntime`" in result.stderr
        assert run_cli("build", *words, "--backend", "tensorrt-rtx").exit_code == 2
        several = run_cli("plan", *words[:-2], "--for", CARDS)
        assert several.exit_code == 2
        # one engine for several cards is nothing that another backend makes
        assert "`--profile rtx-3070 --backend onnxruntime`" in several.stderr


def test_people_see_which_cards_an_engine_is_for(built: Callable[[str], dict[str, Any]]) -> None:
    shown = CliRunner().invoke(main, ["engines", "show", built("int8")["engine"]]).stdout
    assert "for rtx-3070 and rtx-4090 (sm_86 and sm_89)" in shown


def test_slots_that_cannot_lie_side_by_side_are_refused_before_any_work(
    make_tiny: Callable[..., Path], run_cli: Run, tmp_path: Path
) -> None:
    # 2 KV heads of 16 at 16 bits: 64 bytes a token, a buffer of a slot must be a multiple of 256
    words = ["--model", str(make_tiny("llama")), "--store", str(tmp_path / "store"), "--batch", "2"]
    words += [*BUILDS["int8"], "--backend", "tensorrt-rtx", "--precision", "int8"]
    for command in ("plan", "build"):
        result = run_cli(command, *words, "--context", "250")
        assert result.exit_code == 2
        assert "must be a multiple of 4 tokens" in result.stderr
        assert "`--context 248`" in result.stderr
    assert not list(tmp_path.glob("store/.work/quantized-*"))
    assert run_cli("plan", *words, "--context", "248").exit_code == 0


def test_an_engine_of_another_version_names_the_whole_command_that_helps(
    built: Callable[[str], dict[str, Any]], tmp_path: Path
) -> None:
    store = tmp_path / "store"
    shutil.copytree(Path(built("int8")["engine"]).parents[2], store)
    [engine] = store.glob("*/*/int8-tensorrt-rtx")
    manifest = read_manifest(engine)
    layout = json.loads((engine / "backend" / "engine.json").read_text())
    text = json.dumps({**layout, "version": "1.6.0.1"})
    (engine / "backend" / "engine.json").write_text(text)
    manifest.sealed(engine).write(engine)
    result = CliRunner().invoke(main, ["chat", str(engine), "--prompt", "hello"])
    assert result.exit_code == 5
    assert (
        "edgekit build --model two-layers --for rtx-3070,rtx-4090 --backend tensorrt-rtx "
        "--precision int8 --kv fp16 --context 256 --batch 1" in result.stderr
    )


def test_without_the_wheels_the_hint_installs_them(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = {"tensorrt-rtx": ["tensorrt_rtx_bindings"]}
    monkeypatch.setattr("edgekit.choice.missing_packages", lambda name: missing.get(name, []))
    result = invoke(model, tmp_path, "int8")
    assert result.exit_code == 4
    assert "pip install 'edgekit[rtx]'" in result.stderr
    assert "--profile cpu" not in result.stderr


def test_quantizing_is_planned_in_the_memory_that_is_here(run_cli: Run) -> None:
    shown = run_cli("plan", "--profile", "rtx-4090", "--model", "SmolLM2-135M-Instruct").stdout
    line = next(line for line in shown.splitlines() if "quantize" in line)
    assert "this machine's RAM" in line


@pytest.mark.slow
@pytest.mark.parametrize("presses", [1, 2, 50])
@pytest.mark.parametrize("delay_s", [0.1, 0.3])
def test_ctrl_c_while_compiling_is_130_and_leaves_what_was_there(
    delay_s: float, presses: int, model: Path, built: Callable[[str], dict[str, Any]],
    tmp_path: Path,
) -> None:  # fmt: skip
    store = tmp_path / "store"
    shutil.copytree(Path(built("int8")["engine"]).parents[2], store)
    before = sorted(path for path in store.rglob("*"))
    words = ["build", "--model", str(model), "--store", str(store), "--precision", "int8"]
    words += ["--backend", "tensorrt-rtx", *QUICK, *BUILDS["int8"], "--force"]
    command = [sys.executable, "-c", "from edgekit.cli import main; main()", *words]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        while not list(store.rglob(f"{SCRATCH_PREFIX}*/**/{PLAN_FILE}")):
            assert process.poll() is None
            time.sleep(0.01)
        time.sleep(delay_s)
        for _ in range(presses):
            process.send_signal(signal.SIGINT)
            time.sleep(0.02)
        out, said = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, b""), said.decode()
    assert sorted(path for path in store.rglob("*")) == before


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["int8", "int4_awq"])
def test_compiling_takes_no_more_memory_than_planned(
    precision: str, built: Callable[[str], dict[str, Any]], make_tiny: Callable[..., Path],
    tmp_path: Path,
) -> None:  # fmt: skip
    shape = {**SHAPE, "hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 8}
    shape |= {"num_attention_heads": 16, "num_key_value_heads": 4}
    made = make_tiny("llama", **shape)
    words = [*QUICK, *BUILDS[precision], "--backend", "tensorrt-rtx"]
    quantized = tmp_path / "quantized"
    ready = ["quantize", "--model", str(made), "--precision", precision, "--out", str(quantized)]
    assert CliRunner().invoke(main, [*ready, *words, "--offline"]).exit_code == 0
    words = [w for w in words if w not in ("--calibration-tokens", "64")]
    # its own peak: what a parent's rusage says of a child begins with the parent's memory
    program = "import atexit, sys; from edgekit.cli import main; from pathlib import Path; "
    program += "atexit.register(lambda: sys.stderr.write(Path('/proc/self/status').read_text()))"
    command = [sys.executable, "-c", f"{program}; main()", "compile", str(quantized), *words]
    done = subprocess.run(
        [*command, "--store", str(tmp_path / "store"), "--json"],
        capture_output=True, check=True, text=True,
    )  # fmt: skip
    plan = json.loads(done.stdout)["plan"]
    [peak] = [line.split()[1] for line in done.stderr.splitlines() if line.startswith("VmHWM:")]
    assert int(peak) * 1024 <= plan["steps"]["compile"]["peak_bytes"]
