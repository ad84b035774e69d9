"""A contender in a process of its own, with the memory allocator as its users have it."""

import multiprocessing
from multiprocessing.connection import Connection
from typing import Any

import torch

from hardpatch.errors import UserError
from hardpatch.pretrain.sections import RunConfig


class Apart:
    """A contender's step, taken in another process while this one waits. On a CPU.

    Only what trains with this package there has its allocator settled (:mod:`hardpatch.train.memory`); other libraries
    have what glibc does by default.

    Args:
        name: of the contender.
        run: as :func:`~hardpatch.bench.contenders.contender` takes it.

    Raises:
        NotHereError: if the contender is not there.
        UserError: for a name that is none.
    """

    def __init__(self, name: str, run: RunConfig) -> None:
        context = multiprocessing.get_context("spawn")
        self._ours, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, name, run, torch.get_num_threads()), daemon=True)
        self._process.start()
        theirs.close()
        found = self._receive()
        if isinstance(found, Exception):
            self._process.join()
            raise found
        self.name, self.run = found

    def step(self) -> None:
        """One optimizer step there."""
        self._ours.send(True)
        self._receive()

    def close(self) -> None:
        """End the other process."""
        if self._process.is_alive():
            self._ours.send(False)
        self._process.join()

    def _receive(self) -> Any:
        try:
            return self._ours.recv()
        except EOFError:
            raise RuntimeError("a contender's process ended by itself, perhaps for want of memory") from None


def _serve(connection: Connection, name: str, run: RunConfig, threads: int) -> None:
    from hardpatch.bench.contenders import PEERS, NotHereError, contender, noise_batch
    from hardpatch.train.device import start_fabric

    torch.set_num_threads(threads)
    ours = name not in PEERS and name != "literal"
    fabric = start_fabric("cpu", run.train.precision, "--", settle=ours)
    try:
        ready = contender(name, run, fabric, noise_batch(run, fabric.device))
    except (NotHereError, UserError) as error:
        connection.send(error)
        return
    connection.send((ready.name, ready.run))
    while connection.recv():
        ready.step()
        connection.send(True)
