"""`python -m connectx run -- COMMAND`: a command on a machine with a factory-new ConnectX-5 Ex at 0000:17:00."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import connectx
from connectx import cards, namespace


def main() -> int:
    parser = argparse.ArgumentParser(prog="connectx", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="run a command where the card is")
    run.add_argument("--card", default="cx5ex", choices=cards.KINDS)
    run.add_argument("argv", nargs="+", metavar="COMMAND")
    serve = commands.add_parser("serve", help="hold a machine (used by connectx.machine)")
    serve.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    if arguments.command == "serve":
        namespace.serve(arguments.folder)
        return 0
    if reason := connectx.missing():
        print(f"connectx: {reason}", file=sys.stderr)
        return 1
    plugged = connectx.card(arguments.card)
    with tempfile.TemporaryDirectory() as folder, connectx.machine(Path(folder), plugged) as machine:
        return subprocess.run(machine.command(*arguments.argv), check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
