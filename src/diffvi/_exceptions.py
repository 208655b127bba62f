"""The package's own exceptions, and the checks that raise them in one sentence."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np


class DiffviError(Exception):
    """Base of every exception that diffvi raises on purpose.

    Examples
    --------
    >>> import diffvi
    >>> try:
    ...     diffvi.benchmark.Options(draws=0)
    ... except diffvi.DiffviError as error:  # whatever diffvi raises
    ...     print(error)
    `draws` must be a whole number of at least 1; got 0.
    """


class InvalidInputError(DiffviError, ValueError):
    """An argument or a data set that cannot be used; the message names it and says what is allowed.

    Examples
    --------
    >>> import diffvi
    >>> diffvi.benchmark.Options(test_size=2)  # it is a ValueError too
    Traceback (most recent call last):
    diffvi._exceptions.InvalidInputError: `test_size` must lie between 0 and 1; got 2.
    """


class NotTrainedError(DiffviError, RuntimeError):
    """A method was called before the training stage that it needs.

    Examples
    --------
    >>> import diffvi
    >>> adata = diffvi.datasets.simulate_cells(50, 10, seed=0)
    >>> diffvi.model.LatentDiffusionSCVI.setup_anndata(adata)
    >>> diffvi.model.LatentDiffusionSCVI(adata).generate(5)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    diffvi._exceptions.NotTrainedError: The diffusion stage of this LatentDiffusionSCVI is not trained: call `model.train()` ...
    """


class ModelFileError(DiffviError, ValueError):
    """A saved model that is missing, damaged, or not one of ours.

    Examples
    --------
    >>> import diffvi
    >>> diffvi.model.LatentDiffusionSCVI.load("nowhere")
    Traceback (most recent call last):
    diffvi._exceptions.ModelFileError: `dir_path`: there is no model in 'nowhere' (no file 'model.pt').
    """


class OutputFileError(DiffviError, OSError):
    """A result that cannot be written; what was written before is kept, and the message says where.

    Examples
    --------
    >>> from pathlib import Path
    >>> Path("notes.txt").touch()
    >>> model.generate(5, seed=0, path="notes.txt/cells.zarr")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    diffvi._exceptions.OutputFileError: `path`: ...
    """


class TrainingError(DiffviError, RuntimeError):
    """Training that cannot go on; the message says what stopped it, and the model keeps its last good weights.

    Examples
    --------
    >>> model.train_diffusion(max_epochs=5, plan_kwargs={"lr": 1e30}, enable_progress_bar=False)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    diffvi._exceptions.TrainingError: ...
    """


class OutOfMemoryError(DiffviError, MemoryError):
    """Memory that does not suffice; the message names the argument to lower.

    Examples
    --------
    >>> with memory_told("batch_size", 4096):
    ...     raise MemoryError("Unable to allocate 8 GiB")
    Traceback (most recent call last):
    diffvi._exceptions.OutOfMemoryError: The memory does not suffice for `batch_size=4096`: lower it. (Unable to allocate 8 GiB)
    """


@contextlib.contextmanager
def memory_told(argument: str, value: Any) -> Iterator[None]:
    """Say which argument to lower when the memory of the machine or of the GPU does not suffice.

    Parameters
    ----------
    argument, value
        Name and value of the argument to lower.

    Yields
    ------
    Nothing; what is done meanwhile is watched.

    Raises
    ------
    OutOfMemoryError
        If the memory does not suffice; other errors pass through.
    """
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
    """Write values as a short list for a message: ``'a', 'b', ... (34 in all)``.

    Parameters
    ----------
    values
        The values.
    most
        Values to write out.

    Returns
    -------
    The list; ``"nothing"`` if there are none.

    Examples
    --------
    >>> listed("abcde", most=2)
    "'a', 'b', ... (5 in all)"
    """
    values = list(values)
    if not values:
        return "nothing"
    shown = ", ".join(repr(v.item() if isinstance(v, np.generic) else v) for v in values[:most])
    return shown if len(values) <= most else f"{shown}, ... ({len(values)} in all)"


def one_of(argument: str, value: Any, allowed: Iterable[Any]) -> Any:
    """Return ``value`` if it is allowed, else raise naming the argument, the value and the choices.

    Parameters
    ----------
    argument, value
        Name and value of the argument.
    allowed
        The choices.

    Returns
    -------
    The value.

    Raises
    ------
    InvalidInputError
        If it is not allowed.

    Examples
    --------
    >>> one_of("sampler", "huen", ["heun", "euler"])
    Traceback (most recent call last):
    diffvi._exceptions.InvalidInputError: `sampler` must be one of 'heun', 'euler'; got 'huen'. Did you mean 'heun'?
    """
    allowed = list(allowed)
    # Not by `in`: comparing an array gives an array.
    if any(isinstance(value, type(a)) and value == a for a in allowed):
        return value
    close = difflib.get_close_matches(str(value), [str(a) for a in allowed], n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise InvalidInputError(f"`{argument}` must be one of {listed(allowed)}; got {value!r}.{hint}")


def positive_int(argument: str, value: Any) -> int:
    """Return ``value`` as an int if it is a whole number of at least 1.

    Parameters
    ----------
    argument, value
        Name and value of the argument.

    Returns
    -------
    The value.

    Raises
    ------
    InvalidInputError
        If it is not one.

    Examples
    --------
    >>> positive_int("n_obs", 2.5)
    Traceback (most recent call last):
    diffvi._exceptions.InvalidInputError: `n_obs` must be a whole number of at least 1; got 2.5.
    """
    return whole_number(argument, value, 1)


def whole_number(argument: str, value: Any, at_least: int) -> int:
    """Return ``value`` as an int if it is a whole number that is not too small.

    Parameters
    ----------
    argument, value
        Name and value of the argument.
    at_least
        The least that is allowed.

    Returns
    -------
    The value.

    Raises
    ------
    InvalidInputError
        If it is not one, or less.

    Examples
    --------
    >>> whole_number("n_resamples", -1, at_least=0)
    Traceback (most recent call last):
    diffvi._exceptions.InvalidInputError: `n_resamples` must be a whole number of at least 0; got -1.
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < at_least:
        raise InvalidInputError(f"`{argument}` must be a whole number of at least {at_least}; got {value!r}.")
    return int(value)


def finite_number(
    argument: str, value: Any, at_least: float = -np.inf, at_most: float = np.inf, above: float = -np.inf
) -> float:
    """Return ``value`` as a float if it is a finite number between the limits.

    Parameters
    ----------
    argument, value
        Name and value of the argument.
    at_least, at_most, above
        The limits, of which those that are infinite do not count.

    Returns
    -------
    The value.

    Raises
    ------
    InvalidInputError
        If it is no number, not finite or beyond a limit.

    Examples
    --------
    >>> finite_number("mean_library", 0, above=0)
    Traceback (most recent call last):
    diffvi._exceptions.InvalidInputError: `mean_library` must be a finite number above 0; got 0.
    """
    number = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    if not number or not np.isfinite(value) or not at_least <= value <= at_most or value <= above:
        limits = (("of at least", at_least), ("above", above), ("of at most", at_most))
        allowed = " and ".join(f"{words} {limit:g}" for words, limit in limits if np.isfinite(limit))
        raise InvalidInputError(f"`{argument}` must be a finite number {allowed}".rstrip() + f"; got {value!r}.")
    return float(value)


def seed_or_random(seed: Any) -> int:
    """Return a seed between 0 and 2**63 - 1, drawn from the operating system where ``seed`` is None.

    Parameters
    ----------
    seed
        A whole number, or ``None``.

    Returns
    -------
    The seed.

    Raises
    ------
    InvalidInputError
        If it is neither.

    Examples
    --------
    >>> seed_or_random(7), 0 <= seed_or_random(None) < 2**32
    (7, True)
    """
    if seed is None:
        return int(np.random.SeedSequence().generate_state(1, np.uint32)[0])
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= seed < 2**63:
        raise InvalidInputError(f"`seed` must be None or a whole number from 0 to 2**63 - 1; got {seed!r}.")
    return int(seed)
