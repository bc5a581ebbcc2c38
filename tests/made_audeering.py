"""A small voice model as a folder of the hub, with random weights under the published names."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import Wav2Vec2Config, Wav2Vec2Model

CONFIG = Wav2Vec2Config(
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=24,
    conv_dim=(8, 8, 8),
    conv_stride=(8, 8, 5),
    conv_kernel=(16, 16, 10),
    conv_bias=True,
    feat_extract_norm="layer",
    do_stable_layer_norm=True,
    num_conv_pos_embeddings=6,
    num_conv_pos_embedding_groups=2,
)


def write_model(folder: Path) -> Path:
    """A folder as on the hub, with random weights under the published names."""
    torch.manual_seed(3)
    folder.mkdir(parents=True)
    weights = {}
    for name, value in Wav2Vec2Model(CONFIG).state_dict().items():
        # Names of before PyTorch's parametrisations, as in published checkpoints.
        name = name.replace("parametrizations.weight.original0", "weight_g")
        name = name.replace("parametrizations.weight.original1", "weight_v")
        weights[f"wav2vec2.{name}"] = torch.randn_like(value) * 0.3 + (1.0 if "norm.weight" in name else 0.0)
    weights["classifier.dense.weight"], weights["classifier.dense.bias"] = torch.randn(16, 16) * 0.3, torch.randn(16)
    weights["classifier.out_proj.weight"] = torch.randn(3, 16) * 0.1
    weights["classifier.out_proj.bias"] = torch.tensor([0.5, 0.4, 0.6])
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = {**CONFIG.to_dict(), "architectures": ["Wav2Vec2ForSpeechClassification"], "problem_type": "regression"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder
