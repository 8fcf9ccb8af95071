"""Lay the survey's Table 1, our figures and third-party AutoAttack side by side, and say why they differ."""

import pandas as pd

from benchmark.results import survey
from benchmark.results.cards import Cards, Suite

_MEASURED = ["clean", "pgd20", "cw20", "row", "autoattack"]
MEASURED = [
    *("measured_suite", "measured_track", "measured_dataset", "measured_network", "measured_epsilon"),
    *("measured_checkpoint", "measured_credibility", "measured_engine"),
    *(f"measured_{attack}{end}" for attack in _MEASURED for end in ("", "_low", "_high")),
]


def survey_table(suite: Suite, cards: Cards, leaderboard: pd.DataFrame) -> pd.DataFrame:
    """Return the 34 rows of Table 1 with what was measured for their method; all accuracies in PERCENT, as printed.

    Beside the columns of the source stand ``measured_*`` (the ranked checkpoint at the suite's headline epsilon, empty
    where nothing was measured), ``external_*`` (third-party AutoAttack), ``differences``: in what the measured setting
    departs from the row's, so that nobody takes the gap for a failed reproduction, and ``broken``: what a strong attack
    is known to leave of the method.
    """
    rows, external = survey.table1(), survey.external_autoattack()
    added = [{**_measured(suite, leaderboard, row), **survey.external_for(row, external)} for _, row in rows.iterrows()]
    broken = [cards.warned(key).broken for key in rows.method_key]
    return pd.concat([rows, pd.DataFrame(added)], axis=1).assign(broken=broken)


def _measured(suite: Suite, leaderboard: pd.DataFrame, row: pd.Series) -> dict[str, object]:
    nothing: dict[str, object] = {**dict.fromkeys(MEASURED), "differences": ""}
    own = leaderboard[
        (leaderboard.method == row.method_key)
        & (leaderboard.checkpoint == suite.ranked_checkpoint)
        & (leaderboard.epsilon == suite.headline_epsilon)
        & ~((suite.track == "common") & leaderboard.labels.notna())  # no figure with extra images beside those
    ]
    if own.empty or own.iloc[0][_MEASURED].isna().all():
        return nothing
    line = own.iloc[0]
    epsilon, as_the_row = float(line.epsilon), not pd.isna(line["row"])
    figures = {
        f"measured_{attack}{end}": 100 * line[f"{attack}{end}"] for attack in _MEASURED for end in ("", "_low", "_high")
    }
    return {
        **nothing,
        **figures,
        "measured_suite": suite.name,
        "measured_track": suite.track,
        "measured_dataset": suite.dataset,
        "measured_network": line.network or suite.network,
        "measured_epsilon": line.epsilon,
        "measured_checkpoint": line.checkpoint,
        "measured_credibility": line.credibility,
        "measured_engine": line.engine,
        "differences": differences(
            row, suite.dataset, str(line.network or suite.network), epsilon, as_the_row=as_the_row
        ),
    }


def differences(row: pd.Series, dataset: str, network: str, epsilon: float, *, as_the_row: bool = False) -> str:
    """Name what parts the setting of a survey row from ours: ``data set``, ``network``, ``epsilon`` and so on.

    Args:
        as_the_row: whether the row's own attack was measured too, beside the standard ones.
    """
    published = survey.number(row.eval_epsilon)
    found = {
        "data set": survey.letters(row.dataset_read) != survey.letters(dataset),
        "network": survey.letters(row.network_read) != survey.letters(network),
        "epsilon": not abs(published - epsilon) < 1e-3,  # NaN, an unknown epsilon, counts as different
        "attack": not as_the_row and (row.eval_loss, row.eval_steps, row.eval_targeted) != ("ce", "20", "no"),
        "transfer attack": row.transfer_source != "",
        "extra data": not row.extra_data.startswith("no"),
        "checkpoint chosen on the test set": row.checkpoint == "best-on-test",
    }
    return "; ".join(reason for reason, differs in found.items() if differs)
