"""An experiment on a Dask cluster: each migration is a task that takes a worker's resource `pagefire`, and so has its machine.

The folder, its keys and its lines are those of an experiment without a cluster: only where a migration is made differs, and the
line says on which machine. A worker that is lost takes no result with it: Dask makes its migration elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from pagefire.protocol.errors import PagefireError, UsageError
from pagefire.protocol.transport.software import software_name
from pagefire.scripts.experiment.work import Work, do

Json = dict[str, Any]

RESOURCE = "pagefire"
_CONNECT_S = 10


class Cluster:
    """A context: a connection to the scheduler at `address`, and the workers that offer the resource."""

    def __init__(self, address: str) -> None:
        try:
            from distributed import Client
        except ImportError as error:
            raise PagefireError(
                "there is no Dask here",
                f"{error.name} is missing",
                "pip install 'pagefire[dask]', or leave --scheduler out",
            ) from error
        try:
            self._client = Client(address, timeout=_CONNECT_S, set_as_default=False)
        except (OSError, ValueError) as error:
            raise PagefireError(
                f"no Dask scheduler answers at {address}", str(error), "start one: dask scheduler, and give its address"
            ) from error
        try:
            self.workers = self._able()
        except BaseException:
            self._client.close()
            raise

    def _able(self) -> list[str]:
        known: dict[str, Json] = self._client.scheduler_info(n_workers=-1)["workers"]
        able = [one for one, said in known.items() if said["resources"].get(RESOURCE, 0) >= 1]
        if not able:
            raise UsageError(
                f"no worker of this cluster offers the resource {RESOURCE}",
                f"it has {len(known)} workers, and a migration needs a machine of its own",
                f"start one a machine: dask worker ADDRESS --nthreads 1 --resources {RESOURCE}=1",
            )
        theirs = {
            one: name for one, name in self._client.run(software_name, workers=able).items() if name != software_name()
        }
        for one, name in theirs.items():
            raise UsageError(
                f"the worker {one} runs {name}", f"this is {software_name()}", "install the same version there"
            )
        #: How many migrations can be made at once: one a machine, however many workers it has.
        self.machines = len({known[one]["host"] for one in able})
        return able

    def run(self, works: Sequence[Work]) -> Iterator[Json]:
        """Make the migrations; gives their lines as they come."""
        from distributed import CancelledError, KilledWorker, as_completed

        # One connected batch: Dask takes it in this order, as far as workers are free.
        futures = self._client.map(
            do, works, key=[f"{work.name}-{work.task.key}" for work in works], resources={RESOURCE: 1}, pure=False
        )
        try:
            for _, line in as_completed(futures, loop=self._client.loop, with_results=True):
                yield line
        except (CancelledError, KilledWorker) as error:
            raise PagefireError(
                "the cluster does not make this experiment's migrations any more",
                str(error) or "the scheduler is gone",
                "see what its workers say; then run the same command again: what was finished is kept",
            ) from error
        finally:
            self._client.cancel(futures)

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()
