"""What is set for a GPU, seen without one: float32 that is float32, pinned memory, gradients that nobody needs."""

import os
from typing import Any

import pytest
import torch
import yaml
from accelerate import Accelerator
from command_line import edc
from functorch.compile import make_boxed_func
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch.utils._python_dispatch import TorchDispatchMode
from training_cases import DATA, TRAINING, plain, small_data

from edc.benchmark.backends import available_backends, computes_in, in_fp32, open_backend
from edc.data import evaluation_batches, train_batches
from edc.errors import RecipeError
from edc.method.batch_ensemble import to_batch_ensemble
from edc.method.perturb import perturb
from edc.method.step import LabelStep
from edc.recipe import Recipe
from edc.runs.distill import distill
from edc.runs.summary import machine
from edc.runs.why.sample import Sample, ask
from edc.train.backward import backward_through
from edc.train.evaluate import evaluate_accuracy, predict_logits
from edc.train.loop import fit
from edc.train.placement import (
    convolutions_tuned,
    deterministic_if,
    float32_as,
    require_tf32_has_effect,
    say_precision,
)

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def float32_now() -> tuple[str, str, str]:
    """Returns how a GPU would compute products, convolutions and recurrent layers; reads the older flags, too.

    torch raises at the older flags if they contradict the new ones.
    """
    matmul, conv = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    assert torch.get_float32_matmul_precision() == ("high" if matmul else "highest")
    with torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=conv):
        pass
    cudnn = torch.backends.cudnn
    found = torch.backends.cuda.matmul.fp32_precision, cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision
    assert (found[0] == "tf32", found[1] == "tf32") == (matmul, conv)
    return found


class Asked(nn.Module):
    """A network that notes how float32 is computed where it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.seen = nn.Linear(192, 3), set[tuple[bool, bool]]()

    def forward(self, images: Tensor) -> Tensor:
        self.seen.add((torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32))
        return self.layer(images.flatten(1))


def test_float32_is_ieee_in_products_convolutions_and_recurrent_layers_and_all_flags_agree():
    before = float32_now()
    with float32_as("ieee"):
        assert "tf32" not in float32_now()
        with float32_as("tf32"):
            assert float32_now() == ("tf32", "tf32", "tf32")
        assert "tf32" not in float32_now()
    assert [value == "tf32" for value in float32_now()] == [value == "tf32" for value in before]


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_a_training_computes_in_what_its_recipe_says_and_evaluation_never_in_tf32(precision, accelerator, tmp_path):
    data, network = small_data(), Asked()
    training = TRAINING.model_copy(update={"epochs": 2, "validate_every": 5, "precision": precision})
    arguments = {"data_section": DATA, "training": training, "seed": 0, "folder": tmp_path, "label": "asked"}
    trained = fit(network, data, learn=LabelStep(), plain_of=lambda _: Asked(), accelerator=accelerator, **arguments)
    assert network.seen == {(precision == "tf32",) * 2}
    assert float32_now()[0] != "tf32"
    for evaluate in (evaluate_accuracy, predict_logits):
        trained.seen.clear()
        with float32_as("tf32"):  # what somebody's own program may have set
            evaluate(trained, data.test, DATA, training, accelerator)
        assert trained.seen == {(False, False)}


def test_looks_at_a_student_in_training_are_no_more_in_tf32_than_its_evaluation(accelerator):
    """torch's default for convolutions is TF32, and they came between two epochs."""
    network, sample = Asked(), Sample(torch.arange(4), torch.zeros(4, 3, 8, 8, dtype=torch.uint8))
    with float32_as("tf32"):
        ask(lambda images, _: network(images)[None], sample, training=TRAINING, accelerator=accelerator)
    assert network.seen == {(False, False)}


def test_a_summary_names_the_gpu_of_a_run_that_was_on_it_alone(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: f"the GPU {device}")
    assert machine(CPU)["gpu"] is None
    assert machine(torch.device("cuda", 1))["gpu"] == "the GPU cuda:1"


def test_tf32_without_a_gpu_is_refused_and_with_one_it_is_said(capsys):
    training = TRAINING.model_copy(update={"precision": "tf32"})
    require_tf32_has_effect(training, CUDA)
    with pytest.raises(RecipeError, match=r"teachers\.training\.precision: found tf32, which only NVIDIA GPUs have"):
        require_tf32_has_effect(training, CPU, field="teachers.training")
    say_precision(training, CUDA, label="kd")
    say_precision(TRAINING, CUDA, label="be")
    say_precision(TRAINING, CPU, label="nothing")
    ieee = "float32 (IEEE, TF32 off; training.precision=tf32 or bf16 is faster)"
    assert capsys.readouterr().err.splitlines() == ["kd: computes in TF32", f"be: computes in {ieee}"]


def deterministic_now() -> tuple[bool, bool, bool]:
    """Returns whether torch refuses what has no deterministic algorithm, cuDNN has others, and cuDNN tries them out."""
    with convolutions_tuned(CUDA, shapes_stay=True):
        tuned = torch.backends.cudnn.benchmark
    return torch.are_deterministic_algorithms_enabled(), not torch.backends.cudnn.deterministic, tuned


def test_deterministic_training_has_torch_and_cudnn_compute_the_same_bits_and_ends_with_the_block(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    with deterministic_if(False):
        assert deterministic_now() == (False, True, True)
        assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    with deterministic_if(True):
        assert deterministic_now() == (True, False, False)
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] in (":4096:8", ":16:8")  # torch's documentation names these two
    assert deterministic_now() == (False, True, True)


def test_an_operation_without_a_deterministic_algorithm_is_one_message():
    said = "put_ does not have a deterministic implementation, but you set 'torch.use_...'. You can"
    wanted = r"^training\.deterministic: torch has no .* \(put_ does not have .*false"
    with pytest.raises(RecipeError, match=wanted), deterministic_if(True):
        raise RuntimeError(said)
    assert deterministic_now() == (False, True, True)
    with pytest.raises(RuntimeError, match="another"), deterministic_if(True):
        raise RuntimeError("another")


def test_torchs_own_error_has_the_words_that_are_looked_for():
    with pytest.raises(RecipeError, match="put_"), deterministic_if(True):
        torch.zeros(3).put_(torch.tensor([0, 0]), torch.tensor([1.0, 2.0]))


def test_a_deterministic_run_is_so_from_its_first_step_to_its_last(tmp_path, monkeypatch):
    seen = set()

    def seeing(*arguments: Any, **options: Any) -> Any:
        seen.add(torch.are_deterministic_algorithms_enabled())
        return backward_through(*arguments, **options)

    monkeypatch.setattr("edc.train.loop.backward_through", seeing)
    document = {
        "name": "again",
        "data": {"kind": "synthetic", "image_size": 8, "num_images": 32, "test": 8},
        "network": "cifar_resnet8",
        "training": {"epochs": 1, "warmup_epochs": 0, "batch_size": 16, "deterministic": True},
        "teachers": {"ensemble_size": 2},
        "students": {"be": {"method": "latent_be", "perturbation": "tdiv_sdiv"}},
    }
    found = distill(Recipe.model_validate(document), run=tmp_path / "a", accelerator=Accelerator(cpu=True))
    assert seen == {True}
    assert not torch.are_deterministic_algorithms_enabled()
    document["training"] = document["training"] | {"deterministic": False}  # type: ignore[operator]
    other = distill(Recipe.model_validate(document), run=tmp_path / "b", accelerator=Accelerator(cpu=True))
    assert seen == {True, False}
    taught = ["teach", tmp_path / "again.yaml", "--runs", tmp_path / "c", "--device", "cpu"]
    (tmp_path / "again.yaml").write_text(yaml.safe_dump(document))
    for is_so in (False, True):
        seen.clear()
        called = edc(*taught, "--set", f"training.deterministic={is_so}", "--set", f"seed={7 + is_so}",
                     "--set", f"teachers.seed={7 * is_so}", cwd=tmp_path)  # fmt: skip
        assert (called.exit_code, seen) == (0, {is_so}), called.stderr
    assert [row["raw"] for row in found["rows"]] == [row["raw"] for row in other["rows"]]  # a CPU repeats anyway


@pytest.mark.parametrize(("flags", "warns"), [({"avx512f"}, True), ({"avx512_bf16"}, False), (None, False)])
def test_bf16_on_a_cpu_without_it_is_said(flags, warns, monkeypatch, capsys):
    monkeypatch.setattr("edc.system.machine.cpu_flags", lambda: flags)
    say_precision(TRAINING.model_copy(update={"precision": "bf16"}), CPU, label="kd")
    say_precision(TRAINING, CPU, label="kd")
    assert [line[:44] for line in capsys.readouterr().err.splitlines()] == [
        "kd: warning: this CPU has no instructions fo"
    ] * warns


def test_bench_has_torch_on_a_gpu_in_float32_and_by_name_in_tf32():
    with float32_as("ieee"):  # restores what the backends set for good
        for name, wanted in (("torch-cuda", "ieee"), ("torch-cuda-tf32", "tf32")):
            assert open_backend(name, threads=torch.get_num_threads()).float32 == wanted
            assert (float32_now()[1] == "tf32") == (wanted == "tf32")
    assert (computes_in("torch-cuda", "fp32"), computes_in("torch-cuda-tf32", "fp32")) == ("fp32", "tf32")
    assert in_fp32("torch-cuda-tf32") == "torch-cuda"
    assert "torch-cuda-tf32" not in available_backends(quick=True)


# Gradients of the perturbation


def weight_gradients_of(run: Any) -> list[bool]:
    """Returns, for each backward pass of a convolution in `run`, whether it computed the gradient of a weight."""
    found: list[bool] = []

    class Mode(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if "convolution_backward" in str(function):
                found.append(args[-1][1])
            return function(*args, **(kwargs or {}))

    with Mode():
        run()
    return found


def test_perturbation_computes_no_weight_gradients_in_eager_or_compiled_networks():
    compiled: list[bool] = []

    def backward(graph: Any, _example: Any) -> Any:
        nodes = [node for node in graph.graph.nodes if "convolution_backward" in str(node.target)]
        compiled.extend(node.args[-1][1] for node in nodes)
        return make_boxed_func(graph.forward)

    def network() -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.Flatten(), nn.Linear(144, 5)).double()

    torch.manual_seed(0)
    teachers = [network().eval() for _ in range(2)]  # not frozen: a user's own loop may not do so
    student = to_batch_ensemble(network(), 2)
    student[2].bias.requires_grad_(False)  # what a user has frozen stays frozen
    images = torch.rand(4, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def moved() -> Tensor:
        draws = torch.Generator().manual_seed(1)
        return perturb(images, "tdiv_sdiv", teachers=teachers, student=student, generator=draws)

    wanted = moved()
    eager = weight_gradients_of(moved)
    backend = aot_autograd(fw_compiler=lambda graph, _: make_boxed_func(graph.forward), bw_compiler=backward)
    student.compile(backend=backend)
    torch.testing.assert_close(moved(), wanted, rtol=1e-12, atol=1e-12)
    assert (len(eager), len(compiled)) == (2, 1)  # of a teacher and a member; of a member
    assert not any(eager)
    assert not any(compiled)
    names = [name for name, parameter in student.named_parameters() if not parameter.requires_grad]
    assert names == ["2.bias"]
    assert all(parameter.requires_grad for teacher in teachers for parameter in teacher.parameters())


# Pinned memory


def test_memory_is_pinned_for_the_device_of_the_run_not_because_the_machine_has_a_gpu(monkeypatch):
    """Pinning opens the GPU, which a run with `--device cpu` leaves alone."""
    pinned: list[Tensor] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(Tensor, "pin_memory", lambda rows: pinned.append(rows) or rows)
    data, common = small_data(), {"batch_size": 16}
    on_cpu = [
        *train_batches(data.train, DATA, seed=0, epoch=0, device=CPU, **common),
        *evaluation_batches(data.test, device=CPU, **common),
    ]
    assert (len(on_cpu), pinned) == (7, [])
    assert len([*train_batches(data.train, DATA, seed=0, epoch=0, device=CUDA, **common)]) == 4
    assert len(pinned) == 8


def test_a_training_on_the_cpu_pins_nothing(monkeypatch, accelerator, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(Tensor, "pin_memory", lambda rows: pytest.fail("pinned"))
    training = TRAINING.model_copy(update={"epochs": 2})
    arguments = {"data_section": DATA, "training": training, "seed": 0, "folder": tmp_path, "label": "plain"}
    fit(plain(0), small_data(), learn=LabelStep(), plain_of=lambda n: n, accelerator=accelerator, **arguments)
