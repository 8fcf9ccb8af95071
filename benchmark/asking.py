"""Ask the networks of a report again: what they say to the test images, and to the pictures that fooled them."""

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from attacks.objectives import margin
from benchmark.data import Images
from benchmark.errors import BadInput
from benchmark.fixed_steps import Tell
from benchmark.pictures import SLACK, ask, needing, slack
from benchmark.rebuild import rebuild, weights_of
from benchmark.results import evidence, pictures
from benchmark.results.evidence import Part
from benchmark.results.finding import Finding, place
from benchmark.storage import read_yaml, sha256
from benchmark.tasks import MEASUREMENT
from benchmark.verification import Account, Sources


def asked_again(
    report: Path, cards: dict[str, dict[str, Any]], sources: Sources, account: Account, tell: Tell
) -> Iterator[Finding]:
    """Yield each verdict that a network, loaded anew, does not bear out, and say in ``account`` what was looked at.

    A prediction that differs by less than ``benchmark.pictures.SLACK`` is on the boundary: listed, and held against
    nobody.

    Args:
        cards: of the experiments, by name.
        tell: told (network, parts done, parts in all).
    Raises:
        BadInput: when weights, data or a user's file is not there.
    """
    every = evidence.parts(report)
    done = 0
    for (experiment, checkpoint), group in groupby(every, key=lambda part: (part.experiment, part.checkpoint)):
        parts = list(group)
        card = cards.get(experiment, {})
        tell(f"{experiment}, {checkpoint}", done, len(every))
        if checkpoint not in (card.get("weights") or {}):
            state = f"it {card['status']}" if card else "it has no card"
            account.unchecked.append(f"what {experiment}, {checkpoint}, says: {state}")
        else:
            how = read_yaml(parts[0].path.parents[1] / MEASUREMENT)
            yield from _of_network(report, parts, card, how, sources, account)
        done += len(parts)
    tell("all networks", done, len(every))


def _of_network(
    report: Path, parts: list[Part], card: dict[str, Any], how: dict[str, Any], sources: Sources, account: Account
) -> Iterator[Finding]:
    experiment, checkpoint = parts[0].experiment, parts[0].checkpoint
    path = weights_of(report, card, checkpoint, how.get("weights_file"), sources)
    found = sha256(path)
    for name, digest in (("card", card["weights"][checkpoint]["sha256"]), (MEASUREMENT, how.get("weights"))):
        if digest != found:
            where = f"weights of {experiment}, {checkpoint} ({path})"
            yield Finding(where, f"SHA-256 {str(digest)[:12]} as its {name} says", found[:12])
            return
    rebuilt = rebuild(report, card, path, found, sources)
    test = rebuilt.test.take(torch.arange(min(len(rebuilt.test), how.get("images") or len(rebuilt.test))))
    size = min(int(how["batch_size"]), len(test))
    clean = _clean_logits(rebuilt.network, test, size)
    positions = pd.Series(np.arange(len(test)), index=test.index.numpy())
    account.networks += 1
    for part in parts:
        frame = evidence.read_part(part)
        strange = list(_strangers(part, frame, test, positions))
        yield from strange
        if strange:
            continue
        rows = torch.tensor(positions[frame["index"]].tolist())
        account.clean += len(rows)
        yield from _answers(part, frame, clean[rows], "clean_prediction", "the test image", account)
        saved = bool(how.get("save_adversarial"))
        if saved or pictures.beside(part.path).exists():
            yield from _pictures(part, frame, test.take(rows), rebuilt.network, str(how["norm"]), size, account)
        else:
            account.without_pictures += int(needing(frame).sum())


def _clean_logits(network: nn.Module, test: Images, size: int) -> Tensor:
    """Ask about all test images, in the batches of the evaluation and made into pixels on the same device."""
    device = next((parameter.device for parameter in network.parameters()), torch.device("cpu"))
    batches = torch.arange(len(test)).split(size)
    return torch.cat([ask(network, test.take(rows).to(device).pixels(), size) for rows in batches])


def _strangers(part: Part, frame: pd.DataFrame, test: Images, positions: pd.Series) -> Iterator[Finding]:
    """Yield verdicts about images that are not in the test set, or have another label there."""
    for index, label in zip(frame["index"].tolist(), frame.label.tolist(), strict=True):
        if index not in positions.index:
            yield Finding(place(*part[1:], index), "an image that was tested on", f"none with index {index}")
        elif (true := int(test.labels[positions[index]])) != label:
            yield Finding(place(*part[1:], index), f"label {true} as in the test set", f"label {label}")


def _pictures(
    part: Part, frame: pd.DataFrame, images: Images, network: nn.Module, norm: str, size: int, account: Account
) -> Iterator[Finding]:
    """Yield pictures that are missing, lie outside ball or pixel range, or are not answered as their verdict says."""
    needed, path = frame[needing(frame)], pictures.beside(part.path)
    if needed.empty and not path.exists():
        return
    try:
        saved = pictures.read(path, len(frame), tuple(images.images.shape[1:]))
    except BadInput as error:
        yield Finding(place(*part[1:]), f"a picture of each of {len(needed)} fooled images", str(error))
        return
    if saved.index.tolist() != needed["index"].tolist():
        odd = sorted(set(saved.index.tolist()) ^ set(needed["index"].tolist())) or saved.index.tolist()
        there = "one of an image that is not fooled" if odd[0] in saved.index else "none"
        yield Finding(place(*part[1:], odd[0]), "a picture of each fooled image, in order", f"{there} in {path.name}")
        return
    x = images.take(torch.as_tensor(np.flatnonzero(needing(frame)))).pixels().numpy()
    found = saved.of(x)
    far, allowed = pictures.distance(found, x, norm), pictures.farthest_allowed(part.epsilon)
    for row, index in enumerate(saved.index.tolist()):
        low, high = float(found[row].min()), float(found[row].max())
        if not (low >= 0 and high <= 1):  # NaN fails too
            yield Finding(place(*part[1:], index), "a picture with pixels in [0, 1]", f"[{low:g}, {high:g}]")
        elif not far[row] <= allowed:
            ball = f"a picture within {part.epsilon:g} of its image ({norm})"
            yield Finding(place(*part[1:], index), ball, f"one at {far[row]:.7g}")
    account.pictures += len(found)
    account.picture_bytes += path.stat().st_size
    logits = ask(network, torch.from_numpy(found), size)
    yield from _answers(part, needed, logits, "prediction", "its picture", account)


def _answers(
    part: Part, frame: pd.DataFrame, logits: Tensor, column: str, what: str, account: Account
) -> Iterator[Finding]:
    """Compare what the network says, ``logits (n, k)``, with a column of predictions."""
    if not torch.isfinite(logits).all():
        yield Finding(place(*part[1:]), f"finite logits for {what}", "NaN or infinity")
        return
    said, now = torch.as_tensor(frame[column].to_numpy().astype("int64")), logits.argmax(1)
    foreign = (said < 0) | (said >= logits.shape[1])
    near = margin(logits, said.where(~foreign, now)) <= slack(logits)
    for row in torch.nonzero(said != now).flatten().tolist():
        where = place(*part[1:], int(frame["index"].iloc[row]))
        if near[row] and not foreign[row]:
            classes = f"{int(said[row])} or {int(now[row])}"
            account.boundary.append(f"{where}: {what} is {classes}, their logits differ by less than {SLACK:g} of them")
        else:
            label = int(frame["label"].iloc[row])
            right = " (its label)" if now[row] == label else ""
            yield Finding(where, f"class {int(said[row])} for {what}", f"class {int(now[row])}{right}")
