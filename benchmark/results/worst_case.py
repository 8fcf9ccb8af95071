"""Join all attacks into the worst case: what is left of a network when every attack had its try at every image."""

import pandas as pd

from benchmark.results.surrogate import SURROGATE
from benchmark.results.unseen import is_unseen

WORST_CASE = "worst_case"
DEVELOPMENT = ("quick",)  # attacks that no ranking rests on, so that no worst case does


def with_worst_case(verdicts: pd.DataFrame) -> pd.DataFrame:
    """Add rows of attack ``worst_case`` at every epsilon above 0 that was attacked.

    An image is fooled at epsilon when ANY attack fools it at any smaller or equal epsilon, clean (0) included, so the
    worst case can never rise with epsilon. It speaks of those images that every attack begun on the model has judged;
    a run half way would otherwise look robust on the images that its strongest attack has not reached. Development
    attacks, pictures of a surrogate and those of :mod:`benchmark.results.unseen` have no part in it. An image's worst
    case is carried where a verdict of this very epsilon is.

    Args:
        verdicts: columns experiment, checkpoint, attack, epsilon (pixel units), index, fooled, carried.
    """
    models = verdicts.groupby(["experiment", "checkpoint"], observed=True, sort=True)
    joined = [frame for _, model in models for frame in _of_one_model(model)]
    plain = verdicts.astype({"attack": "str"})
    return pd.concat([plain, *joined], ignore_index=True) if joined else plain


def _of_one_model(model: pd.DataFrame) -> list[pd.DataFrame]:
    aside = model.attack.isin((*DEVELOPMENT, *SURROGATE)) | model.attack.map(is_unseen).astype(bool)
    model = model[~aside]
    attacks = model.groupby(["attack", "epsilon"], observed=True).ngroups
    complete = model.groupby("index").size() == attacks
    judged = model[model["index"].map(complete).to_numpy(dtype=bool)]
    found = []
    for epsilon in sorted(value for value in model.epsilon.unique() if value > 0):
        within = judged[judged.epsilon <= epsilon]
        fooled = within.groupby("index", sort=True)["fooled"].any()
        if fooled.empty:
            continue
        carried = set(within.loc[(within.epsilon == epsilon) & within.carried.astype(bool), "index"])
        found.append(
            pd.DataFrame(
                {
                    "experiment": model.experiment.iloc[0],
                    "checkpoint": model.checkpoint.iloc[0],
                    "attack": WORST_CASE,
                    "epsilon": epsilon,
                    "index": fooled.index.to_numpy(dtype="int32"),
                    "fooled": fooled.to_numpy(dtype=bool),
                    "carried": fooled.index.isin(carried),
                }
            )
        )
    return found
