"""IR-50 and VGGish on a CPU: optimised inference against eager PyTorch, ONNX Runtime and OpenVINO, all in float32.

usage: python benchmarks/bench_fast_cpu.py [--batch N] [--repeat N]

Needs the extra ``bench``; without it, only the first two are measured. All runtimes take turns; figures are medians of
N passes after one for warm-up. Weights are random, patches are those of successive frames at 25 per second.
OMP_NUM_THREADS sets the threads. Writes benchmarks/results/; the last line printed is the result, as JSON.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from measuring import Measurement, argument_parser, median_seconds, write_result
from torch import Tensor, nn

from preprocessing.media import MEL_RATE
from rcma.fast_cpu import optimise
from rcma.model import IR50, VGGish

FRAME_RATE = 25

Embed = Callable[[Tensor], Any]


def onnx_runtime(path: Path) -> Embed:
    """Load a network in ONNX Runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: torch.from_numpy(session.run(None, {name: x.numpy()})[0])


def openvino(path: Path) -> Embed:
    """Load a network in OpenVINO."""
    import openvino

    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    compiled = openvino.compile_model(path, "CPU", settings)
    return lambda x: torch.from_numpy(compiled(x.numpy())[0])


def runtimes(network: nn.Module, x: Tensor) -> dict[str, Embed]:
    """Load a network in every runtime that is installed."""
    optimised = optimise(network)
    assert optimised is not None
    found: dict[str, Embed] = {"eager": network, "optimised": optimised}
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "network.onnx"
        try:
            torch.onnx.export(network, (x,), path, dynamo=True, external_data=False, verbose=False)
            found |= {"ONNX Runtime": onnx_runtime(path), "OpenVINO": openvino(path)}
        except ImportError as error:
            print(f"{error}: install the extra bench to compare with ONNX Runtime and OpenVINO", file=sys.stderr)
    return found


@torch.inference_mode()
def measure(name: str, network: nn.Module, x: Tensor, repeat: int) -> list[Measurement]:
    """Measure one network: a row for each runtime."""
    embeds = runtimes(network.eval().to(memory_format=torch.channels_last), x)
    expected = network(x)
    seconds = dict(zip(embeds, median_seconds(repeat, *(partial(embed, x) for embed in embeds.values())), strict=True))
    return [
        {
            "network": name,
            "runtime": runtime,
            "per_s": round(len(x) / seconds[runtime], 1),
            "optimised_is_times_as_fast": round(seconds[runtime] / seconds["optimised"], 2),
            "largest_difference_to_eager_in_standard_deviations": float(
                f"{(embed(x) - expected).abs().max() / expected.std():.1e}"
            ),
            "batch": len(x),
            "threads": torch.get_num_threads(),
        }
        for runtime, embed in embeds.items()
    ]


def main() -> None:
    """Measure and write the result."""
    parser = argument_parser(__doc__, repeat=5)
    parser.add_argument("--batch", type=int, default=128, metavar="N")
    args = parser.parse_args()
    torch.manual_seed(0)
    hop = MEL_RATE // FRAME_RATE
    log_mel = torch.randn(96 + hop * (args.batch - 1), 64)
    rows = measure("IR-50", IR50(), torch.rand(args.batch, 3, 40, 40) * 2 - 1, args.repeat)
    rows += measure("VGGish", VGGish(), log_mel.unfold(0, 96, hop).transpose(1, 2).contiguous(), args.repeat)
    write_result("fast-cpu", rows)


if __name__ == "__main__":
    main()
