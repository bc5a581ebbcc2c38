"""Recursive cross-modal attention against its equations, written out for one window at a time in float64 NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rcma.config import MODALITIES, FusionSettings, Modality
from rcma.model.fusion import CrossModalAttentionStep, Fusion

WIDTHS: dict[Modality, int] = {"face": 5, "audio": 3, "text": 4}
LENGTH = 7
Features = dict[Modality, torch.Tensor]
Arrays = dict[str, np.ndarray]


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


def fusion(*, widths: dict[Modality, int] = WIDTHS, **settings) -> Fusion:
    module = Fusion(widths, length=LENGTH, settings=FusionSettings(**{"dropout": 0.0, **settings}))
    randomised(module)
    return module


def projected(weights: Arrays, name: str, x: np.ndarray, used: list[int]) -> np.ndarray:
    """K = X^T W + b, (d,L), for one window; frames that are not used count as zero."""
    length, d = x.shape
    key = np.zeros((d, length))
    for feature in range(d):
        for position in range(length):
            if f"time.{name}.taps.weight" in weights:
                taps = weights[f"time.{name}.taps.weight"][0, 0]
                near = [(t, t - position + len(taps) // 2) for t in used]
                terms = [x[t, feature] * taps[k] for t, k in near if 0 <= k < len(taps)]
                key[feature, position] = weights[f"time.{name}.taps.bias"][0] + sum(terms)
            else:
                w = weights[f"time.{name}.weight"].T  # nn.Linear stores its matrix transposed
                key[feature, position] = weights[f"time.{name}.bias"][position] + sum(
                    x[t, feature] * w[t, position] for t in used
                )
    return key


def linear(weights: Arrays, name: str, x: np.ndarray) -> np.ndarray:
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def written_out_update(weights: Arrays, name: str, x: np.ndarray, j: np.ndarray, used: list[int]):
    """What attention to the joint representation J adds to X, for one window."""
    d_j = j.shape[1]
    k = projected(weights, name, x, used)
    c = np.zeros((x.shape[1], d_j))
    for feature in range(x.shape[1]):
        for other in range(d_j):
            score = sum(k[feature, t] * j[t, other] for t in used) / np.sqrt(d_j)
            if f"time.{name}.scale" in weights:
                score *= weights[f"time.{name}.scale"] / len(used)
            c[feature, other] = np.tanh(score)
    h = np.maximum(0, np.tanh(linear(weights, f"value.{name}", x) @ c))
    return np.maximum(0, linear(weights, f"output.{name}", h))


def written_out_step(weights: Arrays, x: dict[str, np.ndarray], settings: FusionSettings, used: list[int]):
    """One step of rcma, rjcma or cross-attention for one window."""
    order = {"face": ("audio", "text"), "audio": ("text", "face"), "text": ("face", "audio")}
    refined = {}
    for m in x:
        others = [n for n in order[m] if n in x]
        if settings.kind == "rcma":
            joint = linear(weights, f"joint.{m}", np.hstack([x[n] for n in others]))
            after = x[m] + written_out_update(weights, m, x[m], joint, used)
        elif settings.kind == "rjcma":
            joint = np.hstack([x[n] for n in ("face", "audio", "text") if n in x])
            if settings.joint_layer:
                joint = linear(weights, "joint.all", joint)
            after = x[m] + written_out_update(weights, m, x[m], joint, used)
        else:
            updates = [written_out_update(weights, f"{m}_to_{n}", x[m], x[n], used) for n in others]
            after = x[m] + sum(updates)
        refined[m] = after
    return refined


def written_out_jca(weights: Arrays, x: dict[str, np.ndarray], used: list[int]):
    """One step of JCA for one window."""
    there = np.zeros((len(next(iter(x.values()))), 1))
    there[used] = 1
    joint = np.hstack(list(x.values())) * there
    refined = {}
    for m, own in x.items():
        a, p, q, r = (weights[f"{part}.{m}.weight"].T for part in ("time", "attended", "own", "output"))
        c = np.tanh((own * there).T @ ((a.T @ joint) * there) / np.sqrt(joint.shape[1]))
        h = np.maximum(0, c @ p + (own * there).T @ q)
        refined[m] = (h @ r).T + own
    return refined


def written_out(module: Fusion, features: Features, used: list[int], settings: FusionSettings) -> list[Arrays]:
    """Refined features of each window."""
    state = {name: value.double().numpy() for name, value in module.state_dict().items()}
    result = []
    for window in range(len(next(iter(features.values())))):
        x = {m: values[window].double().numpy() for m, values in features.items()}
        for step in range(module.depth):
            prefix = f"steps.{step}."
            weights = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
            if settings.kind == "jca":
                x = written_out_jca(weights, x, used)
            else:
                x = written_out_step(weights, x, settings, used)
        result.append(x)
    return result


VARIANTS = [
    {"kind": "rcma", "steps": 1},
    {"kind": "rcma"},
    {"kind": "rcma", "steps": 3},
    {"kind": "rcma", "time": "relative"},
    {"kind": "rcma", "time": "relative", "steps": 3},
    {"kind": "rjcma"},
    {"kind": "rjcma", "joint_layer": False, "steps": 3},
    {"kind": "rjcma", "time": "relative"},
    {"kind": "jca"},
    {"kind": "jca", "steps": 2},
    {"kind": "cross-attention"},
    {"kind": "cross-attention", "steps": 2},
    {"kind": "concat"},
]


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: ",".join(f"{key}={value}" for key, value in v.items()))
@pytest.mark.parametrize("modalities", [("face", "audio", "text"), ("face", "audio"), ("audio", "text"), ("text",)])
@pytest.mark.parametrize("used", [list(range(LENGTH)), [0, 1, 2, 4]], ids=["whole", "masked"])
def test_equals_the_equations(variant: dict, modalities: tuple[Modality, ...], used: list[int]) -> None:
    widths = {m: WIDTHS[m] for m in modalities}
    # In float64: what float32 rounds, some steps amplify beyond any tolerance, each processor in its own way.
    module = fusion(widths=widths, **variant).double()
    features = {m: x.double() for m, x in random_features().items() if m in modalities}
    valid = torch.zeros((2, LENGTH), dtype=torch.bool)
    valid[:, used] = True
    refined = module(features, valid)
    settings = FusionSettings(**{"dropout": 0.0, **variant})
    for window, expected in enumerate(written_out(module, features, used, settings)):
        for m in modalities:
            np.testing.assert_allclose(refined[m][window].detach().numpy(), expected[m], rtol=1e-10, atol=1e-10)


def test_depth_is_the_published_one_unless_given() -> None:
    assert [fusion(kind=kind).depth for kind in ("rcma", "rjcma", "jca", "cross-attention", "concat")] == [
        2,
        2,
        1,
        1,
        0,
    ]
    assert fusion(kind="jca", steps=3).depth == 3


@pytest.mark.parametrize("kind", ["rcma", "rjcma", "cross-attention"])
def test_any_length_and_padding_changes_nothing(kind: str) -> None:
    module = fusion(kind=kind, time="relative", steps=3)
    features = random_features()
    alone = module(features)
    longer = {m: torch.cat([x, torch.full((2, 6, WIDTHS[m]), 7.0)], dim=1) for m, x in features.items()}
    valid = torch.arange(LENGTH + 6).expand(2, -1) < LENGTH
    padded = module(longer, valid)
    for m in MODALITIES:
        torch.testing.assert_close(padded[m][:, :LENGTH], alone[m])
    assert not module.is_tied_to_length
    assert fusion(kind=kind).is_tied_to_length


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


def test_published_step_has_3_47_million_parameters() -> None:
    step = CrossModalAttentionStep({"face": 512, "audio": 128, "text": 512}, length=300, settings=FusionSettings())
    assert sum(p.numel() for p in step.parameters()) == pytest.approx(3.47e6, abs=5e3)


def test_dropout_acts_on_attention_and_update_in_training_only() -> None:
    module = CrossModalAttentionStep(WIDTHS, length=LENGTH, settings=FusionSettings(dropout=0.9))
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


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: ",".join(f"{key}={value}" for key, value in v.items()))
def test_every_parameter_gets_a_gradient(variant: dict) -> None:
    module = fusion(**variant)
    missed = {name for name, _ in module.named_parameters()}
    # A ReLU may be shut by one draw of weights, not by all.
    for seed in range(5):
        randomised(module, seed=seed).train()
        module.zero_grad()
        features = {m: x.requires_grad_() for m, x in random_features().items()}
        sum(x.square().sum() for x in module(features).values()).backward()
        missed -= {name for name, p in module.named_parameters() if p.grad is not None and p.grad.any()}
    assert missed == set()


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: ",".join(f"{key}={value}" for key, value in v.items()))
def test_modalities_may_have_any_names(variant: dict) -> None:
    """In the order in which they are given, others are fused as face, audio and text are in theirs."""
    names = dict(zip(MODALITIES, ("gaze", "heart", "skin"), strict=True))
    standard = fusion(**variant).double()
    other = fusion(widths={names[m]: WIDTHS[m] for m in MODALITIES}, **variant).double()
    assert [tuple(p.shape) for p in other.parameters()] == [tuple(p.shape) for p in standard.parameters()]
    features = {m: x.double() for m, x in random_features().items()}
    expected = standard(features)
    refined = other({names[m]: x for m, x in features.items()})
    for m in MODALITIES:
        assert torch.equal(refined[names[m]], expected[m])
    assert variant["kind"] == "concat" or not torch.equal(refined["gaze"], features["face"])


@pytest.mark.parametrize("kind", ["rcma", "rjcma", "jca", "cross-attention"])
def test_the_order_in_which_modalities_are_given_does_not_matter(kind: str) -> None:
    features = random_features()
    turned = {m: features[m] for m in ("text", "face", "audio")}
    module = fusion(kind=kind)
    other = fusion(kind=kind, widths={m: WIDTHS[m] for m in turned})
    other.load_state_dict(module.state_dict())
    for m, x in module(features).items():
        assert torch.equal(other(turned)[m], x)
