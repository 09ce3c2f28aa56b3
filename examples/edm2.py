"""ImageNet samples from an EDM2-style network and a second one that guides it: CFG, autoguidance, with or without REG.

    python examples/edm2.py --edm2-repo ~/edm2 --net edm2-img512-s-2147483-0.070.pkl --gnet edm2-img512-xs-0134217-0.125.pkl \\
        --vae sd-vae-ft-mse --gnet-labels --cfg 1.5 2.1 3 --form off row_sum schedule --classes 207 360 --out out/look
    torchrun --nproc_per_node 8 examples/edm2.py ... --images 10000 --seeds 0 1 2 3 4 --batch 32 --out out/edm2

`--vae`: a folder with the autoencoder that EDM2's latents are of, a download of stabilityai/sd-vae-ft-mse. Without it EDM2's own code
downloads one. EDM2-XXL differs in nothing but the files.

The network's code is not part of this project: EDM2 is licensed for non-commercial use, and you bring your own checkout.

*** A .pkl is a program. Loading one runs whatever code is in it. Load only files whose origin you trust. ***

Any other network comes in by `--loader FILE.py:FUNCTION`, a function (path, device) -> (net, decode), with `vae=` where --vae is given:
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

import grid
import torch

import reg_core
from reg_core import presets


def load_pickle(path: str, device, vae: str | None = None) -> tuple:
    """(net, decode) of an EDM2 snapshot {'ema': net, 'encoder': encoder}; without an encoder the network paints RGB itself."""
    with open(path, "rb") as file:
        data = pickle.load(file)  # runs code: see above
    encoder = data.get("encoder") or importlib.import_module("training.encoders").StandardRGBEncoder()
    if vae is not None:
        encoder.vae_name = vae  # what its init loads
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


def sample(net, gnet, noise, labels, guide_labels, guide: grid.Guide, sigmas) -> tuple:
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
    parser = grid.options(__doc__.splitlines()[0], steps=32, data_std=0.5, cfg=1.5)
    parser.add_argument("--images", type=int, default=4, help="for each seed number")
    parser.add_argument("--classes", type=int, nargs="+", help="labels, taken in turn; drawn from the image's number when absent")
    parser.add_argument("--net", required=True, help="the network")
    parser.add_argument("--gnet", help="the guiding network: unconditional for CFG, a worse one for autoguidance; none: --net without labels")
    parser.add_argument("--gnet-labels", action=argparse.BooleanOptionalAction, default=False, help="the guide sees the labels: autoguidance")
    parser.add_argument("--edm2-repo", help="your checkout of EDM2, for its pickles")
    parser.add_argument("--vae", help="folder of the autoencoder, for networks of latents")
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
    if args.vae is not None and not Path(args.vae).is_dir():
        raise SystemExit(f"--vae must be a folder, got {args.vae!r}")
    sigmas, shard = reg_core.karras_sigmas(args.steps, args.sigma_min, args.sigma_max), grid.Shard(args.device)
    load = find_loader(args.loader)
    net, decode = load(args.net, shard.device, **({} if args.vae is None else {"vae": args.vae}))
    gnet = load(args.gnet, shard.device)[0] if args.gnet else net
    if args.gnet_labels and gnet.label_dim != net.label_dim:
        raise SystemExit(f"--gnet-labels: the guide takes {gnet.label_dim} labels, the network {net.label_dim}")

    def images(guide, prompts, jobs):
        noise, _ = grid.draw(jobs, (net.img_channels, net.img_resolution, net.img_resolution), shard.device)
        drawn = [prompt["label"] for prompt in prompts]
        labels = torch.eye(net.label_dim, device=noise.device)[drawn] if net.label_dim else None
        latents, run = sample(net, gnet, noise, labels, labels if args.gnet_labels else None, guide, sigmas)
        return decode(latents).permute(0, 2, 3, 1).cpu().numpy(), run

    with torch.no_grad():
        prompts = grid.class_prompts(args.images, net.label_dim, args.classes)
        grid.run(args, prompts, shard, lambda words, form: grid.schedule(words, "edm2"), images)


if __name__ == "__main__":
    main()
