"""The conditional and the unconditional prediction of a ComfyUI model, evaluated as ComfyUI does."""

from contextlib import contextmanager, nullcontext

import comfy.model_management
import comfy.samplers
import torch
from comfy.ldm.modules.attention import attention_pytorch

from ...reg_core.branches import Branches
from ...reg_core.jacobian import PROBE, JacobianError
from ..backward.draws import Draws
from ..backward.reverse import BackwardPass, Network
from .conds import networks_of, thawed_cond
from .options import CACHES, MULTIGPU, OPAQUE, PAIR, is_cached, quiet, with_shifted_rows

PAGED_WEIGHTS = ("_v_weight", "_v_bias")  # where newer hosts keep what they have paged in


class ModelBranches(Branches):
    """`conds`: [positive, negative]. `backward`: what the run has learned about its backward passes."""

    def __init__(self, model, conds, model_options, backward: BackwardPass | None = None):
        self.model = model
        self.conds = conds
        self.options = model_options
        self.backward = BackwardPass() if backward is None else backward
        self.cached = is_cached(model_options)
        self._draws = None

    def evaluate(self, conds, x, sigma, options=None):
        """One prediction for each cond list; zeros for None."""
        comfy.model_management.throw_exception_if_processing_interrupted()  # older hosts ask once a step only
        options = self.options if options is None else options
        with self._same_draws(x.device):
            if self.options.get(PAIR) is not None:
                given = {"conds": conds, "input": x, "sigma": sigma, "model_options": options}
                return self.options[PAIR]({**given, "model": self.model})
            return comfy.samplers.calc_cond_batch(self.model, conds, x, sigma, options)

    def _same_draws(self, device):
        """All passes draw the same numbers. Else a difference compares two networks, and the noise moves."""
        if self._draws is not None:
            return self._draws.again()
        self._draws = Draws(device)
        return nullcontext()

    def both(self, point):
        denoised, reference = self.evaluate(self.conds, point.x, point.sigma)
        return denoised, reference

    def only(self, point):
        return self.evaluate([self.conds[0], None], point.x, point.sigma)[0]

    def reference(self, x, sigma):
        return self.evaluate([None, self.conds[1]], x, sigma)[1]

    def cond(self, x, sigma):
        return self.evaluate([self.conds[0], None], x, sigma, quiet(self.options))[0]

    def both_and_probe(self, point, step):
        """One call for three, in ComfyUI's own batching (areas, masks, memory)."""
        if self._may_join():
            conds, options = [*self.conds, self.conds[0]], with_shifted_rows(self.options, step)
            denoised, reference, probe = self.evaluate(conds, point.x, point.sigma, options)
            return denoised, reference, probe
        denoised, reference = self.both(point)
        probe = self.cond(point.x + step, point.sigma)
        if self.cached:  # what a cache answered is no neighbour of a fresh probe
            probe = denoised + probe - self.cond(point.x, point.sigma)
        return denoised, reference, probe

    def _may_join(self) -> bool:
        # A control net's output is for x, a chained function expects two conds, workers hold other models.
        controlled = any(c.get("control") is not None for cond in self.conds for c in cond)
        parallel = any(self.options.get(key) for key in MULTIGPU)
        return not (controlled or parallel or self.cached or self.options.get(PAIR) is not None)

    def compute_dtype(self, x):
        dtype = self.model.manual_cast_dtype or self.model.get_dtype()
        return dtype if dtype in PROBE else torch.bfloat16

    @property
    def notes(self):
        return self.backward.notes

    def reverse(self, point, cotangent):
        """(D_c, J^T u): attention with a derivative, no caches, and weights that autograd may save."""
        positive = self.conds[0]
        if any(c.get("hooks") is not None for c in positive):
            raise JacobianError("the prompt carries hooks, which patch weights in the middle of a pass")

        def denoise(x, sigma):
            options = quiet(self.options, CACHES + OPAQUE)
            options["transformer_options"]["optimized_attention_override"] = _with_derivative
            return self.evaluate([[thawed_cond(c) for c in positive], None], x, sigma, options)[0]

        network = Network(
            denoise,
            modules=(self.model, *networks_of(positive)),
            paged=PAGED_WEIGHTS if getattr(self.model.current_patcher, "is_dynamic", bool)() else (),
            free=lambda: comfy.model_management.get_free_memory(point.x.device),
            tick=comfy.model_management.throw_exception_if_processing_interrupted,
        )
        with _settings_for_a_derivative():
            return self.backward.product(network, point, cotangent)


def _with_derivative(attention, *args, **kwargs):
    """PyTorch's attention in place of `attention`, which may be a kernel without derivative."""
    return attention_pytorch(*args, **kwargs)


@contextmanager
def _settings_for_a_derivative():
    """Plain kernels in place of fused ones, which have no derivative; no streams for offloaded weights.

    ComfyUI takes a weight's memory back once its stream has used it, and a backward pass reads it later.
    """
    settings = vars(comfy.model_management)
    wanted = {name: value for name, value in (("in_training", True), ("NUM_STREAMS", 0)) if name in settings}
    before = {name: settings[name] for name in wanted}
    settings.update(wanted)
    try:
        yield
    finally:
        settings.update(before)
