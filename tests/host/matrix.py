"""Writes docs/compatibility.md from what really ran: every family, form and engine, and every feature and engine, with both attentions.

    COMFYUI_PATH=/path/to/ComfyUI python tests/host/matrix.py [families] [features]

makes the sections of that ComfyUI's version anew (both, or the one named) and leaves those of other versions as they are.
The runs are tests below, under pytest for the sake of conftest.py; pytest does not collect them unless it is asked for this file.
"""

import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
PAGE = REPO / "docs" / "compatibility.md"
CELLS = "REG_MATRIX_CELLS"  # where the test below writes
PARTS = ("families", "features")
ATTENTIONS = ("sub_quad", "pytorch")
ENGINES = ("finite_difference", "reverse")
STEPS = 2
DENOISED, GUIDANCE, TRANSPARENT = 1e-5, 5e-2, 3e-6
ABSENT = "not in this ComfyUI"
TITLE = "# Compatibility\n"
WORDS = f"""## What a cell means

| cell | meaning |
| --- | --- |
| ok | The engine of that column worked in every model call, and the result is right. |
| falls back | Engine `reverse` does not work there. Finite differences took its place, and the result is right. The footnote and the trace say why. |
| no effect | REG changed nothing. The server log and the trace say why. |
| {ABSENT} | This ComfyUI has no such class or node. Or the network fails without REG, too. |
| fails | The result is wrong. The footnote says how. |

| column | meaning |
| --- | --- |
| differences, reverse | The engine. For families also the form. |
| transparent | How far latents move with REG at strength 1e-6, relative. It must stay below {TRANSPARENT:.0e} in float32. |
| rows together | How a probe runs. `three`: as a third row beside the two predictions. `one`: alone. `pairs only`: in a pair, as rows depend on each other. |
| adjoint error | How far `<u, J v>` by `torch.func.jvp` is from `<J^T u, v>` by reverse mode, relative, at one noise level. |
| J v error | How far `J v` by `torch.func.jvp` is from that of central differences, relative, at one noise level. |

A result of a family is right if it agrees with central differences of the sampler's pairs, which do not use REG's code. The positive
prediction may differ by {DENOISED:.0e}. The rectified guidance may differ by {GUIDANCE:.0e} of the guidance.

A result of a feature is right if latents are finite and REG changes them, but not at strength 1e-6.
Other tests in `tests/host` compare features with independent oracles.

## How it was run

- **Models** are of ComfyUI's classes, with few layers and random weights. So this page shows that REG runs. It does not show how good the pictures are.
- **Each cell** was sampled by a real KSampler or guider on a CPU: cfg 4, in inference mode, in float32 unless the row says otherwise.
- **Attention**: each cell ran with two kinds, sub-quadratic and PyTorch's. Errors are the worse of both.
- **Families** ran {STEPS} steps with batch 2, or batch 1 where the network takes one sample only.
- **Features** ran form `row_sum`, 2 to 8 steps. `tests/host/feature_*.py` says what each one is.
- **On a GPU** `tests/host/test_cuda.py` compares every family and engine in float32, float16 and bfloat16 with the same run on a CPU.
  It also covers weights in main memory, memory that runs out, and dynamic VRAM. On an H200 (PyTorch 2.11) all of it passed on ComfyUI 0.3.75.
  On 0.33.0 memory, dynamic VRAM and four families passed. Reverse mode has become simpler since, and was not run again there. No second GPU was tried.

`python tests/host/matrix.py` writes this page, one run for each ComfyUI version. Nobody edits it by hand.
"""


def test_families(host, pack):
    """Runs all families of one host and attention, and writes JSON."""
    from . import tiny, tiny_engines, truth

    families = {}
    for name, recipe in tiny.RECIPES.items():
        row = families[name] = {"class": recipe.config, "latent": _size(recipe.latent_shape), "cells": {}}
        if tiny.missing(name):
            continue
        t = tiny.build(name)
        row["sampling"] = t.patcher.model.model_type.name
        if recipe.dual:
            with contextlib.suppress(RuntimeError, ValueError):  # the cells below say why
                found = tiny_engines.products(pack, t)
                row["adjoint"], row["difference"] = found.adjoint, found.difference
        batch = tiny.batches(name)[-1]
        row["joined"] = _rows_together(pack, t, batch)
        row["transparent"] = _transparent(pack, t, batch)
        for engine in tiny_engines.ENGINES:
            for form in tiny_engines.FORMS:
                row["cells"][f"{engine} {form}"] = _verdict(truth.guided(pack, t, form, engine, batch=batch), engine)
    _write(host, "families", families)


def test_features(host, pack, all_nodes):
    """Runs all features of one host and attention, and writes JSON."""
    from . import features

    rows = {}
    for key in features.names():
        cells, moved = rows.setdefault(" | ".join(key), {}), {}
        try:
            setup = features.build(*key, features.world(host, pack, all_nodes))
            plain = setup.sample()
        except features.Missing:
            continue
        for engine in features.ENGINES:
            found = features.run(pack, setup, engine, plain=plain)
            cells[engine], moved[engine] = found.verdict, found.transparent
        cells["transparent"] = max(moved.values())
    _write(host, "features", rows)


def _size(shape) -> str:
    return " + ".join(map(_size, shape)) if isinstance(shape[0], tuple) else " x ".join(map(str, shape))


def _write(host, part, rows):
    import torch

    path = Path(os.environ[CELLS])
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    path.write_text(json.dumps(known | {"version": host.version, "torch": torch.__version__, part: rows}), encoding="utf-8")


def _verdict(found, engine):
    """Of a truth.Guided: ok only where D_c and R v are those of the sampler's own pairs."""
    run = found.trace.last
    why = "; ".join(dict.fromkeys([*run.notes, *(row.note for row in run.rows if row.note)]))
    if not found.denoised <= DENOISED or not found.guidance <= GUIDANCE:
        return f"fails: D_c is off by {found.denoised:.0e}, R v by {found.guidance:.0e}" + (f"; {why}" if why else "")
    return "ok" if {row.engine for row in run.active} == {engine} and not why else f"falls back: {why}"


def _transparent(pack, t, batch) -> float:
    """How far REG moves the latents at strength 1e-6, the worse of both engines."""
    from . import tiny, truth

    def sample(model):
        return tiny.packed(tiny.sample(t, model, steps=STEPS, batch=batch, sampler="dpmpp_2m"))

    return max(truth.transparency(pack, sample, t.patcher, *case) for case in (("row_sum", "finite_difference"), ("scalar", "reverse")))


def _rows_together(pack, t, batch) -> str:
    """What a run finds out: whether a third row beside the pair changes nothing, or else one pass by itself."""
    import torch

    from . import reg

    branches, levels = pack.import_("nodes.host.branches"), pack.import_("nodes.host.noise_levels")

    def look(guider, x, sigma, options):
        passes, conds = branches.Passes(), [guider.conds["positive"], guider.conds["negative"]]
        made = branches.ModelBranches(guider.inner_model, conds, x, sigma, options, passes)
        point = levels.point_at(guider.inner_model.model_sampling, x, sigma)
        made.both_and_probe(point, torch.full((len(x), *[1] * (x.ndim - 1)), 0.01) * point.s.max())
        own = {kind[0]: found for kind, found in passes.own.items()}
        return "three" if own.get("joined") else "one" if own.get("alone") else "pairs only"

    return reg.inside(t, look, batch=batch)


def section(runs: dict) -> str:
    """One host's families; `runs`: {attention: JSON of the tests above}."""
    first = next(iter(runs.values()))
    columns = list(next(row["cells"] for row in first["families"].values() if row["cells"]))
    notes, lines = [], []
    for name, row in first["families"].items():
        rows = [run["families"][name] for run in runs.values()]
        cells = [_cell(dict(zip(runs, (r["cells"].get(c) for r in rows), strict=True)), notes) for c in columns]
        errors = [f"{max(r[key] for r in rows):.0e}" if all(key in r for r in rows) else "" for key in ("adjoint", "difference", "transparent")]
        together = ", ".join(dict.fromkeys(r["joined"] for r in rows if "joined" in r))
        lines.append([name, row["class"], row.get("sampling", ""), row["latent"], *cells, errors[2], together, *errors[:2]])
    names = [c.replace("finite_difference", "differences") for c in columns]
    titles = ["family", "class", "sampling", "latent", *names, "transparent", "rows together", "adjoint error", "J v error"]
    return f"## ComfyUI {first['version']}\n\ntorch {first['torch']}; columns: engine and form.\n\n" + _table(titles, lines, notes)


def feature_section(runs: dict) -> str:
    """One host's features."""
    first, notes, lines = next(iter(runs.values())), [], []
    for name in first["features"]:
        verdicts = ({attention: run["features"][name].get(engine) for attention, run in runs.items()} for engine in ENGINES)
        moved = [run["features"][name]["transparent"] for run in runs.values() if "transparent" in run["features"][name]]
        lines.append([*name.split(" | "), *(_cell(v, notes) for v in verdicts), f"{max(moved):.0e}" if moved else ""])
    titles = ["kind", "feature", *(engine.replace("finite_difference", "differences") for engine in ENGINES), "transparent"]
    return f"## ComfyUI {first['version']}: features\n\ntorch {first['torch']}; columns: engine.\n\n" + _table(titles, lines, notes)


def _table(titles, lines, notes) -> str:
    table = ["| " + " | ".join(row) + " |" for row in [titles, ["---"] * len(titles), *lines]]
    return "\n".join([*table, "", *(f"{i}. {note}" for i, note in enumerate(notes, 1))]).rstrip() + "\n"


def _cell(verdicts: dict, notes: list) -> str:
    """A cell for both attentions; reasons become footnotes."""
    short = {}
    for attention, verdict in verdicts.items():
        if verdict is None:
            short[attention] = ABSENT
            continue
        kind, _, why = verdict.partition(": ")
        if why and why not in notes:
            notes.append(why)
        short[attention] = f"{kind} ({notes.index(why) + 1})" if why else kind
    if len(set(short.values())) == 1:
        return next(iter(short.values()))
    return ", ".join(f"{attention}: {text}" for attention, text in short.items())


def overview(sections: dict) -> str:
    """What a reader wants first, from the cells of the tables: which families ran on which ComfyUI, and what does not work."""
    ran, without = {}, {"fails": {}, "falls back": {}, "no effect": {}}
    for title, text in sections.items():
        version, features = re.match(r"## ComfyUI ([\d.]+)(: features)?", title).groups()
        for line in text.splitlines():
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            if not line.startswith("| ") or cells[0] in ("family", "kind", "---"):
                continue
            name = cells[1] if features else f"`{cells[0]}`"
            if not features:
                ran.setdefault(name, []).extend([] if ABSENT in line else [version])
            for verdict, names in without.items():
                if verdict in line:
                    names[name] = None
    hosts = list(dict.fromkeys(version for versions in ran.values() for version in versions))
    count = sum(map(bool, ran.values()))
    words = f"REG ran with {count} families of models, on ComfyUI {', '.join(hosts)}. The tables below hold every form, engine and feature.\n"
    lines = []
    for versions in dict.fromkeys(map(tuple, sorted(ran.values(), key=len, reverse=True))):
        names = " · ".join(name for name in ran if tuple(ran[name]) == versions)
        lines.append([f"families that ran on {', '.join(versions) or 'none'}" + " only" * (0 < len(versions) < len(hosts)), names])
    titles = {"fails": "fails", "falls back": "engine `reverse` does not work, finite differences do", "no effect": "REG has nothing to do"}
    lines += [[title, " · ".join(without[verdict]) or "nothing"] for verdict, title in titles.items()]
    return words + "\n" + _table(["what", "which"], lines, [])


def page(sections: dict) -> str:
    """The whole page: families before features, newest host first."""

    def order(title):
        return ("features" not in title, [int(n) for n in re.findall(r"\d+", title)])

    sections = {title: sections[title] for title in sorted(sections, key=order, reverse=True)}
    return "\n".join([TITLE, overview(sections), WORDS, *sections.values()])


def sections_of(text: str) -> dict:
    """{title: section} of the tables in a page."""
    found = re.findall(r"(?ms)^## ComfyUI .*?(?=^## |\Z)", text)
    return {section.splitlines()[0]: section.rstrip() + "\n" for section in found}


def run_host(parts) -> dict:
    """The tests in a process for each attention: ComfyUI chooses its attention once, at import."""
    runs = {}
    for attention in ATTENTIONS:
        with tempfile.TemporaryDirectory() as folder:
            cells = Path(folder) / "cells.json"
            env = os.environ | {CELLS: str(cells), "REG_TEST_ATTENTION": attention}
            tests = [f"{Path(__file__).resolve()}::test_{part}" for part in parts]
            options = ["-q", "-o", "timeout=0", "-p", "no:logging"]  # each is one long test, and compilers log much
            subprocess.run([sys.executable, "-m", "pytest", *options, *tests], cwd=REPO, env=env, check=True)
            runs[attention] = json.loads(cells.read_text(encoding="utf-8"))
    return runs


def main(parts) -> None:
    unknown = set(parts) - set(PARTS)
    if unknown:
        sys.exit(f"want {' or '.join(PARTS)}, got {', '.join(sorted(unknown))}")
    runs = run_host(parts)
    new = [make(runs) for part, make in zip(PARTS, (section, feature_section), strict=True) if part in parts]
    sections = sections_of(PAGE.read_text(encoding="utf-8")) if PAGE.exists() else {}
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(sections | sections_of("\n".join(new))), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:] or PARTS)
