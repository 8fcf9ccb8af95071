"""Every method of the catalogue trains on two devices at once: two processes over gloo, on the CPU."""

import pytest
import torch

from methods import catalogue
from methods.per_image import PerImage
from tests.methods.ranks import COUNT, fit, train_together
from tests.methods.tools import assert_same

pytestmark = pytest.mark.filterwarnings("ignore")
NAMES = [*catalogue.names(), "smooth", "smooth-atda", "smooth-yopo", "penalty", "remembering", "adt-imp_am"]


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """What each rank ended with, by method: (rank 0, rank 1)."""
    folder = tmp_path_factory.mktemp("ranks")
    train_together(NAMES, folder)
    return {name: [torch.load(folder / f"{name}-{rank}.pt") for rank in range(2)] for name in NAMES}


@pytest.mark.parametrize("name", [*catalogue.names(), "penalty", "adt-imp_am"])
def test_both_ranks_end_with_the_same_weights_statistics_and_score(name, ended):
    first, second = (rank["whole"] for rank in ended[name])
    assert_same(first["weights"], second["weights"])
    assert first["score"] == second["score"]


@pytest.mark.parametrize("name", [*catalogue.names(), "penalty", "adt-imp_am"])
def test_a_resumed_training_on_two_ranks_ends_as_an_undisturbed_one(name, ended):
    for rank in ended[name]:
        assert_same(rank["whole"]["weights"], rank["resumed"]["weights"])
        for kind in ("per_image", "per_row"):
            assert_same(*({k: v for k, v in rank[of][kind].items() if v is not None} for of in ("whole", "resumed")))


@pytest.mark.parametrize("name", ["smooth", "smooth-atda", "smooth-yopo"])
def test_two_halves_of_a_batch_give_the_step_of_the_whole(name, ended):
    alone = fit(name, rank=0, ranks=1)
    together = ended[name][0]["whole"]
    torch.testing.assert_close(dict(alone.state_dict()), together["weights"], rtol=1e-9, atol=1e-12)
    if name == "smooth-atda":  # sums and counts of both halves
        torch.testing.assert_close(alone.centres, together["centres"], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("name", "memory"), [("iaat", "radii"), ("mma", "margins"), ("cat_customized", "radii")])
def test_every_rank_has_the_values_of_all_images(name, memory, ended):
    first, second = (rank["whole"]["per_image"][memory] for rank in ended[name])
    assert torch.equal(first, second)
    assert len(first) == COUNT


def test_ranks_that_search_for_different_numbers_of_images_wait_for_nobody(ended):
    found = (ended["mma"][0]["whole"]["per_image"]["margins"] > 0).tolist()
    assert sum(found[0::2]) != sum(found[1::2])  # dealt to rank 0, and to rank 1
    assert 0 < sum(found) < COUNT


def test_of_an_image_that_both_ranks_saw_the_first_occurrence_counts(ended):
    for rank in ended["remembering"]:
        seen_by = rank["whole"]["per_image"]["seen_by"]
        # Image 0 is the first of rank 0 and fills the last batch of rank 1, where it stands first among its like.
        assert seen_by.tolist() == [1, *[index % 2 for index in range(1, COUNT)]]


def test_noise_of_the_rows_is_each_ranks_own(ended):
    first, second = (rank["whole"]["per_row"]["noise"] for rank in ended["free_at"])
    assert first.shape == second.shape
    assert not torch.equal(first, second)


def test_class_centres_are_those_of_all_ranks_and_survive_a_resumption(ended):
    first, second = ended["atda"]
    assert first["whole"]["centres"].abs().sum() > 0
    for other in (first["resumed"], second["whole"], second["resumed"]):
        assert torch.equal(first["whole"]["centres"], other["centres"])


def test_a_table_keeps_the_first_of_repeated_indices_and_grows():
    table = PerImage(0.5)
    table.store(torch.tensor([4, 1, 4]), torch.tensor([1.0, 2.0, 3.0]))
    assert table.of(torch.tensor([0, 1, 4, 7])).tolist() == [0.5, 2.0, 1.0, 0.5]
    assert table.written().tolist() == [2.0, 1.0]
    assert PerImage(-1).of(torch.tensor([3])).dtype == torch.int64
