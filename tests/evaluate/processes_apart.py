"""Runs in processes of their own, to be killed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch

TESTS = Path(__file__).parent.parent
SOURCE = TESTS.parent / "src"

WHOLE = """
import sys
from evaluate.test_runner import QUESTION, tiny
from vitrail.evaluate.runner import evaluate

if __name__ == "__main__":
    evaluate(tiny(), sys.argv[1], output=sys.argv[2], engine=sys.argv[3], **QUESTION)
"""

# Forks a process for each line that it reads, when all imports are done; they take much longer than a run.
FORKING = """
import contextlib, json, os, signal, sys
from evaluate.test_runner import QUESTION, tiny
from vitrail.evaluate import run_directory, runner

def say(word):
    os.write(1, f"{word}\\n".encode())

def dying_at(where):
    # SIGKILL, by its own hand, within the writing of a file: (which, place) from the first file that is written.
    which, place = where
    real, count = run_directory.atomic_write, [0]

    @contextlib.contextmanager
    def atomic_write(path):
        count[0] += 1
        end = lambda now: count[0] == which and place == now and os.kill(os.getpid(), signal.SIGKILL)
        end("before")
        with real(path) as file:
            write = file.write
            class Slow:
                def write(self, data):
                    write(data[: len(data) // 2])
                    file.flush()
                    end("half")
                    write(data[len(data) // 2 :])
            yield Slow()
            file.flush()
            end("whole")
        end("after")

    run_directory.atomic_write = atomic_write

for line in sys.stdin:
    job = json.loads(line)
    child = os.fork()
    if not child:
        if job["die"]:
            dying_at(job["die"])
        begin = lambda done, total: {job["done"]: lambda: say("begun"), job["done"] + 1: lambda: say("block")}.get(
            done, lambda: None)()
        runner.evaluate(tiny(), job["pictures"], output=job["output"], progress=begin, **QUESTION | job["question"])
        os._exit(0)
    say(child)
    _, status = os.waitpid(child, 0)
    say(f"ended {os.waitstatus_to_exitcode(status)}")
"""


def start(program: str, *words: object, **options) -> subprocess.Popen:
    """A Python process that can import the tests and this very source."""
    path = os.pathsep.join([str(SOURCE), str(TESTS)])
    environment = dict(os.environ) | {"OMP_NUM_THREADS": str(torch.get_num_threads()), "PYTHONPATH": path}
    given = [sys.executable, "-c", program, *map(str, words)]
    return subprocess.Popen(given, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)


class Forks:
    """One process that has imported all, and one run after the other, each in a fork of it."""

    def __init__(self) -> None:
        self.process = start(FORKING, stdin=subprocess.PIPE)

    def run(self, pictures: Path, output: Path, done: int, die: tuple[int, str] | None = None, **question) -> int:
        """Start a run of which `done` images are there; its process."""
        job = {"pictures": str(pictures), "output": str(output), "done": done, "die": die, "question": question}
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(job).encode() + b"\n")
        self.process.stdin.flush()
        return int(self.line())

    def line(self) -> str:
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        said = self.process.stdout.readline().decode().strip()
        assert said, self.process.stderr.read().decode()
        return said

    def ended(self) -> int:
        """The exit status of the run, minus the signal's number where it was killed."""
        word, _, status = self.line().partition(" ")
        return int(status) if word == "ended" else self.ended()

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()
