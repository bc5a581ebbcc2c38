"""Fusion of modalities: recursive cross-modal attention (RCMA, arXiv 2403.13659) and its relatives.

For each modality m, in each step, with X_m (L,d_m) of the step before and J_m (L,d_J) a joint representation:

    J_m = FC_m([X_n ; X_o])                                 rcma: the other two; rjcma: FC([X_face ; X_audio ; X_text])
    K_m = X_m^T W_m + b_m                                   (d_m,L)    W_m (L,L) acts on the time axis
    C_m = Dropout(tanh(K_m J_m / sqrt(d_J)))                (d_m,d_J)  feature by feature, not frame by frame
    H_m = ReLU(tanh((X_m U_m + c_m) C_m))                   (L,d_J)    U_m (d_m,d_m)
    X_m <- X_m + Dropout(ReLU(H_m O_m + o_m))               (L,d_m)    O_m (d_J,d_m)

In cross-attention, J is each of the other modalities separately, without FC, and their updates are summed. Beyond the
paper: a relative time projection, for windows of any length.

:class:`JointCrossAttention` has the equations of JCA (arXiv 2203.14779).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from rcma.config import MODALITIES, FusionKind, FusionSettings

PUBLISHED_STEPS: dict[FusionKind, int] = {"rcma": 2, "rjcma": 2, "jca": 1, "cross-attention": 1, "concat": 0}
_TIME_TAPS = 31
"""Length of the relative time projection, in frames."""


def n_steps(settings: FusionSettings) -> int:
    """Number of refinements; by default as published for the kind."""
    return PUBLISHED_STEPS[settings.kind] if settings.steps is None else settings.steps


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    """Modalities in the order of every concatenation: face, audio, text, then any others."""
    names = tuple(names)
    return (*(m for m in MODALITIES if m in names), *(name for name in names if name not in MODALITIES))


def joint_members(kind: FusionKind, modalities: Sequence[str]) -> dict[str, tuple[str, tuple[str, ...]]]:
    """For each name of layers: the refined modality, and the members of its joint representation.

    The other modalities are those after it, then those before it: for face, audio and text, the order in which the
    published code concatenates them.
    """
    others = {m: (*modalities[k + 1 :], *modalities[:k]) for k, m in enumerate(modalities)}
    if kind == "cross-attention":
        return {f"{m}_to_{n}": (m, (n,)) for m in modalities for n in others[m]}
    if kind == "rjcma":
        return {m: (m, tuple(modalities)) for m in modalities}
    return {m: (m, others[m]) for m in modalities}


class CrossModalAttentionStep(nn.Module):
    """One refinement of the modalities.

    Args:
        widths: d_m of each modality, at least two; any names.
        length: L, the number of frames.
        settings: kind ``rcma``, ``rjcma`` or ``cross-attention``; dropout applies to C_m and to the update.
    """

    def __init__(self, widths: Mapping[str, int], *, length: int, settings: FusionSettings) -> None:
        super().__init__()
        self.settings = settings
        modalities = in_order(widths)
        self.sources = joint_members(settings.kind, modalities)
        d_joint = {name: sum(widths[n] for n in joint) for name, (_, joint) in self.sources.items()}
        d = {name: widths[m] for name, (m, _) in self.sources.items()}
        self.joint = nn.ModuleDict()  # FC_m; in rjcma all share one
        if settings.kind == "rcma":
            self.joint.update({name: nn.Linear(width, width) for name, width in d_joint.items()})
        elif settings.kind == "rjcma" and settings.joint_layer:
            width = sum(widths.values())
            self.joint["all"] = nn.Linear(width, width)
        self.time = nn.ModuleDict(
            {
                name: nn.Linear(length, length) if settings.time == "absolute" else RelativeTimeProjection(length)
                for name in self.sources
            }
        )  # W_m, b_m
        self.value = nn.ModuleDict({name: nn.Linear(d[name], d[name]) for name in self.sources})  # U_m, c_m
        self.output = nn.ModuleDict({name: nn.Linear(d_joint[name], d[name]) for name in self.sources})  # O_m, o_m
        self.dropout = nn.Dropout(settings.dropout)

    def forward(self, features: Mapping[str, Tensor], valid: Tensor | None = None) -> dict[str, Tensor]:
        """Refine the features.

        Args:
            features: X_m, (B,L,d_m) float, for each modality; not modified.
            valid: (B,L) bool, False for padding, which takes no part in sums over time; None: no padding.

        Returns:
            The new X_m, (B,L,d_m), for each modality.
        """
        joints: dict[tuple[str, ...], Tensor] = {}
        refined = dict(features)
        for name, (m, members) in self.sources.items():
            if members not in joints:
                concatenated = torch.cat([features[n] for n in members], dim=-1)  # (B,L,d_J)
                layer = name if name in self.joint else "all"
                joints[members] = self.joint[layer](concatenated) if layer in self.joint else concatenated  # J_m
            refined[m] = refined[m] + self._update(name, features[m], joints[members], valid)
        return refined

    def _update(self, name: str, x: Tensor, joint: Tensor, valid: Tensor | None) -> Tensor:
        key = self.time[name](_only(valid, x).transpose(1, 2))  # K_m (B,d_m,L)
        score = key @ _only(valid, joint) / math.sqrt(joint.shape[-1])  # (B,d_m,d_J)
        time = self.time[name]
        if isinstance(time, RelativeTimeProjection):
            score = time.mean_over_time(score, valid, length=x.shape[1])
        attention = self.dropout(torch.tanh(score))  # C_m (B,d_m,d_J)
        attended = torch.relu(torch.tanh(self.value[name](x) @ attention))  # H_m (B,L,d_J)
        return torch.as_tensor(self.dropout(torch.relu(self.output[name](attended))))  # update of X_m (B,L,d_m)


class RelativeTimeProjection(nn.Module):
    """A time projection W that depends only on the distance of two frames, for windows of any length.

    Sums over time become means over the valid frames, so that neither length nor padding matters.

    Args:
        usual_length: sets the initial scale of the scores.
    """

    def __init__(self, usual_length: int) -> None:
        super().__init__()
        self.taps = nn.Conv1d(1, 1, _TIME_TAPS, padding=_TIME_TAPS // 2)
        self.scale = nn.Parameter(torch.tensor(math.sqrt(usual_length)))

    def forward(self, x: Tensor) -> Tensor:
        """(B,d,L) -> (B,d,L), each feature separately."""
        return torch.as_tensor(self.taps(x.flatten(0, 1)[:, None])).view_as(x)

    def mean_over_time(self, total: Tensor, valid: Tensor | None, *, length: int) -> Tensor:
        """Divide a sum over time (B,d,d) by the number of valid frames, and multiply it by a learnt factor."""
        n_frames = length if valid is None else valid.sum(dim=1).clamp(min=1)[:, None, None]
        return self.scale * total / n_frames


class JointCrossAttention(nn.Module):
    """One step of JCA (arXiv 2203.14779): each modality against the joint representation of all, itself included.

    With X_m (L,d_m), J = [X_m ; ...] (L,d) and no biases anywhere:

        C_m = tanh(X_m^T (A_m J) / sqrt(d))     (d_m,d)    A_m (L,L) acts on the time axis
        H_m = ReLU(C_m P_m + X_m^T Q_m)         (d_m,k)    P_m (d,k), Q_m (L,k)
        X_m <- (H_m R_m)^T + X_m                (L,d_m)    R_m (k,L)

    Args:
        widths: d_m of each modality; audio and face in the paper.
        length: L, the number of frames.
        rank: k, 32 in the paper.
    """

    def __init__(self, widths: Mapping[str, int], *, length: int, rank: int = 32) -> None:
        super().__init__()
        total = sum(widths.values())
        self.modalities = in_order(widths)
        self.time = nn.ModuleDict({m: nn.Linear(length, length, bias=False) for m in widths})  # A_m
        self.attended = nn.ModuleDict({m: nn.Linear(total, rank, bias=False) for m in widths})  # P_m
        self.own = nn.ModuleDict({m: nn.Linear(length, rank, bias=False) for m in widths})  # Q_m
        self.output = nn.ModuleDict({m: nn.Linear(rank, length, bias=False) for m in widths})  # R_m

    def forward(self, features: Mapping[str, Tensor], valid: Tensor | None = None) -> dict[str, Tensor]:
        """As :meth:`CrossModalAttentionStep.forward`."""
        joint = _only(valid, torch.cat([features[m] for m in self.modalities], dim=-1))  # J (B,L,d)
        refined = {}
        for m, x in features.items():
            transposed = _only(valid, x).transpose(1, 2)  # X_m^T (B,d_m,L)
            projected = self.time[m](joint.transpose(1, 2)).transpose(1, 2)  # A_m J (B,L,d)
            attention = torch.tanh(transposed @ _only(valid, projected) / math.sqrt(joint.shape[-1]))  # C_m (B,d_m,d)
            hidden = torch.relu(self.attended[m](attention) + self.own[m](transposed))  # H_m (B,d_m,k)
            refined[m] = self.output[m](hidden).transpose(1, 2) + x  # (B,L,d_m)
        return refined


class Fusion(nn.Module):
    """All refinement steps; none for a single modality or ``concat``.

    Args:
        widths: d_m of each modality; any names.
        length: L, the number of frames.
        settings: see :class:`rcma.config.FusionSettings`.
    """

    def __init__(self, widths: Mapping[str, int], *, length: int, settings: FusionSettings) -> None:
        super().__init__()
        self.depth = n_steps(settings) if len(widths) > 1 and settings.kind != "concat" else 0
        self.steps = nn.ModuleList(
            JointCrossAttention(widths, length=length)
            if settings.kind == "jca"
            else CrossModalAttentionStep(widths, length=length, settings=settings)
            for _ in range(self.depth)
        )
        self.is_tied_to_length = self.depth > 0 and (settings.kind == "jca" or settings.time == "absolute")
        """Whether windows must have length L."""

    def forward(self, features: Mapping[str, Tensor], valid: Tensor | None = None) -> dict[str, Tensor]:
        """As :meth:`CrossModalAttentionStep.forward`."""
        refined = dict(features)
        for step in self.steps:
            refined = step(refined, valid)
        return refined


def _only(valid: Tensor | None, x: Tensor) -> Tensor:
    """x (B,L,d) with the frames outside ``valid`` (B,L) set to zero; not by a product, so that NaN goes too."""
    return x if valid is None else x.masked_fill(~valid[..., None], 0.0)
