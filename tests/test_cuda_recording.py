"""How the PyTorch backend records on CUDA, on stand-ins for torch.cuda, which refuse what PyTorch refuses."""

from __future__ import annotations

import threading
import weakref
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch")

from tortoise_rt.backends import cuda_graphs  # noqa: E402
from tortoise_rt.backends.cuda_graphs import Recorder, Replays  # noqa: E402

WAIT = 20.0  #: s, of what comes at once or never


class Cuda:
    """What torch.cuda keeps for a process: streams entered, one recording, the pools that graphs hold."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.entered: dict[int, list[Any]] = {}  # thread -> streams
        self.underway: list[Any] = []  # graphs
        self.begun: list[tuple[Any, Any, str]] = []  # pool, stream and mode of each recording
        self.broken = False  # ending a recording fails, as of one that CUDA has broken off
        self.held: set[Any] = set()  # pools that cannot be recorded to again
        self.emptied = self.pools = 0
        cuda = self

        class Stream:
            def __init__(self, stream: Any) -> None:
                self.stream = stream

            def __enter__(self) -> None:
                cuda.streams.append(self.stream)

            def __exit__(self, *_: object) -> None:
                assert cuda.streams.pop() == self.stream

        class CUDAGraph:
            replayed = 0

            def capture_begin(self, pool: Any = None, capture_error_mode: str = "global") -> None:
                assert not cuda.underway, "only one capture may be underway in a process"
                assert pool not in cuda.held, "beginAllocateToPool: already recording to mempool_id"
                cuda.held.add(pool)
                self.pool = pool
                cuda.underway.append(self)
                cuda.begun.append((pool, cuda.streams[-1], capture_error_mode))

            def capture_end(self) -> None:
                assert cuda.underway.pop() is self
                if cuda.broken:
                    raise RuntimeError("operation failed due to a previous error during capture")
                cuda.held.discard(self.pool)

            def replay(self) -> None:
                self.replayed += 1

        def graph_pool_handle() -> tuple[int, int]:
            self.pools += 1
            return 0, self.pools

        def empty_cache() -> None:
            assert not self.underway, "captures_underway.empty() INTERNAL ASSERT FAILED"
            self.emptied += 1

        for fake in (CUDAGraph, graph_pool_handle, empty_cache):
            monkeypatch.setattr(torch.cuda, fake.__name__, fake)
        monkeypatch.setattr(torch.cuda, "stream", Stream)
        monkeypatch.delattr(torch.cuda, "graph")  # which empties caches

    @property
    def streams(self) -> list[Any]:
        """Those that this thread has entered."""
        return self.entered.setdefault(threading.get_ident(), [])


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    return Cuda(monkeypatch)


def test_the_second_call_is_recorded_on_the_engines_stream(cuda: Cuda) -> None:
    replays, ran = Replays("mine"), []  # type: ignore[arg-type]

    def double(x: Any) -> tuple[Any, ...]:
        ran.append(list(cuda.streams))
        return (2 * x,)

    for size in (1, 2):
        for _ in range(4):
            replays("double", double, [torch.ones(size)])
    assert ran == [[], ["mine"]] * 2 and len(replays) == 2
    assert cuda.begun == [((0, 1), "mine", "thread_local")] * 2  # one pool
    assert [recorded.graph.replayed for recorded in replays._recorded.values()] == [3, 3]
    assert cuda.emptied == 0 and not cuda.streams


class Awaited:
    """A lock that says when somebody waits for it."""

    def __init__(self) -> None:
        self._lock, self.waits = threading.Lock(), threading.Event()

    def __enter__(self) -> None:
        if not self._lock.acquire(blocking=False):
            self.waits.set()
            assert self._lock.acquire(timeout=WAIT)

    def __exit__(self, *_: object) -> None:
        self._lock.release()


@pytest.fixture
def lock(monkeypatch: pytest.MonkeyPatch) -> Awaited:
    """What recorders take turns by."""
    monkeypatch.setattr(cuda_graphs, "_RECORDING", lock := Awaited())
    return lock


def check_turns(lock: Awaited, first: Any, second: Any) -> None:
    """Both record, and are given what they do meanwhile; the second begins when the first, for which it waits, is through."""
    log: list[str] = []
    begun = threading.Event()
    errors: list[BaseException] = []

    def long() -> None:
        begun.set()
        assert lock.waits.wait(WAIT)
        log.append("first ends")

    def run(record: Any, body: Any) -> None:
        try:
            record(body)
        except BaseException as error:
            errors.append(error)

    threads = [
        threading.Thread(target=run, args=pair)
        for pair in ((first, long), (second, lambda: log.append("second")))
    ]
    threads[0].start()
    assert begun.wait(WAIT)
    threads[1].start()
    for thread in threads:
        thread.join(WAIT)
    assert errors == [] and log == ["first ends", "second"]


def test_two_engines_record_one_after_the_other(cuda: Cuda, lock: Awaited) -> None:
    one, other = Recorder("one"), Recorder("other")  # type: ignore[arg-type]
    check_turns(lock, one.record, other.record)
    assert cuda.begun == [((0, 1), "one", "thread_local"), ((0, 2), "other", "thread_local")]


def test_a_decoder_records_beside_another_engine(
    cuda: Cuda, lock: Awaited, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As two lanes of a scheduler do: steps of the one, graphs of the other."""
    pytest.importorskip("triton", reason="needs Triton")
    from tortoise_rt.backends import cuda_decode

    class Step:
        """Its second run is the one that is recorded."""

        work: Any = None

        def __init__(self, *_: Any) -> None:
            self.runs = 0

        def run(self) -> None:
            self.runs += 1
            if self.runs == 2:
                self.work()

    monkeypatch.setattr(cuda_decode, "lay_out", lambda model: None)
    monkeypatch.setattr(cuda_decode, "Step", Step)
    decoder, replays = cuda_decode.Decoder(None, "one", 0, 0), Replays("other")  # type: ignore[arg-type]

    def step(work: Any) -> None:
        Step.work = staticmethod(work)
        decoder._captured(4, torch.zeros(1), draws=False)

    def graph(work: Any) -> None:
        calls = [lambda: None, work]
        for _ in range(2):
            replays("graph", lambda x: (calls.pop(0)(), x), [torch.ones(1)])

    check_turns(lock, step, graph)
    assert [stream for _, stream, _ in cuda.begun] == ["one", "other"]


@pytest.mark.parametrize("broken", [False, True])
def test_an_error_is_told_and_nothing_stays_behind(cuda: Cuda, broken: bool) -> None:
    """Also where the recording cannot be ended properly: the next is made, in a pool that PyTorch takes."""
    recorder = Recorder("mine")  # type: ignore[arg-type]

    def wrong() -> None:
        raise ValueError("no such shape")

    cuda.broken = broken
    with pytest.raises(ValueError, match="no such shape"):
        recorder.record(wrong)
    assert not cuda.underway and not cuda.streams and cuda.emptied == 0
    cuda.broken = False
    graph, result = recorder.record(lambda: 7)
    assert result == 7 and graph is not None
    assert [pool for pool, _, _ in cuda.begun] == [(0, 1), (0, 2)]


def test_a_recording_that_ends_in_an_error(cuda: Cuda) -> None:
    recorder = Recorder("mine")  # type: ignore[arg-type]
    cuda.broken = True
    with pytest.raises(RuntimeError, match="previous error during capture"):
        recorder.record(lambda: None)
    assert not cuda.streams
    cuda.broken = False
    assert recorder.record(lambda: 7)[1] == 7


def test_what_cannot_be_recorded_runs_as_it_is(cuda: Cuda, caplog: pytest.LogCaptureFixture) -> None:
    replays, given = Replays("mine"), torch.ones(2)  # type: ignore[arg-type]

    def doubled(x: Any) -> tuple[Any]:
        if cuda.underway:
            raise RuntimeError("operation not permitted when stream is capturing")
        return (2 * x,)

    for _ in range(4):
        assert replays("doubled", doubled, (given,))[0].tolist() == [2.0, 2.0]
    assert len(cuda.begun) == 1 and not cuda.underway and not replays
    assert [record.getMessage() for record in caplog.records] == [
        "doubled is not recorded, and takes longer: operation not permitted when stream is capturing"
    ]


def test_what_lacks_memory_is_run_without_what_the_recording_made(cuda: Cuda) -> None:
    """And recorded another time."""
    replays, given, made = Replays("mine"), torch.ones(2), []  # type: ignore[arg-type]
    enough = False

    def doubled(x: Any) -> tuple[Any]:
        assert cuda.underway or all(part() is None for part in made)
        large = 2 * x
        if cuda.underway:
            made.append(weakref.ref(large))
            if not enough:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return (large,)

    for _ in range(2):
        assert replays("doubled", doubled, (given,))[0].tolist() == [2.0, 2.0]
    assert len(made) == 2 and not replays  # again behind what was cached
    enough = True
    replays("doubled", doubled, (given,))
    assert len(replays) == 1


def test_cached_memory_is_given_back_where_a_recording_lacks_it(cuda: Cuda) -> None:
    recorder = Recorder("mine")  # type: ignore[arg-type]
    needed = [1, 0]

    def work() -> str:
        if needed.pop(0) > cuda.emptied:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return "done"

    assert recorder.record(work)[1] == "done" and cuda.emptied == 1
    needed = [9, 9]
    with pytest.raises(torch.cuda.OutOfMemoryError):
        recorder.record(work)
    assert cuda.emptied == 2 and not cuda.underway and not cuda.streams
