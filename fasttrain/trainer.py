"""The training loop.

folders, network, loader, step <- built from the configuration
restore the last checkpoint, if this run is resumed
for each epoch:
    for each batch of the loader:                      # full [B,3,H,W], small list of [B,3,h,h], targets [B]
        learning rate <- schedule(step)
        batch <- mixed, with soft targets              # mixup, CutMix, if asked for
        plan <- method.plan(batch)                     # subnets drawn, merged into prefix trees
        logits <- network(plan.inputs, plan.trees)     # ONE forward under autocast, through DDP
        loss <- method.loss(logits, plan, targets)     # main cross-entropy, and KL of each subnet to main
        backward, clip, optimizer, weight average      # ONE backward; gradients reduce meanwhile
        every `log_every` steps: metrics, and stop if the loss is not finite
    every `evaluation.every` epochs: main network on the validation images
    save `last`, and `best` when it is
subnets on the validation images
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from . import build, checkpoint, distributed, loading
from .config import Config, from_dict, to_dict
from .distributed import Process
from .errors import CheckpointError, ConfigError, NonFiniteError
from .evaluation import (
    Accuracy,
    SubnetReport,
    estimate_statistics,
    evaluate,
    evaluate_subnets,
    use_statistics,
)
from .hardware import (
    choose_precision,
    configure_backends,
    describe,
    triton_fault,
)
from .models import FusedBatchNorm, StagedNetwork, batch_norms
from .optim import choose_impl
from .pipelines.loader import EvalLoader
from .telemetry import Interval, Log, Reporter, RunFolder, check_sinks


@dataclass(frozen=True, slots=True)
class Summary:
    """How a run ended.

    Attributes:
        folder: the run's folder.
        main: the main network's last accuracy; None without validation images.
        subnets: one report per kind of batch-norm statistics.
        images_per_second: training throughput over all processes, evaluation excluded; 0 if no step ran.
    """

    folder: str
    main: Accuracy | None
    subnets: list[SubnetReport]
    images_per_second: float


FREE_ON_RESUME = (
    *("recipe", "data.train", "data.val", "data.builtin", "data.threads", "data.prefetch"),
    *("data.hardware_decoder_load", "model.weights"),
    *("model.batch_norm", "model.conv1x1", "method.backward", "optim.impl", "run.kernels"),
    *("evaluation.every", "evaluation.batch", "evaluation.subnets", "evaluation.statistics"),
    *("run.name", "run.folder", "run.max_steps", "run.device", "run.log_every", "run.resume"),
    *("run.tensorboard", "run.wandb", "run.profile"),
)
"""Fields that may differ when a run is resumed, since they do not change what it trains."""


@dataclass(slots=True)
class Position:
    """Where a run stands: the next epoch, the next step in it, and the steps done."""

    epoch: int = 0
    step: int = 0
    global_step: int = 0


def train(config: Config) -> Summary:
    """Train as configured; under torchrun, one of the processes of the run.

    Raises:
        RunError: see `fasttrain.errors`; the run folder keeps its checkpoints.
    """
    process = distributed.start(config.run.device)
    try:
        return Trainer(config, process).fit()
    finally:
        distributed.stop()


class Trainer:
    """A run in one process."""

    def __init__(self, config: Config, process: Process) -> None:
        """Build all parts; nothing is written before all of them fit."""
        check_sinks(config.run)
        self.config, self.process = config, process
        configure_backends(config.run, process.device)
        self.precision = choose_precision(config.run.precision, process.device)
        self.folders = loading.find_images(config, process)
        self.network = build.build_network(config, len(self.folders.train.classes), process.device)
        self.loader = loading.build_train_loader(
            config, self.folders.train, process, self.precision.image_dtype
        )
        self.step = build.build_step(
            config, self.network, process, self.precision, self.loader.steps_per_epoch
        )
        self.subnets = build.subnets_to_evaluate(config, self.network, config.evaluation.subnets)
        self.validation: EvalLoader | None = None
        self.position = Position()
        self.main: Accuracy | None = None
        self.best = -math.inf
        self.trained = (0, 0.0)  # images and seconds
        self.folder = RunFolder(config)
        if config.run.resume:
            self._restore()
        if process.is_main:
            self.folder.create(config)
            if config.run.resume:
                self.folder.drop_records_after(self.position.global_step)
        self.log = Log(self.folder if process.is_main else None)
        self.reporter = Reporter(
            config,
            process,
            self.folder,
            self.log,
            classes=self.network.num_classes,
            precision=self.precision,
            steps_per_epoch=self.loader.steps_per_epoch,
            step=self.position.global_step,
        )

    def fit(self) -> Summary:
        """Train to the end; see the pseudocode above. The status file tells how it ended."""
        state = "failed"
        try:
            summary = self._fit()
            state = "done"
            return summary
        except KeyboardInterrupt:
            state = "interrupted"
            raise
        finally:
            self.reporter.close(state)
            self._close()
            with suppress(OSError):  # it would hide what ended the run
                self._status(state)

    def _fit(self) -> Summary:
        self._announce()
        self._status("running")
        while not self._finished():
            self._train_epoch()
            if self._due():
                self._evaluate_main()
            self._save()
        return self._summarize()

    def _close(self) -> None:
        self.loader.close()
        if self.validation is not None:
            self.validation.close()

    # Training

    def _train_epoch(self) -> None:
        position, steps = self.position, self.loader.steps_per_epoch
        limit = self.config.run.max_steps
        end = min(steps, position.step + limit - position.global_step) if limit else steps
        self.log.start_epoch(position.epoch, self.config.run.epochs, end, position.step)
        interval = self.reporter.interval()
        batches = self.loader.epoch(position.epoch, position.step)
        try:
            while position.step < steps and not self._out_of_steps():
                self.reporter.next_step()
                with interval.watch.waiting():
                    batch = next(batches)
                result = self.step(
                    batch.images,
                    batch.small,
                    batch.targets,
                    epoch=position.epoch,
                    step=position.step,
                    global_step=position.global_step,
                )
                position.step += 1
                position.global_step += 1
                interval.add(result, len(batch.targets))
                self.log.advance()
                last = position.step == steps or self._out_of_steps()
                if last or position.global_step % self.config.run.log_every == 0:
                    self._report(interval)
        finally:
            self.reporter.end_epoch()
        if position.step == steps:
            position.epoch, position.step = position.epoch + 1, 0

    def _report(self, interval: Interval) -> None:
        self.step.check.settle()
        metrics = interval.collect()
        images, seconds = self.trained
        self.trained = (images + metrics["images"], seconds + metrics["seconds"])
        if not math.isfinite(metrics["loss"]):
            raise NonFiniteError(
                f"the loss became {metrics['loss']} within the steps up to {self.position.global_step}; "
                f"the checkpoints in {self.folder.last.parent} are from before. A lower --optim.lr, "
                "--optim.warmup-epochs or --optim.clip may help"
            )
        self.reporter.train(asdict(self.position), metrics)
        interval.restart()

    def _out_of_steps(self) -> bool:
        return 0 < self.config.run.max_steps <= self.position.global_step

    def _finished(self) -> bool:
        return self.position.epoch >= self.config.run.epochs or self._out_of_steps()

    # Evaluation

    @property
    def evaluated(self) -> StagedNetwork:
        """The network that is judged: the weight average where there is one."""
        return self.network if self.step.ema is None else self.step.ema.module  # type: ignore[return-value]

    def _due(self) -> bool:
        every = self.config.evaluation.every
        return self._finished() or (self.position.step == 0 and self.position.epoch % every == 0)

    def _evaluate_main(self) -> None:
        if self.folders.val is None:
            return
        network = self.evaluated
        distributed.average_running_statistics(network)
        if self.config.evaluation.reestimate:
            own = estimate_statistics(network, [network.full], self._calibration(), self.precision)
            use_statistics(network, own)
        self.main = evaluate(network, [network.full], self._validation(), self.precision)[0]
        self.reporter.record("evaluation", asdict(self.position), asdict(self.main))
        self.log.line(
            f"epoch {self.position.epoch}: validation Top-1 {self.main.top1:.3f} %, "
            f"Top-5 {self.main.top5:.3f} %, loss {self.main.loss:.4f}, {self.main.images} images"
        )

    def _evaluate_subnets(self) -> list[SubnetReport]:
        if self.folders.val is None or not self.subnets:
            return []
        self.log.line(f"evaluating {len(self.subnets)} subnets")
        reports = evaluate_subnets(
            self.evaluated,
            self.subnets,
            self._validation,
            self._calibration,
            self.precision,
            self.config.evaluation.statistics,
        )
        for report in reports:
            each = {"depths": report.depths, "top1": report.top1}
            self.reporter.record("subnets", asdict(self.position), report.summary() | each)
            self.log.line(subnets_line(report))
        return reports

    def _validation(self) -> Iterator[tuple[Tensor, Tensor]]:
        assert self.folders.val is not None
        if self.validation is None:
            self.validation = loading.build_eval_loader(
                self.config, self.folders.val, self.process, self.precision.image_dtype
            )
        return ((batch.images, batch.targets) for batch in self.validation)

    def _calibration(self) -> Iterator[Tensor]:
        return loading.calibration_batches(
            self.config, self.folders.train, self.process, self.precision.image_dtype, self.position.epoch
        )

    # State

    def _save(self) -> None:
        if not self.process.is_main:
            return
        better = self.main is not None and self.main.top1 > self.best
        if self.main is not None and better:
            self.best = self.main.top1
        state = self._state()
        checkpoint.save(self.folder.last, state)
        if better:
            checkpoint.save(self.folder.best, state)

    def _state(self) -> dict[str, Any]:
        ema = self.step.ema
        return {
            "config": to_dict(self.config),
            "classes": list(self.folders.train.classes),
            "position": asdict(self.position),
            "loader": self.loader.state_dict(),
            "best": self.best,
            "network": self.network.state_dict(),
            "optimizer": self.step.optimizer.state_dict(),
            "scaler": self.step.scaler.state_dict(),
            "ema": None if ema is None else ema.state_dict(),
        }

    def _restore(self) -> None:
        state = checkpoint.load(self.folder.last)
        with checkpoint.restoring(self.folder.last):
            recorded = from_dict(state["config"])  # fields that are newer than it get their defaults
        self._check_settings(to_dict(recorded))
        if state["classes"] != list(self.folders.train.classes):
            raise CheckpointError(
                f"{self.folder.last} was trained on other classes than {self.config.data.train}"
            )
        with checkpoint.restoring(self.folder.last):
            checkpoint.load_state(self.network, state["network"], self.folder.last)
            self.step.optimizer.load_state_dict(state["optimizer"])
            self.step.scaler.load_state_dict(state["scaler"])
            if self.step.ema is not None:
                self.step.ema.load_state_dict(state["ema"])
            self.loader.load_state_dict(state["loader"])
            self.position = self._checked(Position(**state["position"]))
            self.best = float(state["best"])

    def _check_settings(self, recorded: dict[str, Any]) -> None:
        """A resumed run has the settings it was started with, but for those of `FREE_ON_RESUME`."""
        ours, theirs = _flat(to_dict(self.config)), _flat(recorded)
        differing = [name for name in ours if name not in FREE_ON_RESUME and ours[name] != theirs.get(name)]
        if differing:
            named = [f"{name} is {ours[name]!r}, was {theirs.get(name)!r}" for name in differing[:3]]
            raise ConfigError(
                f"cannot resume with other settings: {', '.join(named)}; allowed: the run's own "
                f"(fasttrain train {self.folder.path / 'config.json'} --resume)"
            )

    def _checked(self, position: Position) -> Position:
        """The position, if this run has it: another batch or data set has other steps per epoch."""
        steps = self.loader.steps_per_epoch
        if position.epoch * steps + position.step != position.global_step or not 0 <= position.step < steps:
            raise ValueError(
                f"it stands at epoch {position.epoch}, step {position.step} ({position.global_step} in all); "
                f"with this batch and data an epoch has {steps} steps"
            )
        return position

    def _status(self, state: str) -> None:
        if self.process.is_main:
            self.folder.status(state, **asdict(self.position))

    # Words

    def _announce(self) -> None:
        config, folders = self.config, self.folders
        images = f"{len(folders.train.files)} training images of {len(folders.train.classes)} classes"
        if folders.val is None:
            images += ", no validation images (data.val is empty): nothing will be evaluated"
        else:
            images += f", {len(folders.val.files)} validation images"
        self.log.line(
            f"{config.recipe or 'run'}: {config.model.name}, {config.method.name} training, {images}"
        )
        for note in loading.validation_notes(folders):
            self.log.line(note)
        if config.run.resume:
            self.log.line(f"resumed from {self.folder.last} at step {self.position.global_step}")
        self.log.line(
            f"{describe(self.process.device, self.precision, config.run.tf32)}, "
            f"{self.process.world} process{'es' if self.process.world > 1 else ''}, "
            f"global batch {config.run.batch}, {self.loader.steps_per_epoch} steps per epoch"
        )
        self.log.line(self._implementations())
        self.reporter.announce()
        if self.process.device.type == "cuda" and triton_fault(self.process.device):
            self.log.line(f"warning: Triton's kernels are left out: {triton_fault(self.process.device)}")
        own = config.run.batch // self.process.world
        meant = config.run.batch_norm_batch
        if meant and own != meant:
            self.log.line(
                f"warning: batch norm works over {own} images per process; the recipe means {meant}, so its "
                "published accuracy may not be met"
            )
        if (config.data.mixup or config.data.cutmix) and own % 2:
            self.log.line(
                f"warning: {own} images per process are mixed in pairs: the last stays as it is, and another "
                "number of processes would mix others"
            )

    def _implementations(self) -> str:
        """What computes the loss, batch norm, 1x1 convolutions if not PyTorch, and the optimizer's step."""
        config, device = self.config, self.process.device
        norms = batch_norms(self.network)
        fused = [layer for layer in norms if isinstance(layer, FusedBatchNorm)]
        batch_norm = f"{fused[0].implementation} ({len(fused)} of {len(norms)} fused)" if fused else "torch"
        conv1x1 = "" if config.model.conv1x1 == "torch" else f"1x1 convolutions {config.model.conv1x1}, "
        return (
            f"kernels: loss {build.loss_kernels(config, device)}, batch norm {batch_norm}, "
            f"{conv1x1}SGD {choose_impl(config.optim.impl, device)}"
        )

    def _summarize(self) -> Summary:
        reports = self._evaluate_subnets()
        images, seconds = self.trained
        throughput = images / seconds if seconds else 0.0
        self.log.line(f"done: {images} images in {seconds:.1f} s of training, {throughput:.1f} images/s")
        return Summary(str(self.folder.path), self.main, reports, throughput)


def _flat(sections: dict[str, Any]) -> dict[str, Any]:
    """Nested configuration as `section.field` to value."""
    flat: dict[str, Any] = {}
    for name, value in sections.items():
        flat |= (
            {f"{name}.{key}": each for key, each in value.items()}
            if isinstance(value, dict)
            else {name: value}
        )
    return flat


def subnets_line(report: SubnetReport) -> str:
    """One line on the subnets' accuracy."""
    whose = "their own" if report.statistics == "reestimated" else "the main network's"
    return (
        f"{len(report.top1)} subnets with {whose} batch-norm statistics: Top-1 mean {report.mean:.2f} %, "
        f"deviation {report.deviation:.2f}, worst {report.worst:.2f} %"
    )
