from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgekit.backends import list_backends
from edgekit.errors import InputError, ProfileError
from edgekit.footprint import weights_bytes
from edgekit.models import DEFAULT_MODEL, find_model
from edgekit.precision import PRECISIONS
from edgekit.profile import (
    KvStorage,
    PowerMode,
    find_profile,
    list_profiles,
    read_profile,
)
from edgekit.units import GIB

SHIPPED = Path(__file__).parent.parent / "profiles"
NAMES = sorted(path.stem for path in SHIPPED.glob("*.toml"))
FIGURES = (
    "sm", "memory_bytes", "reserved_bytes", "desktop_bytes", "bandwidth_bytes_per_s",
    "min_jetpack", "power_modes",
)  # fmt: skip

GOOD = """\
name = "board"
summary = "a board"
backends = ["onnxruntime"]
precisions = ["int8", "fp16"]
reserved_bytes = 1024
[storage.int8]
linear_bits = 8
int8_activations = true
[storage.fp16]
linear_bits = 32
"""


def write(directory: Path, text: str = GOOD, name: str = "board") -> Path:
    directory.mkdir(exist_ok=True)
    path = directory / f"{name}.toml"
    path.write_text(text)
    return path


@pytest.fixture(autouse=True)
def no_path_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EDGEKIT_PROFILE_PATH", raising=False)


def written(name: str) -> set[str]:
    """Keys of a shipped profile's top level."""
    return set(tomllib.loads((SHIPPED / f"{name}.toml").read_text(encoding="utf-8")))


@pytest.mark.parametrize("name", NAMES)
def test_every_shipped_profile_loads_and_is_named_after_its_file(name: str) -> None:
    profile = find_profile(name)
    assert profile.name == name
    assert profile.summary
    assert set(profile.precisions) <= set(profile.storage) <= set(PRECISIONS)
    for precision in profile.precisions:
        assert profile.storage_for(precision, 10**9).linear_bits >= 4
        assert profile.require_kv("auto", precision) in profile.kv


@pytest.mark.parametrize("name", NAMES)
def test_every_figure_of_a_shipped_profile_has_a_source(name: str) -> None:
    figures = written(name) & set(FIGURES)
    assert figures <= set(find_profile(name).sources)


@pytest.mark.parametrize("name", NAMES)
def test_every_precision_of_a_shipped_profile_is_offered_or_refused(name: str) -> None:
    profile = find_profile(name)
    assert not set(profile.precisions) & set(profile.refused)
    for precision in PRECISIONS:
        if precision in profile.precisions or precision in profile.aliases:
            assert profile.require_precision(precision) in profile.precisions
        else:
            reason = re.escape(profile.refused[precision])
            with pytest.raises(InputError, match=reason):
                profile.require_precision(precision)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "cpu"])
def test_every_reason_of_a_device_profile_has_a_source(name: str) -> None:
    profile = find_profile(name)
    reasons = {f"refused.{key}" for key in profile.refused}
    reasons |= {f"kv.{key}" for key, row in profile.kv.items() if row.reason}
    assert reasons <= set(profile.sources)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "cpu"])
def test_a_device_profile_knows_what_a_plan_needs(name: str) -> None:
    profile = find_profile(name)
    assert profile.sm is not None
    assert profile.gpu_names
    assert profile.memory_bytes is not None
    assert profile.bandwidth_bytes_per_s is not None
    assert profile.is_memory_unified == bool(profile.board_names) == bool(profile.min_jetpack)
    # FP8 begins with sm_89; Orin is sm_87
    assert ("fp8" in profile.precisions) == ("fp8" in profile.kv) == (profile.sm >= 89)
    ids = [mode.id for mode in profile.power_modes]
    assert ids == list(range(len(ids)))
    assert bool(ids) == bool(profile.board_names)


@pytest.mark.parametrize(
    ("name", "precision", "expected"),
    [
        # linears 6,979,321,856; embedding and head 525,336,576 each at fp16 = 2,101,346,304 bytes;
        # norms 266,240 at fp16 = 532,480 bytes
        ("rtx-4090", "fp16", 13_958_643_712 + 2_101_346_304 + 532_480),
        # 43,008 output channels a layer x 32 layers x 2-byte scale = 2,752,512
        ("rtx-4090", "int8", 6_979_321_856 + 2_752_512 + 2_101_346_304 + 532_480),
        # a 2-byte scale per 128 weights = 109,051,904
        ("rtx-4090", "int4_awq", 3_489_660_928 + 109_051_904 + 2_101_346_304 + 532_480),
        ("rtx-4090", "fp8", 6_979_321_856 + 2_101_346_304 + 532_480),
        # a 1-byte scale per 16 weights = 436,207,616
        ("jetson-thor", "nvfp4", 3_489_660_928 + 436_207_616 + 2_101_346_304 + 532_480),
        # down_proj's 1,879,048,192 at 2 bytes; 38,912 other output channels x 32 x 2 = 2,490,368
        ("jetson-thor", "int8_sq", 8_858_370_048 + 2_490_368 + 2_101_346_304 + 532_480),
    ],
)
def test_weights_of_the_8b_are_those_worked_out_by_hand(
    name: str, precision: str, expected: int
) -> None:
    published = {
        "fp16": 16_060_522_496, "int8": 9_083_953_152, "int8_sq": 10_962_739_200,
        "int4_awq": 5_700_591_616, "fp8": 9_081_200_640, "nvfp4": 6_027_747_328,
    }  # fmt: skip
    spec = find_model(DEFAULT_MODEL).spec
    storage = find_profile(name).storage_for(precision, spec.num_params)
    assert weights_bytes(spec, storage) == expected == published[precision]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_precision_takes_the_same_bytes_on_every_gpu(precision: str) -> None:
    profiles = [find_profile(name) for name in NAMES if name != "cpu"]
    rows = [profile.storage[precision] for profile in profiles if precision in profile.precisions]
    assert rows
    # which layers are stored so is another matter
    assert {replace(row, keeps_undivided=False) for row in rows} == {rows[0]}


def test_the_8b_at_8_bits_is_larger_than_an_8_gb_card() -> None:
    profile = find_profile("rtx-3070")
    assert profile.memory_bytes is not None
    assert profile.memory_bytes < 9_083_953_152
    assert profile.precisions[0] == "int4_awq"


@pytest.mark.parametrize(
    ("name", "gib"),
    [("rtx-3070", 7.05), ("rtx-3080-10gb", 8.9), ("rtx-3080-12gb", 10.8), ("rtx-4090", 22.5)],
)
def test_what_a_card_leaves_for_weights_and_cache(name: str, gib: float) -> None:
    # a CUDA context of 0.35 GiB and as much of activations and workspace
    profile = find_profile(name)
    assert profile.memory_bytes is not None
    left = (profile.memory_bytes - profile.reserved_bytes) / GIB - 0.7
    assert left == pytest.approx(gib, abs=0.05)


def test_int8_means_what_the_runtime_of_the_device_means_by_it() -> None:
    assert find_profile("jetson-thor").require_precision("int8") == "int8_sq"
    assert find_profile("jetson-orin").require_precision("int8") == "int8_sq"
    assert find_profile("rtx-4090").require_precision("int8") == "int8"


def test_a_cache_that_the_weights_forbid_is_refused_with_the_reason() -> None:
    thor = find_profile("jetson-thor")
    assert thor.require_kv("fp8", "nvfp4") == "fp8"
    with pytest.raises(InputError, match="is not possible with int4_awq weights: ") as caught:
        thor.require_kv("fp8", "int4_awq")
    assert caught.value.hint == "use `--kv fp16`"
    with pytest.raises(InputError, match=r"fp8 KV cache is not possible on `rtx-3070`: .*sm_89"):
        find_profile("rtx-3070").require_kv("fp8", "int4_awq")
    with pytest.raises(InputError, match="int8 KV cache is not possible on `jetson-thor`: "):
        thor.require_kv("int8", "fp16")


def test_every_precision_of_a_shipped_profile_has_a_backend() -> None:
    can = {info.name: info.precisions for info in list_backends()}
    for name in NAMES:
        profile = find_profile(name)
        # a backend that is not part of this version may have any of them
        if not set(profile.backends) <= set(can):
            continue
        for precision in profile.precisions:
            assert any(precision in can[backend] for backend in profile.backends), precision


def test_all_shipped_profiles_are_listed() -> None:
    assert set(list_profiles()) == {path.stem for path in SHIPPED.glob("*.toml")}


def test_a_profile_reads_as_written(tmp_path: Path) -> None:
    profile = read_profile(write(tmp_path))
    assert (profile.backends, profile.precisions) == (("onnxruntime",), ("int8", "fp16"))
    assert (profile.reserved_bytes, profile.memory_bytes) == (1024, None)
    assert dict(profile.kv) == {}
    assert (profile.power_modes, dict(profile.refused), dict(profile.aliases)) == ((), {}, {})
    assert profile.storage["int8"].int8_activations is True
    assert profile.storage["fp16"].linear_bits == 32


def test_every_table_reads_as_written(tmp_path: Path) -> None:
    text = GOOD.replace(
        "[storage.int8]",
        """\
sm = 87
min_jetpack = "7.2"
[[power_modes]]
name = "MAXN"
id = 0
[[power_modes]]
name = "15W"
id = 1
watts = 15
[refused]
fp8 = "no such hardware"
[aliases]
int4_awq = "int8"
[kv.fp16]
bits = 16
[kv.fp8]
bits = 8
not_with = ["int8"]
reason = "dropped"
[sources]
sm = "a list"
[storage.int8]""",
    )
    profile = read_profile(write(tmp_path, text))
    assert (profile.sm, profile.min_jetpack) == (87, "7.2")
    assert profile.power_modes == (
        PowerMode(name="MAXN", id=0),
        PowerMode(name="15W", id=1, watts=15),
    )
    assert profile.kv["fp8"] == KvStorage(bits=8, not_with=("int8",), reason="dropped")
    assert profile.require_kv("auto", "int8") == "fp16"
    assert profile.require_precision("int4_awq") == "int8"
    with pytest.raises(InputError, match="fp8 is not possible on `board`: no such hardware"):
        profile.require_precision("fp8")
    with pytest.raises(InputError, match="the profile `board` has no nvfp4"):
        profile.require_precision("nvfp4")
    assert dict(profile.sources) == {"sm": "a list"}


def test_storage_is_settled_by_the_models_size(tmp_path: Path) -> None:
    text = GOOD.replace(
        "linear_bits = 8\nint8_activations = true\n",
        "linear_bits = 8\ngroup_size = 128\nsmall_model_params = 1000\n"
        "small_model_group_size = 32\nsmall_model_prompt_bits = 8\n",
    )
    profile = read_profile(write(tmp_path, text))
    assert profile.storage_for("int8", 999).prompt_bits == 8
    assert profile.storage_for("int8", 1000).prompt_bits is None
    larger = read_profile(write(tmp_path, text.replace("small_model_prompt_bits", "prompt_bits")))
    assert larger.storage_for("int8", 999).prompt_bits is None
    assert larger.storage_for("int8", 1000).prompt_bits == 8
    assert profile.storage_for("fp16", 999).prompt_bits is None
    assert profile.storage_for("int8", 999).group_size == 32
    assert profile.storage_for("int8", 1000).group_size == 128
    assert profile.storage_for("fp16", 999).group_size is None


def test_zero_points_are_for_models_of_a_size(tmp_path: Path) -> None:
    small = GOOD.replace('"int8", "fp16"', '"int4_awq", "fp16"').replace(
        "[storage.int8]", "[storage.int4_awq]"
    )
    small = small.replace(
        "linear_bits = 8\nint8_activations = true\n",
        "linear_bits = 4\ngroup_size = 128\nsmall_model_params = 1000\n"
        "small_model_group_size = 64\nsmall_model_zero_points = true\n",
    )
    profile = read_profile(write(tmp_path, small))
    row = profile.storage_for("int4_awq", 999)
    # a scale of 16 bits and a zero point as wide as the codes
    assert (row.has_zero_points, row.bits_per_group) == (True, 20)
    row = profile.storage_for("int4_awq", 1000)
    assert (row.has_zero_points, row.bits_per_group) == (False, 16)
    every = small.replace("small_model_zero_points", "has_zero_points")
    profile = read_profile(write(tmp_path, every))
    assert profile.storage_for("int4_awq", 1000).has_zero_points
    assert not profile.storage_for("int4_awq", 999).has_zero_points


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("reserved_bytes", "reserve_bytes", "{path}:5: unknown key in the top level: reserve_b"),
        (
            "int8_activations",
            "int8_activation",
            "{path}:8: unknown key in [storage.int8]: int8_activation",
        ),
        ('name = "board"\n', "", "{path}: the top level lacks `name`"),
        ('precisions = ["int8", "fp16"]\n', "", "{path}: the top level lacks `precisions`"),
        ('backends = ["onnxruntime"]\n', "", "{path}: the top level lacks `backends`"),
        ("linear_bits = 8\n", "", "{path}:6: [storage.int8] lacks `linear_bits`"),
        ('name = "board"', "name = 3", "{path}:1: `name` must be text: 3"),
        ('"a board"', "true", "{path}:2: `summary` must be text: True"),
        ('["onnxruntime"]', '"onnxruntime"', "{path}:3: `backends` must be a list of names"),
        ('["onnxruntime"]', "[1]", "{path}:3: `backends` must be a list of names"),
        ('["int8", "fp16"]', '"fp16"', "{path}:4: `precisions` must be a list of names"),
        (
            "int8_activations = true",
            "prompt_bits = 4",
            "{path}:8: `prompt_bits` must be 8, or left out: 4",
        ),
        (
            "int8_activations = true",
            "int8_activations = true\nprompt_bits = 8",
            "{path}:9: `prompt_bits` is for weights that are quantized",
        ),
        (
            "linear_bits = 32",
            "linear_bits = 32\nsmall_model_prompt_bits = 8",
            "{path}:11: `small_model_prompt_bits` is for weights that are quantized",
        ),
        (
            "int8_activations = true",
            "has_zero_points = true",
            "{path}:8: `has_zero_points` is for 4-bit weights in groups",
        ),
        (
            "linear_bits = 8\nint8_activations = true",
            "linear_bits = 4\ngroup_size = 32\nsmall_model_zero_points = true",
            "{path}:9: `small_model_zero_points` is for 4-bit weights in groups",
        ),
        (
            "linear_bits = 8\nint8_activations = true",
            "linear_bits = 4\ngroup_size = 32\nhas_zero_points = true",
            "zero points are for int4_awq, not for int8",
        ),
        ("= 1024", "= -1", "{path}:5: `reserved_bytes` must be a whole number >= 0: -1"),
        ("= 1024", "= 1.5", "{path}:5: `reserved_bytes` must be a whole number >= 0: 1.5"),
        ("= 1024", "= true", "{path}:5: `reserved_bytes` must be a whole number >= 0: True"),
        ("= 1024", '= "1 GiB"', "`reserved_bytes` must be a whole number >= 0: '1 GiB'"),
        ("activations = true", "activations = 1", "{path}:8: `int8_activations` must be true or"),
        ('"int8", "fp16"', '"int8", "fp7"', "names something unknown: fp7"),
        ("[storage.fp16]", "[storage.fp7]", "names something unknown: fp7"),
        (
            "= 1024\n",
            '= 1\naliases = { int8 = "int7" }\n',
            "`aliases` names something unknown: int7",
        ),
        ("= 1024", "= 1\n[kv.int3]\nbits = 3", "`kv` names something unknown: int3"),
        ("= 1024", "= 1\n[kv.int8]\nbits = 0", "{path}:7: `bits` must be 1 or more: 0"),
        ("linear_bits = 32", "linear_bits = 0", "`linear_bits` must be 1 or more: 0"),
        (
            "linear_bits = 8",
            "linear_bits = 8\ngroup_size = 0",
            "`group_size` must be 1 or more",
        ),
        ("= 1024", "= 1\n[refused]\nfp88 = 'x'", "`refused` names something unknown: fp88"),
        ("= 1024", "= 1\nmemory_bytes = 0", "`memory_bytes` must be 1 or more: 0"),
        ("= 1024", f"= {10**400}", "`reserved_bytes` must be a whole number >= 0: int"),
        ('"int8", "fp16"', '"int8", "int8"', "must name at least one, and none twice"),
        ('"int8", "fp16"', '"int8", "fp8"', "{path}:4: the table [storage.fp8] is missing"),
        ('"int8", "fp16"', "", "must name at least one, and none twice"),
        ('"onnxruntime"', "", "must name at least one, and none twice"),
        ("[storage.int8]\n", "[storage]\n", "{path}:6: `storage` must hold one table"),
        ('name = "board"', "name = board", "{path} is not TOML: "),
        (
            'name = "board"',
            'name = "plank"',
            "{path}:1: names itself `plank`, its file says `board`",
        ),
        (
            "= 1024",
            "= 0\ndefault_context_tokens = 0",
            "{path}:6: `default_context_tokens` must be 1 or more: 0",
        ),
        (
            GOOD[GOOD.index("[storage") :],
            "storage = 3",
            "{path}:6: `storage` must hold one table",
        ),
        ("= 1024\n", "= 1\nkv = 16\n", "{path}:6: `kv` must hold one table per precision"),
        ("= 1024\n", "= 1\n[kv.fp16]\nbit = 16\n", "{path}:7: unknown key in [kv.fp16]: bit"),
        ("= 1024\n", "= 1\n[kv.fp16]\n", "{path}:6: [kv.fp16] lacks `bits`"),
        (
            "= 1024\n",
            '= 1\n[kv.fp16]\nbits = 16\nnot_with = ["fp16"]\n',
            "there is no KV cache for fp16",
        ),
        ("= 1024\n", "= 1\npower_modes = 3\n", "{path}:6: write [[power_modes]] for each mode"),
        (
            "= 1024\n",
            '= 1\n[[power_modes]]\nname = "a"\nid = 0\n[[power_modes]]\nname = "b"\nid = -1\n',
            "{path}:11: `id` must be a whole number >= 0: -1",
        ),
        ("= 1024\n", "= 1\n[refused]\nfp8 = 1\n", "{path}:6: `refused` must be a table of texts"),
    ],
)
def test_a_mistake_in_a_profile_is_one_sentence(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    assert old in GOOD
    path = write(tmp_path, GOOD.replace(old, new, 1))
    with pytest.raises(ProfileError) as caught:
        read_profile(path)
    said = str(caught.value)
    assert message.format(path=path) in said
    assert "\n" not in said


PIECES = [
    "name", "precisions", "storage", "int8", "kv", "bits", "power_modes", "sources", "x",
    "=", ".", ",", "[", "]", "[[", "]]", "{", "}", '"', "'", '"board"', '"fp16"', "-1", "0", "1e3",
    "true", "inf", "1979-05-27", "#", "\n", "\r\n", "\t", " ", "\\u0000", "é", "\u2028",
]  # fmt: skip


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.one_of(
        st.text(max_size=80),
        st.lists(st.sampled_from(PIECES), max_size=40).map(" ".join),
        # a good profile with a stretch of it replaced
        st.tuples(
            st.integers(0, len(GOOD)),
            st.integers(0, 40),
            st.lists(st.sampled_from(PIECES), max_size=6).map("".join),
        ).map(lambda cut: GOOD[: cut[0]] + cut[2] + GOOD[cut[0] + cut[1] :]),
    )
)
def test_no_text_makes_a_profile_fail_otherwise(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "board.toml"
    path.write_bytes(text.encode("utf-8", errors="surrogatepass"))
    try:
        read_profile(path)
    except ProfileError as exc:
        said = str(exc)
    else:
        said = str(path)
    assert str(path) in said or "profile `" in said


def test_a_file_that_is_not_text_or_not_there_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "board.toml"
    with pytest.raises(ProfileError, match=f"cannot read {path}"):
        find_profile(str(path))
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ProfileError, match=f"{path} is not TOML"):
        find_profile(str(path))


def test_an_unknown_name_lists_the_known() -> None:
    with pytest.raises(ProfileError, match="unknown profile: rtx-9090") as caught:
        find_profile("rtx-9090")
    assert caught.value.hint is not None
    assert "cpu" in caught.value.hint


def test_a_file_of_the_user_wins_over_a_shipped_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = write(tmp_path, GOOD.replace('"board"', '"cpu"'), "cpu")
    monkeypatch.setenv("EDGEKIT_PROFILE_PATH", str(tmp_path))
    assert list_profiles()["cpu"] == mine
    assert find_profile("cpu").summary == "a board"


def test_the_first_directory_of_the_path_wins_and_missing_ones_are_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = write(tmp_path / "first", GOOD.replace("a board", "first"))
    write(tmp_path / "second", GOOD.replace("a board", "second"))
    other = write(tmp_path / "second", GOOD.replace('"board"', '"other"'), "other")
    path = os.pathsep.join(["", str(tmp_path / "none"), *(str(tmp_path / n) for n in
                            ("first", "second"))])  # fmt: skip
    monkeypatch.setenv("EDGEKIT_PROFILE_PATH", path)
    assert find_profile("board").summary == "first"
    found = list_profiles()
    assert (found["board"], found["other"]) == (first, other)
    assert "cpu" in found


def test_a_path_names_a_file_whatever_the_search_path_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "first", GOOD.replace("a board", "first"))
    path = write(tmp_path / "second", GOOD.replace("a board", "second"))
    monkeypatch.setenv("EDGEKIT_PROFILE_PATH", str(tmp_path / "first"))
    assert find_profile(str(path)).summary == "second"


def test_the_list_is_printed_as_text_and_as_json(run_cli: Callable[..., Result]) -> None:
    text = run_cli("profiles")
    assert text.exit_code == 0
    assert any(line.startswith(("  cpu ", "* cpu ")) for line in text.stdout.splitlines())
    rows: list[dict[str, Any]] = json.loads(run_cli("profiles", "list", "--json").stdout)
    assert [row["name"] for row in rows] == list(list_profiles())
    assert json.loads(run_cli("profiles", "--json").stdout) == rows


def test_show_prints_the_file_of_a_name_or_of_a_path(
    run_cli: Callable[..., Result], tmp_path: Path
) -> None:
    assert run_cli("profiles", "show", "cpu").stdout == (SHIPPED / "cpu.toml").read_text()
    path = write(tmp_path, GOOD.replace('"board"', '"cpu"'), "cpu")
    assert run_cli("profiles", "show", path).stdout == path.read_text()


def test_a_broken_profile_exits_2_without_a_traceback(
    run_cli: Callable[..., Result], tmp_path: Path
) -> None:
    result = run_cli("plan", "--profile", write(tmp_path, GOOD.replace("1024", '"1"')))
    assert (result.exit_code, result.stdout) == (2, "")
    assert re.match(r"error: .*board\.toml:5: `reserved_bytes` must be ", result.stderr)
