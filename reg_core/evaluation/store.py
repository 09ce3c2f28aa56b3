"""The folder of images. An image counts once its record is there. Both are written whole or not at all.

- DIR/plan.json: which images there should be.
- DIR/images/<point>/<prompt>_<seed>.png
- DIR/records/<point>/<prompt>_<seed>.json
- DIR/manifest.json: at the end, every image with its sha256, the same however the work was spread.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

from ..files import read_json, reading, whole_file
from .plan import Job, Plan, PlanError

CONSTANT = ("prompt", "seed", "noise_seed", "images", "share")  # of a record, whoever made it


class Store:
    """`with Store(out) as store:` holds the folder for one run. Reading needs no `with`."""

    def __init__(self, out: str | Path):
        self.out = Path(out)

    def __enter__(self):
        from filelock import FileLock, Timeout  # comes with torch; the system lets go when the process dies

        self.out.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(self.out / ".lock")
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise PlanError(f"another run is writing to {self.out}") from None
        for leftover in self.out.rglob("*.partial"):
            leftover.unlink()
        return self

    def __exit__(self, *_):
        self._lock.release()

    def begin(self, plan: Plan) -> None:
        write(self.out / "plan.json", json.dumps(plan.to_json(), indent=1).encode())

    def plan(self) -> Plan:
        """Raises FileError without a plan.json, or for one that is damaged."""
        path = self.out / "plan.json"
        if not path.is_file():
            raise PlanError(f"{self.out} holds no plan.json, which `run` writes")
        want = "a plan as `run` writes it"
        data = read_json(path, want)
        with reading(path, want):
            return Plan.from_json(data)

    def record(self, key: str) -> dict | None:
        """The record of an image that is all there, else None: what is damaged is made again."""
        try:
            record = read_json(self.out / "records" / f"{key}.json")
            sizes = [(self.out / "images" / image["file"]).stat().st_size for image in record["images"]]
            whole = sizes == [image["bytes"] for image in record["images"]]
        except (OSError, ValueError, LookupError, TypeError):
            return None
        return record if whole else None

    def missing(self, plan: Plan, digests: dict | None = None) -> list[Job]:
        """The jobs still to do. `digests`: {job: sha256 of its workflow}; images of another are refused."""
        left = []
        for job in plan.jobs():
            record = self.record(plan.key(job))
            if record is None:
                left.append(job)
            elif digests is not None and record.get("workflow") != digests[job]:
                held = f"{self.out} already holds {plan.key(job)}"
                raise PlanError(f"{held}, made from another workflow, prompt or value: use another folder")
        return left

    def put(self, plan: Plan, job: Job, images: Sequence[bytes], **facts) -> dict:
        """Write the PNG files of one job, then its record."""
        key, files = plan.key(job), []
        for i, data in enumerate(images):
            name = f"{key}.png" if len(images) == 1 else f"{key}_{i:02d}.png"
            write(self.out / "images" / name, data)
            files.append({"file": name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()})
        record = {"prompt": job.prompt, "seed": job.seed, "noise_seed": job.noise_seed}
        record |= {"images": files} | facts
        write(self.out / "records" / f"{key}.json", json.dumps(record).encode())
        return record

    def finish(self, plan: Plan) -> Path:
        """Write the manifest of a finished plan: {key: record without who made it and how long it took}."""
        entries = {}
        for job in sorted(plan.jobs()):
            record = self.record(plan.key(job))
            if record is not None:
                entries[plan.key(job)] = {name: record.get(name) for name in CONSTANT}
        path = self.out / "manifest.json"
        write(path, json.dumps(entries, indent=1).encode())
        return path


def write(path: Path, data: bytes) -> None:
    """All of `data`, or nothing; on the disk when this returns."""
    with whole_file(path) as partial, open(partial, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
