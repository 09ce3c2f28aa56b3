"""One running ComfyUI server, through its HTTP API."""

from __future__ import annotations

import http.client
import json
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping

from ..checks import cut, shortened
from .plan import PlanError

FIRST_POLL, LAST_POLL = 0.05, 1.0  # seconds between two looks at the history
TRIES, PAUSE = 3, 1.0  # a busy server may miss a request; one that misses three is gone
SHARE = re.compile(r"(-?\d+(?:\.\d+)?) % of plain guidance")


class ServerGone(ConnectionError):
    """The server does not answer any more."""


class PromptRefused(ValueError):
    """The server found the workflow invalid; the message is the server's, a line per fault."""


class PromptFailed(RuntimeError):
    """A node failed, or somebody interrupted it."""


class Server:
    """A server at `url`, http://host:port. `client_id` marks our prompts in its queue.

    `timeout`: seconds for one request."""

    def __init__(self, url: str, client_id: str = "reg-evaluation", timeout: float = 60.0):
        self.url, self.client_id, self.timeout = check_url(url), client_id, timeout

    def alive(self, timeout: float = 5.0) -> bool:
        try:
            self._once("/system_stats", None, timeout)
        except (OSError, http.client.HTTPException):
            return False
        return True

    def render(self, workflow: Mapping, output: str, limit: float) -> tuple[list[bytes], dict]:
        """Run a workflow: the image files of node `output`, and facts: share (or None), seconds.

        Raises ServerGone, PromptRefused, PromptFailed (also after `limit` seconds).
        """
        begin = time.monotonic()
        entry = None
        while entry is None:  # None: a server restarted in between has forgotten it
            prompt_id = self._queue(workflow)
            entry = self._wait(prompt_id, begin + limit)
        images = entry.get("outputs", {}).get(output, {}).get("images", [])
        if not images:
            raise PromptFailed(f"{self.url}: node {output} gave no image")
        places = [{key: image[key] for key in ("filename", "subfolder", "type")} for image in images]
        data = [self._ask(f"/view?{urllib.parse.urlencode(place)}", raw=True) for place in places]
        return data, {"share": share_of(entry), "seconds": round(time.monotonic() - begin, 3)}

    def drop(self) -> None:
        """Take our prompts out of the queue and interrupt ours if it runs; those of others stay."""
        queue = self._ask("/queue")
        pending, running = (
            [item[1] for item in queue[state] if item[3].get("client_id") == self.client_id]
            for state in ("queue_pending", "queue_running")
        )
        if pending:
            self._ask("/queue", {"delete": pending})
        for prompt_id in running:
            self._ask("/interrupt", {"prompt_id": prompt_id})

    def _queue(self, workflow) -> str:
        try:
            return self._ask("/prompt", {"prompt": workflow, "client_id": self.client_id})["prompt_id"]
        except urllib.error.HTTPError as error:
            raise PromptRefused(f"{self.url} refuses the workflow: {refusal(error)}") from None

    def _wait(self, prompt_id, deadline) -> dict | None:
        pause, absent = FIRST_POLL, 0
        while True:
            entry = self._ask(f"/history/{prompt_id}").get(prompt_id)
            if entry is not None:
                if entry.get("status", {}).get("status_str") == "error":
                    raise PromptFailed(f"{self.url}: {failure(entry)}")
                return entry
            if time.monotonic() > deadline:
                self.drop()
                raise PromptFailed(f"{self.url}: not done in time")
            if pause >= LAST_POLL:  # long enough to have left the queue without a trace?
                queue = self._ask("/queue")
                queued = any(item[1] == prompt_id for items in queue.values() for item in items)
                absent = 0 if queued else absent + 1
                if absent >= 2:
                    return None
            time.sleep(pause)
            pause = min(pause * 1.3, LAST_POLL)

    def _ask(self, path: str, body: Mapping | None = None, raw: bool = False):
        for attempt in range(TRIES):
            try:
                data = self._once(path, body, self.timeout)
                return data if raw else json.loads(data or "null")
            except urllib.error.HTTPError:
                raise  # an answer, if not the one hoped for
            except (OSError, http.client.HTTPException) as error:
                if attempt == TRIES - 1:
                    reason = getattr(error, "reason", None) or repr(error)
                    raise ServerGone(f"{self.url} does not answer: {reason}") from None
                time.sleep(PAUSE)

    def _once(self, path, body, timeout) -> bytes:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return answer.read()


def check_url(url: str) -> str:
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc or parts.query or parts.fragment:
        raise PlanError(f"a server is given as http://host:port, got {shortened(url)}")
    return url.rstrip("/")


def refusal(error: urllib.error.HTTPError) -> str:
    """The server's reasons: what is wrong with the prompt, and each node's faults."""
    text = error.read().decode("utf-8", "replace")
    try:
        answer = json.loads(text)
    except ValueError:
        return f"{error}: {shortened(text)}"
    general = answer.get("error", {})
    if not isinstance(general, str):
        general = f"{general.get('message', error)} {general.get('details', '')}".strip()
    faults = [
        f"  node {key} ({node.get('class_type')}): {fault.get('message')}: {fault.get('details')}"
        for key, node in (answer.get("node_errors") or {}).items()
        for fault in node.get("errors", ())
    ]
    return "\n".join([general, *faults])


def failure(entry: Mapping) -> str:
    """What a failed prompt's history says."""
    for kind, data in entry.get("status", {}).get("messages", ()):
        if kind == "execution_error":
            message = cut(data.get("exception_message"))
            return f"{_node(data)}: {data.get('exception_type')}: {message}"
        if kind == "execution_interrupted":
            return f"interrupted in {_node(data)}"
    return "failed without a message"


def _node(data: Mapping) -> str:
    return f"node {data.get('node_id')} ({data.get('node_type')})"


def share_of(entry: Mapping) -> float | None:
    """The share of plain guidance that a trace node of the workflow wrote as text, None if none did."""
    for ui in entry.get("outputs", {}).values():
        for text in ui.get("text", ()):
            if found := SHARE.search(str(text)):
                return float(found.group(1)) / 100
    return None
