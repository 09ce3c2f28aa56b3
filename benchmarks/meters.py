"""What is measured in one sampling run: seconds, model rows, peak memory, reads of the device by the host."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import re
import time
import warnings
from pathlib import Path
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's mallopt
_READS = {"item", "__float__", "__int__", "__bool__", "__index__", "tolist", "numpy", "__array__", "cpu", "nonzero", "equal", "allclose"}


class CpuMemory:
    """Peak of this process's resident memory, above what was resident before. None where the system does not tell (not Linux)."""

    def __enter__(self):
        """From here on every tensor of 64 KiB or more is mapped and unmapped on its own: no heap that hides what is free."""
        _mallopt(1 << 16, 1 << 16)
        return self

    def __exit__(self, *error):
        _mallopt(32 << 20, 64 << 20)  # where glibc's own adaptation ends for a program with large blocks

    def reset(self):
        gc.collect()
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)
        try:
            _CLEAR.write_text("5")
            self.before = self._read("VmRSS")
        except OSError:
            self.before = None

    def peak(self) -> int | None:
        """Bytes above the start at the highest point."""
        return None if self.before is None else self._read("VmHWM") - self.before

    def whole(self, weights: int) -> int | None:
        """The peak with a model of so many bytes, and without Python and its libraries."""
        return None if self.before is None else self.peak() + weights

    @staticmethod
    def _read(field):
        return int(re.search(rf"{field}:\s+(\d+) kB", _STATUS.read_text())[1]) * 1024


def _mallopt(mmap_threshold, trim_threshold):
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, mmap_threshold)
        libc.mallopt(_M_TRIM_THRESHOLD, trim_threshold)


class CudaMemory:
    """Peak of what PyTorch's allocator gave out on the current CUDA device, above what was given out before."""

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def reset(self):
        gc.collect()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        self.before = torch.cuda.memory_allocated()

    def peak(self) -> int:
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - self.before

    def whole(self, weights: int) -> int:
        """The peak, of which the weights are what ComfyUI keeps on the device."""
        return self.peak() + self.before


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


class Stopwatch:
    """Wrappers on a MODEL: seconds in the sampler's loop (and of the processor there), seconds and rows in the model. One sampling run each."""

    KEY = "bench"

    def __init__(self, device: str, weights: int = 0, memory=None, count: bool = False, profile: bool = False):
        self.device = device
        self.weights = weights  # of the model, in bytes
        self.memory = memory  # measure the peak
        self.count = count  # count reads, waits and empty_cache: slows the run
        self.profile = profile  # on CUDA: wait at the edges of each model call, so that host time is model time
        self.seconds = self.processor = self.inside = 0.0
        self.calls = self.rows = 0
        self.peak = self.whole = self.reads = self.waits = self.cleared = None

    def attach(self, model):
        """A clone of MODEL with this stopwatch on it."""
        from comfy.patcher_extension import WrappersMP

        model = model.clone()
        model.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, self.KEY, self._sampler)
        for patcher in (model, *model.get_additional_models()):  # clones as well: the originals stay as they are
            patcher.add_wrapper_with_key(WrappersMP.APPLY_MODEL, self.KEY, self._apply_model)
        return model

    def _now(self, wait=True):
        if wait and self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def _sampler(self, executor, *args, **kwargs):
        with contextlib.ExitStack() as stack:
            if self.count:
                reads = stack.enter_context(HostReads())
                waits = stack.enter_context(CudaWaits()) if self.device == "cuda" else None
                cleared = stack.enter_context(mock.patch.object(torch.cuda, "empty_cache", wraps=torch.cuda.empty_cache))
            if self.memory is not None:
                self.memory.reset()
            begin, busy = self._now(), time.process_time()
            result = executor(*args, **kwargs)
            self.seconds, self.processor = self._now() - begin, time.process_time() - busy
            if self.memory is not None:
                self.peak, self.whole = self.memory.peak(), self.memory.whole(self.weights)
        if self.count:
            self.reads, self.cleared = reads.count, cleared.call_count
            self.waits = None if waits is None else waits.count
        return result

    def _apply_model(self, executor, x, *args, **kwargs):
        self.calls += 1
        self.rows += x.shape[0]
        begin = self._now(self.profile)
        try:
            return executor(x, *args, **kwargs)
        finally:
            self.inside += self._now(self.profile) - begin
