"""Networks: sizes derived by hand, the initialisation's spread, normalisation inside, weights that fit or say why."""

import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edc.errors import CheckpointError, RecipeError
from edc.networks import Classifier, build_network, count_parameters, load_weights, require_logits
from edc.recipe import NetworkSection

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def build(name: str, *, num_classes: int = 10, shape: tuple[int, int, int] = (3, 32, 32), **section) -> Classifier:
    channels = shape[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torchvision's, about its own initialisation
        return build_network(
            NetworkSection(name=name, **section),
            num_classes=num_classes,
            image_shape=shape,
            mean=MEAN[:channels],
            std=STD[:channels],
        )


def wrn_parameters(depth: int, width: int, num_classes: int, channels: int = 3) -> int:
    """Counted from the paper: 3x3 convolutions without bias, two per block, BatchNorm before each, 1x1 projections."""
    blocks = (depth - 4) // 6
    total, before = channels * 16 * 9, 16
    for stage in range(3):
        after = 16 * width * 2**stage
        for block in range(blocks):
            total += 2 * before + before * after * 9 + 2 * after + after * after * 9
            if block == 0 and (before != after or stage > 0):
                total += before * after
            before = after
    return total + 2 * before + before * num_classes + num_classes


@pytest.mark.parametrize(("depth", "width"), [(10, 1), (16, 2), (28, 1), (28, 4)])
def test_wrn_has_the_papers_number_of_parameters(depth, width):
    assert count_parameters(build(f"wrn{depth}x{width}", num_classes=100)) == wrn_parameters(depth, width, 100)


def test_wrn_28_10_is_the_published_36_5_million():
    with torch.device("meta"):
        from edc.networks import WideResNet

        network = WideResNet(28, 10, 10)
    assert count_parameters(network) == wrn_parameters(28, 10, 10) == 36_479_194


@pytest.mark.parametrize(("depth", "width"), [(8, 1), (20, 1), (20, 2)])
def test_cifar_resnet_has_the_papers_number_of_parameters(depth, width):
    blocks, total, before = (depth - 2) // 6, 3 * 16 * 9 + 32, 16
    for stage in range(3):
        after = 16 * width * 2**stage
        for _ in range(blocks):
            total += before * after * 9 + after * after * 9 + 4 * after
            before = after
    total += before * 10 + 10
    name = f"cifar_resnet{depth}" + (f"x{width}" if width > 1 else "")
    assert count_parameters(build(name)) == total
    if (depth, width) == (20, 1):
        assert total == 269_722  # He et al.: 0.27 million


def test_wrn_computes_what_the_paper_draws():
    """Pre-activation: BN, ReLU, conv, BN, ReLU, conv plus the raw input or its 1x1 projection; mean pooling."""
    network = build("wrn16x1").double().eval()
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.copy_(torch.randn(module.num_features, generator=generator))
            module.running_var.uniform_(0.5, 2, generator=generator)
            nn.init.uniform_(module.weight, 0.5, 2)
    p = {key.removeprefix("network."): value for key, value in network.state_dict().items()}

    def norm(x: Tensor, name: str) -> Tensor:
        shape = (1, -1, 1, 1)
        x = (x - p[f"{name}.running_mean"].view(shape)) / (p[f"{name}.running_var"].view(shape) + 1e-5).sqrt()
        return (x * p[f"{name}.weight"].view(shape) + p[f"{name}.bias"].view(shape)).clamp_min(0)

    images = torch.rand((2, 3, 16, 16), generator=generator, dtype=torch.float64)
    x = (images - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)
    x = F.conv2d(x, p["stem.weight"], padding=1)
    for block in range(6):
        stride = 2 if block in (2, 4) else 1
        y = F.conv2d(norm(x, f"blocks.{block}.norm1"), p[f"blocks.{block}.conv1.weight"], stride=stride, padding=1)
        y = F.conv2d(norm(y, f"blocks.{block}.norm2"), p[f"blocks.{block}.conv2.weight"], padding=1)
        projection = p.get(f"blocks.{block}.shortcut.weight")
        assert (projection is None) == (block not in (2, 4))
        x = y + (x if projection is None else F.conv2d(x, projection, stride=stride))
    pooled = norm(x, "norm").mean((2, 3))
    expected = pooled @ p["classifier.weight"].T + p["classifier.bias"]
    torch.testing.assert_close(network(images), expected, rtol=1e-10, atol=1e-10)


def test_cifar_resnet_shortcut_is_strided_and_padded_with_zero_channels():
    network = build("cifar_resnet8").double().eval()
    block = network.network.blocks[1]
    nn.init.zeros_(block.norm2.weight)  # the residual branch is off: only the shortcut is left
    x = torch.rand(2, 16, 6, 6, dtype=torch.float64)
    y = block(x)
    assert torch.equal(y[:, :16], x[:, :, ::2, ::2])
    assert torch.equal(y[:, 16:], torch.zeros(2, 16, 3, 3, dtype=torch.float64))


@pytest.mark.parametrize("name", ["wrn16x4", "cifar_resnet20x4"])
def test_weights_start_he_normal_and_truncated(name):
    torch.manual_seed(0)
    network = build(name)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            fan_in = module.weight[0].numel()
            assert module.weight.abs().max() <= 2 * math.sqrt(2 / fan_in) / 0.8796256610342398 + 1e-6
            spread = module.weight.std() / math.sqrt(2 / fan_in)
            assert abs(spread - 1) < 4 / math.sqrt(2 * module.weight.numel()), "not the variance 2 / fan_in"
            assert abs(module.weight.mean()) < 5 * math.sqrt(2 / fan_in / module.weight.numel())
            assert module.bias is None or not module.bias.any()


def test_normalisation_is_inside_the_network():
    network = build("cifar_resnet8").double().eval()
    images = torch.rand(2, 3, 16, 16, dtype=torch.float64)
    scaled = torch.stack([(images[:, c] - MEAN[c]) / STD[c] for c in range(3)], 1)
    torch.testing.assert_close(network(images), network.network(scaled), rtol=1e-6, atol=1e-7)


def test_sections_own_normalisation_wins_over_the_datas():
    network = build("cifar_resnet8", mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    assert network.mean.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert network.std.flatten().tolist() == pytest.approx([0.5, 0.6, 0.7])


def test_normalisation_of_another_number_of_channels_is_refused():
    with pytest.raises(RecipeError, match="mean has 3 values, the images have 1 channels"):
        build("wrn10x1", shape=(1, 28, 28), mean=MEAN, std=STD)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("wrn10x1", (1, 8, 8)),
        ("cifar_resnet8", (1, 28, 28)),
        ("torchvision/resnet18", (3, 64, 64)),
        ("torchvision/mobilenet_v3_small", (1, 64, 64)),
        ("timm/resnet18", (3, 64, 64)),
        ("timm/convnext_atto", (1, 64, 64)),
        ("timm/vit_tiny_patch16_224", (1, 32, 32)),
    ],
)
def test_network_has_the_datas_classes_and_channels(name, shape):
    network = build(name, num_classes=7, shape=shape)
    require_logits(network, shape, 7, source=name)
    x = torch.rand(2, *shape, requires_grad=True)
    gradient = torch.autograd.grad(network.eval()(x).square().sum(), x)[0]
    assert (gradient.abs().sum((0, 2, 3)) > 0).all(), "a channel does not reach the logits"


@pytest.mark.parametrize(("name", "first"), [("torchvision/resnet18", "conv1"), ("timm/resnet18", "conv1")])
def test_library_network_by_name_is_the_librarys_own(name, first):
    network = build(name, num_classes=1000).network
    assert type(network).__module__.startswith(name.split("/", maxsplit=1)[0])
    assert count_parameters(network) == 11_689_512  # ResNet-18 of ImageNet
    assert getattr(network, first).weight.shape == (64, 3, 7, 7)


def test_unknown_library_network_is_refused_with_near_names():
    with pytest.raises(RecipeError, match=r"timm/resnet19: timm has no such network"):
        build("timm/resnet19")
    with pytest.raises(RecipeError, match="torchvision/resnet19: torchvision has no such classification network"):
        build("torchvision/resnet19")


def test_network_that_does_not_take_such_images_is_refused():
    with pytest.raises(RecipeError, match=r"vit: does not take images of \(3, 32, 32\)"):
        require_logits(build("torchvision/vit_b_16"), (3, 32, 32), 10, source="vit")
    with pytest.raises(RecipeError, match=r"wrn: returns \(2, 10\) for two images, expected logits \(2, 9\)"):
        require_logits(build("wrn10x1"), (3, 32, 32), 9, source="wrn")


def test_trying_a_network_leaves_its_statistics_alone():
    network = build("wrn10x1")
    before = {key: value.clone() for key, value in network.state_dict().items()}
    require_logits(network, (3, 32, 32), 10, source="wrn")
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_classifier_that_is_no_linear_layer_is_refused():
    with pytest.raises(RecipeError, match="SqueezeNet: its classifier is not a linear layer"):
        build("torchvision/squeezenet1_0")


def loaded(state: dict[str, Tensor], name: str = "wrn10x1", num_classes: int = 10) -> Classifier:
    network = build(name, num_classes=num_classes)
    load_weights(network, state, source="file.pt", num_classes=num_classes)
    return network


@pytest.mark.parametrize("wrapper", ["", "module.", "_orig_mod.", "_orig_mod.module.", "bare"])
def test_weights_load_with_and_without_wrappers(wrapper):
    donor = build("wrn10x1", mean=(0.1, 0.2, 0.3), std=STD)
    if wrapper == "bare":
        state = donor.network.state_dict()
    else:
        state = {f"{wrapper}{key}": value for key, value in donor.state_dict().items()}
    network = loaded(state)
    for key, value in donor.network.state_dict().items():
        assert torch.equal(network.network.state_dict()[key], value)
    if wrapper != "bare":  # the checkpoint's own normalisation comes with it
        assert torch.equal(network.mean, donor.mean)


def test_weights_of_another_depth_name_the_first_differing_keys():
    with pytest.raises(CheckpointError) as caught:
        loaded(build("wrn16x1").state_dict())
    lines = str(caught.value).splitlines()
    assert lines[0] == "file.pt: these weights do not fit WideResNet as the recipe describes it"
    assert lines[1].strip() == (
        "network.blocks.1.conv1.weight: (16, 16, 3, 3) in the file, (32, 16, 3, 3) in the network"
    )
    assert lines[-1].strip().startswith("... and ")


def test_weights_of_another_width_name_both_shapes():
    with pytest.raises(CheckpointError, match=r"\(160, 16, 3, 3\) in the file, \(16, 16, 3, 3\) in the network"):
        loaded(build("wrn10x10").state_dict())


def test_weights_of_another_number_of_classes_say_so():
    with pytest.raises(CheckpointError, match=r"file.pt: a classifier of 7 classes .*, the data has 10"):
        loaded(build("wrn10x1", num_classes=7).state_dict())


def test_class_count_is_read_from_the_classifier_whatever_the_order_of_keys():
    """A safetensors file lists its keys by name; of a ConvNeXt's matrices `head.fc` is then not the last."""
    state = build("timm/convnext_atto", num_classes=5).state_dict()
    alphabetical = {key: state[key] for key in sorted(state)}
    network = loaded(alphabetical, "timm/convnext_atto", num_classes=5)
    assert torch.equal(network.state_dict()["network.head.fc.weight"], state["network.head.fc.weight"])
