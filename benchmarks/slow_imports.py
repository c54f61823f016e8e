"""Sends signals to commands whose imports are slow, as on a busy file server, and shows how they end.

    python benchmarks/slow_imports.py [--tries 24]

Every module comes 4 ms later. At a random moment of the first 25 s the process, or its whole group as a scheduler has
it, gets SIGTERM or SIGUSR1. A command that had not ended by then must exit with 75: run again.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SLOW = """
import sys, time
class Slow:
    def find_spec(self, name, path=None, target=None):
        time.sleep(0.004)
sys.meta_path.insert(0, Slow())
from edc.__main__ import main
main()
"""
RECIPE = """
name: tiny
data: {kind: synthetic, image_size: 8, num_images: 64, test: 40}
network: cifar_resnet8
training: {epochs: 20, warmup_epochs: 1, batch_size: 16}
teachers: {ensemble_size: 2}
students: {kd: {method: kd}}
"""
COMMANDS = (
    ["distill", "tiny.yaml", "--device", "cpu"],
    ["export", "runs/tiny"],
    ["bench", "export/tiny", "--quick"],
    ["doctor"],
    ["--version"],
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tries", type=int, default=24)
    draws = random.Random(1)
    in_time = held = 0
    for number in range(parser.parse_args().tries):
        command, after = draws.choice(COMMANDS), draws.uniform(0.2, 25)
        sent, to_group = draws.choice([signal.SIGTERM, signal.SIGUSR1]), draws.random() < 0.5
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "tiny.yaml").write_text(RECIPE)
            process = subprocess.Popen(
                [sys.executable, "-c", SLOW, *command],
                cwd=folder,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            time.sleep(after)
            was_running = process.poll() is None
            if was_running:
                os.killpg(process.pid, sent) if to_group else process.send_signal(sent)
            code = process.wait(timeout=300)
        in_time += was_running
        held += was_running and code == 75
        print(
            f"{number}: {command[0]}, {sent.name} after {after:.1f} s: {code if was_running else 'had ended'}",
            flush=True,
        )
    print(f"{held} of the {in_time} that had not ended exited with 75")


if __name__ == "__main__":
    main()
