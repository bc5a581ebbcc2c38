"""Word vectors from a BERT-like encoder, computed sentence by sentence."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from preprocessing.config import WordSettings
from preprocessing.errors import InputError
from preprocessing.speech.models import load_text_encoder

_SENTENCE_ENDS = (".", "?", "!", "…", "。", "？", "！", "｡", "．", "؟", "।", "۔")
_CLOSING = "\"'”’»)]}」』）】》〉"
"""Marks that may follow the punctuation at the end of a sentence."""
_LAYERS = 4
"""Number of hidden layers that are summed, from the last."""
_BATCH = 32
"""Sentences encoded at a time."""


class WordEncoder:
    """Turns the words of a transcript into contextual vectors.

    Source: the text features of arXiv 2403.13659: for each sentence, the sum of the last four hidden layers of
    bert-base-uncased, averaged over the sub-words of each word.
    """

    width: int
    """D, the model's hidden size."""

    def __init__(self, settings: WordSettings, *, device: str) -> None:
        """Load the encoder and its tokenizer on a torch device.

        Raises:
            InputError: (naming ``words.model``) it is not available, or not a text encoder with a fast tokenizer.
        """
        self._tokenizer, self._model = load_text_encoder(settings.model)
        problem = f"words.model: {settings.model} cannot be used"
        if not self._tokenizer.is_fast or self._tokenizer.unk_token is None:
            raise InputError(f"{problem}: it needs a fast tokenizer with an unknown token, such as BERT's")
        if getattr(self._model.config, "is_encoder_decoder", False):
            raise InputError(f"{problem}: it is an encoder with a decoder; give an encoder such as BERT")
        self._model.to(device).eval()
        self._device = device
        self.width = int(self._model.config.hidden_size)
        self._longest = int(self._tokenizer.model_max_length)
        positions = getattr(self._model.config, "max_position_embeddings", None)
        if positions is not None:
            # Models of the RoBERTa family number positions from the index of the padding token plus one.
            self._longest = min(self._longest, positions - (self._tokenizer.pad_token_id or 0) - 1)
        self._piece_length = self._longest - self._tokenizer.num_special_tokens_to_add()

    def encode(self, words: Sequence[str]) -> npt.NDArray[np.float16]:
        """Return vectors, finite float16 (W, D), of the words of one transcript, given with their punctuation.

        A sentence that is too long for the model is divided. A word that the tokenizer drops gets the vector of the
        unknown token.

        Raises:
            InputError: (naming ``words.model``) a value is too large for float16.
        """
        vectors = np.zeros((len(words), self.width), np.float32)
        if not words:
            return vectors.astype(np.float16)
        known, lengths = self._known_words(words)
        pieces = [piece for sentence in sentences(words) for piece in self._pieces(lengths, sentence)]
        # Pieces of similar length share a batch, to avoid padding.
        pieces.sort(key=len)
        for first in range(0, len(pieces), _BATCH):
            batch = pieces[first : first + _BATCH]
            for piece, encoded in zip(batch, self._encode_batch(known, batch), strict=True):
                vectors[piece.start : piece.stop] = encoded
        # The negation catches NaN too.
        if not np.all(np.abs(vectors) <= np.finfo(np.float16).max):
            raise InputError("words.model: its vectors are too large for float16 or not finite; give another model")
        return vectors.astype(np.float16)

    def _pieces(self, lengths: Sequence[int], sentence: range) -> Iterator[range]:
        """Cut a sentence so that each piece fits the model; a longer single word is left to truncation."""
        first, total = sentence.start, 0
        for word in sentence:
            if total + lengths[word] > self._piece_length and word > first:
                yield range(first, word)
                first, total = word, 0
            total += lengths[word]
        yield range(first, sentence.stop)

    def _known_words(self, words: Sequence[str]) -> tuple[list[str], list[int]]:
        """Words, the unknown token in place of those that the tokenizer drops, and the number of sub-words of each."""
        encoding = self._tokenizer(list(words), is_split_into_words=True, add_special_tokens=False, verbose=False)
        lengths = [0] * len(words)
        for word in encoding.word_ids():
            lengths[word] += 1
        known = [word if n else self._tokenizer.unk_token for word, n in zip(words, lengths, strict=True)]
        return known, [max(n, 1) for n in lengths]

    def _encode_batch(self, words: Sequence[str], pieces: Sequence[range]) -> Iterator[npt.NDArray[np.float32]]:
        """float32 (len(piece), D) for each piece."""
        import torch

        inputs = self._tokenizer(
            [[words[word] for word in piece] for piece in pieces],
            is_split_into_words=True,
            padding=True,
            truncation=True,
            max_length=self._longest,
            return_tensors="pt",
        )
        with torch.inference_mode():
            output = self._model(**inputs.to(self._device), output_hidden_states=True)
            # hidden_states[0] is the embedding layer's output; a small model has fewer than four layers after it.
            summed = torch.stack(output.hidden_states[1:][-_LAYERS:]).sum(dim=0).cpu().numpy()
        for index, piece in enumerate(pieces):
            word_of_token = np.array([-1 if word is None else word for word in inputs.word_ids(index)])
            yield np.stack([summed[index, word_of_token == word].mean(axis=0) for word in range(len(piece))])


def sentences(words: Sequence[str]) -> list[range]:
    """Return the indices of the words of each sentence, in order; the last one needs no final punctuation."""
    ends = [index for index, word in enumerate(words, 1) if word.rstrip(_CLOSING).endswith(_SENTENCE_ENDS)]
    return [range(first, stop) for first, stop in pairwise(sorted({0, *ends, len(words)}))]
