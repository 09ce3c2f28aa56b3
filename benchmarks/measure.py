"""Runs a case: every mode in turn, several rounds, one process. Gives plain dictionaries for JSON."""

from __future__ import annotations

import statistics

import torch

from .meters import CpuMemory, CudaMemory, Stopwatch
from .models import build
from .suites import CFG, MODES, Case


def runs_of(case: Case, device: str, memory_only: bool = False) -> int:
    """Sampling runs in `run_case`: one for memory, on CUDA one to profile, and the timed ones, each with a second plain run."""
    return len(case.modes) * (1 if memory_only else case.rounds + 1 + (device == "cuda")) + (0 if memory_only else case.rounds)


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
        return {name: _beside(own, base, MODES[name], self.case.compared, self.device) for name, own in found.items()}


def memory_of_case(case: Case, pack, device: str, subject=None, progress=lambda title: None) -> dict:
    """{mode: what `run_case` says of its memory}, with nothing timed."""
    return Bench(case, pack, device, subject, progress).memory()


def run_case(case: Case, pack, device: str, subject=None, progress=lambda title: None) -> dict:
    """All modes of a case. `subject`: the built model, if it is at hand. `progress(title)` is called before every run."""
    bench = Bench(case, pack, device, subject, progress)
    memory = bench.memory()
    found = {name: {"title": MODES[name].title, "seconds": [], "processor": [], "outside": []} for name in case.modes}
    for name in case.modes if device == "cuda" else ():
        found[name]["outside"].append(_outside(bench.sampled(name, case.steps, profile=True), name, case))
    others = [name for name in case.modes if name != CFG]
    for i in range(case.rounds):
        plain = []
        for name in (CFG, *others[:: -1 if i % 2 else 1], CFG):  # back and forth, plain at both ends: a drift of the machine falls on all alike
            watch = bench.sampled(name, case.steps)
            found[name] |= {"rows": watch.rows / case.batch / case.steps, "calls": watch.calls / case.steps}
            if device == "cpu":
                found[name]["outside"].append(_outside(watch, name, case))
            if name == CFG:
                plain.append(watch)
                continue
            found[name]["seconds"].append(watch.seconds / case.steps)
            found[name]["processor"].append(watch.processor / case.steps)
        found[CFG]["seconds"].append(sum(watch.seconds for watch in plain) / 2 / case.steps)
        found[CFG]["processor"].append(sum(watch.processor for watch in plain) / 2 / case.steps)
    modes = {name: _timed(found[name], found[CFG]) | memory[name] | {"notes": bench.notes[name]} for name in case.modes}
    return _description(case, bench.subject) | {"modes": modes}


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
    if inputs is None:
        return subject.patcher, None
    node = pack.nodes["REGGuidance"]
    given = {i.id: getattr(i, "default", None) for i in node.GET_SCHEMA().inputs if i.id != "model"}
    if inputs.get("form") == "calibrated":
        inputs = inputs | {"calibration": _table(pack)}
    if unknown := inputs.keys() - given.keys():
        raise ValueError(f"mode {name}: REGGuidance has no input {', '.join(sorted(unknown))}")
    with torch.inference_mode():
        return node.execute(subject.patcher, **given | inputs).result[:2]


def _table(pack):
    """A calibration table with the values of a unit Gaussian: what is in it makes no difference to the cost."""
    sigma = torch.logspace(-2, 2, 30)
    return pack.import_("reg_core.calibration").Calibration(sigma, 1 / (1 + sigma**2), torch.zeros(30), form="row_sum")


def _fallbacks(trace) -> list[str]:
    """What kept a mode from being what it says."""
    return [] if trace is None else list(trace.last.notes)


def _outside(watch, name, case) -> float | None:
    """Seconds a step outside of model calls; None for reverse mode, whose backward pass is outside of them by nature."""
    if (MODES[name].inputs or {}).get("engine") == "reverse":
        return None
    return (watch.seconds - watch.inside) / case.steps


def _description(case: Case, subject) -> dict:
    keys = ("name", "title", "network", "size", "batch", "steps", "rounds", "cfg", "sampler", "scheduler", "dtype", "memory_steps", "axis")
    return {key: getattr(case, key) for key in keys} | {"weights": subject.weights}


def _beside(own: dict, base: dict, mode, compared: bool, device: str) -> dict:
    """Memory and reads of a mode as they stand in the results: reads beyond those of plain guidance."""
    targets = {"time": mode.time.get(device), "memory": mode.memory.get(device)} if compared else {"time": None, "memory": None}
    return own | {
        "memory": own["peak"] / base["peak"],
        "reads": own["reads"] - base["reads"],
        "waits": None if own["waits"] is None else own["waits"] - base["waits"],
        "cleared": own["cleared"] - base["cleared"],
        "targets": targets,
    }


def _timed(own: dict, base: dict) -> dict:
    """Medians with the lowest and highest round. A ratio is that of the medians, beside the lowest and highest of a round:
    one plain run that was lucky would otherwise stand in the ratio of every mode of its round."""

    def spread(values):
        return {"median": statistics.median(values), "low": min(values), "high": max(values)}

    def by_round(key):
        rounds = [a / b for a, b in zip(own[key], base[key], strict=True)]
        return {"median": statistics.median(own[key]) / statistics.median(base[key]), "low": min(rounds), "high": max(rounds)}

    step = statistics.median(base["seconds"])
    return {
        "title": own["title"],
        "seconds": spread(own["seconds"]),
        "time": by_round("seconds"),
        "processor": by_round("processor"),  # tells less of the machine's other work, and nothing of a GPU
        "rows": own["rows"],
        "calls": own["calls"],
        "outside": None if None in own["outside"] else (min(own["outside"]) - min(base["outside"])) / step,
    }
