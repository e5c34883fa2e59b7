"""`families.read_spec`: what a config means, and which configs are refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from edgekit.errors import CheckpointError
from edgekit.families import expected_tensors, list_families, read_spec
from edgekit.model import ModelSpec, RopeScaling

LLAMA3_SCALING = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def config(**changes: Any) -> dict[str, Any]:
    """A small llama; a change to `None` removes the key."""
    keys: dict[str, Any] = {
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 128,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
    }
    return {k: v for k, v in {**keys, **changes}.items() if v is not None}


def refusal(**changes: Any) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        read_spec(config(**changes))
    assert caught.value.exit_code == 2
    return caught.value


def test_llama_31_8b_is_read_as_published() -> None:
    spec = read_spec(
        {
            "architectures": ["LlamaForCausalLM"],
            "attention_bias": False,
            "hidden_act": "silu",
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "max_position_embeddings": 131072,
            "mlp_bias": False,
            "model_type": "llama",
            "num_attention_heads": 32,
            "num_hidden_layers": 32,
            "num_key_value_heads": 8,
            "rms_norm_eps": 1e-05,
            "rope_scaling": LLAMA3_SCALING,
            "rope_theta": 500000.0,
            "tie_word_embeddings": False,
            "vocab_size": 128256,
        }
    )
    assert spec == ModelSpec(
        family="llama",
        num_layers=32,
        hidden_size=4096,
        intermediate_size=14336,
        num_query_heads=32,
        num_kv_heads=8,
        head_dim=128,
        vocab_size=128256,
        max_context_tokens=131072,
        rms_norm_eps=1e-05,
        rope_theta=500000.0,
        rope_scaling=RopeScaling(
            kind="llama3",
            factor=8.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_context_tokens=8192,
        ),
    )
    # the model card says 8.03 B
    assert spec.num_params == 8_030_261_248


@pytest.mark.parametrize(
    "key",
    [
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "vocab_size",
        "max_position_embeddings",
        "rms_norm_eps",
        "model_type",
    ],
)
def test_a_missing_key_is_named(key: str) -> None:
    assert str(refusal(**{key: None})) == f"config.json lacks a key: {key}"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_size", "64"),
        ("hidden_size", 64.0),
        ("num_hidden_layers", True),
        ("num_attention_heads", 0),
        ("vocab_size", -1),
        ("vocab_size", 10**12),
        ("rms_norm_eps", "small"),
        ("rms_norm_eps", float("nan")),
        ("rms_norm_eps", 10**400),
        ("rope_theta", 0),
        ("rope_theta", [1]),
        ("tie_word_embeddings", "no"),
        ("attention_bias", 1),
        ("rope_scaling", "linear"),
        ("num_key_value_heads", [2]),
    ],
)
def test_a_value_of_the_wrong_type_or_range_is_named(key: str, value: Any) -> None:
    assert key in str(refusal(**{key: value}))


def test_absent_kv_heads_mean_multi_head_attention() -> None:
    assert read_spec(config(num_key_value_heads=None)).num_kv_heads == 4


def test_head_size_is_its_own_key_or_hidden_size_over_heads() -> None:
    assert read_spec(config()).head_dim == 16
    assert read_spec(config(head_dim=32)).head_dim == 32
    assert "not a multiple of 4" in str(refusal(hidden_size=66))


def test_old_and_new_rope_keys_mean_the_same() -> None:
    old = read_spec(config(rope_theta=500000.0, rope_scaling=LLAMA3_SCALING))
    new = read_spec(config(rope_parameters={**LLAMA3_SCALING, "rope_theta": 500000.0}))
    older = read_spec(
        config(
            rope_theta=500000.0,
            rope_scaling={
                **{k: v for k, v in LLAMA3_SCALING.items() if k != "rope_type"},
                "type": "llama3",
            },
        )
    )
    assert old == new == older


def test_without_any_rope_key_theta_is_ten_thousand() -> None:
    spec = read_spec(config())
    assert (spec.rope_theta, spec.rope_scaling) == (10000.0, None)


def test_default_rope_parameters_are_no_scaling() -> None:
    spec = read_spec(config(rope_parameters={"rope_type": "default", "rope_theta": 1e5}))
    assert (spec.rope_theta, spec.rope_scaling) == (1e5, None)


def test_linear_scaling_keeps_its_factor() -> None:
    spec = read_spec(config(rope_scaling={"type": "linear", "factor": 4}))
    assert spec.rope_scaling == RopeScaling(kind="linear", factor=4.0)


@pytest.mark.parametrize("kind", ["yarn", "dynamic", "longrope", "su", "mrope"])
def test_other_rope_scaling_is_refused_by_name(kind: str) -> None:
    for key in ("rope_scaling", "rope_parameters"):
        scaling = {"rope_type": kind, "factor": 4.0}
        assert str(refusal(**{key: scaling})) == f"unsupported rotary scaling: {kind}"


@pytest.mark.parametrize(
    "key", ["factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"]
)
def test_incomplete_llama3_scaling_is_refused(key: str) -> None:
    scaling = {k: v for k, v in LLAMA3_SCALING.items() if k != key}
    assert str(refusal(rope_scaling=scaling)) == f"config.json lacks a key: {key}"


def test_llama3_bands_must_not_cross() -> None:
    assert "must be below" in str(refusal(rope_scaling={**LLAMA3_SCALING, "low_freq_factor": 4.0}))


def test_partial_or_layered_rotary_embedding_is_refused() -> None:
    assert "a part of each head" in str(refusal(partial_rotary_factor=0.5))
    layered = {"full_attention": {"rope_type": "default"}}
    assert "one per layer type" in str(refusal(rope_parameters=layered))


def test_llama_attention_bias_is_on_all_four_projections() -> None:
    spec = read_spec(config(attention_bias=True, mlp_bias=True))
    assert (spec.has_qkv_bias, spec.has_o_bias, spec.has_mlp_bias) == (True, True, True)


def test_qwen2_has_qkv_bias_without_saying_so() -> None:
    spec = read_spec(
        config(
            model_type="qwen2",
            use_sliding_window=False,
            sliding_window=256,
            max_window_layers=2,
            tie_word_embeddings=True,
        )
    )
    assert (spec.has_qkv_bias, spec.has_o_bias, spec.has_tied_embeddings) == (True, False, True)


def test_qwen3_has_qk_norm_and_an_explicit_head_size() -> None:
    spec = read_spec(config(model_type="qwen3", head_dim=32))
    assert (spec.has_qk_norm, spec.head_dim, spec.has_qkv_bias) == (True, 32, False)
    assert str(refusal(model_type="qwen3")) == "config.json lacks a key: head_dim"


def test_mistral_is_llama_by_another_name() -> None:
    spec = read_spec(config(model_type="mistral"))
    assert spec == replace(read_spec(config()), family="mistral")


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": "mistral", "sliding_window": 256},
        {
            "model_type": "qwen2",
            "use_sliding_window": True,
            "sliding_window": 256,
            "max_window_layers": 1,
        },
        {"model_type": "qwen2", "layer_types": ["full_attention", "sliding_attention"]},
        {"model_type": "qwen3", "head_dim": 16, "layer_types": ["linear_attention"] * 2},
    ],
)
def test_a_sliding_window_in_use_is_refused(changes: dict[str, Any]) -> None:
    assert "sliding-window attention" in str(refusal(**changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": "mistral", "sliding_window": 512},
        {
            "model_type": "qwen2",
            "use_sliding_window": True,
            "sliding_window": 256,
            "max_window_layers": 2,
        },
        {
            "model_type": "qwen2",
            "use_sliding_window": False,
            "sliding_window": 256,
            "layer_types": ["full_attention"] * 2,
        },
    ],
)
def test_a_sliding_window_that_hides_nothing_is_accepted(changes: dict[str, Any]) -> None:
    assert read_spec(config(**changes)).num_layers == 2


def test_another_activation_is_refused() -> None:
    assert str(refusal(hidden_act="gelu")) == "unsupported activation: gelu"


@pytest.mark.parametrize("model_type", ["gpt2", "gemma3", "_rope", "llama.x", "", 7, ["llama"]])
def test_an_unknown_family_is_refused_with_a_list(model_type: Any) -> None:
    error = refusal(model_type=model_type)
    assert str(error) == f"unsupported model family: {model_type}"
    assert error.hint == "supported are llama, mistral, qwen2, qwen3"


@pytest.mark.parametrize(
    "changes",
    [
        {"auto_map": {"AutoConfig": "configuration.MyConfig"}},
        {"trust_remote_code": True},
    ],
)
def test_a_checkpoint_with_its_own_code_is_refused(changes: dict[str, Any]) -> None:
    error = refusal(**changes)
    assert "Python code of its own" in str(error)
    assert "never runs code" in str(error.hint)


@pytest.mark.parametrize("model_type", list_families())
def test_every_family_survives_a_round_trip_through_json_types(model_type: str) -> None:
    spec = read_spec(config(model_type=model_type, head_dim=16))
    assert ModelSpec.from_dict(spec.to_dict()) == spec


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_word_embeddings": True},
        {"attention_bias": True, "mlp_bias": True},
        {"model_type": "qwen2"},
        {"model_type": "qwen3", "head_dim": 32},
    ],
)
def test_expected_tensors_hold_as_many_weights_as_the_spec_counts(changes: dict[str, Any]) -> None:
    spec = read_spec(config(**changes))
    shapes = expected_tensors(spec).values()
    assert sum(shape[0] * (shape[1] if len(shape) == 2 else 1) for shape in shapes) == (
        spec.num_params
    )


def test_expected_tensors_are_out_by_in() -> None:
    tensors = expected_tensors(read_spec(config(head_dim=32)))
    # Hq x D = 4 x 32, Hkv x D = 2 x 32
    assert tensors["model.layers.1.self_attn.q_proj.weight"] == (128, 64)
    assert tensors["model.layers.1.self_attn.k_proj.weight"] == (64, 64)
    assert tensors["model.layers.1.self_attn.o_proj.weight"] == (64, 128)
    assert tensors["model.layers.1.mlp.down_proj.weight"] == (64, 96)
    assert tensors["lm_head.weight"] == (128, 64)
