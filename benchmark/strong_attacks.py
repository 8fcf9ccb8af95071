"""Attacks on slots: AutoAttack on either engine, thousands of passes on an image that holds, and ``quick``."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from attacks import autoattack as fast
from attacks import official
from attacks import quick as development
from attacks.autoattack import Version
from attacks.probe import fastest_slots
from attacks.staged import Staged
from attacks.tally import Progress
from attacks.threat import Norm
from benchmark.errors import BadInput
from benchmark.evaluation_settings import Evaluation
from benchmark.fixed_steps import Attacked, Subject
from benchmark.journal import Journal
from benchmark.storage import read_yaml, write_yaml

PART = 1000  # images whose verdicts make one file: with fewer, slots would idle more often at the end


def autoattack(subject: Subject, x: Tensor, y: Tensor, index: Tensor) -> Attacked:
    """AutoAttack standard."""
    if subject.settings.engine == "official":
        return _official(subject, x, y)
    return _fast(subject, x, y, index, "standard")


def autoattack_plus(subject: Subject, x: Tensor, y: Tensor, index: Tensor) -> Attacked:
    """AutoAttack plus: restarts, and the untargeted attacks beside the targeted."""
    return _fast(subject, x, y, index, "plus")


def autoattack_rand(subject: Subject, x: Tensor, y: Tensor, index: Tensor) -> Attacked:
    """AutoAttack rand, for networks that answer at random: gradients are averaged over 20 passes."""
    return _fast(subject, x, y, index, "rand")


def autoattack_custom(subject: Subject, x: Tensor, y: Tensor, index: Tensor) -> Attacked:
    """Attacks of AutoAttack that ``evaluation.custom`` names: such as for networks of two or three classes."""
    return _fast(subject, x, y, index, "custom", subject.settings.custom)


def quick(subject: Subject, x: Tensor, y: Tensor, index: Tensor) -> Attacked:
    """The development attack, always on our engine; what it leaves is no AutoAttack figure."""
    return _on_slots(subject, development.quick, x, y, index)


def autoattack_elsewhere(subject: Subject, x: Tensor, y: Tensor, index: Tensor) -> Attacked:
    """AutoAttack standard in another norm than the suite's, always on our engine."""
    return _on_slots(subject, fast.autoattack, x, y, index, version="standard")


def check_version(attack: str, settings: Evaluation, norm: Norm, classes: int) -> None:
    """Tell, before anything is attacked, that a version of AutoAttack cannot run as it is asked for.

    Raises:
        BadInput: for too few classes, attacks that there are not, or an engine that has only the standard version;
            naming what can be asked for in its place.
    """
    version: Any = attack.partition("_")[2] or "standard"
    if settings.engine == "official" and version != "standard":
        raise BadInput(f"the official engine runs AutoAttack standard alone, but found {version}: use engine fast")
    try:
        fast.check_classes(fast.phases(version, norm, settings.custom if version == "custom" else None), classes)
    except BadInput as error:
        words = f"--attacks autoattack_custom --custom {' '.join(fast.fitting(classes))}"
        raise BadInput(f"{attack}: {error} (atbench evaluate: {words}; in a suite: evaluation.custom)") from None


def engine(subject: Subject, attack: str) -> str:
    """Name what runs ``attack``, for the evidence: engine, version, and what makes it other than strict."""
    settings = subject.settings
    if attack == "autoattack" and settings.engine == "official":
        return official.version()
    words = [fast.engine_version(), *([settings.precision] if settings.precision != "fp32" else [])]
    return " ".join([*words, *(["compiled"] if settings.compile else [])])


def _fast(
    subject: Subject, x: Tensor, y: Tensor, index: Tensor, version: Version, attacks: Sequence[str] | None = None
) -> Attacked:
    if subject.settings.engine == "official":
        raise BadInput(f"the official engine runs AutoAttack standard alone, but found {version}: use engine fast")
    return _on_slots(subject, fast.autoattack, x, y, index, version=version, attacks=attacks)


def _on_slots(
    subject: Subject, attack: Callable[..., Staged], x: Tensor, y: Tensor, index: Tensor, **words: Any
) -> Attacked:
    settings, tell = subject.settings, subject.tell
    journal = None if subject.unfinished is None else Journal(subject.unfinished)

    def told(progress: Progress) -> None:
        if tell is not None:
            tell(sentence(progress), int(100 * progress.share), 100)

    slots, chosen = settings.slots, list[str]()
    if slots == "auto":
        slots = _probed(subject, x)
        chosen = [f"slots: {slots}, by a short probe; evaluation.slots={slots} repeats this"]
    result = attack(
        subject.network,
        x,
        y,
        subject.threat,
        seed=settings.seed,
        index=index,
        slots=slots,
        precision=settings.precision,
        compiled=settings.compile,
        finished=None if journal is None else journal.read(),
        keep=None if journal is None else journal.keep,
        progress=told,
        **words,
    )
    return Attacked(result.adversarial, result.by, result.forward, result.backward, [*chosen, *result.log])


def _probed(subject: Subject, x: Tensor) -> int:
    """Choose slots by measurement, once for all parts of a job, so that one that was killed goes on with as many."""
    if subject.unfinished is None:
        return fastest_slots(subject.network, x, precision=subject.settings.precision)
    kept = subject.unfinished.with_name("slots.yaml")
    if not kept.is_file():
        write_yaml(kept, {"slots": fastest_slots(subject.network, x, precision=subject.settings.precision)})
    slots = read_yaml(kept).get("slots")
    if not isinstance(slots, int) or slots < 1:
        raise BadInput(f"{kept} holds slots, a number from 1 on, but found {slots!r}: delete it, it is measured anew")
    return slots


def sentence(progress: Progress) -> str:
    """Say how an attack goes, in a line."""
    return (
        f"{progress.attack}: {progress.decided} of {progress.images} decided, {progress.robust} robust so far, "
        f"{progress.passes_per_second:,.0f} passes/s"
    )


def _official(subject: Subject, x: Tensor, y: Tensor) -> Attacked:
    """Run the authors' package, seeded per batch by the evaluation's seed."""
    tell = subject.tell
    result = official.autoattack(
        subject.network,
        x,
        y,
        subject.threat,
        seed=subject.settings.seed,
        batch_size=subject.settings.batch_size,
        progress=None if tell is None else lambda stage, left: tell(f"{stage}: {left} of {len(x)} hold", 0, 0),
    )
    return Attacked(result.adversarial, result.by, result.forward, result.backward, result.log)
