"""Recursive cross-modal attention against its equations, written out for one window at a time in float64 NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rcma.config import MODALITIES, Modality
from rcma.fusion import CrossModalAttentionStep, RCMAFusion

WIDTHS: dict[Modality, int] = {"face": 5, "audio": 3, "text": 4}
LENGTH = 7
Features = dict[Modality, torch.Tensor]


def randomised(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """All weights and biases from N(0, 0.5), so that no term of an equation is zero by default."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=rng) * 0.5)
    return module.eval()


def random_features(batch: int = 2, seed: int = 1) -> Features:
    rng = torch.Generator().manual_seed(seed)
    return {m: torch.randn((batch, LENGTH, WIDTHS[m]), generator=rng) for m in MODALITIES}


def fusion(steps: int = 2, shared: bool = False, dropout: float = 0.0) -> RCMAFusion:
    module = RCMAFusion(WIDTHS, length=LENGTH, steps=steps, shared=shared, dropout=dropout)
    randomised(module)
    return module


def written_out_step(
    weights: dict[str, np.ndarray], x_face: np.ndarray, x_audio: np.ndarray, x_text: np.ndarray, used: list[int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One step for one window; ``used`` are the frames that take part in sums over time."""

    def refine(m: str, x: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        length, d = x.shape
        pair = np.hstack([first, second])
        j = pair @ weights[f"joint.{m}.weight"].T + weights[f"joint.{m}.bias"]
        d_j = j.shape[1]
        w, b = weights[f"time.{m}.weight"].T, weights[f"time.{m}.bias"]  # nn.Linear stores its matrix transposed
        k = np.zeros((d, length))
        for feature in range(d):
            for position in range(length):
                k[feature, position] = b[position] + sum(x[t, feature] * w[t, position] for t in used)
        c = np.zeros((d, d_j))
        for feature in range(d):
            for other in range(d_j):
                c[feature, other] = np.tanh(sum(k[feature, t] * j[t, other] for t in used) / np.sqrt(d_j))
        value = x @ weights[f"value.{m}.weight"].T + weights[f"value.{m}.bias"]
        h = np.maximum(0, np.tanh(np.einsum("tf,fo->to", value, c)))
        return x + np.maximum(0, h @ weights[f"output.{m}.weight"].T + weights[f"output.{m}.bias"])

    return (
        refine("face", x_face, x_audio, x_text),
        refine("audio", x_audio, x_text, x_face),
        refine("text", x_text, x_face, x_audio),
    )


def written_out(module: RCMAFusion, features: Features, used: list[int], *, shared: bool) -> list[list[np.ndarray]]:
    """Refined face, audio and text of each window."""
    state = {name: value.double().numpy() for name, value in module.state_dict().items()}
    result = []
    for window in range(len(features["face"])):
        x = [features[m][window].double().numpy() for m in MODALITIES]
        for step in range(module.depth):
            prefix = f"steps.{0 if shared else step}."
            weights = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
            x = list(written_out_step(weights, *x, used=used))
        result.append(x)
    return result


@pytest.mark.parametrize(("steps", "shared"), [(1, False), (2, False), (3, False), (3, True)])
@pytest.mark.parametrize("used", [list(range(LENGTH)), [0, 1, 2, 4]])
def test_equals_the_equations(steps: int, shared: bool, used: list[int]) -> None:
    module, features = fusion(steps=steps, shared=shared), random_features()
    valid = torch.zeros((2, LENGTH), dtype=torch.bool)
    valid[:, used] = True
    refined = module(features, valid)
    for window, expected in enumerate(written_out(module, features, used, shared=shared)):
        for m, x in zip(MODALITIES, expected, strict=True):
            np.testing.assert_allclose(refined[m][window].detach().numpy(), x, atol=1e-5)


def test_every_frame_is_valid_by_default() -> None:
    module, features = fusion(), random_features()
    everything = torch.ones((2, LENGTH), dtype=torch.bool)
    for m in MODALITIES:
        assert torch.equal(module(features)[m], module(features, everything)[m])


@pytest.mark.parametrize("content", [100.0, torch.nan])
def test_padding_changes_no_other_frame(content: float) -> None:
    module, features = fusion(steps=3), random_features()
    valid = torch.ones((2, LENGTH), dtype=torch.bool)
    valid[0, 4:] = False
    changed = {m: x.masked_fill(~valid[..., None], content) for m, x in features.items()}
    before, after = module(features, valid), module(changed, valid)
    for m in MODALITIES:
        assert torch.equal(before[m][valid], after[m][valid])


def test_a_window_of_padding_alone_stays_finite() -> None:
    refined = fusion()(random_features(), torch.zeros((2, LENGTH), dtype=torch.bool))
    assert all(torch.isfinite(x).all() for x in refined.values())


def test_leaves_its_input_alone_and_permutes_with_the_batch() -> None:
    module, features = fusion(), random_features(batch=3)
    before = {m: x.clone() for m, x in features.items()}
    refined = module(features)
    assert all(torch.equal(features[m], before[m]) for m in MODALITIES)
    order = torch.tensor([2, 0, 1])
    permuted = module({m: x[order] for m, x in features.items()})
    for m in MODALITIES:
        torch.testing.assert_close(permuted[m], refined[m][order])


def test_shared_weights_do_not_grow_with_depth() -> None:
    def n_parameters(steps: int, shared: bool) -> int:
        return sum(p.numel() for p in fusion(steps=steps, shared=shared).parameters())

    assert n_parameters(3, True) == n_parameters(1, False)
    assert n_parameters(3, False) == 3 * n_parameters(1, False)


def test_published_step_has_3_47_million_parameters() -> None:
    step = CrossModalAttentionStep({"face": 512, "audio": 128, "text": 512}, length=300, dropout=0.6)
    assert sum(p.numel() for p in step.parameters()) == pytest.approx(3.47e6, abs=5e3)


def test_dropout_acts_on_attention_and_update_in_training_only() -> None:
    module = CrossModalAttentionStep(WIDTHS, length=LENGTH, dropout=0.9)
    randomised(module)
    features = random_features(batch=20)
    assert torch.equal(module(features)["face"], module(features)["face"])
    without = module(features)["text"] - features["text"]
    module.train()
    dropped = module(features)["text"] - features["text"]
    assert not torch.equal(dropped, module(features)["text"] - features["text"])
    was_there = without > 1e-3
    assert (dropped[was_there] == 0).float().mean() == pytest.approx(0.9, abs=0.07), "a share of the update is zero"
    kept = was_there & (dropped != 0)
    scale = (dropped[kept] / without[kept]).detach()
    assert scale.std() > 0.1, "what is kept is not merely scaled: the attention was dropped from as well"


@pytest.mark.parametrize("shared", [False, True])
def test_every_parameter_gets_a_gradient(shared: bool) -> None:
    module = fusion(steps=3, shared=shared).train()
    sum(x.square().sum() for x in module(random_features()).values()).backward()
    assert [name for name, p in module.named_parameters() if p.grad is None or not p.grad.any()] == []
