"""Checks that need no network: what the verdicts of an evaluation, and the card of a training, say of themselves."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from benchmark.credibility import rules
from benchmark.credibility.record import Check, Rule, Setting
from benchmark.results.alarms import of_checkpoint
from benchmark.results.worst_case import WORST_CASE

_CLIMBS = ["pgd20", "cw20"]
_STRONGEST_FIRST = ["autoattack", "cw20", "pgd20_any", "pgd20"]
_READABLE = {"pgd20": "PGD-20", "cw20": "CW-20", "autoattack": "AutoAttack", "autoattack_plus": "AutoAttack plus"}


@dataclass(frozen=True)
class Verdicts:
    """The accuracies of one trained network.

    Args:
        accuracy: columns checkpoint, attack, epsilon, accuracy (a fraction), images, carried.
        stages: survivors of AutoAttack's stages, columns checkpoint, epsilon, stage, accuracy, images; in order.
        card: of its training.
    """

    accuracy: pd.DataFrame
    stages: pd.DataFrame
    card: Mapping[str, Any]
    dataset: str
    norm: str

    def setting(self, epsilon: float) -> Setting:
        """What thresholds have to be set for."""
        return Setting(self.dataset, self.norm, epsilon)

    def figure(self, checkpoint: str, attack: str, epsilon: float) -> pd.Series | None:
        """Give the line of one attack; None where it was not run, or its verdicts were carried over."""
        lines = self.curve(checkpoint, attack)
        found = lines[lines.epsilon == epsilon]
        return found.iloc[0] if len(found) else None

    def curve(self, checkpoint: str, attack: str) -> pd.DataFrame:
        """Give the lines of one attack by ascending radius, without carried ones."""
        table = self.accuracy
        own = table[(table.checkpoint == checkpoint) & (table.attack == attack) & ~table.carried.astype(bool)]
        return own.sort_values("epsilon")


def from_verdicts(verdicts: Verdicts, checkpoint: str, epsilon: float) -> list[Check]:
    """Run every check on one checkpoint at one ranking radius."""
    return [check(verdicts, checkpoint, epsilon) for check in CHECKS]


def falls_with_epsilon(verdicts: Verdicts, checkpoint: str, epsilon: float) -> Check:
    """Look whether a larger radius leaves more images standing under the same attack."""
    rises, images = [], 0
    for attack in _CLIMBS:
        curve = verdicts.curve(checkpoint, attack)
        if len(curve) > 1 and curve.images.nunique() == 1:
            rises += [(float(rise), attack) for rise in curve.accuracy.diff().iloc[1:]]
            images = int(curve.images.iloc[0])
    if not rises:
        return rules.FALLS.absent(verdicts.setting(epsilon), "attacked at one radius only")
    rise, attack = max(rises)
    note = f"under {_READABLE[attack]}" if rise > 0 else ""
    return rules.FALLS.measured(max(rise, 0.0), verdicts.setting(epsilon), images=images, note=note)


def union_never_rises(verdicts: Verdicts, checkpoint: str, epsilon: float) -> Check:
    """Look at the worst case over attacks and smaller radii, which cannot rise unless it was put together wrongly."""
    table = verdicts.accuracy
    union = table[(table.checkpoint == checkpoint) & (table.attack == WORST_CASE)].sort_values("epsilon")
    if len(union) < 2 or union.images.nunique() > 1:
        return rules.UNION.absent(verdicts.setting(epsilon), "attacked at one radius only")
    return rules.UNION.measured(max(float(union.accuracy.diff().max()), 0.0), verdicts.setting(epsilon))


def cross_entropy_against_margin(verdicts: Verdicts, checkpoint: str, epsilon: float) -> Check:
    """Compare PGD-20 with the same attack on the margin."""
    return _above(rules.MARGIN, verdicts, checkpoint, epsilon, "cw20")


def pgd_against_autoattack(verdicts: Verdicts, checkpoint: str, epsilon: float) -> Check:
    """Compare PGD-20 with AutoAttack; where the standard version did not run, with plus, which holds all of it."""
    plus = verdicts.figure(checkpoint, "autoattack", epsilon) is None
    plus = plus and verdicts.figure(checkpoint, "autoattack_plus", epsilon) is not None
    return _above(rules.GAP, verdicts, checkpoint, epsilon, "autoattack_plus" if plus else "autoattack")


def square_inside_autoattack(verdicts: Verdicts, checkpoint: str, epsilon: float) -> Check:
    """Count what Square took from the images that three attacks with gradients left standing."""
    stages = verdicts.stages
    own = stages[(stages.checkpoint == checkpoint) & (stages.epsilon == epsilon)]
    order = own.stage.tolist()
    if "square" not in order[1:]:
        return rules.SQUARE_STAGE.absent(verdicts.setting(epsilon), "AutoAttack was not run on this checkpoint")
    at = order.index("square")
    taken = float(own.accuracy.iloc[at - 1] - own.accuracy.iloc[at])
    return rules.SQUARE_STAGE.measured(taken, verdicts.setting(epsilon), images=int(own.images.iloc[at]))


def best_against_last(verdicts: Verdicts, checkpoint: str, epsilon: float) -> Check:
    """Compare the two checkpoints of a training under the strongest attack that both faced on as many images."""
    for attack in _STRONGEST_FIRST:
        best, last = (verdicts.figure(name, attack, epsilon) for name in ("best", "last"))
        if best is not None and last is not None and best.images == last.images:
            apart = abs(float(best.accuracy - last.accuracy))
            note = f"best {100 * best.accuracy:.1f} %, last {100 * last.accuracy:.1f} % under {attack}"
            return rules.BEST.measured(apart, verdicts.setting(epsilon), images=int(best.images), note=note)
    return rules.BEST.absent(verdicts.setting(epsilon), "one checkpoint only was attacked")


def overfitting_alarm(verdicts: Verdicts, checkpoint: str, epsilon: float) -> Check:
    """Repeat what the training's own alarm found."""
    if not any("held_out_fgsm" in line for line in verdicts.card.get("history") or []):
        return rules.ALARM.absent(verdicts.setting(epsilon), "its training was not watched: no single-step method")
    _, mark = of_checkpoint([verdicts.card], checkpoint)
    return rules.ALARM.measured(bool(mark), verdicts.setting(epsilon), note=mark)


CHECKS = (
    falls_with_epsilon,
    union_never_rises,
    cross_entropy_against_margin,
    pgd_against_autoattack,
    square_inside_autoattack,
    best_against_last,
    overfitting_alarm,
)


def _above(rule: Rule, verdicts: Verdicts, checkpoint: str, epsilon: float, stronger: str) -> Check:
    """Measure how far PGD-20 lies above another attack at the same radius, on as many images."""
    setting = verdicts.setting(epsilon)
    lines = [verdicts.figure(checkpoint, attack, epsilon) for attack in ("pgd20", stronger)]
    run = [line for line in lines if line is not None]
    if len(run) < 2:
        missing = "pgd20" if lines[0] is None else stronger
        return rule.absent(setting, f"{_READABLE[missing]} was not run on this checkpoint at this radius")
    plain, other = run
    if plain.images != other.images:
        return rule.absent(setting, f"not finished: {plain.images} and {other.images} images")
    note = f"{100 * plain.accuracy:.1f} % and {100 * other.accuracy:.1f} %"
    above = max(float(plain.accuracy - other.accuracy), 0.0)
    return rule.measured(above, setting, images=int(plain.images), note=note)
