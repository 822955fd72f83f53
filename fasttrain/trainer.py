"""The training loop.

folders, network, loader, step <- built from the configuration
restore the newest sound checkpoint, if the run folder holds one
for each epoch:
    for each batch of the loader:                      # full [B,3,H,W], small list of [B,3,h,h], targets [B]
        learning rate <- schedule(step)
        batch <- mixed, with soft targets              # mixup, CutMix, if asked for
        plan <- method.plan(batch)                     # subnets drawn, merged into prefix trees
        logits <- network(plan.inputs, plan.trees)     # ONE forward under autocast, through DDP
        loss <- method.loss(logits, plan, targets)     # main cross-entropy, and KL of each subnet to main
        backward, clip, optimizer, weight average      # ONE backward; gradients reduce meanwhile
        every `log_every` steps: metrics, and stop if the loss is not finite
        save every `save_steps` and `save_minutes`, in the background; save and leave if a process was told to
    every `evaluation.every` epochs: main network on the validation images
    save, and keep as the best if it is
subnets on the validation images
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import count
from typing import TypeVar

from torch import Tensor

from . import build, distributed, loading
from .announcement import announce
from .checkpoint.keeper import Keeper
from .checkpoint.state import Position, State, seed_process
from .config import Config
from .distributed import Agreement, Process
from .errors import ConfigError, Interrupted, NonFiniteError, Preempted, RunError
from .evaluation import (
    Accuracy,
    SubnetReport,
    estimate_statistics,
    evaluate,
    evaluate_subnets,
    use_statistics,
)
from .guards import signals
from .guards.failures import explained
from .guards.signals import Request, Signals
from .guards.watchdog import Watchdog
from .hardware import choose_precision, configure_backends
from .launch import status
from .models import StagedNetwork
from .passes import check_passes
from .pipelines.loader import EvalLoader
from .telemetry.folder import RunFolder
from .telemetry.interval import Interval
from .telemetry.log import Log
from .telemetry.reporter import Reporter
from .telemetry.sinks import check_sinks

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Summary:
    """How a run ended.

    Attributes:
        folder: the run's folder.
        main: the main network's last accuracy; None without validation images.
        subnets: one report per kind of batch-norm statistics; none if the run had ended before.
        images_per_second: training throughput over all processes, evaluation excluded; 0 if no step ran.
    """

    folder: str
    main: Accuracy | None
    subnets: list[SubnetReport]
    images_per_second: float


class _Asked(Exception):
    """A process was told to end, which all know now."""

    def __init__(self, request: Request) -> None:
        super().__init__(request)
        self.request = request


def train(config: Config, caught: Signals | None = None) -> Summary:
    """Train as configured; under torchrun, one of the processes of the run.

    Args:
        config: of the run.
        caught: where signals come to already; None: from now on.

    Raises:
        RunError: see `fasttrain.errors`; the run folder keeps its checkpoints.
    """
    if caught is None:
        with signals.caught() as caught:
            return train(config, caught)
    watchdog = Watchdog(config.run.start_timeout, config.run.step_timeout)
    folder = RunFolder(config)
    watchdog.start()
    try:
        with explained(config.run):
            process = distributed.start(config.run)
            if process.world == 1:
                watchdog.alone(process.device.type)
            summary = Trainer(config, process, folder, caught, watchdog).fit()
            distributed.stop()
            return summary
    except Exception as error:
        raise distributed.told(error) from error.__cause__
    finally:
        watchdog.stop()
        folder.give_back()


class Trainer:
    """A run in one process."""

    def __init__(
        self, config: Config, process: Process, folder: RunFolder, caught: Signals, watchdog: Watchdog
    ) -> None:
        """Build all parts; nothing is written before all of them fit."""
        check_sinks(config.run)
        self.config, self.process, self.folder = config, process, folder
        self.signals, self.watchdog = caught, watchdog
        configure_backends(config.run, process.device)
        self.precision = choose_precision(config.run.precision, process.device)
        self.folders = loading.find_images(config, process)
        check_passes(config, process.world, len(self.folders.train.files))
        self.network = build.build_network(config, len(self.folders.train.classes), process.device)
        self.loader = loading.build_train_loader(
            config, self.folders.train, process, self.precision.image_dtype
        )
        self.step = build.build_step(
            config, self.network, process, self.precision, self.loader.steps_per_epoch
        )
        self.subnets = build.subnets_to_evaluate(config, self.network, config.evaluation.subnets)
        self.validation: EvalLoader | None = None
        self.state = State(config, process, self.folders.train.classes, self.network, self.step, self.loader)
        self.progress = self.state.progress
        self.agreement = Agreement()
        self.keeper = Keeper(config, process, self.state, folder)
        seed_process(config.run.seed, process.rank, 0)
        notes = self.keeper.restore()
        self.over = self._finished() and self.keeper.is_over()
        if not self.over:
            self._open_log(notes + self.keeper.open())

    def _open_log(self, notes: list[str]) -> None:
        config, process = self.config, self.process
        self.log = Log(self.folder if process.is_main else None)
        self.keeper.say = self.log.line
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
        self.interval = self.reporter.interval()
        self.state.report_to(self.interval)
        parts = self.folders, self.network, self.precision, self.loader.steps_per_epoch
        for line in (*notes, *announce(config, process, *parts)):
            self.log.line(line)
        self.reporter.announce()

    @property
    def position(self) -> Position:
        """Where the run stands."""
        return self.progress.position

    def fit(self) -> Summary:
        """Train to the end; see the pseudocode above. The status file tells how it ended."""
        if self.over:
            words = f"{self.folder.path} is finished: {self.position.global_step} steps; nothing to do"
            Log(self.folder if self.process.is_main else None).line(words)
            return Summary(str(self.folder.path), self.progress.main, [], 0.0)
        state, exit_status, message = "failed", 1, ""
        try:
            with explained(self.config.run):
                summary = self._fit()
            state, exit_status = "done", 0
            return summary
        except RunError as error:
            state = {Preempted: "preempted", Interrupted: "interrupted"}.get(type(error), "failed")
            exit_status, message = error.exit_status, str(error)
            raise
        except BaseException as error:
            message = f"{type(error).__name__}: {error}"
            raise
        finally:
            with self.watchdog.patient():
                self.reporter.close(state)
                self._close()
            with suppress(ConfigError):  # it would hide what ended the run
                self._status(state, exit_status=exit_status, message=message)

    def _fit(self) -> Summary:
        self._status("running")
        status.tell_start(self.position.global_step)
        self.signals.defer()
        try:
            self._leave_if_asked()
            while not self._finished() or self._due():
                if not self._due():
                    self._train_epoch()
                if self._due():
                    self._evaluate_main()
                self._save()
                self._leave_if_asked()
            with self.watchdog.patient():
                self.keeper.settle()
            return self._summarize()
        except _Asked as asked:
            raise self._leave(asked.request) from None

    def _close(self) -> None:
        self.loader.close()
        if self.validation is not None:
            self.validation.close()
        self.keeper.writer.wait()

    # Training

    def _train_epoch(self) -> None:
        position, steps = self.position, self.loader.steps_per_epoch
        limit = self.config.run.max_steps
        end = min(steps, position.step + limit - position.global_step) if limit else steps
        self.log.start_epoch(position.epoch, self.config.run.epochs, end, position.step)
        interval = self.interval
        interval.begin()
        batches = self.loader.epoch(position.epoch, position.step)
        try:
            for step in range(position.step, end):
                self.reporter.next_step()
                with interval.watch.waiting():
                    batch = next(batches)
                result = self.step(
                    batch.images,
                    batch.small,
                    batch.targets,
                    epoch=position.epoch,
                    step=step,
                    global_step=position.global_step,
                )
                position.step += 1
                position.global_step += 1
                interval.add(result, len(batch.targets))
                self.watchdog.beat()
                self.log.advance()
                last = step == end - 1
                if last or position.global_step % self.config.run.log_every == 0:
                    self._report(interval)
                if position.step == steps:
                    position.epoch, position.step = position.epoch + 1, 0
                self._answer(last)
        finally:
            self.reporter.end_epoch()

    def _report(self, interval: Interval) -> None:
        self.step.check.settle()
        metrics = interval.collect()
        self.progress.images += metrics["images"]
        self.progress.seconds += metrics["seconds"]
        if self.config.run.skip_nonfinite:
            metrics["skipped"] = self.step.check.skipped
        elif not math.isfinite(metrics["loss"]):
            raise NonFiniteError(
                f"the loss became {metrics['loss']} within the steps up to {self.position.global_step}; "
                f"the checkpoints in {self.folder.checkpoints} are from before. A lower --optim.lr, more "
                "--optim.warmup-epochs, or --optim.clip may help"
            )
        self.reporter.train(asdict(self.position), metrics)
        interval.restart()

    def _out_of_steps(self) -> bool:
        return 0 < self.config.run.max_steps <= self.position.global_step

    def _finished(self) -> bool:
        return self.position.epoch >= self.config.run.epochs or self._out_of_steps()

    # Requests: to save, or to end

    def _answer(self, last: bool) -> None:
        """After each step: save, or leave, as the processes agreed; an epoch's end saves anyway."""
        request = self.agreement.follow(self._request())
        self._heed(request)
        every = self.config.run.save_steps
        if not last and (request == Request.SAVE or (every and self.position.global_step % every == 0)):
            self._save()

    def _request(self) -> Request:
        """What this process asks of all; the main one's clock tells when to save."""
        if not self.process.is_main:
            return self.signals.request
        self.keeper.warn()
        return max(self.signals.request, Request.SAVE if self.keeper.is_due else Request.NONE)

    def _save(self) -> None:
        with self.watchdog.patient():
            self.keeper.save()

    def _leave_if_asked(self) -> None:
        self._heed(self.agreement.now(self.signals.request))

    def _heed(self, request: int) -> None:
        if request > Request.SAVE:
            raise _Asked(Request(request))

    def _leave(self, request: Request) -> RunError:
        """Save what is not saved yet; the error to end with."""
        self.agreement.settle()
        with self.watchdog.patient():
            self.keeper.save_rest()
        return signals.ending(
            request, f"saved at step {self.position.global_step}; the same command goes on from there"
        )

    def _polled(self, items: Iterator[Item], steps: int | None = None) -> Iterator[Item]:
        """The items of an evaluation; between them all processes look whether one was told to end.

        Args:
            items: of this process.
            steps: how often all look; None where all have as many items.
        """
        for _ in count() if steps is None else range(steps):
            item = next(items, None)
            if item is None and steps is None:
                return
            self.watchdog.rest()
            self._heed(self.agreement.follow(self.signals.request))
            if item is not None:
                yield item

    # Evaluation

    @property
    def evaluated(self) -> StagedNetwork:
        """The network that is judged: the weight average where there is one."""
        return self.network if self.step.ema is None else self.step.ema.module  # type: ignore[return-value]

    def _due(self) -> bool:
        """Whether an evaluation of the main network belongs here that was not done."""
        position, every = self.position, self.config.evaluation.every
        if self.folders.val is None or position.global_step == self.progress.evaluated:
            return False
        return self._finished() or (position.step == 0 and position.epoch % every == 0)

    def _evaluate_main(self) -> None:
        network = self.evaluated
        with self.watchdog.patient():
            distributed.average_running_statistics(network)
            if self.config.evaluation.reestimate:
                own = estimate_statistics(network, [network.full], self._calibration(), self.precision)
                use_statistics(network, own)
            main = evaluate(
                network,
                [network.full],
                self._validation(),
                self.precision,
                normalize=self.config.evaluation.normalize,
            )[0]
        self.progress.main, self.progress.evaluated = main, self.position.global_step
        self.reporter.record("evaluation", asdict(self.position), asdict(main))
        self.log.line(
            f"epoch {self.position.epoch}: validation Top-1 {main.top1:.3f} %, "
            f"Top-5 {main.top5:.3f} %, loss {main.loss:.4f}, {main.images} images"
        )

    def _evaluate_subnets(self) -> list[SubnetReport]:
        if self.folders.val is None or not self.subnets:
            return []
        self.log.line(f"evaluating {len(self.subnets)} subnets")
        with self.watchdog.patient():
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
        most = -(-len(self.folders.val.files) // self.process.world)
        batches = ((batch.images, batch.targets) for batch in self.validation)
        return self._polled(batches, -(-most // self.config.evaluation.batch))

    def _calibration(self) -> Iterator[Tensor]:
        return self._polled(
            loading.calibration_batches(
                self.config, self.folders.train, self.process, self.precision.image_dtype, self.position.epoch
            )
        )

    def _status(self, state: str, **more: object) -> None:
        if self.process.is_main:
            self.folder.status(state, **asdict(self.position), **more)

    def _summarize(self) -> Summary:
        reports = self._evaluate_subnets()
        images, seconds = self.progress.images, self.progress.seconds
        throughput = images / seconds if seconds else 0.0
        self.log.line(f"done: {images} images in {seconds:.1f} s of training, {throughput:.1f} images/s")
        return Summary(str(self.folder.path), self.progress.main, reports, throughput)


def subnets_line(report: SubnetReport) -> str:
    """One line on the subnets' accuracy."""
    whose = {"reestimated": "their own", "main": "the main network's"}.get(report.statistics)
    with_them = f" with {whose} batch-norm statistics" if whose else ""
    return (
        f"{len(report.top1)} subnets{with_them}: Top-1 mean {report.mean:.2f} %, "
        f"deviation {report.deviation:.2f}, worst {report.worst:.2f} %"
    )
