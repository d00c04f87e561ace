"""benchmarks/placement.py puts a frontend, its workers and their cores where it says."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"

#: A frontend with a core of its own, and a worker that has one: prints where each may run, after each placement.
PROGRAM = """
import json, os, subprocess, sys, threading
sys.path.insert(0, sys.argv[1])
from placement import place

waits = "import sys; print('there', flush=True); sys.stdin.read()"
works = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {waits!r}]).wait()"
core, worker = (
    subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    for code in (waits, works)
)
core.stdout.readline(), worker.stdout.readline()
threading.Thread(target=threading.Event().wait, daemon=True).start()
inner = int(open(f"/proc/{worker.pid}/task/{worker.pid}/children").read())
every = sorted(os.sched_getaffinity(0))
found = {}
for how in ("free", "apart", "pinned", "free again"):
    place(how.split()[0], every)
    found[how] = {
        name: sorted({tuple(sorted(os.sched_getaffinity(int(task)))) for task in os.listdir(f"/proc/{pid}/task")})
        for name, pid in {"this": os.getpid(), "core": core.pid, "worker": worker.pid, "inner": inner}.items()
    }
core.kill(), worker.stdin.close(), worker.wait()
print(json.dumps([every, found]))
"""


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one processor has no places")
def test_each_process_is_put_where_the_placement_says_with_all_its_threads():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(BENCHMARKS)], capture_output=True, text=True, timeout=60, check=True
    )
    every, found = json.loads(done.stdout)
    third = max(1, len(every) // 3)
    names = ("this", "core", "worker", "inner")
    assert found["free"] == found["free again"] == {name: [every] for name in names}
    assert found["apart"] == {name: [every[:third] if name in ("this", "worker") else every[third:]] for name in names}
    assert {name: len(places) for name, places in found["pinned"].items()} == dict.fromkeys(names, 1)
    assert found["pinned"]["this"] == [every[:1]]
    assert found["pinned"]["core"] == found["pinned"]["inner"] == [every[third : third + 1]]
