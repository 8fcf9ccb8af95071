import pytest
import torch
from torch import nn

from attacks import ThreatModel, counting
from attacks.engine import Job, Jobs, run
from attacks.fab import FAB
from attacks.oracle import Oracle
from attacks.randomness import uniform
from benchmark.architectures.small_cnn import small_cnn
from tests.attacks.test_third_party import test_images as images_of
from tests.attacks.test_third_party import weights
from tests.models import Constant, curved, images, linear

NORMS = {"linf": "Linf", "l2": "L2", "l1": "L1"}


def noise(jobs):
    each = zip(jobs.x.split(1), jobs.indices, jobs.phase, strict=True)
    return torch.cat([uniform(image, [index], "noise", phase) for image, index, phase in each])


@torch.no_grad()
def jobs_of(network, x, y, phase=0):
    return Jobs(x, y, list(range(len(x))), [phase] * len(x), network(x).argsort(1))


def smallest_distances(attack, network, jobs):
    """What the authors' attack reports: how far the nearest misclassified point of the whole search is, else inf."""
    state, oracle = attack.begin(jobs), Oracle(network)
    smallest = torch.full((len(jobs.x),), torch.inf)
    for _ in range(attack.iterations):
        state, found = attack.step(state, oracle)
        wrong = oracle.confirms(found.points, jobs.y)
        distance = attack.threat.distance(found.points, jobs.x)
        smallest = torch.where(wrong, torch.minimum(smallest, distance), smallest)
    assert found.finished.all()
    return smallest


def official_distances(network, x, y, threat, *, iterations=100, target=None):
    fab = pytest.importorskip("pyautoattack.fab_pt").FABAttack_PT(
        network, norm=NORMS[threat.norm], n_iter=iterations, eps=threat.epsilon, device=x.device
    )
    fab.target_class = None if target is None else target + 2
    adversarial = fab.attack_single_run(x, y, is_targeted=target is not None)
    with torch.no_grad():
        wrong = network(adversarial).argmax(1) != y
    return torch.where(wrong, threat.distance(adversarial, x), torch.inf)


@pytest.fixture(scope="module")
def hard():
    """Small images, a network without a closed form, and labels that are its predictions."""
    network = nn.Sequential(curved(channels=2), nn.Linear(10, 6))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        network[1].reset_parameters()
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    x = images(24, channels=2)
    with torch.no_grad():
        return network.eval(), x, network(x).argmax(1)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("target", [0, 2, None])
def test_the_smallest_distances_are_the_authors(norm, target, hard):
    network, x, y = hard
    attack = FAB(ThreatModel(norm), noise, targeted=target is not None, iterations=20)
    found = smallest_distances(attack, network, jobs_of(network, x, y, target or 0))
    theirs = official_distances(network, x, y, attack.threat, iterations=20, target=target)
    assert theirs.isfinite().any()
    torch.testing.assert_close(found, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("targeted", [True, False])
def test_a_linear_network_is_crossed_at_its_closed_form(norm, targeted):
    network, x = linear(classes=5), images(8)
    with torch.no_grad():
        logits = network(x)
    y = logits.argmax(1)
    dual = {"linf": 1, "l2": 2, "l1": float("inf")}[norm]
    steep = torch.linalg.vector_norm(network.weight[y][:, None] - network.weight[None], dual, dim=2)
    radius = torch.where(steep > 0, (logits.gather(1, y[:, None]) - logits) / steep, torch.inf).amin(1).detach()
    attack = FAB(ThreatModel(norm, low=-10, high=10), noise, targeted=targeted, iterations=10)
    phases = range(4) if targeted else (0,)
    found = [smallest_distances(attack, network, jobs_of(network, x, y, phase)) for phase in phases]
    smallest = torch.stack(found).amin(0)
    assert (smallest >= radius * (1 - 1e-5)).all()
    assert (smallest <= radius * 1.01).all()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("targeted", [True, False])
def test_pictures_of_a_run_are_in_ball_and_range_and_what_holds_was_out_of_reach(norm, targeted, hard):
    network, x, y = hard
    full = FAB(ThreatModel(norm), noise, targeted=targeted, iterations=10)
    nearest = torch.stack(
        [smallest_distances(full, network, jobs_of(network, x, y, phase)) for phase in (range(5) if targeted else (0,))]
    ).amin(0)
    threat = ThreatModel(norm, float(nearest.median()) * 1.0001)
    ended = []
    jobs = [Job(row, phase) for phase in (range(5) if targeted else (0,)) for row in range(len(x))]
    with torch.no_grad():
        ranking = network(x).argsort(1)
    attack = FAB(threat, noise, targeted=targeted, iterations=10)
    run(attack, Oracle(network), x, y, range(len(x)), ranking, jobs, slots=7, done=ended.append)
    fooled = {outcome.job.row: outcome.picture for outcome in ended if outcome.picture is not None}
    assert {row for row in range(len(x)) if nearest[row] <= threat.epsilon} == set(fooled)
    for row, picture in fooled.items():
        assert threat.distance(picture[None], x[row, None]) <= threat.epsilon
        assert picture.min() >= 0
        assert picture.max() <= 1


@pytest.mark.parametrize("targeted", [True, False])
def test_an_iteration_costs_two_forwards_and_a_backward_for_each_function_that_is_linearised(targeted, hard):
    network, x, y = hard
    attack, oracle = FAB(ThreatModel(), noise, targeted=targeted), Oracle(network)
    state = attack.begin(jobs_of(network, x, y))
    with counting(network) as passes:
        attack.step(state, oracle)
    assert (passes.forward, passes.backward) == (2 * len(x), (1 if targeted else 6) * len(x))
    assert (oracle.forward, oracle.backward) == (2, 1 if targeted else 6)


def test_the_first_run_starts_at_the_image_and_restarts_within_half_the_radius(hard):
    network, x, y = hard
    for norm in NORMS:
        threat = ThreatModel(norm, 0.5)
        mixed = jobs_of(network, x[:3], y[:3])._replace(phase=[0, 1, 4])
        first, second, fifth = threat.distance(FAB(threat, noise).begin(mixed).point, x[:3]).tolist()
        assert first == 0 < min(second, fifth)
        assert max(second, fifth) <= 0.2501
        assert torch.equal(FAB(threat, noise, targeted=True).begin(mixed).point, x[:3])


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("targeted", [True, False])
def test_a_constant_network_is_not_fooled_and_leaves_images_in_place(norm, targeted):
    network, x = Constant([1.0, 0.0, 0.5]), images(4)
    y = torch.zeros(4, dtype=torch.long)
    attack = FAB(ThreatModel(norm), noise, targeted=targeted)
    state, found = attack.step(attack.begin(jobs_of(network, x, y)), Oracle(network))
    torch.testing.assert_close(state.point, x)
    assert not found.fooled.any()


def test_no_gradient_reaches_a_parameter():
    network, x = curved(), images(4)
    y = network(x).argmax(1)
    for targeted in (True, False):
        attack = FAB(ThreatModel(), noise, targeted=targeted)
        attack.step(attack.begin(jobs_of(network, x, y)), Oracle(network))
    assert all(parameter.grad is None for parameter in network.parameters())


def test_slopes_are_the_rows_of_the_jacobian():
    network, x = linear(classes=4), images(3)
    logits, slopes = Oracle(network).slopes(x)
    torch.testing.assert_close(logits, network(x).detach())
    torch.testing.assert_close(slopes.flatten(2), network.weight.detach().expand(3, 4, 64))


@pytest.mark.parametrize(("norm", "epsilon"), [("linf", 0.35), ("l2", 1.4), ("l1", 30.0)])
def test_verdicts_on_a_third_party_network_are_the_authors(norm, epsilon):
    network = small_cnn(classes=10, channels=1, size=28)
    network.load_state_dict(weights("trades_mnist_smallcnn.pt"))
    network.eval().requires_grad_(False)
    x, y = (part[:32] for part in images_of("MNIST"))
    threat = ThreatModel(norm, epsilon)
    # Later the last bits of logits decide where the search goes: theirs disagrees with itself if batches are cut anew.
    found = smallest_distances(FAB(threat, noise, targeted=True, iterations=30), network, jobs_of(network, x, y))
    theirs = official_distances(network, x, y, threat, iterations=30, target=0)
    clear = (theirs - epsilon).abs() > 1e-4 * epsilon
    assert 0 < (theirs <= epsilon).sum() < 32
    assert torch.equal((found <= epsilon)[clear], (theirs <= epsilon)[clear])
    assert ((found - theirs).abs() <= 1e-4 * theirs)[theirs.isfinite()].float().mean() > 0.85
