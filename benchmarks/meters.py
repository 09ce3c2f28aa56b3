"""What is measured in one sampling run: seconds, model rows, peak memory, reads of the device by the host."""

from __future__ import annotations

import contextlib
import functools
import gc
import itertools
import json
import statistics
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
    """Seconds by the clock on the wall, of the processor, and by the wall outside of calls of the model."""

    wall: float = 0.0
    processor: float = 0.0
    outside: float = 0.0

    def __add__(self, other: Times) -> Times:
        return Times(self.wall + other.wall, self.processor + other.processor, self.outside + other.outside)

    def per(self, steps: float) -> Times:
        return Times(self.wall / steps, self.processor / steps, self.outside / steps)


class Beside:
    """The predictions of one run, and plain ones made beside some of them, told apart by the rows of the model they took.

    Predictions of as many rows cost the same, so that of each kind the median counts, as a ratio to the plain one next to
    it: neither a drift of the machine nor a burst of other work gets in.
    """

    def __init__(self):
        self.rows, self.own, self.plain = [], [], []

    def add(self, rows: int, own: Times, plain: Times | None) -> None:
        self.rows.append(rows)
        self.own.append(own)
        self.plain.append(plain)

    def totals(self) -> tuple[Times, Times]:
        """(own, plain) Times of all predictions. Raises ValueError when no plain one was made."""
        known = [times for times in self.plain if times is not None]
        if not known:
            raise ValueError(f"no plain prediction beside any of {len(self.own)}: sample more steps")
        nearest, beside = known[-1], []
        for times in reversed(self.plain):  # a plain one comes after those it stands for
            nearest = times or nearest
            beside.insert(0, nearest)

        def own(key, relative):
            middle, total = statistics.median(getattr(t, key) for t in known), 0.0
            for kind in set(self.rows):
                pairs = [(getattr(a, key), getattr(b, key)) for rows, a, b in zip(self.rows, self.own, beside, strict=True) if rows == kind]
                each = statistics.median(a / max(b, 1e-9) for a, b in pairs) * middle if relative else statistics.median(a for a, _ in pairs)
                total += len(pairs) * each
            return total, len(self.rows) * middle

        columns = [own("wall", True), own("processor", True), own("outside", False)]
        return tuple(Times(*column) for column in zip(*columns, strict=True))


class Stopwatch:
    """Wrappers on a MODEL: the sampler's loop in `own` Times, calls and rows of the model. One sampling run each.

    `beside` n: after every n-th prediction the plain one of the same latent is made as well, and thrown away; `plain` is what
    the loop would have taken with these alone. On CUDA predictions are timed by marks in the stream, so that the host may
    run ahead as it does without us.
    """

    KEY = "bench"

    def __init__(self, device: str, weights: int = 0, memory=None, count: bool = False, profile: bool = False, beside: int = 0):
        self.device = device
        self.weights = weights  # of the model, in bytes
        self.memory = memory  # measure the peak
        self.count = count  # count reads, waits and empty_cache: slows the run
        self.profile = profile  # on CUDA: wait at the edges of each model call, so that host time is model time
        self.beside = beside
        self.own = self.plain = None
        self.calls = self.rows = 0
        self.peak = self.whole = self.reads = self.waits = self.cleared = None
        self._steps = []  # (rows, what gives its Times, what gives those of the plain one or None)
        self._inside = 0.0  # seconds in the model
        self._aside = False  # in a plain prediction now

    def attach(self, model):
        """A clone of MODEL with this stopwatch on it, outside of what it has already."""
        from comfy.patcher_extension import WrappersMP

        model = model.clone()
        model.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, self.KEY, self._sampler)
        if self.beside:
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

    def _timed(self, call) -> tuple:
        """(what `call` gives, its Times)."""
        (wall, processor), inside = self._now(), self._inside
        result = call()
        end, busy = self._now()
        return result, Times(end - wall, busy - processor, end - wall - (self._inside - inside))

    def _marked(self, call) -> tuple:
        """(what `call` gives, a function that gives its Times once the run is over)."""
        if self.device != "cuda":
            result, times = self._timed(call)
            return result, lambda: times
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        result = call()
        end.record()
        return result, functools.partial(_between, begin, end)

    def _sampler(self, executor, *args, **kwargs):
        with contextlib.ExitStack() as stack:
            if self.count:
                reads = stack.enter_context(HostReads())
                waits = stack.enter_context(CudaWaits()) if self.device == "cuda" else None
                cleared = stack.enter_context(mock.patch.object(torch.cuda, "empty_cache", wraps=torch.cuda.empty_cache))
            if self.memory is not None:
                stack.enter_context(self.memory)
            result, self.own = self._timed(lambda: executor(*args, **kwargs))
        if self.beside:
            steps = [(rows, own(), plain and plain()) for rows, own, plain in self._steps]
            predicting = sum((times for _, *both in steps for times in both if times), Times())
            itself = Times(self.own.wall - predicting.wall, self.own.processor - predicting.processor)  # the sampler, once for both
            beside = Beside()
            for step in steps:
                beside.add(*step)
            self.own, self.plain = (times + itself for times in beside.totals())
        if self.memory is not None:
            self.peak, self.whole = self.memory.peak, self.memory.whole(self.weights)
        if self.count:
            self.reads, self.cleared = reads.count, cleared.call_count
            self.waits = None if waits is None else waits.count
        return result

    def _predict_noise(self, executor, *args, **kwargs):
        rows, plain = self.rows, None
        result, own = self._marked(lambda: executor(*args, **kwargs))
        if (len(self._steps) + 1) % self.beside == 0:
            self._aside = True
            try:
                _, plain = self._marked(lambda: executor.class_obj.predict_noise(*args, **kwargs))  # the guider's own, within no wrapper
            finally:
                self._aside = False
        self._steps.append((self.rows - rows, own, plain))
        return result

    def _apply_model(self, executor, x, *args, **kwargs):
        if not self._aside:
            self.calls += 1
            self.rows += x.shape[0]
        begin, _ = self._now(self.profile)
        try:
            return executor(x, *args, **kwargs)
        finally:
            self._inside += self._now(self.profile)[0] - begin


def _between(begin, end) -> Times:
    """Times between two marks in a stream; processor time is not known there."""
    seconds = begin.elapsed_time(end) / 1e3
    return Times(seconds, seconds)
