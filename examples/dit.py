"""ImageNet samples from DiT-XL/2 with CFG or REG: DDPM with learned variances, guidance on the first channels, as its authors sample.

    python examples/dit.py --weights DiT-XL-2-256 --classes 207 360 --cfg 2 4 --form off row_sum schedule --out out/look
    torchrun --nproc_per_node 8 examples/dit.py --weights DiT-XL-2-256 --images 10000 --seeds 0 1 2 3 4 --batch 32 \\
        --cfg 1.5 2 2.5 3 --form off row_sum schedule --schedule constant --schedule interval 205 502 --out out/dit

`--weights`: a folder of the diffusers layout (transformer/, vae/), such as a download of facebook/DiT-XL-2-256.
Needs `pip install reg-guidance[diffusers]`. See docs/library.md for the paper's rows.
"""

from __future__ import annotations

import math

import grid
import torch
from diffusers import AutoencoderKL, DDPMScheduler, DiTTransformer2DModel

import reg_core
from reg_core import presets


class DiTBranches(reg_core.Branches):
    """D_c and D_u [B, C, H, W] of a DiT at training timestep `t`, from its noise prediction; keeps D_c's learned variance.

    Both run as one batch. DiT works in variance preserving coordinates, sigma = sqrt((1 - abar) / abar).
    """

    def __init__(self, network, labels: torch.Tensor):
        self.network, self.labels = network, labels
        self.null = torch.full_like(labels, network.config.num_embeds_ada_norm)  # the class that was dropped in training
        self.t = self.variance = None

    def at(self, t: int) -> DiTBranches:
        self.t, self.variance = t, None
        return self

    def predict(self, x, sigma, labels):
        self.rows += len(labels) // len(self.labels)
        t = torch.full((len(x),), self.t, device=x.device)
        out = self.network(x.to(self.network.dtype), timestep=t, class_labels=labels).sample
        noise, variance = out.to(x.dtype).chunk(2, dim=1)
        return reg_core.to_denoised("eps", noise, x, sigma, reg_core.VP), variance

    def cond(self, x, sigma):
        denoised, variance = self.predict(x, sigma, self.labels)
        if self.variance is None:  # the first call of a step is at x, later ones are probes
            self.variance = variance.detach()
        return denoised

    def reference(self, point):
        return self.predict(point.x, point.sigma, self.null)[0]

    def both(self, point):
        return self.together(point, [point.x, point.x], [self.labels, self.null])

    def both_and_probe(self, point, step):
        return self.together(point, [point.x, point.x, point.shifted(step).x], [self.labels, self.null, self.labels])

    def together(self, point, xs, labels):
        denoised, variance = self.predict(torch.cat(xs), point.sigma.repeat(len(xs)), torch.cat(labels))
        self.variance = variance[: len(point.x)]
        return denoised.chunk(len(xs))

    def compute_dtype(self, x):
        return self.network.dtype


def schedule(words: list[str], form: str) -> presets.CfgSchedule | None:
    """The authors' cosine baseline without REG counts from the unconditional prediction: its cfg is what they call scale."""
    return grid.schedule(words, "dit_plain" if form == "off" and words[0] == "cosine" else "dit")


def make_scheduler(steps: int) -> DDPMScheduler:
    """OpenAI's improved DDPM as DiT uses it: linear betas, evenly spaced and rounded timesteps, variance learned between its bounds."""
    scheduler = DDPMScheduler(1000, 1e-4, 0.02, "linear", variance_type="learned_range", clip_sample=False, timestep_spacing="linspace")
    scheduler.set_timesteps(steps)
    return scheduler


@torch.no_grad()
def sample(network, noise, labels, generators, guide: grid.Guide, steps=250, channels=3) -> tuple[torch.Tensor, reg_core.Run]:
    """(latents [B, C, H, W], the trace). `channels`: how many are guided; REG's row sums run over all of them, as the authors' do."""
    scheduler = make_scheduler(steps)
    branches, rectifier = DiTBranches(network, labels), reg_core.Rectifier(guide.settings)
    mask = (torch.arange(noise.shape[1], device=noise.device) < channels).reshape(1, -1, 1, 1)
    x = noise
    for t in scheduler.timesteps.tolist():
        abar = scheduler.alphas_cumprod[t].double()
        point = reg_core.Point.of(x, ((1 - abar) / abar).sqrt().item(), reg_core.VP)
        levels = presets.Levels((), math.inf, lambda _, t=t: 1 - t / presets.LAST_TIMESTEP)
        weight = guide.at(math.nan, levels) - 1  # DiT's schedules are functions of t
        branches.at(t)
        why = guide.settings.why_plain(weight, point.sigma)
        if not why:
            denoised = rectifier(branches, point, weight).guided(weight * mask)
        elif weight == 0:
            denoised = branches.only(point)
        else:
            denoised, reference = branches.both(point)
            denoised = denoised + weight * mask * (denoised - reference)
        if why:
            rectifier.run.plain(point.sigma, 1 + weight, why)
        guided_noise = reg_core.from_denoised("eps", denoised, x, point.sigma, reg_core.VP)
        x = scheduler.step(torch.cat([guided_noise, branches.variance], 1), t, x, generator=generators).prev_sample
    return x, rectifier.run


def main(argv=None) -> None:
    parser = grid.options(__doc__.splitlines()[0], steps=250, data_std=1.0, cfg=1.5)
    parser.add_argument("--images", type=int, default=4, help="for each seed number")
    parser.add_argument("--classes", type=int, nargs="+", help="labels, taken in turn; drawn from the image's number when absent")
    parser.add_argument("--weights", required=True, help="folder with transformer/ and vae/")
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), default="float32")
    parser.add_argument("--guided-channels", type=int, default=3)
    args = parser.parse_args(argv)
    shard = grid.Shard(args.device)
    network = DiTTransformer2DModel.from_pretrained(args.weights, subfolder="transformer", torch_dtype=getattr(torch, args.dtype)).to(shard.device)
    vae = AutoencoderKL.from_pretrained(args.weights, subfolder="vae").to(shard.device)
    config = network.config
    if config.out_channels != 2 * config.in_channels:
        raise SystemExit(f"want a DiT that learned its variances, {2 * config.in_channels} channels out; this one has {config.out_channels}")

    def images(guide, prompts, jobs):
        noise, generators = grid.draw(jobs, (config.in_channels, config.sample_size, config.sample_size), shard.device)
        labels = torch.tensor([prompt["label"] for prompt in prompts], device=shard.device)
        latents, run = sample(network, noise, labels, generators, guide, args.steps, args.guided_channels)
        return grid.to_bytes(torch.cat([vae.decode(row[None] / vae.config.scaling_factor).sample for row in latents])), run

    with torch.no_grad():
        grid.run(args, grid.class_prompts(args.images, config.num_embeds_ada_norm, args.classes), shard, schedule, images)


if __name__ == "__main__":
    main()
