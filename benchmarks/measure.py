"""Runs a case: every mode in turn, several rounds, one process. Gives plain dictionaries for JSON."""

from __future__ import annotations

import statistics

import torch

from . import alone
from .meters import CpuMemory, CudaMemory, Stopwatch
from .models import build
from .suites import CFG, CLOSE, MODES, Case

PLAIN_STEPS = 8  # of plain guidance beside itself, which is the same at every step


def runs_of(case: Case, device: str, memory_only: bool = False) -> int:
    """Sampling runs in `run_case`: one for memory, the timed ones, and on CUDA one to profile where that tells something."""
    if memory_only:
        return len(case.modes)
    return len(case.modes) + sum(len(_of_round(case, i)) for i in range(case.rounds + case.close)) + len(_profiled(case, device))


def _of_round(case: Case, i: int) -> tuple[str, ...]:
    """Modes of round i, forth and back in turn; beyond the case's rounds those of CLOSE only."""
    modes = tuple(name for name in case.modes if i < case.rounds or name in CLOSE)
    return modes[:: -1 if i % 2 else 1]


def _profiled(case: Case, device: str) -> list[str]:
    """Modes whose time outside of model calls takes a run of its own: on CUDA, where the host must wait at each edge of them."""
    return [name for name in case.modes if not _is_reverse(MODES[name])] if device == "cuda" else []


def _is_reverse(mode) -> bool:
    return mode.alone or (mode.inputs or {}).get("engine") == "reverse"


class Bench:
    """A case ready to be sampled: the models of all modes. `subject`: the built model, if it is at hand."""

    def __init__(self, case: Case, pack, device: str, subject=None, progress=lambda title: None):
        self.case, self.device, self.progress = case, device, progress
        self.subject = build(case.network, pack, getattr(torch, case.dtype)) if subject is None else subject
        self.prepared = {name: _guided(pack, self.subject, name) for name in case.modes}
        self.notes = {name: [] for name in case.modes}

    def sampled(self, name: str, steps: int, **what) -> Stopwatch:
        """One sampling run of a mode, measured."""
        self.progress(f"{self.case.name}: {name}")
        model, trace = self.prepared[name]
        watch = Stopwatch(self.device, self.subject.weights, **what)
        sample(self.case, self.subject, watch.attach(model), steps)
        self.notes[name] += [note for note in _fallbacks(trace) if note not in self.notes[name]]
        return watch

    def memory(self) -> dict:
        """What a run of each mode allocates and reads; {mode: dictionary}. It warms up what is timed after it."""
        steps, found = self.case.memory_steps, {}
        sample(self.case, self.subject, self.subject.patcher, 1)  # what the first run of a process allocates for good is nobody's peak
        for name in self.case.modes:
            watch = self.sampled(name, steps, memory=CpuMemory() if self.device == "cpu" else CudaMemory(), count=True)
            waits = None if watch.waits is None else watch.waits / steps
            found[name] = {"activations": watch.peak, "peak": watch.whole, "reads": watch.reads / steps, "waits": waits, "cleared": watch.cleared}
        base = found[CFG]
        return {name: _against_plain(own, base, MODES[name], self.case.compared, self.device) for name, own in found.items()}


def memory_of_case(case: Case, pack, device: str, subject=None, progress=lambda title: None) -> dict:
    """{mode: what `run_case` says of its memory}, with nothing timed."""
    return Bench(case, pack, device, subject, progress).memory()


def run_case(case: Case, pack, device: str, subject=None, progress=lambda title: None) -> dict:
    """All modes of a case. `subject`: the built model, if it is at hand. `progress(title)` is called before every run."""
    bench = Bench(case, pack, device, subject, progress)
    memory = bench.memory()
    found = {name: {"title": MODES[name].title, "own": [], "plain": []} for name in case.modes}
    for i in range(case.rounds + case.close):
        for name, (own, plain, rows, calls) in _round(bench, i).items():
            found[name]["own"].append(own)
            found[name]["plain"].append(plain)
            found[name] |= {"rows": rows, "calls": calls}
    profiled = {name: bench.sampled(name, case.steps, profile=True).own.per(case.steps) for name in _profiled(case, device)}
    for name, own in profiled.items():
        found[name]["profiled"] = own, profiled[CFG]
    modes = {name: _timed(found[name], MODES[name]) | memory[name] | {"notes": bench.notes[name]} for name in case.modes}
    return _description(case, bench.subject) | {"modes": modes}


def _round(bench: Bench, i: int) -> dict:
    """Machines drift within a minute: after every step or two of a mode the plain one is timed.
    {mode: (own and plain Times of a step, rows and calls of a step)}."""
    found = {}
    for name in _of_round(bench.case, i):
        steps, beside = (min(bench.case.steps, PLAIN_STEPS), 1) if name == CFG else (bench.case.steps, bench.case.beside)
        watch = bench.sampled(name, steps, beside=beside)
        found[name] = watch.own.per(steps), watch.plain.per(steps), watch.rows / bench.case.batch / steps, watch.calls / steps
    return found


def sample(case: Case, subject, model, steps: int) -> torch.Tensor:
    """One sampling run of ComfyUI's, in inference mode as nodes are: what KSampler does. Returns the latent."""
    import comfy.sample

    with torch.inference_mode():
        latent = torch.zeros(case.batch, *case.size)
        noise = comfy.sample.prepare_noise(latent, 0)
        prompts = subject.positive, subject.negative
        return comfy.sample.sample(model, noise, steps, case.cfg, case.sampler, case.scheduler, *prompts, latent, disable_pbar=True, seed=0)


def _guided(pack, subject, name):
    """(MODEL, trace or None) of a mode."""
    inputs = MODES[name].inputs
    if MODES[name].alone:
        return alone.rectified(subject.patcher, pack), None
    if inputs is None:
        return subject.patcher, None
    node = pack.nodes["REGGuidance"]
    given = {i.id: getattr(i, "default", None) for i in node.GET_SCHEMA().inputs if i.id != "model"}
    if inputs.get("form") == "calibrated":
        inputs = inputs | {"calibration": _table(pack)}
    if unknown := inputs.keys() - given.keys():
        raise ValueError(f"mode {name}: REGGuidance has no input {', '.join(sorted(unknown))}")
    with torch.inference_mode():
        model, trace = node.execute(subject.patcher, **given | inputs).result[:2]
        if MODES[name].backward == "auto":
            return model, trace
        rectified = pack.import_("nodes.hooks.rectified")
        [hook] = pack.import_("nodes.host.options").hooks_of(model, rectified.KEY)
        return rectified.rectified_model(subject.patcher, hook.settings, hook.percents, memory=MODES[name].backward)


def _table(pack):
    """A calibration table with the values of a unit Gaussian: what is in it makes no difference to the cost."""
    sigma = torch.logspace(-2, 2, 30)
    return pack.import_("reg_core.calibration").Calibration(sigma, 1 / (1 + sigma**2), torch.zeros(30), form="row_sum")


def _fallbacks(trace) -> list[str]:
    """What kept a mode from being what it says."""
    return [] if trace is None else list(trace.last.notes)


def _description(case: Case, subject) -> dict:
    keys = ("name", "title", "network", "size", "batch", "steps", "rounds", "close", "cfg", "sampler", "scheduler", "dtype", "memory_steps", "axis")
    return {key: getattr(case, key) for key in keys} | {"weights": subject.weights}


def _against_plain(own: dict, base: dict, mode, compared: bool, device: str) -> dict:
    """Memory and reads of a mode as they stand in the results: reads beyond those of plain guidance."""
    targets = {"time": mode.time.get(device), "memory": mode.memory.get(device)} if compared else {"time": None, "memory": None}
    return own | {
        "memory": own["peak"] / base["peak"],
        "reads": own["reads"] - base["reads"],
        "waits": None if own["waits"] is None else own["waits"] - base["waits"],
        "cleared": own["cleared"] - base["cleared"],
        "targets": targets,
    }


def _timed(found: dict, mode) -> dict:
    """Medians over the rounds of a mode, with the lowest and highest, beside the plain guidance of each round.

    `outside`: seconds outside of model calls beyond those of plain guidance, of a plain step; of the lowest round. None for
    reverse mode, whose backward pass is outside by nature.
    """
    own, plain = found["own"], found["plain"]
    step = statistics.median(times.wall for times in plain)

    def spread(values):
        return {"median": statistics.median(values), "low": min(values), "high": max(values)}

    def ratios(key):
        return spread([getattr(a, key) / getattr(b, key) for a, b in zip(own, plain, strict=True)])

    pairs = [found["profiled"]] if "profiled" in found else zip(own, plain, strict=True)
    outside = min(a.outside - b.outside for a, b in pairs)
    return {
        "title": found["title"],
        "seconds": spread([times.wall for times in own]),
        "plain": step,
        "time": ratios("wall"),
        "processor": ratios("processor"),  # tells less of the machine's other work, and nothing of a GPU
        "rows": found["rows"],
        "calls": found["calls"],
        "outside": None if _is_reverse(mode) else outside / step,
    }
