"""In: a batch of windows of face, audio and text.
Out: values a frame: the papers' networks, and their checkpoints.
"""

from rcma.model.backbones import IR50, IRUnit, VGGish
from rcma.model.checkpoint import (
    TrainedRCMA,
    export_model,
    is_run,
    load_model,
    load_run_config,
    load_weights,
    save_config,
    save_model_card,
    save_weights,
)
from rcma.model.fusion import Fusion
from rcma.model.hf_encoders import speech_config, vision_config
from rcma.model.hub import BEST_FILE, SCORES_FILE
from rcma.model.model_card import ValidationScores
from rcma.model.network import RCMA
from rcma.model.onnx_encoder import OnnxSession, describe_onnx
from rcma.model.weight_files import first_line

__all__ = [
    "BEST_FILE",
    "IR50",
    "RCMA",
    "SCORES_FILE",
    "Fusion",
    "IRUnit",
    "OnnxSession",
    "TrainedRCMA",
    "VGGish",
    "ValidationScores",
    "describe_onnx",
    "export_model",
    "first_line",
    "is_run",
    "load_model",
    "load_run_config",
    "load_weights",
    "save_config",
    "save_model_card",
    "save_weights",
    "speech_config",
    "vision_config",
]
