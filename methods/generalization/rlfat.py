"""Robust local features: shuffle the blocks of adversarial images, and carry what they teach over to intact ones."""

from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from attacks.errors import BadInput
from attacks.objectives import cross_entropy_with, kl_divergence, kl_from
from attacks.threat import ThreatModel
from methods.base import AdversarialTraining, Batch, Card
from methods.chance import for_epochs, in_log_classes
from methods.inner import Inner

Variant = Literal["P", "T"]


class RLFAT(AdversarialTraining):
    r"""Learn from adversarial images cut into blocks that lie shuffled, and keep the intact images' logits at theirs.

    .. math:: P: \; CE(f(s), y) + \eta\, \|f(s) - f(x')\|_2^2, \quad
        x' = \arg\max_{\|x' - x\| \le \epsilon} CE(f(x'), y)
    .. math:: T: \; CE(f(x), y) + \beta\, KL(p(x) \| p(s)) + \eta\, \|f(s) - f(x')\|_2^2, \quad
        x' = \arg\max_{\|x' - x\| \le \epsilon} KL(p(x) \| p(x'))

    with f the logits and s = RBS(x') the adversarial image after the random block shuffle, whose strips between random
    cuts are put into a random order, those of rows first, then those of columns.

    Source: Song et al., ICLR 2020, arXiv:1909.10147. Reading: the INTACT image is attacked and shuffled
    afterwards; one draw of cuts and orders serves the whole batch, of all devices; the transfer term compares logits,
    summed over classes, and nothing in the loss is detached. Reading: as in the authors' code the network is in train
    mode throughout, each kind of image in a forward of its own, and draws that move nothing are kept.

    Steps: 1. P: from a uniform point of the ball, not clipped to the pixel range, climb the cross-entropy K times. T:
    predict the clean images once, and climb the divergence from that out of Gaussian noise. 2. Draw cuts and orders;
    shuffle strips of rows, then strips of columns, of all adversarial images alike. 3. Forward the clean images (T
    only), the shuffled and the intact adversarial ones, each alone. 4. Cross-entropy of the shuffled images (P), or
    clean cross-entropy plus beta times the divergence (T); plus eta times the squared differences of the logits;
    backward through all of it, optimizer step.

    Warning: no AutoAttack figure is known. PGD lies 6 points above CW in the paper's figures of T, which hints at
    masked gradients: judge it by CW and AutoAttack. Warning: a digit that is cut and swapped is often no digit any
    more, so on digits and MNIST expect clean accuracy at or below that of ``pgd_at``. Warning: at a constant eta a
    short training with SGD may end where all logits are equal; that is what the ramp is for.

    Args:
        variant: ``P``, built on PGD training; or ``T``, built on TRADES, which starts, in place of the default start
            (uniform, ``scale: epsilon``, not boxed), from Gaussian noise of 0.001/0.03 epsilon.
        eta: weight of the transfer term; None takes the published 0.5 for ``P``, 1 for ``T``.
        beta: weight of the divergence of ``T``.
        k: strips per axis; 1 shuffles nothing, which leaves PGD training or TRADES.
        ramp: share of the training over which eta rises linearly from 0; None takes 0.5 for recipes of fewer than 60
            epochs, and 0, eta constant as published, for longer ones. Ours.

    History: ``transfer``, the mean squared difference before its weight; ``identity_draws``, the share of draws that
    moved nothing; ``loss_in_log_classes``, the loss in units of that of equal logits.
    """

    card = Card(key="rlfat", category="generalization", citation="song2020robust", trials={"digits": 5})

    def __init__(
        self,
        network: nn.Module,
        threat: ThreatModel,
        *,
        variant: Variant = "P",
        eta: float | None = None,
        beta: float = 6.0,
        k: int = 2,
        ramp: float | None = None,
        inner: Inner = Inner(steps=10, step_size="epsilon/4", start="uniform", boxed=False, mode="train"),
        **common: Any,
    ) -> None:
        if variant not in ("P", "T"):
            raise BadInput(f"variant is P or T, but found {variant!r}")
        if isinstance(k, bool) or not isinstance(k, int) or k < 1:
            raise BadInput(f"k is a number of strips, 1 or more, but found {k!r}")
        if ramp is not None and not 0 <= ramp <= 1:
            raise BadInput(f"ramp is a share of the training, between 0 and 1, or null for the rule, but found {ramp}")
        if variant == "T" and (inner.start, inner.scale, inner.boxed) == ("uniform", "epsilon", False):
            # From so small a start the gradient of the divergence drowns in bfloat16.
            inner = replace(inner, start="gaussian", scale="0.001/0.03 epsilon", full_precision=True)
        super().__init__(network, threat, inner=inner, **common)
        self.variant: Variant = variant
        self.eta = eta if eta is not None else 0.5 if variant == "P" else 1.0
        self.beta, self.k = beta, k
        self.ramp = ramp if ramp is not None else 0.5 if self.recipe.epochs < 60 else 0.0

    def training_loss(self, batch: Batch) -> Tensor:  # noqa: D102 - the class says it
        x, y = batch.x, batch.y
        on_trades = self.variant == "T"
        attacked = self.perturb(batch, kl_from(self.frozen_logits(x)) if on_trades else cross_entropy_with(y))
        shuffled = self.shuffle_blocks(attacked)
        if on_trades:
            clean = self(x)
            logits, intact = self(shuffled), self(attacked)
            loss = self.classification_loss(clean, y) + self.beta * kl_divergence(clean, logits).mean()
        else:
            logits, intact = self(shuffled), self(attacked)
            loss = self.classification_loss(logits, y)
        transfer = (logits - intact).square().sum(1).mean()
        loss = loss + self.present_eta() * transfer
        self.note("transfer", transfer)
        self.note("loss_in_log_classes", in_log_classes(loss, logits))
        return loss

    def shuffle_blocks(self, x: Tensor) -> Tensor:
        """Shuffle strips of rows, then strips of columns, of all images ``x`` ``(n, c, h, w)`` alike; RBS."""
        shuffled = x
        for axis in (2, 3):
            cuts = self.draws.integers(x.shape[axis], x, shape=(self.k - 1,), of_all_ranks=True)
            order = self.draws.permutation(self.k, x, of_all_ranks=True)
            shuffled = shuffle_strips(shuffled, cuts, order, axis)
        self.note("identity_draws", torch.tensor(float(torch.equal(shuffled, x)), device=x.device))
        return shuffled

    def present_eta(self) -> float:
        """Give the weight of the transfer term at this step, which may still be rising."""
        return self.eta if self.ramp == 0 else self.eta * min(1.0, self.progress() / self.ramp)

    def remarks(self) -> dict[str, float | str]:
        """Give how many draws there were and the share that moved nothing; say where the method cannot work."""
        idle, losses = self.noted("identity_draws"), self.noted("loss_in_log_classes")
        told: dict[str, float | str] = {"identity_draws": sum(idle) / len(idle)} if idle else {}
        if self._trainer is not None:
            told["block_draws"] = self.trainer.global_step
        if for_epochs(abs(loss - 1) <= 0.01 for loss in losses):
            told["mark"] = "collapsed"
        if self.k > 1 and _reads_one_channel(self.network):
            told["blocks"] = "block shuffle breaks the class on digits"
        return told


def shuffle_strips(x: Tensor, cuts: Tensor, order: Tensor, axis: int) -> Tensor:
    """Cut images ``(n, c, h, w)`` along ``axis`` and put the strips into another order.

    Args:
        cuts: where strips begin, ``(k - 1,)``, unsorted; 0 and repeated cuts make empty strips.
        order: of the k strips, ``(k,)``.
    """
    strips = x.tensor_split(sorted(cuts.tolist()), dim=axis)
    return torch.cat([strips[place] for place in order.tolist()], dim=axis)


def _reads_one_channel(network: nn.Module) -> bool:
    first = next((layer for layer in network.modules() if isinstance(layer, nn.Conv2d)), None)
    return first is not None and first.in_channels == 1
