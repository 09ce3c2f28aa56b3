"""REG, Rectified Gradient Guidance (ICML 2025, arXiv 2501.18865), for any denoiser. Begin with `Guided`."""

from .branches import Branches
from .calibration import Calibration, Measurement
from .classifier import classifier_guidance
from .forms import FORMS, Rectified, blend, carry, rectify, rectify_by_factor, schedule_factor
from .guided import Guidance, Guided, calibrate
from .jacobian import JacobianError, finite_difference, forward, reverse
from .point import Point
from .rectifier import Prediction, Rectifier
from .sampling import karras_sigmas, sample_ddpm, sample_euler, sample_heun
from .schedule import AXES, Band, Cosine, Curve, Linear, sigma_position, step_position
from .settings import ENGINES, Settings
from .space import FLOW, VE, VP, Space, as_batch, expand, from_denoised, to_denoised
from .trace import Row, Run, Trace

__version__ = "0.1.0"

__all__ = [
    "AXES", "ENGINES", "FLOW", "FORMS", "VE", "VP", "Band", "Branches", "Calibration", "Cosine", "Curve",
    "Guidance", "Guided", "JacobianError", "Linear", "Measurement", "Point", "Prediction", "Rectified",
    "Rectifier", "Row", "Run", "Settings", "Space", "Trace", "as_batch", "blend", "calibrate", "carry",
    "classifier_guidance", "expand", "finite_difference", "forward", "from_denoised", "karras_sigmas",
    "rectify", "rectify_by_factor", "reverse", "sample_ddpm", "sample_euler", "sample_heun",
    "schedule_factor", "sigma_position", "step_position", "to_denoised",
]  # fmt: skip
