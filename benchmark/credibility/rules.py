"""Every check's meaning, thresholds and their sources: nothing else knows a threshold.

"Ours" are set on the networks named there. Shares and accuracies are fractions, radii pixel units.
"""

from benchmark.credibility.record import Bounds, Rule, Setting

CIFAR = Setting("cifar10", "linf", 8 / 255)
DIGITS = Setting("digits", "linf", 0.15)
MNIST = Setting("mnist", "linf", 0.3)

_CARLINI = "Carlini et al. 2019, arXiv:1902.06705"
_ATHALYE = "Athalye et al. 2018, arXiv:1802.00420, section 3.1"
_FLAGS = "flag of AutoAttack (Croce and Hein 2020, arXiv:2003.01690)"
_INDICATORS = "Pintor et al. 2022, arXiv:2106.09947"
_OURS = "ours"
_PILOT = "ours, set on the digits and MNIST pilots"


def _everywhere(amber: float, red: float | None, source: str) -> tuple[Bounds, ...]:
    return (Bounds(amber, red, source),)


def _pilots(amber: float, red: float | None, source: str) -> tuple[Bounds, ...]:
    """Thresholds that hold for the pilots alone; elsewhere they are borrowed."""
    return tuple(Bounds(amber, red, f"{source}; {_PILOT}", of) for of in (DIGITS, MNIST))


# What the network puts out.
EVAL_MODE = Rule(
    "eval mode",
    "parts left in train mode by eval(), and buffers that a forward pass changes",
    _everywhere(0, 0, f"{_CARLINI}: the network attacked is the one that is used"),
    share=False,
)
REPEATABLE = Rule(
    "repeatable outputs",
    "largest distance between logits of five forward passes, each scaled to length 1",
    _everywhere(1e-6, 1e-4, f"{_FLAGS}, 1e-4"),
    share=False,
)
ALONE_OR_TOGETHER = Rule(
    "batch independence",
    "largest distance between logits of an image alone and in a batch, each scaled to length 1",
    _everywhere(1e-3, 1e-2, f"{_OURS}: batch shapes move float32 logits by 1e-6, TF32 ones by 1e-3"),
    share=False,
)
PROBABILITIES = Rule(
    "logits, not probabilities",
    "share of images whose outputs lie in [0, 1] and add up to 1, to 1e-5",
    _everywhere(0, 0.5, f"{_FLAGS}, range of outputs"),
)
ONE_CLASS = Rule(
    "one class for all",
    "1 where all images of several classes are given one class: figures say nothing about a defence then",
    _everywhere(0, None, _OURS),
    share=False,
)
CLASSES = Rule(
    "number of classes",
    "attacks of the evaluation that are not defined for so few classes (DLR 3, targeted DLR 4)",
    _everywhere(0, None, f"{_FLAGS}, number of classes"),
    share=False,
)

# Gradients.
FINITE = Rule(
    "finite gradients",
    "share of images whose input gradient holds NaN or infinity, under cross-entropy or margin",
    _everywhere(0, 0, f"{_CARLINI}: gradients that cannot be used"),
)
ZERO_CE = Rule(
    "zero gradients (cross-entropy)",
    "share of correct images whose input gradient of the cross-entropy is exactly 0 at a random start",
    _everywhere(0.01, 0.5, f"{_ATHALYE} (vanishing gradients); {_INDICATORS}; thresholds ours"),
)
ZERO_MARGIN = Rule(
    "zero gradients (margin)",
    "share of correct images whose input gradient of the margin is exactly 0 at a random start",
    _everywhere(0, 0.05, f"{_FLAGS}, any zero gradient; red is ours"),
)
DIFFERENCES = Rule(
    "finite differences",
    "median relative difference between the margin's slope by its gradient and by finite differences",
    _everywhere(0.2, 0.5, f"{_ATHALYE} (shattered gradients); thresholds ours"),
    share=False,
)
SATURATION = Rule(
    "softmax saturation",
    "share of correct images whose cross-entropy is exactly 0 in float32",
    _everywhere(0.1, None, f"{_ATHALYE} (vanishing gradients); threshold ours"),
)

# The same attack at other settings.
SCALED = Rule(
    "logits scaled",
    "accuracy that PGD-20 takes when it climbs logits times 10 or times 0.1, beyond plain PGD-20",
    _pilots(0.05, 0.3, "Croce and Hein 2020, arXiv:2003.01690, section 4 (scale of logits)"),
)
ONE_STEP = Rule(
    "one step beats many",
    "accuracy under PGD-20 above that under one step of the whole radius",
    _everywhere(0.02, 0.1, f"{_ATHALYE}: one-step attacks perform better; thresholds ours"),
)
FGSM = Rule(
    "FGSM against PGD-10",
    "accuracy under FGSM above that under PGD-10",
    _pilots(0.3, None, "Wong et al. 2020, arXiv:2001.03994 (catastrophic overfitting)"),
)
CONVERGED = Rule(
    "steps converged",
    "accuracy that more steps than 20 take: 50, and in full 100",
    _pilots(0.05, 0.2, f"{_CARLINI}: attacks run to convergence; {_INDICATORS}"),
)
RESTARTS = Rule(
    "restarts",
    "accuracy that five random starts take beyond one",
    _pilots(0.05, 0.2, f"{_CARLINI}: several random starts"),
)
STEP_SIZE = Rule(
    "step size",
    "accuracy that PGD-20 takes at steps of epsilon/10 or epsilon/2, beyond epsilon/4",
    _pilots(0.05, 0.15, f"{_CARLINI}: settings of attacks tuned; {_INDICATORS}"),
)
WHOLE_RANGE = Rule(
    "whole pixel range",
    "accuracy left when a picture may become any other (epsilon 1 in Linf)",
    _everywhere(0, 0.05, f"{_ATHALYE} and {_CARLINI}: unbounded attacks reach 100 %; red is ours"),
)

# Attacks without gradients.
NOISE = Rule(
    "random noise",
    "share of images that random noise fools and PGD does not",
    _everywhere(0, 0.02, f"{_ATHALYE}: random sampling finds adversarial examples; {_CARLINI}; red is ours"),
)
SQUARE = Rule(
    "Square against white-box",
    "accuracy under the probe's gradient attacks together above that under Square",
    _everywhere(0.002, 0.05, f"{_FLAGS}, 0.2 points; {_ATHALYE}: black-box attacks are better; red is ours"),
)
TRANSFER = Rule(
    "transfer",
    "share of images that pictures made for another model of the suite fool and its own PGD does not",
    _everywhere(0.01, 0.05, f"{_ATHALYE} and {_CARLINI}: transfer beats white-box; thresholds ours"),
)
SAVED = Rule(
    "saved pictures",
    "share of saved adversarial pictures outside ball or pixel range, or that the network reads rightly",
    _everywhere(0, 0, f"{_CARLINI}: adversarial pictures are verified; none may be wrong"),
    share=False,
)

# From the verdicts of the evaluation.
FALLS = Rule(
    "falls with epsilon",
    "largest rise of accuracy under PGD-20 or CW-20 from one radius to the next",
    _everywhere(0.005, None, f"{_CARLINI}: a larger budget is a stronger attack; protocol: amber; threshold ours"),
)
UNION = Rule(
    "union never rises",
    "largest rise, from one radius to the next, of accuracy over all attacks and smaller radii",
    _everywhere(0, 0, "protocol: it may not; a rise is a mistake of the table"),
    share=False,
)
MARGIN = Rule(
    "cross-entropy against margin",
    "accuracy under PGD-20 above that under CW-20",
    _pilots(0.05, 0.3, "Croce and Hein 2020, arXiv:2003.01690, section 4"),
)
GAP = Rule(
    "PGD-20 against AutoAttack",
    "accuracy under PGD-20 above that under AutoAttack",
    (
        Bounds(0.05, 0.1, "Croce and Hein 2020, arXiv:2003.01690: more than 10 points mark broken defences", CIFAR),
        *_pilots(0.1, 0.25, "Croce and Hein 2020, arXiv:2003.01690"),
    ),
)
SQUARE_STAGE = Rule(
    "Square inside AutoAttack",
    "share of images that Square alone took, after APGD and FAB",
    _everywhere(0.002, 0.05, f"{_FLAGS}, 0.2 points; red is ours"),
)
BEST = Rule(
    "best against last",
    "difference between the two checkpoints under the strongest attack that both faced",
    (
        Bounds(0.05, None, "Rice et al. 2020, arXiv:2002.11569 (robust overfitting); threshold ours", CIFAR),
        *_pilots(0.05, None, "Rice et al. 2020, arXiv:2002.11569"),
    ),
)
ALARM = Rule(
    "overfitting alarm",
    "1 where the checkpoint was taken after catastrophic overfitting, or while labels leaked",
    _everywhere(0, None, "Wong et al. 2020, arXiv:2001.03994; the rule is that of the training's alarm"),
    share=False,
)

RULES = {
    rule.name: rule
    for rule in (
        *(EVAL_MODE, REPEATABLE, ALONE_OR_TOGETHER, PROBABILITIES, ONE_CLASS, CLASSES),
        *(FINITE, ZERO_CE, ZERO_MARGIN, DIFFERENCES, SATURATION),
        *(SCALED, ONE_STEP, FGSM, CONVERGED, RESTARTS, STEP_SIZE, WHOLE_RANGE),
        *(NOISE, SQUARE, TRANSFER, SAVED),
        *(FALLS, UNION, MARGIN, GAP, SQUARE_STAGE, BEST, ALARM),
    )
}
