"""Training: one visible loop; interrupted and resumed it ends exactly where it would have ended without."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from numpy.typing import NDArray
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader

from preprocessing.config import flatten
from preprocessing.device import resolve_device
from preprocessing.errors import InputError
from preprocessing.files import replace_when_whole
from rcma.config import Modality, ModelSettings, OnnxSettings, Target, TrainConfig, TrainSettings
from rcma.data import (
    Embeddings,
    SharedBatches,
    TrainingData,
    Video,
    WindowDataset,
    check_face_size,
    check_sound,
    embed_videos,
    fit_normalisation,
    open_training_data,
)
from rcma.evaluate import Scores, evaluate
from rcma.metrics import n_loss_terms, training_loss
from rcma.model import (
    BEST_FILE,
    SCORES_FILE,
    TrainedRCMA,
    TrainingState,
    describe_onnx,
    load_run_config,
    load_state,
    load_weights,
    save_config,
    save_model_card,
    save_state,
    save_weights,
    speech_config,
    vision_config,
)
from rcma.prediction import predict_video
from rcma.training.schedule import Ending, EpochPlan, best_epoch, plan_epoch

LOG_FILE = "log.csv"
DATA_FILE = "last/data.json"
"""Which videos a run is trained and validated on, and a hash of each video's labels."""
_MOST_NAMED = 5
_MAY_CHANGE = ("train.epochs", "train.workers", "train.save_every")
"""Settings that may differ when a run is resumed: they change no batch and no weight of an epoch."""


@dataclass(frozen=True)
class EpochRow:
    """One row of log.csv."""

    epoch: int
    """Counted from 1."""
    released: int
    """Groups of backbone layers that were trained; 0 where none are released; see :mod:`rcma.training.schedule`."""
    learning_rate: float
    train_loss: float
    """Mean of 1 - CCC over the windows and targets of the epoch."""
    ccc: Mapping[Target, float]
    """Of each target on the validation split; NaN where undefined. In log.csv a column ``TARGET_ccc`` each."""
    mean_ccc: float
    seconds: float

    def columns(self) -> dict[str, float]:
        """The row as log.csv has it."""
        columns: dict[str, Any] = {}
        for name, value in asdict(self).items():
            columns |= {f"{target}_ccc": ccc for target, ccc in value.items()} if name == "ccc" else {name: value}
        return columns

    @classmethod
    def of_columns(cls, columns: Mapping[str, Any], targets: Sequence[Target]) -> EpochRow:
        """The row that has these columns."""
        own = {field.name: columns[field.name] for field in fields(cls) if field.name != "ccc"}
        return cls(**own, ccc={target: columns[f"{target}_ccc"] for target in targets})


@dataclass(frozen=True)
class TrainingResult:
    """How a training ended."""

    best: EpochRow
    """The epoch whose weights are in best.safetensors."""
    epochs: int
    """Epochs that were run, those before a resume included."""
    ending: Ending | None
    """Why there were fewer than ``train.epochs``; None: there were not."""
    n_videos: int
    """Validation videos."""
    n_frames: int
    """Annotated frames among them."""


def _say_nothing(*_: object) -> None:
    """Stands for a listener that nobody gave."""


def train(
    config: TrainConfig,
    run: Path,
    *,
    resume: bool = False,
    device: str = "auto",
    on_warning: Callable[[str], None] = _say_nothing,
    on_embedded: Callable[[int, int], None] = _say_nothing,
    on_batch: Callable[[int, int, int], None] = _say_nothing,
    on_epoch: Callable[[EpochRow], None] = _say_nothing,
) -> TrainingResult:
    """Train a model and leave its run folder.

    Args:
        config: data, model and recipe; see configs/rcma.yaml.
        run: where the run goes; it must be empty or not there, unless ``resume``.
        resume: continue after the last finished epoch of ``run`` (from the start, when there is none).
        device: ``auto``, ``cpu`` or ``cuda``.
        on_warning: called with a line for videos that are not used and lengths that differ.
        on_embedded: called with the number of videos whose frozen backbones' outputs are on disk, and of all videos.
        on_batch: called with the epoch (from 1), the number of batches that are done, and of all batches.
        on_epoch: called with each finished epoch.

    Raises:
        InputError: the configuration, the data or the run folder cannot be used, or the loss is no longer finite; what
            finished epochs left is kept.
    """
    accelerator = _start_accelerator(device)
    if not accelerator.is_main_process:
        on_warning = on_embedded = on_batch = on_epoch = _say_nothing
    data = open_training_data(
        config.data.features,
        config.data.annotations,
        targets=config.model.targets,
        labels=config.data.labels,
        fold=config.data.fold,
        folds=config.data.folds,
        subjects=config.data.subjects,
        split=config.data.split,
        label_delay_s=config.data.label_delay_s,
    )
    for warning in data.warnings:
        on_warning(warning)
    config = _resolve(config, data)
    state = _open_run(run, config, data, resume=resume)
    accelerator.wait_for_everyone()  # every process has looked before one writes

    with _deterministic():
        training = _Training(accelerator, config, data, run, state, on_embedded)
        while not training.is_over():
            on_epoch(training.run_epoch(on_batch))
        return training.finish()


class _Training:
    """A run from its first step, or that of a resumed one, to its last: all that an epoch changes."""

    def __init__(
        self,
        accelerator: Accelerator,
        config: TrainConfig,
        data: TrainingData,
        run: Path,
        state: TrainingState | None,
        on_embedded: Callable[[int, int], None],
    ) -> None:
        self._accelerator, self._settings, self._validation = accelerator, config.train, data.validation
        self._plain_model = _build_model(config, data, state)
        self._embeddings = _embed_once(config, data, self._plain_model, accelerator, on_embedded)
        self._dataset = _build_dataset(config, data, self._embeddings)
        self._batches = SharedBatches(
            self._dataset,
            self._settings.batch_size,
            process=accelerator.process_index,
            n_processes=accelerator.num_processes,
        )
        self._loader = DataLoader(self._dataset, batch_sampler=self._batches, num_workers=self._settings.workers)
        self._rows = [] if state is None else [EpochRow.of_columns(row, config.model.targets) for row in state.rows]
        self._run = run
        self._n_groups = self._plain_model.n_release_groups if self._settings.release else 0
        self._n_done, self._first_sums = (0, (0.0, 0.0)) if state is None else (state.n_batches, state.sums)
        # Model and optimizer of a state are those of the last epoch in which a batch was done.
        known = self._rows if self._n_done else self._rows[:-1]
        self._n_released = self._plan(known).n_released
        self._model, self._optimizer = _equip(accelerator, self._plain_model, self._settings, self._n_released)
        self._average = _moving_average(self._plain_model, self._settings.ema, state)
        if state is not None:
            self._optimizer.load_state_dict(state.optimizer)
        self._writer = RunWriter(run, config, data, self._rows) if accelerator.is_main_process else None
        if self._writer is not None and self._rows and not self._n_done:
            # Killed after the epoch's state was saved, the run may lack the weights that go with it.
            self._writer.save_if_best(self._rows, self._judged.state_dict())

    @property
    def _judged(self) -> TrainedRCMA:
        """What is validated and saved as the best model."""
        return self._plain_model if self._average is None else cast("TrainedRCMA", self._average.module)

    def is_over(self) -> bool:
        """Whether all epochs were run, or the schedule has come to its end before."""
        return len(self._rows) >= self._settings.epochs or self._plan(self._rows).ending is not None

    def run_epoch(self, on_batch: Callable[[int, int, int], None]) -> EpochRow:
        """Train on all windows, or those that are left of a resumed epoch; validate; leave it in the run folder."""
        begin = time.perf_counter()
        epoch = len(self._rows) + 1
        plan = self._follow_plan()
        loss_sum, n_terms = self._train_on_batches(epoch, on_batch)
        scores = _validate(self._accelerator, self._judged, self._validation, self._embeddings)
        row = EpochRow(
            epoch=epoch,
            released=plan.n_released,
            learning_rate=plan.learning_rate,
            train_loss=loss_sum / n_terms,
            ccc=scores.ccc,
            mean_ccc=scores.mean.ccc,
            seconds=round(time.perf_counter() - begin, 3),
        )
        self._rows.append(row)
        if self._writer is not None:
            self._writer.finish_epoch(self._rows, self._judged.state_dict(), self._state())
        return row

    def finish(self) -> TrainingResult:
        """Write the scores into the run folder."""
        result = TrainingResult(
            best=self._rows[best_epoch([row.mean_ccc for row in self._rows])],
            epochs=len(self._rows),
            ending=self._plan(self._rows).ending,
            n_videos=len(self._validation),
            n_frames=sum(int(np.isfinite(video.labels).any(axis=1).sum()) for video in self._validation),
        )
        if self._writer is not None:
            self._writer.finish(result)
        return result

    def _plan(self, rows: Sequence[EpochRow]) -> EpochPlan:
        return plan_epoch(self._settings, [row.mean_ccc for row in rows], n_groups=self._n_groups)

    def _follow_plan(self) -> EpochPlan:
        """Set the rate of the next epoch; where a group is released, continue from the best weights, all else anew."""
        plan = self._plan(self._rows)
        if plan.n_released != self._n_released:
            self._n_released = plan.n_released
            self._accelerator.wait_for_everyone()  # one process has written the best weights
            self._plain_model.load_state_dict(load_weights(self._run / BEST_FILE))
            self._model, self._optimizer = _equip(
                self._accelerator, self._plain_model, self._settings, self._n_released
            )
            self._average = _moving_average(self._plain_model, self._settings.ema, None)
        for group in self._optimizer.param_groups:
            group["lr"] = plan.learning_rate
        return plan

    def _train_on_batches(self, epoch: int, on_batch: Callable[[int, int, int], None]) -> tuple[float, float]:
        """Sum of 1 - CCC, and the number of terms in it, over all batches of the epoch."""
        self._dataset.start_epoch(epoch)
        self._batches.n_done = self._n_done
        self._model.train()
        sums = torch.tensor(self._first_sums, dtype=torch.float64, device=self._accelerator.device)
        n_batches = len(self._loader)
        for done, batch in enumerate(self._loader, start=self._n_done + 1):
            # Drawn from the step alone, so that resuming needs no saved state of random numbers.
            torch.manual_seed(_seed_of(self._settings.seed, epoch, done, self._accelerator.process_index))
            sums += self._step(epoch, batch)
            if done % self._settings.save_every == 0 and done < n_batches and self._writer is not None:
                self._writer.save(self._state(n_batches=done, sums=_as_pair(sums)))
            on_batch(epoch, done, n_batches)
        self._n_done, self._first_sums = 0, (0.0, 0.0)
        return _as_pair(sums)

    def _step(self, epoch: int, cpu_batch: Mapping[str, Tensor]) -> Tensor:
        """One step of the optimizer: float64 (2,), the sum of 1 - CCC over the batch of all processes and its terms."""
        settings, accelerator = self._settings, self._accelerator
        batch = {name: value.to(accelerator.device) for name, value in cpu_batch.items()}
        # Not Accelerate's mixed precision, which is settled once for the whole process.
        half = settings.precision == "bfloat16"
        with torch.autocast(accelerator.device.type, dtype=torch.bfloat16, enabled=half):
            prediction = self._model(batch)
        loss = training_loss(prediction, batch["labels"], over=settings.loss, mse_weight=settings.mse_weight)
        self._refuse_non_finite(loss, batch["window"], epoch)
        n_terms = n_loss_terms(batch["labels"], over=settings.loss)
        self._optimizer.zero_grad()
        accelerator.backward(loss)
        if settings.clip_norm is not None:
            accelerator.clip_grad_norm_(self._model.parameters(), settings.clip_norm)
        self._optimizer.step()
        if self._average is not None:
            self._average.update_parameters(self._plain_model)
        return torch.stack([loss.detach().double() * n_terms, n_terms.double()])

    def _refuse_non_finite(self, loss: Tensor, windows: Tensor, epoch: int) -> None:
        if torch.isfinite(loss):
            return
        # All processes are here: they have the same loss.
        names = ", ".join(self._dataset.name(index) for index in gather_object(windows.tolist()))
        raise InputError(
            f"epoch {epoch}: the loss is {loss.item()} in a batch of {names}; "
            "lower train.learning_rate, or set train.clip_norm"
        )

    def _state(self, *, n_batches: int = 0, sums: tuple[float, float] = (0.0, 0.0)) -> TrainingState:
        return TrainingState(
            model=self._plain_model.state_dict(),
            optimizer=self._optimizer.state_dict(),
            rows=[row.columns() for row in self._rows],
            average=None if self._average is None else self._average.state_dict(),
            n_batches=n_batches,
            sums=sums,
        )


class RunWriter:
    """Writes what a run leaves behind, each file whole or not at all."""

    def __init__(self, run: Path, config: TrainConfig, data: TrainingData, rows: Sequence[EpochRow]) -> None:
        """Write the configuration, what it is trained on and the rows of earlier epochs into ``run``."""
        self._run, self._targets = run, config.model.targets
        save_config(run, config)
        with replace_when_whole(run / DATA_FILE) as partial:
            partial.write_text(json.dumps(_describe_data(data), indent=1) + "\n", encoding="utf-8")
        self._write_log(rows)
        self._board: Any = None
        with suppress(ImportError):  # the extra "tensorboard" is not installed
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(run), purge_step=len(rows) + 1)

    def save(self, state: TrainingState) -> None:
        """Save the state inside an epoch."""
        save_state(self._run, state)

    def finish_epoch(self, rows: Sequence[EpochRow], judged: dict[str, Tensor], state: TrainingState) -> None:
        """Save the epoch of the last row; the weights that were validated as the best ones, if they are."""
        # Before best.safetensors: an epoch that is run again may begin with the best weights before it.
        self.save(state)
        self.save_if_best(rows, judged)
        self._write_log(rows)
        if self._board is not None:
            for name, value in rows[-1].columns().items():
                self._board.add_scalar(name, value, rows[-1].epoch)
            self._board.flush()

    def save_if_best(self, rows: Sequence[EpochRow], judged: dict[str, Tensor]) -> None:
        """Save the weights that were validated in the last row as the best ones, if they are."""
        if best_epoch([row.mean_ccc for row in rows]) == len(rows) - 1:
            save_weights(self._run, judged)

    def finish(self, result: TrainingResult) -> None:
        """Write scores.json and the model card, and close the TensorBoard events."""
        scores = {
            "split": "validation",
            "best_epoch": result.best.epoch,
            "epochs": result.epochs,
            **{f"{target}_ccc": value for target, value in result.best.ccc.items()},
            "mean_ccc": result.best.mean_ccc,
            "n_videos": result.n_videos,
            "n_frames": result.n_frames,
        }
        # JSON has no NaN.
        scores = {key: None if value != value else value for key, value in scores.items()}
        with replace_when_whole(self._run / SCORES_FILE) as partial:
            partial.write_text(json.dumps(scores, indent=1) + "\n", encoding="utf-8")
        save_model_card(self._run)
        if self._board is not None:
            self._board.close()

    def _write_log(self, rows: Sequence[EpochRow]) -> None:
        nothing = EpochRow(0, 0, 0.0, 0.0, dict.fromkeys(self._targets, 0.0), 0.0, 0.0)
        columns = list(nothing.columns())
        with replace_when_whole(self._run / LOG_FILE) as partial, partial.open("w", newline="") as file:
            table = csv.DictWriter(file, columns, lineterminator="\n")
            table.writeheader()
            table.writerows(row.columns() for row in rows)


def _start_accelerator(device: str) -> Accelerator:
    wanted = resolve_device(device)
    accelerator = Accelerator(cpu=wanted == "cpu")
    if accelerator.device.type != wanted:
        # Accelerate settles on a device once for the whole process.
        raise InputError(
            f"--device {device}: this process has trained on {accelerator.device.type} before; start a new process"
        )
    return accelerator


def _resolve(config: TrainConfig, data: TrainingData) -> TrainConfig:
    """Fill in what the features decide; refuse what contradicts them."""
    check_face_size(config.model, data.preprocessing.faces.size)
    if config.model.audio_input == "waveform":
        for video in (*data.train, *data.validation):
            check_sound(config.model, video.features())
    model = _with_widths(config.model, data)
    if model.face.hf is not None and "face" in model.modalities:
        face = model.face.model_copy(update={"hf_config": vision_config(model.face.hf)})
        model = model.model_copy(update={"face": face})
    if model.face.kind == "onnx" and "face" in model.modalities:
        assert model.face.weights is not None  # the settings refuse it
        described = describe_onnx(model.face.onnx or OnnxSettings(), model.face.weights)
        model = model.model_copy(update={"face": model.face.model_copy(update={"onnx": described})})
    if model.audio.hf is not None and "audio" in model.modalities:
        audio = model.audio.model_copy(update={"hf_config": speech_config(model.audio.hf)})
        model = model.model_copy(update={"audio": audio})
    if set(model.modalities) == set(model.vector_modalities):
        return config.model_copy(update={"model": model})  # nothing that it takes was made by preprocessing
    return config.model_copy(
        update={"model": model, "preprocessing": data.preprocessing, "face_source": data.face_source}
    )


def _with_widths(model: ModelSettings, data: TrainingData) -> ModelSettings:
    """The settings with the widths of word vectors and of features made elsewhere."""
    widths: dict[Modality, int] = {}
    for m in model.vector_modalities:
        if m not in data.vector_widths:
            raise InputError(f"model.{m}.kind is features, but not all feature folders hold {m}_vectors.npy")
        widths[m] = data.vector_widths[m]
    if model.uses("text", kind="words"):
        # Without a single word any width serves: nothing is ever read.
        widths["text"] = data.text_width or model.text_width or 1
    for m, known in widths.items():
        wanted = model.width_of_input(m)
        if wanted not in (None, known):
            key = "text_width" if m == "text" else f"{m}.width"
            raise InputError(f"model.{key} is {wanted}, but the features have {known} columns; leave it out")
    return model.with_widths(widths)


def _open_run(run: Path, config: TrainConfig, data: TrainingData, *, resume: bool) -> TrainingState | None:
    """State to continue from, None to start; refuses a folder in use, or settings and data it did not begin with."""
    if run.exists() and not run.is_dir():
        raise InputError(f"--out {run}: a file; give a folder")
    if not run.exists() or not any(run.iterdir()):
        return None
    if not resume:
        raise InputError(f"--out {run}: holds a run already; add --resume to continue it, or give another folder")
    before, now = flatten(load_run_config(run).model_dump(mode="json")), flatten(config.model_dump(mode="json"))
    # A cosine knows its end: another one would be another training.
    free = [key for key in _MAY_CHANGE if key != "train.epochs" or config.train.schedule != "cosine"]
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key) and key not in free:
            raise InputError(
                f"{key}: {run} began with {before.get(key)!r}, now it is {now.get(key)!r}; "
                f"only {', '.join(free)} may change on --resume"
            )
    _refuse_other_data(run, data)
    return load_state(run)


def _describe_data(data: TrainingData) -> dict[str, dict[str, str]]:
    """For each split, the hash of each video's labels, which is another one with other frames, too."""
    return {
        split: {video.video_id: hashlib.sha256(video.labels.tobytes()).hexdigest()[:16] for video in videos}
        for split, videos in (("training", data.train), ("validation", data.validation))
    }


def _refuse_other_data(run: Path, data: TrainingData) -> None:
    """Refuse to continue with videos or labels that were not there at the beginning."""
    path = run / DATA_FILE
    if not path.exists():
        return  # a run from before this file
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
        splits = [(split, before[split], now) for split, now in _describe_data(data).items()]
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f"{path}: damaged; train again in another folder") from None
    changes = []
    for split, known, now in splits:
        for what, videos in (
            ("is new", now.keys() - known.keys()),
            ("is gone", known.keys() - now.keys()),
            ("has other labels or frames", {name for name in known.keys() & now.keys() if known[name] != now[name]}),
        ):
            changes += [f"{name} of the {split} videos {what}" for name in sorted(videos)]
    if changes:
        more = f", and {len(changes) - _MOST_NAMED} more" if len(changes) > _MOST_NAMED else ""
        raise InputError(
            f"{run} began with other data: {', '.join(changes[:_MOST_NAMED])}{more}; "
            "resume with the same data, or train in another folder"
        )


def _build_model(config: TrainConfig, data: TrainingData, state: TrainingState | None) -> TrainedRCMA:
    torch.manual_seed(config.train.seed)
    model = TrainedRCMA(config)
    if state is not None:
        model.load_state_dict(state.model)
        return model
    model.load_backbones()
    statistics = fit_normalisation(data.train, config.model)
    model.set_normalisation(
        statistics.audio_mean, statistics.audio_std, statistics.text_mean, statistics.text_std, statistics.vectors
    )
    return model


def _equip(accelerator: Accelerator, model: TrainedRCMA, settings: TrainSettings, n_released: int) -> tuple[Any, Any]:
    """Model and a new optimizer with so many groups of the backbones released."""
    if settings.release:
        model.release(n_released)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=settings.learning_rate, weight_decay=settings.weight_decay)
    prepared_model, prepared_optimizer = accelerator.prepare(model, optimizer)
    return prepared_model, prepared_optimizer


def _moving_average(model: TrainedRCMA, decay: float | None, state: TrainingState | None) -> AveragedModel | None:
    """Average of weights and statistics over the steps, on which nothing is trained."""
    if decay is None:
        return None
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
    if state is not None and state.average is not None:
        average.load_state_dict(state.average)
    return average


def _embed_once(
    config: TrainConfig,
    data: TrainingData,
    model: TrainedRCMA,
    accelerator: Accelerator,
    on_embedded: Callable[[int, int], None],
) -> Embeddings | None:
    """Outputs of frozen backbones on disk, if that is wanted; the processes share the work."""
    if config.data.embeddings is None:
        return None
    videos = (*data.train, *data.validation)
    embeddings = embed_videos(
        config.data.embeddings,
        model.to(accelerator.device),
        videos,
        n_views=config.data.views,
        audio_alignment=config.data.audio_alignment,
        first=len(videos) * accelerator.process_index // accelerator.num_processes,
        on_video=on_embedded,
    )
    # Each has seen to all videos before: nobody waits long enough here for a collective call to time out.
    accelerator.wait_for_everyone()
    return embeddings


def _build_dataset(config: TrainConfig, data: TrainingData, embeddings: Embeddings | None) -> WindowDataset:
    dataset = WindowDataset(
        data.train,
        model=config.model,
        hop=config.data.hop,
        audio_alignment=config.data.audio_alignment,
        seed=config.train.seed,
        modality_dropout=config.train.modality_dropout,
        embeddings=embeddings,
    )
    if not len(dataset):
        raise InputError(f"{config.data.annotations}: no window of the training split has two annotated frames")
    return dataset


def _validate(
    accelerator: Accelerator, model: TrainedRCMA, videos: Sequence[Video], embeddings: Embeddings | None
) -> Scores:
    """Challenge score of the validation videos, which the processes share out among them."""
    data = model.config.data
    predictions: dict[str, NDArray[np.float32]] = {}
    with accelerator.split_between_processes(list(videos)) as share:
        for video in share:
            predictions[video.video_id] = predict_video(
                model,
                video.features(),
                hop=data.hop,
                audio_alignment=data.audio_alignment,
                label_delay_s=data.label_delay_s,
                embeddings=None if embeddings is None else embeddings.read(video.video_id, 0),
            )
    for gathered in gather_object([predictions]):
        predictions.update(gathered)
    return evaluate(predictions, {video.video_id: video.labels for video in videos}, targets=model.config.model.targets)


def _as_pair(sums: Tensor) -> tuple[float, float]:
    loss_sum, n_terms = sums.tolist()
    return loss_sum, n_terms


def _seed_of(seed: int, epoch: int, batch: int, process: int) -> int:
    return int(np.random.SeedSequence((seed, epoch, batch, process)).generate_state(1, np.uint64)[0] >> 1)


@contextmanager
def _deterministic() -> Iterator[None]:
    """Choose algorithms that give the same result every time, where there are any."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA's linear algebra starts
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
