"""Calibrated corrections. Oracles: Gaussian data (c = V / (V + sigma^2) exactly), numpy's own arithmetic, the files themselves."""

import math

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.utils._python_dispatch import TorchDispatchMode

from reg_core import Calibration, Guided, Measurement, Settings, calibrate, expand, karras_sigmas, sample_heun

VARIANCE = torch.tensor(0.8).double()
SIGMAS = karras_sigmas(12, 0.05, 20.0).double()


def gaussian(mean):
    return lambda x, sigma: mean + (x - mean) * VARIANCE / (VARIANCE + expand(sigma, x) ** 2)


def noises(count=2, batch=3):
    generator = torch.Generator().manual_seed(1)
    return [SIGMAS[0] * torch.randn(batch, 2, 4, 4, generator=generator, dtype=torch.float64) for _ in range(count)]


def table(**changes):
    fields = dict(sigma=torch.tensor([0.1, 1.0, 10.0]), factor=torch.tensor([0.9, 0.5, 0.01]), error=torch.zeros(3), form="scalar", prediction="eps")
    return Calibration(**{**fields, **changes})


@pytest.mark.parametrize("form,engine", [("row_sum", "finite_difference"), ("scalar", "reverse"), ("product", "reverse")])
def test_gaussian_data_are_measured_exactly(form, engine):
    guided = Guided(gaussian(0.7), gaussian(-0.3), 2.0, Settings(form=form, engine=engine))
    measured = calibrate(guided, noises(), SIGMAS, model="a Gaussian")
    torch.testing.assert_close(measured.sigma.flip(0), SIGMAS[:-1].float(), rtol=1e-3, atol=0)
    torch.testing.assert_close(measured.factor, 0.8 / (0.8 + measured.sigma**2), rtol=1e-4, atol=1e-6)
    assert (measured.form, measured.model) == (form, "a Gaussian")
    assert not guided.trace.last.rows, "the denoiser that is given is not run itself"


def test_elements_that_differ_are_averaged_by_their_guidance():
    """Oracle: c = sum <R v, v> / sum <v, v> of two elements, for which J is known: v is c_i times 1, R v is c_i^2."""
    variance = torch.tensor([0.2, 1.5]).double().reshape(1, 2, 1, 1)

    def cond(x, sigma):
        return (x + 1) * variance / (variance + expand(sigma, x) ** 2)

    def reference(x, sigma):
        return x * variance / (variance + expand(sigma, x) ** 2)

    measured = calibrate(Guided(cond, reference, 2.0, Settings(form="row_sum", engine="reverse")), noises(), SIGMAS)
    c = variance.reshape(1, 2) / (variance.reshape(1, 2) + measured.sigma[:, None].double() ** 2)
    torch.testing.assert_close(measured.factor.double(), (c**3).sum(1) / (c**2).sum(1), rtol=1e-4, atol=1e-6)


def test_a_calibrated_run_is_the_run_it_was_measured_on():
    cond, uncond = gaussian(0.7), gaussian(-0.3)
    measured = calibrate(Guided(cond, uncond, 2.0, Settings(engine="reverse")), noises(), SIGMAS)
    start = noises(1)[0]
    exact = sample_heun(Guided(cond, uncond, 2.0, Settings(engine="reverse")), start, SIGMAS)
    rows = []
    counted = Guided(lambda x, s: rows.append(1) or cond(x, s), uncond, 2.0, Settings(form="calibrated", calibration=measured))
    torch.testing.assert_close(sample_heun(counted, start, SIGMAS), exact, rtol=1e-5, atol=1e-5)
    assert len(rows) == 2 * 12 - 1 and counted.trace.last.extra_rows == 0  # not one model row beyond plain guidance


def test_between_and_beyond_the_levels():
    c = table()(torch.tensor([0.01, 0.1, math.sqrt(0.1), 10.0, 100.0, math.inf]))
    # the first value below; a straight line in log sigma; V / (V + sigma^2) with V = 100 / 99 above
    torch.testing.assert_close(c, torch.tensor([0.9, 0.9, 0.7, 0.01, (100 / 99) / (100 / 99 + 1e4), 0.0]), rtol=1e-4, atol=1e-7)
    assert torch.equal(table(sigma=torch.tensor([1.0]), factor=torch.tensor([0.5]), error=torch.zeros(1))(torch.tensor([0.2, 1.0])), torch.full((2,), 0.5))


def test_least_squares_and_jackknife_agree_with_numpy():
    generator = torch.Generator().manual_seed(3)
    v, rectified = torch.randn(2, 5, 2, 6, generator=generator).double()
    measurement = Measurement()
    measurement(torch.full((5,), 2.0), v, rectified)
    got, a, b = measurement.table("product"), v.numpy(), rectified.numpy()
    slope = np.linalg.lstsq(a.reshape(-1, 1), b.reshape(-1), rcond=None)[0][0]
    left_out = [np.linalg.lstsq(np.delete(a, i, 0).reshape(-1, 1), np.delete(b, i, 0).reshape(-1), rcond=None)[0][0] for i in range(5)]
    error = np.sqrt(4 / 5 * np.sum((np.array(left_out) - np.mean(left_out)) ** 2))
    assert got.factor[0] == pytest.approx(slope, rel=1e-5) and got.error[0] == pytest.approx(error, rel=1e-5)


def test_a_table_survives_its_file(tmp_path):
    saved = table(latent="SD15", model="net", notes={"cfg": 7.5})
    again = Calibration.load(saved.save(tmp_path / "deep" / "c.safetensors"))
    for name in ("sigma", "factor", "error"):
        assert torch.equal(getattr(again, name), getattr(saved, name))
    assert (again.form, again.prediction, again.latent, again.model, again.notes) == ("scalar", "eps", "SD15", "net", {"cfg": "7.5"})
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["c.safetensors"]
    assert "net" in again.summary() and "0.010 at sigma 10" in again.summary()


def test_other_files_are_refused_by_name(tmp_path):
    (tmp_path / "text.safetensors").write_text("no table")
    save_file({"weight": torch.zeros(2)}, tmp_path / "lora.safetensors")
    falling = {n: torch.tensor([2.0, 1.0]) for n in ("sigma", "factor", "error")}
    save_file(falling, tmp_path / "falling.safetensors", {"format": "reg-calibration-1", "form": "scalar"})
    cases = [
        ("text", "text.safetensors: want a .safetensors file, got an error: "), ("lora", "file that holds weight"),
        ("falling", "falling.safetensors.*increasing"),
    ]  # fmt: skip
    for name, match in cases:
        with pytest.raises(ValueError, match=match):
            Calibration.load(tmp_path / f"{name}.safetensors")
    with pytest.raises(FileNotFoundError, match="absent.safetensors"):
        Calibration.load(tmp_path / "absent.safetensors")


@pytest.mark.parametrize(
    "changes,match",
    [
        (dict(sigma=torch.tensor([1.0, 0.5, 2.0])), "increasing"), (dict(sigma=torch.tensor([0.0, 0.5, 2.0])), "from 1e-09"),
        (dict(factor=torch.tensor([1.0, math.nan, 0.0])), "nan"), (dict(factor=torch.ones(2)), r"\(2,\)"), (dict(form="schedule"), "schedule"),
        (dict(factor=torch.ones(3, 4), error=torch.ones(3, 4)), r"\(3, 4\)"),
    ],
)  # fmt: skip
def test_impossible_tables_are_refused(changes, match):
    with pytest.raises(ValueError, match=match):
        table(**changes)


def test_a_table_of_another_model_is_refused_by_name():
    known = table(latent="SD15")
    known.check("eps", "SD15")
    table().check("eps", "anything"), known.check("", "")  # what is not known does not count
    for arguments, match in ((("v", "SD15"), "'eps', the model has 'v'"), (("eps", "SDXL"), "'SDXL'")):
        with pytest.raises(ValueError, match=match):
            known.check(*arguments)


def test_nothing_measured_is_an_error():
    with pytest.raises(ValueError, match="no guided call was seen"):
        Measurement().table("scalar")
    measurement = Measurement()
    measurement(torch.ones(2), torch.zeros(2, 1, 3), torch.zeros(2, 1, 3))
    with pytest.raises(ValueError, match="zero or not finite"):
        measurement.table("scalar")


def test_a_table_and_its_form_go_together():
    with pytest.raises(ValueError, match="'row_sum'"):
        Settings(form="row_sum", calibration=table())
    with pytest.raises(ValueError, match="none is given"):
        Settings(form="calibrated")


@pytest.mark.parametrize("factor", [-4.5, 6.0])
def test_what_is_no_correction_is_not_saved(factor):
    """Products may be broken by what else acts on a model. The error names the value and where."""
    measurement, v = Measurement(), torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    measurement(torch.full((3,), 2.0), v, 0.3 * v)
    measurement(torch.full((3,), 0.5), v, factor * v)
    with pytest.raises(ValueError, match=f"c = {factor:.3g} at sigma 0.5"):
        measurement.table("scalar")


def test_the_table_is_moved_once_to_where_it_is_used():
    """A copy to a GPU waits for all that runs there. Oracle: PyTorch's own list of what a call does."""
    table = Calibration(torch.tensor([0.1, 1.0, 10.0]), torch.tensor([0.9, 0.5, 0.1]), torch.zeros(3), "scalar")

    class Copies(TorchDispatchMode):
        seen = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.seen += "_to_copy" in str(func)
            return func(*args, **(kwargs or {}))

    levels = torch.tensor([0.3, 4.0], dtype=torch.float64)
    counts = []
    for _ in range(2):
        with Copies() as copies:
            table(levels)
        counts.append(copies.seen)
    assert counts == [2, 0]
