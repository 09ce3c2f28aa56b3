"""Random values for the tests of refusals, also in the host: a few that fit among many that nobody expects.

REG_TEST_EXAMPLES: how many inputs each test draws (default 150, some seconds; 10000 for the long one).
"""

import math
import os

import numpy as np
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

LONGEST = 400  # characters of a message

drawn = settings(
    max_examples=int(os.environ.get("REG_TEST_EXAMPLES", 150)), deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)

SHAPES = [(), (0,), (1,), (3,), (2, 2), (1, 1, 8, 8), (0, 1, 8, 8), (2, 4, 8, 8), (1, 16, 16, 3), (1, 0, 0, 3), (1, 4, 2, 8, 8)]
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool, torch.complex64, torch.float8_e4m3fn]
NUMBERS = [0, 1, -1, 0.5, 1e-6, 1e6, 3e38, 1e200, 1e308, 5e-324, math.inf, -math.inf, math.nan, 10**400, -(10**400), 2**64 - 1]


@st.composite
def tensors(draw, shapes=SHAPES, dtypes=DTYPES):
    """Mostly of usual numbers; some hold one that is none."""
    value = torch.rand(draw(st.sampled_from(shapes)), generator=torch.Generator().manual_seed(draw(st.integers(0, 9))))
    if value.numel() and draw(st.booleans()):
        value.view(-1)[-1] = draw(st.sampled_from([math.nan, math.inf, -5.0, 3e38]))
    return value.to(draw(st.sampled_from(dtypes)))


numbers = st.one_of(st.sampled_from(NUMBERS), st.floats(), st.integers(), st.fractions(), st.sampled_from([np.float32(2), np.int64(3), np.float64("nan")]))
leaves = st.one_of(st.none(), st.booleans(), numbers, st.complex_numbers(), st.text(), st.binary(), st.just("x" * 5000), st.just("a\nb" * 900), tensors())
inner = st.recursive(leaves, lambda part: st.one_of(st.lists(part, max_size=3), st.dictionaries(st.text(max_size=5), part, max_size=3)))
anything = st.one_of(leaves, inner)


def outcome(make, *errors):
    """What `make` gives, or None where it raises one of `errors` (ValueError) with one short line."""
    try:
        return make()
    except (ValueError, *errors) as error:
        said = str(error)
        assert said and "\n" not in said and len(said) < LONGEST, said
        return None
