"""Run by test_processes.py in each of two processes, `python stages.py ENDING`: what needs no program to be compiled.

Goes through stages in which one of the two fails and both go on, then ends as ENDING says.
"""

import os
import signal
import sys
import time

from mmbert_jax.errors import UserError, run_main
from mmbert_jax.parallel import processes
from mmbert_jax.parallel.processes import JobError, everywhere, gather, once

me = int(os.environ["JAX_PROCESS_ID"])


def fails(message="the fault"):
    raise UserError(message)


def crashes():
    raise RuntimeError("the crash")


def said(act) -> str:
    try:
        return f"returned {act()!r}"
    except JobError as error:
        return str(error)


def go_through_stages() -> None:
    print("say:", said(lambda: once(lambda: [me, "text"], "deciding")))
    print("say:", said(lambda: once(fails if me == 0 else crashes, "deciding")))
    print("say:", said(lambda: everywhere(lambda: me, "reading")).replace(f"{me}", "its own"))
    for process in (0, 1):
        print("say:", said(lambda: everywhere(fails if me == process else int, "reading")))  # noqa: B023
    print("say:", said(lambda: everywhere(crashes, "reading")))
    # Inside of one another they would wait for ever in process 0, which alone does what `once` is given.
    print("say:", said(lambda: once(lambda: everywhere(int), "deciding")))
    print("say:", said(lambda: everywhere(lambda: once(int), "reading")))
    print(
        "say:",
        said(lambda: processes.as_in_first(me == 0)),
        said(lambda: gather("ab"[me])),
    )


def main() -> None:
    processes.join(
        os.environ["JAX_COORDINATOR_ADDRESS"],
        2,
        me,
        heartbeat_seconds=6,
        answer_seconds=4 if "hangs" in sys.argv else 60,
    )
    with processes.ending_together():
        ending = sys.argv[1]
        if ending == "crashes":
            go_through_stages()
        if me == (0 if ending == "first fails" else 1):
            time.sleep(1)  # the other one is waiting by now
            if ending == "first fails":
                fails()
            if ending == "crashes":
                crashes()
            if ending == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if ending == "told to stop":
                os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(300)  # "hangs": its heart beats, but it never comes
        everywhere(int, "reading")


run_main(main)
