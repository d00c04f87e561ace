"""``python -P -m anyengine.worker``: the supervisor, the worker under it, or what this interpreter has."""

from __future__ import annotations

import argparse
import os
import signal
import sys


def main() -> int:
    """Take the part that the arguments say."""
    parser = argparse.ArgumentParser(prog="python -m anyengine.worker", description=__doc__)
    part = parser.add_mutually_exclusive_group(required=True)
    part.add_argument("--describe", action="store_true", help="print what this interpreter has, as JSON")
    part.add_argument("--supervise", nargs=4, type=int, metavar=("LIFELINE", "REQUESTS", "CONTROL", "PARENT"))
    part.add_argument("--serve", nargs=3, type=int, metavar=("REQUESTS", "CONTROL", "PARENT"))
    arguments = parser.parse_args()
    if arguments.describe:
        from anyengine.worker.describe import main as describe  # noqa: PLC0415 each part imports its own

        describe()
        return 0
    if arguments.supervise:
        return _supervise(*arguments.supervise)
    from anyengine.worker.serve import serve  # noqa: PLC0415

    return serve(*arguments.serve)


def _supervise(lifeline: int, requests: int, control: int, parent: int) -> int:
    from anyengine.worker.supervisor import supervise  # noqa: PLC0415

    serve = ["--serve", str(requests), str(control), str(os.getpid())]
    # -P: what lies in the current folder is not imported by its name.
    command = [sys.executable, "-P", "-m", "anyengine.worker", *serve]
    status = supervise(lifeline, parent, command, keep=(requests, control))
    if status < 0:  # end as the worker did
        signal.signal(-status, signal.SIG_DFL) if -status not in {signal.SIGKILL, signal.SIGSTOP} else None
        os.kill(os.getpid(), -status)
    return status


if __name__ == "__main__":
    sys.exit(main())
