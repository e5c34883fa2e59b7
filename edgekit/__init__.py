"""Quantize an LLM checkpoint, compile an engine for one device, prove it and run it there."""

__version__ = "0.1.0"
