"""TensorRT-RTX: compiles for RTX cards on any machine, runs on the card."""
