"""Conditioning features (feature_conditioning.py) against the oracle, reg.oracle_model: REG by ComfyUI's own calls, another way."""

import pytest
import torch

from . import features, reg, tiny

BOUND = 0.02
# A network's rounding shows more where conds overlap; inpainting keeps half of the latent as it was.
BOUNDS = {"inpaint model with concat": 0.05}


@pytest.mark.parametrize("name", [name for _, name in features.names("conditioning")])
def test_against_the_oracle_and_every_engine_serves_or_says_why(host, pack, all_nodes, name):
    s = features.build("conditioning", name, features.world(host, pack, all_nodes))
    bound = BOUNDS.get(name, BOUND)
    before = reg.fingerprint(s.t.patcher)
    out, plain = s.sample(reg.apply(pack, s.model)[0]), s.sample()
    want = s.sample(reg.oracle_model(s.model, flow=s.flow))
    assert reg.relative(out, want) < bound < reg.relative(plain, want)
    assert not torch.allclose(plain, _bare(s), atol=1e-3), "the feature must act"
    scalar = {}
    for engine in features.ENGINES:
        model, trace = reg.apply(pack, s.model, "scalar", engine)
        scalar[engine] = s.sample(model)
        used = {r.engine for r in trace.last.rows if r.product != "0"}  # that of pure noise needs no engine
        assert used == {engine if engine in s.engines else "finite_difference"}, trace
        assert (s.why in str(trace)) if engine not in s.engines else not trace.last.notes
    assert reg.relative(scalar["finite_difference"], scalar["reverse"]) < 0.05
    assert reg.fingerprint(s.t.patcher) == before


def _bare(s):
    """The same run without the feature: a case that did nothing would prove nothing."""
    if any("concat_latent_image" in e for _, e in s.values.get("positive", [])):
        half = {k: [[c, {**e, "concat_latent_image": 0.5 * e["concat_latent_image"]}] for c, e in s.values[k]] for k in ("positive", "negative")}
        return s.sample(**half)
    kept = {k: v for k, v in s.values.items() if k in ("batch", "steps") or (k == "latent" and "noise_mask" not in s.values)}
    return tiny.sample(s.t, **kept)
