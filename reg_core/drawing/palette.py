"""One colour a form, in all plots: those of the nodes, of the demo and of the lab."""

# {form: (on a light page, on a dark one)}. Lines also differ in brightness, for those who see few colours.
FORM_COLORS = {
    "off": ("#23262d", "#e4e6ec"),
    "row_sum": ("#1f6fd0", "#5aa9ff"),
    "product": ("#7b4bc4", "#c79bff"),
    "scalar": ("#1b8a4b", "#7ddc9a"),
    "schedule": ("#d97706", "#ffc05c"),
    "calibrated": ("#b8326f", "#ff8fb8"),
    # What the lab compares them with
    "interval": ("#0e8a99", "#63d4e0"),
    "optimum": ("#c62828", "#ff7a70"),
}


def form_color(form: str, theme: str = "light") -> str:
    """The colour of a form, "#rrggbb". `theme`: light or dark."""
    return FORM_COLORS[form][theme == "dark"]
