"""Checkpoints of the published code (praveena2j/RJCMA): RCMA, and its later form, RJCMA.

RCMA is the code of the first commit (arXiv 2403.13659 v1), RJCMA that of 28 March 2024 and later. All settings of the
model follow from the names and shapes in a checkpoint. Face, audio and text are called video, logmel and bert there.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from preprocessing.errors import InputError
from rcma.config import FusionSettings, ModelSettings, Target, TCNSettings
from rcma.model.network import RCMA
from rcma.model.weight_files import check_entries, named_tensors, read_state_dict

RENAMES = (
    ("backbone.face.", "spatial.visual.backbone."),
    ("backbone.audio.", "spatial.audio.backbone."),
    ("tcn.face.levels.", "temporal.video.network."),
    ("tcn.audio.levels.", "temporal.logmel.network."),
    ("tcn.text.levels.", "temporal.bert.network."),
    (".parametrizations.weight.original0", ".weight_g"),
    (".parametrizations.weight.original1", ".weight_v"),
    ("norm.face.", "bn.video."),
    ("norm.audio.", "bn.logmel."),
    ("norm.text.", "bn.bert."),
    ("fusion.steps.", "coattn.dcn_layers."),
    (".joint.face.", ".dense_coattn.query_linear_at."),  # FC on [audio; text]
    (".joint.audio.", ".dense_coattn.query_linear_tv."),  # FC on [text; face]
    (".joint.text.", ".dense_coattn.query_linear_va."),  # FC on [face; audio]
    (".time.face.", ".dense_coattn.key1_linear."),
    (".time.audio.", ".dense_coattn.key2_linear."),
    (".time.text.", ".dense_coattn.key3_linear."),
    (".value.face.", ".dense_coattn.value1_linear."),
    (".value.audio.", ".dense_coattn.value2_linear."),
    (".value.text.", ".dense_coattn.value3_linear."),
    (".output.face.", ".linears.0.0."),
    (".output.audio.", ".linears.1.0."),
    (".output.text.", ".linears.2.0."),
    ("head.hidden.", "regressor1."),
    ("head.norm.", "bn1."),
    ("head.output.", "regressor2."),
    ("head.", "regressor."),
)
"""Parts of this project's parameter names, and of those of the published code."""

ALIAS = re.compile(r"^(temporal\.\w+\.network\.\d+\.)net\.(0|4)\.")
"""The published code registers each TCN convolution under two names: net.0 is conv1, net.4 is conv2."""

UNUSED = re.compile(r"^(spatial\.visual\.logits|coattn\.dcn_layers\.\d+\.dense_coattn\.query_linear)\.(weight|bias)$")
"""Layers whose results the published code never uses: a classifier of expressions, and RJCMA's joint layer."""

NORMALISATION = {"audio_mean": 0.0, "audio_std": 1.0, "text_mean": 0.0, "text_std": 1.0}
"""Not in a published checkpoint; these values change nothing."""


def load(
    path_or_state_dict: str | Path | Mapping[str, Tensor],
    *,
    target: Target = "valence",
    text_mean: float | None = None,
    text_std: float | None = None,
) -> RCMA:
    """Load a checkpoint of the published code, on the CPU, in float32 and evaluation mode.

    The published code standardises word vectors before they reach the model, and its checkpoints lack the statistics:
    its preprocessing writes them to ``mean_std_info.pkl``, as ``[fold]["train"]["bert"]["mean"]`` and ``["std"]``.
    Without them, predictions from features of rcma-preprocess are wrong.

    Args:
        path_or_state_dict: file written by ``torch.save(model.state_dict(), path)``, or such a dictionary, which is
            copied. Names may have the prefix ``module.`` of DataParallel; duplicate and unused entries are optional.
        target: what the checkpoint was trained for; it has one output and does not name it.
        text_mean: mean of the word vectors in training, zeros where no word is spoken included.
        text_std: their standard deviation.

    Returns:
        RCMA with one target, for faces (x/255 - 0.5) / 0.5, raw log-mel, and word vectors, which must be standardised
        unless ``text_mean`` and ``text_std`` are given.

    Warns:
        UserWarning: ``text_mean`` and ``text_std`` are not given.

    Raises:
        ValueError: only one of ``text_mean`` and ``text_std`` is given, or one cannot be used.
        InputError: the file cannot be read, or an entry is missing, surplus (the nearest right name is given), has the
            wrong shape, or contradicts its duplicate.
    """
    if (text_mean is None) != (text_std is None):
        raise ValueError("text_mean and text_std go together: give both or none")
    source, entries = _read(path_or_state_dict)
    given = {name: value for name, value in entries.items() if not ALIAS.match(name) and not UNUSED.match(name)}
    settings = _settings(given, target=target, source=source)
    with torch.device("meta"):  # no memory and no random numbers for weights that are replaced at once
        model = RCMA(settings)
    own = model.state_dict()
    published = {name: _published_name(name) for name in own if name not in NORMALISATION}
    check_entries(given, {published[name]: own[name].shape for name in published}, source=source)
    _check_aliases(entries, source=source)
    state = {name: given[published[name]].to("cpu", own[name].dtype, copy=True) for name in published}
    state |= {name: torch.full(own[name].shape, value) for name, value in NORMALISATION.items()}
    model.load_state_dict(state, assign=True)
    if text_mean is None or text_std is None:
        warnings.warn(
            f"{source}: holds no statistics of word vectors; give the authors' text_mean and text_std, or standardise "
            "the text input yourself",
            stacklevel=2,
        )
    else:
        audio_mean, audio_std = model.audio_mean.clone(), model.audio_std.clone()
        model.set_normalisation(audio_mean, audio_std, torch.tensor(text_mean), torch.tensor(text_std))
    return model.eval()


def _read(path_or_state_dict: str | Path | Mapping[str, Tensor]) -> tuple[str, dict[str, Tensor]]:
    """The checkpoint's name in errors, and its entries."""
    if isinstance(path_or_state_dict, Mapping):
        source = "state dict"
        given = named_tensors(path_or_state_dict, source=source)
    else:
        source = str(path_or_state_dict)
        given = read_state_dict(Path(path_or_state_dict))
    if given and all(name.startswith("module.") for name in given):
        given = {name.removeprefix("module."): value for name, value in given.items()}
    return source, given


def _check_aliases(entries: Mapping[str, Tensor], *, source: str) -> None:
    for name in filter(ALIAS.match, entries):
        original = ALIAS.sub(lambda match: match[1] + ("conv1." if match[2] == "0" else "conv2."), name)
        if original not in entries:
            raise InputError(f"{source}: unknown entry {name!r}; there is no {original!r} of which it could be a copy")
        if not torch.equal(entries[name], entries[original]):
            raise InputError(f"{source}: {name!r} differs from {original!r}; they should be the same tensor")


def _published_name(name: str) -> str:
    for here, there in RENAMES:
        name = name.replace(here, there)
    return name


def _settings(given: Mapping[str, Tensor], *, target: Target, source: str) -> ModelSettings:
    """Sizes from the shapes of the entries; raises InputError for a missing entry."""

    def shape(name: str, n_dimensions: int) -> torch.Size:
        if name not in given:
            raise InputError(f"{source}: no entry {name!r}; is this a checkpoint of the published RCMA code?")
        if given[name].ndim != n_dimensions:
            raise InputError(
                f"{source}: {name!r} has shape {tuple(given[name].shape)}; it should have {n_dimensions} dimensions"
            )
        return given[name].shape

    def count(prefix: str) -> int:
        return len({name[len(prefix) :].split(".")[0] for name in given if name.startswith(prefix)})

    def channels(modality: str) -> tuple[int, ...]:
        prefix = f"temporal.{modality}.network."
        return tuple(shape(f"{prefix}{level}.conv1.weight_v", 3)[0] for level in range(max(1, count(prefix))))

    return ModelSettings(
        targets=(target,),
        length=shape("coattn.dcn_layers.0.dense_coattn.key1_linear.weight", 2)[0],
        text_width=shape("temporal.bert.network.0.conv1.weight_v", 3)[1],
        tcn=TCNSettings(
            face=channels("video"),
            audio=channels("logmel"),
            text=channels("bert"),
            kernel_size=shape("temporal.video.network.0.conv1.weight_v", 3)[2],
        ),
        fusion=FusionSettings(
            kind="rjcma" if "regressor1.weight" in given else "rcma",
            steps=max(1, count("coattn.dcn_layers.")),
            joint_layer=False,
        ),
    )
