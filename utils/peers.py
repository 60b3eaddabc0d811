"""The other processes of a run under torchrun: when one is gone, all end, each with one sentence.

A collective waits for a process that is gone: gloo's for half an hour, NCCL's for ten minutes. So
every process counts up a number in the store by which they met, and a thread of each one looks
whether the others still do. What one process refuses, it says alone, and all end.
"""

import contextlib
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NoReturn

from utils.later import torch

SECONDS_BETWEEN = 1.0  # two counts of a process
SECONDS_SILENT = 20.0  # after which a process counts as gone
# And after a collective failed, which is mostly the first that is seen of it
SECONDS_SILENT_IN_DOUBT = 5.0
SECONDS_TO_HEAR = 10.0  # the most that a refusal waits until all have heard of it
DONE = "done"
REFUSED = "refused"
GONE = (RuntimeError, OSError)  # of a store whose process is gone


class _Peers:
    """Watches the other processes; see the module.

    Args:
        store: by which the processes met, a connection of this thread alone.
        line: a connection to its host that says nothing; it ends with the host.
        rank: of this process.
        world_size: processes of the run.
    """

    def __init__(self, store: Any, line: socket.socket, rank: int, world_size: int) -> None:
        self._store, self._line, self._rank = store, line, rank
        self._others = [other for other in range(world_size) if other != rank]
        self._lock = threading.Lock()  # a store answers one question at a time
        self._count, self._is_done, self._is_refusing, self._is_in_doubt = 0, False, False, False
        # Of each other process its number, and when it was seen to change
        self._seen = {other: ("", time.monotonic()) for other in self._others}
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._left.wait(SECONDS_BETWEEN):
            try:
                with self._asking():
                    self._look()
            except GONE:  # the store is in process 0, or in torchrun
                if not (self._is_done or self._is_refusing or self._left.is_set()):
                    _end("process 0, by which the processes met, is gone")
                return
            limit = SECONDS_SILENT_IN_DOUBT if self._is_in_doubt else SECONDS_SILENT
            now = time.monotonic()
            for other, (number, since) in self._seen.items():
                if number != DONE and now - since > limit and not self._is_refusing:
                    _end(f"process {other} of {len(self._seen) + 1} is gone")

    @contextlib.contextmanager
    def _asking(self) -> Iterator[None]:
        """Let a block ask the store.

        Raises:
            ConnectionResetError: it is gone. PyTorch would write its own stack to the terminal.
        """
        with self._lock:
            if has_ended(self._line):
                raise ConnectionResetError
            yield

    def _look(self) -> None:
        """Count on, and look how far the others are."""
        self._count += 1
        self._store.set(f"count{self._rank}", DONE if self._is_done else str(self._count))
        if not self._is_refusing and self._store.check([REFUSED]):
            self._hear()
            os._exit(1)  # another process says why
        for other in self._others:
            key = f"count{other}"
            number = self._store.get(key).decode() if self._store.check([key]) else ""
            if number != self._seen[other][0]:
                self._seen[other] = number, time.monotonic()

    def wait_for_a_sign(self) -> None:
        """Wait until all others have counted on; where one does not, this process ends."""
        # What is seen before may have been written before
        began = time.monotonic() + 2 * SECONDS_BETWEEN
        self._is_in_doubt = True
        while self._thread.is_alive():
            # torchrun sends a signal where one process is gone: the reason is said all the same
            with contextlib.suppress(KeyboardInterrupt):
                if all(number == DONE or since > began for number, since in self._seen.values()):
                    break
                time.sleep(SECONDS_BETWEEN / 10)
        self._is_in_doubt = False

    def refuse(self) -> bool:
        """Let all end; whether this process is the first, which says why."""
        self._is_refusing = True
        with contextlib.suppress(*GONE):
            with self._asking():
                # The first to ask is written down, and all are told who it was.
                first = self._store.compare_set(REFUSED, "", str(self._rank))
                if first != str(self._rank).encode():
                    self._hear()
                    return False
            # The store may end with this process, and the others would take it for gone.
            until = time.monotonic() + SECONDS_TO_HEAR
            while time.monotonic() < until:
                with self._asking():
                    if all(self._store.check([f"heard{other}"]) for other in self._others):
                        break
                time.sleep(SECONDS_BETWEEN / 10)
        return True

    def _hear(self) -> None:
        """Answer the process that refuses; the one that has the store stays until it has read it."""
        self._store.set(f"heard{self._rank}", "")
        if self._rank == 0:
            time.sleep(SECONDS_BETWEEN)

    def finish(self) -> None:
        """Note that this process did its work; it may be silent from now on."""
        with contextlib.suppress(*GONE), self._asking():
            self._is_done = True
            self._store.set(f"count{self._rank}", DONE)

    def leave(self) -> None:
        """End the thread."""
        self._left.set()
        self._thread.join()
        self._line.close()


_watched: ContextVar[_Peers | None] = ContextVar("watched", default=None)


def watch(rank: int, world_size: int) -> None:
    """Begin to watch the other processes, which have met by MASTER_ADDR and MASTER_PORT."""
    distributed = torch.distributed
    place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    # A connection of its own: a question that waits in the other one would hold this one up
    line = distributed.TCPStore(*place, is_master=False, wait_for_workers=False)
    # Of a run that torchrun began anew nothing of the first try counts
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    store = distributed.PrefixStore(f"peers{attempt}", line)
    _watched.set(_Peers(store, socket.create_connection(place), rank, world_size))


def wait_for_a_sign() -> None:
    """After an error that a process which is gone may have caused: end here if one is."""
    if peers := _watched.get():
        peers.wait_for_a_sign()


def refuse() -> bool:
    """End all processes, for a reason that one of them says; whether it is this one."""
    peers = _watched.get()
    return peers is None or peers.refuse()


def finish() -> None:
    """Note that this process did its work."""
    if peers := _watched.get():
        peers.finish()


def leave() -> None:
    """End watching."""
    if peers := _watched.get():
        peers.leave()
    _watched.set(None)


def has_ended(line: socket.socket) -> bool:
    """Whether the other end of a connection that says nothing is gone."""
    try:
        return line.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False


def _end(reason: str) -> NoReturn:
    """End this process from a thread, whatever the others of its threads wait for."""
    sys.stdout.flush()
    name = Path(sys.argv[0]).name
    sys.stderr.write(f"\n{name}: {reason}; what was saved is whole, start all processes again\n")
    sys.stderr.flush()
    os._exit(1)
