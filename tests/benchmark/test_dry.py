"""A dry run: one step and a short attack of what would be trained, with or without data; nothing is left behind."""

import pytest

from benchmark import data, published
from benchmark.dry import dry_run
from benchmark.experiment import plan
from benchmark.suite import load
from methods import catalogue


@pytest.fixture(autouse=True)
def no_data(monkeypatch, tmp_path):
    """Stand in an empty folder, with no data set to be found."""
    monkeypatch.delenv("ATBENCH_DATA", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("method", catalogue.names())
def test_every_method_takes_its_dry_step_on_digits(method, atbench, capsys, tmp_path):
    assert atbench("train", method, "--suite", "digits-common", "--dry") == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "digits-common"
    assert said[1].startswith("network: digits_cnn, ")
    assert said[2] == "images: 2 of 1x8x8, the first images of digits"
    assert said[3].startswith(f"training: one step of {method}, loss ")
    assert said[4].startswith("attack: PGD-2 at 0.15, ce, fools ")
    assert not list(tmp_path.iterdir())


def test_a_recipe_is_tried_out_on_random_images_where_its_data_set_is_absent(atbench, capsys, tmp_path):
    assert atbench("train", "--recipe", "published/adp", "--dry") == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "published/adp"
    assert said[1].startswith("network: resnet20, ")
    assert said[1].endswith(" parameters, 100 classes")
    assert said[2] == "images: 2 of 3x32x32, random images and labels, because cifar100 is not here"
    assert said[4].startswith("attack: PGD-2 at 0.005, ce, ")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["cifar10_tiny", "tiny_imagenet"])
def test_a_data_set_without_a_reader_is_tried_out_in_its_shape(name):
    suite = load("digits-common", {"dataset": {"name": name, "labels": 100}, "methods": {"rst": {}}})
    done = str(dry_run(plan(suite)[0], suite.evaluation))
    known = data.describe(name)
    assert f"2 of 3x{known.size}x{known.size}, random images and labels, because {name} has no reader yet" in done


@pytest.mark.parametrize("name", data.described_only())
def test_a_data_set_without_a_reader_cannot_be_loaded(name):
    with pytest.raises(data.MissingData, match=f"{name} is described, but not readable yet: only `atbench train"):
        data.load(name)


def test_a_deep_network_whose_first_statistics_would_overflow_is_attacked_all_the_same():
    deep = {"network": {"name": "torchvision/resnet152"}, "dataset": {"name": "tiny_imagenet"}}
    suite = load("digits-common", {**deep, "methods": {"natural": {}}, "recipe.learning_rate": 3.0})
    assert "attack: PGD-2 at 0.15, ce, fools " in str(dry_run(plan(suite)[0], suite.evaluation))


def test_a_dry_run_may_be_repeated_to_the_last_digit(capsys, atbench):
    said = []
    for _ in range(2):
        assert atbench("train", "trades", "--dry", "--seed", "3") == 0
        said.append(capsys.readouterr().out.partition("loss ")[2][:6])
    assert said[0] == said[1]


def test_a_recipe_whose_data_are_missing_is_not_trained_and_says_so(atbench, capsys, tmp_path):
    assert atbench("train", "--recipe", "published/adp") == 2
    assert "cifar100 is not in " in capsys.readouterr().err
    assert atbench("train", "--recipe", "published/avmixup") == 2
    assert "tiny_imagenet is described, but not readable yet" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_recipe_of_ones_own_is_trained(atbench, capsys, tmp_path):
    small = "based_on: digits-common\nname: mine\nmethods: {fast_at: }\nrecipe: {epochs: 1}\n"
    (tmp_path / "mine.yaml").write_text(small + "dataset: {train_images: 64, validation_images: 20}\n")
    assert atbench("train", "--recipe", "mine.yaml") == 0
    (folder,) = (tmp_path / "checkpoints").iterdir()
    assert folder.name.startswith("fast_at-digits-s0-")
    assert (folder / "last.safetensors").is_file()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "train takes a METHOD, as in `atbench train trades`, or --recipe, as published/trades"),
        (["--dry"], "train takes a METHOD"),
        (["trades", "--recipe", "published/mart"], "leave out the method trades, or --recipe"),
        (["--recipe", "published/mart", "--suite", "quickstart"], "leave out --suite quickstart, or --recipe"),
        (["--recipe", "mart"], "did you mean published/mart?"),
        (["--recipe", "quickstart"], "--recipe takes a suite of one method"),
        (["--recipe", "published/mart", "--dry", "--set", "recipe.epoch=2"], "did you mean epochs?"),
    ],
)
def test_what_is_trained_is_said_once(words, says, atbench, capsys, tmp_path):
    assert atbench("train", *words) == 2
    told = capsys.readouterr().err
    assert says in told
    assert "Traceback" not in told
    assert not list(tmp_path.iterdir())


def test_the_rows_attack_is_measured_and_has_its_columns(atbench, capsys, tmp_path):
    row = "row: {epsilon: 0.15, steps: 3, loss: margin}"
    attacks = "attacks: [row, pgd20], images: 20, batch_size: 20, epsilons: [0.15], ranked_at: [0.15]"
    (tmp_path / "mine.yaml").write_text(
        "based_on: digits-common\nname: mine\ntrack: published\nmethods: {pgd_at: }\nrecipe: {epochs: 1}\n"
        "dataset: {train_images: 64, validation_images: 20}\n"
        f"evaluation: {{{attacks}, {row}}}\n"
    )
    assert atbench("run", "mine.yaml", "--output", "report") == 0
    board = (tmp_path / "report" / "leaderboard.csv").read_text().splitlines()
    line = dict(zip(board[0].split(","), board[1].split(","), strict=False))
    assert 0 <= float(line["row"]) <= 1
    assert "row's attack" in (tmp_path / "report" / "leaderboard.md").read_text()
    assert "ours: row's attack" in (tmp_path / "report" / "table1.md").read_text()
    assert len(list((tmp_path / "report" / "evidence").glob("*/last/row@0.15/part-*.parquet"))) == 1
    assert not list((tmp_path / "report" / "evidence").glob("*/best/row@*"))
    assert "epsilon 0.15, steps 3, loss margin, target none" in (tmp_path / "report" / "index.html").read_text()
    capsys.readouterr()
    assert atbench("run", "mine.yaml", "--output", "report") == 0
    assert "everything in mine is finished already" in capsys.readouterr().err
    stronger = ["--set", "evaluation.row.steps=4"]
    assert atbench("run", "mine.yaml", "--output", "report", *stronger) == 2
    assert "holds results measured with another evaluation.row.steps" in capsys.readouterr().err


def test_without_a_rows_attack_there_are_no_columns_for_it(atbench, tmp_path):
    small = ["recipe.epochs=1", "dataset.train_images=64", "evaluation.attacks=[pgd20]", "evaluation.images=20"]
    assert atbench("run", "quickstart", "--methods", "natural", "--output", "report", "--set", *small) == 0
    for name in ("leaderboard", "table1"):
        headings = (tmp_path / "report" / f"{name}.csv").read_text().splitlines()[0].split(",")
        assert not [heading for heading in headings if heading in ("row", "row_low", "measured_row")]
    assert "row's attack" not in (tmp_path / "report" / "leaderboard.md").read_text()


def test_a_recipe_that_comes_with_the_project_can_be_planned_without_its_data():
    for name in ("published/rst", "published/mart"):
        (experiment,) = plan(published.load(name))
        assert experiment.recipe == published.load(name).recipe
