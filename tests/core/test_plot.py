"""Pictures, read back: curves by the pixels between the grid lines, heat maps by their brightness, sheets by their crops."""

import itertools
import math

import numpy
import pytest
import torch
from PIL import Image

from reg_core.calibration import Calibration
from reg_core.drawing import (
    FORM_COLORS,
    SchedulePoint,
    form_color,
    heat_sheet,
    labelled_grid,
    plot_calibration,
    plot_run,
    plot_schedule,
    run_report,
    schedule_table,
)
from reg_core.drawing import canvas as pages
from reg_core.drawing import heat as heats
from reg_core.drawing.axes import BAND, Scale, linear_ticks, log_ticks, scale_for
from reg_core.drawing.canvas import THEMES, mix, text_width, wrap
from reg_core.drawing.traces import BYPASSED
from reg_core.forms import FORMS
from reg_core.settings import Settings
from reg_core.trace import Row, Run


def rgb(color):
    return numpy.array([int(color[i : i + 2], 16) for i in (1, 3, 5)])


def near(picture, color, tolerance=24):
    """Mask [H, W] of the pixels of a colour."""
    return (abs(numpy.asarray(picture).astype(int) - rgb(color)) <= tolerance).all(-1)


def lines(mask, axis, share=0.4):
    """Positions of straight lines through most of a mask: axis 1 = horizontal lines (rows), 0 = vertical ones."""
    full = numpy.flatnonzero(mask.mean(axis) > share)
    groups = numpy.split(full, numpy.flatnonzero(numpy.diff(full) > 1) + 1)
    return [float(g.mean()) for g in groups if len(g)]


@pytest.fixture
def written(monkeypatch):
    """Every text that is drawn."""
    texts = []
    draw = pages.Canvas.text
    monkeypatch.setattr(pages.Canvas, "text", lambda self, x, y, text, *rest, **more: (texts.append(text), draw(self, x, y, text, *rest, **more))[1])
    return texts


def a_run(means, **more):
    rows = []
    for i, mean in enumerate(means):
        values = {name: entries[i] for name, entries in more.items()}
        rows.append(
            Row(
                **{
                    "sigma": 10.0 / (i + 1), "cfg": 5.0, "engine": "finite_difference", "product": "J 1", "fresh": True, "guidance_norm": 2.0,
                    "sigma_ve": 10.0 / (i + 1), "share": mean, "rectified_norm": 2.0 * mean, "correction_mean": mean,
                    "correction_low": mean - 0.1, "correction_high": mean + 0.2, "extra_rows": 1,
                } | values
            )
        )  # fmt: skip
    return Run(Settings(), rows)


def first_panel(picture, theme):
    """Top and bottom of the first panel: the first 100 rows and more without a stretch of background (titles lie on it)."""
    behind = near(picture, theme.background, 3)[:, 500:1000].mean(1) > 0.3
    (edges,) = numpy.nonzero(numpy.diff(behind.astype(int)))
    return next((int(a) + 1, int(b) + 1) for a, b in zip(edges, edges[1:], strict=False) if b - a > 100)


@pytest.mark.parametrize("name", THEMES)
@pytest.mark.parametrize("axis", ["step", "sigma"])
def test_the_curve_passes_where_the_numbers_say(name, axis):
    """Decoded from the picture alone: its grid lines at 0, 0.5, 1 and at the labelled x values, and the curve's colour."""
    theme = THEMES[name]
    means = [0.05, 0.1, 0.3, 0.25, 0.6, 0.8, 0.9, 0.4, 1.0, 0.7]
    sigmas = [100 * 10 ** (-i / 3) for i in range(10)]  # 100 to 0.1: a logarithmic axis
    picture = plot_run(a_run(means, sigma=sigmas, correction_low=[math.nan] * 10), axis, name)
    top, bottom = first_panel(picture, theme)
    panel = picture.crop((104, top, 1000, bottom))
    one, half, zero = lines(near(panel, theme.grid, 20) | near(panel, form_color("off", name), 20), 1)
    assert one < half < zero and abs((zero - half) - (half - one)) < 1.5
    xs = lines(near(panel, theme.grid, 20), 0)
    if axis == "step":
        assert len(xs) == 5  # 2, 4, 6, 8, 10
        columns = [numpy.interp(i + 1, [2, 10], [xs[0], xs[-1]]) if i else xs[0] - (xs[1] - xs[0]) / 2 for i in range(10)]
    else:
        assert len(xs) == 7  # 100, 30, 10, 3, 1, 0.3, 0.1 from left to right
        columns = [xs[0] + i / 9 * (xs[-1] - xs[0]) for i in range(10)]
    blue = near(panel, form_color("row_sum", name), 40)
    for column, mean in zip(columns, means, strict=True):
        rows = numpy.flatnonzero(blue[:, round(column)])
        assert len(rows), "the curve is there"
        assert (zero - rows.mean()) / (zero - one) == pytest.approx(mean, abs=0.02)


def test_band_gaps_and_inactive_calls():
    theme = THEMES["dark"]
    means = [0.2] * 4 + [0.5] * 4
    engine = ["finite_difference"] * 4 + ["none"] * 2 + ["finite_difference"] * 2
    run = a_run(means, engine=engine, correction_low=[0.0] * 8, correction_high=[0.4] * 4 + [0.9] * 4)
    picture = plot_run(run, "step")
    top, bottom = first_panel(picture, theme)
    panel = picture.crop((104, top, 1000, bottom))
    pixel = (panel.width) / 8
    free = panel.crop((round(4 * pixel), 0, round(6 * pixel), panel.height))  # the band lies over the grid elsewhere
    one, half, zero = lines(near(free, theme.grid, 20) | near(free, form_color("off", "dark"), 20), 1)
    blue = form_color("row_sum", "dark")
    fill, line = near(panel, mix(blue, theme.panel, BAND), 8), near(panel, blue, 40)
    column = round(2 * pixel)  # between calls 2 and 3: inside the first stretch
    rows = numpy.flatnonzero(fill[:, column])
    assert (zero - rows.max()) / (zero - one) == pytest.approx(0.0, abs=0.03)
    assert (zero - rows.min()) / (zero - one) == pytest.approx(0.4, abs=0.03)
    gap = slice(round(4.2 * pixel), round(5.8 * pixel))
    assert not fill[:, gap].any() and not line[:, gap].any(), "nothing was rectified there: no curve"
    assert line[:, round(7 * pixel)].any()


def test_marks_say_what_became_of_every_call(written):
    theme = THEMES["light"]
    run = a_run(
        [0.5] * 6,
        engine=["finite_difference"] * 3 + ["none"] * 3,
        fresh=[True, False, True, False, False, False],
        note=["", "", "engine reverse failed", "", "", "outside start and end"],
        skipped=[False, False, False, True, False, False],
    )
    own, plain = form_color("row_sum"), form_color("off")
    kinds = [own, mix(own, theme.panel, 0.45), theme.warning, mix(theme.faint, theme.panel, 0.3), plain, plain]
    width = (1000 - 104) / 6
    for axis in ("step", "sigma"):
        picture = plot_run(run, axis, "light")
        strip = int(numpy.flatnonzero(near(picture, own, 3)[:, 104 + round(width / 2)]).max())
        for i, color in enumerate(kinds):
            assert near(picture, color, 3)[strip, 104 + round((i + 0.5) * width)], "in the order of the calls, on either axis"
    text = "\n".join(written)
    assert all(word in text for word in ("computed", "reused", "fallback", "skipped", "plain", "engine reverse failed", "outside start and end"))


def curve(picture, color, theme, panels_down):
    """Pixels of a colour in the panel that lies `panels_down` below the first: a mask."""
    top, bottom = first_panel(picture, theme)
    down = panels_down * 266
    return near(picture.crop((104, top + down, 1000, bottom + down)), color, 40)


def test_two_calls_at_one_noise_level_are_one_point_of_the_curve():
    """Heun's method: 9, 5, 5, 1 with corrections 0.2, 0.2, 0.8, 0.8. At sigma 5, in the middle, the curve has their mean and no tooth."""
    theme = THEMES["dark"]
    run = a_run([0.2, 0.2, 0.8, 0.8], sigma=[9.0, 5.0, 5.0, 1.0], correction_low=[math.nan] * 4)
    picture = plot_run(run, "sigma")
    line = curve(picture, form_color("row_sum", "dark"), theme, 0)
    places = numpy.flatnonzero(line.any(0))
    top, bottom = first_panel(picture, theme)
    panel = picture.crop((104, top, 1000, bottom))
    grid = lines(near(panel, theme.grid, 20) | near(panel, form_color("off", "dark"), 20), 1)
    rows = numpy.flatnonzero(line[:, round((places[0] + places[-1]) / 2)])
    assert (grid[-1] - rows.mean()) / (grid[-1] - grid[0]) == pytest.approx(0.5, abs=0.03) and numpy.ptp(rows) < 16


def test_a_skipped_call_has_no_weight():
    """Calls 3 and 4 had no guidance: the curve of what was used lies on the axis there, that of cfg - 1 stays."""
    theme = THEMES["dark"]
    run = a_run([1.0] * 4, engine=["finite_difference"] * 2 + ["none"] * 2, skipped=[False, False, True, True])
    picture = plot_run(run, "step")
    used = curve(picture, form_color("row_sum", "dark"), theme, 2)
    given = curve(picture, form_color("off", "dark"), theme, 2)
    height, width = used.shape
    for column, share in ((0.375, 1.0), (0.875, 0.0)):
        at = round(column * width)
        assert (height - numpy.flatnonzero(used[:, at]).mean()) / height == pytest.approx(share / 1.06, abs=0.03)
    assert (height - numpy.flatnonzero(given[:, round(0.875 * width)]).mean()) / height == pytest.approx(1 / 1.06, abs=0.03)


def test_headings_tell_the_run(written):
    run = a_run([0.5, 0.25], seconds=[0.5, 0.25], extra_rows=[1, 2])
    run.remark("engine forward failed: finite differences from here on")
    plot_run(run, title="my title")
    text = "\n".join(written)
    words = " ".join(written)
    assert "my title" in text and "engine finite_difference (J 1), 0.75 s" in text and "active in 2 of 2 model calls" in text
    assert "+75% model evaluations" in words and "engine forward failed" in text  # 3 rows more than 2 times 2
    assert "38 % of plain guidance, estimated gain 2.7" in words  # the mean of 0.25 and 0.5
    written.clear()
    plot_run(a_run([0.5], engine=["none needed"], product=[""]))
    assert any(text.startswith("no engine needed") for text in written)


def test_runs_without_anything_to_show_are_pictures_too(written):
    assert plot_run(None).width == 1024 and "No sampling run to show" in "\n".join(written)
    plot_run(None, nothing=BYPASSED)
    assert "REG is bypassed" in "\n".join(written) and "REG is bypassed" in run_report(None, BYPASSED)
    plot_run(Run())
    idle = Run(Settings(), _rows=[Row(sigma=s, cfg=1.0, note="cfg 1: no guidance to rectify") for s in (3.0, 1.0)])
    plot_run(idle)
    text = "\n".join(written)
    assert "REG changed nothing in this run" in text and "cfg 1: no guidance to rectify (2 calls)" in text
    nothing = a_run([math.nan] * 3, guidance_norm=[0.0] * 3, cfg=[math.nan] * 3, sigma=[math.nan, 0.0, math.inf])
    for axis in ("sigma", "step"):
        assert plot_run(nothing, axis).size[0] == 1024
    one = a_run([0.5])
    assert plot_run(one, "sigma").size == plot_run(one, "step").size
    assert plot_run(a_run([0.5] * 1200), "step").height < 1400
    assert "No sampling run" in run_report(None) and "note: n" in run_report(Run(notes=["n"]))


def test_restart_samplers_and_flat_curves_keep_their_place():
    """Noise that goes up again, the same noise twice, constant and negative values: always inside the picture."""
    run = a_run([1.0] * 5, sigma=[5.0, 5.0, 2.0, 4.0, 0.0], cfg=[0.0] * 5, rectified_norm=[0.0] * 5, guidance_norm=[0.0] * 5)
    assert plot_run(run, "sigma", "light").size[0] == 1024


@pytest.mark.parametrize("call", [lambda: plot_run(a_run([1.0]), "time"), lambda: plot_run(None, theme="pink")])
def test_bad_choices_are_named(call):
    with pytest.raises(ValueError, match="'time'|'pink'"):
        call()


def test_scales_and_ticks():
    assert Scale(1, 100, True)(10) == pytest.approx(0.5) and Scale(0, 4, reverse=True)(1) == 0.75
    assert math.isnan(Scale(1, 100, True)(0)) and math.isnan(Scale(0, 1)(math.inf))
    assert linear_ticks(0, 1, 6) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0]) and linear_ticks(-3, 7, 5) == pytest.approx([-2, 0, 2, 4, 6])
    assert log_ticks(0.9, 120, 8) == pytest.approx([1, 2, 5, 10, 20, 50, 100]) and log_ticks(0.01, 1000, 6) == pytest.approx([0.01, 0.1, 1, 10, 100, 1000])
    generator = numpy.random.default_rng(0)
    for _ in range(300):
        low, span, most = generator.normal() * 10 ** generator.uniform(-6, 6), 10 ** generator.uniform(-6, 6), int(generator.integers(2, 9))
        ticks = linear_ticks(low, low + span, most)
        assert 1 <= len(ticks) <= most and low - 1e-6 * span <= ticks[0] and ticks[-1] <= low + span * (1 + 1e-6)
        step = (ticks[1] - ticks[0]) if len(ticks) > 1 else 1.0
        assert min(abs(float(f"{step:e}"[:6]) - d) for d in (1, 2, 5, 10)) < 1e-2
    assert scale_for([1.0, 1000.0]).log and not scale_for([1.0, 2.0]).log and not scale_for([-1.0, 1000.0]).log
    assert scale_for([]).low < scale_for([]).high and scale_for([3.0, 3.0]).low < 3 < scale_for([3.0, 3.0]).high


def test_wrapped_text_fits_and_loses_nothing():
    text = "outside start and end; " * 5 + "x" * 200
    parts = wrap(text, 20, 300)
    assert all(text_width(part, 20) <= 300 for part in parts) and "".join("".join(parts).split()) == "".join(text.split())
    assert wrap("", 20, 300) == [""]
    assert pages.font(20, "plain") is pages.font(20) and text_width("\u732b \u00e9 \u03c3", 20) > 0


# Schedules


def test_schedule_curve_and_table(written):
    theme, own, plain = THEMES["dark"], form_color("schedule", "dark"), form_color("off", "dark")
    points = [SchedulePoint(10.0 - i, i / 8, 1 + i, active=3 <= i < 7, factor=0.5 if 3 <= i < 7 else math.nan) for i in range(9)]
    picture = plot_schedule(points, "step", lines=["two schedules"], form="schedule")
    top, bottom = first_panel(picture, theme)
    panel = picture.crop((104, top, 1000, bottom))
    levels = lines(near(panel, theme.grid, 20), 1)
    assert len(levels) == 5  # 8, 6, 4, 2, 0
    for i, point in enumerate(points):
        column = round((i + 0.5) / 9 * panel.width)
        for color, value in ((own, point.rectified), (plain, point.weight)):
            rows = numpy.flatnonzero(near(panel, color, 40)[:, column])
            if value in (0.0,) or (color == plain and not point.active):
                continue  # one curve hides the other, or the axis
            assert (levels[-1] - rows.mean()) / (levels[-1] - levels[0]) * 8 == pytest.approx(value, abs=0.15), (i, color)
    assert "two schedules" in written and "used" in written and any("9 steps from sigma 10 to 2" in text for text in written)
    table = schedule_table(points).splitlines()
    assert len(table) == 10 and table[5].split() == ["5", "6", "0.500", "5", "4", "yes", "0.500", "2"]
    for axis in ("sigma", "timestep"):
        assert plot_schedule(points[:1], axis, "light").width == 1024
    unknown = SchedulePoint(1.0, 0.5, 4.0, active=True)
    assert math.isnan(unknown.rectified) and plot_schedule([unknown] * 2, "sigma")
    with pytest.raises(ValueError, match="'time'"):
        plot_schedule(points, "time")
    with pytest.raises(ValueError, match="no steps"):
        plot_schedule([])


def test_a_mark_says_how_every_step_is_guided():
    """No guidance in step 1, plain in 2 and 3, REG in 4: read from the strip at the bottom."""
    theme, own, plain = THEMES["dark"], form_color("row_sum", "dark"), form_color("off", "dark")
    points = [SchedulePoint(4.0 - i, i / 3, cfg, active=i == 3) for i, cfg in enumerate((1.0, 5.0, 5.0, 5.0))]
    picture = plot_schedule(points, "step", form="row_sum")
    width = (1000 - 104) / 4
    strip = int(numpy.flatnonzero(near(picture, own, 3)[:, 104 + round(3.5 * width)]).max())
    for i, color in enumerate((mix(theme.faint, theme.panel, 0.3), plain, plain, own)):
        assert near(picture, color, 3)[strip, 104 + round((i + 0.5) * width)], i


# Calibrations


def test_a_table_is_drawn_with_its_error():
    """Decoded from the picture: the measured points and twice their standard error, from grid lines at 0, 0.5 and 1."""
    theme, own = THEMES["dark"], form_color("calibrated", "dark")
    table = Calibration(torch.tensor([0.1, 1.0, 10.0]), torch.tensor([0.9, 0.5, 0.1]), torch.tensor([0.0, 0.1, 0.02]), "scalar")
    picture = plot_calibration(table, 0.5)
    top, bottom = first_panel(picture, theme)
    panel = picture.crop((104, top, 1000, bottom))
    one, half, zero = lines(near(panel, theme.grid, 20) | near(panel, form_color("off", "dark"), 20), 1)
    middle = numpy.flatnonzero(near(panel, own, 40)[:, panel.width // 2])  # of three knots, even in log sigma
    assert [(zero - middle.max()) / (zero - one), (zero - middle.min()) / (zero - one)] == pytest.approx([0.3, 0.7], abs=0.02)
    formula = numpy.flatnonzero(near(panel, form_color("schedule", "dark"), 40)[:, panel.width // 4])
    level = 10**0.5  # a quarter of the way from 10 to 0.1
    assert (zero - formula.mean()) / (zero - one) == pytest.approx(0.25 / (0.25 + level**2), abs=0.02)
    single = Calibration(torch.tensor([1.0]), torch.tensor([0.5]), torch.tensor([math.nan]), "row_sum")
    assert plot_calibration(single, 1.0, "light", ["a line"]).width == 1024


def test_every_form_has_a_colour_of_its_own():
    assert set(FORMS) <= set(FORM_COLORS)
    for theme in THEMES:
        colors = {form: rgb(form_color(form, theme)) for form in FORM_COLORS}
        assert not [(theme, a, b) for a, b in itertools.combinations(colors, 2) if abs(colors[a] - colors[b]).sum() <= 60]


# Heat maps


def luma(t):
    return t @ torch.tensor([0.299, 0.587, 0.114])


def correlation(a, b):
    return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])


def test_heat_maps_are_one_sheet(written):
    """Oracle: the numbers, read back from the brightness of the squares. Three maps of 6x9: two columns, two rows, one bar."""
    heat = torch.rand(3, 6, 9) * 0.4 + 0.3
    sheet, remark = heat_sheet(heat)
    scale = (sheet.shape[2] - 6) // 18
    assert remark == "" and sheet.shape == (1, 12 * scale + 6 + 84, 18 * scale + 6, 3) and 18 * scale > 700
    for i, values in enumerate(heat):
        y, x = i // 2 * (6 * scale + 6), i % 2 * (9 * scale + 6)
        blocks = luma(sheet[0, y : y + 6 * scale, x : x + 9 * scale]).unfold(0, scale, scale).unfold(1, scale, scale)
        assert blocks.flatten(2).std(-1).max() < 1e-6, "a latent pixel is one square"
        assert correlation(blocks.mean((-1, -2)), values) > 0.97
    numbers = [float(text) for text in written if text[0].isdigit()]
    assert numbers == pytest.approx([0.3, 0.5, 0.7], abs=0.02), "one bar, labelled with what it shows"


def test_heat_lies_over_its_image():
    heat = torch.rand(2, 4, 4)
    images = torch.rand(2, 512, 384, 3)
    sheet, remark = heat_sheet(heat, images)
    assert remark == "" and sheet.shape == (1, 512 + 84, 2 * 384 + 6, 3) and 0 <= sheet.min() and sheet.max() <= 1
    smooth = torch.nn.functional.interpolate(heat[:, None], (512, 384), mode="bilinear")[:, 0]
    assert correlation(luma(sheet[0, :512, 390:]), smooth[1]) > 0.7
    white, _ = heat_sheet(heat, torch.ones(2, 512, 384, 3))
    black, _ = heat_sheet(heat, torch.zeros(2, 512, 384, 3))
    assert torch.allclose((white - black)[:, :512, :384], torch.tensor(0.3), atol=1e-5)


def test_maps_take_the_place_of_their_pictures_on_a_sheet():
    """Six maps, one of them warm, on a sheet of two rows and three columns: that cell is the bright one."""
    heat = torch.full((6, 8, 8), 0.2)
    heat[4] = 0.9
    sheet, remark = heat_sheet(heat, torch.zeros(1, 2 * 128, 3 * 128, 3))
    scale = sheet.shape[2] // 384
    assert remark == "" and sheet.shape[1:3] == (scale * 256 + 84, scale * 384)
    cells = luma(sheet[0, : scale * 256]).unflatten(0, (2, -1)).unflatten(2, (3, -1)).mean((1, 3))
    assert cells.argmax() == 4 and cells.flatten().sort().values[-2] < 0.5 * cells.max()


def test_heat_of_other_shapes():
    def maps(*arguments):
        """Number of maps on the sheet, and the remark."""
        shown = []
        with pytest.MonkeyPatch.context() as patch:
            tiled = heats._tiled
            patch.setattr(heats, "_tiled", lambda pictures, *rest: (shown.append(len(pictures)), tiled(pictures, *rest))[1])
            sheet, remark = heat_sheet(*arguments)
        assert sheet.shape[0] == 1 and torch.isfinite(sheet).all() and max(sheet.shape[1:3]) <= 2048 + 84
        return shown[0], remark

    assert maps(torch.rand(1, 3, 4, 4), torch.rand(9, 32, 32, 3)) == (9, "")  # a video VAE gives more frames than latents
    assert maps(torch.rand(2, 3, 4, 4))[0] == 6 and maps(torch.rand(2, 50))[0] == 2  # sound
    count, remark = maps(torch.rand(4, 8, 8), torch.rand(1, 60, 64, 3))
    assert count == 4 and "1 images given for 4" in remark
    assert maps(torch.rand(1, 4, 4), torch.rand(1, 8, 8, 4))[0] == 1
    holes = torch.full((1, 4, 4), 0.5)
    holes[0, 0, 0] = math.nan
    assert maps(holes)[0] == 1
    for nothing in (None, torch.full((1, 4, 4), math.nan)):
        picture, remark = heat_sheet(nothing, theme="light")
        assert picture.shape == (1, 256, 512, 3) and remark == "no heat map"
    with pytest.raises(ValueError, match=r"\[8, 8, 3\]"):
        heat_sheet(torch.rand(1, 4, 4), torch.rand(8, 8, 3))
    assert maps(torch.rand(300, 4, 4), torch.rand(300, 160, 16, 3)) == (256, "the first 256 of 300 maps")


# Sheets


def find(sheet, image):
    """Where an image lies in a sheet, exactly; [] if it does not."""
    h, w = image.shape[:2]
    places = (sheet.unfold(0, h, 1).unfold(1, w, 1)[:, :, :, 0, 0] == image[0, 0]).all(-1).nonzero().tolist()
    return [(y, x) for y, x in places if torch.equal(sheet[y : y + h, x : x + w], image)]


def test_images_are_copied_whole_in_reading_order():
    images = [torch.rand(1, 40 + 8 * i, 60, 3) for i in range(5)]
    (sheet,) = labelled_grid(images, [f"number {i}" for i in range(5)], columns=2)
    places = [find(sheet, image[0]) for image in images]
    assert all(len(p) == 1 for p in places)
    ((y0, x0),), ((y1, x1),), ((y2, x2),), *_ = places
    assert x0 < x1 and x2 == x0 and y2 > y0 and places[4][0][0] > places[2][0][0]
    assert y0 + 40 / 2 == y1 + 48 / 2, "smaller ones in the middle of their cell"
    assert labelled_grid(images, ["" for _ in images])[0].shape[1] > 3 * 60, "automatic: 3 columns"


def test_labels_become_headings_where_they_fill_a_table(written):
    images = [torch.rand(1, 32, 32, 3) for _ in range(6)]
    labels = [f"{row} | cfg {c}" for row in ("off", "row_sum") for c in (2, 4, 8)]
    (sheet,) = labelled_grid(images, labels)
    assert sorted(written) == ["cfg 2", "cfg 4", "cfg 8", "off", "row_sum"]
    places = [find(sheet, image[0])[0] for image in images]
    assert len({y for y, _ in places}) == 2 and len({x for _, x in places}) == 3
    written.clear()
    labelled_grid(images, labels[::-1])  # a table too, the other way round
    labelled_grid(images, [labels[0], labels[2], labels[1], *labels[3:]])
    assert written.count("row_sum") == 1 and sum(text.startswith("off |") for text in written) == 3, "no table: labels above the images"
    written.clear()
    labelled_grid(images, labels, columns=2)
    assert len(written) >= 6


def test_cells_of_a_table_may_be_absent(written):
    """One picture of plain CFG, above as many as there are gains. Oracle: places of the pictures."""
    images = [torch.rand(1, 32, 32, 3) for _ in range(4)]
    (sheet,) = labelled_grid(images, ["CFG | gain 1", *(f"row_sum | gain {gain}" for gain in (1, 2, 4))])
    assert sorted(written) == ["CFG", "gain 1", "gain 2", "gain 4", "row_sum"]
    (y0, x0), (y1, x1), (y2, x2), (y3, x3) = (find(sheet, image[0])[0] for image in images)
    assert y0 < y1 == y2 == y3 and x0 == x1 < x2 < x3


@pytest.mark.parametrize("name", THEMES)
def test_labels_are_drawn_over_their_image(name):
    theme = THEMES[name]
    image = torch.full((1, 64, 200, 3), 0.5)
    (sheet,) = labelled_grid([image, image], ["here", ""], columns=2, theme=name)
    pixels = Image.fromarray((255 * sheet).round().byte().numpy())
    text = near(pixels, theme.text, 30)
    top = find(sheet, image[0])[0][0]
    assert text[:top, : sheet.shape[1] // 2].sum() > 20 and not text[:, sheet.shape[1] // 2 :].any() and not text[top:].any()


def test_captions_are_drawn_below_their_image(written):
    images = [torch.rand(1, 60, 90, 3), torch.rand(1, 40, 30, 3)]
    (sheet,) = labelled_grid(images, ["a | b", "a | c"], captions=["", "31 % of plain"])
    assert written.count("31 % of plain") == 1
    places = [find(sheet, image[0])[0] for image in images]
    (plain,) = labelled_grid(images, ["a | b", "a | c"])
    changed = torch.ones(sheet.shape[:2], dtype=torch.bool)
    for (y, x), image in zip(places, images, strict=True):
        changed[y : y + image.shape[1], x : x + image.shape[2]] = False
    drawn = (sheet != sheet[0, 0]).any(-1) & changed
    below = drawn[places[1][0] + 40 :]
    assert below[:, places[1][1] - 30 :].sum() > 50 and not below[:, : places[0][1] + 90].any()
    assert sheet.shape[0] > plain.shape[0] and torch.equal(labelled_grid(images, ["a", "b"], captions=["", ""]), labelled_grid(images, ["a", "b"]))
    with pytest.raises(ValueError, match="1 captions for 2 images"):
        labelled_grid(images, ["a", "b"], captions=["one"])


def test_a_batch_may_be_laid_out_in_rows_of_a_length():
    batch = torch.rand(7, 8, 10, 3)
    (sheet,) = labelled_grid([batch, batch[:2]], ["a", "b"], across=3)
    places = [find(sheet, image) for image in batch]
    (y0, x0), second = places[0][0], places[0][1]
    for i, place in enumerate(places):
        assert place[0] == (y0 + i // 3 * 10, x0 + i % 3 * 12), "two pixels between images"
    assert second[0] == places[1][1][0] and len(places[2]) == 1, "a smaller batch has one row, as long as it is"


def test_batches_share_a_cell_and_odd_images_do():
    batch = torch.rand(5, 16, 24, 3)
    (sheet,) = labelled_grid([batch, torch.rand(1, 16, 24, 1), torch.rand(1, 16, 24, 4)], ["a", "\u732b\u306e\u5199\u771f", "two words " * 6])
    for image in batch:
        assert len(find(sheet, image)) == 1
    nan = torch.full((1, 8, 8, 3), math.nan)
    assert torch.isfinite(labelled_grid([nan], ["nan"])).all()
    for bad, labels, columns, message in (
        ([], [], 0, "no images"),
        ([batch], ["a", "b"], 0, "2 labels for 1 images"),
        ([batch], ["a"], -1, "-1"),
        ([batch, torch.rand(8, 8, 3)], ["a", "b"], 0, r"image 2: .*\[8, 8, 3\]"),
        ([torch.zeros(1, 1, 1, 3).expand(1, 20000, 20000, 3)], ["a"], 0, "20016 x 20078 px"),
    ):
        with pytest.raises(ValueError, match=message):
            labelled_grid(bad, labels, columns)
