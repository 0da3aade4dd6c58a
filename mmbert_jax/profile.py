"""A profiler's trace of some steps of a run, for TensorBoard's profile plugin, XProf or Perfetto."""

import contextlib
from typing import Any

import jax

from mmbert_jax.errors import UserError
from mmbert_jax.files import folder_on_disk
from mmbert_jax.places import Place

FOLDER = "profile"


class StepTrace:
    """Traces the steps `first` to `last` (numbered as in the log, both included) into RUN/profile.

    Steps are waited for before the trace starts and before it stops, so it holds these steps whole and no others.

    Args:
      steps: (first, last); None traces nothing.
    """

    def __init__(self, run: Place, steps: tuple[int, int] | None):
        self._folder = run / FOLDER
        self._writing = contextlib.ExitStack()
        self._first, self._last = steps or (0, -1)
        self._running = False

    def before(self, step: int, state: Any) -> None:
        """Call before step `step` is dispatched, with the state that it starts from."""
        if self._first <= step <= self._last and not self._running:
            jax.block_until_ready(state)
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0  # what the host calls is most of a trace otherwise
            # The profiler writes to disks alone.
            folder = self._writing.enter_context(folder_on_disk(self._folder))
            jax.profiler.start_trace(str(folder), profiler_options=options)
            self._running = True

    def after(self, step: int, state: Any) -> None:
        """Call after step `step` is dispatched, with the state that it ends in."""
        if self._running and step >= self._last:
            jax.block_until_ready(state)
            self.close()

    def close(self) -> None:
        """Writes the trace, if one is running: for a run that ends inside the range."""
        if self._running:
            jax.profiler.stop_trace()
            self._writing.close()
            self._running = False


def parse_steps(text: str | None) -> tuple[int, int] | None:
    """'10:12' -> (10, 12); None stays None.

    Raises:
      UserError: the text is not of that form, or names no steps.
    """
    if text is None:
        return None
    first, _, last = text.partition(":")
    if not (first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
        raise UserError(
            f"--profile_steps={text}: write FIRST:LAST, such as 10:12 for the steps 10, 11 and 12"
        )
    return int(first), int(last)
