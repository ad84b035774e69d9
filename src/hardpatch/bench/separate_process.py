"""Contenders in a process of their own, with the memory allocator that their users have."""

import multiprocessing
from multiprocessing.connection import Connection
from typing import Any

import torch

from hardpatch.bench.contenders import UnavailableError, noise_batch, prepare_contender
from hardpatch.bench.other_libraries import OTHER_LIBRARIES
from hardpatch.configuration.sections import RunConfig
from hardpatch.errors import UserError
from hardpatch.train.device import start_fabric


class SeparateProcess:
    """Proxy that runs the steps of a contender on a CPU in another process, while this one waits.

    The methods of this package get the allocator settings of :mod:`hardpatch.train.memory`. Other libraries and the
    literal algorithm keep glibc's defaults.

    Args:
        name: of the contender.
        run: sizes, as for :func:`~hardpatch.bench.contenders.prepare_contender`.

    Raises:
        UnavailableError: if the contender cannot run here.
        UserError: if there is no contender of that name.
    """

    def __init__(self, name: str, run: RunConfig) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, remote = context.Pipe()
        self._process = context.Process(target=_serve, args=(remote, name, run, torch.get_num_threads()), daemon=True)
        self._process.start()
        remote.close()
        answer = self._receive()
        if isinstance(answer, Exception):
            self._process.join()
            raise answer
        self.name, self.run = answer

    def step(self) -> None:
        """Take one optimizer step in the other process."""
        self._connection.send(True)
        self._receive()

    def close(self) -> None:
        """End the other process."""
        if self._process.is_alive():
            self._connection.send(False)
        self._process.join()

    def _receive(self) -> Any:
        try:
            return self._connection.recv()
        except EOFError:
            raise RuntimeError("the process of a contender ended by itself, perhaps out of memory") from None


def _serve(connection: Connection, name: str, run: RunConfig, threads: int) -> None:
    torch.set_num_threads(threads)
    own = name not in OTHER_LIBRARIES and name != "literal"
    fabric = start_fabric("cpu", run.train.precision, "--", settle=own)
    try:
        contender = prepare_contender(name, run, fabric, noise_batch(run, fabric.device))
    except (UnavailableError, UserError) as error:
        connection.send(error)
        return
    connection.send((contender.name, contender.run))
    while connection.recv():
        contender.step()
        connection.send(True)
