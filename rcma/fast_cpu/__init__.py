"""In: IR-50 or VGGish, and their input.
Out: the same embeddings in less time on a CPU.
"""

from rcma.fast_cpu.backbones import Embed, quicker_form, quicker_forms

__all__ = [
    "Embed",
    "quicker_form",
    "quicker_forms",
]
