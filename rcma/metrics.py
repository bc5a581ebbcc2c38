"""Concordance correlation coefficient (CCC), the challenge's score, and the loss based on it; PCC and RMSE.

    CCC(x, y) = 2 cov(x, y) / (var(x) + var(y) + (mean(x) - mean(y))^2)

with population moments (divided by N), x the prediction and y the label (Lin, Biometrics 45, 1989). It lies in
[-1, 1] and is 1 only for x = y. The CCC of a concatenation of windows is not the mean of the windows' CCCs.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.distributed.nn.functional import all_reduce


def ccc(x: ArrayLike, y: ArrayLike) -> float:
    """CCC of predictions and labels, over the positions where the label is not NaN.

    Args:
        x: predictions, (N,), any real type.
        y: labels, (N,), NaN where there is none.

    Returns:
        CCC in [-1, 1]; NaN where it is undefined: fewer than two labels, constant predictions or constant labels,
        or a labelled position whose prediction is NaN or infinite.

    Raises:
        ValueError: x and y are not one-dimensional or differ in length.
    """
    prediction, label = _at_labels(x, y)
    if not _varies(prediction, label):
        return float("nan")
    shift = prediction.mean() - label.mean()
    x_centred, y_centred = prediction - prediction.mean(), label - label.mean()
    covariance = np.mean(x_centred * y_centred)
    return float(2.0 * covariance / (np.mean(x_centred**2) + np.mean(y_centred**2) + shift**2))


def pcc(x: ArrayLike, y: ArrayLike) -> float:
    """Pearson's correlation coefficient, cov(x, y) / sqrt(var(x) var(y)), which ignores shift and scale.

    It takes what :func:`ccc` takes, lies in [-1, 1], and is NaN where CCC is NaN.
    """
    prediction, label = _at_labels(x, y)
    if not _varies(prediction, label):
        return float("nan")
    x_centred, y_centred = prediction - prediction.mean(), label - label.mean()
    correlation = np.dot(x_centred, y_centred) / (np.linalg.norm(x_centred) * np.linalg.norm(y_centred))
    return float(np.clip(correlation, -1.0, 1.0))  # rounding may exceed 1


def rmse(x: ArrayLike, y: ArrayLike) -> float:
    """Root mean squared error, in the unit of the labels.

    It takes what :func:`ccc` takes and is >= 0, also for constants; NaN without any label, or if a labelled position's
    prediction is NaN or infinite.
    """
    prediction, label = _at_labels(x, y)
    if len(label) == 0 or not np.isfinite(prediction).all():
        return float("nan")
    return float(np.sqrt(np.mean((prediction - label) ** 2)))


def _at_labels(x: ArrayLike, y: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Predictions and labels where the label is not NaN."""
    prediction, label = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if prediction.ndim != 1 or prediction.shape != label.shape:
        raise ValueError(
            f"predictions and labels must be arrays (N,) of equal length, given: {prediction.shape} and {label.shape}"
        )
    labelled = ~np.isnan(label)
    return prediction[labelled], label[labelled]


def _varies(prediction: NDArray[np.float64], label: NDArray[np.float64]) -> bool:
    """Whether a correlation is defined: two labels or more, all finite, neither side constant."""
    if len(label) < 2 or not (np.isfinite(prediction).all() and np.isfinite(label).all()):
        return False
    return bool(np.ptp(prediction) > 0.0 and np.ptp(label) > 0.0)


def training_loss(prediction: Tensor, labels: Tensor, *, over: Literal["window", "batch"], mse_weight: float) -> Tensor:
    """1 - CCC, mixed with the mean squared error.

    Under ``torch.distributed``, each process passes its part of the batch and all get the loss of the whole batch.
    Their gradients, averaged over the processes as DistributedDataParallel does, are those of that loss, however the
    windows and labels are distributed. All processes must call it together.

    Args:
        prediction: see :func:`ccc_loss`; the number of windows B may differ between processes.
        labels: see :func:`ccc_loss`.
        over: ``window``: the mean over windows; ``batch``: one CCC over all frames of the batch.
        mse_weight: share of the mean squared error, 0 to 1.

    Returns:
        As :func:`ccc_loss`.
    """
    if over == "batch":
        prediction, labels = prediction.flatten(0, 1)[None], labels.flatten(0, 1)[None]  # (1,B*L,K)
    terms, counted = _ccc_terms(prediction, labels, shared=over == "batch")
    total, n_terms = (terms * counted).sum(), counted.sum()
    if over == "window":
        total, n_terms = _over_processes(torch.stack([total, n_terms.to(total.dtype)]))
    loss = total / n_terms.clamp_min(1)
    if mse_weight == 0.0:
        return loss
    labelled = ~torch.isnan(labels)
    squared = (prediction.to(loss.dtype) - labels.nan_to_num()).masked_fill(~labelled, 0.0).square().sum()
    squared, n = _over_processes(torch.stack([squared, labelled.sum().to(loss.dtype)]))
    return (1 - mse_weight) * loss + mse_weight * squared / n.clamp_min(1)


def n_loss_terms(labels: Tensor, *, over: Literal["window", "batch"]) -> Tensor:
    """Number of values of 1 - CCC that :func:`training_loss` averages, over all processes; scalar, int64."""
    labelled = ~torch.isnan(labels)  # (B,L,K)
    if over == "window":
        return _over_processes((labelled.sum(dim=1) >= 2).sum())
    return (_over_processes(labelled.sum(dim=(0, 1))) >= 2).sum()


def ccc_loss(prediction: Tensor, labels: Tensor) -> Tensor:
    """Mean of 1 - CCC over windows and targets.

    Computed as mean((x - y)^2) / (var(x) + var(y) + (mean(x) - mean(y))^2), which is the same number and exactly 0
    for a perfect prediction. A window with constant labels has no CCC; its term is the numerator, the mean squared
    error, whose gradient still leads to the labels.

    Args:
        prediction: (B,L,K) float; never read where the label is NaN.
        labels: (B,L,K) float, NaN where there is no label (unlabelled frames, padding).

    Returns:
        Scalar >= 0, float32 (float64 for float64 predictions). Always finite for finite predictions; windows with
        fewer than two labels are left out, and if none remains the loss is 0 (still attached to the graph).

    Raises:
        ValueError: the two shapes differ or are not (B,L,K).
    """
    terms, counted = _ccc_terms(prediction, labels, shared=False)
    return (terms * counted).sum() / counted.sum().clamp_min(1)


def _ccc_terms(prediction: Tensor, labels: Tensor, *, shared: bool) -> tuple[Tensor, Tensor]:
    """1 - CCC of each window and target (B,K), and whether it counts; see :func:`ccc_loss`.

    ``shared``: the frames of each window are distributed over all processes.
    """
    if prediction.ndim != 3 or prediction.shape != labels.shape:
        raise ValueError(
            f"prediction and labels must have the same shape (B,L,K), "
            f"given: {tuple(prediction.shape)} and {tuple(labels.shape)}"
        )
    dtype = torch.promote_types(prediction.dtype, torch.float32)  # half precision is too coarse for moments
    labelled = ~torch.isnan(labels)  # (B,L,K)
    x = prediction.to(dtype).masked_fill(~labelled, 0.0)
    y = labels.to(dtype).masked_fill(~labelled, 0.0)

    def sums(*columns: Tensor) -> Tensor:
        """Sum each of n tensors (B,L,K) over its frames: (n,B,K)."""
        own = torch.stack(columns).sum(dim=2)
        return _over_processes(own) if shared else own

    n_labelled, x_sum, y_sum = sums(labelled.to(dtype), x, y)
    n = n_labelled.clamp_min(1)  # (B,K)
    x_mean, y_mean = x_sum / n, y_sum / n
    x_centred, y_centred = ((value - mean[:, None]) * labelled for value, mean in ((x, x_mean), (y, y_mean)))
    x_var, y_var, squared_error = sums(x_centred.square(), y_centred.square(), (x - y).square()) / n
    # The floor is the variance of rounding errors at values near 1; it matters only where x and y agree that closely.
    denominator = (x_var + y_var + (x_mean - y_mean).square()).clamp_min(torch.finfo(dtype).eps ** 2)

    highest = y.masked_fill(~labelled, -torch.inf).amax(dim=1)
    lowest = y.masked_fill(~labelled, torch.inf).amin(dim=1)
    if shared and _in_several_processes():
        dist.all_reduce(highest, op=dist.ReduceOp.MAX)
        dist.all_reduce(lowest, op=dist.ReduceOp.MIN)
    terms = squared_error / torch.where(highest == lowest, torch.ones_like(denominator), denominator)  # (B,K)
    return terms, n_labelled >= 2


def _in_several_processes() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _over_processes(sums: Tensor) -> Tensor:
    """Sum over all processes, differentiable in each of them."""
    return torch.as_tensor(all_reduce(sums)) if _in_several_processes() else sums
