"""In: a batch of windows of face, audio and text.
Out: values a frame: the papers' networks, and their checkpoints.
"""

from rcma.model.backbones import IR50, IRUnit, VGGish, speech_config, vision_config
from rcma.model.checkpoint import (
    BEST_FILE,
    SCORES_FILE,
    TrainedRCMA,
    TrainingState,
    export_model,
    is_run,
    load_model,
    load_run_config,
    load_state,
    load_weights,
    save_config,
    save_model_card,
    save_state,
    save_weights,
)
from rcma.model.fusion import Fusion
from rcma.model.network import RCMA
from rcma.model.onnx_encoder import OnnxSession, describe_onnx
from rcma.model.tcn import TemporalConvNet

__all__ = [
    "BEST_FILE",
    "IR50",
    "RCMA",
    "SCORES_FILE",
    "Fusion",
    "IRUnit",
    "OnnxSession",
    "TemporalConvNet",
    "TrainedRCMA",
    "TrainingState",
    "VGGish",
    "describe_onnx",
    "export_model",
    "is_run",
    "load_model",
    "load_run_config",
    "load_state",
    "load_weights",
    "save_config",
    "save_model_card",
    "save_state",
    "save_weights",
    "speech_config",
    "vision_config",
]
