"""FID, Inception score and CLIP score (torchmetrics) of every point, over all its images and for each seed number."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.inception import InceptionScore
from tqdm import tqdm

from .features import extract, image_files, read
from .plan import Job, Plan, PlanError
from .store import Store


class Given(nn.Module):
    """Hands torchmetrics the features we have: an image goes through its network once, for all metrics and subsets."""

    def __init__(self, num_features: int):
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


@dataclass(frozen=True)
class Statistics:
    """The Gaussian fitted to the reference's features: mean [F], covariance [F, F], from `count` images."""

    mean: np.ndarray
    cov: np.ndarray
    count: int

    @classmethod
    def of(cls, features: Tensor) -> Statistics:
        wide = features.double().numpy()
        return cls(wide.mean(0), np.cov(wide, rowvar=False), len(wide))

    @classmethod
    def load(cls, path: Path) -> Statistics:
        """An .npz with mu and sigma, as FID's own code and EDM's write it."""
        with np.load(path, allow_pickle=False) as file:
            if not {"mu", "sigma"} <= set(file.files):
                raise PlanError(f"{path}: want mu and sigma, got {', '.join(file.files)}")
            mean, cov = file["mu"].astype(np.float64), file["sigma"].astype(np.float64)
            count = int(file["count"]) if "count" in file.files else 0
        if mean.ndim != 1 or cov.shape != mean.shape * 2:
            raise PlanError(f"{path}: want mu [F] and sigma [F, F], got {list(mean.shape)} and {list(cov.shape)}")
        return cls(mean, cov, count)

    def save(self, path: Path) -> None:
        np.savez(path, mu=self.mean, sigma=self.cov, count=self.count)

    def metric(self) -> FrechetInceptionDistance:
        """torchmetrics' FID with this as its real side (its states are sums over images; any count gives the same Gaussian)."""
        fid = FrechetInceptionDistance(feature=Given(len(self.mean)), reset_real_features=False)
        mean, cov, n = torch.from_numpy(self.mean), torch.from_numpy(self.cov), max(self.count, 2)
        fid.real_features_sum.copy_(n * mean)
        fid.real_features_cov_sum.copy_((n - 1) * cov + n * torch.outer(mean, mean))
        fid.real_features_num_samples.fill_(n)
        return fid


@dataclass(frozen=True)
class Scores:
    """`values[point][metric]`: {"all": float, "seeds": [float, one a seed number]}."""

    plan: Plan
    values: list[dict]
    images: int  # per point
    pairs: int  # (prompt, seed) pairs behind them
    features: int
    effective_cfg: list[float | None]
    reference: Statistics


def score_folder(out: Path, reference: Path, extractor: nn.Module, clip: str | None = None, partial=False, batch: int = 32, device: str = "cpu") -> Scores:
    """Score what `run` or `sample` left in `out` against a folder of real images or an .npz of statistics."""
    store = Store(out)
    plan = store.plan()
    records = {job: store.record(plan.key(job)) for job in plan.jobs()}
    groups = complete(plan, records, partial)
    reference = Path(reference)
    if not reference.exists():
        raise PlanError(f"no reference at {reference}")
    real = Statistics.load(reference) if reference.is_file() else Statistics.of(extract(image_files(reference), extractor, batch, device)[0])
    fid, words = real.metric(), ClipScore(clip, batch, device) if clip else None

    values, counts, cfgs = [], set(), []
    for point in tqdm(range(len(plan.points)), unit="point", desc="scoring"):
        parts, texts = [], []
        for jobs in groups[point]:
            files = [(store.out / "images" / image["file"], job) for job in jobs for image in records[job]["images"]]
            parts.append(extract([path for path, _ in files], extractor, batch, device))
            texts.append(words([path for path, _ in files], [plan.prompts[job.prompt]["prompt"] for _, job in files]) if words else None)
        features, logits = (list(part) for part in zip(*parts, strict=True))
        if features[0].shape[1] != len(real.mean):
            raise PlanError(f"the reference has {len(real.mean)} features, the extractor gives {features[0].shape[1]}")
        entry = {"fid": _all_and_each(lambda part: frechet(fid, part), features)}
        if logits[0] is not None:
            entry["is"] = _all_and_each(inception_score, logits)
        if words:
            entry["clip"] = {"all": float(np.average(texts, weights=[len(part) for part in features])), "seeds": texts}
        values.append(entry)
        counts.add(sum(map(len, features)))
        known = [records[job].get("effective_cfg") for jobs in groups[point] for job in jobs]
        cfgs.append(float(np.mean(known)) if known and None not in known else None)
    if len(counts) > 1:
        raise PlanError(f"points differ in their number of images: {', '.join(map(str, sorted(counts)))}; compare equal numbers only")
    return Scores(plan, values, counts.pop(), sum(map(len, groups[0])), len(real.mean), cfgs, real)


def complete(plan: Plan, records: dict, partial: bool) -> list[list[list[Job]]]:
    """[point][seed] -> jobs: the same prompts and seeds at every point, or PlanError."""
    holes = {(job.prompt, job.seed) for job, record in records.items() if record is None}
    if holes and not partial:
        missing = sum(record is None for record in records.values())
        raise PlanError(f"{missing} of {len(records)} images are missing: finish the run, or score what all points have with --partial")
    groups = [[[Job(p, i, s) for i in range(len(plan.prompts)) if (i, s) not in holes] for s in plan.seeds] for p in range(len(plan.points))]
    groups = [[jobs for jobs in seeds if jobs] for seeds in groups]
    if not groups[0] or min(len(jobs) for jobs in groups[0]) < 2:
        raise PlanError("want at least two prompts per seed that every point has: FID needs a covariance")
    return groups


def frechet(fid: FrechetInceptionDistance, features: Tensor) -> float:
    """Squared Frechet distance of features [N, F] to the metric's real side."""
    fid.reset()
    fid.update(features, real=False)
    return fid.compute().item()


def inception_score(logits: Tensor) -> float:
    """exp E KL(p(y|x) || p(y)) over all images at once: no splits, hence nothing random."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that it keeps its input; that one split has no standard deviation
        metric = InceptionScore(feature=Given(logits.shape[1]), splits=1)
        metric.update(logits)
        return metric.compute()[0].item()


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
    """100 times the mean cosine of images and their prompts, floored at 0, by a CLIP model of transformers."""

    def __init__(self, name: str, batch: int = 32, device: str = "cpu"):
        from torchmetrics.multimodal.clip_score import CLIPScore
        from transformers import CLIPProcessor

        self.metric = CLIPScore(lambda: (ClipModel(name), CLIPProcessor.from_pretrained(name))).to(device)
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
