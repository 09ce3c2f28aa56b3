"""Many small jobs over processes, each result a line of a file: a killed run goes on where it stopped.

The file is append-only JSON lines. Its first line holds the settings that every job shares; a file of other
settings is refused. Only the parent process writes. A last line cut short by a kill is dropped, and said."""

from __future__ import annotations

import json
import multiprocessing
import os
import warnings
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import torch
from tqdm import tqdm


class Journal:
    """Results by key in a JSON lines file. `header`: JSON-able settings that all results share.

    Raises ValueError, naming file and line, for a file of another header and for a damaged line other than
    the last."""

    def __init__(self, path: str | Path, header: dict):
        self.path = Path(path)
        self.results: dict[str, dict] = {}
        header = json.loads(json.dumps(header))
        if self.path.is_file() and self.path.stat().st_size:
            self._read(header)
        if not self.path.is_file() or not self.path.stat().st_size:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._append({"header": header})

    def _read(self, header: dict) -> None:
        data = self.path.read_bytes()
        lines = data.splitlines(keepends=True)
        good = 0
        for i, line in enumerate(lines):
            try:
                if not line.endswith(b"\n"):
                    raise ValueError("no end of line")
                entry = json.loads(line)
                if i > 0:
                    self.results[entry["key"]] = entry["result"]
            except (ValueError, KeyError, TypeError) as error:
                where = f"{self.path}, line {i + 1}"
                if i < len(lines) - 1:
                    way_out = "mend it or start with another file"
                    raise ValueError(f"{where} is damaged ({error}): {way_out}") from None
                what = "the last line was cut short and is dropped; its job runs again"
                warnings.warn(f"{self.path}: {what}", stacklevel=3)
                with self.path.open("r+b") as file:
                    file.truncate(good)
                break
            if i == 0 and entry.get("header") != header:
                settings = f"{entry.get('header')}, now {header}"
                way_out = "Take another file or delete it"
                raise ValueError(f"{self.path} was begun with other settings: {settings}. {way_out}")
            good += len(line)

    def add(self, key: str, result: dict) -> None:
        """Append one result; on the disk when this returns."""
        self._append({"key": key, "result": result})
        self.results[key] = result

    def _append(self, entry: dict) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
            file.flush()
            os.fsync(file.fileno())


def run(
    journal: Journal,
    jobs: Iterable[tuple[str, object]],
    work: Callable[[object], dict],
    processes: int = 1,
    title: str = "jobs",
) -> dict[str, dict]:
    """`work(job)` for every (key, job) not yet in the journal; {key: result} of these jobs, in their order.

    `work` is a module's function, `job` and its result can be pickled. With one process all runs in this one.
    A failing job ends the run with its error; what was finished is kept. Raises ValueError for a key given
    twice."""
    jobs = list(jobs)
    keys = [key for key, _ in jobs]
    if twice := sorted({key for key in keys if keys.count(key) > 1}):
        raise ValueError(f"jobs must have different keys, got twice: {twice}")
    if processes < 1:
        raise ValueError(f"processes must be at least 1, got {processes}")
    todo = [(key, job) for key, job in jobs if key not in journal.results]
    done = len(jobs) - len(todo)
    with tqdm(total=len(jobs), initial=done, desc=title, unit="job", mininterval=1.0) as bar:
        if processes == 1 or len(todo) < 2:
            for key, job in todo:
                journal.add(key, work(job))
                bar.update()
        else:
            # spawn: a forked torch can hang in its thread pool.
            context = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(min(processes, len(todo)), context, initializer=_one_thread) as pool:
                futures = {pool.submit(work, job): key for key, job in todo}
                try:
                    for future in as_completed(futures):
                        journal.add(futures[future], future.result())
                        bar.update()
                except BaseException:
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise
    return {key: journal.results[key] for key in keys}


def _one_thread() -> None:
    torch.set_num_threads(1)
