"""What readers see: the page, the text tables, the figures; names are hostile, methods are one or fifty."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_hex

from benchmark.report import build, figures
from benchmark.report.markup import latex_escaped, markdown_escaped
from benchmark.report.published_figure import published_vs_measured
from benchmark.report.style import epsilon_text, in_255ths, looks, spread
from benchmark.report.summary import summarise
from tests.benchmark.make_report import FEW, NOTE, make_report, write_card, write_failure, write_suite

HOSTILE = "<script>alert(1)</script>|100%_&$x$"
FIGURES = [
    figures.clean_vs_robust,
    figures.accuracy_over_epsilon,
    figures.attack_ladder,
    figures.cost_vs_robustness,
    published_vs_measured,
]


class Page(HTMLParser):
    """Collects tags, addresses and the cells of tables, as a browser without JavaScript would see them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags, self.addresses, self.cells, self._inside = [], [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in {"src", "href", "action", "data"}]
        self._inside = tag in {"td", "th"}
        if self._inside:
            self.cells.append("")

    def handle_endtag(self, tag):
        self._inside = self._inside and tag not in {"td", "th"}

    def handle_data(self, data):
        if self._inside:
            self.cells[-1] += data


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    folder = make_report(tmp_path_factory.mktemp("hostile"), {"pgd_at": 0.28, HOSTILE: 0.2}, images=60)
    write_suite(folder, ["pgd_at", HOSTILE, "mart"], images=60, title="A <b>bold</b> title")
    write_failure(folder, "mart", error="</pre><img src=x onerror=alert(1)>")
    build(folder)
    return folder


@pytest.fixture(scope="module")
def page(hostile):
    return Page((hostile / "index.html").read_text())


def test_the_page_loads_nothing_from_elsewhere(page):
    for address in page.addresses:
        assert address.startswith(("#", "data:image/png;base64,")) or re.fullmatch(r"[\w./-]+", address), address
    assert not {"link", "iframe", "object", "base"} & set(page.tags)


def test_every_linked_file_stands_beside_the_page(page, hostile):
    for address in page.addresses:
        if not address.startswith(("#", "data:")):
            assert (hostile / address).is_file()


def test_names_are_shown_and_never_obeyed(page, hostile):
    assert HOSTILE in page.cells
    assert page.tags.count("script") == 2  # ours
    assert "b" not in page.tags
    assert all(address != "x" for address in page.addresses)
    assert "<script>alert" not in (hostile / "leaderboard.md").read_text()


def test_without_javascript_the_tables_are_complete(page):
    assert {"worst case", "AutoAttack by others", "robust accuracy is"} <= set(page.cells)
    assert sum(cell == "trades" for cell in page.cells) == 2  # its row of Table 1, and in what is here of the survey


def test_the_warning_stands_in_page_csv_markdown_and_latex(hostile):
    for name in ("leaderboard", "table1"):
        for kind in ("csv", "md", "tex"):
            assert NOTE[1:] in (hostile / f"{name}.{kind}").read_text()
    assert NOTE[1:] in (hostile / "index.html").read_text()


def test_a_markdown_row_keeps_its_number_of_cells(hostile):
    lines = [line for line in (hostile / "leaderboard.md").read_text().splitlines() if line.startswith("|")]
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1
    assert len(lines) == 7  # heading, rule, two methods on two checkpoints, one failure


@pytest.mark.parametrize(
    ("text", "latex", "markdown"),
    [
        ("pgd_at", r"pgd\_at", "pgd_at"),
        ("_x_", r"\_x\_", r"\_x\_"),
        ("50% & more", r"50\% \& more", "50% &amp; more"),
        ("a|b", r"a\textbar{}b", r"a\|b"),
        (r"\input{x}", r"\textbackslash{}input\{x\}", r"\\input{x}"),
        ("[a](b)", "[a](b)", r"[a]\(b)"),
        ("1\N{EN DASH}2", "1--2", "1\N{EN DASH}2"),
    ],
)
def test_special_characters_are_printed_and_not_obeyed(text, latex, markdown):
    assert latex_escaped(text) == latex
    assert markdown_escaped(text) == markdown


@pytest.mark.parametrize(
    ("epsilon", "text"),
    [(8 / 255, "8/255"), (0.15, "0.15"), (0.2, "0.2"), (0.031, "0.031"), (0.3, "0.3"), (2 / 255, "2/255")],
)
def test_epsilons_are_written_as_their_authors_write_them(epsilon, text):
    assert epsilon_text(epsilon) == text


def test_an_axis_counts_in_255ths_only_when_the_epsilons_do():
    assert in_255ths([0.0, 2 / 255, 8 / 255])
    assert not in_255ths([0.05, 0.1, 0.15])
    assert not in_255ths([0.2])


@given(st.integers(1, 70))
def test_each_method_has_a_look_of_its_own(count):
    found = looks(["natural", "pgd_at", *(f"method {place}" for place in range(count))])
    assert len(set(found.values())) == count + 2


@given(st.lists(st.floats(0, 1), min_size=1, max_size=15))
def test_labels_keep_their_distance_and_stay_in_range(wanted):
    placed = spread(wanted, 0.04, 0.0, 1.0)
    assert min(placed) >= 0
    assert max(placed) <= 1 + 1e-12
    assert (np.diff(np.sort(placed)) >= 0.04 - 1e-12).all()
    assert (np.argsort(placed, kind="stable") == np.argsort(wanted, kind="stable")).all()


@pytest.fixture(scope="module")
def crowd(tmp_path_factory):
    methods = {f"method_number_{place}": 0.1 + 0.004 * place for place in range(48)} | {"pgd_at": 0.28, "natural": 0.05}
    return summarise(make_report(tmp_path_factory.mktemp("crowd"), methods, images=20, attacked=FEW))


@pytest.mark.parametrize("draw", FIGURES)
def test_figures_are_laid_out_for_fifty_methods(crowd, draw, recwarn, tmp_path):
    draw(crowd).savefig(tmp_path / "x.png", dpi=40)
    assert not recwarn.list


def test_figures_are_laid_out_for_one_method_and_none(recwarn, tmp_path):
    make_report(tmp_path / "one", {"mine": 0.2}, images=20, attacked=FEW)
    write_suite(tmp_path / "none")
    write_card(tmp_path / "none", "pgd_at")
    for summary in (summarise(tmp_path / "one"), summarise(tmp_path / "none")):
        for draw in FIGURES:
            draw(summary).savefig(tmp_path / "x.png", dpi=40)
    assert not recwarn.list


def test_a_method_looks_the_same_in_every_figure(tmp_path):
    summary = summarise(make_report(tmp_path, {"pgd_at": 0.28, "trades": 0.27, "mart": 0.2}, images=30, attacked=FEW))
    wanted = looks(summary.methods)["trades"]
    for draw in FIGURES:
        lines = [line for axes in draw(summary).axes for line in axes.get_lines()]
        assert any(
            (line.get_marker(), to_hex(line.get_color())) == (wanted.marker, wanted.colour.lower()) for line in lines
        )


def test_table_1_without_a_measurement_says_so_in_its_figure(tmp_path):
    summary = summarise(make_report(tmp_path, {"mine": 0.2}, images=20, attacked=FEW))
    texts = [text.get_text() for text in published_vs_measured(summary).axes[0].texts]
    assert "None of the survey's rows has been measured in this suite yet." in texts


def test_carried_verdicts_are_drawn_open(tmp_path):
    summary = summarise(make_report(tmp_path, {"pgd_at": 0.28}, images=20))
    carried = summary.figures.assign(carried=summary.figures.epsilon == 0.1)
    summary = summary.__class__(**{**vars(summary), "figures": carried})
    lines = figures.accuracy_over_epsilon(summary).axes[0].get_lines()
    open_ones = [line for line in lines if line.get_marker() == "o" and to_hex(line.get_markerfacecolor()) == "#ffffff"]
    assert [line.get_xdata().tolist() for line in open_ones] == [[0.1]]
