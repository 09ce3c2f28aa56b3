"""Measures what REG costs here and writes docs/cost.md, its plot, and benchmarks/results/<suite>.json.

    python -m benchmarks                   the CUDA suite where there is a CUDA device, else the CPU suite
    python -m benchmarks --suite tiny      all of it on toys, in seconds: is the machinery sound?
    python -m benchmarks --case sd15_v_256 one case only, printed and not kept (--keep: kept in place of the old)
    python -m benchmarks --memory          memory of the kept results again (it does not vary as times do), and the page
    python -m benchmarks --page            the page again, from the results that are there

Every mode is sampled in turn, in one process; what was measured is kept after every case. A CUDA machine needs ComfyUI's
tree (COMFYUI_PATH), torch, and what `python -m benchmarks --imports` lists. `nox -s bench` is the same with an environment.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import re
import sys
import time
from pathlib import Path

import torch
from tqdm import tqdm

from . import host, report
from .measure import memory_of_case, run_case, runs_of
from .models import build
from .suites import SUITES

REPO = Path(__file__).resolve().parents[1]
RESULTS = REPO / "benchmarks" / "results"


def machine(device: str) -> dict:
    """What the figures depend on, in words that name no machine of anybody's."""
    import comfyui_version

    cpu = re.search(r"model name\s*: (.*)", _read("/proc/cpuinfo"))
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else (cpu[1].strip() if cpu else platform.processor() or platform.machine()),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "comfyui": comfyui_version.__version__,
        "python": platform.python_version(),
        "date": datetime.date.today().isoformat(),
    }


def _read(path):
    return Path(path).read_text() if Path(path).exists() else ""


def run(suite: str, cases, device: str, memory_only: bool = False, keep=lambda result: None) -> dict:
    """The whole suite; models are built once for cases in a row that share one. `memory_only`: a case has its name and `modes` only.
    `keep(result)` is called before the first case and after every one, with what there is so far."""
    pack = host.start(cpu=device == "cpu")
    result = {"suite": suite, "kind": device, "machine": machine(device), "cases": []}
    keep(result)
    subject = key = None
    with tqdm(total=sum(runs_of(case, device, memory_only) for case in cases), unit="run") as bar:

        def progress(title):
            bar.set_description(title)
            bar.update()

        for case in cases:
            begin = time.perf_counter()
            if key != (case.network, case.dtype):
                subject = None  # let go of the last one before the next is made
                _unload()
                subject, key = build(case.network, pack, getattr(torch, case.dtype)), (case.network, case.dtype)
            if memory_only:
                found = {"name": case.name, "memory_steps": case.memory_steps, "modes": memory_of_case(case, pack, device, subject, progress)}
            else:
                found = run_case(case, pack, device, subject, progress)
                found["minutes"] = (time.perf_counter() - begin) / 60
            result["cases"].append(found)
            keep(result)
    return result


def _unload():
    import comfy.model_management

    comfy.model_management.unload_all_models()


def main(given=None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", choices=SUITES, default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--case", action="append", help="only this case of the suite (may be given again); keeps nothing")
    parser.add_argument("--keep", action="store_true", help="with --case: put it in the place of the same case in the kept results")
    parser.add_argument("--memory", action="store_true", help="measure the memory of kept cases again (all, or those of --case) and keep it")
    parser.add_argument("--mode", action="append", help="with --case: only these modes beside plain guidance")
    parser.add_argument("--steps", type=int, help="with --case: so many steps")
    parser.add_argument("--rounds", type=int, help="with --case: so many rounds")
    parser.add_argument("--out", type=Path, help="a folder for the page, plot and results, in place of the repository's")
    parser.add_argument("--page", action="store_true", help="write the page from kept results, measure nothing")
    parser.add_argument("--imports", action="store_true", help="list the distributions that a machine needs, measure nothing")
    given = parser.parse_args(given)
    if given.imports:
        host.start(cpu=not torch.cuda.is_available())
        print("\n".join(host.imported()))
        return 0
    results, docs = (given.out, given.out) if given.out else (RESULTS, REPO / "docs")
    if not given.page:
        try:
            cases = _chosen(given)
        except ValueError as error:
            parser.error(str(error))
        device = "cuda" if given.suite == "cuda" else "cpu"
        path = results / f"{given.suite}.json"
        before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
        keeps = given.keep or given.memory or not (given.case or (given.suite == "tiny" and not given.out))  # toys' figures are nobody's
        if given.memory:
            if before is None:
                parser.error(f"--memory: no results in {path.parent}: measure the suite first")
            cases = [case for case in cases if case.name in [kept["name"] for kept in before["cases"]]]

        def keep(result):
            if result["cases"] and not given.memory:
                tqdm.write("\n".join(report.table(result["cases"][-1], device)) + "\n")
            if keeps:
                merged = _merged(before, result, given)  # refuses before anything is measured
                results.mkdir(parents=True, exist_ok=True)
                if result["cases"]:
                    path.write_text(json.dumps(merged, indent=1) + "\n", encoding="utf-8")

        run(given.suite, cases, device, given.memory, keep)
        if not keeps:
            return 0
    print(report.write(results, docs))
    return 0


def _merged(kept: dict | None, new: dict, given) -> dict:
    """The kept results with what is new in them. Raises ValueError where the two do not go together."""
    if given.memory:
        return _with_memory(kept, new)
    if kept is None or (not given.case and _differing(kept, new)):
        return new  # the first, or a whole suite on another machine
    return _replaced(kept, new)


def _differing(kept: dict, new: dict) -> list[str]:
    return [key for key in new["machine"] if key != "date" and kept["machine"][key] != new["machine"][key]]


def _same_machine(kept: dict, new: dict, option: str):
    if differing := _differing(kept, new):
        raise ValueError(f"{option}: the kept results have another {', '.join(differing)}: measure the whole suite")


def _with_memory(kept: dict, new: dict) -> dict:
    """The kept results with memory and reads of the new cases. Raises ValueError when machine or modes are others."""
    _same_machine(kept, new, "--memory")
    found = {case["name"]: case for case in new["cases"]}
    for case in kept["cases"]:
        again = found.get(case["name"], {"modes": case["modes"], "memory_steps": case["memory_steps"]})
        if list(again["modes"]) != list(case["modes"]):
            raise ValueError(f"--memory: {case['name']} was kept with {', '.join(case['modes'])}: measure it again with --keep")
        case["memory_steps"] = again["memory_steps"]
        for name, mode in case["modes"].items():
            mode |= again["modes"][name]
    return kept


def _replaced(kept: dict, new: dict) -> dict:
    """The kept results with the new cases in place of the old. Raises ValueError when they come from different machines."""
    _same_machine(kept, new, "--keep")
    cases = {case["name"]: case for case in kept["cases"]} | {case["name"]: case for case in new["cases"]}
    order = [case.name for case in SUITES[kept["suite"]]]
    ordered = sorted((case for case in cases.values() if case["name"] in order), key=lambda case: order.index(case["name"]))
    return kept | {"machine": new["machine"], "cases": ordered}


def _chosen(given):
    if given.suite == "cuda" and not torch.cuda.is_available():
        raise ValueError("--suite cuda: PyTorch sees no CUDA device here")
    cases = SUITES[given.suite]
    if given.memory and (given.keep or given.mode or given.steps or given.rounds or given.suite == "tiny"):
        raise ValueError("--memory goes with --case and --suite alone, and toys keep no results")
    if given.keep and not given.case:
        raise ValueError("--keep goes with --case: a whole suite is always kept")
    if given.case:
        known = [case.name for case in cases]
        if unknown := set(given.case) - set(known):
            raise ValueError(f"--case: no {', '.join(sorted(unknown))} in suite {given.suite}, which has {', '.join(known)}")
        cases = [case for case in cases if case.name in given.case]
    return [_cut(case, given) for case in cases]


def _cut(case, given):
    from dataclasses import replace

    from .suites import CFG, MODES

    if (given.mode or given.steps or given.rounds) and (given.keep or not given.case):
        raise ValueError("--mode, --steps and --rounds go with --case and not with --keep: a kept table has them all")
    if unknown := set(given.mode or ()) - MODES.keys():
        raise ValueError(f"--mode: no {', '.join(sorted(unknown))}, there is {', '.join(MODES)}")
    for name in ("steps", "rounds"):
        if (number := getattr(given, name)) is not None and number < 1:
            raise ValueError(f"--{name} must be 1 or more, got {number}")
    modes = case.modes if not given.mode else (CFG, *(name for name in MODES if name in given.mode and name != CFG))
    close = 0 if given.rounds else case.close
    return replace(case, modes=modes, steps=given.steps or case.steps, rounds=given.rounds or case.rounds, close=close)


if __name__ == "__main__":
    sys.exit(main())
