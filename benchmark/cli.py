"""The command line: words in, a call out. Nothing is done here."""

import inspect
import signal
import sys
from argparse import Action
from pathlib import Path
from typing import Any, NoReturn

from jsonargparse import ArgumentParser, DefaultHelpFormatter, Namespace

from benchmark.errors import BadInput

_EXAMPLES = {
    "run": "atbench run digits-common --methods pgd_at trades --seeds 0 1 2",
    "train": "atbench train trades --suite digits-common --seed 1",
    "evaluate": "atbench evaluate --model wrn.py:build --weights wrn.safetensors --dataset cifar10",
    "report": "atbench report reports/quickstart",
    "list": "atbench list methods",
    "show": "atbench show trades",
    "speed": "atbench speed trades mart",
}
_A_METHOD = "a name of `atbench list methods`, or FILE:CLASS of your own"
_A_DATASET = "a name of `atbench list datasets`, or FILE:OBJECT of your own"
_SUMMARIES = {
    "run": "train, attack and report a whole suite",
    "train": "train one method",
    "evaluate": "attack a model you already have",
    "report": "make tables and figures anew",
    "list": "list methods, suites, datasets or architectures",
    "show": "show one method",
    "speed": "measure what training costs beside natural training",
}


def main(words: list[str] | None = None) -> NoReturn:
    """Run ``atbench``; exit code 2 for input that a person can mend, 1 for a method that failed."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that workers are ended and temporary files removed
    parser = _parser()
    chosen = parser.parse_args(words)
    if chosen.command is None:
        parser.print_help()
        sys.exit(2)
    try:
        code = _COMMANDS[chosen.command](chosen[chosen.command])
    except BadInput as error:
        print(f"atbench: {error}", file=sys.stderr)
        code = 2
    except (PermissionError, NotADirectoryError, IsADirectoryError, FileExistsError) as error:
        print(f"atbench: {error.filename}: {error.strerror}", file=sys.stderr)
        code = 2
    except BrokenPipeError:  # the reader of our output went away, as `head` does
        sys.stderr.close()
        code = 0
    except KeyboardInterrupt:
        print("atbench: stopped; the same command goes on where it was", file=sys.stderr)
        code = 130
    sys.exit(code)


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="atbench",
        description="Adversarial training measured honestly: train, attack, tabulate, plot.",
        formatter_class=_Help,  # the commands take theirs from here
    )
    commands = parser.add_subcommands(required=False, dest="command")

    for name, add_words in _WORDS.items():
        description = inspect.cleandoc(add_words.__doc__ or "")
        command = ArgumentParser(description=description, epilog=f"example: {_EXAMPLES[name]}")
        add_words(command)
        commands.add_subcommand(name, command, help=_SUMMARIES[name])
    return parser


class _Help(DefaultHelpFormatter):
    """Help as its author wrote it, without the types that the parser would add."""

    def _get_help_string(self, action: Action) -> str:
        return action.help or ""


def _run_words(parser: ArgumentParser) -> None:
    """Train a suite's methods, attack what they trained, and make tables, figures and a page.

    A stopped run goes on where it was when the same command is given again.
    """
    parser.add_argument("suite", help="a name of `atbench list suites`, or a YAML file")
    parser.add_argument("--methods", nargs="+", metavar="NAME", help="only these (default: all of the suite)")
    mine = "a method of your own beside them: a subclass of methods.base.AdversarialTraining"
    parser.add_argument("--method", nargs="+", action="extend", default=[], metavar="FILE:CLASS", help=mine)
    family = "what yours is compared with, such as pgd_at,trades; of the suite only these run beside it"
    parser.add_argument("--against", nargs="+", metavar="NAME", help=family)
    parser.add_argument("--seeds", nargs="+", type=int, metavar="N", help="in place of the suite's")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="of the report (default: reports/SUITE)")
    parser.add_argument("--workers", type=int, metavar="N", help="processes (default: one per core, or per GPU)")
    _add_common(parser)


def _train_words(parser: ArgumentParser) -> None:
    """Train one method, in a suite's setting or in its published one.

    The weights and their card stay in a folder of their own.
    """
    parser.add_argument("method", nargs="?", help=f"{_A_METHOD}; not with --recipe")
    parser.add_argument("--suite", metavar="NAME", help="whose setting (default: digits-common)")
    recipe = "method and setting of a row of the survey, such as published/trades: see `atbench list suites`"
    parser.add_argument("--recipe", metavar="NAME", help=recipe)
    dry = "one step on two images and a short attack instead; works without the data set, and leaves nothing behind"
    parser.add_argument("--dry", action="store_true", help=dry)
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of every draw (default: 0)")
    _add_common(parser)


def _evaluate_words(parser: ArgumentParser) -> None:
    """Attack a model you already have.

    Nothing is trained; every image's verdict is written, and a stopped run resumes.
    """
    builder = "a function that returns an nn.Module from images in [0, 1] to logits, or a name of "
    radii = "in pixel units (default: 8/255); of several, AutoAttack runs at the last"
    attacks = "of pgd20, cw20, autoattack (default: these three), pgd20_any, and cw_l2 for the norm l2"
    add = parser.add_argument
    add("--model", required=True, metavar="FILE:BUILDER", help=f"{builder}`atbench list architectures`")
    add("--weights", required=True, type=Path, metavar="FILE", help="safetensors, or a PyTorch state dict")
    add("--dataset", required=True, metavar="NAME", help=_A_DATASET)
    add("--norm", default="linf", choices=["linf", "l2", "l1"], help="of the perturbation (default: linf)")
    add("--epsilon", nargs="+", type=str, default=["8/255"], metavar="FRACTION", help=radii)
    add("--attacks", nargs="+", default=["pgd20", "cw20", "autoattack"], metavar="NAME", help=attacks)
    add("--images", type=int, metavar="N", help="the first N test images (default: all)")
    add("--batch-size", type=int, default=200, metavar="N", help="images at once (default: 200)")
    add("--seed", type=int, default=0, metavar="N", help="of every draw (default: 0)")
    add("--name", metavar="NAME", help="in the tables (default: that of the weights file)")
    add("--output", type=Path, metavar="FOLDER", help="of the report (default: reports/evaluate-NAME)")
    _add_data(parser)


def _report_words(parser: ArgumentParser) -> None:
    """Make tables, figures and the page from the evidence in a folder; needs no GPU and no PyTorch."""
    parser.add_argument("folder", type=Path, help="such as reports/quickstart")


def _list_words(parser: ArgumentParser) -> None:
    """List what there is to choose from."""
    parser.add_argument("what", choices=["methods", "suites", "datasets", "architectures"], help="one of these words")


def _show_words(parser: ArgumentParser) -> None:
    """Show a method: paper, formula, steps, reading chosen, warnings, settings, and the figures published for it."""
    parser.add_argument("method", help=_A_METHOD)


def _speed_words(parser: ArgumentParser) -> None:
    """Measure what methods' trainings cost: passes, seconds beside natural training, memory.

    Each is trained for all its epochs on a few images, in turns with natural training and in one process. A stopped
    command goes on where it was; `atbench list methods` shows the figures.
    """
    parser.add_argument("method", nargs="*", help=f"{_A_METHOD} (default: all that are listed)")
    parser.add_argument("--methods", nargs="+", default=[], metavar="NAME", help="the same, as `atbench run` has it")
    parser.add_argument("--suite", default="digits-common", help="whose setting (default: digits-common)")
    shown = "CSV to add to (default: the one that `atbench list methods` shows)"
    parser.add_argument("--output", type=Path, metavar="FILE", help=shown)
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="timed trainings of each (default: 3)")
    parser.add_argument("--workers", type=int, metavar="N", help="processes (default: one per core, or per GPU)")
    changed = "change settings of the suite, such as recipe.epochs=2"
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help=changed)
    _add_data(parser)


def _add_common(parser: ArgumentParser) -> None:
    changed = "change settings of the suite, such as recipe.epochs=2"
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help=changed)
    together = "that train one method together: GPUs, or processes where there are none (default: 1)"
    parser.add_argument("--devices", type=int, default=1, metavar="N", help=together)
    machines = "machines; start the same command on each, with NODE_RANK, MASTER_ADDR and MASTER_PORT set (default: 1)"
    parser.add_argument("--num-nodes", type=int, default=1, metavar="M", help=machines)
    precisions = ["32-true", "bf16-mixed", "16-mixed"]
    parser.add_argument("--precision", choices=precisions, help="of training, in place of the suite's")
    shared = "share BatchNorm's statistics between GPUs"
    parser.add_argument("--sync-batchnorm", action="store_true", help=shared)
    parser.add_argument("--dataset", metavar="NAME", help=f"in place of the suite's: {_A_DATASET}")
    network = "in place of the suite's: a name of `atbench list architectures`, or FILE:BUILDER of your own"
    parser.add_argument("--network", metavar="NAME", help=network)
    kept = "of trained weights (default: checkpoints)"
    parser.add_argument("--checkpoints", type=Path, default=Path("checkpoints"), metavar="FOLDER", help=kept)
    listener = "tensorboard or wandb, beside the history.csv that is always written; may be given for each"
    parser.add_argument("--logger", action="append", default=[], metavar="NAME", help=listener)
    _add_data(parser)


def _add_data(parser: ArgumentParser) -> None:
    holds = "that holds the data sets as torchvision lays them out (default: $ATBENCH_DATA, or data)"
    parser.add_argument("--data-root", type=Path, metavar="FOLDER", help=holds)
    parser.add_argument("--download", action="store_true", help="fetch a data set that is missing")


def _run(chosen: Namespace) -> int:
    from benchmark import commands
    from benchmark.devices import Devices

    return commands.run(
        chosen.suite,
        methods=chosen.methods,
        seeds=chosen.seeds,
        changes=_changes(chosen),
        output=chosen.output,
        checkpoints=chosen.checkpoints,
        devices=Devices(chosen.devices, chosen.num_nodes),
        data_root=chosen.data_root,
        download=chosen.download,
        loggers=tuple(chosen.logger),
        processes=_positive("--workers", chosen.workers),
        own=chosen.method,
        against=_names(chosen.against),
        dataset=chosen.dataset,
        network=chosen.network,
    )


def _train(chosen: Namespace) -> int:
    from benchmark import commands
    from benchmark.devices import Devices

    return commands.train(
        chosen.method,
        chosen.suite,
        recipe=chosen.recipe,
        dry=chosen.dry,
        seed=chosen.seed,
        changes=_changes(chosen),
        checkpoints=chosen.checkpoints,
        devices=Devices(chosen.devices, chosen.num_nodes),
        data_root=chosen.data_root,
        download=chosen.download,
        dataset=chosen.dataset,
        network=chosen.network,
        loggers=tuple(chosen.logger),
    )


def _evaluate(chosen: Namespace) -> int:
    from benchmark import own_model
    from benchmark.suite import Evaluation

    settings = Evaluation(
        epsilons=chosen.epsilon,
        ranked_at=chosen.epsilon[-1:],
        attacks=chosen.attacks,
        images=_positive("--images", chosen.images),
        batch_size=_positive("--batch-size", chosen.batch_size),
        checkpoints=["last"],
        seed=chosen.seed,
    )
    return own_model.evaluate_file(
        chosen.model,
        chosen.weights,
        dataset=chosen.dataset,
        norm=chosen.norm,
        settings=settings,
        name=chosen.name,
        output=chosen.output,
        data_root=chosen.data_root,
        download=chosen.download,
    )


def _changes(chosen: Namespace) -> dict[str, Any]:
    """Read what a person changes of a suite; the options that stand for a key come first."""
    from benchmark.suite import read_change

    options = {"precision": chosen.precision, "sync_batchnorm": chosen.sync_batchnorm or None}
    return {key: value for key, value in options.items() if value is not None} | dict(map(read_change, chosen.set))


def _report(chosen: Namespace) -> int:
    from benchmark.report import build
    from benchmark.results.alarms import sentences
    from benchmark.results.cards import read_cards

    build(chosen.folder)
    for sentence in sentences(read_cards(chosen.folder).contents):
        print(f"alarm: {sentence}", file=sys.stderr)
    print(chosen.folder / "index.html")
    return 0


def _list(chosen: Namespace) -> int:
    from benchmark import inspection

    print("\n".join(inspection.listing(chosen.what)))
    return 0


def _show(chosen: Namespace) -> int:
    from benchmark.method_page import page

    print(page(chosen.method))
    return 0


def _speed(chosen: Namespace) -> int:
    from benchmark.speed import speed
    from benchmark.suite import read_change

    return speed(
        _names([*chosen.method, *chosen.methods]) or [],
        chosen.suite,
        changes=dict(map(read_change, chosen.set)),
        output=chosen.output,
        repeats=_positive("--repeats", chosen.repeats),
        processes=_positive("--workers", chosen.workers),
        data_root=chosen.data_root,
        download=chosen.download,
    )


def _names(words: list[str] | None) -> list[str] | None:
    """Split names at commas as well as at spaces."""
    return None if words is None else [name for word in words for name in word.split(",") if name]


def _positive(option: str, value: Any) -> Any:
    if value is not None and value < 1:
        raise BadInput(f"{option} is 1 or more, but found {value}")
    return value


_WORDS = {
    "run": _run_words,
    "train": _train_words,
    "evaluate": _evaluate_words,
    "report": _report_words,
    "list": _list_words,
    "show": _show_words,
    "speed": _speed_words,
}
_COMMANDS = {
    "run": _run,
    "train": _train,
    "evaluate": _evaluate,
    "report": _report,
    "list": _list,
    "show": _show,
    "speed": _speed,
}

if __name__ == "__main__":
    main()
