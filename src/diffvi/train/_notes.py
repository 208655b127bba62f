from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator

KNOWN_NOTES = (
    "GPU available: False, used: False",
    "TPU available: False",
    "Tip: For seamless",
    "Loading `train_dataloader`",
    "`Trainer.fit` stopped: `max_epochs",
)
KNOWN_WARNINGS = (
    ".*treespec, LeafSpec.*",
    "The number of training batches",
    # Stage 2 freezes the VAE on purpose, and each plan sets the modes itself.
    ".*in eval mode at the start of training.*",
    ".*does not have many workers.*",
)


def _is_news(record: logging.LogRecord) -> bool:
    return not any(note in str(record.msg) for note in KNOWN_NOTES)


@contextlib.contextmanager
def without_engine_notes() -> Iterator[None]:
    """Keep Lightning from saying, twice a training, what nobody can act on; everything else is passed on."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero")]
    with warnings.catch_warnings():
        for message in KNOWN_WARNINGS:
            warnings.filterwarnings("ignore", message=message)
        # One of this context's own, so that contexts may nest.
        news = logging.Filter()
        news.filter = _is_news  # type: ignore[method-assign]
        for logger in loggers:
            logger.addFilter(news)
        try:
            yield
        finally:
            for logger in loggers:
                logger.removeFilter(news)
