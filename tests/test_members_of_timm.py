"""Layers of libraries' own classes get members where they compute what torch's do: counted over timm's families."""

import copy

import pytest
import timm
import torch
from reference import member_state
from small_networks import randomise
from timm.layers.conv2d_same import Conv2dSame
from torch import Tensor, nn
from torch.nn.utils import parametrize

from edc.method.batch_ensemble import fold, member_logits, shared_layers, to_batch_ensemble

NORMALISED_WEIGHTS = 57 * 2  # each convolution standardises its weight, by a gain
TABLES = 12
FAMILIES = {
    "resnet18": 0,
    "resnetv2_50": 0,
    "seresnet50": 0,
    "regnety_002": 0,
    "densenet121": 0,
    "vgg11": 0,
    "inception_v3": 0,
    "dpn68": 0,
    "efficientnet_b0": 0,
    "tf_efficientnet_lite0": 0,
    "mobilenetv3_small_050": 0,
    "ghostnet_100": 0,
    "rexnet_100": 0,
    "convnext_atto": 0,
    "nfnet_l0": NORMALISED_WEIGHTS,
    "vit_tiny_patch16_224": 2,  # the token and the positions
    "deit_tiny_patch16_224": 2,
    "swin_tiny_patch4_window7_224": TABLES,
    "mixer_s32_224": 0,
    "mobilevit_xxs": 0,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_no_more_weights_stay_shared_than_compute_something_else(name):
    with torch.device("meta"):
        network = timm.create_model(name, num_classes=10)
    assert len(shared_layers(to_batch_ensemble(network, 2))) == FAMILIES[name]


class Own(nn.Linear):
    """A class of its own that computes what its base does."""


class OwnSame(Conv2dSame):
    """Pads as TensorFlow does, because its base does."""


class Doubled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Reflected(nn.Conv2d):
    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(x.flip(-1), weight, bias)


class Halved(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight / 2


def network(*layers: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(4, 3)).double().eval()


@pytest.mark.parametrize(
    ("layer", "is_shared"),
    [
        (Own(2, 2), False),
        (timm.layers.Linear(2, 2), False),
        (Conv2dSame(1, 1, 2), False),
        (OwnSame(1, 1, 2), False),
        (timm.layers.StdConv2d(1, 1, 3, padding=1), True),
        (timm.layers.ScaledStdConv2dSame(1, 1, 2), True),
        (Doubled(2, 2), True),
        (Reflected(1, 1, 1), True),
        (parametrize.register_parametrization(nn.Linear(2, 2), "weight", Halved()), True),
        (nn.utils.spectral_norm(nn.Linear(2, 2)), True),
    ],
    ids=lambda value: type(value).__name__,
)
def test_subclass_gets_members_only_if_it_computes_what_its_base_does(layer, is_shared):
    plain = network(layer)
    members = to_batch_ensemble(plain, 3)
    assert bool([name for name in shared_layers(members) if name.startswith("0.")]) is is_shared
    images = torch.rand(2, 1, 2, 2, dtype=torch.float64)
    with torch.no_grad():
        for logits in member_logits(members.eval(), images):
            torch.testing.assert_close(logits, plain(images), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(fold(members)(images), plain(images), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("form", ["activation", "weight"])
@pytest.mark.parametrize("size", [(7, 8), (8, 11)], ids=str)
def test_members_that_pad_as_tensorflow_does_are_networks_of_timm_with_members_weights(form, size):
    torch.manual_seed(0)
    layers = (
        Conv2dSame(3, 4, 3, stride=2),
        nn.ReLU(),
        OwnSame(4, 6, (5, 2), stride=(1, 2), dilation=(1, 2), groups=2, bias=False),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
    plain = nn.Sequential(*layers, nn.Linear(6, 5)).double().eval()
    members = randomise(to_batch_ensemble(plain, 3, form=form), seed=1).eval()
    assert shared_layers(members) == []
    images = torch.randn((4, 3, *size), generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    with torch.no_grad():
        for m, logits in enumerate(member_logits(members, images)):
            one = copy.deepcopy(plain)
            one.load_state_dict(member_state(members, m), strict=True)
            torch.testing.assert_close(logits, one(images), rtol=1e-12, atol=1e-12)
        folded = fold(members)
        assert type(folded[0]) is Conv2dSame
        torch.testing.assert_close(folded(images), fold(members, copy.deepcopy(plain))(images), rtol=0, atol=0)


def test_weights_of_members_that_shared_such_a_layer_before_load_and_answer_as_then():
    plain = network(timm.layers.Linear(2, 2))
    now, then = to_batch_ensemble(plain, 3), to_batch_ensemble(network(Doubled(2, 2)), 3)
    before = {key: value for key, value in now.state_dict().items() if key not in ("0.rho", "0.sigma")}
    assert before.keys() == then.state_dict().keys()  # as edc 0.1.0 left it
    nn.init.normal_(now[0].rho)
    now.load_state_dict(before)
    assert not now[0].rho.any()
    incomplete = {key: value for key, value in before.items() if key != "2.rho"}
    with pytest.raises(RuntimeError, match=r"2\.rho"):
        now.load_state_dict(incomplete)
