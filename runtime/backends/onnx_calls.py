"""Who may call ONNX Runtime on a GPU, and when."""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
import traceback
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from ..errors import EngineError

T = TypeVar("T")
Asked = tuple["Future[Any] | None", Callable[..., Any], tuple[Any, ...]]  #: None: it is the last
_CALLERS: weakref.WeakSet[Caller] = weakref.WeakSet()
_THREADS: set[threading.Thread] = set()  #: of callers, those that are gone as well, until they have ended


class Calls:
    """Calls of all engines of a process: side by side, but for one that records, which is alone.

    While a stream of ONNX Runtime's records, CUDA refuses any thread of the process what cannot be recorded, as
    allocating, freeing and waiting, and the recording fails with it.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._beside: set[int] = set()  # threads
        self._recording = False  # or about to

    @contextlib.contextmanager
    def beside_others(self) -> Iterator[None]:
        """For calls that record nothing; within another such call it changes nothing."""
        thread = threading.get_ident()
        if thread in self._beside:
            yield
            return
        with self._changed:
            self._changed.wait_for(lambda: not self._recording)
            self._beside.add(thread)
        try:
            yield
        finally:
            with self._changed:
                self._beside.remove(thread)
                self._changed.notify_all()

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """For a call that records, of a thread that is in no other call."""
        assert threading.get_ident() not in self._beside
        with self._changed:
            self._changed.wait_for(lambda: not self._recording)
            self._recording = True
            self._changed.wait_for(lambda: not self._beside)
        try:
            yield
        finally:
            with self._changed:
                self._recording = False
                self._changed.notify_all()


CALLS = Calls()  #: of the process


class Caller:
    """A thread that does one thing after another, for any thread. The program's end waits for what it is doing alone."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._asked: SimpleQueue[Asked] = SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._process = os.getpid()
        self._ended = False

    def __call__(self, work: Callable[..., T], *arguments: Any) -> T:
        """What ``work`` returns or raises; raises EngineError when the program ends before it is done."""
        return self._ask(work, arguments).result()

    def _ask(self, work: Callable[..., T], arguments: tuple[Any, ...]) -> Future[T]:
        future: Future[T] = Future()
        with self._lock:
            if self._ended:
                raise _ended()
            if self._thread is None:
                given = (self._asked,)
                self._thread = threading.Thread(target=_work, args=given, name=self._name, daemon=True)
                _THREADS.add(self._thread)
                _CALLERS.add(self)
                self._thread.start()
            self._asked.put((future, work, arguments))
        return future

    def end(self, last: Callable[[], None]) -> None:
        """End the thread, behind what was asked and ``last``. Waits for nothing, and takes no lock: for finalizers."""
        self._asked.put((None, last, ()))

    def stop(self) -> None:
        """At the program's end: wait for what is being done, which would take the process down; do no more but end."""
        if os.getpid() != self._process:  # forked, without the thread
            return
        with self._lock:
            self._ended = True
            lasts: list[Asked] = []
            with contextlib.suppress(Empty):
                while True:
                    asked = self._asked.get_nowait()
                    if asked[0] is None:
                        lasts.append(asked)
                    else:
                        asked[0].set_exception(_ended())
            for asked in lasts:
                self._asked.put(asked)
            self.end(lambda: None)
        if self._thread is not None:
            self._thread.join()


def _ended() -> EngineError:
    return EngineError("the program is ending")


@atexit.register
def _stop_all() -> None:
    try:
        for caller in list(_CALLERS):
            caller.stop()
        for thread in list(_THREADS):  # of callers that are gone: they have been told to end
            thread.join()
    except KeyboardInterrupt:  # by whom the call lasts too long
        os._exit(130)


def _work(asked: SimpleQueue[Asked]) -> None:
    more = True
    while more:
        more = _do(*asked.get())
    _THREADS.discard(threading.current_thread())


def _do(future: Future[Any] | None, work: Callable[..., Any], arguments: tuple[Any, ...]) -> bool:
    """-> whether there is more to come. Refers to nothing behind that."""
    if future is None:
        with CALLS.beside_others():
            work()
        return False
    try:
        future.set_result(work(*arguments))
    except BaseException as error:
        with CALLS.beside_others():
            _let_go(error)
        future.set_exception(error)
    finally:
        del future, work, arguments  # the error refers to this frame, and the future to the error
    return True


def _let_go(error: BaseException | None) -> None:
    """Of what failed, and may refer to sessions: those end in no other thread, and beside no recording."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__
