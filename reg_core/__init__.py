"""REG, Rectified Gradient Guidance (ICML 2025, arXiv 2501.18865), for any denoiser. Needs only torch (and safetensors for tables).

>>> import torch, reg_core
>>> def cond(x, sigma):  # any denoiser (x, sigma) -> D; here the exact one of N(1, 0.5^2)
...     return 1 + (x - 1) * 0.25 / (0.25 + reg_core.expand(sigma, x) ** 2)
>>> def uncond(x, sigma):
...     return x / (1 + reg_core.expand(sigma, x) ** 2)
>>> sigmas = reg_core.karras_sigmas(20, 0.02, 20.0)
>>> guided = reg_core.Guided(cond, uncond, weight=2.0, settings=reg_core.Settings(form="row_sum"))
>>> images = reg_core.sample_heun(guided, 20.0 * torch.randn(4, 3, 8, 8), sigmas)
>>> len(guided.trace.last.rows)
39
"""

from .calibration import Calibration, Measurement
from .guidance import Branches, classifier_guidance
from .guided import Guided, calibrate
from .jacobian import JacobianError, finite_difference, forward, reverse
from .rectifier import Prediction, Rectifier
from .rectify import ENGINES, FORMS, Rectified, Settings, carry, rectify, rectify_by_factor, schedule_factor
from .sampling import flow_sigmas, karras_sigmas, sample_ddpm, sample_euler, sample_heun
from .schedule import AXES, Constant, Cosine, Curve, Drawn, Interval, Linear, SigmaInterval, TimestepInterval, sigma_position, step_position
from .space import FLOW, VE, VP, Space, as_batch, expand, from_denoised, to_denoised
from .trace import Row, Run, Trace

__version__ = "0.1.0"

__all__ = [
    "AXES", "ENGINES", "FLOW", "FORMS", "VE", "VP",
    "Branches", "Calibration", "Constant", "Cosine", "Curve", "Drawn", "Guided", "Interval", "JacobianError", "Linear", "Measurement", "Prediction",
    "Rectified", "Rectifier", "Row", "Run", "Settings", "SigmaInterval", "Space", "TimestepInterval", "Trace",
    "as_batch", "calibrate", "carry", "classifier_guidance", "expand", "finite_difference", "flow_sigmas", "forward", "from_denoised",
    "karras_sigmas", "rectify", "rectify_by_factor", "reverse", "sample_ddpm", "sample_euler", "sample_heun",
    "schedule_factor", "sigma_position", "step_position", "to_denoised",
]  # fmt: skip
