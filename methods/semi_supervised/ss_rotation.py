"""Adversarial training with an auxiliary task that needs no labels: by how much an image was turned."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attacks.errors import BadInput
from attacks.modes import in_mode
from attacks.objectives import Objective
from attacks.threat import ThreatModel
from methods.anatomy import last_linear, with_features
from methods.base import AdversarialTraining, Batch, Card
from methods.draws import seeded
from methods.inner import Centre, Inner, check_centre
from methods.turned import TURNS, quarter_turns

SHIFTED = 0.03  # accuracy lost in eval mode from which on BatchNorm's statistics are to blame; the specification's


class SSRotation(AdversarialTraining):
    r"""Let a second head tell by how much each image was turned, and attack both tasks.

    .. math:: CE(z(x'), y) + \lambda\, \tfrac{1}{4} \sum_{k=0}^{3} CE(r(R_k(x)'), k)

    with z the logits, r those of a second linear head on the same features, and :math:`R_k` a turn by k times 90
    degrees counter-clockwise. The head serves training only: the classifier is the network without it.

    Source: Hendrycks et al., NeurIPS 2019, arXiv:1906.12340. Reading: the ball is around the image; the authors' attack
    adds its noise in place, so that theirs is around the noisy image and their images move by up to 2 epsilon
    (``centre: start``). Reading: with :math:`\lambda` = 0 the turned images are left out, and it is PGD training in
    train mode at its price.

    Steps: 1. Take the batch of B images once more, and turned by 0, 90, 180 and 270 degrees: 5 B images. 2. In train
    mode, so that BatchNorm's statistics move, attack all of them together from a uniform start outside the pixel range:
    the sum of the classification loss of the first B and of lambda / 4 times the rotation loss of the others. 3.
    Forward what came out once, in train mode, through both heads. 4. Cross-entropy of the first B plus lambda times
    that of the turns; backward, optimizer step for network and head.

    Warning: it attacks five times the images of `pgd_at` in each step, and the published table does not tell that price
    from the gain. Warning: digits are told apart by their orientation (6 and 9), and some look alike when turned (0,
    8): the rotation loss stays far above 0 there and disturbs the features, so expect no gain. Warning: BatchNorm's
    statistics are those of upright and turned images together, while evaluation sees upright ones. Warning: the
    survey's row is this paper's CIFAR-10 result at 8/255, not ImageNet at 0.3.

    Args:
        rotation_weight: lambda; a quarter of it counts in the attack, which sums over images.
        attack_rotations: also attack the rotation task; else the turned images are moved only by their random start,
            and by what BatchNorm lets them do to the others.
        centre: of the ball, ``image`` or ``start``, which is the authors' slip and is never ranked.
        ambiguous: say beside the row that classes depend on orientation, as those of digits do; trains nothing else.

    History: ``rotation_k0`` to ``rotation_k3``, share of attacked images whose turn is told, by turn, and
    ``rotation_class0`` and so on, by class; ``held_out_clean_train_mode``, clean accuracy on held-out images with the
    statistics of their own batch.

    Raises:
        BadInput: for a network without a linear layer in front of the logits, or images that are not square.
    """

    card = Card(key="ss_rotation", category="semi-supervised", citation="hendrycks2019self", comparison="B")
    held_out_measures = ("held_out_clean_train_mode",)

    def __init__(
        self,
        network: nn.Module,
        threat: ThreatModel,
        *,
        rotation_weight: float = 0.5,
        attack_rotations: bool = True,
        centre: Centre = "image",
        ambiguous: bool = False,
        inner: Inner = Inner(steps=10, step_size="epsilon/4", start="uniform", boxed=False, mode="train"),
        **common: Any,
    ) -> None:
        if not rotation_weight >= 0:
            raise BadInput(f"rotation_weight is 0 or more, but found {rotation_weight}")
        check_centre(centre)
        if inner.patience is not None:
            raise BadInput(
                f"ss_rotation attacks two tasks and stops at neither: leave inner.patience at null, but found "
                f"{inner.patience}"
            )
        super().__init__(network, threat, inner=inner, **common)
        self.rotation_weight, self.attack_rotations = rotation_weight, attack_rotations
        self.centre, self.ambiguous = centre, ambiguous
        linear = [layer for layer in network.modules() if isinstance(layer, nn.Linear)]
        if not linear:
            raise BadInput(
                f"the second head reads what the last nn.Linear is given, but found none in {type(network).__name__}: "
                "end the network with an nn.Linear"
            )
        with seeded(self.seed, "rotation head"):
            self.head = nn.Linear(linear[-1].in_features, TURNS).requires_grad_(rotation_weight > 0)
        classes = linear[-1].out_features
        self._told, self._seen = torch.zeros(classes), torch.zeros(classes)  # of this epoch, by class
        self._last = ""  # name of the last linear layer

    def training_loss(self, batch: Batch) -> Tensor:  # noqa: D102 - the class says it
        size, turns = len(batch.y), self.turns_of(batch.x)
        weight = self.rotation_weight / TURNS if self.attack_rotations else 0.0
        attacked = self.perturb(batch, lambda both: both_tasks(both, batch.y, turns, weight))
        logits, rotation = self.two_heads(batch.x)(attacked).tensor_split([-TURNS], dim=1)
        loss = self.classification_loss(logits[:size], batch.y)
        if not len(turns):
            return loss
        self._count(rotation[size:].detach().argmax(1) == turns, batch.y)
        return loss + self.rotation_weight * F.cross_entropy(rotation[size:], turns)

    def perturb(self, batch: Batch, objective: Objective) -> Tensor:
        """Attack the batch and its turned images together, ``(5 n, c, h, w)``; without a second task the batch alone.

        ``objective`` sees both heads' logits ``(5 n, k + 4)`` side by side.
        """
        x = batch.x if self.rotation_weight == 0 else torch.cat([batch.x, quarter_turns(batch.x)])
        network, threat = self.two_heads(batch.x), self.present_threat()
        return self.inner.maximise(network, x, batch.y, objective, threat, self.draws, centre=self.centre)

    def turns_of(self, x: Tensor) -> Tensor:
        """Label the turned images of a batch ``x``, ``(4 n,)`` in blocks; none where they are left out."""
        copies = len(x) if self.rotation_weight > 0 else 0
        return torch.arange(TURNS, device=x.device).repeat_interleave(copies)

    def two_heads(self, x: Tensor) -> nn.Module:
        """Give the network with both heads; images like ``x`` show where it ends."""
        self._last = self._last or last_linear(self.network, x)
        width = self.network.get_submodule(self._last).in_features
        if width != self.head.in_features:
            raise BadInput(
                f"the second head reads {self.head.in_features} features, those of the nn.Linear that the network "
                f"defines last, but found that {self._last} with {width} makes the logits: define that one last"
            )
        return _TwoHeads(self.network, self.head, self._last)

    def optimizers_for(self, recipe: Any) -> torch.optim.Optimizer:
        """Make the recipe's optimizer, of the head too."""
        trained = [parameter for parameter in self.head.parameters() if parameter.requires_grad]
        optimizer: torch.optim.Optimizer = recipe.build_optimizer([*self.network.parameters(), *trained])
        return optimizer

    # What is told

    def on_epoch(self, epoch: int) -> None:
        """Count anew."""
        self._told, self._seen = (torch.zeros_like(counts, device=self.device) for counts in (self._told, self._seen))

    def _count(self, right: Tensor, y: Tensor) -> None:
        by_turn, label = right.view(TURNS, -1).to(self._told), y.to(self._told.device)
        for turn, share in enumerate(by_turn.mean(1)):
            self.note(f"rotation_k{turn}", share)
        self._told.index_add_(0, label, by_turn.mean(0))
        self._seen += label.bincount(minlength=len(self._seen))

    def history_so_far(self) -> list[dict[str, float]]:
        """Give the history, with the turns that were told of each class's images in its last line."""
        lines = super().history_so_far()
        if self._notes and self.rotation_weight > 0:
            told, seen = (self._over_ranks(counts) for counts in (self._told, self._seen))
            shares = enumerate((told / seen.clamp(min=1)).tolist())
            lines[-1] |= {f"rotation_class{label}": share for label, share in shares if seen[label] > 0}
        return lines

    def measure_held_out(self, batch: Batch) -> Tensor:
        """Tell which held-out images are right with the statistics of their own batch, which are all upright."""
        network = self.classifier()
        # One image has no statistics, and SyncBatchNorm would wait for devices that have fewer batches.
        still = len(batch.y) == 1 or any(isinstance(layer, nn.SyncBatchNorm) for layer in network.modules())
        with torch.no_grad(), in_mode(network, "eval" if still else "batch"):
            return (network(batch.x).argmax(1) == batch.y)[:, None]

    def remarks(self) -> dict[str, float | str]:
        """Give the size of the head and what it tells, and mark what must be known of the row."""
        last = self.history[-1] if self.history else {}
        head = sum(parameter.numel() for parameter in self.head.parameters())
        times = 1.0 if self.rotation_weight == 0 else 1.0 + TURNS
        told: dict[str, float | str] = {"times_the_passes_of_pgd_at": times, "parameters_in_training_only": float(head)}
        told |= {name: share for name, share in last.items() if name.startswith("rotation_")}
        if self.ambiguous:
            told["mark"] = "label-ambiguous rotations: informative on photographs only"
        if last.get("held_out_clean", 1.0) <= last.get("held_out_clean_train_mode", 0.0) - SHIFTED:
            told["batchnorm"] = "clean accuracy is 3 points lower in eval mode than in train mode"
        if self.centre == "start":
            told["centre"] = "trained with images up to 2 epsilon away: not to be ranked"
        return told


def both_tasks(both: Tensor, y: Tensor, turns: Tensor, weight: float) -> Tensor:
    """Give the cross-entropy per image: of labels ``y`` ``(n,)``, then ``weight`` times that of ``turns`` ``(m,)``.

    Args:
        both: logits of the classes and of the turns side by side, ``(n + m, k + 4)``.
    """
    logits, rotation = both.tensor_split([-TURNS], dim=1)
    first = F.cross_entropy(logits[: len(y)], y, reduction="none")
    return torch.cat([first, weight * F.cross_entropy(rotation[len(y) :], turns, reduction="none")])


class _TwoHeads(nn.Module):
    """A network and a second head on what its layer ``last`` is given: logits side by side, in float32 at least."""

    def __init__(self, network: nn.Module, head: nn.Module, last: str) -> None:
        super().__init__()
        self.network, self.head, self.last = network, head, last
        self.training = network.training  # what an attack in train mode asks

    def forward(self, x: Tensor) -> Tensor:
        logits, features = with_features(self.network, self.last, x)
        both = torch.cat([logits, self.head(features).to(logits)], 1)
        return both.float() if both.dtype in (torch.float16, torch.bfloat16) else both
