from attacks import ThreatModel
from methods import FGSMAT


def build(case):
    s = case.settings
    threat = ThreatModel("linf", s["epsilon"])
    return FGSMAT(case.network, threat, alpha=s["alpha"], attack_mode=s["attack_mode"], exact_forwards=True)
