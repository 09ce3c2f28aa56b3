"""Pictures of what guidance did: traces, schedules, heat maps, labelled sheets. Needs Pillow.

Nothing else in `reg_core` but the demo and the lab imports it."""

from .grid import labelled_grid
from .heat import heat_pictures, of_one_size
from .schedules import SchedulePoint, plot_schedule, schedule_table
from .traces import plot_run, run_report

__all__ = [
    "SchedulePoint",
    "heat_pictures",
    "labelled_grid",
    "of_one_size",
    "plot_run",
    "plot_schedule",
    "run_report",
    "schedule_table",
]
