"""Put the tables into words for readers: strings with units, intervals and remarks, a column a heading."""

from collections.abc import Callable

import pandas as pd

from benchmark.report import unseen
from benchmark.report.attack_names import SELDOM, readable
from benchmark.report.leaderboard import NO_AUTOATTACK
from benchmark.report.style import epsilon_text
from benchmark.report.summary import Summary

_COLUMNS = {  # heading: attack
    "clean": "clean",
    "PGD-20": "pgd20",
    "CW-20": "cw20",
    "row's attack": "row",
    "AutoAttack": "autoattack",
    "worst case": "worst_case",
}


def readable_leaderboard(summary: Summary) -> pd.DataFrame:
    """Return the leaderboard as strings: accuracies in percent with their interval, empty where not measured."""
    alarmed = summary.leaderboard.alarm.ne("").any()
    shown = {
        name: attack for name, attack in _COLUMNS.items() if attack != "row" or summary.leaderboard.row.notna().any()
    }
    board, suite = summary.leaderboard, summary.suite
    seldom = {readable(name, suite): _accuracy(name, scale=100) for name in SELDOM if name in board}
    quick = {f"quick ({NO_AUTOATTACK})": _accuracy("quick", scale=100)}
    taught = {
        "labels": lambda line: _labels(line),
        "teacher's passes": lambda line: _whole(line["teacher_passes"]),
    }
    return _strings(
        summary.leaderboard,
        {
            "class": lambda line: line["class"],
            "rank": lambda line: _range(line["rank_low"], line["rank_high"]),
            "method": lambda line: summary.named(line["method"]),
            "credibility": lambda line: line["credibility"],
            "status": lambda line: line["status"],
            "checkpoint": lambda line: line["checkpoint"],
            "epsilon": lambda line: "" if _absent(line["epsilon"]) else epsilon_text(line["epsilon"]),
            **{heading: _accuracy(attack, scale=100) for heading, attack in shown.items()},
            **seldom,
            **(quick if summary.leaderboard.quick.notna().any() else {}),
            **({"alarm": lambda line: line["alarm"]} if alarmed else {}),
            "seeds": lambda line: _whole(line["seeds"]),
            "images": lambda line: _whole(line["images"]),
            "trials": lambda line: _whole(line["trials"]),
            "category": lambda line: str(line["category"]).replace("_", " "),
            "network": lambda line: line["network"],
            "members": lambda line: _whole(line["members"]),
            "parameters": lambda line: _whole(line["parameters"]),
            "passes": lambda line: _whole(line["passes"]),
            **(taught if summary.leaderboard.labels.notna().any() else {}),
            "seconds": lambda line: _number(line["seconds"], ".1f"),
            "times natural": lambda line: _number(line["seconds_relative_to_natural"], ".1f"),
            "device-hours": lambda line: _number(line["device_hours"], ".3g"),
            "memory (MiB)": lambda line: _whole(line["peak_memory_mib"]),
            "training's share (MiB)": lambda line: _whole(line["memory_growth_mib"]),
            "engine": lambda line: line["engine"],
            "remark": _remark,
        },
    )


def readable_unseen(summary: Summary) -> pd.DataFrame:
    """Return accuracies under attacks that no method was trained on, in percent with their interval."""
    table, norm = summary.unseen, summary.suite.norm
    return _strings(
        table,
        {
            "class": lambda line: line["class"],
            "rank": lambda line: _range(line["rank_low"], line["rank_high"]),
            "method": lambda line: summary.marked(line["method"]),
            **{unseen.heading(name, norm): _accuracy(name, scale=100) for name in unseen.columns(table)},
            "images": lambda line: _whole(line["images"]),
        },
    )


def readable_table1(summary: Summary) -> pd.DataFrame:
    """Return Table 1 for readers, in percent: printed, by others, ours, and what separates the settings."""
    as_the_row = {"ours: row's attack": _accuracy("measured_row", scale=1)}
    return _strings(
        summary.table1,
        {
            "no": lambda line: line["order"],
            "method": summary.marked_row,
            "published": lambda line: line["accuracy_percent"],
            "AutoAttack by others": lambda line: _by_others(line),
            **(as_the_row if summary.table1.measured_row.notna().any() else {}),
            "ours: PGD-20": _accuracy("measured_pgd20", scale=1),
            "ours: AutoAttack": _accuracy("measured_autoattack", scale=1),
            "data set": lambda line: line["dataset_read"],
            "epsilon": lambda line: line["eval_epsilon"],
            "attack": lambda line: line["attack"],
            "network": lambda line: line["network_read"],
            "citation": lambda line: line["citation"],
            "our setting": lambda line: _setting(line),
            "our setting differs in": lambda line: line["differences"],
            "remark": lambda line: line["broken"],
        },
    )


def readable_comparisons(summary: Summary) -> pd.DataFrame:
    """Return the comparisons as strings: differences in points of percent, p values before and after Holm."""
    return _strings(
        summary.comparisons,
        {
            "class": lambda line: line["class"],
            "method": lambda line: summary.marked(line["method"], epsilon=line["epsilon"]),
            "against": lambda line: summary.marked(line["against"], epsilon=line["epsilon"]),
            "epsilon": lambda line: epsilon_text(line["epsilon"]),
            "difference": lambda line: (
                f"{100 * line['difference']:+.1f} [{100 * line['low']:+.1f}, {100 * line['high']:+.1f}]"
            ),
            "p": lambda line: _p(line["p"]),
            "p (Holm)": lambda line: _p(line["p_holm"]),
            "seeds": lambda line: _whole(line["seeds"]),
            "images": lambda line: _whole(line["images"]),
            "robust accuracy is": lambda line: line["verdict"],
        },
    )


def readable_accuracy(summary: Summary) -> pd.DataFrame:
    """Return the accuracy of every trained network under every attack, as strings in percent."""
    folds = summary.accuracy.fold.nunique() > 1
    columns = {
        "method": lambda line: summary.marked(line["method"], line["checkpoint"]),
        "seed": lambda line: str(line["seed"]),
        **({"fold": lambda line: str(line["fold"])} if folds else {}),
        "checkpoint": lambda line: line["checkpoint"],
        "attack": lambda line: readable(line["attack"], summary.suite),
        "epsilon": lambda line: epsilon_text(line["epsilon"]),
        "accuracy": _accuracy("accuracy", scale=100, low="low", high="high"),
        "images": lambda line: _whole(line["images"]),
        "engine": lambda line: line["engine"],
        "carried": lambda line: f"{100 * line['carried_share']:.0f}%" if line["carried"] else "",
    }
    return _strings(summary.accuracy, columns)


def readable_stages(summary: Summary) -> pd.DataFrame:
    """Return how many images survive each attack of AutoAttack, a column a stage."""
    stages = summary.autoattack_stages
    keys = ["method", "seed", "fold", "checkpoint", "epsilon", "images"]
    wide = stages.pivot_table(index=keys, columns="stage", values="survivors", sort=False).reset_index()
    names = list(dict.fromkeys(stages.stage))
    columns: dict[str, Callable] = {
        "method": lambda line: summary.marked(line["method"], line["checkpoint"], line["epsilon"]),
        "seed": lambda line: str(line["seed"]),
        **({"fold": lambda line: str(line["fold"])} if stages.fold.nunique() > 1 else {}),
        "checkpoint": lambda line: line["checkpoint"],
        "epsilon": lambda line: epsilon_text(line["epsilon"]),
        "images": lambda line: _whole(line["images"]),
        **{f"after {name}": (lambda line, name=name: _whole(line[name])) for name in names},
    }
    return _strings(wide, columns)


def readable_costs(summary: Summary) -> pd.DataFrame:
    """Return what each experiment cost, as strings."""
    columns = {
        "method": lambda line: summary.named(line["method"]),
        "seed": lambda line: str(line["seed"]),
        **({"fold": lambda line: str(line["fold"])} if summary.costs.fold.nunique() > 1 else {}),
        "devices": lambda line: _whole(line["devices"]),
        "device": lambda line: line["device_name"],
        "forward passes": lambda line: _number(line["forward_passes"], ",.1f"),
        "backward passes": lambda line: _number(line["backward_passes"], ",.1f"),
        "selection passes": lambda line: _number(line["selection_passes"], ",.1f"),
        "seconds": lambda line: _number(line["seconds"], ",.1f"),
        "times natural": lambda line: _number(line["seconds_relative_to_natural"], ".1f"),
        "selection seconds": lambda line: _number(line["selection_seconds"], ",.1f"),
        "device-hours": lambda line: _number(line["device_hours"], ".3g"),
        "peak memory (MiB)": lambda line: _whole(line["peak_memory_mib"]),
        "of what": lambda line: line["peak_memory_of"],
        "training's share (MiB)": lambda line: _whole(line["memory_growth_mib"]),
    }
    return _strings(summary.costs, columns)


def readable_alarm(summary: Summary) -> pd.DataFrame:
    """Return single-step methods' accuracies on held-out images in percent, epoch by epoch, as strings."""
    columns = {
        "method": lambda line: summary.named(line["method"]),
        "seed": lambda line: str(line["seed"]),
        **({"fold": lambda line: str(line["fold"])} if summary.alarm.fold.nunique() > 1 else {}),
        "epoch": lambda line: str(line["epoch"]),
        "clean": lambda line: _number(100 * line["held_out_clean"], ".1f"),
        "FGSM": lambda line: _number(100 * line["held_out_fgsm"], ".1f"),
        "PGD-10": lambda line: _number(100 * line["held_out_pgd10"], ".1f"),
        "mark": lambda line: line["mark"],
    }
    return _strings(summary.alarm, columns)


def _strings(table: pd.DataFrame, columns: dict[str, Callable]) -> pd.DataFrame:
    rows = table.to_dict("records")
    lines = [["" if _absent(cell := make(row)) else str(cell) for make in columns.values()] for row in rows]
    return pd.DataFrame(lines, columns=list(columns), dtype=object)


def _accuracy(attack: str, scale: int, low: str = "", high: str = "") -> Callable:
    ends = low or f"{attack}_low", high or f"{attack}_high"

    def make(line: dict) -> str:
        if _absent(line[attack]):
            return ""
        figure, low, high = (scale * float(line[name]) for name in (attack, *ends))
        return f"{figure:.1f} [{low:.1f}, {high:.1f}]"

    return make


def _remark(line: dict) -> str:
    known = (
        f"known from elsewhere: {line['broken']}" if line["broken"] else ""
    )  # nobody shall take it for measured here
    told = (line["status_note"], known, line["data_note"], line["remarks"])
    return "; ".join(text.rstrip(".") for text in told if text)


def _by_others(line: dict) -> str:
    if not line["external_autoattack"]:
        return ""
    doubt = ", low trust" if "LOW TRUST" in line["external_note"] else ""
    setting = " ".join(filter(None, [line["external_dataset"], line["external_epsilon"]]))
    return f"{line['external_autoattack']} ({setting}, {line['external_source']}{doubt})"


def _labels(line: dict) -> str:
    """Write both counts where the checkpoint was chosen on labels of its own: ``200 + 200``."""
    if _absent(line["labels"]):
        return ""
    chosen = line["checkpoint"] == "best" and not _absent(line["validation_labels"])
    return _whole(line["labels"]) + (f" + {_whole(line['validation_labels'])}" if chosen else "")


def readable_recovered(summary: Summary) -> pd.DataFrame:
    """Return the recovered shares as strings; a dash where the references lie too close to measure one."""
    return _strings(
        summary.recovered,
        {
            "method": lambda line: summary.marked(line["method"], line["checkpoint"], line["epsilon"]),
            "checkpoint": lambda line: line["checkpoint"],
            "attack": lambda line: readable(line["attack"], summary.suite),
            "epsilon": lambda line: epsilon_text(line["epsilon"]),
            "accuracy": lambda line: _number(100 * line["accuracy"], ".1f"),
            **{heading: _end(summary, name) for heading, name in (("lower end", "lower"), ("oracle", "oracle"))},
            "oracle - lower": lambda line: _points(line, "gap"),
            "method - lower": lambda line: _points(line, "effect"),
            "recovered share": lambda line: _number(line["recovered"], ".2f") or "\N{EN DASH}",
            "remark": lambda line: (
                "no measurable effect at this size" if line["effect_low"] <= 0 <= line["effect_high"] else ""
            ),
            "seeds": lambda line: _whole(line["seeds"]),
            "images": lambda line: _whole(line["images"]),
        },
    )


def _points(line: dict, name: str) -> str:
    """Write a difference of accuracies with its interval, in points of percent."""
    return f"{100 * line[name]:+.1f} [{100 * line[f'{name}_low']:+.1f}, {100 * line[f'{name}_high']:+.1f}]"


def readable_rejection(summary: Summary) -> pd.DataFrame:
    """Return what methods that may reject reach at their threshold, as strings, rates in percent."""
    folds = summary.rejection.fold.nunique() > 1
    columns = {
        "method": lambda line: summary.named(line["method"]),
        "seed": lambda line: str(line["seed"]),
        **({"fold": lambda line: str(line["fold"])} if folds else {}),
        "checkpoint": lambda line: line["checkpoint"],
        "epsilon": lambda line: epsilon_text(line["epsilon"]),
        "tau": lambda line: f"{line['tau']:.3f} (of {line['tau_right']} right answers)",
        "accepted of right clean images": lambda line: (
            f"{_percent(line['true_positive_rate'])} (meant: {100 * line['true_positives']:.0f})"
        ),
        "clean error": lambda line: _percent(line["clean_error"]),
        "robust error": lambda line: _percent(line["robust_error"]),
        "false positives": lambda line: _percent(line["false_positive_rate"]),
        "AUC": lambda line: _number(line["auc"], ".3f"),
        "accepted": lambda line: f"{line['accepted']} of {line['images']}",
        "no reject: PGD-20": lambda line: _percent(line["no_reject_pgd20"]),
        "no reject: CW-20": lambda line: _percent(line["no_reject_cw20"]),
        "no reject: AutoAttack": lambda line: _percent(line["no_reject_autoattack"]),
        "mark": lambda line: line["mark"],
    }
    return _strings(summary.rejection, columns)


def _percent(share: float) -> str:
    return "" if _absent(share) else f"{100 * share:.1f}"


def _end(summary: Summary, reference: str) -> Callable:
    def make(line: dict) -> str:
        name = summary.marked(line[reference], line["checkpoint"], line["epsilon"])
        return f"{_number(100 * line[f'{reference}_accuracy'], '.1f')} ({name})"

    return make


def _setting(line: dict) -> str:
    if _absent(line["measured_suite"]):
        return ""
    where = f"{line['measured_dataset']}, {line['measured_network']}, {epsilon_text(line['measured_epsilon'])}"
    return f"{where}, {line['measured_checkpoint']}"


def _range(low: object, high: object) -> str:
    if _absent(low):
        return ""
    return f"{low}" if low == high else f"{low}\N{EN DASH}{high}"


def _whole(value: object) -> str:
    return _number(value, ",.0f")


def _number(value: object, form: str) -> str:
    return "" if _absent(value) else format(float(value), form)  # type: ignore[arg-type]


def _p(value: float) -> str:
    return "" if _absent(value) else "<0.0001" if value < 1e-4 else f"{value:.4f}"


def _absent(value: object) -> bool:
    return value is None or bool(pd.isna(value))  # type: ignore[call-overload]
