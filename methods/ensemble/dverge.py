"""DVERGE: members that learn to see through the non-robust features which fool the other members."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attacks.clip import clip
from attacks.errors import BadInput
from attacks.modes import in_mode
from attacks.objectives import Objective, cross_entropy_with
from attacks.pgd import pgd
from attacks.pixels import Pixels
from attacks.randomness import key
from attacks.threat import ThreatModel
from methods.base import Batch, Card
from methods.ensemble.members import in_full
from methods.ensemble.of_members import OfMembers
from methods.inner import Inner
from methods.pre_activations import count_feature_maps, ending_at
from methods.recipe import Recipe
from methods.stages import TwoStages
from methods.training_set import TrainingSet

Baseline = Literal["half", "full", "none"]
READ_TOO_WELL = 0.98  # accuracy on the others' distilled images above which they teach nothing; a choice of ours


class DVERGE(TwoStages, OfMembers):
    r"""Show each member images that look to another one like something else, and let it learn what they really are.

    .. math:: L_i = \sum_{j \ne i} CE(f_i(z_j), y), \quad
        z_j = \arg\min_{\|z - x\|_\infty \le \epsilon_d} \| h_j^l(z) - h_j^l(x_t) \|^2

    for members i = 1, ..., K, with :math:`h_j^l` the features of member j at layer l before their activation, and
    :math:`x_t` a target image drawn independently of the source image x with label y.

    Source: Yang et al., NeurIPS 2020, arXiv:2009.14720; authors' code. Reading: SGD in both stages, as in the code,
    where the text names Adam. The K optimizers are K groups of one, which step together: no loss depends on another
    member's weights, and all distilled images come from the weights at the start of the step. Features of the target
    are computed once for each member, not again at every step. Reading: both stages share the recipe's epochs, where
    the authors' have 200 each; the layers are dealt from a shuffled deck, where the authors draw each epoch's anew; and
    the logits are no layer. Layers are what enters activations on feature maps, wherever in a block those stand.
    Reading: epsilon_d is a length of the data, not of the threat: the larger of 0.07 and the training epsilon.

    Steps: 1. In the first stage train each member by cross-entropy on clean images. 2. In the second take a target
    batch from another pass over the training images, and one layer for the whole epoch. 3. For each member start at the
    source images; momentum descent on the squared distance of its features from the target's, within epsilon_d and the
    pixel range, in train mode. 4. With ``plus_adv`` also attack each member alone by PGD. 5. In train mode forward the
    distilled images of all OTHER members, one after another, through each member; sum of the mean cross-entropies with
    the SOURCE labels; backward, one step of each member's optimizer.

    Warning: this is no adversarial training. White-box accuracy at 8/255 is next to nothing unless ``plus_adv`` is
    set, and the survey's 52.4 is at 0.01, 2.6/255; look at the smallest epsilon and at the transfer figures. Warning:
    results vary much with the layers drawn (the authors); with few epochs one unlucky layer moves them, so give the
    spread over seeds. Warning: clean images never enter the second stage's loss.

    Args:
        members: how many networks :meth:`compose` makes, 2 or more; an Ensemble that is handed in has its own number.
        eps_d: how far distilled images may lie, in pixel units or relative to the whole epsilon; None takes the larger
            of 0.07 and epsilon.
        momentum: of the descent; 0 steps along the sign of the gradient alone.
        random_start: begin at a uniform point of the ball, inside the pixel range.
        include_logits: deal them out as a layer, too.
        plus_adv: also train each member on PGD's images of itself, its loss then being c times that above plus this.
        coefficient: c, with ``plus_adv``.
        baseline: ``half`` gives the first stage half of the recipe's epochs; ``full`` gives each stage all of them;
            ``none`` has no first stage, for members that are trained already.
        inner: ``steps`` is that of the descent, each epsilon_d / steps long; all of it the attack of ``plus_adv``.

    History: ``layer``; ``member_1_on_2`` and so on, the accuracy of a member on another's distilled images;
    ``distilled_accuracy``, the mean of those; ``diversity``, the members' mean cross-entropy on them with the TARGET
    labels: high where one is not fooled by the other's features.

    Raises:
        BadInput: for a network that is no Ensemble, or has a single member and nobody to learn from.
    """

    card = Card(
        key="dverge",
        category="ensemble",
        citation="yang2020dverge",
        comparison="C",
        broken="no adversarial training: the survey's 52.4 % on CIFAR-10 is at epsilon 0.01, and white-box accuracy at "
        "8/255 is near 0",
    )
    fewest = 2

    def __init__(
        self,
        network: nn.Module,
        threat: ThreatModel,
        *,
        members: int = 3,
        eps_d: str | float | None = None,
        momentum: float = 1.0,
        random_start: bool = False,
        include_logits: bool = False,
        plus_adv: bool = False,
        coefficient: float = 1.0,
        baseline: Baseline = "half",
        inner: Inner = Inner(steps=10, step_size="epsilon/4", start="uniform", boxed=True, mode="train"),
        **common: Any,
    ) -> None:
        if threat.norm != "linf":
            raise BadInput(f"dverge distils by signs, within linf: threat.norm is {threat.norm!r}")
        for name, value in (("momentum", momentum), ("coefficient", coefficient)):
            if not value >= 0:
                raise BadInput(f"{name} is 0 or more, but found {value}")
        if baseline not in get_args(Baseline):
            raise BadInput(f"baseline is half, full or none, but found {baseline!r}")
        super().__init__(network, threat, inner=inner, **common)
        length = max(0.07, threat.epsilon) if eps_d is None else Pixels.read(eps_d, "eps_d").at(threat.epsilon)
        self.near = threat.at(length)  # where distilled images lie
        self.momentum, self.random_start, self.include_logits = momentum, random_start, include_logits
        self.plus_adv, self.coefficient, self.baseline = plus_adv, coefficient, baseline
        self.first_share = 0.0 if baseline == "none" else 0.5
        self.training_set: TrainingSet | None = None
        self._feature_maps = 0  # that there are to choose from; 0 until they have been counted
        self._taken = 0  # images of this epoch's target pass

    def training_loss(self, batch: Batch) -> Tensor:  # noqa: D102 - the class says it
        if not self.settled:
            return torch.stack([self.classification_loss(one, batch.y) for one in self.members_logits(batch.x)]).sum()
        target, layer = self.target_batch(batch), self.layer_for(batch.x)
        self.note("layer", batch.x.new_tensor(float(layer)))
        distilled = [
            self.perturb(batch, self.likeness(member, target.x, layer), member, layer) for member in self.each_member()
        ]
        attacked = [self.attack_of(member, batch) for member in self.each_member()] if self.plus_adv else None
        return self.members_losses(batch, target.y, distilled, attacked).sum()

    def perturb(
        self, batch: Batch, objective: Objective, member: nn.Module | None = None, layer: int | None = None
    ) -> Tensor:
        """Move images towards the target in the features of ``member`` at ``layer``, by default the first's, deepest.

        ``objective`` sees the features.
        """
        member = self.each_member()[0] if member is None else member
        layer = self.count_layers(batch.x) if layer is None else layer
        x, start = batch.x, batch.x
        if self.random_start:
            start = clip(x + self.near.epsilon * self.draws.uniform(x), self.near.low, self.near.high)
        with in_mode(member, "train"), self._features(member, layer):  # so that running statistics move
            return pgd(
                member,
                x,
                objective,
                self.near,
                start=start,
                steps=self.inner.steps,
                step_size=self.near.epsilon / max(1, self.inner.steps),
                momentum=self.momentum,
            )

    def likeness(self, member: nn.Module, target: Tensor, layer: int) -> Objective:
        """Climb minus the squared distance of features from those of the ``target`` images, a mean for each image."""
        with torch.no_grad(), in_mode(member, "train"), self._features(member, layer):
            wanted = member(target)
        return lambda features: -(features - wanted).square().flatten(1).mean(1)

    def attack_of(self, member: nn.Module, batch: Batch) -> Tensor:
        """Attack one member alone, within the threat."""
        climb, threat = cross_entropy_with(batch.y), self.present_threat()
        return self.inner.maximise(member, batch.x, batch.y, climb, threat, self.draws)

    def members_losses(
        self, batch: Batch, target_y: Tensor, distilled: list[Tensor], attacked: list[Tensor] | None = None
    ) -> Tensor:
        """Give the loss of each member ``(members,)``; none depends on the weights of another, nor on ``target_y``."""
        losses = []
        for i, member in enumerate(self.each_member()):
            others = {j: in_full(member(images)) for j, images in enumerate(distilled) if j != i}
            loss = torch.stack([self.classification_loss(logits, batch.y) for logits in others.values()]).sum()
            if attacked is not None:
                own = self.classification_loss(in_full(member(attacked[i])), batch.y)
                loss = self.coefficient * loss + own
            losses.append(loss)
            self._note_reading(i, others, batch.y, target_y)
        return torch.stack(losses)

    def _note_reading(self, i: int, others: dict[int, Tensor], y: Tensor, target_y: Tensor) -> None:
        for j, logits in others.items():
            right = (logits.argmax(1) == y).float()
            self.note(f"member_{i + 1}_on_{j + 1}", right)
            self.note("distilled_accuracy", right)
            self.note("diversity", F.cross_entropy(logits.detach(), target_y))

    # Layers and target images

    def layer_for(self, x: Tensor) -> int:
        """Give this epoch's layer, from 1."""
        place = 0 if self._trainer is None else self.current_epoch - self.switch_epoch()
        return dealt(place, self.count_layers(x), self.seed)

    def count_layers(self, x: Tensor) -> int:
        """Count the layers that are dealt out."""
        if not self._feature_maps:
            self._feature_maps = count_feature_maps(self.each_member()[0], x)
        return self._feature_maps + self.include_logits

    def _features(self, member: nn.Module, layer: int) -> AbstractContextManager[Any]:
        """Let ``member`` end at ``layer``; the one behind the feature maps is the logits."""
        return ending_at(member, layer) if layer <= self._feature_maps else nullcontext()

    def target_batch(self, batch: Batch) -> Batch:
        """Take as many images as ``batch`` has from a pass with an order and an augmentation of its own.

        Without a trainer the batch itself is all there is, in another order.
        """
        size = len(batch.x)
        if self.training_set is None:
            order = self.draws.permutation(size, batch.x)
            return Batch(*(item[order] for item in batch))
        generator = torch.Generator().manual_seed(key(self.seed, "target", self.current_epoch) >> 1)
        order = torch.randperm(len(self.training_set), generator=generator)
        mine = self._taken + self.global_rank * size + torch.arange(size)
        self._taken += self._ranks() * size
        return self.training_set.read(order[mine % len(order)].to(batch.y.device), -1 - self.current_epoch)

    # What is told

    def remarks(self) -> dict[str, float | str]:
        """Give the layers as dealt, the last epoch's accuracy and diversity, and a mark where nothing acted."""
        found = super().remarks()
        if layers := self.noted("layer"):
            found["layers"] = f"layers {' '.join(f'{layer:.0f}' for layer in layers)}"
        found |= {name: self.noted(name)[-1] for name in ("distilled_accuracy", "diversity") if self.noted(name)}
        if min(self.noted("distilled_accuracy"), default=0.0) > READ_TOO_WELL:
            found["mark"] = "diversity term inactive"
        return found

    # The trainer

    def data_passes(self) -> int:
        """Give how often the data are passed over: the recipe's epochs, or twice as often for two full stages."""
        return 2 * self.recipe.epochs if self.baseline == "full" else self.recipe.epochs

    def optimizers_for(self, recipe: Recipe) -> torch.optim.Optimizer:
        """Make an optimizer for each member, as groups of one."""
        first, *others = (recipe.build_optimizer(member.parameters()) for member in self.each_member())
        for other in others:
            for group in other.param_groups:
                first.add_param_group(group)
        return first

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None
    ) -> None:
        """Limit the gradient of each member by itself, as the recipe says."""
        if self.recipe.gradient_clip is None:
            super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)
            return
        for member in self.each_member():
            nn.utils.clip_grad_norm_(member.parameters(), self.recipe.gradient_clip)

    def on_train_start(self) -> None:
        """Look at what there is to draw targets from."""
        super().on_train_start()
        self.training_set = TrainingSet.of_trainer(self)

    def on_epoch(self, epoch: int) -> None:
        """Begin another target pass."""
        super().on_epoch(epoch)
        self._taken = 0

    def on_train_end(self) -> None:
        """Let go of the images."""
        super().on_train_end()
        self.training_set = None


def dealt(place: int, layers: int, seed: int) -> int:
    """Give the layer, 1 to ``layers``, of an epoch at ``place`` 0, 1, ...: from a deck, shuffled anew once used up."""
    deck, card = divmod(place, layers)
    generator = torch.Generator().manual_seed(key(seed, "layers", deck) >> 1)
    return 1 + int(torch.randperm(layers, generator=generator)[card])
