"""Checks of values. A refusal is one line: the name, what was wanted, and the value in short."""

import math

import numpy as np

MOST = 150  # characters of a value in a message
SMALLEST, LARGEST = 1e-6, 1e6  # of what guidance is multiplied by: products of several stay finite in float32
NUMBERS = (int, float, np.integer, np.floating)


def shortened(value) -> str:
    """A value as Python writes it, on one short line."""
    try:
        return cut(repr(value))
    except Exception:  # whole numbers may be too long for Python to print, and others' classes do anything
        return f"a value of type {type(value).__name__}"


def cut(text) -> str:
    """A text, or the words of an error, on one line of at most MOST characters."""
    text = " ".join(str(text)[: 10 * MOST].split())
    return text if len(text) <= MOST else text[: MOST - 3] + "..."


def one_of(name: str, value, choices) -> None:
    """Raises ValueError unless `value` is one of the words `choices`."""
    if not (isinstance(value, str) and value in choices):
        known = cut(", ".join(map(str, choices)))
        raise ValueError(f"{name} must be one of {known}, got {shortened(value)}")


def number(name: str, value, low: float = -LARGEST, high: float = LARGEST) -> float:
    """`value` as a float. Raises ValueError unless it is one number from `low` to `high`, both included."""
    try:
        found = math.nan if isinstance(value, bool) or not isinstance(value, NUMBERS) else float(value)
    except OverflowError:  # a whole number that no float holds
        found = math.nan
    if not low <= found <= high:
        raise ValueError(f"{name} must be a number from {low:g} to {high:g}, got {shortened(value)}")
    return found


def whole(name: str, value, low: int, high: int = int(LARGEST)) -> int:
    """`value` as an int. Raises ValueError unless it is a whole number from `low` to `high`."""
    fits = isinstance(value, NUMBERS) and not isinstance(value, bool) and low <= value <= high
    if not fits or int(value) != value:
        raise ValueError(f"{name} must be a whole number from {low} to {high}, got {shortened(value)}")
    return int(value)
