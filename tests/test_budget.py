"""`edc init --budget-ms`: networks are timed where the command runs, and the slowest within the time is the student."""

import dataclasses

import pytest
from training_cases import small_data

from edc.benchmark.judge.statistics import Estimate
from edc.errors import RequestError
from edc.proposal import budget as module
from edc.proposal.budget import Budget, TimedNetwork, chosen, in_words, timed_networks


def timed(name: str, *p50_ms: float) -> TimedNetwork:
    return TimedNetwork(name, 1000, Estimate(*p50_ms))


def test_networks_are_exported_and_timed_the_fastest_first(monkeypatch):
    """A network of 28 layers takes longer than one of 8; one that does not take such images says so."""
    monkeypatch.setattr(module, "OF_SMALL_IMAGES", ("cifar_resnet8", "wrn28x2"))
    found = timed_networks(["wrn28x2", "timm/vit_tiny_patch16_224"], small_data(), Budget(1.0))
    assert [one.name for one in found] == ["cifar_resnet8", "wrn28x2", "timm/vit_tiny_patch16_224"]
    fast, slow, refused = found
    assert fast.p50_ms.value < slow.p50_ms.value
    assert fast.num_parameters < slow.num_parameters
    assert (refused.p50_ms, bool(refused.why_not)) == (None, True)


def test_the_slowest_that_is_surely_within_the_time_is_chosen():
    networks = [timed("a", 1.0, 0.9, 1.1), timed("b", 1.8, 1.7, 1.9), timed("c", 1.9, 1.7, 2.2), TimedNetwork("d")]
    one = chosen(networks, Budget(2.0))
    assert one.name == "b"
    words = in_words(networks, one, Budget(2.0, threads=1))
    assert (
        "surely takes at most 2 ms for one image here (onnxruntime, 1 thread, random weights): b 1.8 (1.7 to 1.9) ms"
        in words
    )
    with pytest.raises(RequestError, match=r"--budget-ms: found 1, .*: a 1 \(0.9 to 1.1\) ms, b 1.8"):
        chosen(networks, dataclasses.replace(Budget(2.0), ms=1.0))


def test_a_machine_that_was_too_busy_to_be_sure_is_named():
    busy = [timed("a", 0.3, 0.02, 5.0), timed("b", 2.5, 0.1, 48.0)]
    with pytest.raises(RequestError, match=r"b 2.5 .*; the machine was too busy to be sure: call it again when"):
        chosen(busy, Budget(2.0))
    for quiet, budget in ((timed("a", 1.0, 0.9, 1.1), 1.0), (timed("a", 3.0, 0.1, 60.0), 2.0)):
        with pytest.raises(RequestError, match=r" ms; allow more, or name a network with --student$"):
            chosen([quiet], Budget(budget))


def test_a_slower_network_that_may_be_within_the_time_is_named():
    networks = [timed("a", 0.7, 0.6, 0.8), timed("b", 2.4, 1.6, 6.5), timed("c", 4.0, None, None)]
    one = chosen(networks, Budget(5.0))
    assert one.name == "a"
    words = in_words(networks, one, Budget(5.0))
    assert "surely takes at most 5 ms" in words
    assert words.endswith(
        "The medians of b, c are within too, and their intervals are not: call it again on a quiet machine"
    )
    assert "medians" not in in_words(networks, one, Budget(2.0))
