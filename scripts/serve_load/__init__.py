"""Does `edgekit serve` hold? See `scripts/serve-load`."""
