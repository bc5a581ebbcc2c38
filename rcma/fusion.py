"""Recursive cross-modal attention (RCMA, arXiv 2403.13659): each modality against the joint of the other two.

For each modality m, in each step, with X_m (L,d_m) of the step before:

    J_m = FC_m([X_n ; X_o])                                 (L,d_J)    n, o the other two, d_J = d_n + d_o
    K_m = X_m^T W_m + b_m                                   (d_m,L)    W_m (L,L) acts on the time axis
    C_m = Dropout(tanh(K_m J_m / sqrt(d_J)))                (d_m,d_J)  feature by feature, not frame by frame
    H_m = ReLU(tanh((X_m U_m + c_m) C_m))                   (L,d_J)    U_m (d_m,d_m)
    X_m <- X_m + Dropout(ReLU(H_m O_m + o_m))               (L,d_m)    O_m (d_J,d_m)
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from rcma.config import MODALITIES, Modality

OTHERS: dict[Modality, tuple[Modality, Modality]] = {
    "face": ("audio", "text"),
    "audio": ("text", "face"),
    "text": ("face", "audio"),
}
"""The two modalities in each one's joint representation, in the order in which the published code concatenates them."""


class CrossModalAttentionStep(nn.Module):
    """One refinement of the three modalities.

    Args:
        widths: d_m of each modality.
        length: L, the number of frames; the time projection has one weight for each pair of positions.
        dropout: probability of zeroing an entry of C_m and of the update.
    """

    def __init__(self, widths: Mapping[Modality, int], *, length: int, dropout: float) -> None:
        """Build the layers, with random weights."""
        super().__init__()
        joint = {m: widths[n] + widths[o] for m, (n, o) in OTHERS.items()}
        self.joint = nn.ModuleDict({m: nn.Linear(joint[m], joint[m]) for m in MODALITIES})  # FC_m
        self.time = nn.ModuleDict({m: nn.Linear(length, length) for m in MODALITIES})  # W_m, b_m
        self.value = nn.ModuleDict({m: nn.Linear(widths[m], widths[m]) for m in MODALITIES})  # U_m, c_m
        self.output = nn.ModuleDict({m: nn.Linear(joint[m], widths[m]) for m in MODALITIES})  # O_m, o_m
        self.dropout = nn.Dropout(dropout)

    def forward(self, features: Mapping[Modality, Tensor], valid: Tensor | None = None) -> dict[Modality, Tensor]:
        """The features after this step.

        Args:
            features: X_m, (B,L,d_m) float, for each modality; left as they are.
            valid: (B,L) bool, False where a frame is padding; such frames take no part in sums over time. None: all
                frames are valid.

        Returns:
            The new X_m, (B,L,d_m), for each modality.
        """
        return {m: self._refine(m, features, valid) for m in MODALITIES}

    def _refine(self, m: Modality, features: Mapping[Modality, Tensor], valid: Tensor | None) -> Tensor:
        x = features[m]  # (B,L,d_m)
        joint = self.joint[m](torch.cat([features[n] for n in OTHERS[m]], dim=-1))  # (B,L,d_J)
        key = self.time[m](_only(valid, x).transpose(1, 2))  # (B,d_m,L)
        score = key @ _only(valid, joint) / math.sqrt(joint.shape[-1])  # (B,d_m,d_J)
        attention = self.dropout(torch.tanh(score))  # (B,d_m,d_J)
        attended = torch.relu(torch.tanh(self.value[m](x) @ attention))  # (B,L,d_J)
        update = self.dropout(torch.relu(self.output[m](attended)))  # (B,L,d_m)
        return torch.add(x, update)


class RCMAFusion(nn.Module):
    """The refinement, ``steps`` times over.

    Args:
        widths: d_m of each modality.
        length: L, the number of frames.
        steps: recursion depth.
        shared: one set of weights for all steps (a recursion in the strict sense), or one for each step (published).
        dropout: see :class:`CrossModalAttentionStep`.
    """

    def __init__(
        self, widths: Mapping[Modality, int], *, length: int, steps: int, shared: bool, dropout: float
    ) -> None:
        """Build the layers, with random weights."""
        super().__init__()
        self.depth = steps
        self.steps = nn.ModuleList(
            CrossModalAttentionStep(widths, length=length, dropout=dropout) for _ in range(1 if shared else steps)
        )

    def forward(self, features: Mapping[Modality, Tensor], valid: Tensor | None = None) -> dict[Modality, Tensor]:
        """Refined features; arguments and result as in :meth:`CrossModalAttentionStep.forward`."""
        refined = dict(features)
        for index in range(self.depth):
            refined = self.steps[index % len(self.steps)](refined, valid)
        return refined


def _only(valid: Tensor | None, x: Tensor) -> Tensor:
    """x (B,L,d) with the frames outside ``valid`` (B,L) set to zero; not by a product, so that NaN goes too."""
    return x if valid is None else x.masked_fill(~valid[..., None], 0.0)
