"""Plain training beside the trainer's own loop: for networks that a method needs before its first step."""

import torch
import torch.nn.functional as F
from torch import nn

from attacks.modes import in_mode
from attacks.randomness import key
from methods.recipe import Recipe
from methods.training_set import TrainingSet


def train_plainly(network: nn.Module, images: TrainingSet, recipe: Recipe, *, epochs: int, seed: int) -> None:
    """Train ``network`` in place by cross-entropy on clean ``images``, and leave it frozen.

    Optimizer, batch size and gradient clip are the recipe's, its schedule runs once over the ``epochs``; label
    smoothing and averaging are left out. Everything follows from ``seed``: order, augmentation, dropout.
    """
    optimizer = recipe.build_optimizer(network.requires_grad_(True).parameters())
    steps = epochs * -(-len(images) // recipe.batch_size)
    done = 0
    with torch.random.fork_rng(devices=[]), torch.enable_grad(), in_mode(network, "train"):
        torch.manual_seed(seed >> 1)
        for epoch in range(epochs):
            generator = torch.Generator().manual_seed(key(seed, "order", epoch) >> 1)
            order = torch.randperm(len(images), generator=generator).to(images.labels.device)
            for positions in order.split(recipe.batch_size):
                done += 1
                for group in optimizer.param_groups:
                    group["lr"] = recipe.learning_rate_at(done / steps)
                batch = images.read(positions, epoch)
                optimizer.zero_grad()
                F.cross_entropy(network(batch.x), batch.y).backward()
                if recipe.gradient_clip is not None:
                    nn.utils.clip_grad_norm_(network.parameters(), recipe.gradient_clip)
                optimizer.step()
    optimizer.zero_grad()
    network.requires_grad_(False)
