"""The log: lines of JSON, each with the id of the request that it is about."""

from __future__ import annotations

import datetime
import json
import logging
from contextvars import ContextVar

request_id: ContextVar[str | None] = ContextVar(
    "request_id", default=None
)  #: of the request that is answered


class JsonLines(logging.Formatter):
    """A line of JSON for each record; ``extra={"facts": {...}}`` becomes fields of it."""

    def format(self, record: logging.LogRecord) -> str:
        when = datetime.datetime.fromtimestamp(record.created, datetime.timezone.utc)
        number = request_id.get()
        line = {
            "time": when.isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **({} if number is None else {"id": number}),
            **getattr(record, "facts", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


def set_up_log(quiet: bool) -> None:
    """Everything that is logged, ours and uvicorn's, to standard error as lines of JSON."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    for name in ("tortoise_rt", "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.ERROR)  # some warnings quote what is said
    logging.getLogger("tortoise_rt.server").setLevel(logging.WARNING if quiet else logging.INFO)
