from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator


@contextlib.contextmanager
def without_notes() -> Iterator[None]:
    """Keep scvi from noting what was asked for: that a set-up is carried over to new cells, that a file is on the disk already."""
    logger = logging.getLogger("scvi")
    level = logger.level
    logger.setLevel(max(level, logging.WARNING))
    try:
        yield
    finally:
        logger.setLevel(level)
