"""Checkpoint -> ModelOpt's unified checkpoint, with the model's own answers beside it.

    out/
    ├── config.json, hf_quant_config.json, model*.safetensors   ModelOpt's unified export
    ├── tokenizer and template files                            copied
    ├── edgekit_quantization.json                               `Recipe`: how it was made
    └── edgekit_reference.npz                                   `reference.Reference`

Layout of the room: `calibration` texts -> token ids, `recipe` precision -> ModelOpt configuration,
`model` the checkpoint in torch, `run` the steps themselves. ModelOpt, torch
and transformers are imported inside functions only.
"""

from __future__ import annotations

from edgekit.quantize.recipe import Recipe, choose_group_size, library_versions
from edgekit.quantize.run import quantize_checkpoint

__all__ = [
    "Recipe",
    "choose_group_size",
    "library_versions",
    "quantize_checkpoint",
]
