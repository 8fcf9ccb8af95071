from pathlib import Path

import pytest
import torch
from torch import nn

from benchmark.architectures import Normalise, build, describe, names
from benchmark.errors import BadInput

MODELS = Path(__file__).parents[3] / "shared" / "models"  # third-party weights, beside the checkout where they exist
QUICK = [name for name in names() if not name.startswith("wrn")]
CIFAR = {"classes": 10, "channels": 3, "size": 32}
DIGITS = {"classes": 10, "channels": 1, "size": 8}
MNIST = {"classes": 10, "channels": 1, "size": 28}


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize("name", [*QUICK, "wrn-10-1"])
@pytest.mark.parametrize("shape", [DIGITS, MNIST, CIFAR], ids=["8x8x1", "28x28x1", "32x32x3"])
def test_every_network_turns_images_into_logits(name, shape):
    if name in ("small_cnn", "tramer_a", "tramer_b") and shape == DIGITS:
        return  # their unpadded convolutions need more pixels, as another test says
    network = build(name, **shape).eval()
    with torch.no_grad():
        assert network(torch.rand(2, shape["channels"], shape["size"], shape["size"])).shape == (2, 10)


@pytest.mark.parametrize("side", [9, 10, 13, 31])
def test_odd_sizes_fit_where_flattening_counts_pixels(side):
    for name in ("digits_cnn", "mnist_small", "resnet8"):
        network = build(name, classes=3, channels=1, size=side).eval()
        assert network(torch.rand(1, 1, side, side)).shape == (1, 3)


@pytest.mark.parametrize(
    ("name", "settings", "count"),
    [
        ("resnet20", {}, 269_722),  # 0.27 million in table 6 of He et al. (CVPR 2016), option A
        ("resnet20", {"shortcut": "B"}, 272_474),
        ("resnet32", {}, 464_154),  # 0.46 million in table 6
        ("resnet18", {}, 11_173_962),
        ("resnet50", {}, 23_520_842),  # of kuangliu's and of Madry's library
        ("densenet161", {}, 26_482_378),  # of kuangliu's
        ("madry_resnet", {}, 45_901_914),
        ("preact_resnet18", {}, 11_172_170),
        ("preact_resnet18", {"final_norm": False}, 11_171_146),
        ("wrn-40-2", {}, 2_243_546),  # 2.2 million in table 4 of Zagoruyko & Komodakis
        ("wrn-28-10", {}, 36_479_194),  # 36.5 million there
        ("wrn-34-10", {}, 46_160_474),
        ("wrn-32-10", {}, 46_160_474),  # the same network, projections not counted
    ],
)
def test_parameter_counts_are_the_published_ones(name, settings, count):
    with torch.device("meta"):
        assert parameters(build(name, **CIFAR, **settings)) == count


def test_a_wide_resnet_is_the_same_by_either_name():
    with torch.device("meta"):
        short, long = build("wrn-16-4", **CIFAR), build("wrn", depth=16, width=4, **CIFAR)
    assert {key: value.shape for key, value in short.state_dict().items()} == {
        key: value.shape for key, value in long.state_dict().items()
    }


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("mnist_small", {"0.weight", "2.bias", "5.weight", "7.bias"}),
        ("small_cnn", {"feature_extractor.conv4.weight", "classifier.fc1.weight", "classifier.fc3.bias"}),
        ("resnet18", {"conv1.weight", "layer2.0.shortcut.0.weight", "layer2.0.shortcut.1.running_var", "linear.bias"}),
        ("preact_resnet18", {"layer1.0.bn1.weight", "layer4.0.shortcut.0.weight", "bn.running_mean", "linear.weight"}),
        ("wrn-10-1", {"block1.layer.0.bn1.weight", "block2.layer.0.convShortcut.weight", "bn1.weight", "fc.weight"}),
    ],
)
def test_the_body_has_the_keys_of_public_weights(name, keys):
    assert keys <= build(name, **CIFAR).body.state_dict().keys()


@pytest.mark.parametrize(
    ("name", "file"), [("mnist_small", "kw_mnist_01.pth"), ("small_cnn", "trades_mnist_smallcnn.pt")]
)
def test_third_party_weights_load_strictly(name, file):
    if not (MODELS / file).exists():
        pytest.skip(f"needs the third-party weights {MODELS / file}")
    body = build(name, **MNIST).body
    body.load_state_dict(torch.load(MODELS / file, map_location="cpu", weights_only=True), strict=True)


def test_the_mnist_network_takes_colour_images_in_the_published_layout():
    # 2,048 flattened features: the CIFAR form of the same network, cifar_cnn_a_adv4 in the third-party set.
    assert build("mnist_small", **CIFAR).body[5].in_features == 2048


def test_normalisation_comes_first_and_is_saved_with_the_weights():
    network = build("digits_cnn", **DIGITS, mean=(0.25,), std=(0.5,))
    assert isinstance(network[0], Normalise)
    torch.testing.assert_close(network[0](torch.full((1, 1, 8, 8), 0.75)), torch.ones(1, 1, 8, 8))
    assert {"normalise.mean", "normalise.std"} <= network.state_dict().keys()


def test_without_normalisation_only_that_layer_is_missing():
    plain = build("digits_cnn", **DIGITS).state_dict().keys()
    normalised = build("digits_cnn", **DIGITS, mean=(0.3,), std=(0.4,)).state_dict().keys()
    assert normalised - plain == {"normalise.mean", "normalise.std"}
    assert plain <= normalised


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_pixels_on_the_bounds_keep_their_gradient(value):
    layer = Normalise((0.5, 0.4, 0.3), (0.2, 0.25, 0.5))
    x = torch.full((1, 3, 4, 4), value, requires_grad=True)
    layer(x).sum().backward()
    torch.testing.assert_close(x.grad, (1 / layer.std).expand(1, 3, 4, 4))


def test_nothing_is_clamped_outside_the_box():
    layer = Normalise((0.5,), (0.5,))
    torch.testing.assert_close(layer(torch.tensor([[[[-1.0, 2.0]]]])), torch.tensor([[[[-3.0, 3.0]]]]))


@pytest.mark.parametrize("name", ["digits_cnn", "small_cnn", "resnet8", "preact_resnet18", "wrn-10-2"])
def test_a_seed_fixes_the_weights(name):
    networks = []
    for _ in range(2):
        torch.manual_seed(3)
        networks.append(build(name, **CIFAR))
    for first, second in zip(*(network.state_dict().values() for network in networks), strict=True):
        torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_a_wide_resnet_without_dropout_draws_nothing():
    network = build("wrn-10-1", **CIFAR).train()
    before = torch.get_rng_state()
    network(torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(before, torch.get_rng_state())
    assert any(isinstance(module, nn.Dropout) for module in build("wrn-10-1", **CIFAR, dropout=0.3).modules())


def test_the_last_layer_of_small_cnn_starts_at_zero():
    assert not build("small_cnn", **MNIST).eval()(torch.rand(2, 1, 28, 28)).any()


def test_the_two_shortcuts_of_the_preact_network_differ_only_where_shapes_change():
    torch.manual_seed(0)
    preact = build("preact_resnet18", **CIFAR, shortcut="preact").body.eval()
    raw = build("preact_resnet18", **CIFAR, shortcut="raw").body.eval()
    raw.load_state_dict(preact.state_dict())
    x = torch.randn(1, 64, 8, 8)
    torch.testing.assert_close(raw.layer1(x), preact.layer1(x))
    first, other = preact.layer2[0], raw.layer2[0]
    seen = first.relu1(first.bn1(x))
    torch.testing.assert_close(first(x) - other(x), first.shortcut(seen) - first.shortcut(x), rtol=1e-4, atol=1e-5)


def test_the_parameter_free_shortcut_subsamples_and_pads_with_zeros():
    shortcut = build("resnet8", **CIFAR).body.layer2[0].shortcut
    x = torch.rand(1, 16, 7, 7)
    out = shortcut(x)
    torch.testing.assert_close(out[:, :16], x[:, :, ::2, ::2])
    assert out.shape == (1, 32, 4, 4)
    assert not out[:, 16:].any()


@pytest.mark.parametrize(("name", "places"), [("digits_cnn", 3), ("mnist_small", 3), ("resnet8", 7)])
def test_every_activation_is_a_module_called_once(name, places):
    # Methods that swap or follow activations (smooth_at, sads) count on it.
    network, calls = build(name, **MNIST), []
    for module in network.modules():
        if isinstance(module, nn.ReLU):
            module.register_forward_hook(lambda module, *_: calls.append(module))
    network(torch.rand(2, 1, 28, 28))
    assert len(calls) == len(set(calls)) == places


def test_a_torchvision_classifier_is_built_by_name():
    network = build("torchvision/resnet18", classes=7, channels=3, size=32, mean=(0.5,) * 3, std=(0.2,) * 3)
    assert network.training
    assert network.body.fc.out_features == 7


def test_a_vision_transformer_learns_the_image_size():
    network = build("torchvision/vit_b_32", **CIFAR).eval()
    assert network(torch.rand(1, 3, 32, 32)).shape == (1, 10)


def test_names_are_sorted_and_each_has_one_line():
    assert names() == sorted(names())
    assert {"digits_cnn", "mnist_small", "small_cnn", "resnet8", "preact_resnet18", "wrn-34-10"} <= set(names())
    for name in [*names(), "torchvision/resnet18", "wrn-16-4"]:
        assert describe(name)
        assert "\n" not in describe(name)


@pytest.mark.parametrize(
    ("name", "arguments", "sentence"),
    [
        ("resnet81", CIFAR, r"no architecture is called 'resnet81'; did you mean resnet8\?.*torchvision/<name>"),
        ("torchvision/resnet81", CIFAR, r"no classifier 'resnet81'; did you mean torchvision/resnet18\?"),
        ("torchvision/resnet18", DIGITS, "takes RGB images .* the data set has 1"),
        ("torchvision/alexnet", CIFAR, "alexnet cannot be built for 3x32x32 images"),
        ("torchvision/resnet18", CIFAR | {"depth": 3}, "cannot be built .* settings {'depth': 3}"),
        ("resnet8", CIFAR | {"widht": 8}, "resnet8 has no setting 'widht'; it accepts width=16, shortcut='A'"),
        ("resnet18", CIFAR | {"width": 8}, "resnet18 has no setting 'width'; it accepts no settings"),
        ("wrn-34-10", CIFAR | {"depth": 28}, "no setting 'depth'; it accepts dropout=0.0"),
        ("resnet8", CIFAR | {"width": "16"}, "setting width of resnet8 must be int, such as 16; got '16'"),
        ("resnet8", CIFAR | {"width": 0}, "must be at least 1, got 0"),
        ("resnet8", CIFAR | {"shortcut": "C"}, "setting shortcut must be one of A, B, got 'C'"),
        ("preact_resnet18", CIFAR | {"shortcut": "post"}, "must be one of preact, raw"),
        ("wrn-35-10", CIFAR, "depth 6n .* got depth 35"),
        ("wrn-34-10", CIFAR | {"dropout": 1}, r"must be in \[0, 1\), got 1"),
        ("small_cnn", DIGITS, "at least 16x16 pixels, got 8x8"),
        ("tramer_a", DIGITS, "tramer_a has unpadded convolutions, for which 8x8 images are too small"),
        ("tramer_b", DIGITS, "tramer_b has unpadded convolutions, for which 8x8 images are too small"),
        ("mnist_small", DIGITS | {"size": 3}, "at least 4x4 pixels, got 3x3"),
        ("resnet8", CIFAR | {"mean": (0.5,), "std": (0.5,)}, "images of 3 channels needs as many means"),
        ("resnet8", CIFAR | {"mean": (0.5,) * 3}, "one mean and one positive std per channel"),
        ("resnet8", CIFAR | {"mean": (0.5,) * 3, "std": (0.5, 0.5, 0.0)}, "one positive std per channel"),
    ],
)
def test_a_mistake_gets_one_sentence_that_says_what_to_do(name, arguments, sentence):
    with pytest.raises(BadInput, match=sentence):
        build(name, **arguments)


# What published recipes change of a network


def test_per_image_standardisation_is_each_images_own():
    network = build("resnet8", **CIFAR, normalise="per_image")
    x = torch.rand(4, 3, 32, 32, dtype=torch.float64) * torch.tensor([1.0, 0.1, 0.5, 0.0]).view(4, 1, 1, 1)
    seen = network.normalise(x)
    torch.testing.assert_close(seen.flatten(1).mean(1), torch.zeros(4, dtype=torch.float64))
    torch.testing.assert_close(seen[:3].flatten(1).std(1, unbiased=False), torch.ones(3, dtype=torch.float64))
    assert (seen[3] == 0).all()  # a flat image: its deviation is floored at 1 / sqrt(3 * 32 * 32)
    torch.testing.assert_close(network.normalise(x[:1]), seen[:1])
    faint = torch.zeros(1, 1, 2, 2, dtype=torch.float64)
    faint[0, 0, 0, 0] = 0.4
    deviation = max((0.1**2 * 3 + 0.3**2) / 4, 1 / 4) ** 0.5
    assert network.normalise(faint)[0, 0, 0, 0].item() == pytest.approx(0.3 / deviation)


def test_images_may_be_left_as_they_are_or_normalised_by_other_figures():
    data = {"mean": (0.5, 0.5, 0.5), "std": (0.2, 0.2, 0.2)}
    assert not hasattr(build("resnet8", **CIFAR, **data, normalise="none"), "normalise")
    own = build("resnet8", **CIFAR, **data, normalise={"mean": [0.1, 0.2, 0.3], "std": [1.0, 2.0, 3.0]})
    assert own.normalise.mean.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])
    for wrong in ("whiten", {"mean": [0.1, 0.2, 0.3]}):
        with pytest.raises(BadInput, match="setting normalise"):
            build("resnet8", **CIFAR, **data, normalise=wrong)


@pytest.mark.parametrize("name", ["resnet18", "wrn-10-1", "torchvision/resnet18"])
def test_every_relu_may_become_another_activation(name):
    plain, smooth = (build(name, **CIFAR, activation=activation) for activation in ("relu", "softplus"))
    kinds = [[type(module) for module in network.modules()] for network in (plain, smooth)]
    assert nn.ReLU not in kinds[1]
    assert kinds[0].count(nn.ReLU) == kinds[1].count(nn.Softplus) > 0
    with pytest.raises(BadInput, match="setting activation must be one of relu, softplus"):
        build(name, **CIFAR, activation="sofplus")


def test_of_maxout_units_the_largest_piece_speaks():
    layer = build("maxout", **DIGITS, units=3, pieces=2).body[2]
    x = torch.rand(5, 64)
    both = layer.linear(x)
    torch.testing.assert_close(layer(x), torch.maximum(both[:, ::2], both[:, 1::2]))


def test_madrys_first_blocks_shortcut_what_is_active():
    block = build("madry_resnet", **CIFAR, depth=8, width=1).body.stage2[0].eval()
    with torch.no_grad():
        block.conv2.weight.zero_()
        x = torch.randn(1, 16, 4, 4)
        out = block(x)
    active = nn.functional.avg_pool2d(nn.functional.leaky_relu(x / (1 + 1e-5) ** 0.5, 0.1), 2)
    torch.testing.assert_close(out[:, 8:24], active)
    assert (out[:, :8] == 0).all()
    assert (out[:, 24:] == 0).all()
