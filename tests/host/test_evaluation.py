"""The evaluation command on real servers: whatever dies on the way, the images are those that one server makes, bit for bit.

Oracle: the set made by one server in one undisturbed run (`alone`), compared as files.
"""

import json
import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from .server import ComfyServer
from .setup_host import REPO

pytest.importorskip("distributed", reason="extra `eval`")
pytestmark = pytest.mark.skipif(os.environ.get("REG_TEST_ATTENTION") == "pytorch", reason="drives servers, whatever their attention: once is enough")

from reg_core.evaluation.drive import Failed, Limits, drive  # noqa: E402
from reg_core.evaluation.plan import Plan  # noqa: E402
from reg_core.evaluation.server import PromptFailed, Server  # noqa: E402
from reg_core.evaluation.store import Store  # noqa: E402
from reg_core.evaluation.template import check, load  # noqa: E402

WORKFLOW = {
    "1": {"class_type": "REGDemoModel", "inputs": {"variant": "digits"}},
    "2": {"class_type": "REGGuidance", "inputs": {"model": ["1", 0], "form": "row_sum", "engine": "auto", "gain": 1.0, "strength": 1.0, "start_percent": 0.0,
          "end_percent": 1.0, "skip_below": 0.0, "refresh": 1, "data_std": 0.75}},
    "3": {"class_type": "REGDemoPrompt", "inputs": {"digit": "3"}, "_meta": {"title": "Positive"}},
    "4": {"class_type": "REGDemoPrompt", "inputs": {"digit": "no prompt"}},
    "5": {"class_type": "REGDemoLatent", "inputs": {"batch_size": 1}},
    "6": {"class_type": "KSampler", "inputs": {"model": ["2", 0], "seed": 1, "steps": 12, "cfg": 4.0, "sampler_name": "euler", "scheduler": "karras",
          "positive": ["3", 0], "negative": ["4", 0], "latent_image": ["5", 0], "denoise": 1.0}},
    "7": {"class_type": "REGDemoDecode", "inputs": {"latent": ["6", 0], "scale": 1, "columns": 0}},
    "8": {"class_type": "PreviewImage", "inputs": {"images": ["7", 0]}},
    "9": {"class_type": "REGTestFail", "inputs": {}},
}  # fmt: skip
GRID = {
    "inputs": {"prompt": "Positive.digit", "seed": "KSampler.seed", "form": "REGGuidance.form"},
    "grid": {"form": ["off", "row_sum"]},
}
SEEDS = (0, 1, 2)


def write(folder, grid=GRID):
    paths = {name: folder / name for name in ("workflow.json", "grid.json", "prompts.txt")}
    paths["workflow.json"].write_text(json.dumps(WORKFLOW))
    paths["grid.json"].write_text(json.dumps(grid))
    paths["prompts.txt"].write_text("3\n7\n")
    return paths


def prepared(folder, grid=GRID, seeds=SEEDS):
    paths = write(folder, grid)
    template, points = load(paths["workflow.json"], paths["grid.json"])
    plan = Plan(points, ({"prompt": "3"}, {"prompt": "7"}), seeds)
    check(template, plan)
    return plan, template


def url(server):
    return f"http://{server.address}"


def tree(out):
    files = [path for path in out.rglob("*") if path.suffix == ".png" or path.name == "manifest.json"]
    return {str(path.relative_to(out)): path.read_bytes() for path in files}


def makers(out):
    store = Store(out)
    return [store.record(store.plan().key(job))["server"] for job in store.plan().jobs()]


class Progress:
    """Counts images, and acts once when `when(server of an image, images so far)` says so."""

    def __init__(self, out, when=None, act=None):
        self.store, self.when, self.act, self.keys, self.acted = Store(out), when, act, [], False

    def __call__(self, done, total, key):
        assert total == 12
        if not key:
            return
        self.keys.append(key)
        if self.when and not self.acted and self.when(self.store.record(key)["server"], len(self.keys)):
            self.acted = True
            self.act()


@pytest.fixture(scope="module")
def second():
    """Another real server; the last test that uses it kills it."""
    with ComfyServer() as running:
        yield running


@pytest.fixture(scope="module")
def alone(server, tmp_path_factory):
    out = tmp_path_factory.mktemp("alone")
    progress = Progress(out)
    drive(*prepared(out), out, [url(server)], progress)
    images = tree(out)
    assert len(images) == 13 and len(set(progress.keys)) == len(progress.keys) == 12
    assert len(set(images.values())) == 13, "all images differ"
    return images


def test_worker_killed(server, second, alone, tmp_path):
    """A kill of one worker process while it waits for its image: the engine starts another."""

    def kill():
        os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)

    progress = Progress(tmp_path, lambda _, images: images == 2, kill)
    drive(*prepared(tmp_path), tmp_path, [url(server), url(second)], progress)
    assert progress.acted
    assert sorted(progress.keys) == sorted(set(progress.keys)) and len(progress.keys) == 12
    assert tree(tmp_path) == alone
    assert set(makers(tmp_path)) <= {url(server), url(second)}  # a busy machine may leave all to the one that goes on
    for one in (server, second):
        assert one.get("/queue") == {"queue_running": [], "queue_pending": []}


def test_command_killed_then_cancelled_then_finished(server, alone, tmp_path, capsys):
    """kill -9 and Ctrl-C of the whole command, as a terminal sends it; each time the same command continues."""
    from reg_core.evaluation.__main__ import main

    paths, out = write(tmp_path), tmp_path / "out"
    arguments = ["run", "--workflow", str(paths["workflow.json"]), "--prompts", str(paths["prompts.txt"]), "--grid", str(paths["grid.json"])]
    arguments += ["--server", url(server), "--seeds", *map(str, SEEDS), "--out", str(out), "--quiet"]
    environment = os.environ | {"PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"}

    def interrupted(signal_, images):
        with open(tmp_path / "log", "wb") as log:
            command = [sys.executable, "-m", "reg_core.evaluation", *arguments]
            running = subprocess.Popen(
                command,
                env=environment,
                cwd=tmp_path,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # shells start background jobs deaf to Ctrl-C
            )
        deadline = time.monotonic() + 120
        while len(list(out.rglob("records/*/*.json"))) < images and running.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        if signal_ == signal.SIGINT:
            os.killpg(running.pid, signal_)
        else:
            running.send_signal(signal_)
        return running.wait(60), (tmp_path / "log").read_text()

    assert interrupted(signal.SIGKILL, 1)[0] == -signal.SIGKILL
    assert 1 <= len(list(out.rglob("*.png"))) < 12
    status, log = interrupted(signal.SIGINT, 4)
    assert status == 130 and re.search(r"stopped at ([4-9]|1[01]) of 12; the same command continues", log), log
    assert "Traceback" not in log, log
    assert not server.get("/queue")["queue_pending"]
    kept = {path: path.stat().st_mtime_ns for path in out.rglob("records/*/*.json")}
    assert 4 <= len(kept) < 12
    assert main(arguments) == 0
    assert tree(out) == alone
    assert {path: path.stat().st_mtime_ns for path in kept} == kept, "what was there is not made again"
    assert "12 images" in capsys.readouterr().out


def test_refused_workflow_says_why_at_once(server, tmp_path):
    grid = {"inputs": GRID["inputs"] | {"sampler": "KSampler.sampler_name"}, "grid": {"form": ["off"], "sampler": ["euler", "best"]}}
    with pytest.raises(Failed, match=r"(?s)^form=off,sampler=best/00000_000: http://127.*refuses the workflow.*node 6 \(KSampler\): .*'best' not in"):
        drive(*prepared(tmp_path, grid), tmp_path, [url(server)])


def test_failing_images_do_not_stop_the_others(server, tmp_path):
    """The server's own message; links of the grid; and what could be made is there."""
    inputs = GRID["inputs"] | {"latent": "KSampler.latent_image"}
    grid = {"inputs": inputs, "grid": {"form": ["off"], "latent": {"good": {"link": ["5", 0]}, "bad": {"link": ["REGTestFail", 0]}}}}
    said = []
    with pytest.raises(Failed, match=r"2 of 4 images failed.*latent=bad.*node 9 \(REGTestFail\): .*on purpose"):
        drive(*prepared(tmp_path, grid, (0,)), tmp_path, [url(server)], say=said.append, limits=Limits(tries=2))
    assert len(said) == 2
    assert sorted(tree(tmp_path)) == [f"images/form=off,latent=good/0000{i}_000.png" for i in (0, 1)]


def test_the_share_is_taken_from_the_trace_plot(server, tmp_path):
    """Oracle: the number that REG logged on the server for this very run."""
    if not server.object_info("REGTracePlot"):
        pytest.skip("no REGTracePlot")
    plan, template = prepared(tmp_path)
    workflow = template.fill(plan.values(plan.jobs()[1]) | {"form": "schedule", "seed": 77})
    required = server.object_info("REGTracePlot")["input"]["required"]
    widgets = {name: spec[1]["default"] for name, spec in required.items() if "default" in spec[1]}
    workflow["10"] = {"class_type": "REGTracePlot", "inputs": widgets | {"trace": ["2", 1], "latent": ["6", 0]}}
    images, facts = Server(url(server)).render(workflow, "8", 60)
    logged = re.findall(r"form schedule.* (\d+) % of plain guidance", server.log)
    assert len(images) == 1 and facts["share"] == float(logged[-1]) / 100
    assert 0.1 < facts["share"] < 0.9


class Forgetful(Server):
    """Its first prompt is one that the server has never heard of, as after a restart."""

    asked = 0

    def _queue(self, workflow):
        self.asked += 1
        return super()._queue(workflow) if self.asked > 1 else "forgotten"


def test_a_forgotten_prompt_is_queued_again_and_a_cached_one_has_its_images(server, tmp_path):
    plan, template = prepared(tmp_path)
    workflow = template.fill(plan.values(plan.jobs()[0]))
    one = Forgetful(url(server))
    first, facts = one.render(workflow, "8", 60)
    again, _ = Server(url(server)).render(workflow, "8", 60)  # ComfyUI runs no node of it
    assert one.asked == 2 and first == again and first[0].startswith(b"\x89PNG")
    assert facts["share"] is None and facts["seconds"] > 0


def test_only_our_prompts_are_dropped(server, tmp_path):
    plan, template = prepared(tmp_path)
    workflows = [template.fill(plan.values(job)) for job in plan.jobs()[:3]]
    for workflow in workflows[:2]:
        workflow["6"]["inputs"]["steps"] = 9_999
    ours, other = Server(url(server), "ours"), Server(url(server), "other")
    running, waiting, theirs = ours._queue(workflows[0]), ours._queue(workflows[1]), other._queue(workflows[2])
    deadline = time.monotonic() + 60
    while server.get("/queue")["queue_running"][:1] == [] and time.monotonic() < deadline:
        time.sleep(0.05)
    ours.drop()
    assert other._wait(theirs, time.monotonic() + 60)["status"]["status_str"] == "success"
    assert server.history(waiting) == {}
    assert server.history(running)["status"]["status_str"] == "error", "interrupted"
    with pytest.raises(PromptFailed, match="not done in time"):
        ours.render(workflows[0], "8", 0.5)
    assert server.get("/queue")["queue_pending"] == []


def test_no_server(tmp_path):
    with pytest.raises(Failed, match=r"no answer from http://127.0.0.1:9"):
        drive(*prepared(tmp_path), tmp_path, ["http://127.0.0.1:9"])
    with pytest.raises(ValueError, match="got '127.0.0.1:9'"):
        drive(*prepared(tmp_path), tmp_path, ["127.0.0.1:9"])


class Door:
    """A port that leads to a server while it is open, and hangs up while it is not: to a client, a server that goes and comes back."""

    def __init__(self, port):
        self.target, self.connections, self.is_open = port, [], True
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def shut(self):
        self.is_open = False
        for one in self.connections:
            _hang_up(one)
        self.connections.clear()

    def _accept(self):
        while True:
            outer = self.listener.accept()[0]
            if not self.is_open:
                outer.close()
                continue
            inner = socket.create_connection(("127.0.0.1", self.target))
            self.connections += outer, inner
            for a, b in ((outer, inner), (inner, outer)):
                threading.Thread(target=self._copy, args=(a, b), daemon=True).start()

    def _copy(self, a, b):
        try:
            while data := a.recv(65536):
                b.sendall(data)
            b.shutdown(socket.SHUT_WR)
        except OSError:
            pass


def _hang_up(connection):
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass
    connection.close()


def test_a_server_that_comes_back_is_used_again(server, alone, tmp_path):
    door, said = Door(server.port), []

    def say(text):
        said.append(text)
        if "any more" in text:
            door.is_open = True

    progress = Progress(tmp_path, lambda _, images: images == 2, door.shut)
    drive(*prepared(tmp_path), tmp_path, [f"http://127.0.0.1:{door.port}"], progress, say)
    door.shut()
    assert ["does not answer any more" in said[0], "answers again" in said[1]] == [True, True]
    assert tree(tmp_path) == alone


def test_server_killed(server, second, alone, tmp_path):
    """kill -9 of one of two servers when it has made an image and works on the next: the other makes the rest."""
    progress, said = Progress(tmp_path, lambda maker, _: maker == url(second), second.process.kill), []
    drive(*prepared(tmp_path), tmp_path, [url(server), url(second)], progress, said.append)
    assert progress.acted
    assert sorted(progress.keys) == sorted(set(progress.keys)) and len(progress.keys) == 12
    assert tree(tmp_path) == alone
    assert 1 <= makers(tmp_path).count(url(second)) < 12
    assert not Server(url(second)).alive(1)
