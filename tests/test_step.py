"""The parts a step is computed in: members one after another, micro batches, and what is not computed at all."""

import copy
from collections import Counter
from pathlib import Path

import pytest
import reference
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from small_networks import randomise, small_network
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from edc.method.batch_ensemble import batchnorm_momentum_shared, select_members, to_batch_ensemble
from edc.method.member_layers import BatchEnsembleLayer
from edc.method.perturb import draw_pair, perturb
from edc.method.step import Batch, StudentStep
from edc.networks import build_network
from edc.recipe import NetworkSection, StudentSection, TrainingSection
from edc.runs.student import student_step
from edc.system.machine import cgroup_free_bytes
from edc.teachers.ensemble import TeacherEnsemble
from edc.train.backward import backward_through
from edc.train.member_form import SHARE_OF_MEMORY, activation_bytes, choose_form

M, N, SHAPE = 3, 6, (3, 10, 10)


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-10)


def images_of(num_images: int = N) -> Tensor:
    return torch.rand((num_images, *SHAPE), generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def batch_of(images: Tensor) -> Batch:
    labels = torch.arange(len(images)) % 5
    return Batch(images, labels, torch.Generator().manual_seed(3), slice(0, len(images)), len(images))


def members(seed: int = 0) -> nn.Module:
    return randomise(to_batch_ensemble(small_network(seed), M), seed + 1).train()


def ensemble() -> TeacherEnsemble:
    return TeacherEnsemble([small_network(10 + m) for m in range(M)])


def freeze_norms(network: nn.Module) -> nn.Module:
    """Lets BatchNorm use its running statistics in training too: what is left does not mix images."""
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.train = lambda mode=True, module=module: module
            module.training = False
    return network


def gradients_of(
    network: nn.Module,
    accelerator: Accelerator,
    *,
    section: StudentSection,
    form: str = "joint",
    micro_batch_size: int | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    step = student_step(section, ensemble(), training=TrainingSection(), form=form)
    batch = batch_of(images_of())
    loss = backward_through(step, network, network, batch, micro_batch_size=micro_batch_size, accelerator=accelerator)
    return loss, {name: parameter.grad for name, parameter in network.named_parameters()}


SECTIONS = {
    "tdiv_sdiv": StudentSection(perturbation="tdiv_sdiv"),
    "labels": StudentSection(perturbation="tdiv", alpha=0.6),
    "gaussian": StudentSection(perturbation="gaussian"),
    "ods": StudentSection(perturbation="ods"),
    "kd": StudentSection(method="kd", alpha=0.5),
}


@pytest.mark.parametrize("section", SECTIONS.values(), ids=SECTIONS)
@pytest.mark.parametrize(("form", "micro_batch_size"), [("sequential", None), ("joint", 2), ("sequential", 4)])
def test_without_batch_statistics_every_way_gives_the_same_gradients(section, form, micro_batch_size, accelerator):
    """Micro batches of 4 out of 6 are unequal: the last is smaller, and counts for less."""
    network = freeze_norms(members() if section.method == "latent_be" else small_network(0).train())
    whole = gradients_of(copy.deepcopy(network), accelerator, section=section)
    parts = gradients_of(network, accelerator, section=section, form=form, micro_batch_size=micro_batch_size)
    close(parts[0], whole[0])
    for name, gradient in whole[1].items():
        close(parts[1][name], gradient)
    assert max(gradient.abs().max() for gradient in whole[1].values()) > 1e-3


def test_sequential_members_equal_a_reference_that_runs_each_alone(accelerator):
    """Each member is a network of its own here (reference.py, M = 1), BatchNorm over its rows; gradients by hand."""
    section = StudentSection(perturbation="tdiv_sdiv", temperature=4.0)
    network, teachers = members(), ensemble()
    images = perturb(
        images_of(),
        "tdiv_sdiv",
        teachers=teachers,
        student=network,
        grey_levels=1.0,
        generator=torch.Generator().manual_seed(3),
    )
    state = network.state_dict()
    plain = {key: value for key, value in state.items() if not key.endswith(("rho", "sigma"))}
    expected_loss, expected = torch.zeros((), dtype=torch.float64), Counter()
    for m in range(M):
        member = reference.network_from_state(plain, 1)
        for name in reference.LAYERS:
            member.r[name], member.s[name] = (1 + state[f"{name}.{key}"][m : m + 1] for key in ("rho", "sigma"))
        leaves = [*member.w.values(), *member.r.values(), *member.s.values()]
        for leaf in leaves:
            leaf.requires_grad_()
        teacher = reference.network_from_state(teachers[m].state_dict(), 1)
        target = (reference.forward(teacher, images, train=False).detach()[0] / 4).softmax(-1)
        logits = reference.forward(member, images, train=True)[0]
        loss = 16 / M * -(target * (logits / 4).log_softmax(-1)).sum(-1).mean()
        loss.backward()
        expected_loss += loss.detach()
        for key, value in member.w.items():
            expected[key] = expected[key] + value.grad
        for name in reference.LAYERS:
            for key, factor in (("rho", member.r[name]), ("sigma", member.s[name])):
                expected[f"{name}.{key}"] = torch.cat(
                    [*([expected[f"{name}.{key}"]] if m else []), M * factor.grad]
                )  # the gradient of a factor is multiplied by M
    loss, found = gradients_of(network, accelerator, section=section, form="sequential")
    close(loss, expected_loss)
    for key, value in expected.items():
        close(found[key], value)


def test_m_updates_of_running_statistics_weigh_as_much_as_one(accelerator):
    network = members()
    norm = next(module for module in network.modules() if isinstance(module, nn.BatchNorm2d))
    with batchnorm_momentum_shared(network, M):
        for _ in range(M):  # the same statistics each time: what is left of the old ones must be 1 - momentum
            norm(images_of().repeat(1, norm.num_features // 3 + 1, 1, 1)[:, : norm.num_features])
    once = copy.deepcopy(members())
    other = next(module for module in once.modules() if isinstance(module, nn.BatchNorm2d))
    other(images_of().repeat(1, norm.num_features // 3 + 1, 1, 1)[:, : norm.num_features])
    close(norm.running_mean, other.running_mean)
    close(norm.running_var, other.running_var)
    assert norm.momentum == other.momentum == 0.1


class _Convolutions(TorchDispatchMode):
    """Counts convolutions forward, and backward ones by which gradients they compute."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in (torch.ops.aten.convolution.default, torch.ops.aten.conv2d.default):  # the latter in inference mode
            self.count["forward"] += 1
        elif func is torch.ops.aten.convolution_backward.default:
            inputs, weights, _ = args[10]  # output_mask
            self.count["input gradient"] += inputs
            self.count["weight gradient"] += weights
        return func(*args, **(kwargs or {}))


def test_perturbation_computes_no_weight_gradient_and_runs_two_of_each():
    network, teachers = members(), ensemble()
    num_convolutions = sum(isinstance(module, nn.Conv2d) for module in teachers[0].modules())
    with _Convolutions() as convolutions:
        perturb(
            images_of(),
            "tdiv_sdiv",
            teachers=teachers,
            student=network,
            grey_levels=1.0,
            generator=torch.Generator().manual_seed(0),
        )
    assert convolutions.count["weight gradient"] == 0
    assert convolutions.count["forward"] == 4 * num_convolutions
    assert convolutions.count["input gradient"] == 2 * num_convolutions
    assert all(parameter.grad is None for parameter in (*network.parameters(), *teachers.parameters()))


@pytest.mark.parametrize("form", ["joint", "sequential"])
def test_training_pass_computes_each_gradient_once_a_member(form, accelerator):
    network = members()
    num_convolutions = sum(type(module).__name__ == "BatchEnsembleConv2d" for module in network.modules())
    with _Convolutions() as convolutions:
        gradients_of(network, accelerator, section=StudentSection(), form=form)
    assert convolutions.count["weight gradient"] == M * num_convolutions
    assert convolutions.count["input gradient"] == M * (num_convolutions - 1), "the images need no gradient"


def wide_network() -> nn.Module:
    torch.manual_seed(0)
    section = NetworkSection(name="wrn10x1")
    shape = (3, 32, 32)
    return build_network(section, num_classes=10, image_shape=shape, mean=(0.5,) * 3, std=(0.2,) * 3)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_activation_bytes_are_those_that_a_forward_pass_holds(precision, monkeypatch):
    """Against torch's own record of what was allocated and freed: resident memory also holds what oneDNN works with."""
    monkeypatch.setenv("KINETO_LOG_LEVEL", "99")
    network = to_batch_ensemble(wide_network(), 4).train()
    rows = 256
    images = torch.rand(rows, 3, 32, 32)
    cpu = torch.profiler.ProfilerActivity.CPU
    with (
        torch.profiler.profile(activities=[cpu], profile_memory=True, acc_events=True) as profiler,
        torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"),
    ):
        kept = network(images).sum()  # alive until the record ends, and with it what its backward pass needs
    held = sum(event.self_cpu_memory_usage for event in profiler.key_averages())
    del kept
    predicted = rows * activation_bytes(network, (3, 32, 32), TrainingSection(precision=precision))
    assert predicted == pytest.approx(held, rel=0.05)


def test_auto_is_joint_where_it_fits_and_sequential_where_not_and_stays_what_it_was(tmp_path, accelerator, monkeypatch):
    network = to_batch_ensemble(wide_network(), 2)
    needed = activation_bytes(network, (3, 32, 32), TrainingSection()) * 128 * 2
    section = StudentSection()

    def form_with(free: float, folder: str) -> str:
        monkeypatch.setattr("edc.train.member_form.free_memory_bytes", lambda: free)
        form, _ = choose_form(
            section,
            network,
            (3, 32, 32),
            training=TrainingSection(),
            folder=tmp_path / folder,
            accelerator=accelerator,
        )
        return form

    fits, too_little = 1.01 * needed / SHARE_OF_MEMORY, 0.99 * needed / SHARE_OF_MEMORY
    assert form_with(fits, "a") == "joint"
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert form_with(2 * fits, "two processes") == "joint"
    assert form_with(2 * too_little, "two processes, too much") == "sequential"
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    assert form_with(too_little, "b") == "sequential"
    assert form_with(9 * needed, "b") == "sequential", "a resumed run goes on in the form it was begun in"


MIB = 1 << 20


def group(folder: Path, version: int, *, limit: str, usage: int, cache: int) -> None:
    """Writes what a kernel shows of a control group: its limit and usage, of which `cache` is of files nobody reads."""
    names = {1: ("memory.limit_in_bytes", "memory.usage_in_bytes"), 2: ("memory.max", "memory.current")}[version]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{usage}\n")
    both = f"inactive_file {cache}\n" + (f"total_inactive_file {cache}\n" if version == 1 else "")
    (folder / "memory.stat").write_text(f"cache {cache + 5}\n{both}")


def test_container_allows_what_the_tightest_group_above_the_process_leaves(tmp_path):
    mount, own = tmp_path / "cgroup", tmp_path / "own"
    own.write_text("0::/slurm/job7/step0\n")
    assert cgroup_free_bytes(mount, tmp_path / "none") is None
    assert cgroup_free_bytes(mount, own) is None
    group(mount / "slurm/job7/step0", 2, limit="max", usage=90 * MIB, cache=0)
    assert cgroup_free_bytes(mount, own) is None
    group(mount / "slurm/job7", 2, limit=str(1000 * MIB), usage=300 * MIB, cache=100 * MIB)
    assert cgroup_free_bytes(mount, own) == (1000 - 300 + 100) * MIB
    group(mount / "slurm/another", 2, limit=str(MIB), usage=0, cache=0)
    group(mount / "slurm", 2, limit=str(2000 * MIB), usage=1900 * MIB, cache=0)
    assert cgroup_free_bytes(mount, own) == 100 * MIB
    group(mount / "slurm", 2, limit=str(2000 * MIB), usage=2001 * MIB, cache=0)
    assert cgroup_free_bytes(mount, own) == 0


def test_container_of_version_1_is_found_by_its_own_path_or_at_the_mount(tmp_path):
    mount, own = tmp_path / "cgroup", tmp_path / "own"
    own.write_text("9:name=systemd:/\n4:memory:/docker/a:b\n0::/\n")
    group(mount / "memory", 1, limit=str((1 << 63) - 4096), usage=0, cache=0)
    assert cgroup_free_bytes(mount, own) is None, "that number is no limit"
    group(mount / "memory/docker/a:b", 1, limit=str(500 * MIB), usage=200 * MIB, cache=MIB)
    assert cgroup_free_bytes(mount, own) == 301 * MIB
    own.write_text("4:memory:/path/of/the/host\n")
    group(mount / "memory", 1, limit=str(64 * MIB), usage=4 * MIB, cache=0)
    assert cgroup_free_bytes(mount, own) == 60 * MIB


def test_selected_member_is_a_tensor_that_is_made_once():
    network = members()
    found = []
    for _ in range(2):
        with select_members(network, (1,)):
            found.append(next(m.selected for m in network.modules() if hasattr(m, "selected")))
    assert found[0] is found[1]
    assert not found[0].is_inference()
    assert draw_pair(2, torch.Generator().manual_seed(0)) in ((0, 1), (1, 0))


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@pytest.mark.parametrize("form", ["joint", "sequential"])
def test_a_step_never_waits_for_the_gpu(form):
    """torch raises at every operation that would wait; the first step may, because it fills caches."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    AcceleratorState._reset_state(reset_partial_state=True)  # accelerate has one device a process: another test's CPU
    accelerator = Accelerator()
    device = accelerator.device
    assert device.type == "cuda"
    network, teachers = members().to(device), ensemble().to(device)
    images = images_of().to(device)
    learn = student_step(StudentSection(perturbation="tdiv_sdiv"), teachers, training=TrainingSection(), form=form)
    for step in range(2):
        torch.cuda.set_sync_debug_mode("error" if step else "default")
        try:
            batch = Batch(images, torch.zeros(N, device=device), torch.Generator().manual_seed(3), slice(0, N), N)
            backward_through(learn, network, network, batch, micro_batch_size=None, accelerator=accelerator)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize("form", ["joint", "sequential"])
def test_members_weights_are_made_once_a_joint_step_and_give_the_gradients_of_weights_made_at_each_call(form):
    torch.manual_seed(0)
    network, teachers = members(), ensemble()
    for module in [network, *teachers.members]:
        module.double()
    layers = [layer for layer in network.modules() if isinstance(layer, BatchEnsembleLayer)]
    for layer in layers:
        torch.nn.init.normal_(layer.rho, std=0.3)
        torch.nn.init.normal_(layer.sigma, std=0.3)
    layers[0].weight.requires_grad_(False)  # as an owner may have it: its factors still learn
    network.eval()  # statistics that do not move: both steps start alike
    images, made, found = images_of().double(), [], []
    learn = student_step(StudentSection(perturbation="tdiv_sdiv"), teachers, training=TrainingSection(), form=form)
    for layer in layers:
        layer.make_weights = lambda layer=layer: made.append(layer) or BatchEnsembleLayer.make_weights(layer)
    for is_kept in (True, False):
        made.clear()
        step = learn if is_kept else WeightsMadeAtEachCall(**vars(learn))
        batch = Batch(images, torch.zeros(N), torch.Generator().manual_seed(3), slice(0, N), N)
        network.zero_grad()
        for loss in step.losses(network, network, batch):
            assert all(layer.made is None for layer in layers)
            loss.backward()
        # At each call: two members in the perturbation, then all at once or one after another.
        at_each_call = 2 + (1 if form == "joint" else len(teachers.members))
        assert len(made) == len(layers) * (1 if is_kept and form == "joint" else at_each_call)
        found.append([parameter.grad.clone() for parameter in network.parameters() if parameter.requires_grad])
    for kept, at_each in zip(*found, strict=True):
        torch.testing.assert_close(kept, at_each, rtol=1e-12, atol=1e-14)


class WeightsMadeAtEachCall(StudentStep):
    def _weights_serve_twice(self, _network: torch.nn.Module) -> bool:
        return False
