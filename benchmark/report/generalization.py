"""How far accuracy on training images lies above that on test images, epoch by epoch and in the networks kept."""

from collections.abc import Callable

import pandas as pd

from benchmark.report.measure import groups
from benchmark.results.statistics import unpaired_difference, wilson

ATTACKS = ("clean", "pgd10")
GENERALIZATION = [
    *("experiment", "method", "seed", "fold", "epoch", "split", "attack", "epsilon", "correct", "images"),
    *("accuracy", "low", "high", "checkpoint"),
]
GAPS = [
    *("method", "seed", "fold", "checkpoint", "epoch", "attack", "epsilon", "train", "test"),
    *("gap", "gap_low", "gap_high", "test_lost_since_best", "train_images", "test_images", "whole"),
]


def generalization(curves: pd.DataFrame, cards: pd.DataFrame) -> pd.DataFrame:
    """Return one line per experiment, epoch, split and attack, accuracies with Wilson's interval; columns above.

    Args:
        curves: as ``benchmark.results.curves.read_curves`` gives; of experiments without a card nothing is shown.
        cards: as ``Cards.table``.
    """
    table = curves.merge(cards[["experiment", "method", "seed", "fold"]], on="experiment")
    found = [wilson(int(right), int(images)) for right, images in zip(table.correct, table.images, strict=True)]
    table = table.assign(
        accuracy=[interval.estimate for interval in found],
        low=[interval.low for interval in found],
        high=[interval.high for interval in found],
    )
    keys = ["method", "seed", "fold", "epoch", "attack", "split"]
    return table[GENERALIZATION].sort_values(keys, kind="stable").reset_index(drop=True)


def gaps(lines: pd.DataFrame, costs: pd.DataFrame) -> pd.DataFrame:
    """Return training minus test accuracy of every network that was kept, clean and under PGD-10; columns GAPS.

    ``gap`` has Newcombe's interval. ``test_lost_since_best`` is the test accuracy at ``best`` minus that of the line's
    network: of ``last``, what robust overfitting cost. ``best`` was chosen on held-out images, not on these.

    Args:
        lines: as :func:`generalization`; ``costs``: as ``read_curves`` gives, ``whole`` where training was watched.
    """
    whole = dict(zip(costs.experiment, costs.whole, strict=True))
    found: list[dict[str, object]] = []
    for (experiment, attack), rows in groups(lines[lines.checkpoint != ""], ["experiment", "attack"]):
        records = rows.to_dict("records")
        kept = {name: {r["split"]: r for r in records if name in r["checkpoint"]} for name in ("best", "last")}
        for checkpoint, pair in kept.items():
            train, test = pair["train"], pair["test"]
            interval = unpaired_difference((train["correct"], test["correct"]), (train["images"], test["images"]))
            found.append(
                {
                    **{name: test[name] for name in ("method", "seed", "fold", "epoch", "epsilon")},
                    **{
                        "checkpoint": checkpoint,
                        "attack": attack,
                        "train": train["accuracy"],
                        "test": test["accuracy"],
                    },
                    **{"gap": interval.estimate, "gap_low": interval.low, "gap_high": interval.high},
                    "test_lost_since_best": kept["best"]["test"]["accuracy"] - test["accuracy"],
                    **{"train_images": train["images"], "test_images": test["images"], "whole": whole[experiment]},
                }
            )
    table = pd.DataFrame(found, columns=GAPS)
    return table.sort_values(["method", "seed", "fold", "checkpoint", "attack"], kind="stable").reset_index(drop=True)


def readable_gaps(table: pd.DataFrame, name: Callable[[str], str]) -> pd.DataFrame:
    """Return the gaps as strings in percent, a row for each network that was kept; ``name`` writes a method's name."""
    folds = table.fold.nunique() > 1
    found = []
    for (method, seed, fold, checkpoint), rows in groups(table, ["method", "seed", "fold", "checkpoint"]):
        clean, pgd10 = (rows[rows.attack == attack].iloc[0] for attack in ATTACKS)
        lost = "" if checkpoint == "best" else f"{100 * pgd10.test_lost_since_best:+.1f}"
        found.append(
            {
                "method": name(method),
                "seed": str(seed),
                **({"fold": str(fold)} if folds else {}),
                "checkpoint": checkpoint,
                "epoch": str(clean.epoch),
                **_shown(clean, "clean"),
                **_shown(pgd10, "PGD-10"),
                "PGD-10 on test images lost since best": lost,
                "images": f"{clean.train_images} + {clean.test_images}",
                "watched": "every epoch asked for" if clean.whole else "only what was kept",
            }
        )
    return pd.DataFrame(found, dtype=object)


def _shown(line: pd.Series, attack: str) -> dict[str, str]:
    gap = f"{100 * line.gap:+.1f} [{100 * line.gap_low:+.1f}, {100 * line.gap_high:+.1f}]"
    return {
        f"{attack}: train": f"{100 * line.train:.1f}",
        f"{attack}: test": f"{100 * line.test:.1f}",
        f"{attack}: gap": gap,
    }
