"""What the engines must do with any MODEL: shared by test_engines.py, test_families.py and matrix.py."""

from dataclasses import dataclass

import comfy.patcher_extension
import comfy.samplers
import torch

from . import reg, tiny

FORMS = ("row_sum", "scalar", "product")
ENGINES = ("finite_difference", "reverse")


@dataclass(frozen=True)
class Products:
    """Errors of J v and J^T u at one noise level, relative to what they should equal."""

    adjoint: float  # <u, J v> by torch.func.jvp against <J^T u, v> by reverse mode
    difference: float  # J v by torch.func.jvp against central differences
    denoised: float  # the prediction that comes along, against a plain call
    untouched: bool  # the MODEL afterwards

    @property
    def agree(self) -> bool:
        # ACE-Step has ReLUs in its attention: differences meet kinks there (2e-3, against 2e-4 in the worst of the others)
        return self.adjoint < 1e-4 and self.difference < 5e-3 and self.denoised < 1e-4 and self.untouched


def products(pack, t, positive=None, negative=None) -> Products:
    """Inside a real sampling run, at batch 2 where the network takes it, in the caller's mode (inference mode, as ComfyUI)."""
    jacobian, host = pack.import_("reg_core.jacobian"), pack.import_("nodes.host.branches")
    levels = pack.import_("nodes.host.noise_levels")

    def look(guider, x, sigma, options):
        conds = [guider.conds["positive"], guider.conds["negative"]]
        branches = host.ModelBranches(guider.inner_model, conds, x, sigma, options)
        point = levels.point_at(guider.inner_model.model_sampling, x, sigma)
        plain_attention = comfy.patcher_extension.copy_nested_dicts(options)
        plain_attention["transformer_options"]["optimized_attention_override"] = host._with_derivative

        def denoise(z, level):
            return comfy.samplers.calc_cond_batch(guider.inner_model, conds[:1], z, level, plain_attention)[0]

        g = torch.Generator().manual_seed(1)
        u, v = (torch.randn(x.shape, generator=g).to(x.device) for _ in range(2))
        d_reverse, jt_u = branches.reverse(point, u)
        with host._settings_for_a_derivative():
            d_forward, j_v = jacobian.forward(denoise, point, v)
        _, j_v_fd = jacobian.finite_difference(lambda z, _: branches.probe(point, z), point, v, relative=3e-3, central=True)
        plain = branches.probe(point, x)
        adjoint = ((u * j_v).sum() - (jt_u * v).sum()).abs() / (j_v.norm() * j_v.numel() ** 0.5)
        return float(adjoint), reg.relative(j_v_fd, j_v), max(reg.relative(d, plain) for d in (d_reverse, d_forward))

    before = reg.fingerprint(t.patcher)
    errors = reg.inside(t, look, batch=tiny.batches(t.name)[-1], positive=positive, negative=negative)
    return Products(*errors, untouched=reg.fingerprint(t.patcher) == before)


@dataclass(frozen=True)
class Sampled:
    """A run of a real KSampler with REG, at batch 2 where the network takes it."""

    latent: torch.Tensor
    engines: list  # of each model call
    notes: list  # of the run and its calls
    finite: bool
    rectified: bool  # other latents than without REG
    untouched: bool  # MODEL bit-identical afterwards, and what it samples without REG
    repeatable: bool

    def served_by(self, engine: str) -> bool:
        """Nothing to complain about: `engine` from the first call to the last."""
        return set(self.engines) == {engine} and not self.notes and self.sound

    @property
    def sound(self) -> bool:
        return self.finite and self.rectified and self.untouched and self.repeatable


def sampled(pack, t, form, engine, steps=3, **conds) -> Sampled:
    options = dict(batch=tiny.batches(t.name)[-1], steps=steps, **conds)

    def latents(model=None):
        return tiny.packed(tiny.sample(t, model, **options))

    before, plain = reg.fingerprint(t.patcher), latents()
    model, trace = reg.apply(pack, t.patcher, form, engine)
    latent = latents(model)
    run = trace.last
    return Sampled(
        latent,
        engines=[row.engine for row in run.rows],
        notes=[*run.notes, *(row.note for row in run.rows if row.note)],
        finite=bool(torch.isfinite(latent).all()),
        rectified=not torch.equal(latent, plain),
        untouched=reg.fingerprint(t.patcher) == before and torch.equal(latents(), plain),
        repeatable=torch.equal(latents(model), latent),
    )
