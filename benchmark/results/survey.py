"""Hand out the survey's Table 1 and what others measured with AutoAttack; nothing in either was measured here."""

from importlib import resources

import pandas as pd

# RobustBench spells data sets its own way.
_DATASETS = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "imagenet": "ImageNet", "mnist": "MNIST"}
EXTERNAL = {  # our column: theirs
    "external_autoattack": "autoattack_acc",
    "external_clean": "clean_acc",
    "external_model": "model_id",
    "external_network": "architecture",
    "external_source": "source",
    "external_dataset": "dataset",
    "external_epsilon": "epsilon",
    "external_extra_data": "extra_data",
    "external_note": "note",
}


def table1() -> pd.DataFrame:
    """Return the 34 printed rows in their order, every cell a string as in the file, "" where nothing is known.

    ``accuracy_percent`` is the survey's figure; ``accuracy_other_source`` is not, and must never stand in its place.
    """
    return _read("table1.csv")


def text_only() -> pd.DataFrame:
    """Return the methods that the survey names outside Table 1, every cell a string as in the file."""
    return _read("text_only.csv")


def external_autoattack() -> pd.DataFrame:
    """Return third-party AutoAttack figures in percent, several lines a method; data sets spelled as in ``table1``."""
    table = _read("external_autoattack.csv")
    table["dataset"] = table["dataset"].map(lambda name: _DATASETS.get(name, name))
    return table


def external_for(row: pd.Series, external: pd.DataFrame) -> dict[str, str]:
    """Choose the third-party line that tells most about ``row`` of Table 1, as the columns ``external_*``.

    In this order: a figure not marked as low trust; the data set of the row; its norm; RobustBench; its epsilon;
    its network; its extra data. Cells are "" where nobody has measured the method.
    """
    own = external[(external.method_key == row.method_key) & (external.autoattack_acc != "")]
    if own.empty:
        return dict.fromkeys(EXTERNAL, "")
    fits = pd.DataFrame(
        {
            "trusted": ~own.note.str.contains("LOW TRUST"),
            "dataset": own.dataset == row.dataset_read,
            "norm": ~own.note.str.contains("L2 threat model"),
            "robustbench": own.source == "RobustBench",
            "epsilon": own.epsilon.map(number).sub(number(row.eval_epsilon)).abs() < 1e-3,
            "network": own.architecture.map(letters) == letters(row.network_read),
            "extra_data": (own.extra_data == "True") == (not row.extra_data.startswith("no")),
        }
    )
    best = own.loc[fits.sort_values(list(fits.columns), ascending=False, kind="stable").index[0]]
    return {ours: str(best[theirs]) for ours, theirs in EXTERNAL.items()}


def _read(name: str) -> pd.DataFrame:
    with resources.files("benchmark.results").joinpath("survey", name).open(encoding="utf-8") as file:
        return pd.read_csv(file, dtype=str, keep_default_na=False)


def number(text: str) -> float:
    """Read ``8/255`` or ``0.031``; NaN for anything else."""
    numerator, _, denominator = text.partition("/")
    try:
        return float(numerator) / float(denominator or 1)
    except ValueError:
        return float("nan")


def letters(network: str) -> str:
    """Reduce the name of a network or data set to what two spellings share: ``WideResNet-34-10`` to ``wrn3410``.

    What stands in parentheses behind it, a remark, is left out.
    """
    plain = network.lower().removeprefix("torchvision/").replace("wideresnet", "wrn").partition(" (")[0]
    return "".join(letter for letter in plain if letter.isalnum())
