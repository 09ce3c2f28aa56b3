"""Images -> features and class logits, which FID and IS compare.

By torch-fidelity's Inception, the digits classifier, or a network of the user."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from ..checks import cut, shortened
from ..files import reading
from .plan import PlanError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


class Inception(nn.Module):
    """The Inception-v3 of the FID papers: torch-fidelity's port of the TensorFlow weights and resizing.

    uint8 [B, 3, H, W] -> pool features [B, 2048], unbiased logits [B, 1008]. `weights`: a local file. None:
    torch-fidelity downloads it.
    """

    def __init__(self, weights: Path | None = None):
        super().__init__()
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        if weights is not None and not Path(weights).is_file():
            raise PlanError(f"no Inception weights at {weights}")
        path = None if weights is None else str(weights)
        wanted = ["2048", "logits_unbiased"]
        given = {"feature_extractor_weights_path": path}
        with reading(weights or "the download", "torch-fidelity's Inception weights", repeat=False):
            self.network = FeatureExtractorInceptionV3("inception-v3-compat", wanted, **given)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self.network(images)


class Digits(nn.Module):
    """The classifier of the digits: uint8 [B, 3, H, W] -> features [B, 64], logits [B, 10].

    H and W are multiples of 8."""

    def __init__(self):
        super().__init__()
        from ..demo_models.loading import load_judge

        self.classifier = load_judge("digits")

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        gray = images.float().mean(1, keepdim=True) / 127.5 - 1
        gray = F.adaptive_avg_pool2d(gray, 8)  # [B, 1, 8, 8] in -1..1
        return self.classifier.features(gray), self.classifier(gray)


def load_extractor(name: str = "inception", weights: Path | None = None, device: str = "cpu") -> nn.Module:
    """An extractor: uint8 [B, 3, H, W] -> features [B, F], or (features, logits [B, C]).

    `name`: `inception`, `digits`, or `module:function` that returns such an nn.Module."""
    if weights is not None and name != "inception":
        raise PlanError(f"weights belong to the features 'inception', not to {shortened(name)}")
    if name == "inception":
        module = Inception(weights)
    elif name == "digits":
        module = Digits()
    elif ":" in name:
        place, function = name.split(":", 1)
        try:
            module = getattr(importlib.import_module(place), function)()
        except (ImportError, AttributeError) as error:
            raise PlanError(f"features {shortened(name)}: {cut(error)}") from None
        if not isinstance(module, nn.Module):
            raise PlanError(f"features {shortened(name)}: want an nn.Module, got {type(module).__name__}")
    else:
        raise PlanError(f"features are inception, digits or module:function, got {shortened(name)}")
    return module.eval().to(device)


@torch.no_grad()
def extract(
    paths: Sequence[Path], extractor: nn.Module, batch: int = 32, device: str = "cpu"
) -> tuple[Tensor, Tensor | None]:
    """Features [N, F] and logits [N, C] (None if the extractor gives none) of image files, in order."""
    features, logits = [], []
    for images in batches(paths, batch):
        out = extractor(images.to(device))
        out = out if isinstance(out, tuple) else (out, None)
        if out[0].ndim != 2 or len(out[0]) != len(images):
            want = f"features of shape [{len(images)}, F]"
            raise PlanError(f"want {want} from the extractor, got {list(out[0].shape)}")
        features.append(out[0].cpu())
        logits.append(out[1])
    return torch.cat(features), None if logits[0] is None else torch.cat([part.cpu() for part in logits])


def batches(paths: Sequence[Path], size: int) -> Iterator[Tensor]:
    """uint8 [B, 3, H, W]: neighbours of equal size together, at most `size`."""
    pending: list[Tensor] = []
    for path in paths:
        image = read(path)
        if pending and (pending[0].shape != image.shape or len(pending) == size):
            yield torch.stack(pending)
            pending = []
        pending.append(image)
    if pending:
        yield torch.stack(pending)


def read(path: Path) -> Tensor:
    """An image file as uint8 [3, H, W]."""
    with reading(path, "an image"), Image.open(path) as image:
        return torch.from_numpy(np.array(image.convert("RGB"))).movedim(-1, 0)


def image_files(folder: Path) -> list[Path]:
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not files:
        raise PlanError(f"{folder} holds no images ({', '.join(SUFFIXES)})")
    return files
