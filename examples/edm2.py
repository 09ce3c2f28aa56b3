"""ImageNet samples from an EDM2-style network and a second one that guides it: CFG, autoguidance, with or without REG.

    python examples/edm2.py --edm2-repo ~/edm2 --net edm2-img512-s-2147483-0.070.pkl --gnet edm2-img512-xs-0134217-0.125.pkl \\
        --gnet-labels --cfg 2.1 --form row_sum --classes 207 360 --out sheet.png
    torchrun --nproc_per_node 8 examples/edm2.py ... --seeds 0-49999 --batch 32 --out out/edm2_reg

The network's code is not part of this project: EDM2 is licensed for non-commercial use, and you bring your own checkout.

*** A .pkl is a program. Loading one runs whatever code is in it. Load only files whose origin you trust. ***

Any other network comes in by `--loader FILE.py:FUNCTION`, a function (path, device) -> (net, decode):
- `net(x [B, C, H, W], sigma [B], class_labels [B, label_dim] one-hot or None) -> D`, in x's coordinates: x0 plus sigma times noise,
- `net.img_channels`, `net.img_resolution`, `net.label_dim` (0: takes no label); `net.use_fp16`, if it is there and true, says
  that the network computes in half precision (it makes finite differences longer),
- `decode(latents) -> uint8 [B, 3, H, W]`; None for a guiding network.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import pickle
import sys
from pathlib import Path

import imagenet
import torch

import reg_core
from reg_core import presets


def load_pickle(path: str, device) -> tuple:
    """(net, decode) of an EDM2 snapshot {'ema': net, 'encoder': encoder}; without an encoder the network paints RGB itself."""
    with open(path, "rb") as file:
        data = pickle.load(file)  # runs code: see above
    encoder = data.get("encoder") or importlib.import_module("training.encoders").StandardRGBEncoder()
    encoder.init(device)
    return data["ema"].to(device).eval().requires_grad_(False), encoder.decode


def find_loader(name: str | None):
    """`FILE.py:FUNCTION` -> the function; the pickles' loader without a name."""
    if name is None:
        return load_pickle
    path, _, function = name.rpartition(":")
    if not Path(path).is_file():
        raise SystemExit(f"--loader must be FILE.py:FUNCTION of a file that exists, got {name!r}")
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, function)


def sample(net, gnet, noise, labels, guide_labels, guide: imagenet.Guide, sigmas) -> tuple:
    """(latents [B, C, H, W], the trace): Heun's sampler over `sigmas`, deterministic (Karras et al. 2022, Algorithm 1)."""
    sigmas = sigmas.to(noise.device)
    levels = presets.Levels(tuple(sigmas[:-1].tolist()), float(sigmas[0]), float)  # its schedules are functions of sigma

    def denoiser(network, labels):
        return lambda x, sigma: network(x, sigma, labels).to(x.dtype)

    def weight(sigma: float) -> float:
        return guide.at(sigma, levels) - 1

    dtype = torch.float16 if getattr(net, "use_fp16", False) else None
    guided = reg_core.Guided(denoiser(net, labels), denoiser(gnet, guide_labels), weight, guide.settings, dtype=dtype)
    return reg_core.sample_heun(guided, noise * sigmas[0], sigmas), guided.trace.last


def main(argv=None) -> None:
    parser = imagenet.options(__doc__.splitlines()[0], steps=32, data_std=0.5)
    parser.add_argument("--net", required=True, help="the network")
    parser.add_argument("--gnet", help="the guiding network: unconditional for CFG, a worse one for autoguidance; none: --net without labels")
    parser.add_argument("--gnet-labels", action=argparse.BooleanOptionalAction, default=False, help="the guide sees the labels: autoguidance")
    parser.add_argument("--edm2-repo", help="your checkout of EDM2, for its pickles")
    parser.add_argument("--loader", help="FILE.py:FUNCTION, for anything else")
    parser.add_argument("--sigma-min", type=float, default=0.002)
    parser.add_argument("--sigma-max", type=float, default=80.0)
    args = parser.parse_args(argv)
    if args.gnet is None and args.gnet_labels:
        raise SystemExit("--gnet-labels without --gnet: the network would be guided by itself")
    if args.loader is None:
        if args.edm2_repo is None or not Path(args.edm2_repo).is_dir():
            raise SystemExit(f"--edm2-repo must be the folder of your EDM2 checkout (or use --loader), got {args.edm2_repo!r}")
        sys.path.insert(0, args.edm2_repo)
        print("loading pickles: THIS RUNS THE CODE INSIDE THEM", *filter(None, (args.net, args.gnet)))
    guide = imagenet.Guide(args.cfg, imagenet.settings(args), imagenet.schedule(args.schedule, "edm2"))
    sigmas, shard = reg_core.karras_sigmas(args.steps, args.sigma_min, args.sigma_max), imagenet.Shard(args.device)
    load = find_loader(args.loader)
    net, decode = load(args.net, shard.device)
    gnet = load(args.gnet, shard.device)[0] if args.gnet else net
    if args.gnet_labels and gnet.label_dim != net.label_dim:
        raise SystemExit(f"--gnet-labels: the guide takes {gnet.label_dim} labels, the network {net.label_dim}")

    def images(noise, drawn, generators):
        labels = torch.eye(net.label_dim, device=noise.device)[drawn] if net.label_dim else None
        latents, trace = sample(net, gnet, noise, labels, labels if args.gnet_labels else None, guide, sigmas)
        if shard.rank == 0:
            print(trace.summary())
        return decode(latents).permute(0, 2, 3, 1).cpu().numpy()

    with torch.no_grad():
        imagenet.run(args, (net.img_channels, net.img_resolution, net.img_resolution), net.label_dim, shard, images)


if __name__ == "__main__":
    main()
