"""What a reader should see beside a method's row: what it learned from, and what it says of its own training."""

import pandas as pd


def remarks(cards: pd.DataFrame) -> str:
    """Put what the method itself tells (``AdversarialTraining.remarks``) into one line, the mean over its runs.

    Marks are words: each is told once, with how many of the runs have it where that is not all of them.
    """
    told = [card or {} for card in cards.remarks]
    numbers = pd.DataFrame([{name: value for name, value in one.items() if not isinstance(value, str)} for one in told])
    marks = [value for one in told for value in one.values() if isinstance(value, str)]
    counts = {mark: marks.count(mark) for mark in dict.fromkeys(marks)}
    said = [mark if count == len(told) else f"{mark} ({count} of {len(told)} runs)" for mark, count in counts.items()]
    said += [f"{str(name).replace('_', ' ')} {numbers[name].mean():.3g}" for name in numbers]
    return ", ".join(said)


def data_note(cards: pd.DataFrame, accuracy: float) -> str:
    """Say on a row what it learned from, and how good its teacher was; empty where it saw every label."""
    first = cards.iloc[0]
    if not first.data_note:
        return ""
    parts = [first.data_note, f"N = {first.labels:.0f} labels"]
    if not pd.isna(first.validation_labels):
        parts[-1] += f", and V = {first.validation_labels:.0f} more that choose the best checkpoint"
    if not pd.isna(accuracy):
        parts.append(f"its teacher is right on {100 * accuracy:.1f}% of the unlabelled images")
    if cards.teacher_limited.fillna(False).any():
        parts.append("teacher-limited")
    return "; ".join(parts)
