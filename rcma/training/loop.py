"""The training loop. A run that is interrupted and resumed gives the same result as one that is not."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import cast

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from numpy.typing import NDArray
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader

from preprocessing.device import resolve_device
from preprocessing.errors import InputError
from rcma.config import TrainConfig
from rcma.data import Embeddings, SharedBatches, TrainingData, Video, WindowDataset, open_training_data
from rcma.evaluate import Scores, evaluate
from rcma.metrics import n_loss_terms, training_loss
from rcma.model import BEST_FILE, TrainedRCMA, load_weights
from rcma.prediction import predict_video
from rcma.training.prepare import build_model, resolve_config, store_embeddings
from rcma.training.run_folder import EpochRow, RunWriter, TrainingResult, TrainingState, open_run, save_state
from rcma.training.schedule import Ending, EpochPlan, best_epoch, plan_epoch

log = logging.getLogger("rcma")


def train(
    config: TrainConfig,
    run: Path,
    *,
    resume: bool = False,
    device: str = "auto",
    on_status: Callable[[str], None] = lambda text: None,
    on_epoch: Callable[[EpochRow], None] = lambda row: None,
) -> TrainingResult:
    """Train a model and write its run folder. Warnings, such as videos without labels, go to the logger ``rcma``.

    Args:
        config: data, model and recipe; see configs/rcma.yaml.
        run: the run folder; it must be new or empty, unless ``resume``.
        resume: continue ``run`` from its last saved state, or start if there is none.
        device: ``auto``, ``cpu`` or ``cuda``.
        on_status: called with a line of progress, such as ``epoch 3, batch 2 of 8``.
        on_epoch: called with each finished epoch.

    Raises:
        InputError: the configuration, the data or the run folder cannot be used, or the loss is not finite; finished
            epochs are kept.
    """
    accelerator = _start_accelerator(device)
    data = open_training_data(config.data, config.model.targets)
    if accelerator.is_main_process:
        for warning in data.warnings:
            log.warning(warning)
    else:
        on_status, on_epoch = (lambda text: None), (lambda row: None)
    config = resolve_config(config, data)
    state = open_run(run, config, data, resume=resume)
    accelerator.wait_for_everyone()  # all processes must have looked before one writes

    with _deterministic():
        trainer = _Trainer(config, data, run, state, accelerator=accelerator, on_status=on_status)
        while (plan := trainer.plan_after(trainer.rows)).ending is None and len(trainer.rows) < config.train.epochs:
            on_epoch(trainer.run_epoch(plan))
        return trainer.finish(plan.ending)


class _Trainer:
    """A training from its first step, or the first after a resume, to its last."""

    def __init__(
        self,
        config: TrainConfig,
        data: TrainingData,
        run: Path,
        state: TrainingState | None,
        *,
        accelerator: Accelerator,
        on_status: Callable[[str], None],
    ) -> None:
        self._settings, self._validation, self._run = config.train, data.validation, run
        self._accelerator, self._on_status = accelerator, on_status
        self._plain_model = build_model(config, data, state)
        self._embeddings = store_embeddings(config, data, self._plain_model, accelerator, on_status)
        self._dataset = WindowDataset(
            data.train,
            model=config.model,
            hop=config.data.hop,
            audio_alignment=config.data.audio_alignment,
            seed=config.train.seed,
            modality_dropout=config.train.modality_dropout,
            embeddings=self._embeddings,
        )
        if not len(self._dataset):
            raise InputError(f"{config.data.annotations}: no window of the training split has two annotated frames")
        self._batches = SharedBatches(
            self._dataset,
            config.train.batch_size,
            process=accelerator.process_index,
            n_processes=accelerator.num_processes,
        )
        self._loader = DataLoader(self._dataset, batch_sampler=self._batches, num_workers=config.train.workers)
        self.rows = [] if state is None else [EpochRow(**row) for row in state.rows]
        self._n_done, self._first_sums = (0, (0.0, 0.0)) if state is None else (state.n_batches, state.sums)
        self._n_groups = self._plain_model.n_unfreezing_groups if config.train.gradual_unfreezing else 0
        # A state's model and optimizer are those of the last epoch that has a finished batch.
        self._n_unfrozen = self.plan_after(self.rows if self._n_done else self.rows[:-1]).n_unfrozen
        self._start_round()
        if state is not None:
            self._optimizer.load_state_dict(state.optimizer)
            if self._average is not None and state.average is not None:
                self._average.load_state_dict(state.average)
        self._writer = RunWriter(run, config, data, self.rows) if accelerator.is_main_process else None
        if self._writer is not None and self.rows and not self._n_done:
            # A run that was killed after it saved the epoch's state may lack the weights that go with it.
            self._writer.save_if_best(self.rows, self._validated_model.state_dict())

    def _start_round(self) -> None:
        """Unfreeze the groups that are due; start a new optimizer and a new moving average."""
        settings = self._settings
        if settings.gradual_unfreezing:
            self._plain_model.unfreeze(self._n_unfrozen)
        trained = [parameter for parameter in self._plain_model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.Adam(trained, lr=settings.learning_rate, weight_decay=settings.weight_decay)
        self._model, self._optimizer = self._accelerator.prepare(self._plain_model, optimizer)
        self._average: AveragedModel | None = None
        if settings.ema is not None:
            multi_avg_fn = get_ema_multi_avg_fn(settings.ema)
            self._average = AveragedModel(self._plain_model, multi_avg_fn=multi_avg_fn, use_buffers=True)

    @property
    def _validated_model(self) -> TrainedRCMA:
        return self._plain_model if self._average is None else cast("TrainedRCMA", self._average.module)

    def plan_after(self, rows: Sequence[EpochRow]) -> EpochPlan:
        """The plan for the epoch after these."""
        return plan_epoch(self._settings, [row.mean_ccc for row in rows], n_groups=self._n_groups)

    def run_epoch(self, plan: EpochPlan) -> EpochRow:
        """Train on all windows, or on the remaining ones of a resumed epoch; validate; write the run folder."""
        begin = time.perf_counter()
        if plan.n_unfrozen != self._n_unfrozen:
            self._n_unfrozen = plan.n_unfrozen
            self._accelerator.wait_for_everyone()  # the main process must have written the best weights
            self._plain_model.load_state_dict(load_weights(self._run / BEST_FILE))
            self._start_round()
        for group in self._optimizer.param_groups:
            group["lr"] = plan.learning_rate
        loss_sum, n_terms = self._train_on_batches(len(self.rows) + 1)
        scores = _validate(self._accelerator, self._validated_model, self._validation, self._embeddings)
        row = EpochRow(
            epoch=len(self.rows) + 1,
            unfrozen_groups=plan.n_unfrozen,
            learning_rate=plan.learning_rate,
            train_loss=loss_sum / n_terms,
            ccc=scores.ccc,
            mean_ccc=scores.mean.ccc,
            seconds=round(time.perf_counter() - begin, 3),
        )
        self.rows.append(row)
        if self._writer is not None:
            self._writer.finish_epoch(self.rows, self._validated_model.state_dict(), self._state())
        return row

    def finish(self, ending: Ending | None) -> TrainingResult:
        """Write the scores into the run folder."""
        result = TrainingResult(
            best=self.rows[best_epoch([row.mean_ccc for row in self.rows])],
            epochs=len(self.rows),
            ending=ending,
            n_videos=len(self._validation),
            n_frames=sum(int(np.isfinite(video.labels).any(axis=1).sum()) for video in self._validation),
        )
        if self._writer is not None:
            self._writer.finish(result)
        return result

    def _train_on_batches(self, epoch: int) -> tuple[float, float]:
        """Sum of 1 - CCC over all batches of the epoch, and the number of its terms."""
        self._dataset.start_epoch(epoch)
        self._batches.n_done = self._n_done
        self._model.train()
        sums = torch.tensor(self._first_sums, dtype=torch.float64, device=self._accelerator.device)
        n_batches = len(self._loader)
        for done, batch in enumerate(self._loader, start=self._n_done + 1):
            # The seed depends on the step alone, so that a resume needs no saved state of random generators.
            torch.manual_seed(_seed_of(self._settings.seed, epoch, done, self._accelerator.process_index))
            sums += self._step(epoch, batch)
            if done % self._settings.save_every == 0 and done < n_batches and self._writer is not None:
                save_state(self._run, self._state(n_batches=done, sums=sums))
            self._on_status(f"epoch {epoch}, batch {done} of {n_batches}")
        self._n_done, self._first_sums = 0, (0.0, 0.0)
        loss_sum, n_terms = sums.tolist()
        return loss_sum, n_terms

    def _step(self, epoch: int, cpu_batch: Mapping[str, Tensor]) -> Tensor:
        """One optimizer step; float64 (2,): sum of 1 - CCC over the batch of all processes, and its number of terms."""
        settings, accelerator = self._settings, self._accelerator
        batch = {name: value.to(accelerator.device) for name, value in cpu_batch.items()}
        # Not Accelerate's mixed precision: it can be chosen only once in a process.
        half = settings.precision == "bfloat16"
        with torch.autocast(accelerator.device.type, dtype=torch.bfloat16, enabled=half):
            prediction = self._model(batch)
        loss = training_loss(prediction, batch["labels"], over=settings.loss, mse_weight=settings.mse_weight)
        if not torch.isfinite(loss):
            # All processes get here: they have the same loss.
            names = ", ".join(self._dataset.name(index) for index in gather_object(batch["window"].tolist()))
            raise InputError(
                f"epoch {epoch}: the loss is {loss.item()} in a batch of {names}; "
                "lower train.learning_rate, or set train.clip_norm"
            )
        n_terms = n_loss_terms(batch["labels"], over=settings.loss)
        self._optimizer.zero_grad()
        accelerator.backward(loss)
        if settings.clip_norm is not None:
            accelerator.clip_grad_norm_(self._model.parameters(), settings.clip_norm)
        self._optimizer.step()
        if self._average is not None:
            self._average.update_parameters(self._plain_model)
        return torch.stack([loss.detach().double() * n_terms, n_terms.double()])

    def _state(self, *, n_batches: int = 0, sums: Tensor | None = None) -> TrainingState:
        return TrainingState(
            model=self._plain_model.state_dict(),
            optimizer=self._optimizer.state_dict(),
            rows=[asdict(row) for row in self.rows],
            average=None if self._average is None else self._average.state_dict(),
            n_batches=n_batches,
            sums=(0.0, 0.0) if sums is None else tuple(sums.tolist()),
        )


def _start_accelerator(device: str) -> Accelerator:
    wanted = resolve_device(device)
    accelerator = Accelerator(cpu=wanted == "cpu")
    if accelerator.device.type != wanted:
        # Accelerate chooses a device once for the whole process.
        raise InputError(
            f"--device {device}: this process has trained on {accelerator.device.type} before; start a new process"
        )
    return accelerator


def _validate(
    accelerator: Accelerator, model: TrainedRCMA, videos: Sequence[Video], embeddings: Embeddings | None
) -> Scores:
    """The challenge's scores on the validation videos; the processes share the videos."""
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


def _seed_of(seed: int, epoch: int, batch: int, process: int) -> int:
    return int(np.random.SeedSequence((seed, epoch, batch, process)).generate_state(1, np.uint64)[0] >> 1)


@contextmanager
def _deterministic() -> Iterator[None]:
    """Use deterministic algorithms where PyTorch has them."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA's linear algebra starts
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
