"""Ensemble adversarial training: one network, trained on the one-step adversarial images of several others."""

from collections.abc import Callable
from typing import Any, Literal, get_args

from torch import Tensor, nn

from attacks.errors import BadInput
from attacks.modes import Mode
from attacks.objectives import Objective, away_from_prediction, towards_least_likely
from attacks.threat import ThreatModel
from methods.base import Batch, Card
from methods.ensemble.sources import ITSELF, Pool, Sourced, SourceMode
from methods.inner import one_step

Label = Literal["predicted", "ll"]
LEAK = 0.05  # by how much accuracy on its own images may exceed the clean one; a choice of ours


class EAT(Sourced):
    r"""Train ONE network on clean images and on one-step adversarial images made for frozen networks, or for itself.

    .. math:: \tfrac{1}{2} CE(f(x), y) + \tfrac{1}{2} CE(f(x'), y), \quad
        x' = x + \epsilon\,\mathrm{sign}\,\nabla CE(g_s(x), \hat y_s(x)), \quad s \sim U\{1, ..., N + 1\}

    with frozen sources :math:`g_1, ..., g_N`, the trained network itself as :math:`g_{N+1}`, and :math:`\hat y_s` the
    class that the source predicts.

    Source: Tramer et al., ICLR 2018, arXiv:1705.07204; authors' MNIST code. Reading: the "ensemble" is the pool of
    sources, and static; nothing but f is trained or deployed. One source for a whole batch; the attack leaves the class
    that the source itself predicts, never the label, while both losses have the label. Frozen sources are attacked in
    eval mode, f in train mode; in the code the one learning-phase flag has dropout at work in all of them. Reading:
    three small networks of one family, trained for half of the epochs as on MNIST, stand in for the published
    architectures; they are our choice and transfer to one another more easily.

    Steps: 1. Before the first epoch train the sources by plain cross-entropy, and freeze them. 2. Draw one of the N + 1
    sources for the batch. 3. Forward the images through it; gradient by the images of the cross-entropy of the class it
    predicts. 4. One step of epsilon along its sign, clipped to the pixel range. 5. In train mode forward the clean
    images, then the adversarial ones, each a batch of its own for BatchNorm. 6. Half of each mean cross-entropy;
    backward, optimizer step.

    Warning: the claim is robustness against black-box and one-step attacks. White-box PGD leaves next to nothing, which
    is the expected result and no fault; look at the transfer figures. Warning: later transfer attacks (momentum, input
    diversity) also break the authors' ImageNet networks. Warning: on itself this is FGSM without a random start, which
    may overfit catastrophically; other sources only dilute it.

    Args:
        sources: the frozen ones that :meth:`compose` makes: numbers are widths beside the suite's small network, words
            are architectures; None takes half, once and twice the width. [] is FGSM training with predicted labels.
        source_epochs: for which they are trained; None takes half of the recipe's, 0 leaves them as handed in.
        source_mode: of frozen sources while they are attacked; ``train`` moves none of their statistics either.
        source_floor: a source that is right on fewer held-out images than this many times chance ends the training.
        label: ``predicted``, the class that the step leaves; or ``ll``, the class towards which it goes, the least
            likely (the ImageNet form).
        attack_mode: of the trained network while it is attacked itself.

    History: ``accuracy_on_source_1`` and so on, ``accuracy_on_itself``: on the training images made for each;
    ``lead_on_itself``, by how much the last exceeds the clean accuracy in the same batches; ``held_out_source_1`` and
    so on, the clean accuracies of the frozen sources.
    """

    card = Card(
        key="eat",
        category="ensemble",
        citation="tramer2018ensemble",
        comparison="C",
        broken="white-box iterative attacks (PGD-20, AutoAttack) leave next to nothing at the usual epsilons; the "
        "paper claims robustness against black-box and one-step attacks only (Tramer et al., 2018)",
    )
    single_step = True

    def __init__(
        self,
        network: nn.Module,
        threat: ThreatModel,
        *,
        sources: list[float | str] | None = None,
        source_epochs: int | None = None,
        source_mode: SourceMode = "eval",
        source_floor: float = 3.0,
        label: Label = "predicted",
        attack_mode: Mode = "train",
        **common: Any,
    ) -> None:
        if label not in get_args(Label):
            raise BadInput(f"label is predicted or ll, but found {label!r}")
        super().__init__(
            network,
            threat,
            sources=sources,
            source_epochs=source_epochs,
            source_mode=source_mode,
            source_floor=source_floor,
            inner=one_step(attack_mode),
            **common,
        )
        self.climb: Objective = away_from_prediction if label == "predicted" else towards_least_likely

    @classmethod
    def compose(
        cls, build: Callable[..., nn.Module], *, sources: list[float | str] | None = None, **settings: Any
    ) -> nn.Module:
        """Make the network, and the ``sources`` beside it."""
        return Pool.compose(build(0), build, sources)

    def training_loss(self, batch: Batch) -> Tensor:  # noqa: D102 - the class says it
        source = self.draw_source()
        attacked = self.perturb(batch, self.climb, source)
        clean, adversarial = self(batch.x), self(attacked)
        right, fooled_not = ((logits.argmax(1) == batch.y).float() for logits in (clean, adversarial))
        self.note(f"accuracy_on_{self.name_of(source)}", fooled_not)
        if self.name_of(source) == ITSELF:
            self.note("lead_on_itself", fooled_not - right)
        return 0.5 * self.classification_loss(clean, batch.y) + 0.5 * self.classification_loss(adversarial, batch.y)

    def perturb(self, batch: Batch, objective: Objective, source: int | None = None) -> Tensor:
        """Attack the ``source`` of that number, by default the trained network itself."""
        itself = len(self.sources) + 1
        return self.attack_source(batch, objective, itself if source is None else source, self.inner.mode)

    def measure_held_out(self, batch: Batch) -> Tensor:
        """Tell which held-out images each frozen source is right on, ``(n, sources)``."""
        return self.right_by_source(batch).double()

    def remarks(self) -> dict[str, float | str]:
        """Give what is to be known of the sources, the last epoch's accuracies on their images, and a mark of leaks."""
        found = super().remarks()
        names = [f"accuracy_on_{self.name_of(number)}" for number in (*self.source_numbers(), len(self.sources) + 1)]
        found |= {name: self.noted(name)[-1] for name in names if self.noted(name)}
        if max(self.noted("lead_on_itself"), default=0.0) > LEAK:
            found["mark"] = "label leaking or masking"
        return found
