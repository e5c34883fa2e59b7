"""From a tiny checkpoint to a proven engine, through the command line and nothing else."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from edgekit.checkpoint import read_checkpoint
from edgekit.engine import build_lock, list_engines, open_manifest, read_manifest
from edgekit.keys import quantize_key
from edgekit.models import find_model
from edgekit.profile import find_profile
from tests.commands import ok

PRECISIONS = ["fp16", "int8", "int8_sq", pytest.param("int4_awq", marks=pytest.mark.slow)]
# little calibration: these tests are about the steps, not about quality
QUICK = ["--calibration-tokens", "64", "--context", "256"]

Run = Callable[..., Result]
Snapshot = dict[str, tuple[int, int]]


def snapshot(directory: Path) -> Snapshot:
    """Relative path -> (mtime in ns, size) of every file."""
    files = [path for path in directory.rglob("*") if path.is_file()]
    return {
        path.relative_to(directory).as_posix(): (path.stat().st_mtime_ns, path.stat().st_size)
        for path in files
    }


@pytest.fixture(scope="module")
def tiny(make_tiny: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of two layers in a directory called `tiny`; read only."""
    path: Path = tmp_path_factory.mktemp("models") / "tiny"
    shutil.copytree(make_tiny("llama"), path)
    return path


@pytest.fixture(scope="module")
def built(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Any]]:
    """`built(precision)`: the JSON of a build in a store of its own; read only."""
    from click.testing import CliRunner

    from edgekit.cli import main

    done: dict[str, dict[str, Any]] = {}

    def build(precision: str) -> dict[str, Any]:
        if precision not in done:
            store = tmp_path_factory.mktemp(precision) / "store"
            arguments = ["--model", str(tiny), "--store", str(store), "--precision", precision]
            done[precision] = ok(
                CliRunner().invoke(main, ["build", *arguments, *QUICK, "--json"])
            ) | {"store": str(store)}  # fmt: skip
        return done[precision]

    return build


@pytest.fixture
def store(built: Callable[[str], dict[str, Any]], tmp_path: Path) -> Path:
    """A copy of the store with the fp16 engine, the quickest to build, times included."""
    path = tmp_path / "store"
    shutil.copytree(built("fp16")["store"], path)
    return path


@pytest.fixture
def build(run_cli: Run, tiny: Path, store: Path) -> Run:
    """`build(...)`: `edgekit build` of fp16 into `store` once more, with other options."""

    def run(*options: str | Path, model: Path = tiny) -> Result:
        return run_cli(
            "build", "--model", model, "--store", store, "--precision", "fp16", *QUICK, "--json",
            *options,
        )  # fmt: skip

    return run


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_build_ends_in_an_engine_that_passes_its_own_check(
    built: Callable[[str], dict[str, Any]], run_cli: Run, precision: str
) -> None:
    result = built(precision)
    engine = Path(result["engine"])
    assert engine == Path(result["store"]) / "tiny" / "cpu" / f"{precision}-onnxruntime"
    manifest = open_manifest(engine, full=True)
    assert (manifest.model, manifest.precision, manifest.profile) == ("tiny", precision, "cpu")
    assert (manifest.context_tokens, manifest.kv_precision) == (256, "fp32")
    assert manifest.plan["fits"] is True
    assert {name.partition("/")[0] for name in manifest.files} == {
        "backend", "reference", "tokenizer",
    }  # fmt: skip
    verified = ok(run_cli("verify", engine, "--json"))
    assert verified["known_answer_ids"] == manifest.quality["known_answer_ids"]
    assert verified["mean_kl"] == pytest.approx(manifest.quality["mean_kl"], abs=1e-4)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_store_holds_the_engine_its_quantized_checkpoint_and_the_lock(
    built: Callable[[str], dict[str, Any]], precision: str
) -> None:
    store = Path(built(precision)["store"])
    work = sorted(path.name for path in (store / ".work").iterdir())
    assert work[0] == "lock"
    assert [name.partition("-")[0] for name in work[1:]] == ["quantized"]
    assert sorted(path.name for path in store.iterdir()) == [".work", "tiny"]
    assert not list(store.rglob(".building-*"))


def test_an_fp16_engine_answers_as_the_checkpoint(
    built: Callable[[str], dict[str, Any]],
) -> None:
    # the graph computes in fp32 from the same fp16 weights: only the order of sums differs
    quality = built("fp16")["quality"]
    assert quality["top1_agreement"] > 0.99
    assert quality["perplexity_ratio"] == pytest.approx(1, abs=1e-3)
    assert quality["known_answer_agreement"] == len(quality["known_answer_ids"])


def test_the_next_build_changes_nothing(build: Run, store: Path) -> None:
    before = snapshot(store)
    result = build()
    assert "nothing to do" in result.stderr
    assert ok(result)["engine"] == str(store / "tiny/cpu/fp16-onnxruntime")
    assert snapshot(store) == before


def copy(tiny: Path, directory: Path) -> Path:
    path = directory / "tiny"
    shutil.copytree(tiny, path)
    return path


def test_a_copy_of_the_checkpoint_elsewhere_is_the_same_input(
    build: Run, tiny: Path, tmp_path: Path
) -> None:
    assert "nothing to do" in build(model=copy(tiny, tmp_path)).stderr


def test_other_weights_are_noticed(
    build: Run, store: Path, make_tiny: Callable[..., Path], tmp_path: Path
) -> None:
    before = read_manifest(store / "tiny/cpu/fp16-onnxruntime")
    result = build(model=copy(make_tiny("llama", seed=1), tmp_path))
    assert "nothing to do" not in result.stderr
    after = ok(result)
    assert after["checkpoint_sha256"] != before.checkpoint_sha256
    assert after["files"]["backend/model.data"] != before.files["backend/model.data"]
    # one engine at that place, and the quantized checkpoints of both
    assert len(list_engines(store)) == 1
    assert len(list((store / ".work").glob("quantized-*"))) == 2


@pytest.mark.parametrize("name", ["chat_template.jinja", "tokenizer.json"])
def test_other_texts_beside_the_weights_are_noticed(
    build: Run, tiny: Path, tmp_path: Path, name: str
) -> None:
    changed = copy(tiny, tmp_path)
    (changed / name).write_text((changed / name).read_text() + "\n")
    assert "nothing to do" not in build(model=changed).stderr


def test_another_seed_is_noticed(build: Run) -> None:
    result = build("--seed", "1")
    assert ok(result)
    assert "nothing to do" not in result.stderr


def test_another_context_compiles_again_from_the_same_quantized_checkpoint(
    build: Run, store: Path
) -> None:
    before = snapshot(store / ".work")
    assert ok(build("--context", "128"))["context_tokens"] == 128
    assert snapshot(store / ".work") == before
    assert read_manifest(store / "tiny/cpu/fp16-onnxruntime").context_tokens == 128


def test_a_changed_calibration_file_is_noticed_and_the_same_one_is_not(
    build: Run, tmp_path: Path
) -> None:
    text = tmp_path / "mine.txt"
    text.write_text("the quick brown fox jumps over the lazy dog. " * 20)
    first = build("--calibration", text)
    assert "nothing to do" not in first.stderr
    assert ok(first)
    assert "nothing to do" in build("--calibration", text).stderr
    text.write_text("and answers what the user asks. " * 20)
    assert "nothing to do" not in build("--calibration", text).stderr


def test_a_damaged_engine_is_built_again(build: Run, store: Path) -> None:
    data = store / "tiny/cpu/fp16-onnxruntime/backend/model.data"
    os.truncate(data, 100)
    result = build()
    assert "nothing to do" not in result.stderr
    open_manifest(Path(ok(result)["engine"]), full=True)


def test_force_builds_the_same_engine_again(build: Run, store: Path) -> None:
    engine = store / "tiny/cpu/fp16-onnxruntime"
    before, manifest = snapshot(engine), read_manifest(engine)
    result = build("--force")
    assert "nothing to do" not in result.stderr
    assert ok(result)["files"] == manifest.files
    assert snapshot(engine).keys() == before.keys()
    assert snapshot(engine)["manifest.json"] != before["manifest.json"]


@pytest.mark.slow
def test_quantize_and_compile_alone_give_the_engine_of_build(
    run_cli: Run, built: Callable[[str], dict[str, Any]], tiny: Path, tmp_path: Path
) -> None:
    expected = built("int4_awq")
    quantized, store = tmp_path / "quantized", tmp_path / "store"
    first = run_cli(
        "quantize", "--model", tiny, "--precision", "int4_awq", "--out", quantized, *QUICK,
        "--store", store,
    )  # fmt: skip
    assert (first.exit_code, first.stdout) == (0, f"{quantized}\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["quantized"]
    result = ok(
        run_cli("compile", quantized, "--store", store, "--context", "256", "--json")
    )  # fmt: skip
    # called as the model that was quantized, not as the directory in between
    assert result["engine"] == str(store / "tiny/cpu/int4_awq-onnxruntime")
    assert result["quality"] == expected["quality"]
    assert result["checkpoint_sha256"] == expected["checkpoint_sha256"]
    for name in ("backend/model.data", "backend/model.onnx", "reference/edgekit_reference.npz"):
        assert result["files"][name] == expected["files"][name]


@pytest.fixture
def quantized(built: Callable[[str], dict[str, Any]], tmp_path: Path) -> Path:
    """A copy of the int8 quantized checkpoint."""
    [source] = Path(built("int8")["store"], ".work").glob("quantized-*")
    shutil.copytree(source, tmp_path / "quantized")
    return tmp_path / "quantized"


def test_compile_takes_another_name(run_cli: Run, quantized: Path, tmp_path: Path) -> None:
    arguments = ["--store", tmp_path / "store", "--context", "256", "--name", "other", "--json"]
    result = ok(run_cli("compile", quantized, *arguments))
    assert result["engine"] == str(tmp_path / "store/other/cpu/int8-onnxruntime")
    assert result["model"] == "other"


def test_an_engine_that_fails_its_check_never_appears(
    run_cli: Run, quantized: Path, tmp_path: Path
) -> None:
    from safetensors.numpy import load_file, save_file

    tensors = load_file(quantized / "model.safetensors")
    scales = [name for name in tensors if name.endswith("down_proj.weight_scale")]
    assert scales
    for name in scales:
        tensors[name] = tensors[name] * -3
    save_file(tensors, quantized / "model.safetensors", metadata={"format": "pt"})
    store = tmp_path / "store"
    result = run_cli("compile", quantized, "--store", store, "--context", "256")
    assert (result.exit_code, result.stdout) == (4, "")
    assert "error: int8 engine failed its check: " in result.stderr
    assert [path.relative_to(store).as_posix() for path in store.rglob("*")] == [
        ".work", ".work/lock",
    ]  # fmt: skip


def test_prompts_that_8_bits_do_not_suit_go_through_the_other_weights(
    run_cli: Run, built: Callable[[str], dict[str, Any]], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    made = built("int4_awq")
    assert "backend/prompt.onnx" in made["files"]
    assert 0 <= made["quality"]["mean_kl_after_prompts"] <= 0.06
    [source] = Path(made["store"], ".work").glob("quantized-*")
    # no model is so small that its activations have outliers by themselves
    monkeypatch.setattr("edgekit.quality._MAX_KL_FROM_INT8_SIMULATION", -1.0)
    arguments = ["--store", tmp_path / "store", "--context", "256", "--json"]
    other = ok(run_cli("compile", source, *arguments))
    assert "prompts go through the weights of the answers" in caplog.text
    assert "backend/prompt.onnx" not in other["files"]
    for figure in ("mean_kl", "mean_kl_simulated", "perplexity_ratio", "positions"):
        assert other["quality"][figure] == made["quality"][figure]
    assert other["quality"]["mean_kl_after_prompts"] is None
    assert run_cli("verify", other["engine"]).exit_code == 0
    # where the engine was made with them, `verify` says what is wrong
    refused = run_cli("verify", made["engine"])
    assert refused.exit_code == 4
    assert "simulation after prompts is" in refused.stderr


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda q: (q / "edgekit_quantization.json").unlink(), "not a checkpoint that edgekit"),
        (lambda q: (q / "edgekit_reference.npz").unlink(), "the original's answers are missing"),
        (lambda q: (q / "model.safetensors").unlink(), "no safetensors file in "),
    ],
)
def test_half_a_quantized_checkpoint_is_refused(
    run_cli: Run, quantized: Path, tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    damage(quantized)
    result = run_cli("compile", quantized, "--store", tmp_path / "store", "--context", "256")
    assert (result.exit_code, result.stdout) == (2, "")
    assert f"error: {message}" in result.stderr
    assert not (tmp_path / "store").exists()


def test_a_flipped_byte_is_found_by_verify(run_cli: Run, store: Path) -> None:
    path = store / "tiny/cpu/fp16-onnxruntime/backend/model.data"
    data = bytearray(path.read_bytes())
    data[-1] ^= 0x80
    path.write_bytes(data)
    result = run_cli("verify", "--store", store)
    assert (result.exit_code, result.stdout) == (5, "")
    assert result.stderr.startswith("error: engine file differs from what was built: ")


def test_every_json_is_data_alone_on_stdout(
    run_cli: Run, store: Path, tiny: Path, build: Run
) -> None:
    assert ok(build("--dry-run"))["model"] == "tiny"
    assert ok(build())["precision"] == "fp16"
    assert ok(run_cli("plan", "--model", tiny, "--json"))["fits"] is True
    assert ok(run_cli("verify", "--store", store, "--json"))["positions"] > 0
    assert ok(run_cli("engines", "show", "--store", store, "--json"))["model"] == "tiny"
    assert len(json.loads(run_cli("engines", "--store", store, "--json").stdout)) == 1


def test_words_go_to_stderr_and_the_engine_to_stdout(run_cli: Run, store: Path, tiny: Path) -> None:
    result = run_cli(
        "build", "--model", tiny, "--store", store, "--precision", "fp16", *QUICK
    )  # fmt: skip
    assert result.stdout.startswith(str(store / "tiny/cpu/fp16-onnxruntime"))
    assert "known answer: " in result.stdout
    assert result.stderr.startswith("tiny on cpu: fp16, fp32 KV cache, 256 tokens of context")


def test_a_dry_run_plans_and_touches_nothing(run_cli: Run, tiny: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    result = run_cli("build", "--model", tiny, "--store", store, "--dry-run")
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr.startswith("tiny on cpu: ")
    assert list(tmp_path.iterdir()) == []


def write_profile(tmp_path: Path, memory_bytes: int) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(
        f'name = "small"\nsummary = ""\nbackends = ["onnxruntime"]\nprecisions = ["int8"]\n'
        f"memory_bytes = {memory_bytes}\n[storage.int8]\nlinear_bits = 8\n"
    )
    return path


def test_what_does_not_fit_is_refused_before_any_work(
    run_cli: Run, tiny: Path, tmp_path: Path
) -> None:
    profile, store = write_profile(tmp_path, 2**20), tmp_path / "store"
    result = run_cli("build", "--model", tiny, "--store", store, "--profile", profile)
    assert (result.exit_code, result.stdout) == (3, "")
    assert "does not fit small: the engine needs " in result.stderr
    assert not store.exists()


def test_a_context_too_short_for_the_check_is_refused_before_any_work(
    run_cli: Run, tiny: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    result = run_cli("build", "--model", tiny, "--store", store, "--context", "119")
    # 96 tokens of a held-out exchange and 24 of an answer
    assert (result.exit_code, result.stdout) == (2, "")
    assert "checking an engine takes 120 tokens of context, asked for 119" in result.stderr
    assert not store.exists()


def test_a_build_needs_a_model_by_name(run_cli: Run, tmp_path: Path) -> None:
    result = run_cli("build", "--store", tmp_path / "store")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("error: which model?")
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_whose_name_is_no_directory_of_the_store_is_refused(
    run_cli: Run, tiny: Path, tmp_path: Path
) -> None:
    model = copy(tiny, tmp_path)
    (model / "edgekit_source.json").write_text(json.dumps({"kind": "hub", "name": "../../up"}))
    result = run_cli("build", "--model", model, "--store", tmp_path / "store")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "cannot keep an engine under the name of this model: '../../up'" in result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny"]


def test_quantize_never_writes_over_something(run_cli: Run, tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "mine"
    out.mkdir()
    result = run_cli("quantize", "--model", tiny, "--precision", "int8", "--out", out)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "there is something already: " in result.stderr
    assert list(out.iterdir()) == []


def test_leftovers_are_deleted_only_where_builds_write(build: Run, store: Path) -> None:
    mine = store / "photos" / "2024" / "june" / ".building-castle"
    theirs = store / "tiny" / "cpu" / ".building-int4_awq-onnxruntime"
    work = store / ".work" / ".building-quantized-0"
    for path in (mine, theirs, work):
        path.mkdir(parents=True)
    assert build().exit_code == 0
    assert [path.exists() for path in (mine, theirs, work)] == [True, False, False]


def test_a_second_build_in_the_same_store_is_refused(build: Run, store: Path) -> None:
    with build_lock(store):
        result = build()
    assert (result.exit_code, result.stdout) == (2, "")
    assert f"error: another build is running in this store: {store}" in result.stderr
    assert build().exit_code == 0


def test_a_plan_of_a_gguf_file_reads_its_header_and_writes_nothing(
    run_cli: Run, smollm2_gguf: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    plan = ok(run_cli("plan", "--model", smollm2_gguf, "--store", store, "--json"))
    known = find_model("SmolLM2-135M-Instruct")
    assert plan["model"] == known.name
    named = ok(run_cli("plan", "--model", known.name, "--store", store, "--json"))
    for key in ("weights_bytes", "kv_cache_bytes", "bytes_per_token_read"):
        assert plan[key] == named[key]
    assert list(tmp_path.iterdir()) == []


def test_a_quantized_checkpoint_is_not_quantized_again(
    tiny: Path, tmp_path: Path, run_cli: Run
) -> None:
    quantized = tmp_path / "quantized"
    first = run_cli("quantize", "--model", tiny, "--precision", "int8", *QUICK, "--out", quantized)
    assert first.exit_code == 0, first.stderr
    again = run_cli("build", "--model", quantized, "--precision", "int8", "--store", tmp_path / "s")
    assert again.exit_code == 2
    assert "error: this checkpoint is quantized already" in again.stderr


def test_a_calibration_file_of_another_kind_is_another_calibration(
    tiny: Path, tmp_path: Path
) -> None:
    checkpoint, profile = read_checkpoint(tiny), find_profile("cpu")
    keys = set()
    for name in ("a.txt", "a.jsonl"):
        (tmp_path / name).write_text('{"text": "the same bytes"}')
        keys.add(
            quantize_key(
                "", checkpoint, "int8", profile, calibration=tmp_path / name,
                calibration_tokens=None, seed=0,
            )
        )  # fmt: skip
    assert len(keys) == 2
