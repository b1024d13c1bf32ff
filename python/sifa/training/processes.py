"""The processes that work together: one, or what torchrun or SLURM's srun started."""

from __future__ import annotations

import dataclasses
import os

from lightning.fabric.plugins.environments import (
    ClusterEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)


@dataclasses.dataclass(frozen=True)
class Processes:
    """How many processes work together, and which one this is.

    Attributes:
        count, rank: of all nodes.
        per_node, nodes: as the trainer wants to know it.
    """

    count: int = 1
    rank: int = 0
    per_node: int = 1
    nodes: int = 1

    @classmethod
    def of_environment(cls) -> Processes:
        """Read the variables of torchrun, or of SLURM's srun."""
        if TorchElasticEnvironment.detect():
            count, per_node = int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_WORLD_SIZE"])
            return cls(count, int(os.environ["RANK"]), per_node, count // per_node)
        if SLURMEnvironment.detect():
            count, nodes = int(os.environ["SLURM_NTASKS"]), int(os.environ.get("SLURM_NNODES", 1))
            return cls(count, int(os.environ["SLURM_PROCID"]), count // nodes, nodes)
        return cls()


def cluster() -> ClusterEnvironment | None:
    """Where the processes find each other, and which GPU is whose; None for one process on its own.

    Raises:
        RuntimeError: srun was asked for several tasks without `--ntasks-per-node`.
    """
    if TorchElasticEnvironment.detect():
        return TorchElasticEnvironment()
    # Without requeueing: stopping a training and going on with it are this package's.
    return SLURMEnvironment(auto_requeue=False) if SLURMEnvironment.detect() else None
