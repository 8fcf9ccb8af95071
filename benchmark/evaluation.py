"""The protocol of evaluation: which attacks, how strong, from which start, and what counts as fooled.

Every attack leaves one verdict per test image. An image that is misclassified as it stands is fooled under all of them.
"""

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn

from attacks.carlini_wagner import carlini_wagner_l2
from attacks.checks import check_classifier, check_images, check_logits
from attacks.errors import BadInput
from attacks.modes import in_mode
from attacks.objectives import margin
from attacks.passes import Passes, counting, networks_in
from attacks.threat import ThreatModel
from benchmark import pictures
from benchmark.data import Images
from benchmark.evaluation_settings import Evaluation
from benchmark.fixed_steps import Attacked, Subject, Tell, cw20, pgd20, pgd20_any, row, with_shared_cost
from benchmark.journal import Journal
from benchmark.rejection import confidence
from benchmark.results import evidence
from benchmark.results.rejection import CONFIDENCE
from benchmark.results.unseen import AUTOATTACK_ELSEWHERE
from benchmark.storage import write_text
from benchmark.strong_attacks import (
    PART,
    autoattack,
    autoattack_custom,
    autoattack_plus,
    autoattack_rand,
    check_version,
    engine,
    quick,
)
from benchmark.sweep import RANKING_ONLY, Job, Known, finished_parts, joined, journal_name, radii


def cw_l2(subject: Subject, x: Tensor, y: Tensor, index: Tensor) -> Attacked:
    """Minimum-norm attack of Carlini and Wagner: fooled if the closest success lies within epsilon in L2."""
    if subject.threat.norm != "l2":
        raise BadInput(f"cw_l2 minimises the L2 norm, but the threat is {subject.threat.norm}: use cw20")
    with counting(subject.network) as passes:
        found = carlini_wagner_l2(subject.network, x, y)
    near = subject.threat.distance(found, x) <= subject.threat.epsilon
    adversarial = torch.where(near[:, None, None, None], found, x)
    return with_shared_cost(adversarial, "cw_l2", passes)


Attack = Callable[[Subject, Tensor, Tensor, Tensor], Attacked]
ATTACKS: dict[str, Attack] = {
    "pgd20": pgd20,
    "pgd20_any": pgd20_any,
    "cw20": cw20,
    "row": row,
    "cw_l2": cw_l2,
    "autoattack": autoattack,
    "autoattack_plus": autoattack_plus,
    "autoattack_rand": autoattack_rand,
    "autoattack_custom": autoattack_custom,
    "quick": quick,
    CONFIDENCE: confidence,
}
# They fill their batches themselves, from as many images as they are given.
ON_SLOTS = (*RANKING_ONLY, "quick", *AUTOATTACK_ELSEWHERE)


def evaluate(
    network: nn.Module,
    images: Images,
    threat: ThreatModel,
    settings: Evaluation = Evaluation(),
    *,
    ranked: bool = True,
    attacks: Collection[str] | None = None,
    own: Mapping[str, Attack] | None = None,
    place: Callable[[Job], Path] | None = None,
    tell: Tell | None = None,
) -> pd.DataFrame:
    """Attack ``network`` by the protocol and return one verdict per image, attack and epsilon.

    Args:
        network: images in [0, 1] to logits ``(n, k)``; attacked in eval mode and left in the mode it was in.
        images: the test images; the first ``settings.images`` of them are used.
        threat: norm and pixel range; its radius is replaced by those of ``settings``.
        ranked: whether this is the checkpoint that is ranked; AutoAttack runs on no other.
        attacks: only these, of ``settings.attacks`` and ``clean``.
        own: attacks of the caller's, by names that the settings may name beside those of :data:`ATTACKS`.
        place: the folder for the verdicts of a job. Parts that lie there are not attacked again, new ones are written
            as they are finished, with their pictures where the settings save them; without it everything stays in
            memory.
        tell: told (what, batches done, batches in all).

    Returns:
        the columns of :data:`benchmark.results.evidence.SCHEMA`; of parts that lay there already, nothing.
    Raises:
        BadInput: for images, labels or a network that :mod:`attacks.checks` refuses, or an unknown attack.
    """
    chosen = images.take(torch.arange(min(len(images), settings.images or len(images)), device=images.labels.device))
    device = next((parameter.device for parameter in network.parameters()), torch.device("cpu"))
    known_attacks = ATTACKS if own is None else {**ATTACKS, **own}
    planned = jobs(settings, ranked=ranked, among=known_attacks)
    todo = [job for job in planned if attacks is None or job.attack in attacks]
    size = min(settings.batch_size, len(chosen))
    batches = {job: torch.arange(len(chosen)).split(part_size(settings, job.attack)) for job in todo}
    frames, done, total = [], 0, sum(map(len, batches.values()))
    known = Known(settings, todo, place)
    with in_mode(network, "eval"):
        check_versions(
            network,
            chosen.take(torch.arange(1)).to(device),
            threat,
            settings,
            dict.fromkeys(job.attack for job in todo),
        )
        for job in todo:
            folder = None if place is None else place(job)
            finished = set() if folder is None else {path.name for path in finished_parts(folder, settings, job)}
            for number, rows in enumerate(batches[job]):
                done += 1
                if f"part-{number:05d}.parquet" in finished:
                    continue
                telling = None if tell is None else _within(tell, f"{job.attack} at {job.epsilon:.4g}", done - 1, total)
                batch, carried = chosen.take(rows), known.carried(job, number)
                left = (batch if carried.empty else _without(batch, set(carried["index"]))).to(device)
                name = journal_name(number, left.index.tolist(), whole=carried.empty)
                unfinished = None if folder is None else folder / name
                subject = Subject(network, threat.at(job.epsilon), settings, telling, unfinished)
                nobody = carried.head(0), list[str](), left.pixels()
                attack = known_attacks.get(job.attack, _no_attack)
                attacked, log, moved = _verdicts(subject, left, job, attack, size) if len(left) else nobody
                frame = attacked if carried.empty else joined(carried, attacked, batch.index.tolist())
                known.note(job, number, frame)
                frames.append(frame)
                if folder is not None:
                    _keep_log(folder, number, log)
                    if settings.save_adversarial:
                        part = evidence.part_path(folder, number)
                        pictures.keep(part, network, left, attacked, moved, subject.threat, size)
                    evidence.write_part(folder, frame, number)  # last: a part that is there is finished
                    for journal in folder.glob(f"part-{number:05d}.*unfinished"):
                        Journal(journal).close()
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=evidence.SCHEMA.names)


def check_versions(
    network: nn.Module, images: Images, threat: ThreatModel, settings: Evaluation, attacks: Collection[str]
) -> None:
    """Hold versions of AutoAttack among ``attacks`` against the network, before hours are spent on other attacks.

    Raises:
        BadInput: see :func:`benchmark.strong_attacks.check_version`, and for a network that cannot be attacked at all.
    """
    versions = [attack for attack in attacks if attack in RANKING_ONLY]
    if versions:
        first = images.take(torch.arange(1, device=images.labels.device))
        classes = check_classifier(network, first.pixels(), first.labels)
        for attack in versions:
            check_version(attack, settings, threat.norm, classes)


def part_size(settings: Evaluation, attack: str) -> int:
    """Say how many images make one part of the evidence: a batch, but on slots as many as keep them full."""
    official = attack == "autoattack" and settings.engine == "official"
    return max(settings.batch_size, PART) if attack in ON_SLOTS and not official else settings.batch_size


def jobs(settings: Evaluation, *, ranked: bool, among: Collection[str] = ATTACKS) -> Iterator[Job]:
    """List what the protocol asks for: clean accuracy first, then each attack from the smallest radius up.

    AutoAttack comes in the order of its sweep: :func:`benchmark.sweep.radii`.
    """
    unknown = [name for name in settings.attacks if name not in among]
    if unknown:
        raise BadInput(f"there is no attack {unknown[0]!r}: evaluation.attacks takes {', '.join(ATTACKS)}")
    if settings.sweep == "descending" and "autoattack_rand" in settings.attacks:
        raise BadInput(
            "autoattack_rand is for networks that answer at random, which one picture need not fool twice: take sweep "
            "strict in place of descending"
        )
    yield Job("clean", 0.0)
    for attack in settings.attacks:
        if attack == "row":
            if settings.row is None:
                raise BadInput("the attack row is what evaluation.row says, but this suite has none: it is for recipes")
            yield from [Job(attack, float(settings.row.epsilon))] if ranked else []
        elif attack == CONFIDENCE:  # as dear as AutoAttack
            yield from (Job(attack, float(epsilon)) for epsilon in settings.epsilons if ranked)
        elif attack not in RANKING_ONLY:
            yield from (Job(attack, float(epsilon)) for epsilon in settings.epsilons)
        elif ranked:
            yield from (Job(attack, epsilon) for epsilon in radii(settings))


def _verdicts(
    subject: Subject, images: Images, job: Job, attack: Attack, size: int
) -> tuple[pd.DataFrame, list[str], Tensor]:
    """Attack one batch, padded to ``size`` so that every batch has one shape: logits depend on it in the last bits.

    Returns the verdicts, the attack's log, and what it made of the images.
    """
    begun, network = time.perf_counter(), subject.network
    missing = 0 if job.attack in ON_SLOTS else size - len(images)
    padded = images.take(torch.arange(len(images) + missing, device=images.labels.device) % len(images))
    x, y = padded.pixels(), padded.labels
    check_images(x, y, subject.threat.low, subject.threat.high)
    check_classifier(network, x[:size], y[:size])
    logits = pictures.ask(network, x, size)
    check_logits(logits, x, y)
    clean = logits.argmax(1).to(x.device)
    attacked = attack(subject, x, y, padded.index)
    _check_moved(subject.threat, attacked.adversarial, x, job)
    # An image that is wrong as it stands is its own adversarial image, even if an attack moved it back to its class.
    wrong = clean != y
    kept = wrong & (job.attack != CONFIDENCE)  # which sees to that itself: a misread image may have been refused
    logits = pictures.ask(network, torch.where(kept[:, None, None, None], x, attacked.adversarial), size)
    fooled = logits.argmax(1) != y.cpu()
    frame = pd.DataFrame(
        {
            "index": padded.index.cpu(),
            "label": y.cpu(),
            "clean_prediction": clean.cpu(),
            "prediction": logits.argmax(1),
            "fooled": fooled,
            "by": [
                "clean" if misread else name if hit else ""
                for name, misread, hit in zip(attacked.by, wrong.tolist(), fooled.tolist(), strict=True)
            ],
            "attack": job.attack,
            "epsilon": job.epsilon,
            "margin": margin(logits, y.cpu()),
            "confidence": logits.softmax(1).amax(1),
            "forward": attacked.forward.cpu(),
            "backward": attacked.backward.cpu(),
            "seconds": (time.perf_counter() - begun) / len(x),
            "engine": engine(subject, job.attack) if job.attack in ON_SLOTS else "",
            "carried": False,
        }
    )
    return frame.head(len(images)), attacked.log, attacked.adversarial[: len(images)]


def _without(images: Images, known: Collection[int]) -> Images:
    left = [row for row, index in enumerate(images.index.tolist()) if index not in known]
    return images.take(torch.tensor(left, dtype=torch.int64, device=images.labels.device))


def _within(tell: Tell, what: str, done: int, total: int) -> Tell:
    """Tell of one part as a share of the whole, in hundredths of a part."""
    tell(what, 100 * done, 100 * total)

    def within(more: str, share: int, of: int) -> None:
        tell(f"{what}: {more}", 100 * done + (100 * share // of if of else 0), 100 * total)

    return within


def _no_attack(subject: Subject, x: Tensor, y: Tensor, index: Tensor) -> Attacked:
    return with_shared_cost(x, "clean", Passes(forward=len(x) * len(networks_in(subject.network))))


def _check_moved(threat: ThreatModel, adversarial: Tensor, x: Tensor, job: Job) -> None:
    """Stop if an attack cheated: outside the ball or the range its successes mean nothing."""
    if adversarial.isnan().any():
        raise BadInput(
            f"{job.attack} found a gradient that is no number (NaN), and its images would count as fooled: look for a "
            "square root, a division or a logarithm at 0 in the network"
        )
    farthest = threat.distance(adversarial, x).max().item()
    low, high = adversarial.min().item(), adversarial.max().item()
    if farthest > threat.epsilon * (1 + 1e-5) + 1e-6 or low < threat.low or high > threat.high:
        raise RuntimeError(
            f"{job.attack} left the threat model: moved an image by {farthest:g} ({threat.norm}, epsilon "
            f"{threat.epsilon:g}) with pixels in [{low:g}, {high:g}]"
        )


def _keep_log(folder: Path, number: int, log: list[str]) -> None:
    if log:
        write_text(folder / f"part-{number:05d}.log", "\n".join(log) + "\n")
