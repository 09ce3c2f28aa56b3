"""The study of mixtures. Oracles: errors a point at a time, a scan over weights, pairs where REG is known to lose."""

import pytest
import torch
from mixture_errors import compare

from reg_core.lab.mixtures.exact import difference
from reg_core.lab.mixtures.optimum import Optimum
from reg_core.lab.mixtures.study import Amount, control, ends, errors
from reg_core.lab.mixtures.zoo import pair


def test_errors_are_those_of_compare_and_the_tuned_weight_is_the_best():
    p, sigmas = pair("toy"), (0.3, 1.0)
    rows = errors(p, Amount(points=(40, 4, 4), weights=(1.0,), sigmas=sigmas))
    for sigma in sigmas:
        x = p.cond.noisy(40, sigma, generator=torch.Generator().manual_seed(0))
        want = compare(p, 1.0, x, sigma)
        for row in (r for r in rows if r.sigma == sigma):
            assert (row.win, row.relative_rms) == pytest.approx((want[row.form].win, want[row.form].relative_rms), rel=1e-3)
    pooled = {r.form: r for r in rows if r.sigma is None}

    def carried_rms(form, weight):
        total = 0.0
        for sigma in sigmas:
            x = p.cond.noisy(40, sigma, generator=torch.Generator().manual_seed(0))
            e = weight * difference(p, x, sigma, form)[1] - Optimum(p, 1.0).evaluate(x, sigma).shift
            variance = p.cond.data_std**2
            total += float(e.square().mean()) * variance / (variance + sigma**2)
        return total**0.5

    for form in ("row_sum", "schedule"):
        weights = [pooled[form].tuned + d for d in (-0.02, 0.0, 0.02)]
        tried = [carried_rms(form, w) for w in weights]
        assert min(tried) == tried[1], form
        plain = carried_rms("off", pooled["off"].tuned)
        assert pooled[form].tuned_rms == pytest.approx(tried[1] / plain, rel=1e-3)
        assert pooled[form].relative_rms == pytest.approx(carried_rms(form, 1.0) / carried_rms("off", 1.0), rel=1e-3)


def test_negative_controls_really_are_negative():
    toy = control("toy", 0.5, (0.7, 1.0, 1.4, 2.0), 64)["forms"]
    overlapping = control("overlapping", 1.0, (2.0, 5.0), 8)["forms"]
    assert toy["row_sum"]["relative_rms"] > 1 and overlapping["row_sum"]["relative_rms"] > 1
    assert toy["row_sum"]["win"] < 0.5 and overlapping["row_sum"]["win"] < 0.5


def test_terminal_distances_at_nominal_weight_and_at_the_best_one():
    rows = {r.form: r for r in ends(pair("nested"), Amount(starts=100, steps=20), 2.0)}
    assert rows["row_sum"].distance < 0.5 * rows["off"].distance
    assert rows["off"].tuned < 2.0 and rows["off"].tuned_distance < rows["off"].distance, "CFG wants less than its nominal weight"
    assert rows["optimum"].distance <= min(r.distance for r in rows.values() if r.form != "optimum") + 1e-3
