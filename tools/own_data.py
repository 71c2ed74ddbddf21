"""Try what a new user runs into, on this version or another, and write the table of both.

python tools/own_data.py --checkout DIR --json docs/runs/own_data/before.json
python tools/own_data.py --json docs/runs/own_data/after.json --into docs/OWN_DATA_CASES.md
"""

import argparse
import tempfile
from pathlib import Path

import orjson

from lab.own_data.points import CASES
from lab.own_data.runs import page, run_case, train_once

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkout", type=Path, default=ROOT, help="version to try; default this")
    parser.add_argument("--json", type=Path, required=True, help="outcomes; those there are kept")
    parser.add_argument("--into", type=Path, help="write before.json and after.json as a table")
    args = parser.parse_args()
    done = orjson.loads(args.json.read_bytes()) if args.json.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        sound = train_once(Path(folder), args.checkout)
        for case in CASES:
            if case.name not in done:
                done[case.name] = run_case(case, sound, Path(folder), args.checkout)
                args.json.parent.mkdir(parents=True, exist_ok=True)
                args.json.write_bytes(orjson.dumps(done, option=orjson.OPT_INDENT_2))
                print(f"{case.name}: {done[case.name]['summary']}", flush=True)
    if args.into:
        paths = (args.json.parent / f"{version}.json" for version in ("before", "after"))
        args.into.write_text(page(*(orjson.loads(path.read_bytes()) for path in paths)))


if __name__ == "__main__":
    main()
