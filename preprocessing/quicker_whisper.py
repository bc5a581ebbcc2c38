"""openai-whisper with less work for the same words: what it computes several times over is computed once."""

from __future__ import annotations

import threading

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from whisper.model import Linear, MultiHeadAttention, TextDecoder, Whisper


def make_quicker(model: Whisper) -> tuple[Whisper, EncoderOnce]:
    """Change a model in place; its results stay the same but for rounding.

    Returns:
        The same model, and its encoder.
    """
    model.encoder = encoder = EncoderOnce(model.encoder)
    model.decoder.__class__ = _DecoderOfFewTokens
    for layer in model.decoder.modules():
        if isinstance(layer, Linear):
            layer.__class__ = _LinearOfFewTokens
    for block in model.decoder.blocks:
        block.cross_attn.__class__ = _CrossAttentionOfBeams
    return model, encoder


class EncoderOnce(nn.Module):
    """Keeps the last two encodings, until they are let go: decoding and word times, for one, ask for the same.

    May be called from several threads; one encodes at a time.
    """

    def __init__(self, encoder: nn.Module) -> None:
        """``encoder``: Whisper's own."""
        super().__init__()
        self.encoder = encoder
        self.lock = threading.RLock()
        """Held while a sound is encoded, but not to find one that is."""
        self._kept: list[tuple[Tensor, Tensor]] = []

    def forward(self, mel: Tensor) -> Tensor:
        """(1, bands, 3000) -> (1, 1500, width)."""
        encoding = self._find(mel)
        if encoding is None:
            with self.lock:
                encoding = self._find(mel)  # another thread may just have been at it
                if encoding is None:
                    encoding = torch.as_tensor(self.encoder(mel))
                    self._kept = [*self._kept[-1:], (mel, encoding)]
        return encoding

    def let_go(self, mel: Tensor) -> None:
        """Forget a sound (1, bands, 3000)."""
        with self.lock:
            self._kept = [(known, encoding) for known, encoding in self._kept if not torch.equal(known, mel)]

    def _find(self, mel: Tensor) -> Tensor | None:
        return next((encoding for known, encoding in self._kept if torch.equal(known, mel)), None)


_FEW_TOKENS = 16
"""With more, the usual order of a product is quicker."""


def _times(tokens: Tensor, weight: Tensor) -> Tensor:
    """Tokens (...,n) times the transpose of a weight (m,n); for few, the other way round takes up to half the time."""
    weight = weight.to(tokens.dtype)
    if tokens.shape[:-1].numel() > _FEW_TOKENS:
        return F.linear(tokens, weight)
    product = weight @ tokens.flatten(0, -2).T
    return product.T.contiguous().view(*tokens.shape[:-1], len(weight))


class _LinearOfFewTokens(Linear):
    def forward(self, x: Tensor) -> Tensor:
        """(...,n) -> (...,m)."""
        product = _times(x, self.weight)
        return product if self.bias is None else product + self.bias.to(x.dtype)


class _DecoderOfFewTokens(TextDecoder):
    """Its last layer, of 50,000 words, takes as long as all others: see :func:`_times`."""

    def forward(self, x: Tensor, xa: Tensor, kv_cache: dict[nn.Module, Tensor] | None = None) -> Tensor:
        """Tokens (beams,n) and sound (1,1500,width) -> logits (beams,n,tokens known)."""
        n_before = next(iter(kv_cache.values())).shape[1] if kv_cache else 0
        positions = self.positional_embedding[n_before : n_before + x.shape[1]]
        states = (self.token_embedding(x) + positions).to(xa.dtype)
        for block in self.blocks:
            states = block(states, xa, mask=self.mask, kv_cache=kv_cache)
        states = self.ln(states)
        return _times(states, self.token_embedding.weight).float()


class _CrossAttentionOfBeams(MultiHeadAttention):
    """All beams listen to the same sound: as several queries of one they cost little more than one beam.

    Broadcast over the beams, as the library does it, keys and values are read from memory again for each.
    """

    def qkv_attention(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Attention of queries (beams,n,width) to keys and values (1,1500,width)."""
        if len(k) == 1 and len(q) > 1:
            out, weights = super().qkv_attention(q.reshape(1, -1, q.shape[2]), k, v, mask)
            return out.reshape(q.shape), weights
        return super().qkv_attention(q, k, v, mask)
