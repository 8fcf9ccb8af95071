"""Two processes that train together over gloo; what each of them ends with is written to a folder."""

import os
import socket
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import torch.multiprocessing
from pytorch_lightning.plugins.environments import LightningEnvironment
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler, TensorDataset

from attacks import ThreatModel
from methods import catalogue
from methods.base import AdversarialTraining, Batch, Card
from methods.draws import Draws
from methods.inner import Inner
from methods.per_image import PerImage
from methods.per_row import PerRow
from methods.recipe import Recipe
from tests.methods.tools import EPSILON, build, images, network, sharpened

RANKS, COUNT, BATCH = 2, 23, 8  # an odd number of images: one of them is dealt twice


class Dealt(Sampler[int]):
    """A fixed order, dealt out to the ranks; its first image fills up the end."""

    def __init__(self, count: int, rank: int, ranks: int) -> None:
        order = torch.arange(count + count % ranks) % count
        self.mine = order[rank::ranks].tolist()

    def __len__(self) -> int:
        return len(self.mine)

    def __iter__(self):
        return iter(self.mine)


class GradientPenalty(AdversarialTraining):
    """Stands for the methods that differentiate an input gradient once more."""

    card = Card(key="gradient_penalty", category="regularization", citation="")

    def training_loss(self, batch: Batch) -> Tensor:
        x = batch.x.clone().requires_grad_()
        loss = self.classification_loss(self(x), batch.y)
        (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
        return loss + 10 * gradient.pow(2).sum() + self.classification_loss(self(batch.x), batch.y)


class Remembering(AdversarialTraining):
    """Remembers for each image which rank saw it."""

    card = Card(key="remembering", category="origin", citation="")

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.seen_by = PerImage(-1)

    def training_loss(self, batch: Batch) -> Tensor:
        self.remember(self.seen_by, batch.index, torch.full_like(batch.index, self.global_rank))
        return self.classification_loss(self(batch.x), batch.y)


def smooth() -> nn.Module:
    """Without BatchNorm, so that two halves of a batch are as good as the whole."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 64, 3)).double()


class NoNoise(Draws):
    """Draws nothing, so that ranks do not differ."""

    def uniform(self, like: Tensor, shape: Any = None) -> Tensor:
        return torch.zeros_like(like)


def make(name: str) -> AdversarialTraining:
    recipe = Recipe(epochs=3, learning_rate=0.05, schedule="constant")
    threat = ThreatModel("linf", EPSILON)
    if name == "smooth":
        return catalogue.get("pgd_at")(smooth(), threat, recipe=recipe, inner=Inner(steps=3, start="none"))
    if name == "smooth-atda":
        return catalogue.get("atda")(smooth(), threat, recipe=recipe, lam=0.0)  # the terms do see the parts
    if name == "smooth-yopo":
        method = catalogue.get("yopo")(smooth(), threat, recipe=recipe)
        method.draws = NoNoise()
        return method
    if name == "penalty":
        return GradientPenalty(network(), threat, recipe=recipe)
    if name == "remembering":
        return Remembering(network(), threat, recipe=recipe)
    if name == "mma":  # sure of some images from the start, of more on one rank than on the other
        return build(name, sharpened(network(), 20), threat, recipe=recipe, steps=2, search_floor=2)
    if name == "adt-imp_am":
        return build("adt", network(), threat, recipe=recipe, variant="imp_am", z_dim=4)
    settings = {"warmup": 1} if name == "iaat" else {"replays": 2} if name == "free_at" else {}
    return build(name, network(), threat, recipe=recipe, steps=2, **settings)


def engine(ranks: int, epochs: int, *callbacks: pl.Callback) -> pl.Trainer:
    together = {"strategy": "ddp", "plugins": [LightningEnvironment()]} if ranks > 1 else {}
    return pl.Trainer(
        accelerator="cpu",
        devices=ranks,
        max_epochs=epochs,
        logger=False,
        callbacks=list(callbacks),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        **together,
    )


class SaveFirst(pl.Callback):
    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if trainer.current_epoch == 0:
            trainer.save_checkpoint(self.path)


def fit(name: str, rank: int, ranks: int, checkpoint: Path | None = None, resume: Path | None = None):
    method = make(name)
    count = COUNT + 1 if name.startswith("smooth") else COUNT
    x, y = images(count)
    dtype = next(method.parameters()).dtype
    data = TensorDataset(x.to(dtype), y, torch.arange(count))
    train = DataLoader(data, batch_size=BATCH // ranks, sampler=Dealt(count, rank, ranks))
    held_out = DataLoader(data, batch_size=BATCH, sampler=range(rank, count, ranks))
    callbacks = [SaveFirst(checkpoint)] if checkpoint else []
    run = engine(ranks, max(2, method.data_passes()), *callbacks)
    run.fit(method, train, held_out, ckpt_path=resume, weights_only=True)
    return method


def state(method: AdversarialTraining) -> dict[str, Any]:
    return {
        "weights": dict(method.state_dict()),
        "per_image": {k: v.table for k, v in vars(method).items() if isinstance(v, PerImage)},
        "per_row": {k: v.table for k, v in vars(method).items() if isinstance(v, PerRow)},
        "centres": getattr(method, "centres", None),
        "score": [method.held_out_score.robust, method.held_out_score.clean],
    }


def _rank(rank: int, port: int, names: list[str], folder: Path) -> None:
    os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    for name in names:
        whole = fit(name, rank, RANKS, checkpoint=folder / f"{name}.ckpt")
        torch.manual_seed(99)  # another process has another global state
        resumed = fit(name, rank, RANKS, resume=folder / f"{name}.ckpt")
        torch.save({"whole": state(whole), "resumed": state(resumed)}, folder / f"{name}-{rank}.pt")


def train_together(names: list[str], folder: Path) -> None:
    """Fit each method on two ranks, undisturbed and resumed after its first epoch."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    torch.multiprocessing.spawn(_rank, args=(port, names, folder), nprocs=RANKS)
