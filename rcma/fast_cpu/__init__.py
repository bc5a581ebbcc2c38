"""In: IR-50 or VGGish, and their input.
Out: the same embeddings in less time on a CPU.
"""

from rcma.fast_cpu.backbones import Embed, optimise, optimised_backbones

__all__ = [
    "Embed",
    "optimise",
    "optimised_backbones",
]
