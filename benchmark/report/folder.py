"""Fill a report folder with its tables, figures and page: the one place that saves."""

from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from benchmark.report import credibility, engines, figures, generalization_figures, markup, table, unseen
from benchmark.report.coverage import readable_coverage
from benchmark.report.generalization_figures import tradeoff
from benchmark.report.page import page
from benchmark.report.published_figure import published_vs_measured
from benchmark.report.summary import Summary, summarise
from benchmark.results import manifest
from benchmark.results.coverage import summed_up
from benchmark.storage import write_bytes, write_text

FIGURES: tuple[Callable[[Summary], Figure], ...] = (
    figures.clean_vs_robust,
    figures.accuracy_over_epsilon,
    figures.attack_ladder,
    figures.cost_vs_robustness,
    tradeoff,
    published_vs_measured,
)


def build(folder: Path) -> list[Path]:
    """Write leaderboard, tables, figures and ``index.html`` of the evidence in ``folder``; return their paths.

    Last comes the manifest, with the SHA-256 of every file that is there: :mod:`benchmark.results.manifest`.
    Works on part of a suite too: what is not there is empty. Equal evidence gives equal bytes.

    Raises:
        BadInput: the folder or its suite is missing, nothing was run, or a card or part file is damaged.
    """
    folder = Path(folder)
    summary = summarise(folder)
    draws = [*FIGURES, *([figures.unseen_attacks] if len(summary.unseen) else [])]
    draws += [generalization_figures.generalization] if len(summary.generalization) and FIGURES else []
    pictures = {draw.__name__: rendered(draw, summary) for draw in draws}
    written = [write_text(folder / name, text) for name, text in tables(summary).items()]
    for name, formats in pictures.items():
        written += [write_bytes(folder / "figures" / f"{name}.{kind}", content) for kind, content in formats.items()]
    beside = [path.relative_to(folder).as_posix() for path in written]
    embedded = {name: formats["png"] for name, formats in pictures.items()}
    written.append(write_text(folder / "index.html", page(summary, embedded, beside)))
    return [*written, manifest.write(folder)]


def rendered(draw: Callable[[Summary], Figure], summary: Summary) -> dict[str, bytes]:
    """Return a figure as bytes of ``png`` and ``pdf``: without dates, and whatever the reader's matplotlibrc says."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams["pdf.fonttype"] = 42  # text that can be searched and edited
        figure = draw(summary)
        figure.get_layout_engine().set(w_pad=0.09, h_pad=0.09)  # type: ignore[union-attr, call-arg]
        png = _saved(figure, "png", {"Software": None})
        figure.set_layout_engine("none")  # laid out once is enough
        return {
            "png": png,
            "pdf": _saved(figure, "pdf", {"CreationDate": None, "Producer": None, "Creator": None}),
        }


def _saved(figure: Figure, kind: str, metadata: dict[str, None]) -> bytes:
    buffer = BytesIO()
    figure.savefig(buffer, format=kind, dpi=160, facecolor="white", metadata=metadata)
    return buffer.getvalue()


def tables(summary: Summary) -> dict[str, str]:
    """Give the text of each table, by the name of its file: CSV for programs, Markdown and LaTeX for readers."""
    suite = summary.suite
    frames = {
        "leaderboard": summary.leaderboard,
        "accuracy": summary.accuracy if summary.accuracy.fold.nunique() > 1 else summary.accuracy.drop(columns="fold"),
        "autoattack_stages": summary.autoattack_stages,
        "comparisons": summary.comparisons,
        "table1": summary.table1,
        "costs": summary.costs,
        "alarm": summary.alarm,
        "credibility": summary.credibility,
        "tradeoff": summary.tradeoff,
        "coverage": summary.coverage,
    }
    if len(summary.unseen):  # of suites that ask for such attacks
        frames["unseen"] = summary.unseen
    if len(summary.generalization):  # of suites that ask for curves
        frames |= {"generalization": summary.generalization, "generalization_gaps": summary.gaps}
    if len(summary.recovered):  # of suites with semi-supervised methods
        frames["recovered"] = summary.recovered
    if len(summary.rejection):  # of suites with methods that may reject
        frames["rejection"] = summary.rejection
    found = {f"{name}.csv": markup.csv(frame, suite.note, summary.note) for name, frame in frames.items()}
    readable = {
        "leaderboard": (
            table.readable_leaderboard(summary),
            f"{suite.title}: leaderboard",
            engines.sentence(summary.leaderboard),
        ),
        "table1": (
            table.readable_table1(summary),
            f"{suite.title}: the survey's Table 1 beside what was measured",
            engines.sentence(summary.table1, "method_key", "measured_engine"),
        ),
    }
    if len(summary.unseen):
        readable["unseen"] = (table.readable_unseen(summary), f"{suite.title}: attacks not trained on", unseen.FOOT)
    if len(summary.rejection):
        title = f"{suite.title}: judged at a confidence threshold"
        readable["rejection"] = (table.readable_rejection(summary), title, "")
    for name, (frame, title, foot) in readable.items():
        found[f"{name}.md"] = markup.markdown(frame, title, suite.track, suite.note, foot)
        found[f"{name}.tex"] = markup.latex(frame, title, suite.track, suite.note, f"tab:{name}", foot)
    known = {method: summary.named(method) for method in summary.methods}
    found["coverage.md"] = markup.markdown(
        readable_coverage(summary.coverage, summary.named),
        f"{suite.title}: how much of the survey is here",
        suite.track,
        suite.note,
        summed_up(summary.coverage),
    )
    found["credibility.md"] = credibility.markdown(summary.credibility, summary.leaderboard, known, suite)
    return found
