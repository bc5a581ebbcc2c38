"""The quicker openai-whisper against the library as it comes, on small networks with random weights."""

from __future__ import annotations

import copy
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from whisper import DecodingOptions
from whisper.model import ModelDimensions, Whisper

from preprocessing.quicker_whisper import make_quicker

DIMENSIONS = ModelDimensions(
    n_mels=80,
    n_audio_ctx=1500,
    n_audio_state=64,
    n_audio_head=4,
    n_audio_layer=2,
    n_vocab=51865,
    n_text_ctx=32,
    n_text_state=64,
    n_text_head=4,
    n_text_layer=2,
)


@pytest.fixture(scope="module")
def pair() -> tuple[Whisper, Whisper]:
    torch.manual_seed(0)
    plain = Whisper(DIMENSIONS).eval()
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.normal_(std=0.3)
    return plain, make_quicker(copy.deepcopy(plain))[0]


@pytest.mark.parametrize("beam_size", [None, 5])
def test_same_words(pair: tuple[Whisper, Whisper], beam_size: int | None) -> None:
    mel = torch.randn(80, 3000)
    options = DecodingOptions(language="en", beam_size=beam_size, fp16=False, sample_len=10)
    plain, quicker = (model.decode(mel, options) for model in pair)
    assert quicker.tokens == plain.tokens
    assert quicker.avg_logprob == pytest.approx(plain.avg_logprob, abs=1e-4)


@pytest.mark.parametrize("shape", [(1, 1), (5, 3)])
def test_same_logits(pair: tuple[Whisper, Whisper], shape: tuple[int, int]) -> None:
    tokens, sound = torch.randint(DIMENSIONS.n_vocab, shape), torch.randn(1, 1500, 64)
    with torch.no_grad():
        plain, quicker = (model.logits(tokens, sound) for model in pair)
    assert quicker.shape == (*shape, DIMENSIONS.n_vocab) and quicker.dtype == torch.float32
    torch.testing.assert_close(quicker, plain, rtol=1e-4, atol=1e-3)


def test_a_sound_is_encoded_once_until_it_is_let_go(pair: tuple[Whisper, Whisper]) -> None:
    plain, quicker = pair
    calls = []
    hook = quicker.encoder.encoder.register_forward_hook(lambda *_: calls.append(1))
    first, second = torch.randn(2, 1, 80, 3000)
    for mel in (first, first.clone(), second, first):
        torch.testing.assert_close(quicker.encoder(mel), plain.encoder(mel))
    assert len(calls) == 2
    quicker.encoder.let_go(first.clone())
    for mel in (second, first):
        torch.testing.assert_close(quicker.encoder(mel), plain.encoder(mel))
    assert len(calls) == 3
    for mel in (first, second):
        quicker.encoder.let_go(mel)
    with ThreadPoolExecutor(4) as pool:
        encodings = list(pool.map(torch.no_grad()(quicker.encoder), [first] * 8))
    hook.remove()
    assert len(calls) == 4
    assert all(encoding is encodings[0] for encoding in encodings)


def test_a_kept_sound_is_found_while_another_is_encoded(pair: tuple[Whisper, Whisper]) -> None:
    _, quicker = pair
    first, second = torch.randn(2, 1, 80, 3000)
    with torch.no_grad(), ThreadPoolExecutor(1) as pool:
        known = quicker.encoder(first)
        begun, go_on = threading.Event(), threading.Event()

        def wait(*_: object) -> None:
            begun.set()
            go_on.wait(60)

        hook = quicker.encoder.encoder.register_forward_pre_hook(wait)
        encoding = pool.submit(torch.no_grad()(quicker.encoder), second)
        assert begun.wait(60)
        lookup = ThreadPoolExecutor(1).submit(torch.no_grad()(quicker.encoder), first)
        try:
            assert lookup.result(30) is known
            assert not encoding.done()
        finally:
            go_on.set()
            hook.remove()
        assert encoding.result(60) is quicker.encoder(second)
