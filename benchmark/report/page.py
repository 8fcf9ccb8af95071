"""Make the one self-contained page of a report: it loads nothing from elsewhere and reads without JavaScript."""

import re
from base64 import b64encode
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from itables import options as itables_options
from jinja2 import Environment, PackageLoader, StrictUndefined

from benchmark.report import credibility, engines, table, unseen
from benchmark.report.attack_names import readable
from benchmark.report.coverage import readable_coverage
from benchmark.report.generalization import readable_gaps
from benchmark.report.leaderboard import NO_AUTOATTACK
from benchmark.report.style import epsilon_text
from benchmark.report.summary import Summary, versions
from benchmark.report.tradeoff import readable_tradeoff
from benchmark.results.alarms import sentences
from benchmark.results.coverage import summed_up
from benchmark.results.survey import number
from benchmark.results.worst_case import DEVELOPMENT

CAPTIONS = {  # in the order in which the page shows them
    "clean_vs_robust": "Each method's accuracy on clean pictures against its worst case over all attacks.",
    "accuracy_over_epsilon": "How the worst case falls as the attacker may do more. Open markers: verdicts carried "
    "over from another epsilon.",
    "attack_ladder": "From the weakest attack to the strongest: a fall on the last step says the others flattered.",
    "cost_vs_robustness": "Training passes per image against the worst case; all classes, each named in brackets.",
    "tradeoff": "Against natural training: the clean accuracy that each method loses, and the robust accuracy it wins.",
    "generalization": "Accuracy on training images (dashed) and test images over the epochs. The star is the epoch "
    "that held-out training images chose: test images choose nothing.",
    "unseen_attacks": "What is left of each method under attacks it was not trained on: twice the radius, other norms "
    "and their union, pictures made for other networks.",
    "published_vs_measured": "The survey's 34 rows: printed figure, AutoAttack by others, and ours. Where the setting "
    "differs, a gap is no failed reproduction.",
}
_SWEEPS = {
    "strict": "at every epsilon in full",
    "descending": "at the other epsilons with verdicts carried from one to the next: of what was fooled at a smaller "
    "epsilon, which is exact, and of what held at a larger one; in curves only",
}
_FILTERED = {
    "class",
    "status",
    "method",
    "category",
    "checkpoint",
    "epsilon",
    "attack",
    "against",
    "data set",
    "seed",
    "fold",
    "alarm",
    "mark",
    "device",
    "check",
    "colour",
}


@dataclass(frozen=True)
class Cell:
    """One cell: what is read, the interval that follows it in small print, what it is sorted by, a mark's colour."""

    text: str
    interval: str
    order: str
    mark: str = ""


@dataclass(frozen=True)
class HtmlTable:
    """A table of strings for the template; ``filters`` are the places of columns that get a drop-down."""

    name: str
    headings: list[str]
    rows: list[list[Cell]]
    filters: list[int]


def page(summary: Summary, pictures: dict[str, bytes], files: list[str]) -> str:
    """Return the page as HTML.

    Args:
        pictures: PNG bytes by the names of ``CAPTIONS``; they are embedded.
        files: paths, relative to the page, of what stands beside it; they are linked.
    """
    environment = Environment(
        loader=PackageLoader("benchmark.report", "templates"),
        autoescape=True,  # every name may come from a user's file
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script, style = _datatables()
    failed = summary.cards.failed
    return environment.get_template("page.html.j2").render(
        suite=summary.suite,
        progress=summary.progress,
        named=summary.named,
        facts=_facts(summary),
        leaderboard=_html(table.readable_leaderboard(summary), "leaderboard"),
        engines=engines.sentence(summary.leaderboard),
        comparisons=_html(table.readable_comparisons(summary), "comparisons"),
        table1=_html(table.readable_table1(summary), "table1"),
        recovered=_html(table.readable_recovered(summary), "recovered") if len(summary.recovered) else None,
        tradeoff=_html(readable_tradeoff(summary.tradeoff, _marked(summary)), "tradeoff"),
        gaps=_html(readable_gaps(summary.gaps, summary.named), "gaps") if len(summary.gaps) else None,
        coverage=_html(readable_coverage(summary.coverage, summary.named), "coverage"),
        covered=summed_up(summary.coverage),
        unseen=_html(table.readable_unseen(summary), "unseen") if len(summary.unseen) else None,
        unseen_foot=unseen.FOOT,
        rejection=_html(table.readable_rejection(summary), "rejection") if len(summary.rejection) else None,
        stages=_html(table.readable_stages(summary), "stages") if len(summary.autoattack_stages) else None,
        alarms=sentences(summary.cards.contents),
        alarm=_html(table.readable_alarm(summary), "alarm") if len(summary.alarm) else None,
        credibility=_html(
            credibility.readable(summary.credibility, {name: summary.named(name) for name in summary.methods}),
            "credibility",
        ),
        checks=_html(credibility.legend(summary.credibility), "checks"),
        costs=_html(table.readable_costs(summary), "costs"),
        accuracy=_html(table.readable_accuracy(summary), "accuracy"),
        figures=[(name, CAPTIONS[name], b64encode(pictures[name]).decode()) for name in CAPTIONS if name in pictures],
        failures=[
            (line["experiment"], line["error"], summary.cards.tracebacks.get(line["experiment"], ""))
            for line in failed.to_dict("records")
        ],
        files=files,
        datatables_script=script,
        datatables_style=style,
    )


def _marked(summary: Summary) -> Callable[[str, float], str]:
    return lambda method, epsilon: summary.marked(method, epsilon=epsilon)


def _facts(summary: Summary) -> list[tuple[str, str]]:
    """Return what was run, as pairs of a heading and a sentence; what the suite does not say is left out."""
    suite = summary.suite
    evaluation = suite.content["evaluation"]
    threat = dict(suite.content.get("threat") or {})
    made_by = sorted({engine for engine in summary.leaderboard.engine if engine})
    row = dict(evaluation.get("row") or {})  # of the method's row of Table 1, in published recipes
    attacks = [str(attack) for attack in evaluation.get("attacks") or []]
    attacks = [
        f"{attack} ({NO_AUTOATTACK})" if attack in DEVELOPMENT else readable(attack, suite) for attack in attacks
    ]
    sure = "Wilson for a single network; over several, a bootstrap over images and networks together"
    found = {
        "suite": f"{suite.name}, track {suite.track}",
        "data set": suite.dataset,
        "network": suite.network,
        "training threat": f"{threat.get('norm', '')} {epsilon_text(number(str(threat['epsilon'])))}"
        if "epsilon" in threat
        else "",
        "methods": ", ".join(map(summary.named, summary.methods)),
        "seeds": ", ".join(str(seed) for seed in suite.content.get("seeds") or []),
        "attacks": ", ".join(attacks),
        "row's attack": ", ".join(f"{key} {value}".replace("_", " ") for key, value in row.items() if value != ""),
        "epsilons": ", ".join(epsilon_text(number(str(epsilon))) for epsilon in evaluation.get("epsilons") or []),
        "ranked at": f"{', '.join(map(epsilon_text, suite.ranked_at))}, on the {suite.ranked_checkpoint} checkpoint, "
        "inside each class, by the worst case per image over all attacks at this or a smaller epsilon",
        "AutoAttack engine": ", ".join(made_by),
        "AutoAttack elsewhere": _SWEEPS.get(str(evaluation.get("sweep")), ""),
        "images per evaluation": str(suite.images or ""),
        "intervals": f"95%: {sure}",
        "ranks": "intervals: the ranks that 95% of the resamples leave open",
        "versions": ", ".join(f"{name} {' and '.join(those)}" for name, those in versions(summary.cards).items()),
    }
    return [(heading, text) for heading, text in found.items() if text]


def _html(frame: pd.DataFrame, name: str) -> HtmlTable:
    headings = [str(heading) for heading in frame.columns]
    marks = [heading in ("credibility", "colour") for heading in headings]
    rows = [
        [_cell(text, mark=mark) for text, mark in zip(row, marks, strict=True)] for row in frame.itertuples(index=False)
    ]
    filters = [place for place, heading in enumerate(headings) if heading in _FILTERED and frame[heading].nunique() > 1]
    return HtmlTable(name, headings, rows, filters)


def _cell(text: str, *, mark: bool = False) -> Cell:
    if mark:
        return Cell(text, "", text, text.partition(":")[0] if text.startswith(("red", "amber", "green")) else "")
    figure = re.fullmatch(r"([+-]?\d+\.\d) (\[[^\[\]]*\])", text)
    shown, interval = figure.groups() if figure else (text, "")
    return Cell(shown, interval, _order(text))


def _order(text: str) -> str:
    """Return the number that a cell opens with, so that ``9.5 [9.1, 9.9]`` and ``8/255`` sort so; else the text."""
    found = re.match(r"<?([+-]?[\d,]*\.?\d+)(?:/(\d+))?(?![\w.])", text)
    if not found:
        return text
    number = float(found[1].replace(",", "")) / float(found[2] or 1)
    return f"{number:.10g}"


def _datatables() -> tuple[str, str]:
    """Return the script (base64) and style of DataTables, as itables carries them for offline notebooks."""
    bundle = Path(itables_options.dt_bundle)
    return b64encode(bundle.read_bytes()).decode(), bundle.with_suffix(".css").read_text("utf-8")
