"""A bench.json (schema 2) as a bench of digits leaves it, with every part: made up, but consistent in itself."""

import base64
import io
import math
from typing import Any

import numpy as np
from PIL import Image

CLASSES = [str(digit) for digit in range(10)]
STUDENT = "latent_be_tdiv_sdiv"
BATCHES = (1, 8, 64)
NUM_IMAGES = 500
# subject -> (accuracy, NLL, ECE, cNLL, parameters, latency of one image in units of a teacher's)
SUBJECTS = {
    "teacher 0": (0.978, 0.130, 0.039, 0.123, 77_562, 1.0),
    "ensemble, in turn": (0.976, 0.119, 0.046, 0.093, 310_248, 4.1),
    "ensemble, merged": (0.976, 0.119, 0.046, 0.093, 310_248, 3.4),
    "kd": (0.970, 0.119, 0.032, 0.112, 77_562, 1.0),
    f"{STUDENT} (members)": (0.976, 0.109, 0.035, 0.091, 80_100, 4.8),
    STUDENT: (0.978, 0.105, 0.027, 0.096, 77_562, 1.01),
    f"{STUDENT} (int8)": (0.972, 0.112, 0.030, 0.101, 77_562, 0.8),
}
TORCH = ("teacher 0", "ensemble, in turn", "kd", f"{STUDENT} (members)", STUDENT)
ONNX = ("teacher 0", "ensemble, in turn", "ensemble, merged", STUDENT, f"{STUDENT} (int8)")
BACKENDS = {
    "torch": (0.218, TORCH),
    "onnxruntime": (0.024, ONNX),
    "openvino": (0.069, ONNX),
    "tensorrt-rtx": (0.03, ONNX[:1]),
}
NO_GPU = "no NVIDIA driver on this machine (nvidia-smi is missing): engines cannot run here"
EPOCHS = 30


def estimate(value: float, spread: float = 0.015) -> dict[str, float]:
    return {"value": value, "low": value * (1 - spread), "high": value * (1 + 1.2 * spread)}


def key_of(row: dict[str, Any]) -> str:
    prefix = f"{row['artifact']}: " if row["artifact"] else ""
    return f"{prefix}{row['subject']} on {row['backend']}"


def bench_document() -> dict[str, Any]:
    """Returns the document; values are the same every time."""
    rng = np.random.default_rng(0)
    rows = [
        _row(rng, backend, subject, batch)
        for backend, (_, subjects) in BACKENDS.items()
        for subject in subjects
        for batch in BATCHES
    ]
    also = {**_row(rng, "onnxruntime", "kd", 1), "artifact": "digits-v1", "against": []}
    rows.append(also)
    _gpu_row(rows, rng)
    keys = list(dict.fromkeys(key_of(row) for row in rows if row["quality"]))
    row = next(r for r in rows if (r["subject"], r["backend"], r["batch"]) == (STUDENT, "onnxruntime", 1))
    against = row["against"][0]
    speed, points = against["speedup"], against["accuracy"]["difference"]
    return {
        "schema_version": 2,
        "artifact": "digits-seed0",
        "deploy": STUDENT,
        "ensemble_size": 4,
        "command": "edc bench export/digits-seed0 --batch 1,8,64 --threads 2 --also export/digits-v1",
        "quick": False,
        "seed": 0,
        "num_test_images": NUM_IMAGES,
        "num_validation_images": 297,
        "class_names": CLASSES,
        "plan": {
            "seconds_per_row": 3.0, "num_rounds": 30, "min_rounds": 10, "window_ms": 30.0, "agreement": 0.05,
            "max_windows": 40, "settle_ms": 3.0,
        },
        "environment": _environment(),
        "verdict": {
            "sentences": [
                f"{STUDENT} on onnxruntime answers one image {speed['value']:.2f} "
                f"({speed['low']:.2f}-{speed['high']:.2f}) times as fast as the best form of the ensemble of 4.",
                f"Its accuracy is {100 * row['quality']['raw']['acc']:.2f} %, {100 * points['value']:+.2f} "
                f"({100 * points['low']:+.2f} to {100 * points['high']:+.2f}) points from the ensemble's: not worse by "
                "more than 0.5 points cannot be told from 500 images.",
                "Each with its own temperature, its NLL is 0.096 and the ensemble's 0.093, a difference of +0.003 "
                "(-0.011 to +0.018).",
                "Ship student-2.onnx: on 3-5 July it was -1 of all.",
            ],
            "baseline": against["baseline"],
            "row": key_of(row),
            "batch": 1,
        },
        "rows": rows,
        "details": {key: _details(rng, key) for key in keys},
        "throughput": [_throughput(key) for key in keys if not key.startswith("digits-v1")],
        "server": [
            _server(key, fails=key.endswith("torch")) for key in keys if STUDENT + " on" in key or "in turn" in key
        ],
        "disagreements": _disagreements(rng),
        "curves": {name: _curve(rng, name) for name in (*(f"teacher {m}" for m in range(4)), "kd", STUDENT)},
    }  # fmt: skip


def small_document() -> dict[str, Any]:
    """Returns the document with the rows of one backend and batch, of which a page is made quickly."""
    document = bench_document()
    rows = [row for row in document["rows"] if row["backend"] == "onnxruntime" and row["batch"] == 1]
    keys = [key_of(row) for row in rows][:3]
    kept = {part: [each for each in document[part] if each["key"] in keys] for part in ("throughput", "server")}
    return {**document, **kept, "rows": rows, "details": {key: document["details"][key] for key in keys}}


def _environment() -> dict[str, Any]:
    return {
        "cpu": "AMD EPYC", "num_cpus": 2, "memory_bytes": 25_276_510_208, "system": "Linux 6.18.44 x86_64",
        "python": "3.11.7",
        "packages": {"torch": "2.14.1", "onnx": "1.23.2", "onnxruntime": "1.31.1", "numpy": "2.4.6"},
        "threads": 2, "governor": None, "turbo": None, "started": "2026-11-22T18:38:40+00:00",
        "load_at_start": [0.72, 0.86, 1.04], "load_at_end": [1.83, 1.67, 1.36], "ended": "2026-11-22T18:41:28+00:00",
        "flags": ["busy machine: the load average was 0.7 before the bench began"],
    }  # fmt: skip


def _row(rng: np.random.Generator, backend: str, subject: str, batch: int) -> dict[str, Any]:
    acc, nll, ece, calibrated_nll, parameters, cost = SUBJECTS[subject]
    median = BACKENDS[backend][0] * cost * batch**0.72 * (1 + 0.02 * rng.standard_normal())
    noise = 0.3 if (backend, subject) == ("torch", "ensemble, in turn") else 0.05
    samples = np.sort(median * (0.97 + rng.gamma(1.2, noise, 2000)))
    samples[-int(8 + 40 * noise) :] *= 1.6
    precision = "int8" if "int8" in subject else "fp32"
    dees = {"teacher 0": 1.45, "kd": 1.92, STUDENT: 3.63, f"{STUDENT} (int8)": 3.41}
    is_better_than_all = subject == f"{STUDENT} (members)"
    return {
        "subject": subject, "backend": backend, "artifact": None, "batch": batch, "precision": precision,
        "what_ran": {
            "provider": "CPUExecutionProvider" if backend == "onnxruntime" else f"{backend} on cpu",
            "precision": precision, "version": "1.31.1", "threads": 2,
            "notes": ["channels_last"] if backend == "torch" else [],
        },
        "p50_ms": estimate(float(np.quantile(samples, 0.5))),
        "p90_ms": estimate(float(np.quantile(samples, 0.9)), 0.04),
        "p99_ms": {**estimate(float(np.quantile(samples, 0.99)), 0.1), **({"high": None} if noise > 0.1 else {})},
        "images_per_second": 1000 * batch / float(samples.mean()), "num_samples": 2928,
        "load_ms": 10.99, "first_inference_ms": 1.013, "peak_memory_bytes": 1_429_504,
        "file_bytes": 4 * parameters if precision == "fp32" else parameters + 9_000,
        "parameters": parameters, "dee": dees.get(subject), "dee_at_least": 4 if is_better_than_all else None,
        "flags": [f"noise: the coefficient of variation is {noise:.0%}"] if noise > 0.1 else [], "reason_not_run": None,
        "quality": {
            "raw": {"acc": acc, "nll": nll, "ece": ece, "brier": 0.0467},
            "calibrated": {"acc": acc, "nll": calibrated_nll, "ece": ece / 2, "brier": 0.0376},
            "calibration_temperature": 0.803, "agreement": 0.974,
        },
        "against": _against(backend, subject, cost, acc),
        "round_medians_ms": {str(n): median * (1 + 0.6 * noise * float(rng.standard_normal())) for n in range(30)},
        "latency_quantiles_ms": np.quantile(samples, np.linspace(0, 1, 101)).tolist(),
        "parts_ms": {},
    }  # fmt: skip


def _against(backend: str, subject: str, cost: float, acc: float) -> list[dict[str, Any]]:
    if subject.startswith("ensemble"):
        return []
    best = "ensemble, in turn" if backend == "torch" else "ensemble, merged"
    change = acc - SUBJECTS[best][0]
    accuracy = {
        "paired": {
            "reference_accuracy": SUBJECTS[best][0], "candidate_accuracy": acc, "drop": -change, "num_lost": 4,
            "num_gained": 4 + round(change * NUM_IMAGES), "p_value": 0.754, "num_images": NUM_IMAGES,
        },
        "difference": {"value": change, "low": change - 0.010, "high": change + 0.012}, "margin": 0.005,
        "verdict": "undecided", "p_corrected": 1.0,
    }  # fmt: skip
    ratio = SUBJECTS[best][5] / cost
    found = [{
        "baseline": f"{best} on {backend}", "basis": "ensemble", "speedup": estimate(ratio), "accuracy": accuracy,
        "flops_ratio": 4.0, "throughput_ratio": 0.97 * ratio,
        "doubts": ["3.37 times as fast, by FLOPs 2.00"] if subject == STUDENT and backend == "onnxruntime" else [],
    }]  # fmt: skip
    if not subject.startswith("teacher"):
        change = acc - SUBJECTS["teacher 0"][0]
        difference = {"value": change, "low": change - 0.014, "high": change + 0.009}
        found.append({
            "baseline": f"teacher 0 on {backend}", "basis": "teacher", "speedup": estimate(1 / cost),
            "accuracy": {**accuracy, "difference": difference, "verdict": "worse" if change < -0.005 else "undecided"},
            "flops_ratio": 1.0, "throughput_ratio": None, "doubts": [],
        })  # fmt: skip
    return found


def _gpu_row(rows: list[dict[str, Any]], rng: np.random.Generator) -> None:
    """Turns the rows of the GPU backend into one that gives parts and two that did not run."""
    gpu = [row for row in rows if row["backend"] == "tensorrt-rtx"]
    gpu[0]["parts_ms"] = {part: estimate(0.004) for part in ("copy_in", "compute", "copy_out")} | {"enqueue": None}
    for row in gpu[1:]:
        row.update(
            {name: None for name in row if name.endswith("_ms")} | {"parts_ms": {}},
            what_ran=None, images_per_second=None, num_samples=0, peak_memory_bytes=None, file_bytes=None, quality=None,
            against=[], reason_not_run=NO_GPU, dee=None, precision=None,
        )  # fmt: skip


def _bins(rng: np.random.Generator, shift: float) -> list[dict[str, Any]]:
    counts = np.array([0, 0, 0, 2, 1, 4, 6, 5, 8, 9, 14, 17, 28, 66, 340])
    bins = []
    for n, count in enumerate(counts.tolist()):
        low, high = n / 15, (n + 1) / 15
        if not count:
            bins.append({"low": low, "high": high, "count": 0, "confidence": None, "accuracy": None})
            continue
        confidence = low + (high - low) * (0.9 if n == 14 else 0.5)
        accuracy = (
            round(
                count * min(1.0, max(0.0, confidence + shift / (1 + n / 6) + 0.25 * rng.standard_normal() / count**0.5))
            )
            / count
        )
        bins.append({"low": low, "high": high, "count": count, "confidence": confidence, "accuracy": accuracy})
    return bins


def _details(rng: np.random.Generator, key: str) -> dict[str, Any]:
    subject = key.rpartition(": ")[2].rsplit(" on ", 1)[0]
    acc, nll, ece, calibrated_nll, _, _ = SUBJECTS[subject]
    levels = [("none", 0)] + [(c, s) for c in ("gaussian_noise", "blur", "contrast", "jpeg") for s in range(1, 6)]
    robustness = [
        {
            "corruption": corruption, "severity": severity,
            "acc": acc - harm, "nll": nll + 3 * harm, "ece": ece + 0.6 * harm, "brier": 0.04 + harm,
            "calibrated_nll": calibrated_nll + 2.6 * harm, "calibrated_ece": ece / 2 + 0.5 * harm,
            "num_images": 400, "agreement": 0.97 - 0.5 * harm,
            "acc_difference": None if subject.startswith("ensemble") else
            {"value": -harm / 9, "low": -harm / 9 - 0.01, "high": -harm / 9 + 0.013},
        }
        for corruption, severity in levels
        for harm in [{"none": 0, "gaussian_noise": 0.02, "blur": 0.014, "contrast": 0.006, "jpeg": 0.003}[corruption]
                     * severity**1.5 * (1.15 if "teacher" in subject else 1.05 if "ensemble" not in subject else 1.0)]
    ]  # fmt: skip
    return {"reliability": {"raw": _bins(rng, 0.07), "calibrated": _bins(rng, 0.0)}, "robustness": robustness}


def _throughput(key: str) -> dict[str, Any]:
    subject, backend = key.rsplit(" on ", 1)
    one = 1000 / (BACKENDS[backend][0] * SUBJECTS[subject][5])
    points = [{"batch": 2**n, "images_per_second": one * 2 ** (2.2 * (1 - math.exp(-n / 3)))} for n in range(9)]
    return {"key": key, "points": points, "best_batch": 256, "saturated": not key.endswith("torch")}


def _server(key: str, *, fails: bool) -> dict[str, Any]:
    subject, backend = key.rsplit(" on ", 1)
    service = BACKENDS[backend][0] * SUBJECTS[subject][5]
    points = []
    for share in (0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 1.1):
        offered, waits = share * 1000 / service, service * (1 + share / max(1 - share, 0.02))
        p99 = None if fails and share > 1 else 2.2 * waits
        points.append({
            "offered_per_second": offered, "achieved_per_second": min(offered, 1000 / service), "num_requests": 4000,
            "p50_ms": waits, "p90_ms": 1.6 * waits, "p99_ms": p99, "p99_low_ms": p99 and 0.9 * p99, "p99_high_ms": None,
        })  # fmt: skip
    highest, lowest_failing = (None, 100 / service) if fails else (700 / service, 800 / service)
    return {
        "key": key, "bound_ms": 10.0, "points": points, "highest_rate_per_second": highest,
        "lowest_failing_rate_per_second": lowest_failing,
    }  # fmt: skip


def _png(rng: np.random.Generator) -> str:
    y, x = np.mgrid[0:8, 0:8]
    blob = np.exp(-((x - 3.5 - rng.normal()) ** 2 + (y - 3.5 - rng.normal()) ** 2) / 5) + 0.2 * rng.random((8, 8))
    stream = io.BytesIO()
    Image.fromarray(np.clip(255 * blob, 0, 255).astype(np.uint8)).save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()


def _disagreements(rng: np.random.Generator) -> dict[str, Any]:
    images = []
    for n in range(16):
        label, other, third = (int(digit) for digit in rng.permutation(10)[:3])
        ours, theirs = [(label, other), (other, label), (other, third)][n % 3]
        images.append({
            "index": int(rng.integers(NUM_IMAGES)), "png_base64": _png(rng), "label": label,
            "student": {"class": ours, "probability": float(rng.uniform(0.35, 0.9))},
            "ensemble": {"class": theirs, "probability": float(rng.uniform(0.35, 0.9))},
        })  # fmt: skip
    names = {"student": f"{STUDENT} on onnxruntime", "ensemble": "ensemble, merged on onnxruntime"}
    return {**names, "num_images": NUM_IMAGES, "num_disagree": 23, "images": images}


def _curve(rng: np.random.Generator, name: str) -> list[dict[str, Any]]:
    floor, scale = (0.02, 2.3) if name.startswith("teacher") else (0.9, 30.0)
    return [
        {
            "epoch": epoch,
            "loss": scale * (floor + math.exp(-epoch / 7)) * (1 + 0.05 * float(rng.standard_normal())),
            "validation_acc": None
            if epoch % 2
            else 0.975 - 0.6 * math.exp(-epoch / 5) + 0.004 * float(rng.standard_normal()),
        }
        for epoch in range(EPOCHS)
    ]
