"""What methods share that train the members of an ensemble together."""

from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor, nn

from attacks.errors import BadInput
from attacks.threat import ThreatModel
from methods.base import AdversarialTraining
from methods.ensemble.members import Ensemble


class OfMembers(AdversarialTraining):
    """Train the members of an Ensemble, each with first weights of its own.

    Args:
        members: how many networks :meth:`compose` makes; an Ensemble that is handed in has its own number.

    Raises:
        BadInput: for a network that is no Ensemble, or has fewer members than the method needs.
    """

    fewest: ClassVar[int] = 1  # members that make sense

    def __init__(self, network: nn.Module, threat: ThreatModel, **common: Any) -> None:
        if not isinstance(network, Ensemble):
            raise BadInput(
                f"{self.card.key} trains an Ensemble of networks, but found one {type(network).__name__}: "
                "hand in Ensemble([first, second, third]) of methods.ensemble.members"
            )
        self.check_members(len(network.members))
        super().__init__(network, threat, **common)
        self.members = len(network.members)

    @classmethod
    def check_members(cls, members: int) -> None:
        """Refuse fewer members than make sense."""
        if members < cls.fewest:
            raise BadInput(f"members is {cls.fewest} or more, but found {members}")

    @classmethod
    def compose(cls, build: Callable[..., nn.Module], *, members: int = 3, **settings: Any) -> nn.Module:
        """Make the ensemble of ``members`` networks, each with first weights of its own."""
        cls.check_members(members)
        return Ensemble(build(member) for member in range(members))

    def each_member(self) -> list[nn.Module]:
        """List the networks of the ensemble."""
        return list(self._ensemble.members)

    def members_logits(self, x: Tensor) -> Tensor:
        """Logits ``(members, n, k)`` of all members for images ``x`` ``(n, c, h, w)``."""
        return self._ensemble.members_logits(x)

    @property
    def _ensemble(self) -> Ensemble:
        assert isinstance(self.network, Ensemble)
        return self.network
