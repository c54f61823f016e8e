"""Checkpoints and weights on disk: what is read back, and what is said of a file that cannot be."""

import json
import signal
from pathlib import Path

import pytest
import torch
from torch import nn

from edc.errors import CheckpointError, Interrupted
from edc.networks import Classifier
from edc.system.signals import stop_at_once
from edc.teachers.weights_file import weights_for
from edc.train.average import RunningAverage
from edc.train.checkpoint import Position, load_checkpoint, load_state, save_checkpoint, save_state
from edc.train.saved.epochs import append_metrics


def network(seed: int = 0, size: int = 3) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(2, size), nn.BatchNorm1d(size), nn.Linear(size, 2))


def cut(path: Path, kind: str) -> None:
    """Writes two thirds of a file with weights."""
    if kind == "pt":
        torch.save(network().state_dict(), path)
    else:
        save_state(path, network().state_dict())
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


def stepped(net: nn.Module) -> torch.optim.Optimizer:
    """Returns an SGD with momentum that has made two steps."""
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9, nesterov=True)
    for seed in range(2):
        optimizer.zero_grad()
        net(torch.randn(4, 2, generator=torch.Generator().manual_seed(seed))).square().sum().backward()
        optimizer.step()
    return optimizer


def test_signal_while_weights_are_read_is_no_damaged_file(tmp_path, monkeypatch):
    """The reader catches whatever the library raises; the request to stop must not be among it."""
    save_state(tmp_path / "a.safetensors", network().state_dict())

    def read(_path: Path) -> None:
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr("edc.train.checkpoint.load_file", read)
    with stop_at_once(), pytest.raises(Interrupted):
        load_state(tmp_path / "a.safetensors")


def test_training_goes_on_from_a_checkpoint_as_if_nothing_had_been(tmp_path):
    first = network()
    optimizer = stepped(first)
    position = Position(epoch=3, batch=2, loss_sum=1.25, best_score=0.5, best_epoch=1, seconds=7.5)
    position.best_state = {key: value.clone() for key, value in network(5).state_dict().items()}
    save_checkpoint(tmp_path / "c.pt", position, first, optimizer)
    second = network(9)
    other = torch.optim.SGD(second.parameters(), 0.1, momentum=0.9, nesterov=True)
    loaded = load_checkpoint(tmp_path / "c.pt", second, other)
    best = loaded.best_state
    assert all(torch.equal(value, best[key]) for key, value in network(5).state_dict().items())
    loaded.best_state = position.best_state = {}
    assert loaded == position
    x = torch.randn(4, 2, generator=torch.Generator().manual_seed(7))
    for net, opt in ((first, optimizer), (second, other)):
        opt.zero_grad()
        net(x).square().sum().backward()
        opt.step()
    assert all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize(
    "content", ["garbage", "empty", "truncated", "another network", "another format", "weights only"]
)
def test_checkpoint_that_does_not_fit_says_so(tmp_path, content):
    path, net = tmp_path / "checkpoint.pt", network()
    save_checkpoint(path, Position(), net, stepped(net))
    match content:
        case "garbage":
            path.write_bytes(b"not a checkpoint")
        case "empty":
            path.write_bytes(b"")
        case "truncated":
            path.write_bytes(path.read_bytes()[:700])
        case "another network":
            net = network(size=4)
        case "another format":
            torch.save(torch.load(path, weights_only=True) | {"format": 99}, path)
        case "weights only":
            torch.save(net.state_dict(), path)
    with pytest.raises(CheckpointError, match=r"checkpoint\.pt: (cannot continue from|checkpoint format 99)") as caught:
        load_checkpoint(path, net, torch.optim.SGD(net.parameters(), 0.1))
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("name", ["w.pt", "w.pth"])
@pytest.mark.parametrize("wrapper", [None, "state_dict", "model", "model_state_dict", "state_dict_ema"])
def test_state_dict_is_found_in_the_usual_wrappers(tmp_path, name, wrapper):
    state = network().state_dict()
    torch.save({wrapper: state, "epoch": 3} if wrapper else state, tmp_path / name)
    loaded = weights_for(Classifier(network(9), (0.0,), (1.0,)), tmp_path / name, source="w").state
    assert loaded.keys() == state.keys()
    assert all(torch.equal(value, loaded[key]) for key, value in state.items())


def test_shared_and_channels_last_weights_are_saved_as_plain_ones(tmp_path):
    weight = torch.rand(4, 3, 3, 3).contiguous(memory_format=torch.channels_last)
    save_state(tmp_path / "w.safetensors", {"a": weight, "b": weight})
    loaded = load_state(tmp_path / "w.safetensors")
    assert torch.equal(loaded["a"], weight)
    assert torch.equal(loaded["b"], weight)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: None, "no such checkpoint"),
        (lambda path: path.write_bytes(b"hello world\n" * 99), "N: it is text, which begins 'hello world.*EXPECTED"),
        (lambda path: path.write_bytes("Grüße, größer".encode()), "N: it is text, which begins 'Grüße"),
        (lambda path: path.write_bytes(b"\n<!DOCTYPE html><html>"), "N: it is a web page"),
        (
            lambda path: path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid"),
            "N: .* git lfs pull. EXPECTED",
        ),
        (lambda path: path.write_bytes(b""), "N: it is empty. EXPECTED"),
        (lambda path: path.write_bytes(bytes(range(200, 220))), "N: it begins with the bytes c8 c9 ca"),
        (lambda path: torch.save([1, 2], path), "holds list, expected a state dict"),
        (lambda path: torch.save({"a": 3, "net": {}}, path), r"holds dict \(a, net\), expected a state dict"),
        (
            lambda path: torch.save(network(), path),
            r"N: it holds more than tensors.* save its state_dict\(\). EXPECTED",
        ),
        (lambda path: cut(path, "pt"), "N: it is a file of torch.save that is cut short"),
        (lambda path: save_state(path, network().state_dict()), "N: it is a safetensors file .* name it .safetensors"),
    ],
)
def test_file_that_holds_no_state_dict_says_what_it_is(tmp_path, write, message):
    write(tmp_path / "w.pt")
    expected = message.replace("N:", "not readable as weights:")
    expected = expected.replace("EXPECTED", r"Expected a state dict saved with torch.save or safetensors\.$")
    with pytest.raises(CheckpointError, match=rf"w\.pt: {expected}") as caught:
        load_state(tmp_path / "w.pt")
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: cut(path, "safetensors"), "it is a safetensors file that is cut short or damaged"),
        (lambda path: torch.save(network().state_dict(), path), "torch.save wrote it, not safetensors; name it .pt"),
        (lambda path: path.write_bytes(b"hello"), "it is text, which begins 'hello'"),
    ],
)
def test_damaged_safetensors_file_says_so(tmp_path, write, message):
    write(tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError, match=rf"w\.safetensors: not readable as weights: {message}"):
        load_state(tmp_path / "w.safetensors")


def test_metrics_drop_the_lines_that_a_cut_off_run_left(tmp_path):
    path = tmp_path / "folder/metrics.jsonl"
    for epoch in range(4):
        append_metrics(path, {"epoch": epoch, "loss": 1.0})
    with path.open("a") as file:
        file.write('{"epoch": 4, "lo')  # a line cut off by a crash
    append_metrics(path, {"epoch": 2, "loss": 2.0})
    append_metrics(path, {"epoch": 3, "loss": 3.0})
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(row["epoch"], row["loss"]) for row in rows] == [(0, 1.0), (1, 1.0), (2, 2.0), (3, 3.0)]


@pytest.mark.parametrize(("acc", "score"), [(0.5, -0.5), (-1.0, float("inf"))])
def test_checkpoint_of_an_edc_that_went_by_accuracy_goes_on_with_it(tmp_path, acc, score):
    """It wrote the best accuracy, -1 before the first. In such a run, the score is of accuracy too; less is better."""
    trained, path = network(3), tmp_path / "c.pt"
    optimizer, average = torch.optim.SGD(trained.parameters(), 0.1), RunningAverage(trained, decay=0.9)
    save_checkpoint(path, Position(epoch=1), trained, optimizer, average)
    document = torch.load(path)
    for state in (document["position"], document["average"]):
        del state["best_score"]
        state["best_validation_acc"] = acc
    torch.save(document, path)
    assert load_checkpoint(path, trained, optimizer, average).best_score == score
    assert average.best_score == score
