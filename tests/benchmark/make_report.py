"""Fabricate a report folder: verdicts of made-up networks that get weaker with epsilon and with the attack."""

from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from benchmark.results.evidence import card_path, evidence_folder, failure_path, write_part

STRENGTH = {"clean": 0.0, "pgd20": 1.0, "cw20": 1.05, "autoattack": 1.3}
METHODS = {"natural": 0.05, "pgd_at": 0.28, "trades": 0.27, "mart": 0.26, "fast_at": 0.21}  # radius kept on average
CATEGORY = {"natural": "origins", "pgd_at": "origins", "trades": "regularization", "mart": "regularization"}
FEW = {"checkpoints": ["last"], "epsilons": [0.1, 0.15]}  # what most tests need; every part file costs a disk write
EPSILONS = [0.05, 0.1, 0.15, 0.2, 0.3]
NOTE = "digits check the pipeline; they are no evidence about methods on natural images"


def verdicts(attack: str, epsilon: float, fooled: np.ndarray, first: int = 0, **columns) -> pd.DataFrame:
    """One row per entry of ``fooled``, images numbered from ``first``; ``columns`` replace what is made up."""
    count = len(fooled)
    label = (np.arange(first, first + count) % 10).astype("int16")
    by = (
        np.array(["apgd-ce", "apgd-ce", "apgd-t", "fab-t"])[np.arange(count) % 4]
        if attack == "autoattack"
        else np.full(count, attack)
    )
    frame = {
        "index": np.arange(first, first + count, dtype="int32"),
        "label": label,
        "clean_prediction": label,
        "prediction": np.where(fooled, (label + 1) % 10, label).astype("int16"),
        "fooled": fooled,
        "by": np.where(fooled, by, ""),
        "attack": attack,
        "epsilon": epsilon,
        "margin": np.float32(0.5),
        "confidence": np.float32(0.9),
        "forward": np.float32(20),
        "backward": np.float32(20),
        "seconds": np.float32(0.01),
        "engine": "official 0.2.0" if attack == "autoattack" else "",
        "carried": False,
    }
    return pd.DataFrame({**frame, **columns})


def radii(method_radius: float, images: int, seed: int) -> np.ndarray:
    """The largest epsilon each image withstands; images are easy or hard for every method alike."""
    easy = np.random.default_rng(7).normal(1, 0.45, images)
    own = np.random.default_rng(seed + int(1000 * method_radius)).normal(0, 0.06, images)
    return np.where(np.arange(images) % 37 == 0, -1, (easy + own) * method_radius)


def write_suite(folder: Path, methods=tuple(METHODS), seeds=(0,), images=200, **changes) -> None:
    suite = {
        "name": "quickstart",
        "title": "Five methods on handwritten digits",
        "note": NOTE,
        "dataset": {"name": "digits"},
        "network": {"name": "digits_cnn"},
        "threat": {"norm": "linf", "epsilon": 0.15},
        "methods": {method: {} for method in methods},
        "seeds": list(seeds),
        "evaluation": {
            "ranked_at": [0.15],
            "epsilons": EPSILONS,
            "attacks": ["pgd20", "cw20", "autoattack"],
            "images": images,
            "ranked_checkpoint": "last",
        },
    }
    suite["evaluation"] |= changes.pop("evaluation", {})
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "suite.yaml").write_text(yaml.safe_dump({**suite, **changes}))


def write_card(folder: Path, method: str, seed: int = 0, **changes) -> str:
    experiment = changes.pop("experiment", f"{method}-{seed}")
    passes = 30 if method == "natural" else 30 * (3 if method == "fast_at" else 9)
    card = {
        "experiment": experiment,
        "method": method,
        "category": CATEGORY.get(method, "efficient"),
        "comparison_class": "A",
        "citation": "someone2020",
        "seed": seed,
        "fold": 0,
        "dataset": "digits",
        "network": "digits_cnn",
        "members": 1,
        "parameters": 31482,
        "status": "done",
        "error": "",
        "forward_passes": float(passes),
        "backward_passes": float(passes),
        "selection_forward_passes": 60.0,
        "selection_backward_passes": 60.0,
        "seconds": 3.5,
        "selection_seconds": 1.5,
        "devices": 1,
        "device": "cpu",
        "device_hours": 0.000972,
        "peak_memory_mib": 600.25,
        "peak_memory_of": "resident memory of the process",
        "weights": {"last": {"sha256": "0" * 64}, "best": {"sha256": "1" * 64, "epoch": 27}},
        "versions": {"torch": "2.11.0", "atbench": "0.1.0"},
    }
    path = card_path(folder, experiment)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump({**card, **changes}))
    return experiment


def watched(*pgd10: float, fgsm: float = 0.7, clean: float = 0.9) -> list[dict[str, float]]:
    """Return the history of a single-step method whose PGD-10 accuracy on held-out images took this course."""
    held_out = {"held_out_clean": clean, "held_out_fgsm": fgsm}
    return [{"epoch": epoch, "loss": 1.0, **held_out, "held_out_pgd10": value} for epoch, value in enumerate(pgd10)]


def write_failure(folder: Path, method: str, seed: int = 0, error: str = "NaN loss in epoch 3") -> None:
    experiment = write_card(folder, method, seed, status="failed", error=error)
    path = failure_path(folder, experiment)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"Traceback (most recent call last):\n  ...\nRuntimeError: {error}\n")


def write_evidence(
    folder: Path,
    experiment: str,
    kept: np.ndarray,
    *,
    checkpoints=("last", "best"),
    batch=100,
    attacks=tuple(STRENGTH),
    epsilons=EPSILONS,
    autoattack_at=(0.15,),
) -> None:
    """Attack a made-up network whose image i withstands ``kept[i]``, AutoAttack on the last checkpoint alone."""
    for checkpoint in checkpoints:
        for attack in attacks:
            for epsilon in [0.0] if attack == "clean" else autoattack_at if attack == "autoattack" else epsilons:
                if attack == "autoattack" and checkpoint != "last":
                    continue
                fooled = kept < epsilon * STRENGTH[attack]
                place = evidence_folder(folder, experiment, checkpoint, attack, epsilon)
                frame = verdicts(attack, epsilon, fooled)
                if attack == "autoattack":
                    frame.loc[kept < 0, "by"] = "clean"
                for number, start in enumerate(range(0, len(kept), batch)):
                    write_part(place, frame[start : start + batch], number)


def make_report(folder: Path, methods=METHODS, seeds=(0,), images=200, attacked=None, **changes) -> Path:
    """Write a finished report folder, all but the tables; ``methods`` maps names to how strong they are."""
    write_suite(folder, methods, seeds, images, **changes)
    for method, radius in methods.items():
        for seed in seeds:
            write_evidence(folder, write_card(folder, method, seed), radii(radius, images, seed), **(attacked or {}))
    return folder
