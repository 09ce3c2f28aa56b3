"""FID, Inception score and CLIP score of every point, over all its images and for each seed number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..files import reading
from .features import extract, image_files, read
from .metrics import Statistics, frechet, inception_score
from .plan import Job, Plan, PlanError
from .store import Store


@dataclass(frozen=True)
class Scores:
    """`values[point][metric]`: {"all": float, "seeds": [float, one a seed number]}."""

    plan: Plan
    values: list[dict]
    images: int  # per point
    pairs: int  # (prompt, seed) pairs behind them
    features: int
    share: list[float | None]
    reference: Statistics


def score_folder(
    out: Path,
    reference: Path,
    extractor: nn.Module,
    clip: str | None = None,
    partial: bool = False,
    batch: int = 32,
    device: str = "cpu",
) -> Scores:
    """Scores of what `run` left in `out` against a folder of real images or an .npz of statistics."""
    store = Store(out)
    plan = store.plan()
    records = {job: store.record(plan.key(job)) for job in plan.jobs()}
    groups = complete(plan, records, partial)

    def features_of(paths: Sequence[Path]):
        return extract(paths, extractor, batch, device)

    words = ClipScore(clip, batch, device) if clip else None  # first: what fails is not slow
    real = _statistics(Path(reference), features_of)
    values, counts, shares = [], set(), []
    for point in tqdm(range(len(plan.points)), unit="point", desc="scoring"):
        parts, texts = [], []
        for jobs in groups[point]:
            images = [(image["file"], job) for job in jobs for image in records[job]["images"]]
            paths = [store.out / "images" / file for file, _ in images]
            parts.append(features_of(paths))
            if words:
                texts.append(words(paths, [plan.prompts[job.prompt]["prompt"] for _, job in images]))
        features, logits = (list(part) for part in zip(*parts, strict=True))
        if features[0].shape[1] != len(real.mean):
            given = f"the extractor gives {features[0].shape[1]}"
            raise PlanError(f"the reference has {len(real.mean)} features, {given}")
        entry = {"fid": _all_and_each(lambda part: frechet(Statistics.of(part), real), features)}
        if logits[0] is not None:
            entry["is"] = _all_and_each(inception_score, logits)
        if words:
            mean = np.average(texts, weights=[len(part) for part in features])
            entry["clip"] = {"all": float(mean), "seeds": texts}
        values.append(entry)
        counts.add(sum(map(len, features)))
        known = [records[job].get("share") for jobs in groups[point] for job in jobs]
        shares.append(float(np.mean(known)) if known and None not in known else None)
    if len(counts) > 1:
        numbers = ", ".join(map(str, sorted(counts)))
        raise PlanError(f"points differ in their number of images: {numbers}; compare equal numbers only")
    return Scores(plan, values, counts.pop(), sum(map(len, groups[0])), len(real.mean), shares, real)


def _statistics(reference: Path, features_of) -> Statistics:
    if not reference.exists():
        raise PlanError(f"no reference at {reference}")
    if reference.is_file():
        return Statistics.load(reference)
    return Statistics.of(features_of(image_files(reference))[0])


def complete(plan: Plan, records: dict, partial: bool) -> list[list[list[Job]]]:
    """[point][seed] -> jobs: the same prompts and seeds at every point, or PlanError."""
    holes = {(job.prompt, job.seed) for job, record in records.items() if record is None}
    if holes and not partial:
        missing = sum(record is None for record in records.values())
        way_out = "finish the run, or score what all points have with --partial"
        raise PlanError(f"{missing} of {len(records)} images are missing: {way_out}")
    kept = [[i for i in range(len(plan.prompts)) if (i, seed) not in holes] for seed in plan.seeds]
    seeds = [(seed, prompts) for seed, prompts in zip(plan.seeds, kept, strict=True) if prompts]
    groups = [[[Job(p, i, s) for i in prompts] for s, prompts in seeds] for p in range(len(plan.points))]
    if not groups[0] or min(len(jobs) for jobs in groups[0]) < 2:
        raise PlanError("want at least two prompts per seed that every point has: FID needs a covariance")
    return groups


class ClipModel(nn.Module):
    """A CLIP of transformers, by name or folder, whose projections are tensors in every version of it."""

    def __init__(self, name: str):
        super().__init__()
        from transformers import CLIPModel

        self.model = CLIPModel.from_pretrained(name).eval()
        self.config = self.model.config

    def get_image_features(self, pixels: Tensor) -> Tensor:
        return _tensor(self.model.get_image_features(pixels))

    def get_text_features(self, ids: Tensor, mask: Tensor) -> Tensor:
        return _tensor(self.model.get_text_features(ids, mask))


class ClipScore:
    """100 times the mean cosine of images and their prompts, at least 0, by torchmetrics and a CLIP model."""

    def __init__(self, name: str, batch: int = 32, device: str = "cpu"):
        from torchmetrics.multimodal.clip_score import CLIPScore
        from transformers import CLIPProcessor

        with reading(name, "a CLIP of transformers, by name or folder"):
            models = ClipModel(name), CLIPProcessor.from_pretrained(name)
        self.metric = CLIPScore(lambda: models).to(device)
        self.batch, self.device = batch, device

    @torch.no_grad()
    def __call__(self, paths: Sequence[Path], prompts: Sequence[str]) -> float:
        self.metric.reset()
        for k in range(0, len(paths), self.batch):
            images = [read(path).to(self.device) for path in paths[k : k + self.batch]]
            self.metric.update(images, list(prompts[k : k + self.batch]))
        return self.metric.compute().item()


def _tensor(output) -> Tensor:
    return output if isinstance(output, Tensor) else output.pooler_output  # transformers 5


def _all_and_each(function, parts: list) -> dict:
    return {"all": function(torch.cat(parts)), "seeds": [function(part) for part in parts]}
