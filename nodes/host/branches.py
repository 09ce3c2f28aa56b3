"""The predictions that a sampler asks a ComfyUI model for, and further ones evaluated as ComfyUI does."""

from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field

import comfy.model_management
import comfy.samplers
import torch
from comfy.ldm.modules.attention import attention_pytorch

from ...reg_core.branches import Branches
from ...reg_core.jacobian import HALF, PROBE, JacobianError
from ...reg_core.space import flat
from ..backward.draws import Draws
from ..backward.reverse import BackwardPass, Network
from .conds import networks_of, thawed_cond
from .options import CACHES, MULTIGPU, OPAQUE, PAIR, Interrupted, is_cached, quiet, with_shifted_rows

PAGED_WEIGHTS = ("_v_weight", "_v_bias")  # where newer hosts keep what they have paged in
TF32 = 2.0**-11  # unit of the last place of what a GPU may use in place of float32


@dataclass(eq=False)
class Passes:
    """What one run has learned of its model's passes. `own`: which of ours give the sampler's prediction.

    Networks and patches whose rows depend on each other exist. For them a pass of other rows is another
    network, so each kind of pass is compared with the sampler's own before it is relied on.
    """

    backward: BackwardPass = field(default_factory=BackwardPass)
    own: dict = field(default_factory=dict)


class ModelBranches(Branches):
    """One model call at x, sigma, with the cond lists `conds`: that at `positive` gives D_c, the other D_ref.

    `known`: (D_c, D_ref) where the sampler has them already. `draws`: as they stood before its pass.
    """

    def __init__(
        self, model, conds, x, sigma, model_options, passes=None, positive=0, known=None, draws=None
    ):
        self.model, self.conds, self.x, self.sigma, self.positive = model, conds, x, sigma, positive
        self.options, self.ours = model_options, quiet(model_options)
        self.passes = passes or Passes()
        # Our passes have x in float32 and ask no cache: what half precision or a cache gave is no neighbour.
        self.stale = is_cached(model_options) or x.dtype in HALF
        self._pair = self._given = known
        self._draws = draws

    def evaluate(self, conds, x, options):
        """One prediction for each cond list; zeros for None."""
        comfy.model_management.throw_exception_if_processing_interrupted()  # older hosts ask once a step only
        self.rows += sum(cond is not None for cond in conds)
        with self._same_draws(x.device):
            if options.get(PAIR) is not None:
                given = {"conds": conds, "input": x, "sigma": self.sigma, "model_options": options}
                return options[PAIR]({**given, "model": self.model})
            return comfy.samplers.calc_cond_batch(self.model, conds, x, self.sigma, options)

    def _same_draws(self, device):
        """All passes draw the same numbers. Else a difference compares two networks, and the noise moves."""
        if self._draws is not None:
            return self._draws.again()
        self._draws = Draws(device)
        return nullcontext()

    def both(self, point=None):
        """The sampler's own pair."""
        if self._pair is None:
            self._pair = tuple(self.evaluate(self.conds, self.x, self.options))
        return self._pair

    def only(self, point):
        return self._lone(0, self.x, self.options) if self._pair is None else self._pair[0]

    def reference(self, point):
        return self._lone(1, self.x, self.options) if self._pair is None else self._pair[1]

    def apart(self, point):
        pair = len(self.conds) == 2 and self._given is None and not self.stale
        return pair and self._alone(0, point) and self._alone(1, point)

    def probe(self, point, x):
        """D_c at x, a neighbour of the point's, as the sampler would make it there; no cache answers."""
        if self._alone(self.positive, point):
            return self._lone(self.positive, x, self.ours)
        return self.evaluate(self.conds, x, self.ours)[self.positive]

    def both_and_probe(self, point, step):
        """One call for three where that changes nothing, in ComfyUI's own batching (areas, masks, memory)."""
        kind = "joined", self.x.shape
        own = self.passes.own.get(kind)
        if own is not False and self._may_join():
            pair = None if own else self.both()
            joined = self._tried(kind, lambda: self._joined(step))
            if joined and (own or self._is_own(kind, joined[:2], pair)):
                return *(pair or joined[:2]), joined[2]
        denoised, reference = self.both()
        probe = self.probe(point, point.shifted(step).x)
        return denoised, reference, denoised + probe - self.probe(point, point.x) if self.stale else probe

    def _may_join(self) -> bool:
        # A control net's output is for x, a chained function expects two conds, workers hold other models.
        controlled = any(c.get("control") is not None for cond in self.conds for c in cond)
        parallel = any(self.options.get(key) for key in MULTIGPU)
        chained = self.options.get(PAIR) is not None or self._pair is not None
        return not (controlled or parallel or self.stale or chained)

    def _joined(self, step):
        options = with_shifted_rows(self.options, step)
        return tuple(self.evaluate([*self.conds, self.conds[0]], self.x, options))

    def _lone(self, i, x, options):
        return self.evaluate([c if j == i else None for j, c in enumerate(self.conds)], x, options)[i]

    def _alone(self, i, point) -> bool:
        """Whether the prediction of cond list i is the same by a pass of its own."""
        kind = "alone", i, self.x.shape
        if kind not in self.passes.own:
            known = self.both()[i != self.positive]
            if self.stale:
                known = self.evaluate(self.conds, point.x, self.ours)[i]
            lone = self._tried(kind, lambda: (self._lone(i, point.x, self.ours),))
            return lone is not None and self._is_own(kind, lone, (known,))
        return self.passes.own[kind]

    def _tried(self, kind, evaluate):
        """The predictions of a pass that is not the sampler's; None, and never again, where it fails."""
        try:
            return evaluate()
        except Interrupted:
            raise
        except Exception:
            self.passes.own[kind] = False
            return None

    def _is_own(self, kind, found, known) -> bool:
        """Whether predictions are the sampler's. Remembered, unless the model's own are no numbers."""
        if all(bool(torch.isfinite(t).all()) for t in known):
            self.passes.own[kind] = are_same(self.model, found, known, self.x)
        return self.passes.own.get(kind, True)

    def compute_dtype(self, x):
        return compute_dtype(self.model)

    @property
    def notes(self):
        return self.passes.backward.notes

    def reverse(self, point, cotangent):
        """(D_c, J^T u): attention with a derivative, no caches, and weights that autograd may save."""
        lone = self._alone(self.positive, point)
        used = [cond if i == self.positive or not lone else None for i, cond in enumerate(self.conds)]
        entries = [entry for cond in used if cond is not None for entry in cond]
        if any(entry.get("hooks") is not None for entry in entries):
            raise JacobianError("the prompt carries hooks, which patch weights in the middle of a pass")

        def denoise(x, _):
            options = quiet(self.options, CACHES + OPAQUE)
            options["transformer_options"]["optimized_attention_override"] = _with_derivative
            conds = [cond and [thawed_cond(entry) for entry in cond] for cond in used]
            return self.evaluate(conds, x, options)[self.positive]

        network = Network(
            denoise,
            modules=(self.model, *networks_of(entries)),
            paged=PAGED_WEIGHTS if getattr(self.model.current_patcher, "is_dynamic", bool)() else (),
            free=lambda: comfy.model_management.get_free_memory(point.x.device),
            tick=comfy.model_management.throw_exception_if_processing_interrupted,
        )
        with _settings_for_a_derivative():
            denoised, product = self.passes.backward.product(network, point, cotangent)
        kind = "reverse", self.x.shape
        if kind not in self.passes.own and self._pair is not None and not self.stale:
            self._is_own(kind, [denoised], self._pair[:1])
        if self.passes.own.get(kind) is False:
            raise JacobianError("reverse mode's own pass gives another prediction than the sampler's")
        return denoised, product


def compute_dtype(model) -> torch.dtype:
    """The precision that a model works in; of those smaller than bfloat16 that one."""
    dtype = model.manual_cast_dtype or model.get_dtype()
    return dtype if dtype in PROBE else torch.bfloat16


def are_same(model, found, known, x) -> bool:
    """Whether predictions at x are the known ones, each row to the rounding of the network."""
    dtype, x = compute_dtype(model), x.float()
    eps = torch.finfo(dtype).eps
    if dtype == torch.float32 and x.is_cuda and torch.backends.cudnn.allow_tf32:
        eps, dtype = TF32, torch.float16
    allowed = (8 if dtype in HALF else 64) * eps
    rows = [(flat(t).norm(dim=1) for t in (a - b, x - b, x)) for a, b in zip(found, known, strict=True)]
    return bool(torch.stack([away <= allowed * out + 1e-6 * size for away, out, size in rows]).all())


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
