"""The package's own exceptions, and the checks that raise them in one sentence."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np


class DiffviError(Exception):
    """Base of every exception that diffvi raises on purpose."""


class InvalidInputError(DiffviError, ValueError):
    """An argument or a data set that cannot be used; the message names it and says what is allowed."""


class NotTrainedError(DiffviError, RuntimeError):
    """A method was called before the training stage that it needs."""


class ModelFileError(DiffviError, ValueError):
    """A saved model that is missing, damaged, or not one of ours."""


class OutputFileError(DiffviError, OSError):
    """A result that cannot be written; what was written before is kept, and the message says where."""


class TrainingError(DiffviError, RuntimeError):
    """Training that cannot go on; the message says what stopped it, and the model keeps its last good weights."""


class OutOfMemoryError(DiffviError, MemoryError):
    """Memory that does not suffice; the message names the argument to lower."""


@contextlib.contextmanager
def memory_told(argument: str, value: Any) -> Iterator[None]:
    """Say which argument to lower when the memory of the machine or of the GPU does not suffice."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        text = str(error)
        short = isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text
        if not short or isinstance(error, DiffviError):
            raise
        first = (text.splitlines() or [""])[0]
        raise OutOfMemoryError(f"The memory does not suffice for `{argument}={value}`: lower it. ({first})") from error


def listed(values: Iterable[Any], most: int = 12) -> str:
    """Write values as a short list for a message: ``'a', 'b', ... (34 in all)``."""
    values = list(values)
    if not values:
        return "nothing"
    shown = ", ".join(repr(v.item() if isinstance(v, np.generic) else v) for v in values[:most])
    return shown if len(values) <= most else f"{shown}, ... ({len(values)} in all)"


def one_of(argument: str, value: Any, allowed: Iterable[Any]) -> Any:
    """Return ``value`` if it is allowed, else raise naming the argument, the value and the choices."""
    allowed = list(allowed)
    # Not by `in`: comparing an array gives an array.
    if any(isinstance(value, type(a)) and value == a for a in allowed):
        return value
    close = difflib.get_close_matches(str(value), [str(a) for a in allowed], n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise InvalidInputError(f"`{argument}` must be one of {listed(allowed)}; got {value!r}.{hint}")


def positive_int(argument: str, value: Any) -> int:
    """Return ``value`` as an int if it is a whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise InvalidInputError(f"`{argument}` must be a whole number of at least 1; got {value!r}.")
    return int(value)


def seed_or_random(seed: Any) -> int:
    """Return a seed between 0 and 2**63 - 1, drawn from the operating system where ``seed`` is None."""
    if seed is None:
        return int(np.random.SeedSequence().generate_state(1, np.uint32)[0])
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= seed < 2**63:
        raise InvalidInputError(f"`seed` must be None or a whole number from 0 to 2**63 - 1; got {seed!r}.")
    return int(seed)
