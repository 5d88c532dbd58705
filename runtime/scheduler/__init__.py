"""Many requests on one engine: who takes which row, what runs together, and the loop that does it."""

from .loop import Scheduler
from .policy import Priority
from .request import Event, Handle, StreamHandle

__all__ = ["Event", "Handle", "Priority", "Scheduler", "StreamHandle"]
