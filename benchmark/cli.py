"""The command line: words in, a call out. Nothing is done here."""

import signal
import sys
from argparse import Action
from fractions import Fraction
from typing import Any, NoReturn

from jsonargparse import ArgumentParser, DefaultHelpFormatter, Namespace

from benchmark import words
from benchmark.errors import BadInput


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run ``atbench``; exit code 2 for input that a person can mend, 1 for a method that failed."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that workers are ended and temporary files removed
    parser = _parser()
    chosen = parser.parse_args(words.joined(sys.argv[1:] if arguments is None else arguments))
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
    added = parser.add_subcommands(required=False, dest="command")
    for name, (command, summary) in words.commands().items():
        added.add_subcommand(name, command, help=summary)
    return parser


class _Help(DefaultHelpFormatter):
    """Help as its author wrote it, without the types that the parser would add."""

    def _get_help_string(self, action: Action) -> str:
        return action.help or ""


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
        credibility=chosen.credibility,
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
    from benchmark.evaluation_settings import Evaluation

    size = _batch_size(chosen.batch_size)
    settings = Evaluation(
        epsilons=chosen.epsilon,
        ranked_at=chosen.epsilon[-1:],
        attacks=chosen.attacks,
        images=_positive("--images", chosen.images),
        batch_size=size if isinstance(size, int) else 200,
        slots=size,
        engine=chosen.engine,
        precision=chosen.precision,
        compile=chosen.compile,
        custom=_names(chosen.custom) or [],
        checkpoints=["last"],
        seed=chosen.seed,
        save_adversarial=chosen.save_adversarial,
        sweep=chosen.sweep or "none",
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
        credibility=chosen.credibility,
        logit_scale=_factor(chosen.logit_scale),
    )


def _changes(chosen: Namespace) -> dict[str, Any]:
    """Read what a person changes of a suite; the options that stand for a key come first."""
    from benchmark.suite import read_change

    options = {"precision": chosen.precision, "sync_batchnorm": chosen.sync_batchnorm or None}
    for key in ("engine", "compile", "save_adversarial"):  # nothing is attacked by train
        options[f"evaluation.{key}"] = chosen.get(key) or None
    options["evaluation.sweep"] = chosen.get("sweep")
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


def _verify(chosen: Namespace) -> int:
    from benchmark.verification import Sources, verify

    sources = Sources(chosen.checkpoints, chosen.weights, chosen.code, chosen.data_root, chosen.download)
    return verify(chosen.folder, sources, tables_only=chosen.tables)


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


def _speed_attack(chosen: Namespace) -> int:
    from attacks.official import STAGES
    from benchmark.attack_speed import Candidate, attack_speed

    named = {"--model": chosen.model, "--weights": chosen.weights, "--dataset": chosen.dataset}
    absent = [option for option, value in named.items() if value is None]
    if 0 < len(absent) < len(named):
        there = next(option for option, value in named.items() if value is not None)
        raise BadInput(f"{there} comes with {' and '.join(absent)}; without all three a digits CNN is trained")
    only = tuple(_names(chosen.attacks) or STAGES)
    if unknown := [name for name in only if name not in STAGES]:
        raise BadInput(f"--attacks takes {', '.join(STAGES)}, but found {unknown[0]}")
    if chosen.sweep and only != STAGES:
        raise BadInput("--sweep is of the whole AutoAttack: leave --attacks out")
    size = _batch_size(chosen.batch_size)
    common: dict[str, Any] = {
        "images": _positive("--images", chosen.images),
        "batch_size": None if size == "auto" else size,
        "seed": chosen.seed,
        "compiled": chosen.compile,
        "only": tuple(stage for stage in STAGES if stage in only),
        "data_root": chosen.data_root,
        "download": chosen.download,
    }
    given = {"norm": chosen.norm, "epsilon": chosen.epsilon}
    candidate = None
    if not absent:
        defaults: dict[str, Any] = {"norm": chosen.norm or "linf", "epsilon": chosen.epsilon or "8/255"}
        candidate = Candidate(chosen.model, chosen.weights, chosen.dataset, **defaults, **common)
    return attack_speed(
        candidate,
        changes=common | {key: value for key, value in given.items() if value is not None},
        repeats=_positive("--repeats", chosen.repeats),
        precisions=list(dict.fromkeys(chosen.precision)),
        auto=size == "auto",
        stock=chosen.stock,
        sweep=chosen.sweep,
        output=chosen.output,
    )


def _batch_size(text: str | None) -> Any:
    """Read a number, ``auto`` or nothing."""
    if text is None or text == "auto":
        return text
    if not text.isdecimal() or int(text) < 1:
        raise BadInput(f"--batch-size is a number from 1 on, or auto, but found {text}")
    return int(text)


def _factor(text: str) -> float:
    try:
        return float(Fraction(text))
    except (ValueError, ZeroDivisionError):
        raise BadInput(f"--logit-scale is a number such as 15 or 1/15, but found {text}") from None


def _names(words: list[str] | None) -> list[str] | None:
    """Split names at commas as well as at spaces."""
    return None if words is None else [name for word in words for name in word.split(",") if name]


def _positive(option: str, value: Any) -> Any:
    if value is not None and value < 1:
        raise BadInput(f"{option} is 1 or more, but found {value}")
    return value


_COMMANDS = {
    "run": _run,
    "train": _train,
    "evaluate": _evaluate,
    "report": _report,
    "verify": _verify,
    "list": _list,
    "show": _show,
    "speed": _speed,
    "speed-attack": _speed_attack,
}

if __name__ == "__main__":
    main()
