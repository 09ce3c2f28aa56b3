"""k-diffusion's samplers, and the EDM2 example: networks made here, brought in as a user brings theirs.

Oracles: closed-form guided denoisers of Gaussians; the REG authors' sampler for EDM2, its formulas written out here.
"""

import json
import os
import subprocess
import sys

import hosts
import numpy as np
import pytest
import torch
from oracles import gaussian_denoiser
from PIL import Image

import reg_core
from reg_core.integrations.k_diffusion import CFGDenoiser

edm2, grid = hosts.example("edm2"), hosts.example("grid")


# k-diffusion


def wrapped(x, sigma, cond):
    """k-diffusion's contract: model(x, sigma, **extra_args) -> denoised; the exact denoiser of N(cond, 1)."""
    return gaussian_denoiser(cond, 1.0, "ve")(x, sigma)


def exact(form, cfg):
    """D_c + (cfg - 1) c (D_c - D_u), c = 1 / (1 + sigma^2): what J does to any guidance of N(mean, 1)."""

    def guided(x, sigma, **_):
        cond, uncond = wrapped(x, sigma, 1.0), wrapped(x, sigma, 0.0)
        c = 1.0 if form == "off" else 1 / (1 + sigma.reshape(-1, 1, 1, 1) ** 2)
        return cond + (cfg - 1) * c * (cond - uncond)

    return guided


def sample_midpoint(model, x, sigmas, extra_args=None, callback=None, disable=None):
    """A sampler of this file in the same manner: the midpoint rule."""
    ones = x.new_ones([x.shape[0]])
    for sigma, following in zip(sigmas[:-1], sigmas[1:], strict=True):
        middle = (sigma * following).sqrt() if following > 0 else sigma / 2
        half = x + (middle - sigma) * (x - model(x, sigma * ones, **extra_args)) / sigma
        x = x + (following - sigma) * (half - model(half, middle * ones, **extra_args)) / middle
    return x


SAMPLERS = ("midpoint", "euler", "heun", "dpmpp_2m", "dpm_2", "lms", "euler_ancestral", "dpmpp_2m_sde")


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("form", ["row_sum", "off"])
def test_k_diffusion_samplers(name, form):
    sampler = sample_midpoint if name == "midpoint" else getattr(hosts.k_diffusion_sampling(), f"sample_{name}")
    sigmas = reg_core.karras_sigmas(6, 0.05, 8.0).double()
    noise = 8.0 * torch.randn(2, 2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    model = CFGDenoiser(wrapped, reg_core.Settings(form=form))

    def run(model, **extra_args):
        torch.manual_seed(7)  # ancestral noise
        return sampler(model, noise, sigmas, extra_args=extra_args, disable=True)

    result = run(model, cond=1.0, uncond=0.0, cond_scale=4.0)
    expected = run(exact(form, 4.0))
    assert torch.allclose(result, expected, rtol=1e-6, atol=1e-6)
    assert (run(exact("row_sum" if form == "off" else "off", 4.0)) - expected).abs().max() > 0.01
    assert bool(model.trace.last.active) == (form == "row_sum")


def test_guided_is_such_a_model_itself():
    """Oracle: the same closed form; conditions are closed over instead of passed on."""
    guided = reg_core.Guided(lambda x, s: wrapped(x, s, 1.0), lambda x, s: wrapped(x, s, 0.0), weight=3.0)
    x, sigmas = 8.0 * torch.ones(1, 1, 2, 2, dtype=torch.float64), reg_core.karras_sigmas(4, 0.1, 8.0).double()
    assert torch.allclose(sample_midpoint(guided, x, sigmas, {}), sample_midpoint(exact("row_sum", 4.0), x, sigmas, {}), rtol=1e-6)


def test_cond_scale_1_asks_once_and_others_go_through():
    asked = []

    def network(x, sigma, cond, extra):
        asked.append((cond, extra))
        return x

    model = CFGDenoiser(network)
    model(torch.ones(1, 3), torch.ones(1), cond="c", uncond="u", cond_scale=1.0, extra=5)
    assert asked == [("c", 5)]
    with pytest.raises(ValueError, match="inner_model must be callable, got 3"):
        CFGDenoiser(3)


# EDM2

REPO = '''
import torch

class Net(torch.nn.Module):
    """EDM2's call: x [B, C, H, W], sigma, one-hot labels or None -> D."""
    def __init__(self, seed, label_dim):
        super().__init__()
        g = torch.Generator().manual_seed(seed)
        self.img_channels, self.img_resolution, self.label_dim = 4, 4, label_dim
        self.a = torch.nn.Parameter(torch.randn(4, 4, 3, 3, generator=g) * 0.3)
        self.b = torch.nn.Parameter(torch.randn(4, 4, 1, 1, generator=g) * 0.5)
        self.labels = torch.nn.Parameter(torch.randn(max(label_dim, 1), 4, generator=g))

    def forward(self, x, sigma, class_labels=None, force_fp32=False, **kwargs):
        sigma = sigma.to(torch.float32).reshape(-1, 1, 1, 1)
        c_skip, c_out, c_in = 0.25 / (sigma**2 + 0.25), sigma * 0.5 / (0.25 + sigma**2).sqrt(), 1 / (0.25 + sigma**2).sqrt()
        h = torch.nn.functional.conv2d((c_in * x).float(), self.a, padding=1)
        if self.label_dim and class_labels is not None:
            h = h + (class_labels @ self.labels)[:, :, None, None]
        return c_skip * x + c_out * torch.nn.functional.conv2d(torch.tanh(h), self.b)

class Encoder:
    vae_name = "a download"
    def init(self, device):
        self.ready, self.loaded = True, self.vae_name
    def decode(self, latents):
        assert self.ready
        return (latents[:, :3] * 127.5 + 128).clip(0, 255).to(torch.uint8)

def bring(path, device):
    encoder = Encoder()
    encoder.init(device)
    seed, label_dim = (int(n) for n in path.split(","))
    return Net(seed, label_dim).to(device), encoder.decode
'''
PICKLES = """
import pickle, sys
sys.path.insert(0, {0!r})
from tiny_edm2 import Net, Encoder
for name, seed, labels in (("net", 0, 5), ("weak", 1, 5)):
    data = dict(ema=Net(seed, labels), encoder=Encoder())
    pickle.dump(data, open({0!r} + "/" + name + ".pkl", "wb"))
"""


@pytest.fixture(scope="module")
def repo(tmp_path_factory):
    """A stand-in for the user's checkout, with its own pickles, written by another process."""
    folder = tmp_path_factory.mktemp("edm2")
    (folder / "tiny_edm2.py").write_text(REPO)
    subprocess.run([sys.executable, "-c", PICKLES.format(str(folder))], check=True)
    yield folder
    if str(folder) in sys.path:
        sys.path.remove(str(folder))


def authors_sampler(net, gnet, noise, labels, guide_labels, kind, guidance, param=None, num_steps=6, sigma_min=0.002, sigma_max=80.0, rho=7):
    """Their weights: `original` and `intervalt` count from the reference (cfg), all others from the conditional prediction (cfg - 1)."""

    def denoise(x, t):
        x = x.detach().requires_grad_(True)
        D = net(x, t, labels)
        (wrk,) = torch.autograd.grad(D.sum(), x)
        with torch.no_grad():
            D, ref = D.detach(), gnet(x, t, guide_labels)
            inside = "intervalt" not in kind or param[0] <= t <= param[1]
            if not kind.startswith("reg"):
                wrk = torch.ones_like(D)
            if kind in ("original", "intervalt"):
                return ref.lerp(D, guidance) if inside else D
            coeff = guidance if inside else 0.0
            if "linear" in kind:
                coeff = (guidance - param) / (sigma_max - sigma_min) * (t - sigma_max) + guidance
            if "cosine" in kind:
                coeff = (1 - torch.cos(torch.pi * (1 - t / sigma_max) ** param)) * 0.5 * guidance
            return D + coeff * wrk * (D - ref)

    i = torch.arange(num_steps, dtype=torch.float32)
    t_steps = (sigma_max ** (1 / rho) + i / (num_steps - 1) * (sigma_min ** (1 / rho) - sigma_max ** (1 / rho))) ** rho
    t_steps = torch.cat([t_steps, torch.zeros_like(t_steps[:1])])
    x_next = noise * t_steps[0]
    for i, (t_cur, t_next) in enumerate(zip(t_steps[:-1], t_steps[1:], strict=True)):
        x_cur = x_next
        d_cur = (x_cur - denoise(x_cur, t_cur)) / t_cur
        x_next = x_cur + (t_next - t_cur) * d_cur
        if i < num_steps - 1:
            d_prime = (x_next - denoise(x_next, t_next)) / t_next
            x_next = x_cur + (t_next - t_cur) * (0.5 * d_cur + 0.5 * d_prime)
    return x_next


@pytest.mark.parametrize(
    ("kind", "param", "schedule"),
    [
        ("original", None, "constant"),
        ("intervalt", (0.28, 2.90), "interval 0.28 2.90"),
        ("linear", 1.0, "linear 1 0.5"),
        ("cosine", 2.0, "cosine 2"),
        ("reg_original", None, "constant"),
        ("reg_intervalt", (0.28, 2.90), "interval 0.28 2.90"),
        ("reg_linear", 1.0, "linear 1 0.5"),
        ("reg_cosine", 2.0, "cosine 2"),
    ],
)
@pytest.mark.parametrize("autoguidance", [False, True])
def test_edm2_equals_the_authors_sampler(repo, kind, param, schedule, autoguidance):
    net, _ = edm2.find_loader(f"{repo / 'tiny_edm2.py'}:bring")("0,5", "cpu")
    gnet, _ = edm2.find_loader(f"{repo / 'tiny_edm2.py'}:bring")("1,5" if autoguidance else "2,5", "cpu")
    labels = torch.eye(5)[[1, 3]]
    guide_labels = labels if autoguidance else None
    noise = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(3))
    guidance = 2.0
    expected = authors_sampler(net, gnet, noise, labels, guide_labels, kind, guidance, param)
    cfg = guidance if kind in ("original", "intervalt") else 1 + guidance
    settings = reg_core.Settings(form="row_sum" if kind.startswith("reg") else "off", engine="reverse")
    made, sigmas = grid.schedule(schedule.split(), "edm2"), reg_core.karras_sigmas(6, 0.002, 80.0)
    result, trace = edm2.sample(net, gnet, noise, labels, guide_labels, grid.Guide(cfg, settings, made), sigmas)
    assert torch.allclose(result, expected, rtol=2e-3, atol=2e-3)
    other, _ = edm2.sample(net, gnet, noise, labels, guide_labels, grid.Guide(cfg + 0.1, settings, made), sigmas)
    assert (other - expected).abs().max() > 0.01
    assert bool(trace.active) == kind.startswith("reg")


COMMAND = "--steps 4 --batch 1 --cfg 3 --device cpu"


def shown(folder, point="cfg=3,form=row_sum,gain=1,schedule=constant", prompt=0, seed=0):
    return folder / "images" / point / f"{prompt:05d}_{seed:03d}.png"


def test_edm2_from_pickles_into_a_folder_in_any_number_of_processes(repo, tmp_path):
    """Oracle for the shards: one process. For the image: the authors' sampler with the seed's noise and the plan's label."""
    files = ["--edm2-repo", str(repo), "--net", str(repo / "net.pkl"), "--gnet", str(repo / "weak.pkl"), *COMMAND.split()]
    files += "--images 3 --seeds 0 2 --form off row_sum --npz".split()
    alone, sharded = tmp_path / "alone", tmp_path / "sharded"
    edm2.main([*files, "--out", str(alone)])
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    script = [str(hosts.ROOT / "examples" / "edm2.py"), *files, "--out", str(sharded)]
    env = os.environ | {"PYTHONPATH": str(hosts.ROOT), "OMP_NUM_THREADS": "1"}
    printed = subprocess.run([*torchrun, *script], env=env, check=True, capture_output=True, text=True).stdout
    assert "batch 8 of 8" in printed and "THIS RUNS THE CODE" in printed
    assert hosts.made(alone) == hosts.made(sharded) and len(hosts.made(alone)) == 12
    images = np.load(alone / "cfg=3,form=row_sum,gain=1,schedule=constant.npz")["arr_0"]
    assert images.shape == (6, 4, 4, 3) and images.dtype == np.uint8

    label = json.loads((alone / "plan.json").read_text())["prompts"][1]["label"]
    noise = torch.randn(4, 4, 4, generator=torch.Generator().manual_seed(2_000_001))[None]
    (net, decode), (gnet, _) = (edm2.load_pickle(repo / name, "cpu") for name in ("net.pkl", "weak.pkl"))
    for form, kind, guidance in (("row_sum", "reg_original", 2.0), ("off", "original", 3.0)):
        latents = authors_sampler(net, gnet, noise, torch.eye(5)[[label]], None, kind, guidance, num_steps=4)
        expected = decode(latents)[0].permute(1, 2, 0).numpy()
        image = np.asarray(Image.open(shown(alone, f"cfg=3,form={form},gain=1,schedule=constant", 1, 2)))
        assert np.abs(expected.astype(int) - image).max() <= 1 and np.ptp(expected) > 20
    assert np.array_equal(images[4], np.asarray(Image.open(shown(alone, prompt=1, seed=2))))


def test_edm2_goes_on_after_a_kill_and_draws_a_sheet(repo, tmp_path):
    """Oracle: the run that nobody stopped."""
    files = ["--loader", f"{repo / 'tiny_edm2.py'}:bring", "--net", "0,5", "--gnet", "1,5", "--gnet-labels", *COMMAND.split()]
    files += "--images 4 --classes 2 4 --form off row_sum schedule --gain 1 2 --schedule constant --schedule interval 0.28 2.9 --sheet 2".split()
    alone, stopped = tmp_path / "alone", tmp_path / "stopped"
    edm2.main([*files, "--out", str(alone)])
    assert len(hosts.made(alone)) == 4 * 2 * 5, "plain guidance has no gain"
    hosts.run_and_kill("edm2", [*files, "--out", str(stopped)], 7)
    assert len(list(stopped.rglob("*.png"))) == 7 and not (stopped / "manifest.json").exists()
    kept = shown(stopped, "cfg=3,form=off,gain=1,schedule=constant")
    before = kept.stat().st_mtime_ns
    edm2.main([*files, "--out", str(stopped)])
    assert hosts.made(stopped) == hosts.made(alone) and kept.stat().st_mtime_ns == before
    assert hosts.places(stopped / "sheet.png", kept) and not list(tmp_path.rglob("*.partial"))
    with pytest.raises(SystemExit, match="already holds .* made from another workflow"):
        edm2.main([*files, "--sigma-max", "40", "--out", str(stopped)])


def test_edm2_takes_its_autoencoder_by_path(repo, tmp_path):
    """Oracle: what a checkout's own encoder was asked to load."""
    _, decode = edm2.load_pickle(repo / "net.pkl", "cpu", "weights/of/mine")
    assert decode.__self__.loaded == "weights/of/mine"
    assert edm2.load_pickle(repo / "net.pkl", "cpu")[1].__self__.loaded == "a download"
    with pytest.raises(SystemExit, match="--vae must be a folder, got 'nowhere'"):
        edm2.main(["--edm2-repo", str(repo), "--net", "x.pkl", "--vae", "nowhere", "--out", str(tmp_path)])


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--seeds", "1", "1"], "seed 1 twice"),
        (["--images", "0"], "at least one point, prompt and seed, got 1, 0 and 1"),
        (["--gain", "0"], "gain must be a number from .*, got 0.0"),
        (["--form", "calibrated"], "calibration table go together, but none is given"),
        (["--classes", "5"], r"0..4, got \[5\]"),
        (["--schedule", "linear", "1"], "wants 2 numbers, got 1"),
        (["--schedule", "sine"], "got 'sine'"),
        (["--schedule", "cosine", "two"], "wants numbers, got two"),
        (["--loader", "nowhere.py:bring"], "got 'nowhere.py:bring'"),
        (["--gnet", "2,0", "--gnet-labels"], "the guide takes 0 labels, the network 5"),
    ],
)
def test_edm2_names_bad_options(repo, tmp_path, extra, message):
    files = ["--loader", f"{repo / 'tiny_edm2.py'}:bring", "--net", "0,5", "--out", str(tmp_path / "out"), *COMMAND.split()]
    with pytest.raises(SystemExit, match=message):
        edm2.main([*files, *extra])


def test_edm2_wants_a_checkout_for_pickles(tmp_path):
    with pytest.raises(SystemExit, match="--edm2-repo must be the folder"):
        edm2.main(["--net", "x.pkl", "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match="guided by itself"):
        edm2.main(["--net", "x.pkl", "--gnet-labels", "--out", str(tmp_path)])
