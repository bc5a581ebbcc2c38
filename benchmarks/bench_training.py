"""What a training step with the published layer sizes costs, and what embeddings on disk and half precision save.

usage: python benchmarks/bench_training.py [--repeat N] [--frames L] [--minutes M ...] [--only loading]

The published step: IR-50, VGGish, TCN, fusion and head on one window, forward, backward and update; against it, the
same with the outputs of frozen backbones read from disk. Then IR-50 and VGGish in inference, bfloat16 and channels-last
against eager float32; then windows from M minutes of talk, with the folder parsed once and parsed for each window.
Ratios in one run, medians after one pass for warm-up; features and weights are random. Writes benchmarks/results/; the
last line printed is the result, as JSON.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from long_inputs import FRAME_RATE, WORDS_PER_MINUTE, save_random_features
from measuring import Measurement, argument_parser, median_seconds, write_result
from torch.utils.data import DataLoader

from preprocessing.config import PreprocessConfig
from preprocessing.features import Features, load_features
from rcma.config import ModelSettings
from rcma.data import Embeddings, SharedBatches, Video, WindowDataset, cut_window, embed_videos
from rcma.metrics import ccc_loss
from rcma.model import IR50, RCMA, VGGish

TEXT_WIDTH = 768
WINDOWS = 20


def random_video(folder: Path, n_frames: int) -> Video:
    """Write random features; the labels are random walks."""
    save_random_features(folder, n_frames, text_width=TEXT_WIDTH, config=PreprocessConfig())
    steps = np.random.default_rng(0).normal(0, 0.02, (n_frames, 2))
    return Video(folder, np.cumsum(steps, axis=0).clip(-1, 1).astype(np.float32))


def windows_of(video: Video, length: int, embeddings: Embeddings | None = None) -> WindowDataset:
    """Training windows of one video."""
    return WindowDataset(
        [video],
        model=ModelSettings(length=length, text_width=TEXT_WIDTH),
        hop=max(1, length // 4),
        audio_alignment="start",
        seed=0,
        embeddings=embeddings,
    )


def embed(folder: Path, model: RCMA, video: Video) -> Embeddings:
    """Write the outputs of the model's backbones."""
    return embed_videos(folder, model, [video], n_views=1, audio_alignment="start", on_video=lambda *_: None)


def training_step(length: int, *, frozen: bool) -> tuple[RCMA, Callable[[WindowDataset], None]]:
    """Make a model of the published sizes, and a function that reads the first batch and makes one step on it."""
    backbone = {"frozen": frozen}
    settings = {"length": length, "text_width": TEXT_WIDTH, "face": backbone, "audio": backbone}
    model = RCMA(ModelSettings.model_validate(settings)).train()
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-5)

    def step(dataset: WindowDataset) -> None:
        batch = next(iter(DataLoader(dataset, batch_sampler=SharedBatches(dataset, 1))))
        optimizer.zero_grad()
        ccc_loss(model(batch), batch["labels"]).backward()
        optimizer.step()

    return model, step


def measure_steps(video: Video, folder: Path, length: int, repeat: int) -> Measurement:
    """Measure the published step, and one whose embeddings come from disk."""
    _, step = training_step(length, frozen=False)
    (published_s,) = median_seconds(max(1, repeat // 3), partial(step, windows_of(video, length)))
    model, step = training_step(length, frozen=True)
    begin = time.perf_counter()
    embeddings = embed(folder, model, video)
    filling_s = time.perf_counter() - begin
    (cached_s,) = median_seconds(repeat, partial(step, windows_of(video, length, embeddings)))
    return {
        "what": f"training step on one window of {length} frames, published layer sizes",
        "published_s": round(published_s, 3),
        "embeddings_from_disk_s": round(cached_s, 3),
        "ratio": round(published_s / cached_s, 1),
        "computing_embeddings_frames_per_s": round(len(video.labels) / filling_s, 1),
    }


@torch.inference_mode()
def measure_precision(name: str, network: torch.nn.Module, x: torch.Tensor, repeat: int) -> Measurement:
    """Measure bfloat16 and channels-last against eager float32."""
    network.eval()
    last = x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x

    def half() -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return network(last).float()

    cosine = torch.nn.functional.cosine_similarity(network(x), half(), dim=1).min()
    eager_s, half_s = median_seconds(repeat, partial(network, x), half)
    return {
        "what": f"{name}, bfloat16 and channels-last against float32",
        "float32_per_s": round(len(x) / eager_s, 1),
        "bfloat16_per_s": round(len(x) / half_s, 1),
        "ratio": round(eager_s / half_s, 2),
        "least_cosine": round(float(cosine), 5),
    }


def measure_opening(folder: Path, minutes_of_talk: Sequence[int], length: int, repeat: int) -> list[Measurement]:
    """Measure windows a second from a folder that is parsed for each of them, and from one that is parsed once."""
    rows = []
    small = {"kind": "small", "frozen": True}
    settings = {"length": length, "text_width": TEXT_WIDTH, "face": small, "audio": small}
    model = RCMA(ModelSettings.model_validate(settings))
    for minutes in minutes_of_talk:
        video = random_video(folder / f"talk{minutes}", minutes * 60 * FRAME_RATE)
        embedded = embed(folder / "embeddings", model, video)
        for name, embeddings in (("crops and log-mel", None), ("embeddings", embedded)):
            cut = partial(cut_windows, video, length, embeddings)
            each_s, once_s = median_seconds(
                repeat, partial(cut, partial(load_features, video.folder)), partial(cut, video.features)
            )
            rows.append(
                {
                    "what": f"windows of {length} frames out of {minutes} minutes of talk: {name}",
                    "words": minutes * WORDS_PER_MINUTE,
                    "parsed_for_each_window_per_s": round(WINDOWS / each_s, 1),
                    "parsed_once_per_s": round(WINDOWS / once_s, 1),
                    "ratio": round(each_s / once_s, 1),
                }
            )
    return rows


def cut_windows(
    video: Video, length: int, embeddings: Embeddings | None, open_features: Callable[[], Features]
) -> None:
    """Cut WINDOWS windows all over a video, opening its features for each."""
    for start in np.linspace(0, len(video.labels) - length, WINDOWS).astype(int).tolist():
        cut_window(
            open_features(),
            start,
            model=ModelSettings(text_width=TEXT_WIDTH),
            length=length,
            audio_alignment="start",
            embeddings=None if embeddings is None else embeddings.read(video.video_id, 0),
        )


def main() -> None:
    """Measure and write the result."""
    parser = argument_parser(__doc__, repeat=6)
    parser.add_argument("--frames", type=int, default=300, metavar="L", help="frames in a window")
    parser.add_argument("--minutes", nargs="+", type=int, default=[30, 60], metavar="M", help="of talk, to load from")
    parser.add_argument("--only", choices=["loading"], help="measure this part alone")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = []
        if args.only is None:
            video = random_video(folder / "video", 2 * args.frames)
            faces, patches = torch.rand(32, 3, 40, 40) * 2 - 1, torch.rand(32, 96, 64) * 2 - 1
            rows = [
                measure_steps(video, folder / "embeddings", args.frames, args.repeat),
                measure_precision("IR-50", IR50(), faces, args.repeat),
                measure_precision("VGGish", VGGish(), patches, args.repeat),
            ]
        rows += measure_opening(folder, args.minutes, args.frames, args.repeat)
        write_result("training-loading" if args.only else "training", rows)


if __name__ == "__main__":
    main()
