"""Students that learn from labelled and extra images together: the loss, the order, resume, processes, a whole run."""

import json
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from command_line import edc
from conftest import TINY_RECIPE
from extra_cases import SECTION, STEPS, TRAINING, mixed_data, train_mixed
from processes import found_by
from test_split import M, batch_of, gradient_of, student_of, teachers
from torch import Tensor, nn
from training_cases import plain, raise_signal_at

from edc.data import ExtraImages, MemoryImages, steps_per_epoch, train_batches
from edc.data.extra import is_extra_row
from edc.errors import DataError, Interrupted, RunError
from edc.method.batch_ensemble import member_logits
from edc.method.losses import NO_LABEL
from edc.method.step import Batch, StudentStep, draw_owners
from edc.recipe import Recipe
from edc.runs.distill import _claim
from edc.runs.folder import RunFolder
from edc.train.loop import fit

# The loss -------------------------------------------------------------------------------------------------------------


def mixed_batch(num_rows: int = 8) -> Batch:
    """Rows 1, 4 and 6 have no label."""
    batch = batch_of(num_rows)
    labels = batch.labels.clone()
    labels[[1, 4, 6]] = NO_LABEL
    return replace(batch, labels=labels)


def cross_entropy(target: Tensor, logits: Tensor) -> Tensor:
    return -(target * (logits - logits.logsumexp(-1, keepdim=True))).sum()


def by_hand(method: str, divided: str, alpha: float, *, temperature: float = 4.0) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of the mixed batch, image by image and member by member, and its gradient."""
    network, batch, ensemble = student_of(method), mixed_batch(), teachers()
    logits, answers = member_logits(network, batch.images), torch.stack([teacher(batch.images) for teacher in ensemble])
    owners = draw_owners(8, M, torch.Generator().manual_seed(3)).tolist()
    total = torch.zeros((), dtype=torch.float64)
    for n, label in enumerate(batch.labels.tolist()):
        soft = (answers[:, n] / temperature).softmax(-1)
        if divided == "split":
            pairs = [(soft[owners[n]], logits[owners[n] if method == "latent_be" else 0, n])]
        elif method == "kd":
            pairs = [(soft.mean(0), logits[0, n])]
        else:
            pairs = [(soft[m], logits[m, n]) for m in range(M)]
        for target, answer in pairs:
            weight = 1.0 if label == NO_LABEL else alpha
            total = total + weight * temperature**2 * cross_entropy(target, answer / temperature) / len(pairs) / 8
            if label != NO_LABEL:
                one_hot = torch.eye(5, dtype=torch.float64)[label]
                total = total + (1 - alpha) * cross_entropy(one_hot, answer) / len(pairs) / 8
    total.backward()
    return total.detach(), {name: parameter.grad for name, parameter in network.named_parameters()}


def close(found: tuple[Tensor, dict[str, Tensor]], expected: tuple[Tensor, dict[str, Tensor]]) -> None:
    torch.testing.assert_close(found[0], expected[0], rtol=0, atol=1e-10)
    assert max(float(gradient.abs().max()) for gradient in expected[1].values()) > 1e-3
    for name, gradient in expected[1].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=0, atol=1e-10)


CASES = [
    (method, divided, form) for method in ("kd", "latent_be") for divided in ("all", "split") for form in ("joint",)
]
CASES += [("latent_be", "all", "sequential"), ("latent_be", "split", "sequential")]


@pytest.mark.parametrize("alpha", [1.0, 0.6, 0.0])
@pytest.mark.parametrize(("method", "divided", "form"), CASES)
def test_extra_rows_learn_the_teachers_and_labelled_rows_the_mixture(method, divided, form, alpha):
    step = StudentStep(teachers(), method=method, answers=divided, form=form, alpha=alpha)
    close(gradient_of(step, student_of(method), mixed_batch()), by_hand(method, divided, alpha))


@pytest.mark.parametrize("divided", ["all", "split"])
def test_parts_of_a_mixed_batch_add_up_whatever_labels_fall_into_them(divided):
    """Rows 0 to 2 have two labels, 3 to 5 too, 6 and 7 one: a mean over the labels of each part would be another."""
    step, network = StudentStep(teachers(), alpha=0.6, answers=divided), student_of("latent_be")
    whole = gradient_of(step, network, mixed_batch())
    parts = [(len(part.images) / 8, gradient_of(step, network, part)) for part in mixed_batch().in_parts(3)]
    assert [round(8 * share) for share, _ in parts] == [3, 3, 2]
    loss = sum(share * part[0] for share, part in parts)
    close((loss, {name: sum(share * part[1][name] for share, part in parts) for name in whole[1]}), whole)


# Which images, in which rows ------------------------------------------------------------------------------------------


def numbered(first: int, num_images: int, *, labelled: bool) -> MemoryImages:
    """Images whose pixels say their number."""
    numbers = torch.arange(first, first + num_images)
    labels = numbers if labelled else torch.full((num_images,), NO_LABEL)
    return MemoryImages(numbers.to(torch.uint8)[:, None, None, None].expand(-1, 3, 2, 2), labels)


LABELLED = numbered(0, 23, labelled=True)
EXTRA = ExtraImages((numbered(100, 5, labelled=False), numbered(105, 12, labelled=False)), 0.4)


def epoch_of(epoch: int, **options) -> list[tuple[list[int], list[int]]]:
    """Returns the numbers of the images and the labels of each batch of 10."""
    section = SECTION.model_copy(update={"augmentation": "none"})
    batches = train_batches(LABELLED, section, batch_size=10, seed=3, epoch=epoch, extra=EXTRA, **options)
    return [(pixels[:, 0, 0, 0].tolist(), labels.tolist()) for pixels, labels in batches]


def test_every_epoch_goes_through_the_labelled_images_once():
    assert steps_per_epoch(LABELLED, 10, EXTRA) == 3  # 6 labelled rows a batch: 5 of 23 images are left over
    orders = []
    for epoch in range(4):
        rows = [row for batch in epoch_of(epoch) for row in zip(*batch, strict=True)]
        labelled = [image for image, label in rows if label != NO_LABEL]
        assert len(labelled) == len(set(labelled)) == 18
        assert all(image == label for image, label in rows if label != NO_LABEL)
        assert all(image >= 100 for image, label in rows if label == NO_LABEL)
        orders.append(labelled)
    assert len(set(map(tuple, orders))) == 4


def test_extra_images_are_not_repeated_before_all_were_used():
    """4 a batch, 12 an epoch, of 17: turns end in the middle of an epoch and of a batch."""
    seen = [image for epoch in range(17) for batch in epoch_of(epoch) for image in batch[0] if image >= 100]
    turns = [seen[start : start + 17] for start in range(0, len(seen), 17)]
    assert len(turns) == 12
    for turn in turns:
        assert sorted(turn) == list(range(100, 117))
    assert len(set(map(tuple, turns))) == 12


def test_kinds_stand_in_the_same_rows_and_every_part_has_its_share():
    for batch_size, num_extra in [(10, 4), (128, 64), (128, 1), (128, 127), (96, 32), (7, 3)]:
        rows = is_extra_row(batch_size, num_extra)
        assert int(rows.sum()) == num_extra
        for num_parts in (2, 3, 4):
            for part in rows.tensor_split(num_parts):
                assert abs(int(part.sum()) - len(part) * num_extra / batch_size) < 1
    expected = is_extra_row(10, 4).tolist()
    assert all([label == NO_LABEL for label in labels] == expected for e in range(3) for _, labels in epoch_of(e))


@pytest.mark.parametrize("num_processes", [2, 5])
def test_rows_of_the_processes_are_the_batch_of_one(num_processes):
    parts = [epoch_of(2, rank=rank, num_processes=num_processes) for rank in range(num_processes)]
    for number, (images, labels) in enumerate(epoch_of(2)):
        assert [image for part in parts for image in part[number][0]] == images
        assert [label for part in parts for label in part[number][1]] == labels


def test_epoch_taken_up_in_the_middle_goes_on_with_the_next_batch():
    assert epoch_of(5, first_batch=2) == epoch_of(5)[2:]


def test_labelled_rows_of_a_batch_need_as_many_images():
    with pytest.raises(DataError, match=r"found 50 and 30 of a batch are labelled, but only 23 training images"):
        steps_per_epoch(LABELLED, 50, EXTRA)


HALVES = ExtraImages(EXTRA.parts, 0.5)


def kinds_of(epoch: int, *, shuffled: bool = True, **options) -> list[list[tuple[int, bool]]]:
    """Returns the image, and whether it has a label, of each row of each batch of 20: half of them have one."""
    section = SECTION.model_copy(update={"augmentation": "none"})
    common = {"batch_size": 20, "seed": 3, "epoch": epoch, "extra": HALVES, "shuffled": shuffled}
    return [
        [(image, label != NO_LABEL) for image, label in zip(pixels[:, 0, 0, 0].tolist(), labels.tolist(), strict=True)]
        for pixels, labels in train_batches(LABELLED, section, **common, **options)
    ]


def test_shuffled_rows_make_neighbours_of_both_kinds_as_a_random_permutation_does():
    """Spread evenly, every pair of neighbours is one labelled and one extra image: nothing else would be mixed."""
    pairs = Counter()
    for epoch in range(100):
        for batch, even in zip(kinds_of(epoch), kinds_of(epoch, shuffled=False), strict=True):
            assert sorted(batch) == sorted(even)
            assert {(a, b) for (_, a), (_, b) in zip(even[::2], even[1::2], strict=True)} == {(True, False)}
            pairs.update(a + b for (_, a), (_, b) in zip(batch[::2], batch[1::2], strict=True))
    total = 100 * 2 * 10
    assert sum(pairs.values()) == total
    for num_labelled, share in ((0, 9 / 38), (1, 20 / 38), (2, 9 / 38)):  # of two of 20 rows, 10 of which have a label
        assert abs(pairs[num_labelled] - share * total) < 3.5 * math.sqrt(share * (1 - share) * total)


def test_shuffled_rows_of_processes_and_of_a_resumed_epoch_are_those_of_one():
    whole, halves = kinds_of(2), [kinds_of(2, rank=rank, num_processes=2) for rank in (0, 1)]
    assert [a + b for a, b in zip(*halves, strict=True)] == whole
    assert kinds_of(2, first_batch=1) == whole[1:]


@dataclass
class KeptLabels:
    """A step that keeps the labels that it gets, and learns nothing."""

    labels: list[list[int]]
    shapes_stay: ClassVar[bool] = True

    def num_parts(self, _network: nn.Module) -> int:
        return 1

    def losses(self, model: nn.Module, _network: nn.Module, batch: Batch) -> Iterator[Tensor]:
        self.labels.append(batch.labels.tolist())
        yield 0 * model(batch.images).sum()


@pytest.mark.parametrize(("views", "is_shuffled"), [((), False), (("randaugment",), False), (("cutmix",), True)])
def test_training_shuffles_rows_where_views_mix_them(tmp_path, accelerator, views, is_shuffled):
    learn = KeptLabels([])
    training = TRAINING.model_copy(update={"epochs": 1, "warmup_epochs": 0})
    common = {"data_section": SECTION, "training": training, "seed": 7, "label": "kept", "accelerator": accelerator}
    fit(plain(0), mixed_data(), learn=learn, plain_of=lambda trained: trained, folder=tmp_path, views=views, **common)
    evenly = is_extra_row(16, 6).tolist()
    assert len(learn.labels) == 2
    assert [[label == NO_LABEL for label in batch] == evenly for batch in learn.labels] == [not is_shuffled] * 2


def test_a_student_that_began_to_mix_neighbours_of_other_kinds_is_not_continued(tmp_path):
    students = {"a": {"method": "kd", "views": ["mixup"]}}
    document = {"name": "r", "data": SECTION.model_dump(), "network": "wrn10x1", "students": students}
    recipe, run = Recipe.model_validate(document), RunFolder(tmp_path / "run")
    _claim(recipe, recipe, mixed_data(), run, [])
    inputs = json.loads(run.inputs_path.read_text())
    run.inputs_path.write_text(json.dumps({key: inputs[key] for key in inputs if "mix" not in key}))
    _claim(recipe, recipe, mixed_data(), run, [])  # nothing has begun
    run.inputs_path.write_text(json.dumps({key: inputs[key] for key in inputs if "mix" not in key}))
    run.student_path("a").mkdir(parents=True)
    (run.student_path("a") / "checkpoint.pt").touch()
    with pytest.raises(RunError, match="began to learn from other content of the pairs of labelled and extra images"):
        _claim(recipe, recipe, mixed_data(), run, [])


# Training -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, accelerator) -> tuple[dict[str, Tensor], list[float], Path]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("undisturbed")
    network, losses = train_mixed(folder, accelerator)
    torch.set_num_threads(threads)
    return {key: value.clone() for key, value in network.state_dict().items()}, losses, folder


def test_schedule_counts_the_steps_that_an_epoch_has_with_extra_images(undisturbed):
    _, losses, folder = undisturbed
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 6, 8]
    assert len(losses) == STEPS
    last = lines[-1]["learning_rate"] / TRAINING.learning_rate
    assert last == pytest.approx(0.5 * (1 + math.cos(math.pi * 5 / 6)), rel=1e-9)


def observed_in(folder: Path) -> list[dict[str, object]]:
    """Returns the lines of a training, without the time that it took."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


@pytest.mark.parametrize("stop_at", [2, 5])
@pytest.mark.usefixtures("one_thread")
def test_interrupted_and_resumed_training_ends_bit_equal(undisturbed, tmp_path, accelerator, stop_at):
    with pytest.raises(Interrupted):
        train_mixed(tmp_path, accelerator, before_step=raise_signal_at(stop_at))
    network, losses = train_mixed(tmp_path, accelerator, first_step=stop_at + 1)
    assert losses == undisturbed[1][stop_at + 1 :]
    assert observed_in(tmp_path) == observed_in(undisturbed[2])
    for key, value in network.state_dict().items():
        assert torch.equal(value, undisturbed[0][key]), key


def test_two_processes_train_what_one_does(undisturbed, tmp_path):
    state, losses, folder = undisturbed
    two = found_by("extra_worker.py", tmp_path, num_processes=2)
    assert two[0]["losses"] != two[1]["losses"]
    np.testing.assert_allclose(np.mean([found["losses"] for found in two], axis=0), losses, rtol=0, atol=1e-8)
    for key, value in state.items():
        torch.testing.assert_close(two[0]["state"][key], value, rtol=0, atol=1e-7)
        assert torch.equal(two[0]["state"][key], two[1]["state"][key]), key
    lines, lines_of_two = observed_in(folder), observed_in(tmp_path / "mixed")
    assert [line.get("observed", {}).keys() for line in lines] == [
        line.get("observed", {}).keys() for line in lines_of_two
    ]
    seen = [(line, two) for line, two in zip(lines, lines_of_two, strict=True) if "observed" in line]
    assert [line["epoch"] for line, _ in seen] == [0, 3], "of so few steps the first and the last are looked at"
    for line, two in seen:
        assert len(line["observed"]) == 14
        assert line["observed"] == pytest.approx(two["observed"], abs=1e-6)


def test_training_with_extra_images_is_another(undisturbed, tmp_path, accelerator, monkeypatch):
    data = mixed_data()
    monkeypatch.setattr("extra_cases.mixed_data", lambda: replace(data, extra=None))
    network, losses = train_mixed(tmp_path, accelerator)
    assert len(losses) == 4  # 26 labelled images are one batch of 16 an epoch
    assert any(not torch.equal(value, undisturbed[0][key]) for key, value in network.state_dict().items())


# A whole run ----------------------------------------------------------------------------------------------------------

RECIPE = TINY_RECIPE.replace("num_images: 64,", "num_images: 64, train_limit: 36, extra: remainder, extra_share: 0.25,")
RECIPE = (
    RECIPE.replace("{method: kd}", "{method: kd, extra: false}")
    .replace("tdiv_sdiv}", "none, alpha: 0.7}")
    .replace("wrn10x1", "cifar_resnet8")
)


def test_a_run_with_a_remainder_has_the_teachers_of_one_without(tmp_path):
    without = RECIPE.replace(" extra: remainder, extra_share: 0.25,", "").replace(", extra: false", "")
    for name, text in (("with", RECIPE), ("without", without)):
        (tmp_path / f"{name}.yaml").write_text(text)
        done = edc("distill", f"{name}.yaml", "--run", f"runs/{name}", "--device", "cpu", "--json", cwd=tmp_path)
        assert done.exit_code == 0, done.stderr
        assert ("teacher 0: step" in done.stderr) == (name == "with"), "they are trained once"
        expected = {"extra": 28} if name == "with" else {}
        data = done.document["data"]
        assert {key: data[key] for key in data if key == "extra"} == expected
        assert data["train"] == 36
        assert ("36 training, 28 extra and 40 test images" in done.stderr) == (name == "with")
    assert len(list((tmp_path / "runs/teachers").iterdir())) == 2
    kd, be, other_kd = (
        (tmp_path / f"runs/{run}/students/{name}/metrics.jsonl").read_text().splitlines()
        for run, name in (("with", "kd"), ("with", "latent_be"), ("without", "kd"))
    )
    assert [json.loads(line)["step"] for line in be] == [3, 6]  # 12 of a batch of 16 are labelled
    assert [json.loads(line)["step"] for line in kd] == [2, 4]
    assert [json.loads(line)["loss"] for line in kd] == [json.loads(line)["loss"] for line in other_kd]
    inputs = {name: json.loads((tmp_path / f"runs/{name}/inputs.json").read_text()) for name in ("with", "without")}
    assert inputs["with"].keys() - inputs["without"].keys() == {"the extra images"}
    assert {key: inputs["with"][key] for key in inputs["without"]} == inputs["without"]


def test_batch_larger_than_the_labelled_images_ends_with_statistics_estimated_anew(tmp_path):
    """Half of each batch of 48 are extra images; the other half fit into 36 labelled ones, of which there are no 48.

    BatchNorm is estimated anew on labelled images alone: it trained to its end, and then could not be finished.
    """
    text = RECIPE.replace("extra_share: 0.25", "extra_share: 0.5")
    text = text.replace("none, alpha: 0.7}", "none, alpha: 0.7, training: {batch_size: 48}}")
    (tmp_path / "recipe.yaml").write_text(text)
    done = edc("distill", "recipe.yaml", "--device", "cpu", "--json", cwd=tmp_path)
    assert done.exit_code == 0, done.stderr
    tried = [candidate["batchnorm"] for candidate in done.document["chosen"]["latent_be"]["candidates"]]
    assert tried == ["trained", "reestimated"]


def test_dry_run_counts_the_steps_that_the_run_makes(tmp_path):
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    shown = edc("distill", "recipe.yaml", "--dry-run", "--device", "cpu", "--json", cwd=tmp_path)
    assert shown.exit_code == 0, shown.stderr
    steps = Counter({cost["name"]: cost["num_steps"] for cost in shown.document["costs"]})
    assert steps == {"2 teachers": 8, "kd": 4, "latent_be": 6}
    units = {cost["name"]: cost["units"] for cost in shown.document["costs"]}
    assert units == {"2 teachers": 3 * 8, "kd": 5 * 4, "latent_be": 8 * 6}
    assert shown.document["teachers"] == {"cannot_say": "0 of 2 teachers are trained"}
