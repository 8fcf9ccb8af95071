"""The same gradient attack with other numbers: steps, their length, starts, the logits' scale, the radius."""

from dataclasses import replace

from benchmark.credibility import rules
from benchmark.credibility.probed import MARGIN20, PGD20, Climb, Probed
from benchmark.credibility.record import Check, Rule

_ONE_STEP = Climb(steps=1, step=1.0, start=None)  # FGSM


def one_step_beats_many(probed: Probed) -> Check:
    """Compare PGD-20 with one step of the whole radius; a landscape fit to be climbed lets many steps win."""
    return _more(probed, rules.ONE_STEP, PGD20, _ONE_STEP)


def fgsm_against_pgd(probed: Probed) -> Check:
    """Compare FGSM with PGD-10: networks that overfitted to one step withstand it and nothing else."""
    return _more(probed, rules.FGSM, _ONE_STEP, replace(PGD20, steps=10))


def steps_converged(probed: Probed) -> Check:
    """Go on after 20 steps; the curve over 10, 20, 50 and 100 steps stands in the note."""
    counts = (10, 20, 50, 100) if probed.thorough else (10, 20, 50)
    curve = {steps: probed.accuracy(replace(PGD20, steps=steps)) for steps in counts}
    lost = curve[20] - min(curve[steps] for steps in counts if steps > 20)
    note = ", ".join(f"{steps} steps {100 * accuracy:.1f} %" for steps, accuracy in curve.items())
    return rules.CONVERGED.measured(max(lost, 0.0), probed.setting, images=len(probed.x), note=note)


def restarts(probed: Probed) -> Check:
    """Start five times."""
    starts = [replace(PGD20, start=start) for start in range(5)]
    lost = probed.accuracy(PGD20) - probed.accuracy(*starts)
    return rules.RESTARTS.measured(lost, probed.setting, images=len(probed.x))


def step_size(probed: Probed) -> Check:
    """Take shorter and longer steps."""
    return _more(probed, rules.STEP_SIZE, PGD20, *(replace(PGD20, step=step) for step in (0.1, 0.5)))


def logits_scaled(probed: Probed) -> Check:
    """Climb logits that were made larger and smaller: losses that saturate, or hardly differ, give way then."""
    return _more(probed, rules.SCALED, PGD20, *(replace(PGD20, scale=scale) for scale in (10.0, 0.1)))


def whole_range(probed: Probed) -> Check:
    """Let a picture become any other, under both losses: nothing but a constant network can stay right."""
    if probed.one_class:
        return rules.WHOLE_RANGE.absent(probed.setting, "the network gives one class to whatever it is shown")
    steps = 100 if probed.thorough else 20
    climbs = [replace(climb, whole_range=True, steps=steps) for climb in (PGD20, MARGIN20)]
    return rules.WHOLE_RANGE.measured(probed.accuracy(*climbs), probed.setting, images=len(probed.x))


def _more(probed: Probed, rule: Rule, plain: Climb, *others: Climb) -> Check:
    """Measure how much the strongest of ``others`` takes beyond ``plain``."""
    before, after = probed.accuracy(plain), min(probed.accuracy(other) for other in others)
    note = f"{100 * before:.1f} % and {100 * after:.1f} %"
    return rule.measured(max(before - after, 0.0), probed.setting, images=len(probed.x), note=note)
