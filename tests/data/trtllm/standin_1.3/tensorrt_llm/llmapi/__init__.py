from dataclasses import dataclass


@dataclass(kw_only=True)
class KvCacheConfig:
    enable_block_reuse: bool = True
    max_tokens: int | None = None
    free_gpu_memory_fraction: float | None = 0.9
    dtype: str = "auto"
    tokens_per_block: int = 32

    def __post_init__(self) -> None:
        if self.dtype not in ("auto", "float16", "bfloat16", "float32", "fp8", "nvfp4"):
            raise ValueError(f"no such cache: {self.dtype}")


@dataclass(kw_only=True)
class CudaGraphConfig:
    batch_sizes: list[int] | None = None
    max_batch_size: int = 0
    enable_padding: bool = False


@dataclass(kw_only=True)
class NGramDecodingConfig:
    max_draft_len: int | None = None
    max_matching_ngram_size: int = 2
    is_keep_all: bool = True
    is_use_oldest: bool = True
    is_public_pool: bool = True

    def __post_init__(self) -> None:
        if not self.max_draft_len:
            raise ValueError("max_draft_len must be > 0 for NGram")
