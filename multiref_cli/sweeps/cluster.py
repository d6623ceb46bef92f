"""Workers on other machines: jobs of a Slurm cluster through submitit, or tasks of a Ray cluster; one ledger for all.

The sweep folder has to lie on a file system that all machines see.
"""

import os
import time
from collections.abc import Callable
from typing import Any

from multiref_cli.errors import RequestError, RunError
from multiref_cli.sweeps.ledger import ENDED, Ledger
from multiref_cli.sweeps.pool import GRACE_SECONDS
from multiref_cli.sweeps.worker import Work, work_off

TICK_SECONDS = 1.0
# How often lost workers are replaced before the sweep gives up and says how to go on.
REPLACEMENTS = 3


class SlurmWorker:
    """What submitit runs; on a preemption or a time limit it is queued again and the points go on from checkpoints."""

    def __call__(self, work: Work) -> None:
        """Work until nothing is left."""
        os.environ.update(work.environment)
        work_off(work)

    def checkpoint(self, work: Work) -> Any:
        """Submitit's question what to queue again."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, work)


def run_slurm(work: Work, workers: int, options: dict[str, Any], tick: Callable[[], None]) -> None:
    """Run a sweep with submitit, one job a worker.

    Args:
        work: what to do.
        workers: number of jobs.
        options: `cluster` (slurm; local runs processes of this machine), everything else as submitit's
            `update_parameters` takes it: timeout_min, gpus_per_node, cpus_per_task (default: a point's processes),
            mem_gb, slurm_partition, …
        tick: called about once a second.

    Raises:
        RequestError: submitit refuses an option, or a job has fewer GPUs than a point has processes.
        RunError: jobs end and points are left.
    """
    import submitit

    processes = work.plan.processes
    gpus = options.get("gpus_per_node")
    if isinstance(gpus, int) and 0 < gpus < processes:
        raise RequestError(f"launcher.gpus_per_node is {gpus}, but a point has {processes} processes, each with a GPU.")
    options = {"timeout_min": 24 * 60, "name": "multiref", "cpus_per_task": processes, **options}
    try:
        executor = submitit.AutoExecutor(folder=work.folder / "logs" / "slurm", cluster=options.pop("cluster", None))
        executor.update_parameters(**options)
    except (AssertionError, NameError, RuntimeError, TypeError, ValueError) as error:
        raise RequestError(f"submitit refuses: {str(error).splitlines()[0]}") from error

    def start() -> Any:
        return executor.submit(SlurmWorker(), work)

    def stop(jobs: list[Any]) -> None:
        for job in jobs:
            job.cancel()

    _watch(work, [start() for _ in range(workers)], start, lambda job: job.done(), stop, tick)


def run_ray(work: Work, workers: int, options: dict[str, Any], tick: Callable[[], None]) -> None:
    """Run a sweep with Ray, one task a worker.

    Args:
        work: what to do.
        workers: number of tasks.
        options: `address` of a running cluster (default: $RAY_ADDRESS, else one on this machine), `num_cpus` and
            `num_gpus` of a worker (default: one for each process of a point, GPUs where a node has as many and a point
            may use them).
        tick: called about once a second.

    Raises:
        RequestError: the cluster cannot be reached, or no node of it has what a worker needs.
        RunError: tasks end and points are left.
    """
    import ray

    unknown = sorted(set(options) - {"address", "num_cpus", "num_gpus"})
    if unknown:
        raise RequestError(f"launcher.{unknown[0]} is unknown to --launcher ray; allowed: address, num_cpus, num_gpus.")
    try:
        ray.init(address=options.get("address"), log_to_driver=False, ignore_reinit_error=True)
    except (ConnectionError, ValueError) as error:
        raise RequestError(f"Ray cannot be reached: {str(error).splitlines()[0]}") from error

    def is_over(reference: Any) -> bool:
        return bool(ray.wait([reference], timeout=0)[0])

    def stop(references: list[Any]) -> None:
        for reference in references:
            ray.cancel(reference)
        ray.wait(references, num_returns=len(references), timeout=GRACE_SECONDS)

    try:
        needs = _ray_needs(work, [node["Resources"] for node in ray.nodes() if node["Alive"]], options)
        # Retries are counted by the ledger, one a point; Ray's own would count twice.
        task = ray.remote(max_retries=0, **needs)(_ray_worker)
        _watch(work, [task.remote(work) for _ in range(workers)], lambda: task.remote(work), is_over, stop, tick)
    finally:
        ray.shutdown()


def _ray_needs(work: Work, nodes: list[dict[str, float]], options: dict[str, Any]) -> dict[str, Any]:
    """What a worker asks of a node.

    Ray hides every GPU from a task that asked for none: points that may use one ask for it.

    Raises:
        RequestError: no node has that much; Ray would wait for such a node without an end.
    """
    processes = work.plan.processes
    gpus = processes if work.plan.may_use_gpus and any(node.get("GPU", 0) >= processes for node in nodes) else 0
    needs = {"num_cpus": options.get("num_cpus", processes), "num_gpus": options.get("num_gpus", gpus)}
    if 0 < needs["num_gpus"] < processes and processes > 1:
        raise RequestError(
            f"launcher.num_gpus is {needs['num_gpus']:g}, but a point has {processes} processes, each with a GPU."
        )
    if not any(node.get("CPU", 0) >= needs["num_cpus"] and node.get("GPU", 0) >= needs["num_gpus"] for node in nodes):
        raise RequestError(
            f"no node of the Ray cluster has {needs['num_cpus']:g} CPUs and {needs['num_gpus']:g} GPUs for a worker; "
            "give launcher.num_cpus and launcher.num_gpus, or fewer hardware.processes."
        )
    return needs


def _ray_worker(work: Work) -> None:
    # Ray hides the GPUs that a task did not ask for; without one, a worker computes with one thread as everywhere.
    os.environ.update({} if os.environ.get("CUDA_VISIBLE_DEVICES") else {"OMP_NUM_THREADS": "1"})
    os.environ.update(work.environment)
    work_off(work)


def _watch(
    work: Work,
    jobs: list[Any],
    start: Callable[[], Any],
    is_over: Callable[[Any], bool],
    stop: Callable[[list[Any]], None],
    tick: Callable[[], None],
) -> None:
    """Wait until all points are finished; replace workers that were lost, stop them on Ctrl-C."""
    replacements = REPLACEMENTS * len(jobs)
    ledger, unfinished = Ledger(work.folder), list(work.plan.points)
    try:
        while jobs:
            time.sleep(TICK_SECONDS)
            tick()
            before = len(jobs)
            jobs = [job for job in jobs if not is_over(job)]
            while unfinished and ledger.state(unfinished[-1].name, unfinished[-1].id) in ENDED:
                unfinished.pop()  # each is looked at until it is finished, not all of them at every tick
            for _ in range(before - len(jobs) if unfinished else 0):
                if replacements == 0:
                    raise RunError(
                        f"workers end while points are left; see {work.folder}/logs, then go on with --resume."
                    )
                replacements -= 1
                jobs.append(start())
    except BaseException:
        stop(jobs)
        raise
