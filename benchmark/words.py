"""The words that each command understands; what is done with them is in :mod:`benchmark.cli`."""

import inspect
from collections.abc import Callable
from pathlib import Path

from jsonargparse import ArgumentParser

_EXAMPLES = {
    "run": "atbench run digits-common --methods pgd_at trades --seeds 0 1 2",
    "train": "atbench train trades --suite digits-common --seed 1",
    "evaluate": "atbench evaluate --model wrn.py:build --weights wrn.safetensors --dataset cifar10",
    "report": "atbench report reports/quickstart",
    "verify": "atbench verify reports/quickstart",
    "list": "atbench list methods",
    "show": "atbench show trades",
    "speed": "atbench speed trades mart",
    "speed-attack": "atbench speed attack --model wrn.py:build --weights wrn.safetensors --dataset cifar10 --images 64",
}
_A_METHOD = "a name of `atbench list methods`, or FILE:CLASS of your own"
_PRECISIONS = ["fp32", "tf32", "bf16"]
_A_DATASET = "a name of `atbench list datasets`, or FILE:OBJECT of your own"
_SUMMARIES = {
    "run": "train, attack and report a whole suite",
    "train": "train one method",
    "evaluate": "attack a model you already have",
    "report": "make tables and figures anew",
    "verify": "recheck a report from its evidence, weights and pictures",
    "list": "list methods, suites, datasets or architectures",
    "show": "show one method",
    "speed": "measure what training costs beside natural training",
    "speed-attack": "measure what AutoAttack costs on either engine: atbench speed attack",
}


def commands() -> dict[str, tuple[ArgumentParser, str]]:
    """Give each command's parser and its line in the list of commands."""
    made = {}
    for name, add_words in _WORDS.items():
        parser = ArgumentParser(
            description=inspect.cleandoc(add_words.__doc__ or ""), epilog=f"example: {_EXAMPLES[name]}"
        )
        add_words(parser)
        made[name] = parser, _SUMMARIES[name]
    return made


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
    _add_engine(parser, None)
    _add_compile(parser)
    _add_pictures(parser)
    _add_credibility(parser)
    _add_sweep(parser)
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
    scale = (
        "multiplies the logits, so that attacks see others: 15 for a network that gives raw cosines, or 1/15 to see "
        "what its raw cosines hide (default: 1)"
    )
    radii = "in pixel units (default: 8/255); of several, AutoAttack runs at the last, or with --sweep at all"
    attacks = (
        "of pgd20, cw20, autoattack (default: these three), pgd20_any, cw_l2 for the norm l2, autoattack_plus, "
        "autoattack_rand for networks that answer at random, and autoattack_custom; quick is nearly AutoAttack at a "
        "fifteenth of its passes, for development, and is never ranked"
    )
    custom = "what autoattack_custom runs, of apgd-ce, apgd-dlr, apgd-t, fab, fab-t, square"
    searched = "of our engine's search: fp32 is strict; every success is confirmed in fp32 (default: fp32)"
    together = "images at once, or auto: AutoAttack's by a short probe (default: 200; AutoAttack 64, 512 on a GPU)"
    add = parser.add_argument
    add("--model", required=True, metavar="FILE:BUILDER", help=f"{builder}`atbench list architectures`")
    add("--weights", required=True, type=Path, metavar="FILE", help="safetensors, or a PyTorch state dict")
    add("--dataset", required=True, metavar="NAME", help=_A_DATASET)
    add("--logit-scale", default="1", metavar="FACTOR", help=scale)
    add("--norm", default="linf", choices=["linf", "l2", "l1"], help="of the perturbation (default: linf)")
    add("--epsilon", nargs="+", type=str, default=["8/255"], metavar="FRACTION", help=radii)
    add("--attacks", "--attack", nargs="+", default=["pgd20", "cw20", "autoattack"], metavar="NAME", help=attacks)
    add("--custom", nargs="+", default=[], metavar="NAME", help=custom)
    _add_sweep(parser)
    add("--images", type=int, metavar="N", help="the first N test images (default: all)")
    add("--batch-size", metavar="N", help=together)
    _add_engine(parser, "fast")
    add("--precision", choices=_PRECISIONS, default="fp32", help=searched)
    _add_compile(parser)
    add("--seed", type=int, default=0, metavar="N", help="of every draw (default: 0)")
    add("--name", metavar="NAME", help="in the tables (default: that of the weights file)")
    add("--output", type=Path, metavar="FOLDER", help="of the report (default: reports/evaluate-NAME)")
    _add_pictures(parser)
    _add_credibility(parser)
    _add_data(parser)


def _report_words(parser: ArgumentParser) -> None:
    """Make tables, figures and the page from the evidence in a folder; needs no GPU and no PyTorch."""
    parser.add_argument("folder", type=Path, help="such as reports/quickstart")


def _verify_words(parser: ArgumentParser) -> None:
    """Recheck a report: its files, its tables, and what its networks say to its pictures.

    Every file has the SHA-256 that the manifest records, every table follows from the verdicts, and every network,
    loaded anew and asked in float32, predicts what the verdicts say, on test images and on saved pictures, which lie
    in ball and pixel range. Exit code 0: all holds. 1: the first thing that does not is named. 2: something needed is
    not there. That an image was never fooled can only be attacked again. Python files of your own that the report
    names are run, as in the evaluation, if they still are what they were.
    """
    parser.add_argument("folder", type=Path, help="such as reports/quickstart")
    weights = "where trained weights lie (default: where they lay, or checkpoints)"
    parser.add_argument("--checkpoints", type=Path, metavar="FOLDER", help=weights)
    one = "the weights of the model that `atbench evaluate` attacked (default: where they lay)"
    parser.add_argument("--weights", type=Path, metavar="FILE", help=one)
    code = "where Python files of your own lie (default: where they lay)"
    parser.add_argument("--code", type=Path, metavar="FOLDER", help=code)
    parser.add_argument(
        "--tables", action="store_true", help="files and tables alone; needs no weights and no data set"
    )
    _add_data(parser)


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


def _add_credibility(parser: ArgumentParser) -> None:
    probes = (
        "how thoroughly each network is probed for figures that are no robustness; full takes minutes (default: cheap)"
    )
    parser.add_argument("--credibility", choices=["cheap", "full"], default="cheap", help=probes)


def _add_sweep(parser: ArgumentParser) -> None:
    how = (
        "run AutoAttack at all epsilons: strict, each in full, or descending, which carries verdicts from one to the "
        "next, into curves only, and costs about as much as one epsilon (default: where models are ranked only)"
    )
    parser.add_argument("--sweep", choices=["none", "strict", "descending"], help=how)


def _speed_attack_words(parser: ArgumentParser) -> None:
    """Run the official AutoAttack and ours on one network and the same images, in turns and in one process.

    Seconds, passes per image, peak memory, ratios, and every image whose verdict differs, for our engine in strict
    fp32 and for its bf16 search, and for the development attack quick. Without --model, on a digits CNN that is trained
    first, in seconds. Each repeat is written as it ends, and a stopped command goes on where it was.
    """
    add = parser.add_argument
    add("--model", metavar="FILE:BUILDER", help="as in `atbench evaluate`, with --weights and --dataset")
    add("--weights", type=Path, metavar="FILE", help="safetensors, or a PyTorch state dict")
    add("--dataset", metavar="NAME", help=_A_DATASET)
    add("--norm", choices=["linf", "l2", "l1"], help="of the perturbation (default: linf)")
    add("--epsilon", metavar="FRACTION", help="in pixel units (default: 8/255, and 0.15 for the digits CNN)")
    add("--images", type=int, metavar="N", help="the first N test images (default: as many as take some minutes)")
    add("--repeats", type=int, default=3, metavar="N", help="of which median, least and most are given (default: 3)")
    variants = "of our engine's search, one row each; every success is confirmed in fp32 (default: fp32 bf16)"
    add("--precision", nargs="+", choices=_PRECISIONS, default=["fp32", "bf16"], help=variants)
    _add_compile(parser)
    together = "images at once, for both engines, or auto: by a short probe (default: 64, and 512 on a GPU)"
    add("--batch-size", metavar="N", help=together)
    add("--attacks", nargs="+", metavar="NAME", help="only these of apgd-ce, apgd-t, fab-t, square")
    stock = "a further row: the official package with the parameters' gradients, which our wrapper spares it"
    add("--stock", action="store_true", help=stock)
    five = "a further row: our engine at five epsilons, evaluation.sweep=descending, against one"
    add("--sweep", action="store_true", help=five)
    add("--seed", type=int, default=0, metavar="N", help="of every draw (default: 0)")
    shown = "CSV to add to, with a .md for people beside it (default: reports/speed-attack-NAME.csv)"
    add("--output", type=Path, metavar="FILE", help=shown)
    _add_data(parser)


def joined(arguments: list[str]) -> list[str]:
    """Make one word of ``speed attack``, which is a command of its own."""
    return ["speed-attack", *arguments[2:]] if arguments[:2] == ["speed", "attack"] else arguments


def _add_engine(parser: ArgumentParser, default: str | None) -> None:
    engines = "of AutoAttack: fast, ours, or official, its authors' package (default: fast)"
    parser.add_argument("--engine", choices=["fast", "official"], default=default, help=engines)


def _add_compile(parser: ArgumentParser) -> None:
    pays = "the network, through torch.compile, for our engine: pays on GPUs and large networks, after up to a minute"
    parser.add_argument("--compile", action="store_true", help=pays)


def _add_common(parser: ArgumentParser) -> None:
    changed = "change settings of the suite, such as recipe.epochs=2"
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help=changed)
    together = "that train one method together: GPUs, or processes where there are none (default: 1)"
    parser.add_argument("--devices", type=int, default=1, metavar="N", help=together)
    machines = "machines; start the same command on each, with NODE_RANK, MASTER_ADDR and MASTER_PORT set (default: 1)"
    parser.add_argument("--num-nodes", type=int, default=1, metavar="M", help=machines)
    precisions = ["32-true", "bf16-mixed", "16-mixed"]
    precision = "of training, in place of the suite's; of AutoAttack's search: --set evaluation.precision=bf16"
    parser.add_argument("--precision", choices=precisions, help=precision)
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


def _add_pictures(parser: ArgumentParser) -> None:
    kept = "keep the picture behind each verdict, so that `atbench verify` can recheck it"
    parser.add_argument("--save-adversarial", action="store_true", help=kept)


def _add_data(parser: ArgumentParser) -> None:
    holds = "that holds the data sets as torchvision lays them out (default: $ATBENCH_DATA, or data)"
    parser.add_argument("--data-root", type=Path, metavar="FOLDER", help=holds)
    parser.add_argument("--download", action="store_true", help="fetch a data set that is missing")


_WORDS: dict[str, Callable[[ArgumentParser], None]] = {
    "run": _run_words,
    "train": _train_words,
    "evaluate": _evaluate_words,
    "report": _report_words,
    "verify": _verify_words,
    "list": _list_words,
    "show": _show_words,
    "speed": _speed_words,
    "speed-attack": _speed_attack_words,
}
