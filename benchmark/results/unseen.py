"""Which verdicts are of attacks that no method was trained on: in other norms, and with other networks' pictures."""

ELSEWHERE = {"pgd20_l2": "l2", "pgd50_l1": "l1", "autoattack_l2": "l2", "autoattack_l1": "l1"}  # attack: its norm
AUTOATTACK_ELSEWHERE = tuple(attack for attack in ELSEWHERE if attack.startswith("autoattack"))
TRANSFER = "transfer_"  # before the row whose pictures are shown


def is_unseen(attack: str) -> bool:
    """Whether an attack of the evidence is one of these, on which no ranking rests."""
    return attack in ELSEWHERE or attack.startswith(TRANSFER)
