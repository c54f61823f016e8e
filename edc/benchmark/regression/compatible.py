"""Whether two benches may be compared, and with which warnings."""

from collections.abc import Collection, Sequence
from typing import Any

from edc.benchmark.saved.document import SavedEnvironment, WholeBench
from edc.errors import RequestError

__all__ = ["require_comparable", "require_rows_in_common", "require_same_classes", "same_images", "warnings_of"]

MUST_AGREE = ("cpu", "gpu", "threads")
SHOULD_AGREE = ("num_cpus", "governor", "turbo", "system", "python")


def require_comparable(new: SavedEnvironment, old: SavedEnvironment) -> None:
    """Raises `RequestError` if the saved bench is of another processor, GPU or number of threads.

    Call it before measuring, so that nobody waits for an impossible comparison.
    """
    for name in MUST_AGREE:
        now, then = getattr(new, name), getattr(old, name)
        if now != then:
            advice = f"give --threads {then}" if name == "threads" else "save a bench of this machine"
            raise RequestError(
                f"--compare: the saved bench ran with {name} {then}, this one with {now}: times of different machines "
                f"say nothing about the change; {advice}"
            )


def require_same_classes(class_names: Sequence[str], old: WholeBench) -> None:
    """Raises `RequestError` if the saved bench is of another task."""
    if tuple(class_names) != old.class_names:
        raise RequestError("--compare: the saved bench is of a network with other classes; compare benches of one task")


def require_rows_in_common(places: Collection[tuple[str, int]], old: WholeBench) -> None:
    """Raises `RequestError` if none of the rows, as (key, batch), is in the saved bench."""
    if not any((row.key, row.batch) in places for row in old.rows):
        raise RequestError("--compare: the saved bench has no row in common with this one (subject, backend, batch)")


def warnings_of(new: WholeBench, old: WholeBench) -> tuple[str, ...]:
    """Returns what differs between two benches that may be compared, in sentences.

    Raises:
        RequestError: another machine, other threads, other classes.
    """
    require_comparable(new.environment, old.environment)
    require_same_classes(new.class_names, old)
    warnings = []
    if new.artifact != old.artifact:
        warnings.append(f"another artifact: {old.artifact} before, {new.artifact} now")
    if new.deploy != old.deploy:
        warnings.append(f"another student: {old.deploy} before, {new.deploy} now")
    if new.num_test_images != old.num_test_images:
        counts = f"{old.num_test_images:,} test images before, {new.num_test_images:,} now"
        warnings.append(f"quality is not compared: {counts}")
    elif not same_images(new, old):
        warnings.append("quality is not compared: other test images, or other labels")
    if new.plan != old.plan:
        warnings.append("another timing plan (--quick or not): one of the benches is less certain than the other")
    for name in SHOULD_AGREE:
        then, now = getattr(old.environment, name), getattr(new.environment, name)
        if then != now:
            warnings.append(f"another {name}: {_said(then)} before, {_said(now)} now")
    then_packages, now_packages = (bench.environment.packages for bench in (old, new))
    for package in sorted({*then_packages, *now_packages}):
        then, now = then_packages.get(package), now_packages.get(package)
        if then != now:
            warnings.append(f"another {package}: {_said(then)} before, {_said(now)} now")
    for name, bench in (("the saved bench", old), ("this bench", new)):
        warnings += [f"{name}: {flag}" for flag in bench.environment.flags]
    return tuple(warnings)


def same_images(new: WholeBench, old: WholeBench) -> bool:
    """Returns whether quality was taken on the same images, as far as both benches say."""
    if new.num_test_images != old.num_test_images:
        return False
    return None in (new.test_digest, old.test_digest) or new.test_digest == old.test_digest


def _said(value: Any) -> str:
    return "none" if value is None else str(value)
