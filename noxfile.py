"""Every way this project is checked or shown. `nox` runs the tests; `nox -s demo` the demonstration; `nox -s bench` the cost; `nox -s lint` ruff.

Environments are reused, and installed again only when what they should hold changed.
"""

import hashlib
import os
import re
from pathlib import Path

import nox

nox.options.reuse_existing_virtualenvs = True
nox.options.sessions = ["test"]

REPO = Path(__file__).resolve().parent
TORCH = "torch==2.13.0"
TORCHVISION = "torchvision==0.28.0"
OLDEST = "torch==2.4.1", "torchvision==0.19.1"  # of pyproject.toml's range
FRONTEND = "comfyui-frontend-package==1.49.6"  # for the page in other languages
UNLISTED = ("requests",)  # older ComfyUI imports it and counts on another package to bring it along
WITHOUT_ATTENTION = (  # host tests of files, words, pages and demo models: one attention is enough
    "bad_input", "benchmark", "blueprint", "demo_nodes", "evaluation", "help", "install", "locales", "plots", "presets", "schedules", "soak", "sweep",
    "workflow*",
)  # fmt: skip
NOT_FROM_HOST = {"torch", "torchvision", "torchaudio"}  # torch is pinned above; torchaudio is not needed


def install(session: nox.Session, *steps: tuple[str, ...]) -> None:
    """One `pip install` a step, skipped altogether if this environment already had exactly these steps."""
    wanted = [str(steps), (REPO / "pyproject.toml").read_text(encoding="utf-8")]
    wanted = hashlib.sha256("\n".join(wanted).encode()).hexdigest()
    stamp = Path(session.virtualenv.location) / "installed"
    if stamp.is_file() and stamp.read_text() == wanted:
        session.log("environment is up to date")
        return
    stamp.unlink(missing_ok=True)
    for step in steps:
        session.install(*step)
    stamp.write_text(wanted)


def host_requirements(host: Path) -> list[str]:
    """What this ComfyUI asks for, newest included, without the packages chosen here."""
    lines = [line.split("#")[0].strip() for line in (host / "requirements.txt").read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if line and re.split(r"[^\w.-]", line)[0].lower() not in NOT_FROM_HOST]


def with_host(session: nox.Session, extras: str, *more: str, torch: tuple[str, str] = (TORCH, TORCHVISION)) -> str:
    """The folder of the ComfyUI to test in, once all that it and this project's `extras` need is installed. `torch`: with its torchvision."""
    host = session.run("python", "tests/host/setup_host.py", silent=True).strip().splitlines()[-1]
    needed = (torch[0], "-e", extras, *more, *UNLISTED, *host_requirements(Path(host)))
    install(session, (torch[0],), (torch[1], "--no-deps"), needed)  # torchvision's compiled operators may not fit a CPU torch; no test needs them
    return host


@nox.session
def demo(session: nox.Session) -> None:
    """The demonstration, on a CPU: `nox -s demo -- --help`."""
    install(session, (TORCH,), ("-e", ".[lab]"))
    session.run("python", "-m", "reg_core.demo_models", *session.posargs)


@nox.session
def lab(session: nox.Session) -> None:
    """The laboratory: docs/evidence.md, docs/evidence-more.md, their plots and JSON, under two hours on two cores; `-- --as-is` samples nothing."""
    install(session, (TORCH,), ("-e", ".[lab]"))
    session.run("python", "-m", "reg_core.lab.evidence", *(session.posargs or ("--processes", "2")), env={"OMP_NUM_THREADS": "1"})


@nox.session
def test(session: nox.Session) -> None:
    """The core's tests, the host tests, and those that sample once more with PyTorch's attention. Arguments go to each pytest."""
    host = with_host(session, ".[lab,test]")
    env = {"COMFYUI_PATH": host, "OMP_NUM_THREADS": "1"}  # a process a core, whole files to each: servers and models are made once a file
    spread = ("-n", "auto", "--dist", "loadfile")
    session.run("pytest", "tests/core", *spread, *session.posargs, env=env)
    session.run("pytest", "tests/host", *spread, *session.posargs, env=env)
    others = (f"--ignore-glob=tests/host/test_{name}.py" for name in WITHOUT_ATTENTION)
    session.run("pytest", "tests/host", *spread, *others, *session.posargs, env=env | {"REG_TEST_ATTENTION": "pytorch"})


@nox.session
def oldest(session: nox.Session) -> None:
    """The engines on the oldest PyTorch supported, which lacks what newer ones do by themselves. Arguments go to each pytest."""
    host = with_host(session, ".[lab,test]", torch=OLDEST)
    env = {"COMFYUI_PATH": host, "OMP_NUM_THREADS": "1", "REG_TEST_ATTENTION": "pytorch"}
    core = ("jacobian", "rectifier", "refresh", "skipping", "guided", "closed_form", "precision")
    for folder, names in (("core", core), ("host", ("engines", "families", "memory", "weights"))):
        session.run("pytest", *(f"tests/{folder}/test_{name}.py" for name in names), "-n", "auto", *session.posargs, env=env)


@nox.session
def browser(session: nox.Session) -> None:
    """The real page in a real browser, with the pinned ComfyUI's own frontend; screenshots go to out/browser. Arguments go to pytest."""
    host = with_host(session, ".[lab,test]", "playwright")
    if not Path("/usr/bin/chromium").exists():
        session.run("playwright", "install", *(["--with-deps"] if os.environ.get("CI") else []), "chromium")
    newer = Path(session.virtualenv.location) / "frontend"  # the pinned one loses translations of packs
    if not (newer / "comfyui_frontend_package" / "static").is_dir():
        session.install("--no-deps", "--target", str(newer), FRONTEND)
    env = {"COMFYUI_PATH": host, "REG_TEST_FRONTEND": str(newer / "comfyui_frontend_package" / "static")}
    session.run("pytest", "tests/browser", *session.posargs, env=env)


@nox.session
def soak(session: nox.Session) -> None:
    """A thousand mixed prompts, cancels and bad inputs on one server, into docs/soak.md: ten minutes. Shorter: `nox -s soak -- --prompts 60`."""
    host = with_host(session, ".[test]")
    env = {"COMFYUI_PATH": host, "OMP_NUM_THREADS": "1"}
    session.run("python", "-m", "tests.host.soak", *(session.posargs or ("--out", "docs/soak.md")), env=env)


@nox.session
def bench(session: nox.Session) -> None:
    """Time and memory beside plain guidance, into docs/cost.md: on CUDA where there is a device. `nox -s bench -- --help`."""
    host = with_host(session, ".[bench]")
    session.run("python", "-m", "benchmarks", *session.posargs, env={"COMFYUI_PATH": host})


@nox.session
def lint(session: nox.Session) -> None:
    """Style and import order."""
    install(session, ("ruff",))
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
