"""Pictures of what guidance did: traces, schedules, heat maps, labelled sheets. Needs Pillow.

Nothing else in `reg_core` but the demo and the lab imports it."""

from .calibrations import plot_calibration
from .grid import labelled_grid
from .heat import heat_sheet, of_one_size
from .palette import FORM_COLORS, form_color
from .schedules import SchedulePoint, plot_schedule, schedule_table
from .traces import plot_run, run_caption, run_report

__all__ = [
    "FORM_COLORS",
    "SchedulePoint",
    "form_color",
    "heat_sheet",
    "labelled_grid",
    "of_one_size",
    "plot_calibration",
    "plot_run",
    "plot_schedule",
    "run_caption",
    "run_report",
    "schedule_table",
]
