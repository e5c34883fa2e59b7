from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from edgekit.bench.compare import compare, read_earlier
from edgekit.bench.energy import Energy, TestEnergy
from edgekit.bench.measure import BenchTest, TestResult
from edgekit.bench.metrics import Summary
from edgekit.bench.report import BenchReport, slowed_down
from edgekit.bench.tables import markdown_table, to_csv, to_markdown
from edgekit.errors import InputError

MakeReport = Callable[..., BenchReport]


def test_json_has_the_documented_shape(make_report: MakeReport) -> None:
    data = json.loads(make_report().to_json())
    assert list(data) == [
        "manifest_sha256", "device", "conditions", "tests", "load_ms", "peak_rss_bytes",
        "peak_device_bytes", "energy", "bound", "timing", "notes",
    ]  # fmt: skip
    assert set(data["conditions"]) == {
        "threads", "power_mode", "clocks", "temperature_c", "throttling",
    }  # fmt: skip
    prefill, decode = data["tests"]
    assert list(prefill) == [
        "name", "prompt_tokens", "new_tokens", "depth", "n", "tokens_per_s", "ttft_ms", "itl_ms",
        "bandwidth_bytes_per_s",
    ]  # fmt: skip
    assert prefill["name"] == "pp512"
    assert prefill["tokens_per_s"] == {
        "mean": 110.0, "stddev": 10.0, "p50": 110.0, "samples": [100.0, 120.0, 110.0],
    }  # fmt: skip
    assert set(prefill["ttft_ms"]) == {"p50", "p95"}
    assert prefill["itl_ms"] is None
    assert set(decode["itl_ms"]) == {"p50", "p95", "p99"}
    assert decode["n"] == 3


def test_what_was_measured_otherwise_is_said(make_report: MakeReport, tmp_path: Path) -> None:
    streamed = replace(make_report(), timing="stream", notes=("timed elsewhere",))
    data = streamed.to_dict()
    assert (data["timing"], data["notes"]) == ("stream", ["timed elsewhere"])
    assert "Note: timed elsewhere.\n" in to_markdown(streamed)
    before = streamed.to_dict()
    del before["timing"]  # of an earlier version
    (tmp_path / "a.json").write_text(json.dumps(before))
    text = compare(streamed, read_earlier(tmp_path / "a.json"))
    assert 'Note: timing differs: "calls" before, "stream" now.' in text


def test_the_bound_counts_weights_and_half_of_what_decode_adds(make_report: MakeReport) -> None:
    # 99,350,000 + 10,000 x (1 + 128 / 2) = 100,000,000 bytes, x 21 tokens/s = 2.1e9 of 10e9
    assert make_report().to_dict()["bound"] == {
        "bytes_per_token_read": 100_000_000,
        "bandwidth_bytes_per_s": 10_000_000_000,
        "percent": 21.0,
    }


def test_a_share_is_of_the_bandwidth_beside_each_run(make_report: MakeReport) -> None:
    # 1e8 bytes a token: 2.0e9 of 8e9, 2.2e9 of 20e9, 2.1e9 of 6e9 = 25, 11 and 35 %
    prefill, decode = make_report().tests
    varied = replace(decode, bandwidths=(8e9, 20e9, 6e9))
    report = make_report(tests=(prefill, varied))
    assert report.to_dict()["bound"]["percent"] == 25.0
    first, second = report.to_dict()["tests"]
    assert first["bandwidth_bytes_per_s"] == []
    assert second["bandwidth_bytes_per_s"] == [8_000_000_000, 20_000_000_000, 6_000_000_000]


def test_the_range_of_the_bandwidth_is_said(make_report: MakeReport) -> None:
    report = make_report()
    assert report.bound is not None
    bound = replace(report.bound, lowest_bytes_per_s=8 * 1024**3, highest_bytes_per_s=20 * 1024**3)
    text = to_markdown(replace(report, bound=bound))
    assert "(measured beside each run of decode: 8.00 GiB to 20.00 GiB)" in text


def test_without_a_bandwidth_there_is_no_bound(make_report: MakeReport) -> None:
    report = make_report(bandwidth_bytes_per_s=None)
    assert report.to_dict()["bound"] is None
    assert report.warnings() == []
    assert "Bandwidth" not in to_markdown(report)


def test_faster_than_the_memory_is_said_aloud(make_report: MakeReport) -> None:
    (warning,) = make_report(bandwidth_bytes_per_s=1_000_000_000).warnings()
    assert warning.startswith("tg128 reaches 210 % of the measured bandwidth")


def test_a_run_that_slows_down_is_said_aloud(make_report: MakeReport) -> None:
    slow = TestResult(
        test=BenchTest(new_tokens=8),
        tokens_per_s=Summary((10.0, 10.0, 8.0, 8.0)),
        itl_ms=Summary((1.0,)),
    )
    (warning,) = make_report(tests=(slow,)).warnings()
    assert warning.startswith("tg8 became slower")


@pytest.mark.parametrize("samples", [(10.0, 1.0, 1.0), (10.0, 10.0, 9.5, 9.5)])
def test_few_or_steady_samples_are_not_called_slower(samples: tuple[float, ...]) -> None:
    assert not slowed_down(Summary(samples))


def test_markdown_shows_every_test_and_how_to_repeat_it(make_report: MakeReport) -> None:
    text = to_markdown(make_report())
    assert "| pp512 | 110.00 ± 10.00 |" in text
    assert "| tg128 |   21.00 ± 1.00 |" in text
    assert "Repeat with: `edgekit bench tiny -p 512 -n 128 -d 0 -r 3`" in text
    assert "load 123 ms; peak RSS 2.00 MiB" in text


def test_markdown_columns_line_up() -> None:
    table = markdown_table(["name", "n"], [["a", "1"], ["long", "23.5"]], text_columns=1)
    assert table.splitlines() == [
        "| name |    n |",
        "| ---- | ---: |",
        "| a    |    1 |",
        "| long | 23.5 |",
    ]


def test_energy_is_told_with_its_source_or_said_to_be_unknown(make_report: MakeReport) -> None:
    unknown = replace(make_report(), energy="no sensor of power can be read here")
    assert unknown.to_dict()["energy"] is None
    assert "\nEnergy: N/A, no sensor of power can be read here.\n" in to_markdown(unknown)
    tests = {"tg128": TestEnergy(joules=160.04, tokens=640)}
    known = replace(make_report(), energy=Energy(source="VIN, the whole board", tests=tests))
    assert known.to_dict()["energy"]["tokens_per_joule"] == 3.999
    prefill, decode = csv.DictReader(io.StringIO(to_csv(known)))
    assert (prefill["tokens_per_joule"], decode["tokens_per_joule"]) == ("", "3.999")
    assert (
        "\nEnergy: tg128 4.00 tokens/J (160.0 J); source: VIN, the whole board.\n"
        in to_markdown(known)
    )


def test_a_device_that_was_slower_than_it_can_be_is_said_aloud(make_report: MakeReport) -> None:
    report = make_report()
    held = replace(
        report,
        slow_settings=("the power mode is 120W, not the fastest, MAXN: `sudo nvpmodel -m 0`",),
        conditions=replace(report.conditions, throttling=["gpu too hot"]),
    )
    assert held.warnings() == [
        "the power mode is 120W, not the fastest, MAXN: `sudo nvpmodel -m 0`; the numbers are "
        "lower than they can be",
        "the device was held back: gpu too hot",
    ]
    assert "throttling: gpu too hot" in to_markdown(held)
    calm = replace(report, conditions=replace(report.conditions, throttling=[]))
    assert calm.warnings() == []
    assert "throttling: none" in to_markdown(calm)
    assert "throttling" not in to_markdown(report)  # not known


def test_csv_has_one_line_per_test(make_report: MakeReport) -> None:
    prefill, decode = csv.DictReader(io.StringIO(to_csv(make_report())))
    assert (prefill["test"], prefill["tokens_per_s_p50"]) == ("pp512", "110.000")
    assert (prefill["itl_ms_p50"], prefill["bandwidth_percent"]) == ("", "")
    assert (decode["itl_ms_p99"], decode["bandwidth_percent"]) == ("49.94", "21")


def earlier_file(path: Path, report: BenchReport) -> Path:
    path.write_text(report.to_json(), encoding="utf-8")
    return path


def test_compare_gives_ratios_of_medians(make_report: MakeReport, tmp_path: Path) -> None:
    report = make_report()
    text = compare(report, read_earlier(earlier_file(tmp_path / "a.json", report)))
    assert [line.split("|")[-2].strip() for line in text.splitlines()[2:]] == ["1.000", "1.000"]
    assert "Note" not in text


def test_compare_names_what_differs(make_report: MakeReport, tmp_path: Path) -> None:
    before = earlier_file(tmp_path / "a.json", make_report(threads=1))
    after = replace(make_report(), manifest_sha256="cd" * 32)
    text = compare(after, read_earlier(before))
    assert "Note: threads differs: 1 before, 2 now." in text
    assert "Note: the engines differ." in text


def test_compare_without_a_common_test_says_so(make_report: MakeReport, tmp_path: Path) -> None:
    before = earlier_file(tmp_path / "a.json", make_report())
    other = TestResult(test=BenchTest(prompt_tokens=7), tokens_per_s=Summary((1.0,)))
    text = compare(make_report(tests=(other,)), read_earlier(before))
    assert text == "No test in common: the earlier run has pp512, tg128."


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"tests": [{}], "conditions": {}}'])
def test_a_file_of_another_shape_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match="cannot read the benchmark"):
        read_earlier(path)
