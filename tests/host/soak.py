"""Many prompts of every kind on one real server: `nox -s soak`.

Forms, schedules, sweeps, rewards, tables and second models in mixed order, cancels at random moments, and bad inputs
between. Every picture is compared with the one that the same prompt gives alone, on a server with nothing in its memory.
Memory is the server's resident set once ComfyUI's history is cleared, after each prompt. A control does as many plain
prompts without the pack.
"""

import argparse
import collections
import hashlib
import platform
import random
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil  # comes with ComfyUI

from .server import HERE, ComfyServer, PromptError
from .test_server import pixels
from .test_server import prompt as plain

FORMS, ENGINES = ("row_sum", "scalar", "product", "schedule"), ("auto", "finite_difference", "reverse")
SAMPLERS = ("euler", "heun", "dpmpp_2m", "euler_ancestral", "uni_pc")
SETTLED, FLAT = 100, 0.02  # prompts before memory counts, and by how much it may grow afterwards
KINDS = ("form", "schedule", "sweep", "reward", "second model", "table", "plain")
NONSENSE = (
    ("axis", "timestpe"), ("form", "rowsum"), ("model", 5), ("gain", 1e300), ("strength", "x" * 5000), ("latent_image", "none"), ("points", "0:1e308, 1:2"),
    ("cfg", -1), ("positive", [1]), ("sampler_name", "eulr"), ("filename_prefix", "../outside"), ("forms", "no, such"), ("calibration", {}),
)  # fmt: skip


@dataclass
class Memory:
    """Resident memory of a server after each prompt, in MiB."""

    seen: list = field(default_factory=list)

    def look(self, server) -> None:
        server.post("/history", {"clear": True})
        self.seen.append(psutil.Process(server.process.pid).memory_info().rss / 2**20)

    def growth(self, settled: int = SETTLED) -> float:
        """Median of the last fifth over that of the first, less 1; nan where fewer than 10 prompts are left."""
        rest = self.seen[settled:]
        part = len(rest) // 5
        return statistics.median(rest[-part:]) / statistics.median(rest[:part]) - 1 if part > 1 else float("nan")


@dataclass
class Outcome:
    """What a soak found. `wrong`: in words, empty when all is well."""

    kinds: collections.Counter
    memory: Memory
    seconds: float
    wrong: list


def guided(draw: random.Random, model: list, **more) -> dict:
    """A REGGuidance node."""
    values = dict(
        form=draw.choice(FORMS), gain=draw.choice((1.0, 2.0, 4.0)), start_percent=0.0, end_percent=draw.choice((1.0, 0.8)), strength=draw.choice((1.0, 0.5))
    )
    values |= dict(skip_below=draw.choice((0.0, 0.1)), data_std=0.75, engine=draw.choice(ENGINES), refresh=draw.choice((1, 4, 8)))
    return {"class_type": "REGGuidance", "inputs": values | {"model": model} | more}


def scheduled(draw: random.Random, model: list) -> dict:
    """A node that makes cfg a function of the noise level."""
    name, values = draw.choice(
        [
            ("Linear", dict(start=0.0, end=2.0, axis=draw.choice(("step", "timestep", "sigma", "edm2", "t2i")))),
            ("Cosine", dict(power=draw.choice((0.5, 1.0, 4.0)), axis=draw.choice(("step", "timestep", "sigma", "dit")))),
            ("Interval", dict(start=0.2, end=0.8, axis=draw.choice(("step", "timestep")))),
            ("Curve", dict(points="0:0, 0.3:1.5, 1:0.5", axis=draw.choice(("step", "timestep", "sigma")))),
        ]
    )
    return {"class_type": f"REGSchedule{name}", "inputs": values | {"model": model}}


def digits(draw: random.Random, kind: str) -> dict:
    """A prompt of one kind on the digits model; node `o` shows the pictures."""
    nodes = {
        "m": {"class_type": "REGDemoModel", "inputs": {"variant": draw.choice(("digits", "digits_weak"))}},
        "p": {"class_type": "REGDemoPrompt", "inputs": {"digit": draw.choice(("3", "8", "all ten in turn"))}},
        "n": {"class_type": "REGDemoPrompt", "inputs": {"digit": "no prompt"}},
        "l": {"class_type": "REGDemoLatent", "inputs": {"batch_size": draw.choice((1, 4, 10))}},
        "k": {
            "class_type": "KSampler",
            "inputs": dict(
                model=["m", 0], seed=draw.randrange(2**32), steps=draw.randint(2, 8), cfg=draw.choice((2.0, 4.0, 8.0)), sampler_name=draw.choice(SAMPLERS),
                scheduler="karras", positive=["p", 0], negative=["n", 0], latent_image=["l", 0], denoise=1.0,
            ),
        },
        "d": {"class_type": "REGDemoDecode", "inputs": {"latent": ["k", 0], "scale": 4, "columns": 10}},
        "o": {"class_type": "PreviewImage", "inputs": {"images": ["d", 0]}},
    }  # fmt: skip
    sampler = nodes["k"]["inputs"]
    if kind in ("form", "schedule", "reward"):
        nodes["g"] = guided(draw, ["m", 0])
        nodes["t"] = {"class_type": "REGTracePlot", "inputs": {"trace": ["g", 1], "latent": ["k", 0], "axis": "sigma", "theme": "dark", "run": -1}}
        sampler["model"] = ["g", 0]
    if kind == "schedule":
        nodes["s"] = scheduled(draw, ["g", 0])
        sampler["model"] = ["s", 0]
    if kind == "reward":
        nodes["r"] = {"class_type": "REGRewardDigit", "inputs": {"digit": draw.randint(-1, 9)}}
        inputs = dict(model=["g", 0], reward=["r", 0], scale=0.5, rectified=draw.choice((True, False)), start_percent=0.0, end_percent=1.0)
        nodes["w"] = {"class_type": "REGRewardGuidance", "inputs": inputs}
        sampler["model"] = ["w", 0]
    if kind == "second model":
        nodes["b"] = {"class_type": "REGWeakModel", "inputs": {"model": ["m", 0], "damping": 0.2}}
        nodes["f"] = {"class_type": "REGReferenceModel", "inputs": {"model": ["m", 0], "reference_model": ["b", 0]}}
        nodes["g"] = guided(draw, ["f", 0])
        sampler["model"] = ["g", 0]
    if kind == "table":
        names = ("model", "positive", "negative", "latent_image", "cfg", "steps", "seed", "sampler_name", "scheduler")
        inputs = {name: sampler[name] for name in names} | dict(form=draw.choice(("scalar", "row_sum")), runs=1, filename_prefix="reg_calibration/soak")
        nodes["c"] = {"class_type": "REGCalibrate", "inputs": inputs}
        nodes["g"] = guided(draw, ["m", 0], form="calibrated", calibration=["c", 0])
        sampler["model"] = ["g", 0]
    if kind == "sweep":
        nodes["x"] = {"class_type": "REGSweep", "inputs": {"model": ["m", 0], "forms": "off, row_sum, schedule", "gains": "1, 2", "cfgs": "4"}}
        sampler |= {"model": ["x", 0], "cfg": ["x", 1]}
        nodes["y"] = {"class_type": "REGGrid", "inputs": {"images": ["d", 0], "labels": ["x", 2], "columns": 0, "theme": "dark"}}
        nodes["o"]["inputs"]["images"] = ["y", 0]
    return nodes


def tiny(draw: random.Random, kind: str) -> dict:
    """A prompt of one kind on a small network of SD1.5's or SD3's make."""
    nodes = plain(draw.choice(("sd15", "sd3")), seed=draw.randrange(2**32), steps=draw.randint(2, 4))
    nodes["4"]["inputs"] |= {"width": 64, "height": 64}
    nodes["o"] = nodes.pop("7")
    if kind != "plain":
        nodes["g"] = guided(draw, ["1", 0])
        nodes["5"]["inputs"]["model"] = ["g", 0]
    if kind == "schedule":
        nodes["s"] = scheduled(draw, ["g", 0])
        nodes["5"]["inputs"]["model"] = ["s", 0]
    return nodes


def made(draw: random.Random, kind: str) -> dict:
    if kind == "plain" or (kind in ("form", "schedule") and draw.random() < 0.4):
        return tiny(draw, kind)
    return digits(draw, kind)


def spoilt(draw: random.Random, prompt: dict) -> dict:
    """The prompt with nonsense in one input that it has; without one, a node that fails."""
    places = [(key, name, value) for key, node in prompt.items() for name, value in NONSENSE if name in node["inputs"] and node["class_type"].startswith("REG")]
    if not places:
        return {**prompt, "4": {"class_type": "REGTestFail", "inputs": {}}, "5": {"class_type": "PreviewImage", "inputs": {"images": ["4", 0]}}}
    key, name, value = draw.choice(places)
    return {**prompt, key: {**prompt[key], "inputs": {**prompt[key]["inputs"], name: value}}}


def shown(server, prompt, **how) -> str:
    """The pictures of node `o`, as one hash of their pixels."""
    images = server.run(prompt, timeout=120, **how).images("o")
    return hashlib.sha256(b"".join(pixels(server.view(image)).tobytes() for image in images)).hexdigest()


def alone(server, prompt) -> str:
    """What a prompt shows on a server with nothing in its memory."""
    server.post("/free", {"unload_models": True, "free_memory": True})
    time.sleep(0.3)  # the worker thread looks at its flags between prompts
    return shown(server, prompt)


def soak(server, prompts: int, pool: dict, wanted: dict, seed: int = 0) -> Outcome:
    """`prompts` prompts in random order. `pool`: {name: (kind, prompt)}; `wanted`: {name: its pictures alone}."""
    draw, kinds, memory, wrong, begin = random.Random(seed), collections.Counter(), Memory(), [], time.monotonic()
    names = []
    for i in range(prompts):
        names = names or draw.sample(list(pool), len(pool))  # each in turn, in another order every time
        name = names.pop()
        kind, prompt = pool[name]
        what = draw.choices(("run", "cancel", "bad"), (6, 2, 2))[0] if len(pool) > 1 and kind != "plain" else "run"
        try:
            if what == "run":
                if shown(server, prompt) != wanted[name]:
                    wrong.append(f"prompt {i + 1} ({name}): another picture than alone")
            elif what == "cancel":
                cancelled(server, prompt, draw)
            else:
                if "o" in server.run(spoilt(draw, prompt), timeout=120).outputs:  # else the host ran only the other branch
                    wrong.append(f"prompt {i + 1} ({name}): bad input was taken")
        except InterruptedError:
            if what != "cancel":
                wrong.append(f"prompt {i + 1} ({name}): interrupted")
        except PromptError as error:
            said = str(error).split("\nTraceback")[0].split("  File ")[0].strip()
            ours = "ValueError" in said  # else the host refused it, in its own words
            if what != "bad" or (ours and (len(said) > 500 or len(said.splitlines()) > 1)):
                wrong.append(f"prompt {i + 1} ({name}, {what}): {said[:300]}")
        kinds[kind if what == "run" else what] += 1
        memory.look(server)
    return Outcome(kinds, memory, time.monotonic() - begin, wrong)


def cancelled(server, prompt, draw) -> None:
    """Run a longer version of a prompt and cancel it at a random step."""
    longer = {key: {**node, "inputs": dict(node["inputs"])} for key, node in prompt.items()}
    for node in longer.values():
        if node["class_type"] == "KSampler":
            node["inputs"] |= {"steps": 60, "seed": draw.randrange(2**32)}
    left = [draw.randint(1, 50)]

    def count(value, maximum):
        left[0] -= 1
        if left[0] == 0:
            server.interrupt()

    server.run(longer, timeout=120, on_progress=count)


def pool_of(size: int, seed: int = 1, kinds=KINDS) -> dict:
    """{name: (kind, prompt)}: as many different prompts, all kinds in turn."""
    draw = random.Random(seed)
    return {f"{kinds[i % len(kinds)]} {i}": (kinds[i % len(kinds)], made(draw, kinds[i % len(kinds)])) for i in range(size)}


def page(found: Outcome, control: Outcome, prompts: int) -> str:
    """The Markdown of docs/soak.md."""
    lines = [
        "# A long run", "",
        f"Made by `nox -s soak`: {prompts} prompts on one ComfyUI server on a CPU ({platform.machine()}), batch 1 to 10. Not edited by hand.",
        "Every picture is compared, pixel by pixel, with that of the same prompt on a server with nothing in its memory.", "",
        "| | prompts |", "|---|---|",
        *(f"| {kind} | {count} |" for kind, count in sorted(found.kinds.items())),
        f"| **all** | {sum(found.kinds.values())} in {found.seconds:.0f} s |",
        f"| **wrong** | {len(found.wrong)} |", "",
        f"| resident memory, MiB, from prompt {SETTLED + 1} on | first | last | largest | growth |", "|---|---|---|---|---|",
    ]  # fmt: skip
    for name, memory in (("with the pack", found.memory), ("control: plain prompts, without it", control.memory)):
        rest = memory.seen[SETTLED:] or memory.seen
        lines.append(f"| {name} | {rest[0]:.0f} | {rest[-1]:.0f} | {max(rest):.0f} | {100 * memory.growth():.1f} % |")
    return "\n".join([*lines, "", *(f"- {words}" for words in found.wrong)]) + "\n"


def main(argv=None) -> int:
    """Run it, print the table; 1 where something was wrong or memory grew."""
    parser = argparse.ArgumentParser(prog="python -m tests.host.soak", description=__doc__)
    parser.add_argument("--prompts", type=int, default=1000)
    parser.add_argument("--pool", type=int, default=42, help="different prompts (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="Markdown file to write the table to")
    args = parser.parse_args(argv)
    pool = pool_of(args.pool)
    with ComfyServer() as server:
        wanted = {name: alone(server, prompt) for name, (_, prompt) in pool.items()}
    with ComfyServer() as server:
        found = soak(server, args.prompts, pool, wanted, args.seed)
    plain_pool = pool_of(6, kinds=("plain",))
    with ComfyServer(packs={"reg-testpack": HERE / "testpack"}) as server:
        wanted = {name: shown(server, prompt) for name, (_, prompt) in plain_pool.items()}
        control = soak(server, args.prompts, plain_pool, wanted, args.seed)
    text = page(found, control, args.prompts)
    print(text)
    if args.out:
        args.out.write_text(text, encoding="utf-8")
    return int(bool(found.wrong or control.wrong) or found.memory.growth() > max(FLAT, control.memory.growth()))


if __name__ == "__main__":
    raise SystemExit(main())
