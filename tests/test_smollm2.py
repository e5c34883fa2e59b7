"""A real model through the engine: SmolLM2-135M-Instruct against transformers, same weights."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from edgekit.backends import Session, find_backend
from edgekit.checkpoint import Checkpoint, resolve_model
from edgekit.export import export_decoder
from edgekit.profile import find_profile
from edgekit.runtime.draft import DraftModel, PromptLookup
from edgekit.runtime.generate import Generation
from edgekit.runtime.sampling import Sampler, Sampling
from edgekit.runtime.slot import Slot
from edgekit.runtime.steer import Drafter
from edgekit.runtime.structure import Structure, StructureCompiler
from edgekit.runtime.tokenizer import Tokenizer as EngineTokenizer

pytestmark = pytest.mark.slow

POSITIONS = 64
CHAT = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
TEXTS = [
    CHAT.format("What is the capital of France, and what is it known for? Answer briefly.")
    + "The capital of France is Paris. It is known for the Eiffel Tower, the Louvre, its food, its "
    "fashion and the river Seine, which runs through the middle of the city from east to west.",
    "def fibonacci(n):\n    a, b = 0, 1\n    for _ in range(n):\n        yield a\n"
    "        a, b = b, a + b\n\n\nfor value in fibonacci(10):\n    print(value)\n\n# prints "
    "0 1 1 2 3 5 8 13 21 34, each of them on a line of its own, as generators do\n",
    "In 1969 three astronauts flew to the Moon; two of them walked on it while the third stayed in "
    "orbit. They brought back 21.5 kg of rock, left a mirror that is still in use today, and "
    "splashed down in the Pacific eight days after they had left. Half a billion people watched.",
    "Die Hauptstadt von Österreich ist Wien. 维也纳是奥地利的首都。 Вена — столица Австрии. "
    "Vienna: 1,9 million people, 23 districts, 0 skyscrapers in the old town. 🙂",
]
QUESTION = CHAT.format("Explain in two sentences why the sky is blue.")


@pytest.fixture(scope="module")
def checkpoint(smollm2_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return resolve_model(str(smollm2_gguf), work=tmp_path_factory.mktemp("work"))


@pytest.fixture(scope="module")
def tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    return Tokenizer.from_file(str(checkpoint.path / "tokenizer.json"))


@pytest.fixture(scope="module")
def original(checkpoint: Checkpoint) -> Any:
    return AutoModelForCausalLM.from_pretrained(checkpoint.path, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def session(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    graph = tmp_path_factory.mktemp("graph")
    export_decoder(checkpoint, find_profile("cpu").storage["fp16"], graph, context_tokens=256)
    session = find_backend("onnxruntime").open(graph, context_tokens=256, num_slots=1)
    yield session
    session.close()


@pytest.mark.parametrize("text", TEXTS, ids=["chat", "code", "prose", "languages"])
def test_logits_are_those_of_transformers(
    text: str, tokenizer: Tokenizer, original: Any, session: Session
) -> None:
    ids = tokenizer.encode(text).ids[:POSITIONS]
    assert len(ids) == POSITIONS
    with torch.inference_mode():
        expected: NDArray[np.float32] = original(torch.tensor([ids])).logits[0].numpy()
    session.truncate(0, 0)
    found = session.prefill(0, ids, num_logits=POSITIONS)
    assert np.abs(expected).max() > 10
    # the same fp16 weights and fp32 activations on both sides: sums in another order, 2^-24 of
    # activations that reach some thousands in this model, through thirty blocks
    assert np.abs(found - expected).max() <= 1e-2
    np.testing.assert_array_equal(found.argmax(axis=1), expected.argmax(axis=1))


def test_greedy_text_is_that_of_transformers(
    tokenizer: Tokenizer, original: Any, session: Session
) -> None:
    ids = tokenizer.encode(QUESTION).ids
    session.truncate(0, 0)
    answer = [int(session.prefill(0, ids)[0].argmax())]
    while len(answer) < 32:
        answer.append(int(session.decode([0], [answer[-1]])[0].argmax()))
    # greedy means: the likeliest token after each beginning. One pass asks for all of them, and
    # by induction the texts are equal
    with torch.inference_mode():
        logits = original(torch.tensor([[*ids, *answer[:-1]]])).logits[0, len(ids) - 1 :]
    expected = [int(i) for i in logits.argmax(dim=-1)]
    assert tokenizer.decode(answer) == tokenizer.decode(expected)
    assert answer == expected
    assert "light" in tokenizer.decode(answer)


REPEAT = (
    "Repeat this text word for word:\n\nLast summer we rented a small cottage beside the lake. "
    "Every morning my brother went fishing while I made coffee and read the newspaper."
)


FOX = "Tell me about a fox."


def answered(
    session: Session, tokenizer: EngineTokenizer, text: str, drafter: Drafter | None, **options: Any
) -> Generation:
    generation = Generation(
        Slot(session),
        tokenizer.encode_chat(CHAT.format(text)),
        max_new_tokens=64,
        stop_ids=tokenizer.stop_ids,
        drafter=drafter,
        **options,
    )
    list(generation)
    return generation


@pytest.mark.parametrize(
    "sampling", [Sampling(), Sampling(temperature=0.7, top_p=0.9, seed=5)], ids=["greedy", "drawn"]
)
@pytest.mark.parametrize("text", [REPEAT, FOX], ids=["repeat", "free"])
def test_guessing_ahead_gives_the_same_text(
    text: str, sampling: Sampling, checkpoint: Checkpoint, session: Session
) -> None:
    # fp16 weights are computed in fp32 on a processor: passes of one token and of many agree to
    # about 1e-5, far less than any two logits that compete here
    tokenizer = EngineTokenizer.load(checkpoint.path)
    plain = answered(session, tokenizer, text, None, sampler=Sampler(sampling))
    drafted = answered(
        session, tokenizer, text, PromptLookup(marginal_cost=0.06), sampler=Sampler(sampling)
    )
    assert drafted.new_ids == plain.new_ids
    assert drafted.finish_reason == plain.finish_reason
    if text == REPEAT and sampling.temperature == 0:
        assert drafted.accepted_tokens > len(plain.new_ids) // 2
        assert drafted.num_passes < plain.num_passes


def test_a_second_engine_guesses_and_the_text_stays_the_same(
    checkpoint: Checkpoint, session: Session, tmp_path: Path
) -> None:
    export_decoder(checkpoint, find_profile("cpu").storage["fp16"], tmp_path, context_tokens=256)
    small = find_backend("onnxruntime").open(tmp_path, context_tokens=256, num_slots=1)
    tokenizer = EngineTokenizer.load(checkpoint.path)
    plain = answered(session, tokenizer, FOX, None, sampler=Sampler(Sampling()))
    model = DraftModel(Slot(small), vocab_size=session.vocab_size, step_cost=0.1)
    drafted = answered(session, tokenizer, FOX, model, sampler=Sampler(Sampling()))
    assert drafted.new_ids == plain.new_ids
    # a model that is the same guesses everything, but for what would come after the end
    assert drafted.accepted_tokens >= drafted.drafted_tokens - 16
    assert drafted.num_passes < plain.num_passes / 2
    small.close()


def test_a_real_model_fills_a_schema_within_few_tokens(
    checkpoint: Checkpoint, session: Session
) -> None:
    schema = {
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "tags": {"type": "array", "items": {"type": "string"}},
            "size": {"enum": ["small", "large"]},
        },
        "required": ["name", "tags", "size"],
        "additionalProperties": False,
    }
    tokenizer = EngineTokenizer.load(checkpoint.path)
    compiler = StructureCompiler(tokenizer, vocab_size=session.vocab_size)
    for max_new_tokens in (30, 60):
        constraint = compiler.constraint(Structure(json_schema=schema))
        constraint.end_within(max_new_tokens)
        generation = Generation(
            Slot(session),
            tokenizer.encode_chat(CHAT.format("Describe a house as JSON.")),
            sampler=Sampler(Sampling()),
            max_new_tokens=max_new_tokens,
            stop_ids=tokenizer.stop_ids,
        )
        generation.constraint = constraint
        list(generation)
        jsonschema.validate(json.loads(tokenizer.decode(generation.new_ids)), schema)
