"""A plan over several ComfyUI servers, scheduled by Dask distributed.

Each server has one worker process. It leaves when its server does, and what it held goes to the others. A
killed worker is started again. Only this process writes images."""

from __future__ import annotations

import hashlib
import logging
import platform
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import dask
from distributed import (
    Client,
    Nanny,
    Reschedule,
    Scheduler,
    SpecCluster,
    Status,
    WorkerPlugin,
    as_completed,
    get_worker,
)

from .plan import Job, Plan, PlanError
from .server import PromptFailed, PromptRefused, Server, ServerGone, check_url
from .store import Store
from .template import Template, digest

LOCAL = {"host": "127.0.0.1", "dashboard": False, "dashboard_address": "127.0.0.1:0"}
SETTINGS = {
    "distributed.scheduler.worker-saturation": 1.0,  # a server gets its next image when it has finished one
    "distributed.scheduler.allowed-failures": 10,  # times a worker may die under the same image
    "distributed.worker.daemon": True,
}
NAME = "reg-renderer"


class Failed(RuntimeError):
    """The run cannot go on; what is done is kept."""


@dataclass(frozen=True)
class Limits:
    """`tries` for an image whose workflow fails, `seconds` for one image, `patience` without any server."""

    tries: int = 3
    seconds: float = 3600.0
    patience: float = 60.0


class Renderer(WorkerPlugin):
    """What each worker knows besides its jobs, also one started later: the workflow and the server's URL."""

    name = NAME

    def __init__(self, template: Template, plan: Plan, seconds: float, client_id: str):
        self.template, self.plan, self.seconds, self.client_id = template, plan, seconds, client_id

    def setup(self, worker):
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the command answers it
        self.server = Server(worker.name, self.client_id)

    def render(self, job: Job) -> dict:
        workflow = self.template.fill(self.plan.values(job))
        try:
            images, facts = self.server.render(workflow, self.template.output, self.seconds)
        except PromptRefused as error:  # it would be refused again: no exception, which would be retried
            return {"refused": f"{self.plan.key(job)}: {error}"}
        return {"images": images, "workflow": digest(workflow), "server": self.server.url} | facts


def render(job: Job) -> dict:
    """The task. If the server is gone, the worker leaves and the engine gives the job to another."""
    worker = get_worker()
    try:
        return worker.plugins[NAME].render(Job(*job))
    except ServerGone as error:
        worker.loop.add_callback(worker.close_gracefully, restart=False, reason=str(error))
        deadline = time.monotonic() + 10
        while (
            worker.status == Status.running and time.monotonic() < deadline
        ):  # or the job comes straight back
            time.sleep(0.02)
        raise Reschedule from error


def drive(
    plan: Plan,
    template: Template,
    out: str | Path,
    servers: Sequence[str],
    on_done: Callable[[int, int, str], None] = lambda done, total, key: None,
    say: Callable[[str], None] = print,
    limits: Limits | None = None,
) -> Path:
    """Make every image of the plan that `out` does not hold yet; returns the manifest's path.

    `on_done(done, total, key)` is called after each image. Raises Failed (with the servers' own messages) and
    PlanError. What is done is kept, and the same call continues, also after KeyboardInterrupt."""
    servers, limits = [check_url(url) for url in servers], limits or Limits()
    if not servers or len(set(servers)) < len(servers):
        raise PlanError(f"want one or more different servers, got {', '.join(servers) or 'none'}")
    with Store(out) as store:
        jobs = plan.jobs()
        left = store.missing(plan, {job: digest(template.fill(plan.values(job))) for job in jobs})
        store.begin(plan)
        on_done(len(jobs) - len(left), len(jobs), "")
        if left:
            live = [url for url in servers if Server(url).alive()]
            if not live:
                raise Failed(f"no answer from {', '.join(servers)}")
            run = hashlib.sha256(f"{platform.node()} {Path(out).resolve()}".encode()).hexdigest()[:12]
            renderer = Renderer(template, plan, limits.seconds, f"reg-evaluation-{run}")
            _clear(live, renderer.client_id)  # of a run that was killed
            try:
                with dask.config.set(SETTINGS), _cluster(live) as cluster, Client(cluster) as client:
                    watch = Watch(client, servers, live, say, limits.patience)
                    _run(renderer, watch, store, left, on_done, limits.tries)
            finally:
                _clear(servers, renderer.client_id)
        return store.finish(plan)


def _run(renderer, watch, store, left, on_done, tries):
    plan, client, failures = renderer.plan, watch.client, []
    total = len(plan.jobs())
    done = total - len(left)
    client.register_plugin(renderer)
    names = [("image", plan.key(job)) for job in left]
    futures = client.map(render, [tuple(job) for job in left], key=names, retries=tries - 1, pure=False)
    jobs = dict(zip((future.key for future in futures), left, strict=True))
    results = as_completed(futures, with_results=True, raise_errors=False)
    del futures  # each is let go, and its images with it, once written
    try:
        for job, result in _results(results, watch, jobs):
            if isinstance(result, Exception):
                failures.append(f"{plan.key(job)}: {_error(result)}")
                watch.say(failures[-1])
                continue
            if "refused" in result:
                raise Failed(result["refused"])
            store.put(plan, job, result.pop("images"), **result)
            done += 1
            on_done(done, total, plan.key(job))
    except BaseException:
        _clear(watch.servers, renderer.client_id)  # or the workers would wait for what they have queued
        raise
    if failures:
        what = f"{len(failures)} of {total} images failed; the same command tries them again"
        raise Failed(f"{what}. The first: {failures[0]}")


def _results(results, watch, jobs):
    """(job, its result or its error) as they come. Nothing of one is kept after the next."""
    while not results.is_empty():
        if not results.has_ready():
            watch.look()
            time.sleep(0.02)
            continue
        for future, result in results.next_batch(block=False):
            yield jobs[future.key], result if future.status == "finished" else future.exception()


class Watch:
    """Looks every two seconds which servers' workers are there; starts one when its server answers again."""

    def __init__(self, client, servers, live, say, patience):
        self.client, self.cluster = client, client.cluster
        self.servers, self.say, self.patience = servers, say, patience
        self.lost = set(servers) - set(live)
        for url in self.lost:
            say(f"{url} does not answer; it joins when it does")
        self.looked = self.seen = time.monotonic()

    def look(self) -> None:
        if time.monotonic() < self.looked + 2:
            return
        names = set(self.client.run_on_scheduler(_names))
        for url in set(self.servers) - names:
            if not Server(url).alive(2):
                self._lose(url)
            else:
                self._regain(url)
        self.looked = time.monotonic()
        if set(self.servers) - self.lost:
            self.seen = self.looked
        elif self.looked > self.seen + self.patience:
            silence = f"no server has answered for {self.patience:g} seconds"
            raise Failed(f"{silence}; the same command continues when one does")

    def _lose(self, url):
        if url not in self.lost:
            self.say(f"{url} does not answer any more; its images go to the others")
        self.lost.add(url)
        self.cluster.worker_spec.pop(url, None)
        self.cluster.scale(len(self.cluster.worker_spec))

    def _regain(self, url):
        nanny = self.cluster.workers.get(url)
        ended = (Status.closing, Status.closing_gracefully, Status.closed, Status.failed)
        if nanny is not None and nanny.status not in ended:
            return  # being started again after its process died
        if url in self.lost:
            self.say(f"{url} answers again")
        self.lost.discard(url)
        self.cluster.workers.pop(url, None)
        self.cluster.worker_spec[url] = _spec(url)
        self.cluster.scale(len(self.cluster.worker_spec))


def _names(dask_scheduler) -> list[str]:
    return [worker.name for worker in dask_scheduler.workers.values()]


def _spec(url) -> dict:
    options = {"name": url, "nthreads": 1, "memory_limit": None, "silence_logs": logging.CRITICAL}
    return {"cls": Nanny, "options": LOCAL | options}


def _cluster(urls) -> SpecCluster:
    scheduler = {"cls": Scheduler, "options": LOCAL}
    return SpecCluster({url: _spec(url) for url in urls}, scheduler, silence_logs=logging.CRITICAL)


def _error(error) -> str:
    return str(error) if isinstance(error, PromptFailed) else f"{type(error).__name__}: {error}"


def _clear(servers, client_id) -> None:
    """Take our prompts out of the queues: after a cancel, and after a worker died while its prompt ran."""
    for url in servers:
        try:
            Server(url, client_id, timeout=5).drop()
        except (OSError, LookupError, TypeError):  # gone: nothing to take back
            pass
