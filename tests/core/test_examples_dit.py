"""The DiT example on a tiny random configuration, loaded from a folder as real weights are.

Oracle: the REG authors' arithmetic on the network's raw output (gradient over all channels, guidance on three), inside OpenAI's
improved DDPM step with learned variances, written out here; no diffusers scheduler in it.
"""

import hosts
import numpy as np
import pytest
import torch
from PIL import Image

import reg_core

diffusers = hosts.diffusers()
dit, grid = hosts.example("dit"), hosts.example("grid")

CLASSES, STEPS = 10, 5


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny_dit")
    generator = torch.Generator().manual_seed(0)
    sizes = dict(num_attention_heads=2, attention_head_dim=4, num_layers=2, norm_num_groups=4, sample_size=4)
    network = diffusers.DiTTransformer2DModel(**sizes, in_channels=4, out_channels=8, num_embeds_ada_norm=CLASSES)
    for p in network.parameters():
        p.data = torch.randn(p.shape, generator=generator) * (1.5 / p[0].numel() ** 0.5 if p.ndim > 1 else 0.2)
    network.proj_out_2.weight.data.view(4, 8, -1)[:, 4:] *= 0.1  # variances between their bounds, or samples grow without any
    network.proj_out_2.bias.data.view(4, 8)[:, 4:] *= 0.1
    network.save_pretrained(folder / "transformer")
    diffusers.AutoencoderKL(block_out_channels=(4, 4), down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
                            norm_num_groups=2, latent_channels=4, sample_size=8).save_pretrained(folder / "vae")  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def network(weights):
    return diffusers.DiTTransformer2DModel.from_pretrained(weights, subfolder="transformer").double().eval()


def authors_loop(network, noise, labels, generators, kind, scale, param=None, steps=STEPS):
    """`scale` is theirs: w = cfg - 1, but for plain cosine, which counts from the unconditional prediction."""
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    stride, kept = 999 / (steps - 1), []
    for i in range(steps):
        kept.append(round(i * stride))
    bar = torch.cumprod(1 - betas, 0)[kept]
    previous = torch.cat([torch.ones(1, dtype=torch.float64), bar[:-1]])
    beta = 1 - bar / previous
    posterior = beta * (1 - previous) / (1 - bar)
    smallest = torch.cat([posterior[1:2], posterior[1:]]).log()
    x = noise
    for i in reversed(range(steps)):
        t = torch.full((len(x),), kept[i])
        half = x.detach().requires_grad_(True)
        out = network(half, timestep=t, class_labels=labels).sample
        (grad,) = torch.autograd.grad(out[:, :4].sum(), half)
        with torch.no_grad():
            uncond = network(half, timestep=t, class_labels=torch.full_like(labels, CLASSES)).sample[:, :4]
            cond, variance = out.detach().split(4, 1)
            rectification = 1 - (1 - bar[i]).sqrt() * grad if kind.startswith("reg") else 1.0
            w = scale
            if "intervalt" in kind:
                w = scale * (param[0] <= kept[i] <= param[1])
            if "linear" in kind:
                w = kept[i] * (param - scale) / (0 - 1000) + scale
            if "cosine" in kind:
                w = (1 - np.cos(np.pi * (1 - kept[i] / 1000) ** param)) * 0.5 * scale - (kind == "cosine")
            eps = cond + w * rectification * (cond - uncond)
            eps[:, 3:] = cond[:, 3:]
            x0 = (x - (1 - bar[i]).sqrt() * eps) / bar[i].sqrt()
            mean = beta[i] * previous[i].sqrt() / (1 - bar[i]) * x0 + (1 - previous[i]) * (1 - beta[i]).sqrt() / (1 - bar[i]) * x
            if i > 0:
                log_variance = (variance + 1) / 2 * beta[i].log() + (1 - variance) / 2 * smallest[i]
                mean = mean + (log_variance / 2).exp() * torch.stack([torch.randn(x.shape[1:], generator=g, dtype=x.dtype) for g in generators])
            x = mean
    return x


@pytest.mark.parametrize(
    ("kind", "param", "schedule"),
    [
        ("original", None, "constant"),
        ("intervalt", (205, 502), "interval 205 502"),
        ("linear", 1.0, "linear 1 0.5"),
        ("cosine", 2.0, "cosine 2"),
        ("reg_original", None, "constant"),
        ("reg_intervalt", (205, 502), "interval 205 502"),
        ("reg_linear", 1.0, "linear 1 0.5"),
        ("reg_cosine", 2.0, "cosine 2"),
    ],
)
def test_equals_the_authors_sampling(network, kind, param, schedule):
    scale, labels = 2.0, torch.tensor([3, 7])

    def start():
        return [torch.Generator().manual_seed(seed) for seed in (5, 6)]

    noise = torch.randn(2, 4, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = authors_loop(network, noise, labels, start(), kind, scale, param)
    rectified = kind.startswith("reg")
    settings = reg_core.Settings(form="row_sum" if rectified else "off", engine="reverse")
    made = dit.schedule(schedule.split(), settings.form)
    cfg = scale if kind == "cosine" else 1 + scale
    guide = grid.Guide(cfg, settings, made)
    result, trace = dit.sample(network, noise, labels, start(), guide, STEPS)
    assert (result - expected).abs().max() < 2e-6 * expected.abs().max()  # the scheduler works in float32
    other, _ = dit.sample(network, noise, labels, start(), grid.Guide(cfg + 0.5, settings, made), STEPS)
    assert (other - expected).abs().max() > 1e-3 * expected.abs().max()
    assert bool(trace.active) == rectified and len(trace.rows) == STEPS
    if kind == "reg_original":
        everything, _ = dit.sample(network, noise, labels, start(), guide, STEPS, channels=4)
        assert (everything - expected).abs().max() > 1e-3 * expected.abs().max()


def test_engines_keep_the_variance_of_the_conditional_prediction(network):
    """Finite differences run three rows in one batch; the network's own variance channels are the oracle."""
    x, labels = torch.randn(2, 4, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)), torch.tensor([3, 7])
    expected = network(x, timestep=torch.tensor([400, 400]), class_labels=labels).sample[:, 4:]
    for engine in ("reverse", "finite_difference"):
        branches = dit.DiTBranches(network, labels).at(400)
        reg_core.Rectifier(reg_core.Settings(engine=engine))(branches, reg_core.Point.of(x, 1.0, reg_core.VP))
        assert torch.allclose(branches.variance, expected, atol=1e-9)


def test_command_line(weights, tmp_path, capsys):
    """Oracle: the sampler called by hand with the seed's noise and the class of its turn, decoded by the saved VAE."""
    out = tmp_path / "samples"
    command = ["--weights", str(weights), "--steps", str(STEPS), "--cfg", "3", "--device", "cpu", "--classes", "2", "7"]
    dit.main([*command, "--seeds", "0", "1", "--images", "2", "--form", "off", "row_sum", "--out", str(out)])
    assert "form row_sum, engine reverse (J^T 1), active in 5 of 5" in capsys.readouterr().out
    assert len(hosts.made(out)) == 8
    path = out / "images" / "cfg=3,form=row_sum,gain=1,schedule=constant" / "00001_001.png"
    image = np.asarray(Image.open(path))
    assert image.shape == (8, 8, 3)

    network = diffusers.DiTTransformer2DModel.from_pretrained(weights, subfolder="transformer")
    generator = torch.Generator().manual_seed(1_000_001)
    noise = torch.randn(4, 4, 4, generator=generator)[None]
    guide = grid.Guide(3.0, reg_core.Settings(engine="reverse"))
    latents, _ = dit.sample(network, noise, torch.tensor([7]), [generator], guide, STEPS)
    with torch.no_grad():
        pixels = diffusers.AutoencoderKL.from_pretrained(weights, subfolder="vae").decode(latents / 0.18215).sample
    assert np.abs(grid.to_bytes(pixels)[0].astype(int) - image).max() <= 1 and np.ptp(image) > 10
    assert len(hosts.places(out / "sheet.png", path)) == 1


def test_it_goes_on_after_a_kill(weights, tmp_path):
    """Oracle: the run that nobody stopped."""
    command = ["--weights", str(weights), "--steps", "3", "--device", "cpu", "--images", "3", "--batch", "2"]
    command += "--cfg 2 4 --form row_sum off --schedule interval 205 502".split()
    alone, stopped = tmp_path / "alone", tmp_path / "stopped"
    dit.main([*command, "--out", str(alone)])
    hosts.run_and_kill("dit", [*command, "--out", str(stopped)], 6)
    assert len(list(stopped.rglob("*.json"))) == 7  # six records and the plan
    dit.main([*command, "--out", str(stopped)])
    assert hosts.made(stopped) == hosts.made(alone) and len(hosts.made(alone)) == 12


def test_a_network_without_learned_variance_is_refused(weights, tmp_path):
    sizes = dict(num_attention_heads=2, attention_head_dim=4, num_layers=1, norm_num_groups=4, sample_size=4, in_channels=4, out_channels=4)
    diffusers.DiTTransformer2DModel(**sizes).save_pretrained(tmp_path / "transformer")
    diffusers.AutoencoderKL.from_pretrained(weights, subfolder="vae").save_pretrained(tmp_path / "vae")
    with pytest.raises(SystemExit, match="8 channels out; this one has 4"):
        dit.main(["--weights", str(tmp_path), "--device", "cpu", "--out", str(tmp_path / "out")])
