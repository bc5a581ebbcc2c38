"""What a training step with the published layer sizes costs, and what embeddings on disk and half precision save.

usage: python benchmarks/bench_training.py [--repeat N] [--frames L] [--only loading]

The published step: IR-50, VGGish, TCN, fusion and head on one window, forward, backward and update. Against it: the
same with the outputs of frozen backbones read from disk. Then IR-50 and VGGish in inference, bfloat16 and channels-last
against eager float32. Then the loader by itself, and what it saves that a folder is parsed once rather than for each
window: half an hour and an hour of talk, with 150 words a minute. Ratios in one run, medians after one pass that does
not count; features are synthetic, weights random. Writes benchmarks/results/; the last line printed is the result, as
JSON.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from measuring import median_seconds
from results import write_result
from torch.utils.data import DataLoader

from preprocessing.config import PreprocessConfig
from preprocessing.features import Features, Word, load_features, save_features
from rcma.config import ModelSettings
from rcma.data import Embeddings, SharedBatches, Video, WindowDataset, cut_window, embed_videos
from rcma.metrics import ccc_loss
from rcma.model import IR50, RCMA, VGGish

TEXT_WIDTH = 768
WORDS_PER_MINUTE = 150
WINDOWS = 20


def made_up_video(folder: Path, n_frames: int, *, n_words: int = 0) -> Video:
    """Features of a video in which everything is there all the time; words follow each other without a pause."""
    random = np.random.default_rng(0)
    starts = np.arange(n_words) * n_frames / 25 / max(n_words, 1)
    words = tuple(Word(f"word{k % 500}", float(s), float(s) + 0.3, 0.9) for k, s in enumerate(starts))
    frame_word = (np.searchsorted(starts, np.arange(n_frames) / 25, side="right") - 1).astype(np.int32)
    features = Features(
        video_id=folder.name,
        meta={
            "source": {"path": "nowhere.mp4", "size": 0, "modified_ns": 0, "sha256": ""},
            "subjects": [folder.name],
            "n_frames": n_frames,
            "frame_rate": 25.0,
            "audio": {"present": True},
            "settings": PreprocessConfig().model_dump(mode="json"),
            "warnings": {},
        },
        time_s=np.arange(n_frames) / 25,
        faces=random.integers(0, 256, (n_frames, 48, 48, 3), dtype=np.uint8),
        face_box=np.tile(np.array([10, 10, 60, 60], np.float32), (n_frames, 1)),
        face_score=np.ones(n_frames, np.float32),
        log_mel=random.normal(-2, 1, (n_frames * 4 + 98, 64)).astype(np.float16),
        words=words,
        word_vectors=random.normal(size=(n_words, TEXT_WIDTH)).astype(np.float16),
        frame_word=frame_word,
    )
    save_features(folder, features)
    labels = np.cumsum(random.normal(0, 0.02, (n_frames, 2)), axis=0).clip(-1, 1).astype(np.float32)
    return Video(folder, labels)


def step(model: RCMA, batch: dict[str, torch.Tensor], optimizer: torch.optim.Optimizer) -> None:
    """One training step."""
    optimizer.zero_grad()
    ccc_loss(model(batch), batch["labels"]).backward()
    optimizer.step()


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
    """Outputs of the model's backbones, on disk."""
    return embed_videos(folder, model, [video], n_views=1, audio_alignment="start", on_video=lambda *_: None)


def frozen_settings(length: int, *, frozen: bool) -> ModelSettings:
    """The published sizes."""
    chosen = {"frozen": frozen}
    return ModelSettings.model_validate({"length": length, "text_width": TEXT_WIDTH, "face": chosen, "audio": chosen})


def measure_steps(video: Video, folder: Path, length: int, repeat: int) -> tuple[dict[str, float | str], Embeddings]:
    """The published step against one whose embeddings come from disk."""

    def trained(frozen: bool) -> tuple[RCMA, torch.optim.Optimizer]:
        model = RCMA(frozen_settings(length, frozen=frozen)).train()
        return model, torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-5)

    def read(dataset: WindowDataset) -> dict[str, torch.Tensor]:
        return next(iter(DataLoader(dataset, batch_sampler=SharedBatches(dataset, 1))))

    model, optimizer = trained(frozen=False)
    published_s = median_seconds(lambda: step(model, read(windows_of(video, length)), optimizer), max(1, repeat // 3))
    frozen_model, frozen_optimizer = trained(frozen=True)
    begin = time.perf_counter()
    embeddings = embed(folder, frozen_model, video)
    filling_s = time.perf_counter() - begin
    dataset = windows_of(video, length, embeddings)
    cached_s = median_seconds(lambda: step(frozen_model, read(dataset), frozen_optimizer), repeat)
    row: dict[str, float | str] = {
        "what": f"training step on one window of {length} frames, published layer sizes",
        "published_s": round(published_s, 3),
        "embeddings_from_disk_s": round(cached_s, 3),
        "ratio": round(published_s / cached_s, 1),
        "computing_embeddings_frames_per_s": round(len(video.labels) / filling_s, 1),
    }
    return row, embeddings


def measure_precision(repeat: int) -> list[dict[str, float | str]]:
    """bfloat16 and channels-last against eager float32."""
    rows: list[dict[str, float | str]] = []
    random = torch.Generator().manual_seed(0)
    for name, network, shape in (("IR-50", IR50(), (32, 3, 40, 40)), ("VGGish", VGGish(), (32, 96, 64))):
        network.eval()
        x = torch.rand(shape, generator=random) * 2 - 1
        last = x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x

        def eager(network: torch.nn.Module = network, x: torch.Tensor = x) -> torch.Tensor:
            with torch.inference_mode():
                return network(x)

        def half(network: torch.nn.Module = network, x: torch.Tensor = last) -> torch.Tensor:
            with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
                return network(x).float()

        cosine = torch.nn.functional.cosine_similarity(eager(), half(), dim=1).min()
        eager_s, half_s = median_seconds(eager, repeat), median_seconds(half, repeat)
        rows.append(
            {
                "what": f"{name}, bfloat16 and channels-last against float32",
                "float32_per_s": round(len(x) / eager_s, 1),
                "bfloat16_per_s": round(len(x) / half_s, 1),
                "ratio": round(eager_s / half_s, 2),
                "least_cosine": round(float(cosine), 5),
            }
        )
    return rows


def measure_loader(video: Video, length: int, embeddings: Embeddings) -> list[dict[str, float | str]]:
    """Windows a second, and bytes that a window takes from disk."""
    rows: list[dict[str, float | str]] = []
    for name, dataset, n_bytes in (
        ("crops and log-mel", windows_of(video, length), length * (48 * 48 * 3 + 4 * 64 * 2) + 96 * 64 * 2),
        ("embeddings", windows_of(video, length, embeddings), length * (512 + 128) * 2),
    ):
        seconds = median_seconds(lambda d=dataset: [d[k] for k in range(len(d))], 3)  # type: ignore[misc]
        rows.append(
            {
                "what": f"loader, windows of {length} frames: {name}",
                "windows_per_s": round(len(dataset) / seconds, 1),
                "bytes_per_window": n_bytes,
            }
        )
    return rows


def measure_opening(folder: Path, length: int, repeat: int) -> list[dict[str, float | str]]:
    """Windows a second from a folder that is parsed for each of them, and from one that is parsed once."""
    rows: list[dict[str, float | str]] = []
    small = {"kind": "small", "frozen": True}
    settings = {"length": length, "text_width": TEXT_WIDTH, "face": small, "audio": small}
    model = RCMA(ModelSettings.model_validate(settings))
    for minutes in (30, 60):
        video = made_up_video(folder / f"talk{minutes}", minutes * 60 * 25, n_words=minutes * WORDS_PER_MINUTE)
        embedded = embed(folder / "embeddings", model, video)
        for name, embeddings in (("crops and log-mel", None), ("embeddings", embedded)):
            each_s, once_s = opening_seconds(video, embeddings, length, repeat)
            rows.append(
                {
                    "what": f"windows of {length} frames out of {minutes} minutes of talk: {name}",
                    "words": minutes * WORDS_PER_MINUTE,
                    "parsed_for_each_window_per_s": round(1 / each_s, 1),
                    "parsed_once_per_s": round(1 / once_s, 1),
                    "ratio": round(each_s / once_s, 1),
                }
            )
    return rows


def opening_seconds(video: Video, embeddings: Embeddings | None, length: int, repeat: int) -> list[float]:
    """Median time of a window whose folder is parsed for it, and of one whose folder was parsed before.

    They take turns, so that what else the machine does falls on both.
    """
    ways: list[Callable[[], Features]] = [lambda: load_features(video.folder), video.features]
    times: list[list[float]] = [[], []]
    starts = np.linspace(0, len(video.labels) - length, WINDOWS).astype(int).tolist()
    for start in starts * (repeat + 1):
        for open_features, taken in zip(ways, times, strict=True):
            begin = time.perf_counter()
            cut_window(
                open_features(),
                start,
                model=ModelSettings(text_width=TEXT_WIDTH),
                length=length,
                audio_alignment="start",
                embeddings=None if embeddings is None else embeddings.read(video.video_id, 0),
            )
            taken.append(time.perf_counter() - begin)
    return [statistics.median(taken[WINDOWS:]) for taken in times]  # without the first pass


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=6, metavar="N")
    parser.add_argument("--frames", type=int, default=300, metavar="L", help="frames in a window")
    parser.add_argument("--only", choices=["loading"], help="measure this part alone")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if args.only == "loading":
            write_result("training-loading", measure_opening(folder, args.frames, args.repeat))
            return
        video = made_up_video(folder / "video", 2 * args.frames)
        steps, embeddings = measure_steps(video, folder / "embeddings", args.frames, args.repeat)
        rows = [steps, *measure_precision(args.repeat), *measure_loader(video, args.frames, embeddings)]
        write_result("training", [*rows, *measure_opening(folder, args.frames, args.repeat)])


if __name__ == "__main__":
    main()
