"""Configurations, under their public name."""

import sys

_all = sys.modules["tensorrt_llm"]
CudaGraphConfig = _all.CudaGraphConfig
KvCacheConfig = _all.KvCacheConfig
NGramDecodingConfig = _all.NGramDecodingConfig
