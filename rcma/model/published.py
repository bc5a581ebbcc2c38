"""Checkpoints of the published code (praveena2j/RJCMA): RCMA, and its later form, RJCMA.

RCMA is the code of the first commit, of the day of arXiv 2403.13659 v1; RJCMA that of 28 March 2024 and later.
Names and shapes are mapped to :class:`rcma.model.RCMA`; kind of fusion, widths, window length, number of steps and
width of the word vectors are read off them. Face, audio and text are called video, logmel and bert there.
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
from rcma.model.backbones import check_entries, named_tensors, read_state_dict
from rcma.model.network import RCMA

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
"""Pieces of this project's parameter names and what they are called in the published code."""

ALIAS = re.compile(r"^(temporal\.\w+\.network\.\d+\.)net\.(0|4)\.")
"""The published code registers each TCN convolution twice: net.0 is conv1, net.4 is conv2."""

UNUSED = re.compile(r"^(spatial\.visual\.logits|coattn\.dcn_layers\.\d+\.dense_coattn\.query_linear)\.(weight|bias)$")
"""Head for facial expressions, which the published forward never reaches, and RJCMA's layer on the joint
representation, whose result is not used there."""

OWN = ("audio_mean", "audio_std", "text_mean", "text_std")
"""This project's normalisation, of which a published checkpoint holds nothing."""


def load(
    path_or_state_dict: str | Path | Mapping[str, Tensor],
    *,
    target: Target = "valence",
    text_mean: float | None = None,
    text_std: float | None = None,
) -> RCMA:
    """A model with the weights of a published checkpoint, in evaluation mode, on the CPU, float32.

    The published code standardises word vectors before they reach the model, with one mean and one standard deviation
    over all frames and dimensions. Checkpoints do not hold them; its preprocessing writes them to
    ``mean_std_info.pkl``, in which they are ``[fold]["train"]["bert"]["mean"]`` and ``["std"]``. Without them, word
    vectors must be standardised by the caller, and predictions from features as rcma-preprocess makes them are wrong.

    Args:
        path_or_state_dict: file written by ``torch.save(model.state_dict(), path)``, or such a dictionary, which is
            copied. The names may carry the prefix ``module.`` of DataParallel; the aliases ``net.0`` and ``net.4`` of
            the TCN, the unused ``spatial.visual.logits`` and RJCMA's unused ``query_linear`` may be there or not.
        target: what the checkpoint was trained for; it has one output and does not say which.
        text_mean: mean of the word vectors the checkpoint was trained on, zeros where no word is spoken included.
        text_std: their standard deviation.

    Returns:
        RCMA with one target. Its face input must be (x/255 - 0.5) / 0.5, its audio input unnormalised log-mel, its text
        input word vectors, or standardised ones without ``text_mean`` and ``text_std``.

    Warns:
        UserWarning: ``text_mean`` and ``text_std`` are not given.

    Raises:
        ValueError: only one of ``text_mean`` and ``text_std`` is given, or one cannot be used.
        InputError: the file cannot be read, or an entry is missing, surplus (the nearest right name is given), has the
            wrong shape, or contradicts its alias.
    """
    if (text_mean is None) != (text_std is None):
        raise ValueError("text_mean and text_std go together: give both or none")
    if isinstance(path_or_state_dict, Mapping):
        source = "state dict"
        given = named_tensors(path_or_state_dict, source=source)
    else:
        source = str(path_or_state_dict)
        given = read_state_dict(Path(path_or_state_dict))
    if given and all(name.startswith("module.") for name in given):
        given = {name.removeprefix("module."): value for name, value in given.items()}
    aliases = {name: value for name, value in given.items() if ALIAS.match(name)}
    given = {name: value for name, value in given.items() if name not in aliases and not UNUSED.match(name)}

    settings = _settings(given, target=target, source=source)
    with torch.device("meta"):  # no memory and no random numbers for weights that are replaced at once
        model = RCMA(settings)
    own = model.state_dict()
    published = {name: _published_name(name) for name in own if name not in OWN}
    check_entries(given, {published[name]: own[name].shape for name in published}, source=source)
    _check_aliases(aliases, given, source=source)
    copy = isinstance(path_or_state_dict, Mapping)
    state = {name: given[published[name]].to("cpu", own[name].dtype, copy=copy) for name in published}
    for name in OWN:
        state[name] = torch.full(own[name].shape, 1.0 if name.endswith("_std") else 0.0)
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


def _published_name(name: str) -> str:
    for here, there in RENAMES:
        name = name.replace(here, there)
    return name


def _check_aliases(aliases: Mapping[str, Tensor], given: Mapping[str, Tensor], *, source: str) -> None:
    for name, value in aliases.items():
        original = ALIAS.sub(lambda match: match[1] + ("conv1." if match[2] == "0" else "conv2."), name)
        if original not in given:
            raise InputError(f"{source}: unknown entry {name!r}; there is no {original!r} of which it could be a copy")
        if not torch.equal(value, given[original]):
            raise InputError(f"{source}: {name!r} differs from {original!r}; they should be the same tensor")


def _settings(given: Mapping[str, Tensor], *, target: Target, source: str) -> ModelSettings:
    """Sizes read off the shapes; raises InputError where an entry that tells one is not there."""

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
