"""Members against M plain networks, in both forms; folds that load strictly; networks of the libraries."""

import copy
import warnings

import pytest
import torch
from reference import member_state
from small_networks import SmallNetwork, randomise, small_network
from torch import Tensor, nn

from edc.errors import RecipeError
from edc.method.batch_ensemble import (
    BatchEnsembleConv2d,
    BatchEnsembleLinear,
    ensemble_size_of,
    fold,
    member_logits,
    select_members,
    shared_layers,
    to_batch_ensemble,
)
from edc.method.perturb import perturb
from edc.method.step import Batch
from edc.recipe import StudentSection, TrainingSection
from edc.runs.student import student_step
from edc.teachers.ensemble import TeacherEnsemble

M = 3
FORMS = ["activation", "weight"]


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


def random_tensor(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def with_random_factors(network: nn.Module, form: str, seed: int = 1) -> nn.Module:
    return randomise(to_batch_ensemble(network, M, form=form), seed).eval()


def plain_members(network: nn.Module, plain: nn.Module) -> list[nn.Module]:
    """Returns each member as a plain network, strictly loaded."""
    members = []
    for m in range(M):
        member = copy.deepcopy(plain)
        member.load_state_dict(member_state(network, m), strict=True)
        members.append(member.eval())
    return members


class SharedInTwoPlaces(nn.Module):
    """One convolution under two parents, and one linear layer twice under the same parent."""

    def __init__(self) -> None:
        super().__init__()
        shared = nn.Conv2d(3, 3, 3, padding=1)
        linear = nn.Linear(3, 3)
        self.first = nn.Sequential(shared, nn.ReLU())
        self.second = nn.Sequential(nn.BatchNorm2d(3), shared)
        self.head = nn.Sequential(linear, nn.Tanh(), linear)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x)).mean((2, 3)))


LAYERS = {
    "3x3": (nn.Conv2d(4, 6, 3, padding=1), (4, 8, 8)),
    "no bias, strided": (nn.Conv2d(4, 6, 3, stride=2, bias=False), (4, 8, 8)),
    "1x1": (nn.Conv2d(4, 6, 1), (4, 5, 5)),
    "grouped": (nn.Conv2d(6, 9, 3, groups=3), (6, 8, 8)),
    "depthwise": (nn.Conv2d(4, 4, 3, groups=4, padding=1), (4, 8, 8)),
    "depthwise, multiplied": (nn.Conv2d(4, 8, 3, groups=4), (4, 8, 8)),
    "dilated": (nn.Conv2d(4, 6, 3, dilation=2, padding=2), (4, 8, 8)),
    "rectangular": (nn.Conv2d(4, 6, (1, 3), stride=(2, 1), padding=(0, 2)), (4, 8, 7)),
    "padding same": (nn.Conv2d(4, 6, (3, 4), padding="same"), (4, 8, 8)),
    "padding reflect": (nn.Conv2d(4, 6, 3, padding=(1, 2), padding_mode="reflect"), (4, 8, 8)),
    "padding circular": (nn.Conv2d(4, 6, 3, padding=2, padding_mode="circular"), (4, 8, 8)),
    "padding replicate, same": (nn.Conv2d(4, 6, 3, padding="same", padding_mode="replicate"), (4, 8, 8)),
    "linear": (nn.Linear(5, 7), (5,)),
    "linear without bias": (nn.Linear(5, 7, bias=False), (5,)),
    "linear on tokens": (nn.Linear(5, 7), (6, 5)),
    "linear on a grid": (nn.Linear(5, 7), (2, 3, 5)),
}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", LAYERS)
def test_each_member_of_a_single_layer_is_that_plain_layer(case, form):
    layer, shape = LAYERS[case]
    layer = copy.deepcopy(layer).double()
    network = with_random_factors(layer, form)
    assert type(network) in (BatchEnsembleConv2d, BatchEnsembleLinear), "the root itself is converted"
    x = random_tensor(M * 2, *shape)
    y = network(x)
    for m, member in enumerate(plain_members(network, layer)):
        close(y[2 * m : 2 * m + 2], member(x[2 * m : 2 * m + 2]))


@pytest.mark.parametrize("case", LAYERS)
def test_member_weight_is_the_slow_weight_times_the_outer_product(case):
    layer, _ = LAYERS[case]
    network = with_random_factors(copy.deepcopy(layer).double(), "weight")
    groups = getattr(layer, "groups", 1)
    c_out, c_in = layer.weight.shape[:2]
    r, s = 1 + network.rho, 1 + network.sigma
    for m in range(M):
        weight = network.member_weights(r, s)[m].detach()
        for o in range(c_out):
            for c in range(c_in):
                first = o // (c_out // groups) * c_in
                close(weight[o, c], (network.weight[o, c] * s[m, o] * r[m, first + c]).detach())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("build", [SmallNetwork, SharedInTwoPlaces])
def test_nested_network_equals_its_members_as_plain_networks(build, form):
    plain = build().double()
    network = with_random_factors(plain, form)
    images = random_tensor(4, 3, 9, 9)
    logits = member_logits(network, images)
    expected = torch.stack([member(images) for member in plain_members(network, plain)])
    close(logits, expected)
    assert (logits[0] - logits[1]).abs().min() > 1e-6, "members are equal: this test would see nothing"


def test_forms_have_the_same_values_and_gradients_in_train_mode():
    images, gradients = random_tensor(M * 4, 3, 9, 9), {}
    target = random_tensor(M * 4, 5, seed=3)
    for form in FORMS:
        network = with_random_factors(small_network(0), form).train()
        y = network(images)
        (y * target).sum().backward()
        gradients[form] = (
            {name: p.grad for name, p in network.named_parameters()} | dict(network.named_buffers()) | {"y": y}
        )
    assert gradients["weight"].keys() == gradients["activation"].keys()
    for name, value in gradients["weight"].items():
        close(gradients["activation"][name], value)


@pytest.mark.parametrize("form", FORMS)
def test_gradient_of_the_factors_is_m_times_the_plain_one(form):
    layer = nn.Linear(3, 2).double()
    network = with_random_factors(layer, form)
    x, target = random_tensor(M * 4, 3), random_tensor(M * 4, 2, seed=3)
    (network(x) * target).sum().backward()
    r = (1 + network.rho).detach().requires_grad_()
    s = (1 + network.sigma).detach().requires_grad_()
    weight, bias = (p.detach().clone().requires_grad_() for p in (network.weight, network.bias))
    rows = x.view(M, 4, 3) * r[:, None]
    y = (torch.einsum("mnc,oc->mno", rows, weight) + bias) * s[:, None]
    (y * target.view(M, 4, 2)).sum().backward()
    close(network.rho.grad, M * r.grad)
    close(network.sigma.grad, M * s.grad)
    close(network.weight.grad, weight.grad)
    close(network.bias.grad, bias.grad)


@pytest.mark.parametrize("form", FORMS)
def test_all_members_start_equal_to_the_network_and_leave_it_alone(form):
    plain = small_network(0).eval()
    before = {key: value.clone() for key, value in plain.state_dict().items()}
    network = to_batch_ensemble(plain, M, form=form)
    images = random_tensor(4, 3, 9, 9)
    expected = plain(images)
    close(member_logits(network, images), expected.expand(M, -1, -1))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(1)
    assert all(torch.equal(value, before[key]) for key, value in plain.state_dict().items())


def test_conversion_keeps_train_mode_and_what_is_frozen():
    plain = small_network(0).train()
    plain.stem.requires_grad_(False)
    network = to_batch_ensemble(plain, M)
    assert network.training
    assert not network.stem.weight.requires_grad
    assert network.classifier.weight.requires_grad
    assert not to_batch_ensemble(plain.eval(), M).training


@pytest.mark.parametrize("form", FORMS)
def test_selected_members_are_those_members_in_that_order(form):
    plain = small_network(0)
    network = with_random_factors(plain, form)
    images = random_tensor(4, 3, 9, 9)
    members = plain_members(network, plain)
    with select_members(network, (2,)):
        close(network(images), members[2](images))
    with select_members(network, (2, 0)):
        close(network(images.repeat(2, 1, 1, 1)), torch.cat([members[2](images), members[0](images)]))
    with select_members(network, (1, 2, 0)):
        everyone = network(images.repeat(3, 1, 1, 1)).view(3, 4, -1)
        close(everyone, torch.stack([members[m](images) for m in (1, 2, 0)]))
    close(member_logits(network, images)[1], members[1](images))


def test_selection_ends_with_an_error():
    network = to_batch_ensemble(small_network(0), M)
    with pytest.raises(ZeroDivisionError), select_members(network, (0,)):
        _ = 1 / 0
    assert member_logits(network, random_tensor(2, 3, 9, 9)).shape == (M, 2, 5)


def test_batch_that_does_not_divide_into_members_is_refused():
    network = to_batch_ensemble(small_network(0), M)
    with pytest.raises(ValueError, match="a batch of 4 rows cannot be split over 3 members"):
        network(random_tensor(4, 3, 9, 9))


@pytest.mark.parametrize("kind", ["mean_weights", "mean_factors"])
@pytest.mark.parametrize("build", [SmallNetwork, SharedInTwoPlaces])
def test_fold_of_equal_members_is_the_network(build, kind):
    plain = build().double().eval()
    folded = fold(to_batch_ensemble(plain, M), build().double(), kind=kind)
    images = random_tensor(4, 3, 9, 9)
    close(folded(images), plain(images))
    assert not folded.training


@pytest.mark.parametrize("build", [SmallNetwork, SharedInTwoPlaces])
def test_fold_is_the_mean_of_the_member_weights_and_loads_strictly(build):
    plain = build().double()
    network = with_random_factors(plain, "weight")
    folded = fold(network, build().double(), kind="mean_weights").state_dict()
    assert folded.keys() == plain.state_dict().keys()
    states = [member_state(network, m) for m in range(M)]
    for key, value in folded.items():
        close(value.double(), torch.stack([state[key].double() for state in states]).mean(0))


def test_one_linear_layer_folds_to_the_mean_of_its_members_outputs():
    layer = nn.Linear(4, 3).double()
    network = with_random_factors(layer, "weight")
    x = random_tensor(6, 4)
    folded = fold(network, copy.deepcopy(layer), kind="mean_weights")
    close(folded(x), network(x.repeat(M, 1)).view(M, 6, 3).mean(0))


def test_fold_into_another_architecture_is_refused():
    with pytest.raises(RuntimeError, match=r"Missing key|Unexpected key|size mismatch"):
        fold(to_batch_ensemble(small_network(0), M), small_network(0, num_classes=4))


def test_network_without_a_layer_to_convert_is_refused():
    with pytest.raises(RecipeError, match="Sequential has no Conv2d or Linear"):
        to_batch_ensemble(nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3)), M)


def test_ensemble_size_is_one_for_a_plain_network():
    assert ensemble_size_of(small_network(0)) == 1
    assert ensemble_size_of(to_batch_ensemble(small_network(0), 5)) == 5
    images = random_tensor(2, 3, 9, 9)
    close(member_logits(small_network(0).eval(), images)[0], small_network(0).eval()(images))


class Attention(nn.Module):
    """Attention whose projections torch keeps inside nn.MultiheadAttention, then a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.classifier = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        return self.classifier(self.attention(tokens, tokens, tokens)[0].mean(1))


def test_attention_is_left_shared_and_named():
    plain = Attention().double().eval()
    network = with_random_factors(plain, "weight")
    assert shared_layers(network) == ["attention.in_proj_weight", "attention.out_proj.weight"]
    images = random_tensor(2, 6, 3, 3)
    close(
        member_logits(network, images),
        torch.stack([member(images) for member in plain_members(network, plain)]),
    )


class Standardised(nn.Conv2d):
    """A convolution with a forward of its own, as timm's weight-standardised ones."""

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight - self.weight.mean((1, 2, 3), keepdim=True), self.bias)


def test_subclass_with_its_own_forward_is_left_shared_and_named():
    network = to_batch_ensemble(nn.Sequential(Standardised(3, 4, 3), nn.Conv2d(4, 4, 3)), M)
    assert type(network[0]) is Standardised
    assert shared_layers(network) == ["0.weight"]
    assert shared_layers(to_batch_ensemble(small_network(0), M)) == []


def test_layers_tied_by_one_weight_are_left_shared_and_fold_to_themselves():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
            self.second.weight = self.first.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.second(self.first(x).tanh()))

    plain = Tied().double()
    network = with_random_factors(plain, "weight")
    assert shared_layers(network) == ["first.weight"]
    x = random_tensor(5, 4)
    members = plain_members(network, plain)
    close(network(x.repeat(M, 1)).view(M, 5, 3), torch.stack([member(x) for member in members]))
    folded = fold(network, Tied().double())
    assert torch.equal(folded.first.weight, network.first.weight)
    close(folded(x), torch.stack([member(x) for member in members]).mean(0))  # only the last layer has members


def test_torchs_fast_path_through_an_encoder_layer_does_not_lose_the_factors():
    plain = nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), nn.Linear(8, 3)).double().eval()
    network = with_random_factors(plain, "weight")
    x = random_tensor(M * 2, 5, 8)
    with_gradients = network(x).detach()
    with torch.no_grad():
        close(network(x), with_gradients)
    assert {name.rpartition(".")[0] for name in shared_layers(network)} == {
        "0.self_attn",
        "0.self_attn.out_proj",
        "0.linear1",
        "0.linear2",
    }


def test_layer_whose_weight_is_read_without_a_call_is_left_shared_when_an_example_shows_it():
    """torchvision's Swin hands `qkv.weight` to a function: factors there would never act nor learn."""
    torch.manual_seed(0)
    plain = library_network("torchvision/swin_t").double().train()
    images = random_tensor(2, 3, 32, 32)
    network = to_batch_ensemble(plain, 2, example=images[:1])
    assert network.training
    assert "features.1.0.attn.qkv.weight" in shared_layers(network)
    assert "features.1.0.mlp.0.weight" not in shared_layers(network)
    network(images.repeat(2, 1, 1, 1)).square().sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None] == [], "DDP would stop on these"


class WithTable(nn.Module):
    """A classifier whose bias is made by a layer from a table of as many rows as members would divide."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.register_buffer("table", torch.linspace(-1, 1, 2 * rows).view(rows, 2))
        self.of_table, self.of_images = nn.Linear(2, 5), nn.Linear(3 * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.of_images(x.flatten(1)) + self.of_table(self.table).mean(0)


def test_layer_that_is_called_on_something_else_than_the_batch_is_left_shared():
    """Four rows of a table over four members would have been a quarter of it for each."""
    network = to_batch_ensemble(WithTable(4), 4, example=torch.zeros(2, 3, 2, 2))
    assert shared_layers(network) == ["of_table.weight"]
    assert isinstance(network.of_images, BatchEnsembleLinear)


def test_network_with_tables_of_positions_converts_and_runs():
    """torchvision's Swin v2 makes the bias of its attention with linear layers from a table of one row."""
    plain = library_network("torchvision/swin_v2_t").double().eval()
    images = random_tensor(2, 3, 32, 32)
    network = to_batch_ensemble(plain, 2, example=images).eval()
    shared = shared_layers(network)
    assert "features.1.0.attn.cpb_mlp.0.weight" in shared
    assert "features.1.0.mlp.0.weight" not in shared
    with torch.inference_mode():
        close(member_logits(network, images), plain(images).expand(2, -1, -1))


def library_network(name: str) -> nn.Module:
    import timm
    from torchvision import models

    torch.manual_seed(0)
    library, _, name = name.partition("/")
    if library == "torchvision":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return models.get_model(name, weights=None, num_classes=6)
    size = {"img_size": 32, "patch_size": 8} if name.startswith("vit") else {}
    return timm.create_model(name, num_classes=6, **size)


@pytest.mark.parametrize(
    "name",
    [
        "torchvision/resnet18",
        "torchvision/mobilenet_v3_small",
        "timm/vit_tiny_patch16_224",
        "timm/convnext_atto",
        "timm/efficientnet_lite0",
    ],
)
def test_library_network_converts_and_folds(name):
    plain = library_network(name).double().eval()
    images = random_tensor(2, 3, 32, 32)
    network = to_batch_ensemble(plain, 2).eval()
    assert not [layer for layer in shared_layers(network) if layer.endswith("weight")], "a layer was left shared"
    with torch.inference_mode():
        logits = member_logits(network, images)
        scale = plain(images).abs().max()
        close(logits / scale, plain(images).expand(2, -1, -1) / scale)
        for parameter_name, parameter in network.named_parameters():
            if parameter_name.endswith(("rho", "sigma")):
                parameter.copy_(0.1 * random_tensor(*parameter.shape, seed=len(parameter_name)))
        logits = member_logits(network, images)
        for m in range(2):
            member = copy.deepcopy(plain)
            member.load_state_dict(member_state(network, m), strict=True)
            scale = member(images).abs().max()
            close(logits[m] / scale, member(images) / scale)
        assert (logits[0] - logits[1]).abs().max() > 1e-3 * logits.abs().max()
    folded = fold(network, library_network(name).double()).state_dict()
    states = [member_state(network, m) for m in range(2)]
    for key, value in folded.items():
        close(value.double(), torch.stack([state[key].double() for state in states]).mean(0))


@pytest.mark.parametrize("form", FORMS)
def test_bf16_gradients_are_those_of_float32_within_its_rounding(form):
    """The perturbation runs the student without gradients first: autocast must not reuse weights cast there."""
    teachers = TeacherEnsemble([small_network(10 + m).float() for m in range(M)])
    network = with_random_factors(small_network(0), form).float().train()
    batch_images = torch.rand(16, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    moved = perturb(
        batch_images,
        "tdiv_sdiv",
        teachers=teachers,
        student=network,
        grey_levels=1.0,
        generator=torch.Generator().manual_seed(0),
    )
    gradients = {}
    for precision, perturbation, images in (("fp32", "none", moved), ("bf16", "tdiv_sdiv", batch_images)):
        learn = student_step(StudentSection(perturbation=perturbation), teachers, training=TrainingSection())
        batch = Batch(images, torch.zeros(16), torch.Generator().manual_seed(0), slice(None), 16)
        network.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            (loss,) = learn.losses(network, network, batch)
        loss.backward()
        gradients[precision] = {name: p.grad.clone() for name, p in network.named_parameters()}
    for name, value in gradients["fp32"].items():
        assert torch.cosine_similarity(gradients["bf16"][name].flatten(), value.flatten(), dim=0) > 0.98, name
