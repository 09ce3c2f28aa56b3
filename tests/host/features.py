"""Every feature that REG must live with, as a case to sample: for the tests of its kind and for the table that matrix.py writes.

A case builds what is sampled; who runs it decides with which form and engine, and what to compare with.
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from types import SimpleNamespace

import torch

from . import reg, tiny, truth

ENGINES = ("finite_difference", "reverse")
GROUPS = ("conditioning", "weights", "neighbour", "guider")


class Missing(Exception):
    """This ComfyUI does not have the feature."""


@dataclass
class Setup:
    """What a case samples: `sample(model)`, for its own `model` or a clone of it with REG."""

    t: tiny.Tiny
    model: object = None  # with everything but REG; None: t.patcher
    values: dict = field(default_factory=dict)  # of tiny.sample
    flow: bool = False
    engines: tuple = ENGINES  # those that serve it; the others fall back
    why: str = ""  # part of the reason for falling back, or for doing nothing
    active: bool = True  # REG does something
    transparent: float = truth.TRANSPARENT  # how far REG may move the latents at strength 1e-6
    draw: Callable | None = None  # model -> latent, instead of tiny.sample
    during: Callable = nullcontext  # a context around every sampling

    def __post_init__(self):
        self.model = self.t.patcher if self.model is None else self.model

    def sample(self, model=None, **more) -> torch.Tensor:
        model = self.model if model is None else model
        with self.during():
            return self.draw(model) if self.draw is not None else tiny.sample(self.t, model, **(self.values | more))


CASES: dict[tuple[str, str], Callable] = {}


def case(group: str, name: str):
    """Registers `build(world) -> Setup`; raises Missing in hosts that cannot."""

    def register(build):
        CASES[group, name] = build
        return build

    return register


def world(host, pack, all_nodes) -> SimpleNamespace:
    """What builders are given."""
    return SimpleNamespace(host=host, pack=pack, nodes=all_nodes)


@dataclass(frozen=True)
class Outcome:
    """A run of a case with REG."""

    asked: str
    engines: set  # of the active model calls
    active: int
    notes: list  # why it fell back, or did nothing
    sound: bool  # finite; other than without REG where REG was active, and the same as without REG where not
    transparent: float  # how far REG moves the latents at strength 1e-6
    bound: float  # of that

    @property
    def verdict(self) -> str:
        why = "; ".join(self.notes)
        if not self.sound:
            return f"fails: {why or 'not finite, or without effect'}"
        if not self.transparent <= self.bound:
            return f"fails: moved by {self.transparent:.0e} at strength 1e-6"
        if not self.active:
            return f"no effect: {why}"
        if self.engines == {self.asked}:
            return f"ok: {why}" if why else "ok"
        return f"falls back: {why or 'without a word'}"


def run(pack, setup: Setup, engine: str, form: str = "row_sum", plain: torch.Tensor | None = None) -> Outcome:
    """The case sampled with REG, and once without it (`plain`, if that is known)."""
    plain = setup.sample() if plain is None else plain
    model, trace = reg.apply(pack, setup.model, form, engine)
    latent = setup.sample(model)
    rows, active = trace.last.rows, trace.last.active
    notes = list(dict.fromkeys([*(n for n in trace.last.notes if active), *(r.note for r in (active or rows) if r.note)]))
    changed = not torch.equal(latent, plain)
    sound = bool(torch.isfinite(latent).all()) and changed == bool(active)
    invisible = setup.sample(reg.apply(pack, setup.model, form, engine, strength=truth.INVISIBLE)[0])
    return Outcome(engine, {r.engine for r in active}, len(active), notes, sound, reg.relative(invisible, plain), setup.transparent)


def build(group: str, name: str, world) -> Setup:
    from . import feature_conditioning, feature_guiders, feature_neighbours, feature_weights  # noqa: F401  (they register their cases)

    return CASES[group, name](world)


def names(group: str | None = None) -> list[tuple[str, str]]:
    """All cases, in the order of GROUPS."""
    from . import feature_conditioning, feature_guiders, feature_neighbours, feature_weights  # noqa: F401

    return [key for g in GROUPS for key in CASES if key[0] == g and group in (None, g)]


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
