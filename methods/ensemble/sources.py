"""Frozen networks whose one-step adversarial images another network is trained on."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from attacks.errors import BadInput
from attacks.modes import Mode, in_mode
from attacks.objectives import Objective
from attacks.randomness import key
from attacks.threat import ThreatModel
from methods.base import AdversarialTraining, Batch
from methods.inner import one_step
from methods.plain_training import train_plainly
from methods.training_set import TrainingSet

SourceMode = Literal["eval", "train"]
WIDTHS = [0.5, 1, 2]  # of small networks like the suite's own: one family, a narrow pool
ITSELF = "itself"  # the source that is the trained network


class Pool(nn.Module):
    """A network that is to be trained, and ``sources`` beside it; as a network it is the first alone."""

    def __init__(self, network: nn.Module, sources: Sequence[nn.Module] = ()) -> None:
        super().__init__()
        self.network = network
        self.sources = nn.ModuleList(sources)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(n, k)`` of the network that is trained."""
        logits: Tensor = self.network(x)
        return logits

    @classmethod
    def compose(
        cls,
        network: nn.Module,
        build: Callable[..., nn.Module],
        sources: Sequence[float | str] | None,
        *,
        first: int = 1,
    ) -> "Pool":
        """Put ``sources``, widths or architectures, beside ``network``, with first weights of member ``first`` on."""
        kinds = WIDTHS if sources is None else sources
        return cls(network, [build(number, kind) for number, kind in enumerate(kinds, first)])


class Sourced(AdversarialTraining):
    """Draw a source for each batch, the trained network being one of them, and attack it by one step.

    Before its first epoch the sources are trained by plain cross-entropy, on every device alike; from then on they are
    frozen. They are no part of the classifier and of no optimizer.

    Args:
        sources: of the pool that :meth:`Pool.compose` makes; a Pool that is handed in has its own.
        source_epochs: for which sources are trained; None takes half of the recipe's, 0 leaves them as handed in.
        source_mode: of a frozen source while it is attacked. ``train`` moves none of its statistics either.
        source_floor: a source that is right on fewer held-out images than this many times chance ends the training.
    """

    def __init__(
        self,
        network: nn.Module,
        threat: ThreatModel,
        *,
        sources: Sequence[float | str] | None,
        source_epochs: int | None,
        source_mode: SourceMode,
        source_floor: float,
        **common: Any,
    ) -> None:
        if source_mode not in get_args(SourceMode):
            raise BadInput(f"source_mode is eval or train, but found {source_mode!r}")
        if source_epochs is not None and source_epochs < 0:
            raise BadInput(f"source_epochs is 0 or more, or null for half of the recipe's, but found {source_epochs}")
        if not source_floor >= 0:
            raise BadInput(f"source_floor is 0 or more, but found {source_floor}")
        if not isinstance(network, Pool) and sources != []:
            raise BadInput(
                f"{self.card.key} takes its sources from a Pool, but found one {type(network).__name__}: hand in "
                "Pool(network, [first, second]) of methods.ensemble.sources, or say sources: [] for none"
            )
        super().__init__(network.network if isinstance(network, Pool) else network, threat, **common)
        self.sources = network.sources if isinstance(network, Pool) else nn.ModuleList()
        self.sources.requires_grad_(False)
        self.source_epochs = max(1, self.recipe.epochs // 2) if source_epochs is None else source_epochs
        self.source_mode: SourceMode = source_mode
        self.source_floor = source_floor
        self.narrow_pool = len(self.sources) > 0 and not any(isinstance(kind, str) for kind in sources or WIDTHS)
        self.held_out_measures = (*self.held_out_measures, *map(held_out_name, self.source_numbers()))  # type: ignore[misc]
        self._sources_trained = self.source_epochs == 0
        self._classes = 1

    def source_numbers(self) -> range:
        """Number the frozen sources, from 1; the trained network comes behind them."""
        return range(1, len(self.sources) + 1)

    def draw_source(self) -> int:
        """Draw one source for the whole batch, on all devices the same, from 1; the last is the network itself."""
        like = next(self.network.parameters())
        return 1 + int(self.draws.integers(len(self.sources) + 1, like, (1,), of_all_ranks=True))

    def attack_source(self, batch: Batch, objective: Objective, source: int, own_mode: Mode) -> Tensor:
        """Take one step of epsilon on the source; ``(n, c, h, w)`` without a graph."""
        itself = source > len(self.sources)
        network = self.network if itself else self.sources[source - 1]
        mode: Mode = own_mode if itself else "eval" if self.source_mode == "eval" else "batch"
        return one_step(mode).maximise(network, batch.x, batch.y, objective, self.present_threat(), self.draws)

    def name_of(self, source: int) -> str:
        """Name a source in notes."""
        return ITSELF if source > len(self.sources) else f"source_{source}"

    def companions(self) -> list[nn.Module]:
        """List the sources."""
        return list(self.sources)

    # The sources' own training

    def on_epoch(self, epoch: int) -> None:
        """Train the sources before the first epoch; a later one has them from the checkpoint."""
        super().on_epoch(epoch)
        if epoch == 0 and len(self.sources) and not self._sources_trained:
            self._train_sources()

    def _train_sources(self) -> None:
        images = TrainingSet.of_trainer(self, instead="hand in sources that are trained, and say source_epochs: 0")
        for number, source in zip(self.source_numbers(), self.sources, strict=True):
            own = key(self.seed, "source", number)
            train_plainly(source, images, self.recipe, epochs=self.source_epochs, seed=own)
        if self._ranks() > 1:  # kernels of a GPU may differ in the last bits
            for tensor in self.sources.state_dict().values():
                torch.distributed.broadcast(tensor, src=0)
        self._sources_trained = True

    # How good they are

    def right_by_source(self, batch: Batch) -> Tensor:
        """Tell which held-out images each frozen source is right on, ``(n, sources)``."""
        right = []
        for source in self.sources:
            with torch.no_grad(), in_mode(source, "eval"):
                logits = source(batch.x)
            right.append(logits.argmax(1) == batch.y)
            self._classes = logits.shape[1]
        return torch.stack(right, 1) if right else batch.x.new_empty(len(batch.x), 0)

    def on_validation_epoch_end(self) -> None:
        """Stop where a source has learned next to nothing: it would only waste batches."""
        super().on_validation_epoch_end()
        if self.trainer.sanity_checking:
            return
        for number in self.source_numbers():
            found = self.held_out_means[held_out_name(number)]
            if found < self.source_floor / self._classes:
                raise BadInput(
                    f"source {number} of {self.card.key} is right on {100 * found:.0f} % of the held-out images, below "
                    f"{self.source_floor:g} times chance: train it longer (source_epochs is {self.source_epochs}), "
                    "take other sources, or lower source_floor"
                )

    def remarks(self) -> dict[str, float | str]:
        """Give the sources' clean held-out accuracies and the number of their parameters, and say that they are kin."""
        found = {**super().remarks(), **({"pool": "narrow pool: sources of one family"} if self.narrow_pool else {})}
        if len(self.sources):
            found["source_parameters"] = float(sum(value.numel() for value in self.sources.parameters()))
        for number in self.source_numbers():
            if self.noted(held_out_name(number)):
                found[held_out_name(number)] = self.noted(held_out_name(number))[-1]
        return found


def held_out_name(number: int) -> str:
    """Name the clean held-out accuracy of a source in history."""
    return f"held_out_source_{number}"
