"""Where every method lives: key to "module:Class", loaded when asked for."""

import difflib
import importlib
from typing import TYPE_CHECKING

from attacks.errors import BadInput

if TYPE_CHECKING:
    from methods.base import AdversarialTraining

_HOMES = [
    "origins.natural:Natural",
    "origins.fgsm_at:FGSMAT",
    "origins.kurakin:Kurakin",
    "origins.pgd_at:PGDAT",
    "regularization.alp:ALP",
    "regularization.trades:TRADES",
    "regularization.mart:MART",
    "regularization.llr:LLR",
    "regularization.tla:TLA",
    "curriculum.cat_curriculum:CATCurriculum",
    "curriculum.dynamic_at:DynamicAT",
    "curriculum.fat:FAT",
    "ensemble.eat:EAT",
    "ensemble.adp:ADP",
    "ensemble.gal:GAL",
    "ensemble.dverge:DVERGE",
    "adaptive_epsilon.iaat:IAAT",
    "adaptive_epsilon.mma:MMA",
    "adaptive_epsilon.cat_customized:CATCustomized",
    "semi_supervised.uat:UAT",
    "semi_supervised.rst:RST",
    "semi_supervised.zhai:Zhai",
    "semi_supervised.ss_rotation:SSRotation",
    "semi_supervised.pretraining:Pretraining",
    "semi_supervised.ssdrl:SSDRL",
    "efficient.free_at:FreeAT",
    "efficient.fast_at:FastAT",
    "efficient.gradalign:GradAlign",
    "efficient.single_step_checkpoints:SingleStepCheckpoints",
    "efficient.sads:SADS",
    "efficient.atda:ATDA",
    "efficient.sat_r:SATR",
    "efficient.fgsmr:FGSMR",
    "efficient.yopo:YOPO",
    "variants.adt:ADT",
    "variants.bilateral:Bilateral",
    "variants.hypersphere:Hypersphere",
    "variants.feature_scatter:FeatureScatter",
    "variants.smooth_at:SmoothAT",
    "variants.avmixup:AVMixup",
    "variants.adv_interp:AdvInterp",
    "generalization.msd:MSD",
    "generalization.avg_max:AvgMax",
    "generalization.rlfat:RLFAT",
    "generalization.l1_penalty:L1Penalty",
    "generalization.ccat:CCAT",
]


def _table(homes: list[str]) -> dict[str, str]:
    table: dict[str, str] = {}
    for home in homes:
        module, _, _ = home.partition(":")
        key = module.rpartition(".")[2]
        if key in table:
            raise RuntimeError(f"two methods have the key {key}: methods.{table[key]} and methods.{home}")
        table[key] = home
    return table


_TABLE = _table(_HOMES)


def names() -> list[str]:
    """List the keys of all methods, in the survey's order."""
    return list(_TABLE)


def get(name: str) -> "type[AdversarialTraining]":
    """Load a method's class by its key, such as ``trades``.

    Raises:
        BadInput: for a key that is not there, with the nearest ones that are.
    """
    if name not in _TABLE:
        near = difflib.get_close_matches(name, _TABLE, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(_TABLE)}"
        raise BadInput(f"there is no method {name!r}: {hint} (atbench list methods)")
    return _load(_TABLE[name])


def by_class_name(name: str) -> "type[AdversarialTraining]":
    """Load a method by the name of its class, such as ``TRADES``; raises :class:`KeyError` where there is none."""
    for home in _TABLE.values():
        if home.endswith(f":{name}"):
            return _load(home)
    raise KeyError(name)


def _load(home: str) -> "type[AdversarialTraining]":
    module, _, name = home.partition(":")
    loaded: type[AdversarialTraining] = getattr(importlib.import_module(f"methods.{module}"), name)
    return loaded
