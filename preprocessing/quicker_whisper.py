"""openai-whisper with less work for the same words: what it computes several times over is computed once."""

from __future__ import annotations

import threading

import torch
from torch import Tensor, nn
from whisper.model import MultiHeadAttention, TextDecoder, Whisper


def make_quicker(model: Whisper) -> tuple[Whisper, EncoderOnce]:
    """Change a model in place; its results stay the same but for rounding.

    Returns:
        The same model, and its encoder.
    """
    model.encoder = encoder = EncoderOnce(model.encoder)
    model.decoder.__class__ = _DecoderOfFewTokens
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
        """Held while a sound is encoded."""
        self._kept: list[tuple[Tensor, Tensor]] = []

    def forward(self, mel: Tensor) -> Tensor:
        """(1, bands, 3000) -> (1, 1500, width)."""
        with self.lock:
            for known, encoding in self._kept:
                if torch.equal(known, mel):
                    return encoding
            encoding = torch.as_tensor(self.encoder(mel))
            self._kept = [*self._kept[-1:], (mel, encoding)]
            return encoding

    def let_go(self, mel: Tensor) -> None:
        """Forget a sound (1, bands, 3000)."""
        with self.lock:
            self._kept = [(known, encoding) for known, encoding in self._kept if not torch.equal(known, mel)]


class _DecoderOfFewTokens(TextDecoder):
    """The last layer, of 50,000 words, is multiplied by the few tokens and not the tokens by it: half the time."""

    def forward(self, x: Tensor, xa: Tensor, kv_cache: dict[nn.Module, Tensor] | None = None) -> Tensor:
        """Tokens (beams,n) and sound (1,1500,width) -> logits (beams,n,tokens known)."""
        n_before = next(iter(kv_cache.values())).shape[1] if kv_cache else 0
        positions = self.positional_embedding[n_before : n_before + x.shape[1]]
        states = (self.token_embedding(x) + positions).to(xa.dtype)
        for block in self.blocks:
            states = block(states, xa, mask=self.mask, kv_cache=kv_cache)
        states = self.ln(states)
        embedding = self.token_embedding.weight.to(states.dtype)
        logits = (embedding @ states.flatten(0, 1).T).T.contiguous()
        return logits.view(*x.shape, -1).float()


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
