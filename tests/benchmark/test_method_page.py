"""What `atbench show` says of a method: all of it from its docstring, the bibliography and the survey's tables."""

import inspect
import os
import re
import subprocess
import sys
from importlib import resources

import pytest

from benchmark.docstrings import LEADS, describe, numbered
from benchmark.experiment import resolve
from benchmark.method_page import page
from benchmark.results import references, survey
from benchmark.results.method_warnings import named, of_method
from benchmark.unicode_math import readable
from methods import catalogue

every_method = pytest.mark.parametrize("key", catalogue.names())


def part(text, heading):
    """The lines below a heading, up to the next empty one, as one line."""
    below = re.split(rf"^{re.escape(heading)}.*$", text, maxsplit=1, flags=re.MULTILINE)[1]
    return " ".join(below.strip("\n").split("\n\n")[0].split())


@every_method
def test_a_methods_docstring_says_all_that_is_shown(key):
    said = describe(catalogue.get(key))
    assert said.summary.endswith(".")
    assert said.equations
    assert said.source
    assert len(said.steps) >= 2
    assert all(step.endswith(".") for step in [*said.steps, *said.readings, *said.warnings])
    own = {name for name in resolve(key, {}, inner_steps=2) if name != "inner"}
    assert own <= said.settings.keys()


@every_method
def test_a_method_names_a_paper_that_the_bibliography_has(key):
    card = catalogue.get(key).card
    if key == "natural":
        assert card.citation == ""
        return
    entry = references.references()[card.citation]
    assert {"title", "author", "year"} <= entry.keys()
    said = describe(catalogue.get(key)).source
    first_author = entry["author"].split(",")[0].split()[-1]
    assert first_author in said
    assert entry["year"] in said
    if "arXiv" in said:
        assert re.search(r"arXiv:\d+\.\d+", said)[0] in entry["note"]


@every_method
def test_the_page_shows_every_part(key):
    text, said, warned = page(key, 100), describe(catalogue.get(key)), of_method(key)
    assert text.startswith(f"{named(key, warned.note)}: {catalogue.get(key).__name__}")
    if key != "natural":
        assert references.citation(catalogue.get(key).card.citation) in part(text, "Paper")
    assert all(" ".join(equation.split()) in part(text, "Objective") for equation in said.equations)
    assert [f"{number}. {step}" for number, step in enumerate(said.steps, 1)] == re.split(
        r" (?=\d\. [A-Z])", part(text, "One training step")
    )
    for heading, shown in (("Reading chosen", said.readings), ("Warnings", [*warned.sentences, *said.warnings])):
        assert (f"\n{heading}\n" in text) == bool(shown)
        for words in shown:
            assert words[1:] in part(text, heading)
    for name, value in resolve(key, {}, inner_steps=10).items():
        for row in value if isinstance(value, dict) else [None]:
            assert re.search(rf"^  {name}{f'.{row}' if row else ''} ", text, re.MULTILINE)
    assert not re.search(r"``|:math:|:meth:|\\[a-z]", text)  # nothing of the markup is left


@every_method
@pytest.mark.parametrize("width", [60, 80, 110])
def test_no_line_is_wider_than_asked_for_but_for_a_word_that_long(key, width):
    for line in page(key, width).splitlines():
        assert len(line) <= width
        assert line == line.rstrip()


def test_a_pipe_gets_plain_lines_of_80_characters_and_no_colour():
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    command = [sys.executable, "-m", "benchmark.cli", "show", "trades"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, encoding="utf-8")
    assert shown.stdout == page("trades", 80) + "\n"
    assert "\x1b" not in shown.stdout


@every_method
def test_rows_of_table_1_are_shown_as_printed_and_as_they_should_be_read(key):
    shown = part(page(key, 110), "Published")
    rows = survey.table1()
    for row in rows[rows.method_key == key].to_dict("records"):
        printed = f"{row['architecture']}, {row['attack']}, epsilon {row['epsilon']}, {row['dataset']}"
        assert f"as printed row {row['order']}: {printed}" in shown
        read = f"{row['network_read']} on {row['dataset_read']}, trained at epsilon {row['train_epsilon']}"
        assert f"{read}, attacked at {row['eval_epsilon']}" in shown
        for column in ("variant", "checkpoint", "comparable_with_standard", "note", "reading_confidence"):
            assert row[column] in shown
    if not (rows.method_key == key).any():
        assert "none" in shown


@every_method
def test_third_party_figures_are_shown_with_their_source(key):
    shown = part(page(key, 110), "AutoAttack by third parties")
    table = survey.external_autoattack()
    for row in table[table.method_key == key].to_dict("records"):
        if row["autoattack_acc"]:
            assert f"{row['autoattack_acc']}, clean {row['clean_acc']}: " in shown
            assert f"{row['source']} {row['model_id']}".strip() in shown
        assert row["note"] in shown


def test_what_is_not_known_is_left_out():
    shown = part(page("pgd_at", 110), "Published")
    assert "accuracy missing in our copy" in shown
    assert "from elsewhere 53.49 (MadryLab/robustness README); not the survey's figure" in shown
    assert "variant MadryLab/robustness model" in shown
    assert "20 steps of 1/255" in shown
    assert "iterate" not in shown  # nobody knows which one counted
    assert "random start" not in shown
    assert "from elsewhere" not in page("trades", 110)
    assert "iterate that counts: last" in part(page("mart", 110), "Published")


def documented():
    r"""Do it well. And this belongs to the summary.

    .. math:: a = \beta\, b,
        \quad c

    where :math:`\beta` is ``b``. Source: Someone et al., 2020. Reading: this one; not that one.

    Steps: 1. Take 2. 5 of them, or 3. 2. Put them back. 3. End.

    Warning: one. Warning: two.

    Args:
        beta: weight; see :meth:`more`,
            on two lines.
        one, other: both.
    """


def test_lead_words_part_a_docstring():
    said = describe(documented)
    assert said.summary == "Do it well. And this belongs to the summary."
    assert said.equations == ["a = β b,   c"]
    assert said.text == ["where β is b."]
    assert said.source == "Someone et al., 2020."
    assert said.readings == ["this one; not that one."]
    assert said.steps == ["Take 2. 5 of them, or 3.", "Put them back.", "End."]
    assert said.warnings == ["one.", "two."]
    assert said.settings == {"beta": "weight; see more, on two lines.", "one": "both.", "other": "both."}


def test_a_class_of_a_persons_own_may_say_nothing():
    said = describe(type("Mine", (), {}))
    assert (said.summary, said.steps, said.settings) == ("", [], {})


def test_what_has_no_numbers_is_one_step():
    assert numbered("Just do it.") == ["Just do it."]
    assert numbered("") == []


@pytest.mark.parametrize(
    ("latex", "shown"),
    [
        (r"CE(f(x), y) + \beta\, KL(p(x) \| p(x'))", "CE(f(x), y) + β KL(p(x) ‖ p(x'))"),
        (r"x' = \arg\max_{\|x' - x\| \le \epsilon} CE", "x' = arg max_(‖x' - x‖ ≤ ε) CE"),
        (r"a, \quad b", "a,   b"),
        (r"\hat\epsilon_i + \bar{x}", "ε\u0302_i + x\u0304"),
        (r"\frac{1}{K} \sum_k \mathrm{sign}\,\nabla", "1/K Σ_k sign ∇"),
        (r"\frac{a + b}{K}", "(a + b)/K"),
        (r"10^{-12} x_0 x^2", "10⁻¹² x₀ x²"),
        (r"\min_{k \ne y} \{q_k\}", "min_(k ≠ y) {q_k}"),
        (r"\log\det(M), \tfrac{1}{K} \tilde p_k", "log det(M), 1/K p\u0303_k"),
        (r"\unheardof{x}", "unheardofx"),
    ],
)
def test_formulas_are_spelt_in_unicode(latex, shown):
    assert readable(latex) == shown


def test_a_reference_is_written_with_its_authors_in_full():
    assert references.citation("madry2018towards") == (
        "Aleksander Madry, Aleksandar Makelov, Ludwig Schmidt, Dimitris Tsipras, Adrian Vladu. Towards Deep Learning "
        "Models Resistant to Adversarial Attacks. International Conference on Learning Representations (ICLR), 2018. "
        "arXiv:1706.06083"
    )
    assert references.citation("nobody2020nothing") == ""


@pytest.mark.parametrize(
    ("latex", "shown"),
    [(r"Tram{\`e}r", "Tramèr"), (r"Mo{\"o}r", "Moör"), (r"\v{S}uch", "Šuch"), (r"{\o}re {\&} co", "øre & co")],
)
def test_accents_are_letters(latex, shown):
    assert references._plain(latex) == shown


def test_every_entry_of_the_bibliography_is_read():
    found = references.references()
    assert len(found) >= 9
    assert all({"title", "author", "year"} <= entry.keys() for entry in found.values())


def test_every_entry_of_the_bibliography_is_closed_and_there_once():
    text = resources.files("benchmark.results").joinpath("survey", "references.bib").read_text("utf-8")
    entries = re.split(r"^(?=@)", text, flags=re.MULTILINE)[1:]
    assert [entry.splitlines()[0] for entry in entries if entry.count("{") != entry.count("}")] == []
    assert len(entries) == len(references.references())


def test_the_lead_words_are_those_that_the_contributors_are_told():
    told = inspect.getdoc(sys.modules["benchmark.docstrings"])
    assert all(f"{lead}: " in told for lead in LEADS)
