"""One sampling run as a picture: the correction, the size and the weight of guidance, what each call did."""

from __future__ import annotations

import collections
import math
from dataclasses import dataclass

from PIL import Image

from ..checks import one_of
from ..trace import Row, Run
from .axes import BAND, STRIP, TICK, Axes, Scale, scale_for, strip
from .canvas import Canvas, mix, theme_of, wrap
from .palette import form_color

AXES = ("sigma", "step")
WIDTH = 1024
LEFT, RIGHT, PANEL, GAP = 104, 24, 208, 58
HEAD, LINE = 30, 28
NOTHING = (
    "No sampling run to show: the form is off, or nothing was sampled with this model yet. "
    "Connect the latent that comes out of its sampler."
)
BYPASSED = (
    "REG is bypassed, or its trace is not connected: guidance is plain. "
    "Switch REG Guidance on and connect its trace to see what it does."
)


def plot_run(
    run: Run | None, axis: str = "sigma", theme: str = "dark", title: str = "", nothing: str = NOTHING
) -> Image.Image:
    """A picture 1024 px wide, readable at half the size.

    `axis`: sigma (logarithmic where it spans much) or step (model calls in order). `nothing`: what to write
    where there is no run."""
    one_of("axis", axis, AXES)
    colors = theme_of(theme)
    rows = run.rows if run is not None else []
    heading, lines, warnings = _headings(run, title, nothing)
    room = WIDTH - 2 * RIGHT
    lines = [part for line in lines for part in wrap(line, TICK, room)]
    warnings = [part for line in warnings for part in wrap(line, TICK, room)]
    look = _Look(form_color("off", theme), form_color(run.settings.form if run else "off", theme))
    levels = _levels(rows, axis)
    panels = _panels(levels) if rows else []
    top = 66 + LINE * (len(lines) + len(warnings)) + 6
    below = 76 if panels else 0  # the title of the x axis
    height = top + len(panels) * (PANEL + GAP) + below + (STRIP + 132 if rows else 20)
    canvas = Canvas(WIDTH, height, colors)
    canvas.text(RIGHT, 18, heading, HEAD, colors.text)
    for i, line in enumerate([*lines, *warnings]):
        canvas.text(RIGHT, 64 + i * LINE, line, TICK, colors.faint if i < len(lines) else colors.warning)
    if rows:
        place, name = _horizontal(levels, axis)
        top += GAP - 16
        for draw in panels:
            box = (LEFT, top, WIDTH - RIGHT, top + PANEL)
            draw(_Panel(canvas, box, place, name if draw is panels[-1] else "", axis == "step"), levels, look)
            top += PANEL + GAP
        top += below
        _calls(canvas, (LEFT, top, WIDTH - RIGHT, top + STRIP), rows, look)
    return canvas.picture()


def run_report(run: Run | None, nothing: str = NOTHING) -> str:
    """The same as text: one line of summary, a table with a line for every model call, the notes."""
    return f"REG: {nothing}" if run is None else str(run)


def run_caption(run: Run | None) -> str:
    """A line for below a picture: form and gain, share of plain guidance, cost."""
    if run is None or not run.rows:
        return "plain guidance"
    share = "" if math.isnan(run.share) else f"{100 * run.share:.0f} % of plain guidance, "
    return f"{run.settings.title}: {share}{run.cost()}"


def _headings(run: Run | None, title: str, nothing: str):
    """Heading, plain lines, warnings."""
    if run is None:
        return title or "REG", [nothing], []
    rows, active = run.rows, run.active
    heading = title or run.settings.title
    if not rows:
        return heading, [nothing], [f"note: {note}" for note in run.notes]
    plain = _counted(r.note for r in rows if not r.active)
    known = [note for note in run.notes if note != run.not_finite()]  # the rows say it
    trouble = [*known, *(n for n in _counted(r.note for r in active) if n not in run.notes)]
    if not active:
        return heading, [], ["REG changed nothing in this run", *plain, *trouble]
    time = f", {run.seconds:.2f} s" if math.isfinite(run.seconds) else ""
    return heading, [", ".join(run.facts()), f"{run.engines}{time}", *plain], trouble


def _counted(notes) -> list[str]:
    counts = collections.Counter(note for note in notes if note)
    return [f"{note} ({count} calls)" if count > 1 else note for note, count in counts.items()]


@dataclass(frozen=True)
class _Look:
    """Colours: of plain guidance and of the form."""

    plain: str
    form: str


@dataclass(frozen=True)
class _Level:
    """What the curves show at one place of the x axis: a model call, or the mean of those at one noise level.

    `used`: the weight cfg - 1 that acted, after REG. NaN where a number is not known."""

    x: float
    mean: float
    low: float
    high: float
    before: float
    after: float
    given: float
    used: float


def _levels(rows: list[Row], axis: str) -> list[_Level]:
    """Over sigma, neighbouring calls at one noise level become one: samplers of second order make two."""
    groups: list[list[Row]] = []
    for row in rows:
        if groups and axis == "sigma" and math.isclose(row.sigma, groups[-1][0].sigma, rel_tol=1e-5):
            groups[-1].append(row)
        else:
            groups.append([row])
    return [
        _Level(g[0].sigma if axis == "sigma" else i, *map(_mean, zip(*map(_shown, g), strict=True)))
        for i, g in enumerate(groups, 1)
    ]


def _mean(values) -> float:
    known = [v for v in values if math.isfinite(v)]
    return sum(known) / len(known) if known else math.nan


def _shown(row: Row):
    """The numbers of one call, in the order of _Level. A skipped call had no guidance."""
    weight, nan = row.cfg - 1, math.nan
    if row.skipped:
        return nan, nan, nan, nan, 0.0, weight, 0.0
    if not row.active:
        return nan, nan, nan, nan, nan, weight, weight
    used = weight * row.rectified_norm / row.guidance_norm if row.guidance_norm > 0 else weight
    correction = row.correction_mean, row.correction_low, row.correction_high
    return *correction, row.guidance_norm, row.rectified_norm, weight, used


def _horizontal(levels: list[_Level], axis: str):
    """The scale of the x axis and its title. Noise falls from left to right."""
    if axis == "step":
        return Scale(0.5, len(levels) + 0.5), "model call"
    sigmas = [level.x for level in levels]
    inner = scale_for([v for v in sigmas if v > 0], reverse=True)
    margin = 0.03  # room for the first and last mark
    if inner.log:
        stretch = (inner.high / inner.low) ** margin
        return Scale(inner.low / stretch, inner.high * stretch, True, True), "sigma (noise level)"
    stretch = (inner.high - inner.low) * margin
    low = min([inner.low - stretch, *(v for v in sigmas if v == 0)])
    return Scale(low, inner.high + stretch, False, True), "sigma (noise level)"


def _panels(levels: list[_Level]):
    """The panels that have something to show."""
    known = ((_correction, "mean"), (_sizes, "before"), (_weight, "given"))
    return [draw for draw, name in known if any(math.isfinite(getattr(level, name)) for level in levels)]


@dataclass(frozen=True)
class _Panel:
    """Where a panel is drawn. `whole`: whole numbers on the x axis."""

    canvas: Canvas
    box: tuple
    x: Scale
    x_title: str
    whole: bool

    def axes(self, y: Scale, title: str, keys) -> Axes:
        axes = Axes(self.canvas, self.box, self.x, y)
        axes.frame(title, keys, x_title=self.x_title, whole=self.whole)
        return axes


def _columns(levels: list[_Level], *names: str):
    return [[getattr(level, name) for level in levels] for name in names]


def _correction(panel: _Panel, levels: list[_Level], look: _Look):
    xs, mean, low, high = _columns(levels, "x", "mean", "low", "high")
    known = [v for v in mean if math.isfinite(v)]
    bottom, top = min([0.0, *known]), max([1.0, *known])
    reach = 0.3 * (top - bottom)  # a band that goes further leaves the panel: the curve is what matters
    edges = [min(max(v, bottom - reach), top + reach) for v in (*low, *high) if math.isfinite(v)]
    band = mix(look.form, panel.canvas.theme.panel, BAND)
    scale = scale_for([*known, *edges, 0.0, 1.0], log=False)
    keys = [("mean", look.form), ("5 to 95 %", band)]
    axes = panel.axes(scale, "correction (1 = plain guidance)", keys)
    axes.band(xs, low, high, look.form)
    axes.level(1.0, look.plain)
    axes.line(xs, mean, look.form, 4, dots=len(xs) <= 60)


def _sizes(panel: _Panel, levels: list[_Level], look: _Look):
    xs, before, after = _columns(levels, "x", "before", "after")
    scale = scale_for([*before, *after], zero=True, log=False)
    keys = [("of CFG", look.plain), ("used", look.form)]
    axes = panel.axes(scale, "size of the guidance (root mean square)", keys)
    axes.line(xs, before, look.plain, dots=len(xs) <= 60)
    axes.line(xs, after, look.form, dots=len(xs) <= 60)


def _weight(panel: _Panel, levels: list[_Level], look: _Look):
    xs, given, used = _columns(levels, "x", "given", "used")
    scale = scale_for([*given, *used], zero=True, log=False)
    axes = panel.axes(scale, "weight of the guidance", [("given, cfg - 1", look.plain), ("used", look.form)])
    axes.line(xs, given, look.plain, dots=len(xs) <= 60)
    axes.line(xs, used, look.form, dots=len(xs) <= 60)


def _calls(canvas: Canvas, box, rows: list[Row], look: _Look):
    """A mark for every model call by what became of its guidance."""
    theme = canvas.theme
    colors = {
        "computed": look.form,
        "reused": mix(look.form, theme.panel, 0.45),
        "plain": look.plain,
        "skipped": mix(theme.faint, theme.panel, 0.3),
        "fallback": theme.warning,
    }
    strip(canvas, box, [*map(_kind, rows)], colors, f"{len(rows)} model calls", "model calls, in order")


def _kind(row: Row) -> str:
    if row.skipped:
        return "skipped"
    if not row.active:
        return "plain"
    if row.note or row.nonfinite:
        return "fallback"
    return "computed" if row.fresh else "reused"
