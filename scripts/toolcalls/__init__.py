"""Are tool calls read back, however they are spelled? See `scripts/bfcl`."""
