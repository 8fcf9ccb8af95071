"""Keep the books of an attack in several stages: who held, at what cost, what is left, and how fast it goes."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from attacks.engine import Job, Outcome
from attacks.oracle import Oracle

KEEP_EVERY, TELL_EVERY = 10.0, 0.5  # seconds
SQUARE_HELPS = 0.002  # of all images: more suggests that gradients mislead (the authors' package warns there, too)


class Progress(NamedTuple):
    """How an attack goes.

    Attributes:
        attack: the one at work.
        images: in all; ``decided`` of them: fooled, or through with every attack; ``robust`` so far.
        passes_per_second: forward and backward, of this attack.
        share: of the work done, 0 to 1, as if every image that is not fooled needed all of it.
    """

    attack: str
    images: int
    decided: int
    robust: int
    passes_per_second: float
    share: float


class Tally:
    """Books over images ``(n,)``, of which those that ``held`` when clean are attacked.

    Args:
        work: forward passes, about, that each attack spends on an image that holds.
        tell: see :func:`attacks.autoattack.autoattack`, ``progress``; ``keep`` likewise.
    """

    def __init__(
        self,
        held: Tensor,
        work: Mapping[str, int],
        tell: Callable[[Progress], None] | None,
        keep: Callable[[str, Sequence[Outcome]], None] | None,
    ) -> None:
        self.by = ["" if right else "clean" for right in held.tolist()]
        self.survivors = {"clean": self.by.count("")}
        self.forward, self.backward = torch.zeros(len(held)), torch.zeros(len(held))
        self.log: list[str] = []
        self._found: dict[int, Tensor] = {}
        self._work, self._spent = work, torch.zeros(len(held))
        self._tell, self._keep = tell, keep
        self._attack, self._jobs, self._over = "", list[Job](), set[Job]()
        self._unkept: list[Outcome] = []
        self._begun = self._kept = self._told = time.monotonic()
        self._passes = 0

    def alive(self) -> list[int]:
        """List the images that hold so far."""
        return [row for row, by in enumerate(self.by) if not by]

    def begin(self, attack: str, jobs: list[Job], finished: Mapping[str, Sequence[Outcome]]) -> list[Job]:
        """Open an attack's page, write down what was ``finished`` before, and list what is left."""
        self._attack, self._jobs, self._over = attack, jobs, set()
        self._begun, self._passes = time.monotonic(), 0
        for outcome in finished.get(attack, ()):
            self._note(outcome)
        return self.left()

    def left(self) -> list[Job]:
        """List the jobs that are not over, of images that hold so far."""
        return [job for job in self._jobs if job not in self._over and not self.by[job.row]]

    def done(self, outcome: Outcome) -> None:
        """Write down a job that ended."""
        self._note(outcome)
        self._unkept.append(outcome)
        if time.monotonic() - self._kept > KEEP_EVERY:
            self._hand_over()

    def beat(self, oracle: Oracle, slots: int) -> None:
        """Tell how it goes, now and then."""
        if self._tell is not None and time.monotonic() - self._told > TELL_EVERY:
            self._told = time.monotonic()
            seconds = self._told - self._begun
            self._tell(self.progress((oracle.forward + oracle.backward) * slots / max(seconds, 1e-9)))

    def progress(self, passes_per_second: float = 0.0) -> Progress:
        """Say how it goes."""
        whole = sum(self._work.values())
        attacked = len(self.by) - self.by.count("clean")
        done = sum(whole if by else float(self._spent[row]) for row, by in enumerate(self.by) if by != "clean")
        decided = sum(bool(by) or float(self._spent[row]) >= whole - 1 for row, by in enumerate(self.by))
        share = done / (whole * attacked) if attacked else 1.0
        return Progress(self._attack, len(self.by), decided, self.by.count(""), passes_per_second, min(share, 1.0))

    def end(self, attack: str) -> None:
        """Close the page."""
        before = min(self.survivors.values())
        self.survivors[attack] = self.by.count("")
        more = (before - self.survivors[attack]) / len(self.by)
        if attack == "square" and len(self.survivors) > 2 and more > SQUARE_HELPS:
            self.log.append(
                f"WARNING: Square fooled {100 * more:.2f} % of the images after attacks that use gradients had not: "
                "gradients may mislead here"
            )
        for row in self.alive():
            self._spent[row] = sum(self._work[name] for name in self.survivors if name != "clean")
        self._hand_over()
        if self._tell is not None:
            self._tell(self.progress())

    def pictures(self, x: Tensor) -> Tensor:
        """Give what fooled the network, and the clean image of ``x`` where nothing did."""
        adversarial = x.clone()
        for row, picture in self._found.items():
            adversarial[row] = picture
        return adversarial

    def _note(self, outcome: Outcome) -> None:
        job = outcome.job
        self._over.add(job)
        self.forward[job.row] += outcome.forward
        self.backward[job.row] += outcome.backward
        if outcome.picture is not None:
            self._found[job.row] = outcome.picture
            self.by[job.row] = self._attack
        else:
            phases = 1 + max(other.phase for other in self._jobs[-1:])
            self._spent[job.row] += self._work[self._attack] / phases

    def _hand_over(self) -> None:
        if self._keep is not None and self._unkept:
            self._keep(self._attack, self._unkept)
        self._unkept = []
        self._kept = time.monotonic()
