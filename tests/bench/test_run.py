from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import tokenizers
from click.testing import CliRunner
from tokenizers import decoders, models, pre_tokenizers, trainers

from edgekit.bench import conditions, run
from edgekit.bench.bandwidth import Bandwidth
from edgekit.bench.measure import synthetic_ids
from edgekit.bench.run import BenchOptions, bench_engine, whole_words
from edgekit.cli.bench import command
from edgekit.device import Jetson, read_device
from edgekit.engine import Manifest
from edgekit.errors import InputError
from edgekit.profile import find_profile
from edgekit.runtime.tokenizer import Tokenizer
from edgekit.units import GIB

if TYPE_CHECKING:
    from edgekit.backends.base import Logits


class FreeSession:
    """Costs nothing; refuses special ids."""

    context_tokens, num_slots, vocab_size = 32, 1, 12
    fills_apart = False

    def length(self, slot: int) -> int:
        return 0

    def prefill(self, slot: int, token_ids: Sequence[int], *, num_logits: int = 1) -> Logits:
        assert 0 < min(token_ids) <= max(token_ids) < 10
        return np.zeros((num_logits, self.vocab_size), np.float32)

    def decode(self, slots: Sequence[int], token_ids: Sequence[int]) -> Logits:
        return self.prefill(slots[0], token_ids)

    def truncate(self, slot: int, length: int) -> None:
        pass

    def close(self) -> None:
        pass


class FreeEngine:
    """Stands for a `LoadedEngine`."""

    def __init__(self, directory: Path) -> None:
        data = json.loads((directory / "manifest.json").read_text(encoding="utf-8"))
        del data["manifest_sha256"]
        self.manifest = Manifest(**data)
        self.session, self.stream = FreeSession(), None
        self.tokenizer = SimpleNamespace(vocab_size=10, is_special=lambda i: i == 0)

    def __enter__(self) -> FreeEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.session.close()


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    directory = tmp_path / "store" / "tiny" / "cpu" / "int8-onnxruntime"
    directory.mkdir(parents=True)
    write_manifest(directory)
    monkeypatch.setattr(run, "load_engine", lambda directory, **options: FreeEngine(directory))
    monkeypatch.setattr(conditions, "busy_percent", lambda: 0.0)
    monkeypatch.setattr(run, "BandwidthMeter", FreeMeter)
    return directory


class FreeMeter:
    """Reads 8,000 bytes/s, then 1,000 more each time."""

    read_bytes = GIB

    def __init__(self, *, threads: int, available_bytes: int) -> None:
        assert threads > 0
        assert available_bytes > 0
        self.rates: list[float] = []

    def __enter__(self) -> FreeMeter:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def read(self) -> float:
        self.rates.append(8_000.0 + 1_000 * len(self.rates))
        return self.rates[-1]

    def result(self) -> Bandwidth:
        return Bandwidth(
            bytes_per_s=round(median(self.rates)),
            lowest_bytes_per_s=round(min(self.rates)),
            highest_bytes_per_s=round(max(self.rates)),
            read_bytes=self.read_bytes,
            cache_bytes=None,
        )


def write_manifest(directory: Path, **changes: Any) -> None:
    values: dict[str, Any] = {
        "model": "tiny",
        "checkpoint_sha256": "0" * 64,
        "precision": "int8",
        "kv_precision": "fp32",
        "profile": "cpu",
        "backend": {"name": "onnxruntime", "version": "1"},
        "context_tokens": 32,
        "batch": 2,
        "plan": {"bytes_per_token_read": 1000, "kv_cache_bytes": 640},
        "device": {"execution_provider": "CPUExecutionProvider"},
        "build_key": "0" * 64,
        "file_bytes": {"backend/model.onnx": 7, "backend/model.data": 5, "tokenizer/a": 100},
    }
    Manifest(**{**values, **changes}).write(directory)


OPTIONS = BenchOptions(prompt_tokens=(8,), new_tokens=(4,), depths=(0, 16), repetitions=2)


def test_a_report_says_what_was_measured(engine: Path) -> None:
    report = bench_engine(engine, OPTIONS)
    assert [r.test.name for r in report.tests] == ["pp8", "tg4", "tg4 @ d16"]
    assert report.engine_bytes == 12
    said = json.loads((engine / "manifest.json").read_text(encoding="utf-8"))
    assert report.manifest_sha256 == said["manifest_sha256"]
    assert report.device["profile"] == "cpu"


def test_the_kv_cache_at_the_depth_is_read_too(engine: Path) -> None:
    report = bench_engine(engine, OPTIONS)
    assert report.bound is not None
    # 640 bytes for 32 tokens x 2 slots = 10 per token; positions 1 + 4/2 and 16 + 4/2
    read = [report.bound.bytes_per_token_read(r.test) for r in report.decodes]
    assert read == [1000 + 30, 1000 + 180]


def test_bandwidth_is_read_beside_each_repetition(
    engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    peaks = iter([3 * GIB, 4 * GIB + 5])
    monkeypatch.setattr(conditions, "peak_rss_bytes", lambda: next(peaks))
    report = bench_engine(engine, OPTIONS)
    # tg4's warm-up reads 8,000 and 9,000, that of tg4 @ d16 10,000 and 11,000; then in turns
    assert [r.bandwidths for r in report.decodes] == [(12_500, 16_500), (14_500, 18_500)]
    assert report.bound is not None
    assert report.bound.bandwidth_bytes_per_s == 13_500
    assert (report.bound.lowest_bytes_per_s, report.bound.highest_bytes_per_s) == (8_000, 19_000)
    first = report.decodes[0]
    shares = [
        speed * 1030 / bandwidth
        for speed, bandwidth in zip(first.tokens_per_s.samples, first.bandwidths, strict=True)
    ]
    assert report.bound.percent(first) == pytest.approx(100 * sum(shares) / 2)
    # the meter's arrays are not the engine's memory
    assert report.peak_rss_bytes == 3 * GIB + 5


def test_the_command_repeats_the_run() -> None:
    assert OPTIONS.command(Path("a b")) == "edgekit bench 'a b' -p 8 -n 4 -d 0 -d 16 -r 2"
    with_threads = BenchOptions(threads=3).command(Path("e"))
    assert with_threads == "edgekit bench e -p 512 -n 128 -d 0 -r 5 --threads 3"


def test_prefill_alone_measures_no_bandwidth(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(run, "BandwidthMeter")
    assert bench_engine(engine, BenchOptions(prompt_tokens=(8,), new_tokens=(0,))).bound is None


def test_another_device_than_the_processor_has_no_measured_bandwidth(
    engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(run, "BandwidthMeter")
    write_manifest(engine, device={"execution_provider": "CUDAExecutionProvider"})
    assert bench_engine(engine, OPTIONS).bound is None


def test_a_small_context_is_refused_before_loading(
    engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(run, "load_engine")
    with pytest.raises(InputError, match="pp512 needs 512 tokens of context, the engine has 32"):
        bench_engine(engine, BenchOptions())


def test_a_busy_machine_is_announced(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conditions, "busy_percent", lambda: 80.0)
    said: list[str] = []
    bench_engine(engine, OPTIONS, notify=said.append)
    assert said == ["warning: other programs use 80 % of the processor; numbers will be low"]


ARGUMENTS = ["tiny", "-p", "8", "-n", "4", "-r", "2"]


def test_the_command_prints_data_on_stdout_only(engine: Path) -> None:
    store = str(engine.parents[2])
    result = CliRunner().invoke(command, [*ARGUMENTS, "--json", "--store", store])
    assert result.exit_code == 0
    data = json.loads(result.stdout)
    assert [test["name"] for test in data["tests"]] == ["pp8", "tg4"]
    assert "warning: tg4 reaches" in result.stderr  # nothing is as fast as doing nothing


@pytest.mark.parametrize(("flag", "starts"), [("--md", "| model"), ("--csv", "model,engine_bytes")])
def test_other_shapes(engine: Path, flag: str, starts: str) -> None:
    result = CliRunner().invoke(command, [*ARGUMENTS, flag, "--store", str(engine.parents[2])])
    assert result.exit_code == 0
    assert result.stdout.startswith(starts)


def test_compare_reads_what_json_wrote(engine: Path, tmp_path: Path) -> None:
    arguments = [*ARGUMENTS, "--store", str(engine.parents[2])]
    earlier = tmp_path / "earlier.json"
    earlier.write_text(CliRunner().invoke(command, [*arguments, "--json"]).stdout)
    result = CliRunner().invoke(command, [*arguments, "--compare", str(earlier)])
    assert "| test | tokens/s before |" in result.stdout
    kept = CliRunner().invoke(command, [*arguments, "--json", "--compare", str(earlier)])
    json.loads(kept.stdout)
    assert "| test | tokens/s before |" in kept.stderr


def test_words_for_an_engine_that_takes_text_are_cut_into_themselves_again() -> None:
    inner = tokenizers.Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    inner.train_from_iterator([" the cat and the dog and 12 the hat of the cat ééé"] * 20, trainer)
    tokenizer = Tokenizer(inner)
    words = whole_words(tokenizer, tokenizer.vocab_size)
    texts = {tokenizer.decode([i]) for i in words}
    assert {" the", " and", " cat"} <= texts
    assert all(text.startswith(" ") and text[1:].isascii() for text in texts)
    ids = synthetic_ids(500, vocab_size=tokenizer.vocab_size, special_ids=set(range(400)) - words)
    assert tokenizer.encode(tokenizer.decode(ids), add_special=False) == ids


class Meter:
    """Of a board that draws 20 W."""

    source = "VIN, the whole board (INA238)"
    closed = False

    def watts(self) -> float:
        return 20.0

    def close(self) -> None:
        self.closed = True


class SlowSession(FreeSession):
    """Takes 40 ms for a token."""

    def decode(self, slots: Sequence[int], token_ids: Sequence[int]) -> Logits:
        time.sleep(0.04)
        return super().decode(slots, token_ids)


def test_on_a_jetson_settings_and_energy_are_told(
    engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    board = Jetson(board="a kit", power_mode="120W", power_mode_id=1, clocks_locked=False)
    meter, said = Meter(), list[str]()
    device = replace(read_device(), jetson=board)
    monkeypatch.setattr(run, "read_device", lambda **_: device)
    monkeypatch.setattr(run, "find_profile", lambda name: find_profile("jetson-thor"))
    monkeypatch.setattr("edgekit.bench.watch.find_power_meter", lambda root: meter)
    loaded = FreeEngine(engine)
    loaded.session = SlowSession()
    monkeypatch.setattr(run, "load_engine", lambda *_, **__: loaded)
    options = BenchOptions(prompt_tokens=(), new_tokens=(20,), repetitions=1)
    report = bench_engine(engine, options, notify=said.append)
    assert [text.split(":")[1].strip() for text in said if "warning: the power" in text] == [
        "the power mode is 120W, not the fastest, MAXN"
    ]
    assert len(report.slow_settings) == 2
    assert report.conditions.power_mode == "120W"
    assert report.conditions.clocks is not None
    assert report.conditions.clocks["locked"] is False
    energy = report.to_dict()["energy"]
    assert (energy["source"], energy["test"]) == ("VIN, the whole board (INA238)", "tg20")
    # 20 W for 20 tokens of 40 ms or a little more: at most 1.25 tokens a joule
    assert 0 < energy["tokens_per_joule"] <= 1.25
    assert energy["joules"] >= 16
    assert meter.closed
