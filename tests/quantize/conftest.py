from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edgekit.checkpoint import read_checkpoint
from edgekit.precision import find_precision
from edgekit.profile import find_profile
from edgekit.quantize import quantize_checkpoint
from edgekit.storage import Storage

CALIBRATION_TOKENS = 64


@pytest.fixture(scope="session", autouse=True)
def modelopt() -> None:
    """Import ModelOpt once: it uses what torch has deprecated."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import modelopt.torch.export
        import modelopt.torch.quantization  # noqa: F401  # for its side effects


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Products of 64 x 160 do not gain from a second thread, and wait for it on a busy machine."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tokenizer(make_tiny: Callable[..., Path]) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(make_tiny())


@pytest.fixture(scope="session")
def quantized(
    make_tiny: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """`quantized(precision, family=..., **config)`: the tiny checkpoint as ModelOpt left it, with a
    `storage` as that has it."""
    made: dict[tuple[object, ...], Path] = {}

    def make(
        precision: str, family: str = "llama", storage: Storage | None = None, **config: int
    ) -> Path:
        key = (precision, family, storage, *sorted(config.items()))
        if key not in made:
            out = tmp_path_factory.mktemp(precision)
            group = storage.group_size if storage is not None else 32
            quantize_checkpoint(
                read_checkpoint(make_tiny(family, **config)), find_precision(precision), out,
                group_size=group if precision == "int4_awq" else None,
                includes_head=find_profile("cpu").storage[precision].is_head_calibrated,
                storage=storage,
                calibration_tokens=CALIBRATION_TOKENS, checkpoint_sha256="abc",
            )  # fmt: skip
            made[key] = out
        return made[key]

    return make
