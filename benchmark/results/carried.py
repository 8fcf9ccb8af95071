"""Recheck verdicts that were carried from one epsilon to another against the verdicts that they come from."""

from collections.abc import Iterator

import pandas as pd

from benchmark.results.finding import Finding, place

_IMAGE = ["experiment", "checkpoint", "attack", "image"]
_COPIED = ["label", "clean_prediction", "prediction", "fooled", "by", "margin", "confidence", "engine"]


def unfounded(verdicts: pd.DataFrame) -> Iterator[Finding]:
    """Yield each carried verdict without a source: the same verdict, not carried itself, on the same image.

    Who was fooled was so at a smaller or equal epsilon, by the same picture, which is checked there; who held, at a
    larger one. ``verdicts`` as ``evidence.read`` gives.
    """
    seen = verdicts.rename(columns={"index": "image"}).astype(dict.fromkeys((*_IMAGE[:3], "by", "engine"), "str"))
    carried, full = seen[seen.carried], seen[~seen.carried]
    if carried.empty:
        return
    both = carried.reset_index(names="row").merge(
        full[[*_IMAGE, *_COPIED, "epsilon"]], on=[*_IMAGE, *_COPIED], suffixes=("", "_there")
    )
    follows = (both.epsilon_there <= both.epsilon) == both.fooled
    founded = set(both.row[follows])
    for line in carried[~carried.index.isin(founded)].to_dict("records"):
        where = "a smaller or equal" if line["fooled"] else "a larger"
        what = ", ".join(f"{name} {line[name]}" for name in ("prediction", "fooled", "by", "margin"))
        yield Finding(
            place(line["experiment"], line["checkpoint"], line["attack"], line["epsilon"], line["image"]),
            f"a carried verdict to be that of {where} epsilon at which the image was attacked",
            f"none there with {what}",
        )
