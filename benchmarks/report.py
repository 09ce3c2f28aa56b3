"""The page about cost, from the results that are kept: nothing on it is typed in by hand."""

from __future__ import annotations

import json
from pathlib import Path

from reg_core.drawing import form_color

from .suites import CFG, CLOSE, MODES

# Stated by the authors of REG for their own code, each as a ratio to plain guidance, and SDXL at 1024 in GB.
AUTHORS_TIME, AUTHORS_MEMORY, AUTHORS_SDXL = (1.21, 1.88), (1.21, 2.82), (6.91, 19.49)
GB, MB = 1e9, 1e6
KINDS = ("cuda", "cpu", "tiny")

TITLE = "# What REG costs\n"
HOW = """## How it was measured

Made by `nox -s bench` (`python -m benchmarks`), which also keeps the figures as JSON in `benchmarks/results/`. Nobody edits this page by hand.

- **One process, modes in turn.** Every mode is a whole sampling run of ComfyUI (KSampler's call, in inference mode, with the pack loaded).
  Model, noise, sampler and steps are the same. Rounds go back and forth through the modes.
  Each figure is the **median** of the rounds' ratios (lowest to highest).
- **Beside plain guidance.** Machines drift within a minute. So plain guidance is timed within the same run, after every first, second or fourth step,
  on the same latent. Of predictions with the same number of rows the median counts, as a ratio to the plain one beside it.
  The time of plain guidance beside itself is the noise. On CUDA, marks in the stream time the predictions, and nothing waits for them.
- **Time** is the sampler's loop by the clock on the wall, without loading. **Processor** is the same ratio in processor time.
  Where the two differ, other work ran on the machine.
- **Peak memory** is that of the weights and of all that is added during the run. *Activations* is what is added. It is measured
  in another run, so that measuring slows nothing. It is the most that PyTorch's allocator gives out. On a CPU PyTorch's profiler says how much.
- **Rows** are rows of the model's batch for each image and step, forward passes only. Plain guidance takes 2.
- **Outside** is the time that REG spends outside of model calls, beyond that of plain guidance. It is a share of a plain step, in the lowest round.
  Reverse mode has no such figure: its backward pass is outside of model calls.
- **Reads** are the reads of tensor values by the host for each step, beyond those of plain guidance. On a GPU each waits for the device.
  **Waits** are the waits that CUDA reports.
- **By PyTorch alone** is no mode of the pack. It makes two predictions and calls `torch.autograd.grad` through ComfyUI's model (`benchmarks/alone.py`).
  It has no self-check, no bound on memory and no trace, and its weights are made ordinary once. It is the least that reverse mode could cost here.
  The pack's reverse mode costs more because it has these. The self-check is a further row in one or two of the steps.
- **Default refresh** computes a correction at every eighth call at least, and where the noise has fallen to a tenth. In between every engine reuses
  it. This is the cost of reverse mode if you change nothing else. Rows that do not say so compute a correction at every call.
- **Random weights.** The large models have random weights, and the arithmetic of a checkpoint. How much is skipped depends on the Jacobian. To see
  that, look at v prediction, where the random network is close to a denoiser, and at the digits, which are trained. A random eps network has J near
  the identity at all noise levels, so nothing is skipped.
- **over** marks a target that is missed.
"""


def write(results: Path, docs: Path) -> str:
    """docs/cost.md and its plots from results/*.json; returns a line that says so. Raises FileNotFoundError without results."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(results.glob("*.json"))]
    found.sort(key=lambda result: KINDS.index(result["suite"]))
    if not found:
        raise FileNotFoundError(f"no results in {results}: run the benchmark first")
    page = [TITLE, verdict(found), summary(found), HOW]
    for result in found:
        page.append(section(result))
        picture = plot(result, docs / "images")
        if picture:
            page.append(f"![Cost against latent size, batch and steps](images/{picture.name})\n")
    if not any(result["suite"] == "cuda" for result in found):
        page.append("## CUDA\n\nNot measured yet. `python -m benchmarks` measures it where PyTorch sees a GPU.\n")
    (docs / "cost.md").write_text("\n".join(page), encoding="utf-8")
    return f"wrote {docs / 'cost.md'}"


SHORT = (
    "schedule",
    "calibrated",
    "default",
    "skipping",
    "every_call",
    "reverse_checkpoint",
    "reverse_resident",
    "reverse_alone",
    "reverse_refreshed",
)


# What a user asks for first: the words, the mode, time or memory.
QUESTIONS = (
    ("`schedule`, no extra evaluation: time", "schedule", "time"),
    ("the default (`row_sum`): time", "default", "time"),
    ("the default: peak memory", "default", "memory"),
    ("the default with `skip_below` 0.05: time", "skipping", "time"),
    ("engine `reverse`, refresh 1, as in the paper: time", "reverse_checkpoint", "time"),
    ("engine `reverse`, refresh 1: peak memory", "reverse_checkpoint", "memory"),
)
BATCHES = (("batch 1", lambda batch: batch == 1), ("larger batches", lambda batch: batch > 1))


def verdict(results: list[dict]) -> str:
    """The first table: lowest to highest over the models, for each kind of machine and batch; and what the authors state."""
    groups = []
    for result in results:
        for words, inside in BATCHES:
            cases = [case for case in result["cases"] if not case["axis"] and inside(case["batch"]) and _compared(case)]
            if cases:
                groups.append((f"{result['machine']['device']}, {words}", cases))
    rows = [["as multiples of plain guidance", *(name for name, _ in groups)]]
    rows.append(["---"] * len(rows[0]))
    for words, mode, what in QUESTIONS:
        cells = []
        for _, cases in groups:
            found = [case["modes"][mode] for case in cases if mode in case["modes"]]
            values = sorted(m["time"]["median"] if what == "time" else m["memory"] for m in found if what == "time" or m["memory"] is not None)
            ends = dict.fromkeys(f"{value:.2f}" for value in (values[:1] + values[-1:]))
            cells.append(" to ".join(ends))
        rows.append([words, *cells])
    stated = (
        f"The authors state {AUTHORS_TIME[0]} to {AUTHORS_TIME[1]} times the time and {AUTHORS_MEMORY[0]} to {AUTHORS_MEMORY[1]} times the peak memory, "
        f"on an NVIDIA A40 over all their models. For SDXL at 1024 px they state {AUTHORS_SDXL[0]} to {AUTHORS_SDXL[1]} GB. "
        "Their method is `reverse` here, at refresh 1."
    )
    others = [case for result in results for case in result["cases"] if case["axis"] or not _compared(case)]
    if most := [case["modes"]["default"]["time"]["median"] for case in others if "default" in case["modes"]]:
        stated += f" The table leaves out autoguidance and the sweeps over size, batch and steps. There the default takes up to {max(most):.2f}."
    return "\n".join([*("| " + " | ".join(row) + " |" for row in rows), "", stated, ""])


def _compared(case: dict) -> bool:
    """False where plain guidance is not two rows of one model."""
    return any(mode["targets"]["time"] is not None for mode in case["modes"].values())


def summary(results: list[dict]) -> str:
    """All cases in one table: time and peak memory of the usual modes."""
    lines = []
    for result in results:
        for case in result["cases"]:
            if not case["axis"]:
                cells = [case["modes"].get(name) for name in SHORT]
                cells = ["" if mode is None else f"{mode['time']['median']:.2f}, {_number(mode['memory'])}" for mode in cells]
                lines.append([result["machine"]["device"], case["title"], *cells])
    titles = ["machine", "model", *(MODES[name].title for name in SHORT)]
    rows = [titles, ["---"] * len(titles), *lines]
    return "\n".join(["## Every model", "", "Time and peak memory, as multiples of plain guidance:", "", *("| " + " | ".join(row) + " |" for row in rows), ""])


def section(result: dict) -> str:
    """One suite: the machine, then a table for each model."""
    about = result["machine"]
    taken = [case.get("minutes") for case in result["cases"]]
    minutes = f"; {sum(taken):.0f} minutes" if None not in taken else ""
    threads = f", {about['threads']} threads" if result["kind"] == "cpu" else ""
    lines = [f"## {about['device']}{threads}", ""]
    lines += [f"torch {about['torch']}, ComfyUI {about['comfyui']}, Python {about['python']}, {about['date']}{minutes}.", ""]
    lines += [*(line for note in result.get("remarks", ()) for line in (note, ""))]  # written into the results by hand
    for case in result["cases"]:
        if not case["axis"]:
            lines += [*table(case, result["kind"]), ""]
    scaled = [case for case in result["cases"] if case["axis"]]
    if scaled:
        lines += ["### Against latent size, batch and steps", "", _scaling_words(scaled), "", *_scaling_table(scaled), ""]
    return "\n".join(lines)


def table(case: dict, kind: str) -> list[str]:
    """The Markdown table of one case, with its heading and footnotes."""
    waits, processor = (["waits"], []) if kind == "cuda" else ([], ["processor"])
    titles = ["mode", "s/step", "time", "at most", *processor, "peak memory", "ratio", "at most", "activations", "rows", "outside", "reads", *waits]
    rows, notes = [], []
    for name, mode in case["modes"].items():
        marks = "".join(f" ({_footnote(notes, note)})" for note in mode["notes"])
        cells = [MODES[name].title + marks, _seconds(mode["seconds"]), _spread(mode["time"])]
        cells += [_target(mode, "time", mode["time"]["median"]), *(f"{mode['processor']['median']:.2f}" for _ in processor)]
        cells += [_memory(mode["peak"], GB), _number(mode["memory"])]
        cells += [_target(mode, "memory", mode["memory"]), _memory(mode["activations"], MB), f"{mode['rows']:.2f}"]
        cells += ["" if mode["outside"] is None or name == CFG else f"{100 * mode['outside']:.2f} %", f"{mode['reads']:.1f}"]
        rows.append(cells + [f"{mode['waits']:.1f}" for _ in waits])
    if case["network"].startswith("sd"):
        rows.append(_authors(case, len(titles), bool(processor)))
    words = (
        f"{case['sampler']}, {case['scheduler']}, {case['steps']} steps, cfg {case['cfg']:g}, {case['dtype']}. "
        f"Latent {' x '.join(map(str, (case['batch'], *case['size'])))}, weights {case['weights'] / GB:.2f} GB. {_rounds(case)}."
    )
    lines = [titles, ["---"] * len(titles), *rows]
    return [f"### {case['title']}", "", words, "", *("| " + " | ".join(line) + " |" for line in lines), *_listed(notes)]


def _rounds(case):
    if not case.get("close"):
        return f"{case['rounds']} round" + "s" * (case["rounds"] > 1)
    titles = "; ".join(MODES[name].title for name in CLOSE if name in case["modes"])  # which have commas in them
    return f"{case['rounds']} rounds, and {case['rounds'] + case['close']} of these modes: {titles}"


def _authors(case, columns, processor):
    """What the authors state, as a row of the table."""
    sdxl = case["network"].startswith("sdxl") and case["size"][-1] == 128
    low, high = AUTHORS_SDXL if sdxl else AUTHORS_MEMORY
    memory = [f"{high} GB ({low} GB)", f"{high / low:.2f}"] if sdxl else ["", f"{low} to {high}"]
    row = ["*the authors' code, as they state, on an A40*", "", "{} to {}".format(*AUTHORS_TIME), "", *([""] if processor else []), *memory]
    return row + [""] * (columns - len(row))


def _footnote(notes, note):
    if note not in notes:
        notes.append(note)
    return notes.index(note) + 1


def _listed(notes):
    return ["", *(f"{i}. {note}" for i, note in enumerate(notes, 1))] if notes else []


def _target(mode, what, value):
    """The highest ratio wanted, and whether it was missed."""
    most = mode["targets"][what]
    if most is None or value is None:
        return ""
    return f"{most:.2f}" if value <= most else f"{most:.2f} **over**"


def _number(value):
    return "not measured" if value is None else f"{value:.2f}"


def _memory(value, unit):
    return "not measured" if value is None else f"{value / unit:.2f} GB" if unit == GB else f"{value / unit:.0f} MB"


def _spread(ratio):
    low, high = f"{ratio['low']:.2f}", f"{ratio['high']:.2f}"
    return f"**{ratio['median']:.2f}**" + (f" ({low} to {high})" if low != high else "")


def _seconds(spread):
    value = spread["median"]
    return f"{value:.2f}" if value >= 1 else f"{value:.4f}"


# Scaling


def _scaling_words(cases):
    first = cases[0]
    words = f"{first['network']}, {first['sampler']}, {first['scheduler']}, {first['steps']} steps unless said"
    return f"{words}; time and peak memory as ratios to plain guidance."


def _scaling_table(cases):
    names = [name for name in MODES if name != CFG and any(name in case["modes"] for case in cases)]
    rows = [["", "plain s/step", *(MODES[name].title for name in names)], ["---"] * (2 + len(names))]
    for case in cases:
        row = [f"{case['axis']} {_position(case)}", _seconds(case["modes"][CFG]["seconds"])]
        for name in names:
            mode = case["modes"].get(name)
            row.append("" if mode is None else f"{mode['time']['median']:.2f}, {_number(mode['memory'])}")
        rows.append(row)
    return ["| " + " | ".join(row) + " |" for row in rows]


def _position(case):
    """Where a case stands on its axis: pixels, images or steps."""
    return {"size": case["size"][-1] * 8, "batch": case["batch"], "steps": case["steps"]}[case["axis"]]


def plot(result: dict, folder: Path) -> Path | None:
    """Time and memory ratios over each axis as cost-<suite>.png, reverse mode in panels of its own; None without such cases."""
    cases = [case for case in result["cases"] if case["axis"]]
    if not cases:
        return None
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    across = {axis: sorted((case for case in cases if case["axis"] == axis), key=_position) for axis in dict.fromkeys(case["axis"] for case in cases)}
    present = [name for name in MODES if any(name in case["modes"] for case in cases)]
    reverse = [name for name in present if _is_reverse(name)]
    groups = [[name for name in present if name not in reverse], *([reverse] if reverse else [])]
    rows = [(group, draw) for draw in (_draw_time, _draw_memory) for group in groups]
    size = (4.2 * len(across), 2.5 * len(rows) + 0.8)
    figure, grid = plt.subplots(len(rows), len(across), figsize=size, squeeze=False, sharey="row", layout="constrained")
    labels = {"size": "width and height in pixels", "batch": "images at once", "steps": "steps"}
    for panels, (group, draw) in zip(grid, rows, strict=True):
        for panel, (axis, along) in zip(panels, across.items(), strict=True):
            for name in group:
                draw(panel, [(_position(case), case["modes"][name]) for case in along if name in case["modes"]], _look(name))
            if not panel.lines:
                panel.axis("off")
                continue
            title = "time" if draw is _draw_time else "peak memory"
            panel.set(xlabel=labels[axis], xscale="log", title=f"{title}, reverse mode" if group is reverse else title)
            panel.set_xticks([_position(case) for case in along], [str(_position(case)) for case in along], minor=False)
            panel.minorticks_off()
            panel.grid(alpha=0.3)
    for panels in grid:
        panels[0].set_ylabel("plain guidance = 1")
    handles = {label: handle for panel in grid.flat for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=3, frameon=False)
    figure.suptitle(f"{cases[0]['network']}, {result['machine']['device']}")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"cost-{result['suite']}.png"
    figure.savefig(path, dpi=80)
    plt.close(figure)
    return path


def _is_reverse(name: str) -> bool:
    return MODES[name].alone or (MODES[name].inputs or {}).get("engine") == "reverse"


def _look(name: str) -> dict:
    """Label and line of a mode: its form's colour; what costs otherwise with the same form has another line."""
    form = "off" if name == CFG else (MODES[name].inputs or {}).get("form", "row_sum")
    style = {"every_call": (":", "s"), "skipping": ("--", "^"), "calibrated_skipping": ("--", "^")}.get(name, ("-", "o"))
    return {"label": MODES[name].title.replace("`", ""), "color": form_color(form), "linestyle": style[0], "marker": style[1]}


def _draw_time(panel, points: list, look: dict) -> None:
    if points:
        at, middle = [p for p, _ in points], [mode["time"]["median"] for _, mode in points]
        edges = [[abs(mode["time"][edge] - mode["time"]["median"]) for _, mode in points] for edge in ("low", "high")]
        panel.errorbar(at, middle, yerr=edges, capsize=3, **look)


def _draw_memory(panel, points: list, look: dict) -> None:
    if points and all(mode["memory"] is not None for _, mode in points):
        panel.plot([p for p, _ in points], [mode["memory"] for _, mode in points], **look)
