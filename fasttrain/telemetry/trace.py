"""`run.profile A:B`: some steps of a start traced by torch.profiler."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile


class Tracer:
    """Traces the steps from A on and before B, counted from 0 at this start; an epoch's end ends a trace."""

    def __init__(self, window: str, folder: Path, device: torch.device) -> None:
        """Wait for the first step.

        Args:
            window: "A:B"; empty: nothing is traced.
            folder: for the trace, made when there is one.
            device: whose kernels are traced, besides the host's calls.
        """
        self.first, self.end = (int(part) for part in window.split(":")) if window else (-1, -1)
        self.folder, self.device = folder, device
        self.done = 0
        self.profiler: profile | None = None

    def next_step(self) -> str:
        """To be called before each step; tells what was written, if something was."""
        try:
            words = self.close() if self.done == self.end else ""
            if self.done == self.first:
                self._begin()
            elif self.profiler is not None:
                self.profiler.step()  # marks the steps in the trace
            return words
        finally:
            self.done += 1

    def _begin(self) -> None:
        activities = [ProfilerActivity.CPU]
        if self.device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # its notices are not the run's
        self.profiler = profile(activities=activities, acc_events=True)
        self.profiler.start()

    def missed(self) -> str:
        """At the run's end: tells if the steps that were to be traced did not come."""
        if self.first < self.done:
            return ""
        return f"warning: nothing was traced: run.profile begins at step {self.first} of {self.done}"

    def close(self) -> str:
        """Write what is being traced, if anything is; tells where."""
        if self.profiler is None:
            return ""
        profiler, self.profiler = self.profiler, None
        profiler.stop()
        self.folder.mkdir(exist_ok=True)
        path = self.folder / f"steps-{self.first}-{self.done}.json.gz"
        profiler.export_chrome_trace(str(path))
        return f"trace of steps {self.first} to {self.done - 1}: {path}"
