"""Print how many of BFCL's calls are read back, for each dialect and category."""

from __future__ import annotations

import argparse
import random
import sys
import zipfile
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

from toolcalls.check import damaged, is_read_back, parse
from toolcalls.dialects import DIALECTS
from toolcalls.questions import Question, read_questions

_CATEGORIES = (
    "simple_python", "simple_java", "simple_javascript", "multiple", "parallel",
    "parallel_multiple", "live_simple", "live_multiple", "live_parallel",
    "live_parallel_multiple",
)  # fmt: skip
_HINT = """\
error: the questions of BFCL are not here: {path}

hint: get them, and pass the file:
    pip download --no-deps --dest .bench bfcl-eval==2026.3.23
    scripts/bfcl .bench/bfcl_eval-2026.3.23-py3-none-any.whl"""


def main() -> int:
    """Exit code 1 when a call is lost, 2 without the questions."""
    parser = argparse.ArgumentParser(prog="scripts/bfcl", description=__doc__)
    parser.add_argument("wheel", type=Path, help="bfcl_eval-….whl; nothing of it is installed")
    parser.add_argument("--damaged-step", type=int, default=0, metavar="K",
                        help="also cut each text off at every K-th character")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if not options.wheel.is_file():
        print(_HINT.format(path=options.wheel), file=sys.stderr)
        return 2
    with TemporaryDirectory() as directory:
        with zipfile.ZipFile(options.wheel) as wheel:
            names = [name for name in wheel.namelist() if "/data/" in name]
            wheel.extractall(directory, names)
        data = Path(directory) / "bfcl_eval" / "data"
        questions = {
            name: list(
                read_questions(
                    data / f"BFCL_v4_{name}.json", data / "possible_answer" / f"BFCL_v4_{name}.json"
                )
            )
            for name in _CATEGORIES
        }
    return report(questions, random.Random(options.seed), options.damaged_step)


def report(questions: dict[str, list[Question]], rng: random.Random, step: int) -> int:
    """Print the table; 1 when a call is lost."""
    header = ["dialect", *questions, "all"]
    print("| " + " | ".join(header) + " |")
    print("|" + " --- |" * len(header))
    num_lost = num_damaged = 0
    for dialect, write in DIALECTS.items():
        recovered: Counter[str] = Counter()
        for category, rows in questions.items():
            for question in rows:
                text = write(question.calls)
                if is_read_back(question, dialect, rng):
                    recovered[category] += 1
                else:
                    num_lost += 1
                    print(f"lost: {question.id} {dialect}: {text!r:.300}", file=sys.stderr)
                if step:
                    for broken in damaged(text, rng, step=step):
                        parse(question.tools, broken, rng)
                        num_damaged += 1
        cells = [f"{recovered[name]}/{len(rows)}" for name, rows in questions.items()]
        total = sum(map(len, questions.values()))
        print(f"| {dialect} | {' | '.join(cells)} | {recovered.total() / total:.1%} |")
    print(f"\n{num_lost} of {total * len(DIALECTS)} answers not read back", end="")
    print(f"; {num_damaged} damaged ones went through" if step else "")
    return 1 if num_lost else 0


if __name__ == "__main__":
    sys.exit(main())
