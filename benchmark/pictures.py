"""Save the adversarial picture behind each verdict of a batch, in the smallest form in which it still fools."""

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from attacks.modes import products
from attacks.objectives import margin
from attacks.threat import ThreatModel
from benchmark.data import Images
from benchmark.results import pictures
from benchmark.results.pictures import Pictures, distance, farthest_allowed, in_steps, moved

SLACK = 1e-5
"""Lead of one logit over another, relative to the largest logit (or 1), that another device or batch shape may turn.

Alone, in fives and in one batch of 32, and in float64, the logits of a small ResNet differed by up to 6e-7 of it.
"""


def needing(frame: pd.DataFrame) -> np.ndarray:
    """Tell which verdicts ``(n,)`` rest on a picture: fooled, by an attack on this very image at this very epsilon."""
    found: np.ndarray = (frame.fooled & (frame.by != "clean") & ~frame.carried).to_numpy(dtype=bool)
    return found


def keep(
    part: Path,
    network: nn.Module,
    images: Images,
    frame: pd.DataFrame,
    adversarial: Tensor,
    threat: ThreatModel,
    size: int,
) -> None:
    """Write the pictures of the batch whose verdicts ``frame`` will stand in ``part``; none where none are needed.

    The network is asked again about what the file will give back. A picture is kept exactly where its rounded form is
    not answered as before, not by more than :data:`SLACK`, or lies outside the ball.

    Args:
        network: in eval mode.
        images: the batch ``(n,)``; ``adversarial`` what the attack made of it, on any device.
        size: of the evaluation's batches.
    """
    path, rows = pictures.beside(part), np.flatnonzero(needing(frame))
    if not len(rows):
        path.unlink(missing_ok=True)
        return
    # On the CPU, because a GPU divides by 255 with another last bit.
    x = images.take(torch.as_tensor(rows, device=images.labels.device)).to("cpu").pixels().numpy()
    exact = adversarial[torch.as_tensor(rows, device=adversarial.device)].detach().float().cpu().numpy()
    steps, step = in_steps(exact, x, threat.norm, threat.epsilon)
    found = moved(x, steps, step)
    logits = ask(network, torch.from_numpy(found), size)
    wrong = torch.as_tensor(frame.prediction.to_numpy()[rows].astype("int64"))
    answered = (margin(logits, wrong) < -slack(logits)).numpy()
    rounded = answered & (distance(found, x, threat.norm) <= farthest_allowed(threat.epsilon))
    index = frame["index"].to_numpy()[rows].astype("int32")
    pictures.write(path, Pictures(index, rounded, steps[rounded], step[rounded], exact[~rounded]))


def slack(logits: Tensor) -> Tensor:
    """Give the lead ``(n,)`` up to which two logits of an image count as equal: :data:`SLACK`."""
    return SLACK * logits.abs().amax(1).clamp(min=1)


def ask(network: nn.Module, x: Tensor, size: int) -> Tensor:
    """Give the logits ``(n, k)`` of images ``x`` on the CPU, in strict float32.

    Batches are filled up to ``size``, as in an evaluation: logits depend on the shape of a batch in the last bits.
    """
    device = next((parameter.device for parameter in network.parameters()), torch.device("cpu"))
    answers = []
    with torch.no_grad(), products("ieee"):
        for batch in x.split(size):
            filled = batch[torch.arange(size, device=batch.device) % len(batch)]
            answers.append(network(filled.to(device))[: len(batch)].float().cpu())
    return torch.cat(answers)
