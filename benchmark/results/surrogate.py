"""Which verdicts are of pictures that were made on a surrogate: black-box figures, on which no ranking rests."""

SURROGATE = ("surrogate_fgsm", "surrogate_pgd20", "surrogate_pgd30")
