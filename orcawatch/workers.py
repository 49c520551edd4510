"""Who scans the files of an archive: this process, worker processes, or a Dask cluster."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, TimeoutError
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event as Flag
from typing import Any, Callable, Protocol

from . import staging
from ._version import __version__
from .errors import AudioError, InputError, OrcawatchError
from .files import printable
from .listener import Totals
from .staging import OnAudio, Task

log = logging.getLogger(__name__)

LOOK_S = 0.2  # between two looks at the stop flag
KILLED = (
    "the process that scanned it ended twice: too little memory, or a fault of the decoder; scan it by itself, or "
    "convert it to FLAC"
)


class Stopped(Exception):  # noqa: N818
    """The scan was to stop before this file was done."""


class Workers(Protocol):
    """Attributes
    ----------
    ahead : how many files to hand out before the first one's account is waited for.
    """

    ahead: int

    def hand_out(self, task: Task) -> Callable[[], Totals]:
        """Begin a task; what is returned waits for its account, and raises `Stopped` where the scan is to stop.

        Who waits is told of the audio that is scanned, and that none is yet, as soon as the waiting begins.
        """
        ...


class Here:
    """This process, one file after the other.

    Parameters
    ----------
    ensemble, on_audio, stop : as for `orcawatch.staging.work`.
    """

    ahead = 1

    def __init__(self, ensemble: Any, on_audio: OnAudio, stop: Flag) -> None:
        self._how = ensemble, on_audio, stop

    def hand_out(self, task: Task) -> Callable[[], Totals]:
        """Nothing is begun before it is waited for."""

        def scanned() -> Totals:
            self._how[1](0.0)
            totals = staging.work(task, *self._how)
            if self._how[2].is_set():
                raise Stopped
            return totals

        return scanned


class Processes:
    """Worker processes of this machine, each with an ensemble of its own.

    Where one dies, its file and those of the others are scanned again, each in a process by itself; a file that ends
    that one, too, is set aside.

    Parameters
    ----------
    number : of processes.
    on_audio : called in this process with the seconds scanned since the last call.
    stop : ends them.
    """

    def __init__(self, number: int, on_audio: OnAudio, stop: Flag) -> None:
        self.ahead = 4 * number
        self._number = number
        self._on_audio = on_audio
        self._stop = stop
        self._context = multiprocessing.get_context("spawn")
        self._seconds = self._context.Value("d", 0.0)
        self._told_s = 0.0
        self._pool = self._new(number)

    def hand_out(self, task: Task) -> Callable[[], Totals]:
        """Begin it as soon as a process is free."""
        future = self._submit(task)
        pool = self._pool
        return lambda: self._scanned(task, future, pool)

    def close(self) -> None:
        """End the processes, whatever they do."""
        end(self._pool)

    def _new(self, number: int) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(number, self._context, begin, (os.getpid(), self._seconds))

    def _submit(self, task: Task) -> Future[Totals]:
        try:
            return self._pool.submit(staging.work_elsewhere, task)
        except BrokenProcessPool:
            end(self._pool)
            self._pool = self._new(self._number)
            return self._pool.submit(staging.work_elsewhere, task)

    def _scanned(self, task: Task, future: Future[Totals], pool: ProcessPoolExecutor) -> Totals:
        try:
            return self._wait(future)
        except BrokenProcessPool:
            log.warning("a worker process ended; %s is scanned again by itself", printable(task.path))
        end(pool)  # the others may still be at this very file
        alone = self._new(1)
        try:
            return self._wait(alone.submit(staging.work_elsewhere, task))
        except BrokenProcessPool:
            return Totals(fault=AudioError(f"{printable(task.path)} cannot be scanned: {KILLED}"))
        finally:
            end(alone)

    def _wait(self, future: Future[Totals]) -> Totals:
        try:
            return wait(future, self._stop, self._tell)
        finally:
            self._tell()

    def _tell(self) -> None:
        now_s = self._seconds.value
        self._on_audio(now_s - self._told_s)
        self._told_s = now_s


def wait(future: Future[Totals], stop: Flag, look: Callable[[], object]) -> Totals:
    """The account of a task; `look` is called now and then. Raises `Stopped` where the scan is to stop before."""
    while True:
        try:
            return future.result(LOOK_S)
        except TimeoutError:
            if future.done():  # the task's own; or it was done just now
                return future.result()
            look()
        if stop.is_set():
            raise Stopped


def begin(parent: int, seconds: Any) -> None:
    """In a worker process: count seconds, leave signals to the parent, and end with it."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=end_with, args=(parent,), daemon=True).start()

    def count(more_s: float) -> None:
        with seconds.get_lock():
            seconds.value += more_s

    staging.tell(count)


def end_with(parent: int) -> None:
    """End this process as soon as its parent is gone: a pool's process would wait for work for ever."""
    process = multiprocessing.parent_process()
    if process is not None:
        process.join()
    os._exit(1)


def end(pool: ProcessPoolExecutor) -> None:
    """Kill a pool's processes."""
    for process in list((getattr(pool, "_processes", None) or {}).values()):
        with suppress(OSError, ValueError):
            process.kill()
    pool.shutdown(wait=True, cancel_futures=True)


class Cluster:
    """A Dask cluster, whose workers see the same paths.

    Parameters
    ----------
    executor : of the cluster's client.
    workers : how many there are.
    on_audio : called with the seconds of each file when it is done.
    stop : what is not begun is then given up.
    """

    def __init__(self, executor: Executor, workers: int, on_audio: OnAudio, stop: Flag) -> None:
        self.ahead = 4 * workers
        self._executor = executor
        self._on_audio = on_audio
        self._stop = stop

    def hand_out(self, task: Task) -> Callable[[], Totals]:
        """Begin it as soon as a worker is free."""
        future = self._executor.submit(staging.work_elsewhere, task)
        return lambda: self._scanned(task, future)

    def _scanned(self, task: Task, future: Future[Totals]) -> Totals:
        from distributed import KilledWorker

        try:
            totals = wait(future, self._stop, lambda: self._on_audio(0.0))
        except KilledWorker:
            return Totals(fault=AudioError(f"{printable(task.path)} cannot be scanned: {KILLED}"))
        self._on_audio(totals.read_s)
        return totals


@contextmanager
def processes(number: int, on_audio: OnAudio, stop: Flag) -> Iterator[Processes]:
    """Worker processes, ended at the end."""
    found = Processes(number, on_audio, stop)
    try:
        yield found
    finally:
        found.close()


@contextmanager
def cluster(address: str, folder: str, on_audio: OnAudio, stop: Flag) -> Iterator[Cluster]:
    """The workers of the scheduler at an address.

    Parameters
    ----------
    address : as `tcp://host:8786`.
    folder : that every worker must see, the output folder.

    Raises
    ------
    OrcawatchError : Dask is not installed.
    InputError : nobody answers, or a worker does not fit.
    """
    try:
        from distributed import Client
    except ImportError as fault:
        raise OrcawatchError("--dask needs Dask: pip install 'orcawatch[dask]'") from fault
    try:
        client = Client(address, timeout=10)
    except (OSError, ValueError, TimeoutError) as fault:
        raise InputError(f"no Dask scheduler answers at {address}: {fault}; start one with `dask scheduler`") from fault
    with client:
        workers = check_workers(client.run(about_worker, folder), address)
        executor = client.get_executor(retries=2, pure=False)
        try:
            yield Cluster(executor, workers, on_audio, stop)
        finally:
            executor.shutdown(wait=False)  # gives up what a stop, or an error, has left


def about_worker(folder: str) -> tuple[str, bool]:
    """On a worker: its version of orcawatch, and whether it sees a folder and may write there."""
    return __version__, Path(folder).is_dir() and os.access(folder, os.W_OK)


def check_workers(found: dict[str, tuple[str, bool]], address: str) -> int:
    """How many workers there are.

    Raises
    ------
    InputError : none, or one that does not fit.
    """
    if not found:
        raise InputError(f"the Dask cluster at {address} has no workers; start some with `dask worker {address}`")
    for worker, (version, sees) in sorted(found.items()):
        if version != __version__:
            raise InputError(f"worker {worker} has orcawatch {version}, not {__version__}; install the same version")
        if not sees:
            raise InputError(
                f"worker {worker} does not see the output folder, or may not write there: workers must see recordings "
                "and output under the same paths"
            )
    return len(found)
