"""What each experiment cost, on its own and against natural training on the same network."""

import numpy as np
import pandas as pd

COSTS = [
    *("method", "seed", "fold", "devices", "device_name", "forward_passes", "backward_passes", "selection_passes"),
    *("seconds", "seconds_relative_to_natural", "selection_seconds", "device_hours"),
    *("peak_memory_mib", "peak_memory_of", "memory_growth_mib", "status", "experiment"),
]
_WORDS = {"method", "device_name", "peak_memory_of", "status", "experiment"}
_ALIKE = ["dataset", "network", "device", "devices", "seed", "fold"]  # in what a run and its natural one agree


def costs(cards: pd.DataFrame, curves: pd.DataFrame) -> pd.DataFrame:
    """Return what each experiment cost, passes per training image; columns COSTS, what a card does not say is empty.

    ``memory_growth_mib`` is what training added to the memory that the process held when it began: the rest of
    ``peak_memory_mib`` is PyTorch itself and the data set.

    Args:
        cards: as ``Cards.table``.
        curves: what measuring curves cost, as ``read_curves`` gives; it has columns of its own, where there are any.
    """
    selection = pd.to_numeric(cards.selection_forward_passes) + pd.to_numeric(cards.selection_backward_passes)
    named = cards.assign(selection_passes=selection, device_name=cards.device)
    named = named.assign(seconds_relative_to_natural=relative_seconds(cards))
    numbers = [name for name in COSTS if name not in _WORDS]
    found = named.assign(**{name: pd.to_numeric(named[name]) for name in numbers})
    table = found[COSTS].sort_values(["method", "seed", "fold"], kind="stable").reset_index(drop=True)
    return table.merge(curves.drop(columns="whole"), on="experiment", how="left") if len(curves) else table


def relative_seconds(cards: pd.DataFrame) -> pd.Series:
    """Return each run's training seconds over those of natural training, by the index of ``cards``.

    Both on one network, data set and kind of device, from one seed and fold; NaN where natural training was not run so.
    """
    seconds = pd.to_numeric(cards.seconds)
    alike = pd.MultiIndex.from_frame(cards[_ALIKE].astype(object).fillna(""))
    natural = pd.Series(seconds.to_numpy(dtype=float), alike)[(cards.method == "natural").to_numpy()].dropna()
    natural = natural[natural > 0]
    return seconds / natural.reindex(alike).to_numpy(dtype=float) if len(natural) else seconds * np.nan
