"""The drafter of an engine: what it costs to guess there, and a second engine that guesses."""

from __future__ import annotations

from pathlib import Path

from edgekit.engine import open_manifest
from edgekit.runtime.draft import DraftModel, PromptLookup, require_same_vocabulary
from edgekit.runtime.draft_policy import marginal_cost
from edgekit.runtime.load import LoadedEngine, load_engine
from edgekit.runtime.slot import Slot


def make_lookup(engine: LoadedEngine) -> PromptLookup:
    """Prompt lookup for one answer of `engine`."""
    return PromptLookup(marginal_cost=marginal_cost(engine.manifest.precision))


def load_draft_model(
    directory: Path, target: LoadedEngine, *, threads: int | None = None
) -> tuple[LoadedEngine, DraftModel]:
    """Load a smaller engine to guess for `target`; the caller closes it.

    Both hold the same context where the smaller one was built for so much. Raises `InputError`
    when their vocabularies differ, and what `load_engine` raises.
    """
    longest = min(target.session.context_tokens, open_manifest(directory).context_tokens)
    draft = load_engine(directory, context_tokens=longest, threads=threads)
    try:
        require_same_vocabulary(draft.tokenizer, target.tokenizer)
        ours, theirs = (e.manifest.plan["bytes_per_token_read"] for e in (draft, target))
        model = DraftModel(
            Slot(draft.session),
            vocab_size=target.session.vocab_size,
            # decode reads its weights: about what its time is spent on
            step_cost=ours / theirs,
            marginal_cost=marginal_cost(target.manifest.precision),
        )
    except BaseException:
        draft.session.close()
        raise
    return draft, model
