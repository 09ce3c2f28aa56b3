"""One sampling run as a picture: the correction, the size and the weight of guidance, what each call did."""

from __future__ import annotations

import collections
import math

from PIL import Image

from ..checks import one_of
from ..trace import Row, Run
from .axes import TICK, Axes, Scale, scale_for
from .canvas import Canvas, mix, theme_of, wrap

AXES = ("sigma", "step")
WIDTH = 1024
LEFT, RIGHT, PANEL, GAP = 104, 24, 208, 58
HEAD, LINE = 30, 28
NOTHING = (
    "No sampling run to show: the form is off, or nothing was sampled with this model yet. "
    "Connect the latent that comes out of its sampler."
)


def plot_run(run: Run | None, axis: str = "sigma", theme: str = "dark", title: str = "") -> Image.Image:
    """A picture 1024 px wide, readable at half the size.

    `axis`: sigma (logarithmic where it spans much) or step (model calls in order)."""
    one_of("axis", axis, AXES)
    colors = theme_of(theme)
    rows = run.rows if run is not None else []
    heading, lines, warnings = _headings(run, title)
    room = WIDTH - 2 * RIGHT
    lines = [part for line in lines for part in wrap(line, TICK, room)]
    warnings = [part for line in warnings for part in wrap(line, TICK, room)]
    panels = _panels(rows) if rows else []
    top = 66 + LINE * (len(lines) + len(warnings)) + 6
    canvas = Canvas(WIDTH, top + len(panels) * (PANEL + GAP) + (156 if panels else 20), colors)
    canvas.text(RIGHT, 18, heading, HEAD, colors.text)
    for i, line in enumerate([*lines, *warnings]):
        canvas.text(RIGHT, 64 + i * LINE, line, TICK, colors.faint if i < len(lines) else colors.warning)
    if panels:
        xs, scale, name = _horizontal(rows, axis)
        top += GAP - 16
        for draw in panels:
            draw(canvas, (LEFT, top, WIDTH - RIGHT, top + PANEL), scale, xs, axis == "step")
            top += PANEL + GAP
        _calls(canvas, (LEFT, top, WIDTH - RIGHT, top + 22), scale, xs, rows, name, axis == "step")
    return canvas.picture()


def run_report(run: Run | None) -> str:
    """The same as text: one line of summary, a table with a line for every model call, the notes."""
    return f"REG: {NOTHING}" if run is None else str(run)


def _headings(run: Run | None, title: str):
    """Heading, plain lines, warnings."""
    if run is None:
        return title or "REG", [NOTHING], []
    rows, active = run.rows, run.active
    heading = title or run.settings.title
    if not rows:
        return heading, [NOTHING], [f"note: {note}" for note in run.notes]
    known = [r for r in active if r.product] or active
    kinds = [f"{r.engine} {r.product}".strip() for r in known]
    engines = " + ".join(dict.fromkeys(kinds)) or f"{run.settings.engine} (not used)"
    facts = [f"active in {len(active)} of {len(rows)} model calls", run.strength()]
    facts.append(f"{run.extra_rows} extra model rows")
    if math.isfinite(run.seconds):
        facts.append(f"{run.seconds:.2f} s")
    lines = [f"engine {engines}", " · ".join(facts)]
    plain = _counted(r.note for r in rows if not r.active)
    known = [note for note in run.notes if note != run.not_finite()]  # the rows say it
    trouble = [*known, *(n for n in _counted(r.note for r in active) if n not in run.notes)]
    if active:
        return heading, lines + plain, trouble
    return heading, lines, ["REG changed nothing in this run", *plain, *trouble]


def _counted(notes) -> list[str]:
    counts = collections.Counter(note for note in notes if note)
    return [f"{note} ({count} calls)" if count > 1 else note for note, count in counts.items()]


def _horizontal(rows: list[Row], axis: str):
    """Positions of the calls, their scale and the axis title. Noise falls from left to right."""
    if axis == "step":
        return [i + 1 for i in range(len(rows))], Scale(0.5, len(rows) + 0.5), "model call"
    sigmas = [r.sigma for r in rows]
    inner = scale_for([v for v in sigmas if v > 0], reverse=True)
    margin = 0.03  # room for the first and last mark
    if inner.log:
        stretch = (inner.high / inner.low) ** margin
        return sigmas, Scale(inner.low / stretch, inner.high * stretch, True, True), "sigma (noise level)"
    stretch = (inner.high - inner.low) * margin
    low = min([inner.low - stretch, *(v for v in sigmas if v == 0)])
    return sigmas, Scale(low, inner.high + stretch, False, True), "sigma (noise level)"


def _panels(rows: list[Row]):
    """The panels that have something to show."""
    active = [r if r.active else Row() for r in rows]  # rows of NaN make gaps in the lines
    panels = []
    if any(math.isfinite(r.correction_mean) for r in active):
        panels.append(lambda *place: _correction(*place, active))
    if any(math.isfinite(r.guidance_norm) for r in active):
        panels.append(lambda *place: _sizes(*place, active))
    if any(math.isfinite(r.cfg) for r in rows):
        panels.append(lambda *place: _weight(*place, rows))
    return panels


def _correction(canvas, box, x, xs, whole, rows):
    blue = canvas.theme.series[0]
    mean = [r.correction_mean for r in rows]
    low = [r.correction_low for r in rows]
    high = [r.correction_high for r in rows]
    axes = Axes(canvas, box, x, scale_for([*mean, *low, *high, 0.0, 1.0], log=False))
    keys = [("mean", blue), ("5 to 95 %", mix(blue, canvas.theme.panel, 0.35))]
    axes.frame("correction R (1 = plain guidance)", keys, whole=whole)
    axes.band(xs, low, high, blue)
    axes.level(1.0, canvas.theme.faint)
    axes.line(xs, mean, blue, dots=len(xs) <= 60)


def _sizes(canvas, box, x, xs, whole, rows):
    blue, orange, _ = canvas.theme.series
    before, after = [r.guidance_norm for r in rows], [r.rectified_norm for r in rows]
    axes = Axes(canvas, box, x, scale_for([*before, *after], zero=True, log=False))
    keys = [("|g| of CFG", orange), ("|R g| used", blue)]
    axes.frame("size of the guidance, root mean square", keys, whole=whole)
    axes.line(xs, before, orange, dots=len(xs) <= 60)
    axes.line(xs, after, blue, dots=len(xs) <= 60)


def _weight(canvas, box, x, xs, whole, rows):
    blue, orange, _ = canvas.theme.series
    given = [r.cfg - 1 for r in rows]
    used = [
        (r.cfg - 1) * r.rectified_norm / r.guidance_norm if r.active and r.guidance_norm > 0 else r.cfg - 1
        for r in rows
    ]
    axes = Axes(canvas, box, x, scale_for([*given, *used], zero=True, log=False))
    axes.frame("weight in force, cfg - 1", [("given", orange), ("times |R g| / |g|", blue)], whole=whole)
    axes.line(xs, given, orange, dots=len(xs) <= 60)
    axes.line(xs, used, blue, dots=len(xs) <= 60)


def _calls(canvas, box, x, xs, rows, name, whole):
    """A mark for every model call by what became of its guidance."""
    theme = canvas.theme
    green = theme.series[2]
    kinds = {
        "computed": green,
        "reused": mix(green, theme.panel, 0.4),
        "plain": theme.faint,
        "skipped": mix(theme.faint, theme.panel, 0.3),
    }
    kinds["fallback"] = theme.warning
    axes = Axes(canvas, box, x, Scale(0, 1))
    left, top, right, bottom = box
    seen = {}
    marks = []
    for position, row in zip(xs, rows, strict=True):
        kind = _kind(row)
        seen[kind] = None
        if math.isfinite(x(position)):
            marks.append((axes.at(position, 0)[0], kinds[kind]))
    keys = [(kind, color) for kind, color in kinds.items() if kind in seen]
    axes.frame(f"{len(rows)} model calls", keys, x_title=name, whole=whole, levels=0)
    width = max(2.0, min(14.0, 0.7 * (right - left) / len(rows))) / 2
    for center, color in marks:
        canvas.rectangle((center - width, top, center + width, bottom), color)


def _kind(row: Row) -> str:
    if row.skipped:
        return "skipped"
    if not row.active:
        return "plain"
    if row.note or row.nonfinite:
        return "fallback"
    return "computed" if row.fresh else "reused"
