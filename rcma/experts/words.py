"""Valence and arousal of spoken sentences, by a small network on sentence embeddings of all-MiniLM-L6-v2.

The network was trained on EmoBank (Buechel and Hahn, EACL 2017; CC BY-SA 4.0), written English sentences rated by about
five readers; ``benchmarks/train_text_affect.py`` trains and scores it. A value holds for a whole sentence, not for
single words or frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from preprocessing.config import PACKAGED
from preprocessing.features import Word
from preprocessing.speech import load_text_encoder, sentences

WEIGHTS = Path(__file__).with_name("text_affect.safetensors")
"""Weights, with their training data, scores and licence as metadata."""
_LAYERS = (6, 3)
"""Hidden layers whose means over tokens describe a sentence: the last one, and a middle one, closer to the words."""
_LONGEST = 256
"""Tokens of a sentence that are read."""
_BATCH = 32
_LONGEST_PAUSE_S = 1.0


class SentenceEncoder:
    """Turns sentences into vectors of all-MiniLM-L6-v2."""

    width = 768

    def __init__(self) -> None:
        """Load the packaged model.

        Raises:
            InputError: the extra ``offline-models`` is not installed, or its files are not the official ones.
        """
        self._tokenizer, self._model = load_text_encoder(PACKAGED)
        self._model.eval()

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return float32 (N,768): for each text, the means over its tokens of two hidden layers."""
        import torch

        vectors = np.zeros((len(texts), self.width), np.float32)
        # Texts of similar length share a batch, to avoid padding.
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        for first in range(0, len(order), _BATCH):
            batch = order[first : first + _BATCH]
            inputs = self._tokenizer(
                [texts[index] for index in batch],
                padding=True,
                truncation=True,
                max_length=_LONGEST,
                return_tensors="pt",
            )
            with torch.inference_mode():
                layers = self._model(**inputs, output_hidden_states=True).hidden_states
            weight = inputs["attention_mask"][..., None].float()  # (B,tokens,1)
            means = [(layers[layer] * weight).sum(dim=1) / weight.sum(dim=1) for layer in _LAYERS]
            vectors[batch] = torch.cat(means, dim=-1).numpy()
        return vectors


class TextAffect:
    """Valence and arousal of sentences."""

    def __init__(self) -> None:
        """Load the encoder and the network.

        Raises:
            InputError: see :class:`SentenceEncoder`.
        """
        from safetensors.numpy import load_file

        self._encoder = SentenceEncoder()
        self._weights = {name: value.astype(np.float32) for name, value in load_file(WEIGHTS).items()}

    def __call__(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return (N,2) valence and arousal of each sentence in [-1,1]; 0 is the middle of EmoBank's scale."""
        return regress(self._weights, self._encoder.encode(texts))


def regress(weights: dict[str, NDArray[np.float32]], vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Apply the network, one hidden layer with GELU: (N,768) vectors to (N,2) valence and arousal in [-1,1]."""
    from scipy.special import erf

    hidden = vectors @ weights["hidden.weight"].T + weights["hidden.bias"]
    hidden = 0.5 * hidden * (1.0 + erf(hidden / np.sqrt(2.0)))
    output = hidden @ weights["output.weight"].T + weights["output.bias"]
    return np.clip(output, -1.0, 1.0).astype(np.float32)


def spoken_sentences(words: Sequence[Word]) -> list[range]:
    """Return the indices of the words of each sentence; a pause of more than a second ends a sentence too."""
    found = []
    for sentence in sentences([word.text for word in words]):
        pauses = [k for k in sentence[1:] if words[k].start_s - words[k - 1].end_s > _LONGEST_PAUSE_S]
        found += [range(first, stop) for first, stop in pairwise([sentence.start, *pauses, sentence.stop])]
    return found


def sentence_values(affect: TextAffect, words: Sequence[Word], time_s: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return (T,2) valence and arousal of the sentence spoken at each frame (T,), seconds; NaN between sentences."""
    values = np.full((len(time_s), 2), np.nan, np.float32)
    spans = spoken_sentences(words)
    predicted = affect([" ".join(words[index].text for index in span) for span in spans])
    for span, value in zip(spans, predicted, strict=True):
        inside = (time_s >= words[span.start].start_s) & (time_s <= words[span.stop - 1].end_s)
        values[inside] = value
    return values
