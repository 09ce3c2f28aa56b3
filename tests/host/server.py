"""A ComfyUI server in a subprocess, with this pack loaded, driven as the page drives it: HTTP and a websocket."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from dataclasses import dataclass, field
from pathlib import Path

import websocket

from .setup_host import REPO, host_path

HERE = Path(__file__).resolve().parent
PACK_FOLDER = "ComfyUI-REG"


class PromptError(RuntimeError):
    """The server refused a prompt, or a node failed; the message is the server's."""


TEXT = (3).to_bytes(4, "big")  # kind of a binary message: text of a node


@dataclass
class Result:
    """What one prompt did."""

    prompt_id: str
    outputs: dict = field(default_factory=dict)  # {node id: ui outputs}, as in /history
    progress: list = field(default_factory=list)  # (node id, value, maximum)
    executed: list = field(default_factory=list)  # node ids, in order
    cached: list = field(default_factory=list)  # node ids
    shown: dict = field(default_factory=dict)  # {node id: text that a node shows on itself}
    seconds: float = 0.0

    def images(self, node_id=None) -> list:
        """Image entries, for ComfyServer.view, of one node or of all."""
        nodes = self.outputs if node_id is None else {node_id: self.outputs[str(node_id)]}
        return [image for ui in nodes.values() for image in ui.get("images", [])]

    def text(self, node_id) -> str:
        return "".join(self.outputs[str(node_id)].get("text", ()))


class ComfyServer:
    """`with ComfyServer() as server: server.run(prompt)`. Everything it writes goes to a temporary folder."""

    def __init__(self, arguments=(), packs=None, start_timeout: float = 180):
        """`packs`: {folder name: folder} of node packs to load; default this repository and the test pack."""
        self.arguments = list(arguments)
        self.packs = {PACK_FOLDER: REPO, "reg-testpack": HERE / "testpack"} if packs is None else packs
        self.start_timeout = start_timeout
        self.process = None

    # --- life ---

    def __enter__(self):
        self.base = Path(tempfile.mkdtemp(prefix="reg-server-"))
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        shutil.rmtree(self.base, ignore_errors=True)  # links are removed, not what they point to

    def _start(self):
        for name in ("custom_nodes", "input", "models", "output", "temp", "user"):
            (self.base / name).mkdir()
        for name, folder in self.packs.items():
            _link(folder, self.base / "custom_nodes" / name)
        host, self.port = host_path(), _free_port()
        command = [
            sys.executable, str(host / "main.py"), "--cpu", "--listen", "127.0.0.1", "--port", str(self.port),
            "--disable-auto-launch", "--disable-api-nodes",
            "--base-directory", str(self.base),
            "--output-directory", str(self.base / "output"),
            "--input-directory", str(self.base / "input"),
            "--temp-directory", str(self.base),  # ComfyUI appends temp/
            "--user-directory", str(self.base / "user"),
            "--database-url", f"sqlite:///{self.base / 'user' / 'comfyui.db'}",
            *self.arguments,
        ]  # fmt: skip
        if os.environ.get("REG_TEST_ATTENTION") == "pytorch":
            command.append("--use-pytorch-cross-attention")
        paths = [str(HERE / "site"), os.environ.get("PYTHONPATH")]
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "PYTHONUNBUFFERED": "1",
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",  # as in conftest.py: same sums, same pixels
        }
        with open(self.base / "server.log", "wb") as log:
            self.process = subprocess.Popen(command, cwd=self.base, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + self.start_timeout
        while True:
            try:
                self.system = self.get("/system_stats")
                return
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                pass
            if self.process.poll() is not None:
                raise RuntimeError(f"the ComfyUI server ended with status {self.process.returncode}\n{self.tail()}")
            if time.monotonic() > deadline:
                raise TimeoutError(f"no answer from the ComfyUI server in {self.start_timeout} s\n{self.tail()}")
            time.sleep(0.2)

    # --- what it says ---

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        return (self.base / "server.log").read_text(encoding="utf-8", errors="replace")

    def tail(self, lines: int = 60) -> str:
        return "\n".join(self.log.splitlines()[-lines:])

    def get(self, path: str, raw: bool = False):
        with urllib.request.urlopen(f"http://{self.address}{path}", timeout=30) as answer:
            data = answer.read()
        return data if raw else json.loads(data)

    def post(self, path: str, body: dict):
        request = urllib.request.Request(f"http://{self.address}{path}", json.dumps(body).encode(), {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            data = answer.read()
        return json.loads(data) if data else None

    def object_info(self, node_id: str | None = None) -> dict:
        """All nodes' descriptions, or one node's ({} if it is not registered)."""
        if node_id is None:
            return self.get("/object_info")
        return self.get(f"/object_info/{urllib.parse.quote(node_id)}").get(node_id, {})

    def history(self, prompt_id: str) -> dict:
        return self.get(f"/history/{prompt_id}").get(prompt_id, {})

    def view(self, image: dict) -> bytes:
        """The file behind an image entry of a result."""
        return self.get(f"/view?{urllib.parse.urlencode(image)}", raw=True)

    def interrupt(self) -> None:
        self.post("/interrupt", {})

    # --- what it does ---

    def run(self, prompt: dict, timeout: float = 300, on_progress=None) -> Result:
        """Queue an API prompt and wait for its end. `on_progress(value, maximum)` may call `interrupt()`."""
        client, start = uuid.uuid4().hex, time.monotonic()
        socket_ = websocket.create_connection(f"ws://{self.address}/ws?clientId={client}", timeout=timeout)
        try:
            result = Result(self._queue(prompt, client))
            self._follow(socket_, result, start + timeout, on_progress)
        finally:
            socket_.close()
        result.seconds = time.monotonic() - start
        result.outputs = self.history(result.prompt_id).get("outputs", {})
        return result

    def _queue(self, prompt, client) -> str:
        try:
            return self.post("/prompt", {"prompt": prompt, "client_id": client})["prompt_id"]
        except urllib.error.HTTPError as error:
            answer = json.loads(error.read() or b"{}")
            message = answer.get("error", {}).get("message", str(error))
            lines = [
                f"node {key} ({node.get('class_type')}): {problem.get('message')} {problem.get('details')}"
                for key, node in (answer.get("node_errors") or {}).items()
                for problem in node.get("errors", ())
            ]
            raise PromptError("\n".join([message, *lines])) from None

    def _follow(self, socket_, result, deadline, on_progress):
        """Read events until the server says it is done with this prompt."""
        while True:
            socket_.settimeout(max(0.1, deadline - time.monotonic()))
            try:
                message = socket_.recv()
            except websocket.WebSocketTimeoutException:
                raise TimeoutError(f"prompt not done in time\n{self.tail(30)}") from None
            except (websocket.WebSocketException, ConnectionError) as error:
                raise RuntimeError(f"the server went away ({error})\n{self.tail()}") from None
            if not isinstance(message, str):
                if message[:4] == TEXT:
                    length = int.from_bytes(message[4:8], "big")
                    result.shown[message[8 : 8 + length].decode()] = message[8 + length :].decode()
                continue  # else a preview image
            event = json.loads(message)
            kind, data = event["type"], event.get("data") or {}
            if data.get("prompt_id") != result.prompt_id:
                continue
            if kind == "execution_error":
                raise PromptError(
                    f"node {data.get('node_id')} ({data.get('node_type')}): {data.get('exception_type')}: "
                    f"{data.get('exception_message')}\n{''.join(data.get('traceback') or ())}"
                )
            if kind == "execution_interrupted":
                raise InterruptedError(f"interrupted in node {data.get('node_id')} ({data.get('node_type')})")
            if kind == "execution_cached":
                result.cached += data["nodes"]
            elif kind == "progress":
                result.progress.append((data.get("node"), data["value"], data["max"]))
                if on_progress:
                    on_progress(data["value"], data["max"])
            elif kind == "executing":
                if data["node"] is None:
                    return
                result.executed.append(data["node"])


def _link(folder: Path, link: Path) -> None:
    try:
        link.symlink_to(folder, target_is_directory=True)
    except OSError:  # Windows without the privilege: a copy will do
        shutil.copytree(folder, link, ignore=shutil.ignore_patterns(".*", "__pycache__"))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
