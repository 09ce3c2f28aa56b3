"""Runs a case: every mode in turn, several rounds, one process. Gives plain dictionaries for JSON."""

from __future__ import annotations

import statistics

import torch

from .meters import CpuMemory, CudaMemory, Stopwatch
from .models import build
from .suites import CFG, MODES, Case


def runs_of(case: Case, device: str) -> int:
    """Sampling runs in `run_case`: the rounds for memory, on CUDA one to profile, and the timed ones, each with a second plain run."""
    return len(case.modes) * (case.rounds + case.memory_rounds + (device == "cuda")) + case.rounds


def run_case(case: Case, pack, device: str, subject=None, progress=lambda title: None) -> dict:
    """All modes of a case. `subject`: the built model, if it is at hand. `progress(title)` is called before every run."""
    subject = build(case.network, pack, getattr(torch, case.dtype)) if subject is None else subject
    prepared = {name: _guided(pack, subject, name) for name in case.modes}
    memory = CpuMemory() if device == "cpu" else CudaMemory()
    found = {name: {"title": MODES[name].title, "seconds": [], "processor": [], "outside": [], "notes": []} for name in case.modes}

    def sampled(name, steps, **what):
        progress(f"{case.name}: {name}")
        model, trace = prepared[name]
        watch = Stopwatch(device, subject.weights, **what)
        sample(case, subject, watch.attach(model), steps)
        found[name]["notes"] += [note for note in _fallbacks(trace) if note not in found[name]["notes"]]
        return watch

    sample(case, subject, subject.patcher, 1)  # what the first run of a process allocates for good is nobody's peak
    for name in case.modes * case.memory_rounds:  # these rounds measure memory, and warm up
        with memory:
            watch = sampled(name, case.memory_steps, memory=memory, count=True)
        found[name] |= {key: min(found[name].get(key, value), value) for key, value in (("activations", watch.peak), ("peak", watch.whole))}
        found[name] |= {"reads": watch.reads / case.memory_steps, "waits": watch.waits and watch.waits / case.memory_steps, "cleared": watch.cleared}
    for name in case.modes if device == "cuda" else ():
        found[name]["outside"].append(_outside(sampled(name, case.steps, profile=True), name, case))
    others = [name for name in case.modes if name != CFG]
    for i in range(case.rounds):
        plain = []
        for name in (CFG, *others[:: -1 if i % 2 else 1], CFG):  # back and forth, plain at both ends: a drift of the machine falls on all alike
            watch = sampled(name, case.steps)
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
    return _description(case, subject) | {"modes": {name: _summed_up(found[name], found[CFG], MODES[name], device, case.compared) for name in case.modes}}


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


def _summed_up(own: dict, base: dict, mode, device: str, compared: bool = True) -> dict:
    """Medians with the lowest and highest round. A ratio is that of the medians, beside the lowest and highest of a round:
    one plain run that was lucky would otherwise stand in the ratio of every mode of its round."""

    def spread(values):
        return {"median": statistics.median(values), "low": min(values), "high": max(values)}

    def ratio(key):
        return None if own[key] is None else own[key] / base[key]

    def by_round(key):
        rounds = [a / b for a, b in zip(own[key], base[key], strict=True)]
        return {"median": statistics.median(own[key]) / statistics.median(base[key]), "low": min(rounds), "high": max(rounds)}

    step = statistics.median(base["seconds"])
    result = {
        "title": own["title"],
        "seconds": spread(own["seconds"]),
        "time": by_round("seconds"),
        "processor": by_round("processor"),  # tells less of the machine's other work, and nothing of a GPU
        "peak": own["peak"],
        "activations": own["activations"],
        "memory": ratio("peak"),
        "rows": own["rows"],
        "calls": own["calls"],
        "reads": own["reads"] - base["reads"],
        "waits": None if own["waits"] is None else own["waits"] - base["waits"],
        "cleared": own["cleared"] - base["cleared"],
        "outside": None if None in own["outside"] else (min(own["outside"]) - min(base["outside"])) / step,
        "notes": own["notes"],
        "targets": {"time": mode.time.get(device) if compared else None, "memory": mode.memory.get(device) if compared else None},
    }
    return result
