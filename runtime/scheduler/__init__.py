"""Many requests on one engine: who takes which row, what runs together, and the loop that does it."""

from .policy import Priority
from .protocol import AnyScheduler
from .request import Event, Handle, StreamHandle
from .scheduler import Scheduler
from .share import Share

__all__ = ["AnyScheduler", "Event", "Handle", "Priority", "Scheduler", "Share", "StreamHandle"]
