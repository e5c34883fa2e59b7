"""GGUF vocabulary -> the tokenizer files of a Hugging Face checkpoint.

A GGUF file stores tokens, merges and the *name* of the pre-tokenizer; the rules behind that name
are in llama.cpp (`llama-vocab.cpp`) and in the `tokenizer.json` that the model came with. The
table here has the names whose rules we know from both. The rest is refused, `default` as well:
llama.cpp itself warns that a model read that way gets worse, and nobody would notice here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.checkpoint.gguf_config import read_list, read_special_ids
from edgekit.checkpoint.gguf_file import GgufFile
from edgekit.errors import CheckpointError, InputError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED = 1, 2, 3, 4
"""Token types of ggml that matter here; 5 is unused, 6 a byte."""

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_LLAMA3 = rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}{{1,3}}|{_REST}"
_QWEN2 = rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}|{_REST}"
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PreTokenizer:
    """How text is cut before byte-level BPE merges anything."""

    pattern: str | None = None
    """Each match is a piece; `None`: the pattern of GPT-2."""
    splits_digits: bool = False
    """Every digit is a piece of its own, before the pattern."""
    normalizes_nfc: bool = False
    """As the model's own tokenizer does; llama.cpp leaves this out."""
    ignores_merges: bool = False
    """A piece that is a token is taken whole, even where no merge leads to it."""
    adds_bos: bool = False
    """Where the file does not say."""


PRE_TOKENIZERS: Mapping[str, PreTokenizer] = {
    "gpt-2": PreTokenizer(),
    "smollm": PreTokenizer(splits_digits=True),
    "starcoder": PreTokenizer(splits_digits=True),
    "refact": PreTokenizer(splits_digits=True),
    "llama-bpe": PreTokenizer(pattern=_LLAMA3, ignores_merges=True, adds_bos=True),
    "llama3": PreTokenizer(pattern=_LLAMA3, ignores_merges=True, adds_bos=True),
    "llama-v3": PreTokenizer(pattern=_LLAMA3, ignores_merges=True, adds_bos=True),
    "qwen2": PreTokenizer(pattern=_QWEN2, normalizes_nfc=True),
    "deepseek-r1-qwen": PreTokenizer(pattern=_QWEN2),
    "tekken": PreTokenizer(pattern=_TEKKEN, ignores_merges=True, adds_bos=True),
}


def write_tokenizer(gguf: GgufFile, out: Path) -> None:
    """Write `tokenizer.json`, `tokenizer_config.json` and, if there is one, the chat template.

    Raises `CheckpointError` for a tokenizer that edgekit would not reproduce exactly.
    """
    metadata = gguf.metadata
    builders = {"gpt2": _byte_level, "llama": _sentencepiece}
    kind = metadata.get("tokenizer.ggml.model")
    if not isinstance(kind, str) or kind not in builders:
        raise CheckpointError(
            f"unsupported GGUF tokenizer: {kind}",
            hint="supported are gpt2 (byte-level BPE) and llama (SentencePiece BPE)",
        )
    tokens = read_list(metadata, "tokenizer.ggml.tokens", str)
    if len(set(tokens)) != len(tokens):
        raise CheckpointError("the GGUF file has a token twice")
    types = read_list(metadata, "tokenizer.ggml.token_type", int)
    if len(types) != len(tokens):
        raise CheckpointError(f"the GGUF file has {len(tokens)} tokens, but {len(types)} types")
    try:
        tokenizer, adds_bos = builders[kind](metadata, tokens, types)
        _add_tokens(tokenizer, tokens, types)
        special = {k.removesuffix("_id"): tokens[i] for k, i in read_special_ids(gguf).items()}
        flags = {
            "add_bos_token": _flag(metadata, "tokenizer.ggml.add_bos_token", adds_bos),
            "add_eos_token": _flag(metadata, "tokenizer.ggml.add_eos_token", False),
        }
        _add_template(tokenizer, special, flags)
    except ImportError as exc:
        raise InputError("reading a GGUF tokenizer needs the package `tokenizers`") from exc
    _write_files(out, tokenizer, {**special, **flags}, metadata.get("tokenizer.chat_template"))


def _byte_level(
    metadata: Mapping[str, Any], tokens: list[str], types: list[int]
) -> tuple[Tokenizer, bool]:
    """Byte-level BPE with the named pre-tokenizer, and whether it adds bos by default."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    name = metadata.get("tokenizer.ggml.pre")
    if not isinstance(name, str) or name not in PRE_TOKENIZERS:
        raise CheckpointError(
            f"unsupported GGUF pre-tokenizer: {name}",
            hint=f"supported are {', '.join(PRE_TOKENIZERS)}; else give the original checkpoint",
        )
    row = PRE_TOKENIZERS[name]
    vocab = {token: index for index, token in enumerate(tokens)}
    merges = [_merge(text, vocab) for text in read_list(metadata, "tokenizer.ggml.merges", str)]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=row.ignores_merges))
    steps: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if row.splits_digits else []
    if row.pattern is not None:
        steps.append(pre_tokenizers.Split(Regex(row.pattern), behavior="isolated"))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=row.pattern is None))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    if row.normalizes_nfc:
        tokenizer.normalizer = normalizers.NFC()
    return tokenizer, row.adds_bos


def _sentencepiece(
    metadata: Mapping[str, Any], tokens: list[str], types: list[int]
) -> tuple[Tokenizer, bool]:
    """SentencePiece BPE as `transformers` rebuilds it: spaces as U+2581, bytes as `<0x0A>`."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    scores = read_list(metadata, "tokenizer.ggml.scores", float)
    if len(scores) != len(tokens):
        raise CheckpointError(f"the GGUF file has {len(tokens)} tokens, but {len(scores)} scores")
    vocab = {token: index for index, token in enumerate(tokens)}
    pieces = {
        token: score
        for token, score, kind in zip(tokens, scores, types, strict=True)
        if kind == _NORMAL
    }
    unknown = [token for token, kind in zip(tokens, types, strict=True) if kind == _UNKNOWN]
    model = models.BPE(
        vocab=vocab,
        merges=_merges_from_scores(pieces, vocab),
        byte_fallback=True,
        fuse_unk=True,
        unk_token=unknown[0] if unknown else None,
    )
    tokenizer = Tokenizer(model)
    steps: list[Any] = [normalizers.Replace(" ", "▁")]
    after: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if _flag(metadata, "tokenizer.ggml.add_space_prefix", True):
        steps.insert(0, normalizers.Prepend("▁"))
        after.append(decoders.Strip(" ", 1, 0))
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.decoder = decoders.Sequence(after)
    return tokenizer, True


def _merges_from_scores(
    pieces: Mapping[str, float], vocab: Mapping[str, int]
) -> list[tuple[str, str]]:
    """Every way to make a piece of two tokens, best score first.

    SentencePiece keeps scores where Hugging Face keeps an ordered list; the order among equal
    scores is that of `generate_merges` in `transformers`: longer left part first.
    """
    found = [
        (score, len(piece[:cut]), piece[:cut], piece[cut:])
        for piece, score in pieces.items()
        for cut in range(1, len(piece))
        if piece[:cut] in vocab and piece[cut:] in vocab
    ]
    found.sort(key=lambda merge: (-merge[0], -merge[1]))
    return [(left, right) for _, _, left, right in found]


def _merge(text: str, vocab: Mapping[str, int]) -> tuple[str, str]:
    left, _, right = text.partition(" ")
    if left not in vocab or right not in vocab or left + right not in vocab:
        raise CheckpointError(f"the GGUF file has a merge that its tokens do not allow: {text!r}")
    return left, right


def _add_tokens(tokenizer: Tokenizer, tokens: list[str], types: list[int]) -> None:
    """Tokens found in the raw text before it is cut; special ones can be left out on decoding."""
    from tokenizers import AddedToken

    for token, kind in zip(tokens, types, strict=True):
        if token and kind in (_UNKNOWN, _CONTROL):
            tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False)])
        elif token and kind == _USER_DEFINED:
            tokenizer.add_tokens([AddedToken(token, special=False, normalized=False)])


def _add_template(
    tokenizer: Tokenizer, special: Mapping[str, str], flags: Mapping[str, bool]
) -> None:
    from tokenizers import processors

    ends = {}
    for name in ("bos", "eos"):
        if flags[f"add_{name}_token"]:
            if f"{name}_token" not in special:
                raise CheckpointError(f"the GGUF file adds a token that it does not name: {name}")
            ends[name] = special[f"{name}_token"]
    if not ends:
        return
    single = [
        *([ends["bos"]] if "bos" in ends else []),
        "$A",
        *([ends["eos"]] if "eos" in ends else []),
    ]
    pair = [piece if piece != "$A" else "$B:1" for piece in single]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=single,
        pair=[*single, *pair],
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in ends.values()],
    )


def _write_files(
    out: Path, tokenizer: Tokenizer, settings: Mapping[str, Any], chat_template: Any
) -> None:
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        **settings,
    }
    text = json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False)
    (out / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")
    (out / "tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8")
    if isinstance(chat_template, str):
        (out / "chat_template.jinja").write_text(chat_template, encoding="utf-8")


def _flag(metadata: Mapping[str, Any], key: str, default: bool) -> bool:
    value = metadata.get(key, default)
    if not isinstance(value, bool):
        raise CheckpointError(f"{key} in the GGUF file is not true or false: {value!r}")
    return value
