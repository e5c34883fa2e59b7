"""Energy by hand, and a watch over sensors that are made up."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.bench.energy import (
    Energy,
    Sample,
    TestEnergy,
    spent_joules,
    spent_watts,
)
from edgekit.bench.measure import BenchTest, TestResult
from edgekit.bench.metrics import Summary
from edgekit.bench.watch import NO_SENSOR, TOO_SHORT, Sensors, Watch
from edgekit.device import Jetson, read_device
from edgekit.device.nvml import CardWatch

S = 1_000_000_000


def samples(*values: float, every_ns: int = S) -> list[Sample]:
    return [Sample(at_ns=i * every_ns, value=value) for i, value in enumerate(values)]


def test_steady_power_is_power_by_time() -> None:
    # 10 W for 7 s
    assert spent_watts(samples(*[10.0] * 9), 0, 7 * S) == pytest.approx(70)


def test_a_ramp_is_a_triangle() -> None:
    # 0 to 8 W within 8 s: 8 x 8 / 2 = 32 J
    assert spent_watts(samples(*map(float, range(9))), 0, 8 * S) == pytest.approx(32)


def test_power_at_the_ends_is_on_the_line_between_two_samples() -> None:
    # from 0.5 to 6.5 s of that ramp: (0.5 W + 6.5 W) / 2 x 6 s = 21 J
    assert spent_watts(samples(*map(float, range(9))), S // 2, 13 * S // 2) == pytest.approx(21)


def test_samples_at_odd_times_count_for_as_long_as_they_hold() -> None:
    # 0 s: 2 W, 1 s: 4 W, 4 s: 4 W, 5 s: 0 W, 6 s: 0 W, 7 s: 2 W, 8 s: 2 W
    odd = [Sample(at_ns=t * S, value=v) for t, v in
           ((0, 2.0), (1, 4.0), (4, 4.0), (5, 0.0), (6, 0.0), (7, 2.0), (8, 2.0))]  # fmt: skip
    # 3 + 12 + 2 + 0 + 1 + 2 = 20 J
    assert spent_watts(odd, 0, 8 * S) == pytest.approx(20)


def test_a_counter_is_read_between_its_steps() -> None:
    # 100 J at 0 s, 5 J more each second: from 0.5 to 6.5 s 30 J
    counter = samples(*[100.0 + 5 * i for i in range(9)])
    assert spent_joules(counter, S // 2, 13 * S // 2) == pytest.approx(30)


@pytest.mark.parametrize(
    ("begin", "end"),
    [(-1, 7 * S), (0, 9 * S), (3 * S, 3 * S), (5 * S, 2 * S), (0, 5 * S)],
    ids=["before the first", "after the last", "no time", "backwards", "too few within"],
)
def test_what_the_samples_do_not_cover_is_not_told(begin: int, end: int) -> None:
    assert spent_watts(samples(*[10.0] * 9), begin, end) is None
    assert spent_joules(samples(*map(float, range(9))), begin, end) is None


def test_no_samples_say_nothing() -> None:
    assert spent_watts([], 0, S) is None


def test_a_counter_that_did_not_grow_says_nothing() -> None:
    assert spent_joules(samples(*[5.0] * 9), 0, 8 * S) is None
    assert spent_joules(samples(*[9.0 - i for i in range(9)]), 0, 8 * S) is None


@given(
    st.lists(st.floats(0, 200), min_size=12, max_size=40),
    st.integers(0, 10**10),
    st.integers(0, 10**10),
    st.integers(0, 10**10),
)
def test_parts_of_a_span_add_up(values: list[float], a: int, b: int, c: int) -> None:
    told = samples(*values)
    begin, middle, end = sorted(x % told[-1].at_ns for x in (a, b, c))
    whole = spent_watts(told, begin, end)
    parts = [spent_watts(told, begin, middle), spent_watts(told, middle, end)]
    if whole is not None:
        assert whole >= 0
    if whole is not None and None not in parts:
        assert math.isclose(sum(filter(None, parts)), whole, abs_tol=1e-6, rel_tol=1e-9)


def test_the_figures_of_a_benchmark_are_those_of_its_first_decode_test() -> None:
    energy = Energy(
        source="VIN",
        tests={
            "pp512": TestEnergy(joules=10, tokens=2560),
            "tg128": TestEnergy(joules=160, tokens=640),
        },
    )
    assert energy.to_dict() == {
        "joules": 160, "tokens_per_joule": 4, "source": "VIN", "test": "tg128",
        "tests": {
            "pp512": {"joules": 10, "tokens_per_joule": 256},
            "tg128": {"joules": 160, "tokens_per_joule": 4},
        },
    }  # fmt: skip


# --- a watch ---


@dataclass
class Meter:
    """Draws `power` watts."""

    power: float | None = 20.0
    source: str = "VIN, the whole board (INA238)"
    closed: int = 0

    def watts(self) -> float | None:
        return self.power

    def close(self) -> None:
        self.closed += 1


@dataclass
class Nvml:
    """A card that takes 50 W, as its counter says."""

    began: float = field(default_factory=time.perf_counter)
    reasons: int = 0

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: int) -> float:  # noqa: N802
        return 1e6 + (time.perf_counter() - self.began) * 50_000

    def nvmlDeviceGetComputeRunningProcesses(self, handle: int) -> list[object]:  # noqa: N802
        row = type("Row", (), {"pid": 7, "usedGpuMemory": 123})
        return [row]

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle: int) -> int:  # noqa: N802
        return self.reasons

    def nvmlShutdown(self) -> None:  # noqa: N802
        pass


def result(*spans: tuple[int, int], tokens: int, name: int = 128) -> TestResult:
    return TestResult(
        test=BenchTest(new_tokens=name),
        tokens_per_s=Summary((1.0,)),
        spans_ns=spans,
        tokens=tokens,
    )


def measure(watch: Watch, seconds: float = 0.3) -> tuple[int, int]:
    """Where a run began and ended, the sensors read before and after it."""
    with watch:
        time.sleep(0.05)
        begin = time.perf_counter_ns()
        time.sleep(seconds)
        end = time.perf_counter_ns()
        time.sleep(0.05)
    return begin, end


def test_the_power_of_a_board_becomes_energy_of_tests() -> None:
    meter = Meter()
    watch = Watch(Sensors(meter=meter), every_s=0.01)
    span = measure(watch)
    energy = watch.energy([result(span, tokens=60)])
    assert isinstance(energy, Energy)
    seconds = (span[1] - span[0]) / 1e9
    assert energy.tests["tg128"].joules == pytest.approx(20 * seconds)
    assert energy.tests["tg128"].tokens_per_joule == pytest.approx(60 / (20 * seconds))
    assert energy.source == "VIN, the whole board (INA238)"
    assert meter.closed == 1


def test_the_counter_of_a_card_becomes_energy_and_memory() -> None:
    watch = Watch(Sensors(card=CardWatch(Nvml(), 0)), every_s=0.01, pids=lambda: {7})
    span = measure(watch)
    energy = watch.energy([result(span, tokens=60)])
    assert isinstance(energy, Energy)
    assert energy.source == "NVML, the GPU alone"
    # 50 W, read at some time within each step
    assert energy.tests["tg128"].joules == pytest.approx(50 * (span[1] - span[0]) / 1e9, rel=0.3)
    assert watch.peak_device_bytes == 123
    assert watch.throttling() == []


def test_repetitions_add_up_and_one_unknown_is_all_unknown() -> None:
    watch = Watch(Sensors(meter=Meter()), every_s=0.01)
    begin, end = measure(watch, 0.4)
    middle = (begin + end) // 2
    both = watch.energy([result((begin, middle), (middle, end), tokens=10)])
    assert isinstance(both, Energy)
    assert both.tests["tg128"].joules == pytest.approx(20 * (end - begin) / 1e9)
    assert watch.energy([result((begin, middle), (end, end + S), tokens=10)]) == TOO_SHORT
    assert watch.energy([result((begin, begin + 1000), tokens=10)]) == TOO_SHORT
    one = watch.energy([
        result((begin, begin + 1000), tokens=10, name=1), result((begin, end), tokens=10)
    ])  # fmt: skip
    assert isinstance(one, Energy)
    assert list(one.tests) == ["tg128"]


@pytest.mark.parametrize("sensors", [Sensors(), Sensors(meter=Meter(power=None))])
def test_without_power_there_is_no_energy(sensors: Sensors) -> None:
    watch = Watch(sensors, every_s=0.01)
    span = measure(watch, 0.05)
    assert watch.energy([result(span, tokens=10)]) == NO_SENSOR
    assert watch.throttling() is None
    assert watch.peak_device_bytes is None


def test_what_slows_a_card_down_is_kept() -> None:
    watch = Watch(Sensors(card=CardWatch(Nvml(reasons=0x40), 0)), every_s=0.01)
    measure(watch, 0.05)
    assert watch.throttling() == ["too hot (hardware)"]
    assert watch.peak_device_bytes is None  # its processes are not ours


def test_events_that_came_meanwhile_are_told(tmp_path: Path) -> None:
    chip = tmp_path / "sys/class/hwmon/hwmon0"
    hot = tmp_path / "sys/class/thermal/cooling_device0"
    for path, files in (
        (chip, {"name": "soctherm_oc", "oc1_event_cnt": "0", "oc3_event_cnt": "2"}),
        (hot, {"type": "gpu-throttle-alert", "cur_state": "0"}),
    ):
        path.mkdir(parents=True)
        for name, text in files.items():
            (path / name).write_text(text + "\n")
    watch = Watch(Sensors(meter=Meter(), root=tmp_path), every_s=0.01)
    with watch:
        (chip / "oc3_event_cnt").write_text("5\n")
        (hot / "cur_state").write_text("1\n")
        time.sleep(0.3)
        (hot / "cur_state").write_text("0\n")
    assert watch.throttling() == ["gpu too hot", "over-current oc3, 3 times"]


def test_sensors_are_those_of_the_board_or_of_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    meter, card = Meter(), CardWatch(Nvml(), 0)
    opened: list[str | None] = []
    monkeypatch.setattr("edgekit.bench.watch.find_power_meter", lambda root: meter)

    def open_card(uuid: str | None) -> CardWatch:
        opened.append(uuid)
        return card

    monkeypatch.setattr(CardWatch, "open", open_card)
    machine = replace(read_device(), jetson=None)
    assert Sensors.find(machine, uses_gpu=False, uuid=None) == Sensors()
    assert Sensors.find(machine, uses_gpu=True, uuid="GPU-1") == Sensors(card=card)
    board = replace(machine, jetson=Jetson(board="a kit"))
    found = Sensors.find(board, uses_gpu=True, uuid=None)
    assert found == Sensors(meter=meter, card=card, root=Path("/"))
    # an engine on the processor of a board takes the board's power, too
    assert Sensors.find(board, uses_gpu=False, uuid=None).card is None
    assert opened == ["GPU-1", None]
