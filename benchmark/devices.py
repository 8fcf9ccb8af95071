"""On how many devices an experiment is trained: one process each, which meet at one address."""

import os
import re
import socket
from dataclasses import dataclass

from benchmark.errors import BadInput


@dataclass(frozen=True)
class Devices:
    """``devices`` of each of ``nodes`` machines train one experiment together; GPUs, or processes where there are none.

    Raises:
        BadInput: for less than one.
    """

    devices: int = 1
    nodes: int = 1

    def __post_init__(self) -> None:
        for option, value in (("--devices", self.devices), ("--num-nodes", self.nodes)):
            if value < 1:
                raise BadInput(f"{option} is 1 or more, but found {value}")

    @property
    def world(self) -> int:
        """How many processes train together."""
        return self.devices * self.nodes

    def share(self, batch_size: int) -> int:
        """Give each device's part of a batch.

        Raises:
            BadInput: when the batch cannot be shared out evenly; uneven parts would weigh some images more.
        """
        if batch_size % self.world:
            next_one = -(-batch_size // self.world) * self.world
            raise BadInput(
                f"recipe.batch_size {batch_size} cannot be shared out evenly over {self.world} devices: "
                f"choose a multiple of {self.world}, such as --set recipe.batch_size={next_one}"
            )
        return batch_size // self.world

    def check(self) -> None:
        """Raise BadInput where there are GPUs, but fewer than asked for."""
        import torch

        found = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if 0 < found < self.devices:
            raise BadInput(f"--devices {self.devices} was asked for, but this machine has {found} GPU(s)")

    @property
    def node(self) -> int:
        """This machine's number among ``nodes``, from 0: NODE_RANK, or what SLURM or torchrun say.

        Raises:
            BadInput: when there are several nodes and the environment does not tell.
        """
        if self.nodes == 1:
            return 0
        for name in ("NODE_RANK", "SLURM_NODEID", "GROUP_RANK"):
            if name in os.environ:
                number = os.environ[name]
                if not number.isdigit() or int(number) >= self.nodes:
                    raise BadInput(f"{name} lies between 0 and {self.nodes - 1}, but found {number!r}")
                return int(number)
        raise BadInput(
            f"--num-nodes {self.nodes} needs NODE_RANK, this machine's number from 0 to {self.nodes - 1}, and "
            "MASTER_ADDR and MASTER_PORT, an address of machine 0, in the environment of each machine"
        )

    def meeting_place(self) -> dict[str, str]:
        """Give the variables by which the processes find each other: address and port of the first one.

        Raises:
            BadInput: when there are several nodes and the environment does not tell.
        """
        if self.nodes == 1:
            return {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "NODE_RANK": "0"}
        address = os.environ.get("MASTER_ADDR") or _first_of(os.environ.get("SLURM_JOB_NODELIST", ""))
        if not address:
            raise BadInput(f"--num-nodes {self.nodes} needs MASTER_ADDR, the address of machine 0, in the environment")
        port = os.environ.get("MASTER_PORT", "29500")
        return {"MASTER_ADDR": address, "MASTER_PORT": port, "NODE_RANK": str(self.node)}


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _first_of(nodes: str) -> str:
    """Name the first host of SLURM's list, such as ``gpu[03-07,12],login``."""
    match = re.match(r"([^,\[]+)(?:\[(\w+))?", nodes)
    return (match[1] + (match[2] or "")) if match else ""
