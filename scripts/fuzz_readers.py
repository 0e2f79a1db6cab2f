"""Feed every reader of files with odd bytes for minutes; each answer is right or one error.

    python scripts/fuzz_readers.py --seconds 120 --output scripts/results/fuzz_readers.json

The readers and their sound files are those of the tests (tests/helpers/fuzzed_readers.py). With the
package atheris, which watches the branches of the code, each reader runs in a process of its own;
without it, hypothesis changes the sound file. An input that breaks a reader is kept in ``--kept``,
and the exit code is 1.
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import subprocess
import sys
import tempfile
import time
import types
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "helpers"))

import fuzzed_readers
import odd_inputs
from hypothesis import HealthCheck, Phase, given, seed, settings, strategies

from sparse_ir import environment
from sparse_ir.storage import files


def main() -> None:
    arguments = parse_arguments()
    if arguments.reader:
        run_atheris(arguments.reader, arguments.seconds, arguments.kept)
        return
    has_atheris = importlib.util.find_spec("atheris") is not None
    readers = {}
    for name in fuzzed_readers.READERS:
        fuzz = start_atheris if has_atheris else run_hypothesis
        readers[name] = fuzz(name, arguments.seconds, arguments.kept)
        print(name, readers[name], flush=True)
    report = {
        "tool": "atheris" if has_atheris else "hypothesis",
        "seconds_per_reader": arguments.seconds,
        "versions": environment.find_versions(("atheris", "hypothesis", "tokenizers")),
        "readers": readers,
    }
    files.write_json(arguments.output, report)
    if any(result["failed"] for result in readers.values()):
        sys.exit(1)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=int, default=60, help="of each reader")
    parser.add_argument("--output", type=Path, default=Path("scripts/results/fuzz_readers.json"))
    parser.add_argument("--kept", type=Path, default=Path("fuzz-failures"), help="broken inputs")
    parser.add_argument("--reader", help="fuzz this one alone in this process, with atheris")
    return parser.parse_args()


def start_atheris(name: str, seconds: int, kept: Path) -> dict[str, int | bool]:
    """Fuzz one reader in a process of its own."""
    command = [sys.executable, __file__, "--reader", name, "--seconds", str(seconds)]
    done = subprocess.run(
        [*command, "--kept", str(kept)], capture_output=True, text=True, check=False
    )
    match = re.search(r"Done (\d+) runs", done.stdout + done.stderr)
    if done.returncode != 0:
        print(done.stdout[-3000:], done.stderr[-3000:])
    runs = int(match[1]) if match else 0
    return {"inputs": runs, "failed": done.returncode != 0 or runs == 0}


def run_atheris(name: str, seconds: int, kept: Path) -> None:
    """Fuzz one reader until the time is up; atheris ends the process."""
    import atheris

    for module in list(sys.modules.values()):
        if getattr(module, "__name__", "").startswith("sparse_ir.data"):
            for value in list(vars(module).values()):
                if isinstance(value, types.FunctionType):
                    value.__code__ = atheris.instrument_func(value).__code__
    content, read = fuzzed_readers.READERS[name]
    kept.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp())
    (folder / "seeds").mkdir()
    (folder / "seeds" / "sound").write_bytes(content)
    path = folder / name

    def check(changed: bytes) -> None:
        path.write_bytes(changed)
        odd_inputs.check_outcome(lambda: read(path), path)

    options = [f"-max_total_time={seconds}", f"-artifact_prefix={kept}/{name}-", "-max_len=4096"]
    atheris.Setup([sys.argv[0], *options, str(folder / "seeds")], atheris.instrument_func(check))
    atheris.Fuzz()


def run_hypothesis(name: str, seconds: int, kept: Path) -> dict[str, int | bool]:
    """Change the sound file of one reader until the time is up."""
    content, read = fuzzed_readers.READERS[name]
    inputs = 0
    end = time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name

        def check(changed: bytes) -> None:
            nonlocal inputs
            inputs += 1
            path.write_bytes(changed)
            odd_inputs.check_outcome(lambda: read(path), path)

        number = 0
        while time.monotonic() < end:
            strategy = odd_inputs.changed_bytes(content) | strategies.binary(max_size=200)
            task = seed(number)(_FUZZ(given(strategy)(check)))
            number += 1
            try:
                task()
            except Exception as error:
                kept.mkdir(parents=True, exist_ok=True)
                (kept / f"{name}-hypothesis").write_bytes(path.read_bytes())
                print(f"{name}: {type(error).__name__}: {error}")
                return {"inputs": inputs, "failed": True}
    return {"inputs": inputs, "failed": False}


_FUZZ = settings(
    max_examples=200,
    deadline=None,
    database=None,
    phases=[Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
)


if __name__ == "__main__":
    main()
