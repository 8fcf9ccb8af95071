"""Pictures made for one model of a suite, shown to another."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import nn

from benchmark.credibility import rules
from benchmark.credibility.probed import MARGIN20, PGD20, Probed
from benchmark.credibility.record import Check


def transfer(probed: Probed, others: Mapping[str, nn.Module]) -> Check:
    """Attack each of ``others``, by name, and show the pictures to the network that its own attacks left standing.

    Where they fool it, its own gradients led the attack astray.
    """
    if not others:
        return rules.TRANSFER.absent(probed.setting, "no other trained model in the report")
    left = probed.holds(*probed.white_box)
    found, share = torch.zeros_like(left), {}
    for name, network in others.items():
        other = replace(probed, network=network, _ends={})
        fooled = torch.zeros_like(left)
        for climb in (PGD20, MARGIN20):
            fooled |= left & (probed.logits_of(other.attacked(climb)).argmax(1) != probed.y)
        found, share[name] = found | fooled, int(fooled.sum())
    strongest = max(share, key=lambda name: share[name])
    note = f"of {len(share)} models {strongest} fools most, {share[strongest]}"
    return rules.TRANSFER.measured(found.float().mean().item(), probed.setting, images=len(left), note=note)
