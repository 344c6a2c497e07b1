"""What passes between the driver of a sweep and Ray's workers, which import little and so are small and soon there."""

from __future__ import annotations

import pickle
import socket
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cryo_monai.sweeps.plans import Trial

_ALL = "all"


@dataclass(frozen=True)
class Job:
    """A trial, packed.

    Attributes
    ----------
    key : str
        Of the trial.
    folder : Path
        Its run folder.
    places : tuple of str
        Files and folders that it begins from.
    content : bytes
        The trial itself, which its process unpacks.
    threads : int
        CPU threads.
    """

    key: str
    folder: Path
    places: tuple[str, ...]
    content: bytes
    threads: int

    @classmethod
    def of(cls, trial: Trial, threads: int) -> Job:
        """Pack a trial."""
        places = (
            trial.bundle,
            *trial.overlays,
            *(str(trial.ids[name]) for name in ("dataset_dir",) if name in trial.ids),
        )
        return cls(trial.key, trial.folder, places, pickle.dumps(trial), threads)


def do_job(job: Job, lifeline: Connection) -> None:
    """Do a trial in a process of its own; see `do_trial`."""
    from cryo_monai.sweeps.local_engine import Slot, do_trial

    do_trial(pickle.loads(job.content), Slot(threads=job.threads), lifeline)


@dataclass(frozen=True)
class Orders:
    """A file in the sweep's folder by which the driver tells its trials, on any node, to save and end.

    Lines are appended to it, never anything renamed over it: whoever opens a file that another machine has written and
    closed sees that on NFS too, while the absence of a file is remembered there for a minute.

    Attributes
    ----------
    path : Path
        The file.
    token : str
        Its first line, which tells a node that sees the sweep's folder from one with a folder of that name.
    """

    path: Path
    token: str

    @classmethod
    def written(cls, folder: Path) -> Orders:
        """Begin a file in a folder."""
        orders = cls(folder / "orders.txt", uuid.uuid4().hex)
        orders.path.write_text(orders.token + "\n")
        return orders

    def stop(self, key: str = _ALL) -> None:
        """Tell one trial, or all, to save and end."""
        with self.path.open("a") as stream:
            stream.write(key + "\n")

    def are_here(self) -> bool:
        """Whether this machine sees the sweep's folder."""
        return self._lines()[:1] == [self.token]

    def tell_to_stop(self, key: str) -> bool:
        """Whether a trial was told to save and end."""
        return not {key, _ALL}.isdisjoint(self._lines()[1:])

    def _lines(self) -> list[str]:
        try:
            return self.path.read_text().split()
        except OSError:
            return []


def blindness(orders: Orders) -> str:
    """Say in one line that this machine does not see the sweep's folder; nothing when it does."""
    if orders.are_here():
        return ""
    return f"{orders.path.parent}: not seen on {socket.gethostname()}; give an output_dir that every node sees"


def missing(places: Sequence[str]) -> str:
    """Say in one line which bundle, overlay or data this machine does not see; nothing when it sees all."""
    for place in places:
        if not Path(place).exists():
            return f"{place}: not there on {socket.gethostname()}; put it where every node sees it"
    return ""
