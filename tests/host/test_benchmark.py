"""The benchmark runs: the CPU's path and the GPU's, on toys. No figure of time is looked at."""

import dataclasses
import json
import os
import subprocess
import sys

import pytest
import torch

from benchmarks import measure, meters, models
from benchmarks.suites import ALONE, CFG, TINY

from . import reg
from .setup_host import REPO, host_path

# Passes of the network for each image and step, counted on paper. Derivatives are checked by a finite difference
# at some of the steps; what is shipped probes at some of them. In the first of two steps passes are compared.
ROWS = {
    CFG: (2, 3), "schedule": (2, 3), "calibrated": (2, 3), "every_call": (3, 4), "scalar": (3, 4), "product": (3, 4),
    "reverse_checkpoint": (2, 9), "reverse_resident": (2, 9), "reverse_alone": (2, 2), "default": (2, 4.5), "skipping": (1, 4.5),
    "calibrated_skipping": (1, 3), "reverse_refreshed": (2, 9),
}  # fmt: skip


@pytest.mark.skipif(os.environ.get("REG_TEST_ATTENTION") == "pytorch", reason="the benchmark chooses its attention itself")
def test_tiny_suite_from_the_command_line(tmp_path):
    """Oracle: rows counted on paper, the axes of the suite, and that nothing fell back."""
    env = os.environ | {"COMFYUI_PATH": str(host_path())}
    command = [sys.executable, "-m", "benchmarks", "--suite", "tiny", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=REPO, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads((tmp_path / "tiny.json").read_text())
    assert [case["name"] for case in result["cases"]] == [case.name for case in TINY]
    for case in result["cases"]:
        for name, mode in case["modes"].items():
            low, high = ROWS[name]
            assert low <= mode["rows"] <= high, (case["name"], name, mode["rows"])
            assert not mode["notes"], (case["name"], name, mode["notes"])
            assert mode["seconds"]["low"] > 0 and (mode["peak"] is None or mode["peak"] > case["weights"])
    digits = next(case["modes"] for case in result["cases"] if case["name"] == "tiny_digits")
    uncompared = next(case["modes"] for case in result["cases"] if case["name"] == "tiny_auto")
    assert digits["default"]["targets"] == {"time": 1.15, "memory": 1.10} and uncompared["default"]["targets"] == {"time": None, "memory": None}
    assert digits["skipping"]["rows"] < digits["default"]["rows"] < digits["every_call"]["rows"]
    assert "the default (`row_sum`)" in (tmp_path / "cost.md").read_text() and (tmp_path / "images" / "cost-tiny.png").is_file()


@pytest.mark.parametrize("name", ["sd15_eps", "sd21_v"])
def test_pytorch_alone_samples_what_the_packs_reverse_mode_samples(pack, name):
    """Oracle: each other, two ways to Eq. 21; weights are put back, and plain guidance gives something else."""
    network = "tiny_" + name.replace("_eps", "")
    case = dataclasses.replace(TINY[0], network=network, modes=(CFG, "reverse_resident", ALONE), steps=3, batch=2)
    bench = measure.Bench(case, pack, "cpu")
    before = list(bench.subject.patcher.model.parameters())
    plain, ours, alone = (measure.sample(case, bench.subject, bench.prepared[mode][0], 3) for mode in case.modes)
    assert reg.relative(alone, ours) < 1e-3
    assert not reg.relative(plain, ours) < 1e-2
    assert all(a is b for a, b in zip(before, bench.subject.patcher.model.parameters(), strict=True))


def test_refresh_as_shipped_is_the_nodes_default_and_without_these_words_every_call(pack):
    """Oracle: the node's default of 8 and its ratio of noise levels, by eye; rows of the model do not tell, since a backward pass is none."""
    modes = {"reverse_checkpoint": list(range(20)), "reverse_refreshed": [0, 8]}
    bench = measure.Bench(dataclasses.replace(TINY[0], modes=(CFG, *modes), steps=20), pack, "cpu")
    for name, fresh in modes.items():
        model, trace = bench.prepared[name]
        measure.sample(bench.case, bench.subject, model, 20)
        assert [i for i, row in enumerate(trace.last.rows) if row.fresh][: len(fresh)] == fresh, name
        assert {row.engine for row in trace.last.rows} == {name.split("_")[0]} and not trace.last.notes


def test_plain_guidance_is_timed_beside_every_step(pack, monkeypatch):
    """Oracle: a clock made up below, which every row of the model moves by a second, and the sampler's own arithmetic by ten.

    Plain guidance takes 2 rows a step, a probe at every call 3. The plain predictions change nothing.
    """
    import comfy.k_diffusion.sampling

    clock = [0.0]
    monkeypatch.setattr(meters.time, "perf_counter", lambda: clock[0])
    case = dataclasses.replace(TINY[0], steps=3)
    bench = measure.Bench(dataclasses.replace(case, modes=(CFG, "every_call")), pack, "cpu")
    network = bench.subject.patcher.model.diffusion_model
    forward, latents = network.forward, []

    def counted(x, *args, **kwargs):
        clock[0] += len(x)
        return forward(x, *args, **kwargs)

    def to_d(x, sigma, denoised):
        clock[0] += 10
        return (x - denoised) / sigma

    monkeypatch.setattr(network, "forward", counted)
    monkeypatch.setattr(comfy.k_diffusion.sampling, "to_d", to_d)
    for name, rows in ((CFG, 6), ("every_call", 9 + 2)):
        alone, *beside = (meters.Stopwatch("cpu", beside=n) for n in (0, 1, 3))
        latents += [measure.sample(case, bench.subject, watch.attach(bench.prepared[name][0]), 3) for watch in (alone, *beside)]
        assert torch.equal(*latents[-2:]) and torch.equal(*latents[-3:-1])
        assert (alone.own.wall, alone.own.outside, alone.plain) == (rows + 30, 30, None)
        for watch in beside:
            assert (watch.own.wall, watch.own.outside, watch.rows) == pytest.approx((rows + 30, 0, rows))
            assert (watch.plain.wall, watch.plain.outside) == pytest.approx((36, 0))
    assert not torch.equal(latents[0], latents[3])


def test_cuda_path_without_cuda(pack, monkeypatch):
    """The GPU's rounds and columns on a CPU. Oracle: the readings that torch.cuda is made to give below."""
    readings = {"memory_allocated": 1000, "max_memory_allocated": 1750, "get_sync_debug_mode": 0}
    for name, value in readings.items():
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    for name in ("synchronize", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda: None)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", lambda mode: None)

    class Event:
        """Marks on a clock made up here: it goes on by a second a row of the model."""

        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            self.at = clock[0]

        def elapsed_time(self, end):
            return 1e3 * (end.at - self.at)

    clock = [0.0]
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(meters.time, "perf_counter", lambda: clock[0])
    apply_model = meters.Stopwatch._apply_model

    def counted(self, executor, x, *args, **kwargs):
        clock[0] += len(x)
        return apply_model(self, executor, x, *args, **kwargs)

    monkeypatch.setattr(meters.Stopwatch, "_apply_model", counted)
    case = dataclasses.replace(TINY[0], modes=(CFG, "schedule", "every_call", "reverse_resident"))
    titles = []
    found = measure.run_case(case, pack, "cuda", progress=titles.append)
    assert len(titles) == measure.runs_of(case, "cuda") == 4 * (1 + case.rounds) + 3
    times = {name: mode["time"]["median"] for name, mode in found["modes"].items()}
    assert times == pytest.approx({"cfg": 1, "schedule": 1, "every_call": 2.0, "reverse_resident": times["reverse_resident"]})
    for name, mode in found["modes"].items():
        assert (mode["outside"] is None) == (name == "reverse_resident")
        assert mode["activations"] == 750 and mode["peak"] == 1750
        assert mode["waits"] == 0 and mode["cleared"] == 0


@pytest.mark.parametrize(("name", "parameters"), [("sd15", 859_520_964), ("sd21_v", 865_910_724), ("sdxl", 2_567_463_684)])
def test_full_size_is_full_size(name, parameters):
    """Oracle: the published sizes of the three U-Nets."""
    model = models.network(name, device="meta")
    assert sum(p.numel() for p in model.diffusion_model.parameters()) == parameters


def test_filled_weights_are_those_of_a_network_at_start():
    """Oracle: what is asked for. Variance 1 / fan-in, so unit variance in gives unit variance out; no tensor left out."""
    with torch.inference_mode():
        model = models.network("tiny_sd15")
        for tensor in model.diffusion_model.state_dict().values():
            tensor.fill_(float("nan"))
        models.fill(model.diffusion_model)
        for key, tensor in model.diffusion_model.state_dict().items():
            assert torch.isfinite(tensor).all(), key
            if tensor.ndim >= 2 and tensor.numel() > 20_000:
                assert float(tensor.std() * tensor[0].numel() ** 0.5) == pytest.approx(1, abs=0.05), key


def test_unknown_input_is_named(pack, monkeypatch):
    from benchmarks.suites import MODES, Mode

    monkeypatch.setitem(MODES, "wrong", Mode("wrong", {"refrseh": 2}))
    case = dataclasses.replace(TINY[0], modes=(CFG, "wrong"))
    with pytest.raises(ValueError, match="mode wrong: REGGuidance has no input refrseh"):
        measure.run_case(case, pack, "cpu")
