"""Perform runs of a study one by one, or several at a time, each in its own process."""

import multiprocessing
import multiprocessing.connection
import sys
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from hardpatch.errors import TrainingError, UserError
from hardpatch.study.perform import Stopped, perform
from hardpatch.study.plan import Study, Task
from hardpatch.train.live import LiveProgress
from hardpatch.train.progress import Silent, live_console
from hardpatch.train.signals import first_signal_calls


@contextmanager
def stop_on_signal() -> Iterator[None]:
    """Raise :class:`Stopped` on the signals that stop a training; see :mod:`hardpatch.train.signals`."""

    def stop(number: int) -> None:
        raise Stopped(number)

    with first_signal_calls(stop):
        yield


def perform_all(study: Study, tasks: Sequence[Task]) -> Generator[tuple[Task, str], None, None]:
    """Perform the tasks, ``study.jobs`` at a time, and yield each as it ends.

    Yields:
        The task, and the reason why it failed (empty if it did not).
    """
    return _one_by_one(study, tasks) if study.jobs == 1 else _in_parallel(study, tasks)


def _one_by_one(study: Study, tasks: Sequence[Task]) -> Generator[tuple[Task, str], None, None]:
    console = live_console()
    progress = Silent() if console is None else LiveProgress(console)
    for task in tasks:
        try:
            perform(study, task, progress)
        except (UserError, TrainingError) as error:
            yield task, str(error)
        else:
            yield task, ""


def _in_parallel(study: Study, tasks: Sequence[Task]) -> Generator[tuple[Task, str], None, None]:
    context = multiprocessing.get_context("spawn")
    waiting = list(tasks)
    running: dict[int, tuple[Task, Any, multiprocessing.connection.Connection]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < study.jobs:
                task = waiting.pop(0)
                receiver, sender = context.Pipe(duplex=False)
                process = context.Process(target=_perform_in_process, args=(study, task, sender), name=task.name)
                process.start()
                sender.close()
                running[process.sentinel] = (task, process, receiver)
            for sentinel in multiprocessing.connection.wait(list(running)):
                assert isinstance(sentinel, int)
                task, process, receiver = running.pop(sentinel)
                process.join()
                try:
                    reason = receiver.recv()
                except EOFError:  # it ended before it could send anything
                    reason = f"its process ended with exit code {process.exitcode}"
                receiver.close()
                yield task, reason
    finally:
        for _, process, _ in running.values():
            process.terminate()  # a SIGTERM, on which a run saves
        for _, process, receiver in running.values():
            process.join()
            receiver.close()


def _perform_in_process(study: Study, task: Task, sender: multiprocessing.connection.Connection) -> None:
    """Perform a task in a child process and send the reason why it failed, empty if it did not."""
    import torch

    torch.set_num_threads(max(1, torch.get_num_threads() // study.jobs))
    try:
        with stop_on_signal():
            perform(study, task, Silent())
    except (UserError, TrainingError) as error:
        sender.send(str(error))
    except Stopped as request:
        sys.exit(128 + request.number)
    else:
        sender.send("")
