"""What to rectify and how: checked once, here."""

import math
from dataclasses import dataclass, field

from torch import Tensor

from .calibration import Calibration
from .checks import LARGEST, SMALLEST, number, one_of, shortened, whole
from .forms import FORMS, FORMULAS, FREE_FORMS
from .schedule import within

ENGINES = ("auto", "finite_difference", "reverse")
RANGES = (
    ("gain", SMALLEST, LARGEST), ("strength", -LARGEST, LARGEST), ("skip_below", 0, 1),
    ("data_std", SMALLEST, LARGEST), ("sigma_start", 0, math.inf), ("sigma_end", 0, math.inf),
)  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """One choice of REG.

    - `form`: `row_sum` (J^T 1) * g, the paper's Eq. 21; `product` J^T g; `scalar` (v^T J v / v^T v) g, where
      v = D_c - D_ref; `schedule` V / (V + sigma_ve^2) g; `calibrated` c(sigma) g, c measured; `off`.
    - `engine`: how a product with J is computed. `auto` takes finite differences, for any model.
    - `gain`: R g becomes gain R g. 1: the paper. R takes guidance away; a gain makes it as strong again.
    - `strength`: 0 = plain guidance, 1 = REG, linear between and beyond: 1 + strength (gain R - 1).
    - `refresh`: compute the correction at every k-th model call, reuse it in between (refresh.py). 1: always.
    - `skip_below`: no guidance, and one model row only, where the effect of |R g| on the image is below this
      share of the largest |g| of the run so far (skipping.py). 0: never.
    - `data_std`: sqrt(V) of `schedule`, in the units of the sampler's latents.
    - `calibration`: the table of `calibrated`.
    - `sigma_start` >= sigma >= `sigma_end`: where to rectify (closed interval, rounded to float32).
    Raises ValueError with the offending value.
    """

    form: str = "row_sum"
    engine: str = "auto"
    gain: float = 1.0
    strength: float = 1.0
    refresh: int = 1
    skip_below: float = 0.0
    data_std: float = 1.0
    sigma_start: float = math.inf
    sigma_end: float = 0.0
    calibration: Calibration | None = field(default=None, repr=False, compare=False)

    def __post_init__(self):
        one_of("form", self.form, FORMS)
        one_of("engine", self.engine, ENGINES)
        if not isinstance(self.calibration, (Calibration, type(None))):
            raise ValueError(f"calibration must be a Calibration, got {shortened(self.calibration)}")
        if (self.form == "calibrated") != (self.calibration is not None):
            have = "none is given" if self.calibration is None else f"form is {self.form!r}"
            raise ValueError(f"form 'calibrated' and a calibration table go together, but {have}")
        for name, low, high in RANGES:
            object.__setattr__(self, name, number(name, getattr(self, name), low, high))
        object.__setattr__(self, "refresh", whole("refresh", self.refresh, 1))
        if self.sigma_start < self.sigma_end:
            bounds = f"sigma_start={self.sigma_start}, sigma_end={self.sigma_end}"
            raise ValueError(f"want sigma_start >= sigma_end, got {bounds}")

    @property
    def title(self) -> str:
        """REG form, with gain and strength where they are not 1."""
        more = (f", {name} {value:g}" for name, value in (("gain", self.gain), ("strength", self.strength)))
        return f"REG {self.form}" + "".join(m for m in more if not m.endswith(" 1"))

    def applied(self, share: float) -> float:
        """The part of plain guidance that is used where R keeps `share` of it."""
        return 1 + self.strength * (self.gain * share - 1)

    @property
    def warning(self) -> str:
        """What a strength beyond plain guidance and REG does; "" for one that is usual."""
        if not self.enabled or 0 <= self.strength <= 2:
            return ""
        at_noise = f"at high noise guidance is multiplied by about {self.applied(0):.3g}"
        return f"strength {self.strength:g} is unusual: {at_noise}; 0 is plain guidance, 1 is REG"

    @property
    def enabled(self) -> bool:
        """False when guidance stays what it was."""
        return self.form != "off" and self.strength != 0

    @property
    def free(self) -> bool:
        """True when the correction is known before the model is called."""
        return self.form in FREE_FORMS

    def free_factor(self, sigma_ve: Tensor) -> Tensor:
        """c [B] of a free form at sigma_ve [B]."""
        if self.form == "calibrated":
            return self.calibration(sigma_ve)
        return FORMULAS[self.form](sigma_ve, self.data_std)

    def why_plain(self, weight: float, sigma: Tensor) -> str:
        """Why a call of guidance weight w = cfg - 1 at sigma [B] is not rectified; "" where it is."""
        if not self.enabled:
            return "REG is off"
        if math.isclose(weight, 0, abs_tol=1e-9):
            return "cfg 1: no guidance to rectify"
        bounded = self.sigma_start != math.inf or self.sigma_end != 0  # else nobody waits for sigma
        if bounded and not within(float(sigma.max()), self.sigma_end, self.sigma_start):
            return "outside start and end"
        return ""
