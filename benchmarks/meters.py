"""What is measured in one sampling run: seconds, model rows, peak memory, reads of the device by the host."""

from __future__ import annotations

import contextlib
import gc
import itertools
import json
import tempfile
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode
from torch.profiler import ProfilerActivity, profile

_READS = {"item", "__float__", "__int__", "__bool__", "__index__", "tolist", "numpy", "__array__", "cpu", "nonzero", "equal", "allclose"}


class CpuMemory:
    """Peak of what PyTorch's allocator gave out within the `with` block, by its profiler: `.peak` in bytes, the same at every run.

    Not resident memory: that holds besides what libraries keep and the system takes back, some 30 MB one way or the other.
    """

    def __enter__(self):
        gc.collect()
        self.peak = None
        self._profile = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
        self._profile.__enter__()
        return self

    def __exit__(self, *error):
        self._profile.__exit__(*error)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "trace.json")
            self._profile.export_chrome_trace(str(path))
            events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
        changes = sorted((event["ts"], event["args"]["Bytes"]) for event in events if event["name"] == "[memory]")
        self.peak = max(0, *itertools.accumulate(size for _, size in changes)) if changes else 0

    def whole(self, weights: int) -> int:
        """The peak with a model of so many bytes."""
        return self.peak + weights


class CudaMemory:
    """Peak of what PyTorch's allocator gave out on the current CUDA device within the `with` block: `.peak` in bytes."""

    def __enter__(self):
        gc.collect()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        self.before = torch.cuda.memory_allocated()
        return self

    def __exit__(self, *error):
        torch.cuda.synchronize()
        self.peak = torch.cuda.max_memory_allocated() - self.before

    def whole(self, weights: int) -> int:
        """The peak, of which the weights are what ComfyUI keeps on the device."""
        return self.peak + self.before


class HostReads(TorchFunctionMode):
    """Counts calls by which Python reads tensor values: `.item()`, `float(t)`, `if t`, `.tolist()`. On a GPU each is a wait."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.count += getattr(func, "__name__", "") in _READS
        return func(*args, **(kwargs or {}))


class CudaWaits:
    """Counts the synchronising calls that CUDA itself reports, copies to the host included."""

    def __enter__(self):
        self._before = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("warn")
        self._caught = warnings.catch_warnings(record=True)
        self._messages = self._caught.__enter__()
        warnings.simplefilter("always")
        return self

    def __exit__(self, *error):
        torch.cuda.set_sync_debug_mode(self._before)
        self._caught.__exit__(*error)
        self.count = sum("synchroniz" in str(w.message) for w in self._messages)


@dataclass
class Times:
    """Seconds by the clock on the wall, of the processor, and within calls of the model."""

    wall: float = 0.0
    processor: float = 0.0
    inside: float = 0.0

    def add(self, wall=0.0, processor=0.0, inside=0.0):
        self.wall, self.processor, self.inside = self.wall + wall, self.processor + processor, self.inside + inside

    def per(self, steps: float) -> Times:
        return Times(self.wall / steps, self.processor / steps, self.inside / steps)


class Stopwatch:
    """Wrappers on a MODEL: the sampler's loop in `own` Times, calls and rows of the model. One sampling run each.

    `beside` n: after every n-th prediction the plain one of the same latent is made as well, and thrown away; `plain` is what
    the loop would have taken with these alone. The two share whatever the machine does meanwhile.
    """

    KEY = "bench"

    def __init__(self, device: str, weights: int = 0, memory=None, count: bool = False, profile: bool = False, beside: int = 0):
        self.device = device
        self.weights = weights  # of the model, in bytes
        self.memory = memory  # measure the peak
        self.count = count  # count reads, waits and empty_cache: slows the run
        self.profile = profile  # on CUDA: wait at the edges of each model call, so that host time is model time
        self.own = Times()
        self.beside = beside
        self.plain = Times() if beside else None
        self._predicting = Times()  # predictions of either kind
        self._predictions = [0, 0]  # how many, and how many of them plain
        self._aside = False  # in a plain prediction now
        self.calls = self.rows = 0
        self.peak = self.whole = self.reads = self.waits = self.cleared = None

    def attach(self, model):
        """A clone of MODEL with this stopwatch on it, outside of what it has already."""
        from comfy.patcher_extension import WrappersMP

        model = model.clone()
        model.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, self.KEY, self._sampler)
        if self.plain is not None:
            inner = model.wrappers.pop(WrappersMP.PREDICT_NOISE, {})
            model.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, self.KEY, self._predict_noise)
            model.wrappers[WrappersMP.PREDICT_NOISE] |= inner
        for patcher in (model, *model.get_additional_models()):  # clones as well: the originals stay as they are
            patcher.add_wrapper_with_key(WrappersMP.APPLY_MODEL, self.KEY, self._apply_model)
        return model

    def _now(self, wait=True):
        if wait and self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter(), time.process_time()

    def _since(self, then, wait=True):
        return [now - before for now, before in zip(self._now(wait), then, strict=True)]

    def _sampler(self, executor, *args, **kwargs):
        with contextlib.ExitStack() as stack:
            if self.count:
                reads = stack.enter_context(HostReads())
                waits = stack.enter_context(CudaWaits()) if self.device == "cuda" else None
                cleared = stack.enter_context(mock.patch.object(torch.cuda, "empty_cache", wraps=torch.cuda.empty_cache))
            if self.memory is not None:
                stack.enter_context(self.memory)
            begin = self._now()
            result = executor(*args, **kwargs)
            wall, processor = self._since(begin)
        self.own.add(wall, processor)
        if self.plain is not None:
            self.own.add(-self.plain.wall, -self.plain.processor)
            predictions, plain = self._predictions
            self.plain = self.plain.per(plain / predictions)
            self.plain.add(wall - self._predicting.wall, processor - self._predicting.processor)  # what the sampler itself does
        if self.memory is not None:
            self.peak, self.whole = self.memory.peak, self.memory.whole(self.weights)
        if self.count:
            self.reads, self.cleared = reads.count, cleared.call_count
            self.waits = None if waits is None else waits.count
        return result

    def _predict_noise(self, executor, x, timestep, model_options=None, seed=None):
        begin = self._now()
        result = executor(x, timestep, model_options, seed)
        self._predictions[0] += 1
        if self._predictions[0] % self.beside == 0:
            middle = self._now()
            self._aside = True
            try:
                executor.class_obj.predict_noise(x, timestep, model_options, seed)  # the guider's own, within no wrapper
            finally:
                self._aside = False
            self.plain.add(*self._since(middle))
            self._predictions[1] += 1
        self._predicting.add(*self._since(begin))
        return result

    def _apply_model(self, executor, x, *args, **kwargs):
        if not self._aside:
            self.calls += 1
            self.rows += x.shape[0]
        begin = self._now(self.profile)
        try:
            return executor(x, *args, **kwargs)
        finally:
            inside, _ = self._since(begin, self.profile)
            (self.plain if self._aside else self.own).add(inside=inside)
