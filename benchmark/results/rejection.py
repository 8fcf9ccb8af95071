"""What rejection adds to evidence: the attack on confidence, and the threshold of a checkpoint, a small file beside it.

``evidence/<experiment>/<checkpoint>/threshold.yaml``: from clean held-out training images, never from test images.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import unquote

from benchmark.errors import BadInput
from benchmark.results.evidence import escaped
from benchmark.storage import read_yaml, write_yaml

CONFIDENCE = "confidence"  # the attack that methods which may reject are judged under, beside all others
AT_THRESHOLD = "at_threshold"  # verdicts with rejection, made of those of all attacks
NAME = "threshold.yaml"


@dataclass(frozen=True)
class Threshold:
    """The confidence ``tau`` below which a prediction is refused.

    Args:
        true_positives: the share of right clean images that it was to accept.
        images: held-out training images; ``right`` of them were classified right, and their confidences made tau.
        classes: of the network's answer; guessing has a confidence of one over it.
    """

    tau: float
    true_positives: float
    images: int
    right: int
    classes: int

    @property
    def mark(self) -> str:
        """Say where rejection means nothing: the network is unsure of clean images too."""
        return "red: threshold near chance" if self.tau < 2 / self.classes else ""


def threshold_path(report: Path, experiment: str, checkpoint: str) -> Path:
    """Return where the threshold of one checkpoint stands."""
    return report / "evidence" / escaped(experiment) / escaped(checkpoint) / NAME


def write_threshold(path: Path, threshold: Threshold) -> None:
    """Write a threshold."""
    write_yaml(path, asdict(threshold))


def read_thresholds(report: Path) -> dict[tuple[str, str], Threshold]:
    """Read the thresholds of a report, by experiment and checkpoint.

    Raises:
        BadInput: a file is damaged.
    """
    found = {}
    for path in sorted((report / "evidence").glob(f"*/*/{NAME}")):
        try:
            threshold = Threshold(**read_yaml(path))
        except TypeError:
            raise BadInput(f"expected a threshold, found something else: {path}; delete it and run again") from None
        found[unquote(path.parent.parent.name), unquote(path.parent.name)] = threshold
    return found
