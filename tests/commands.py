"""Runs commands of sft, each in its own process, without importing torch and transformers again for each.

`python tests/commands.py` imports them once, and forks for every line on its standard input:
`{"module", "arguments", "cwd", "env", "stdout", "stderr"}`. It answers with the process's id, and with its exit
code when it has ended. This tests the command as a user runs it, from its arguments to its exit code; that `python -m`
starts it, and what it imports, is tested by tests/test_commands.py. (multiprocessing's own fork server ends its
processes without their exit handlers, which a command has.)
"""

import gc
import json
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


class Commands:
    """Started with the first command; ends with the process that holds it."""

    def __init__(self) -> None:
        self._server: subprocess.Popen[str] | None = None

    def __call__(
        self, name: str, *arguments: str, cwd: str | Path = ROOT, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run `python -m sft.NAME ARGUMENTS` with these variables beside the environment's own."""
        environment = {**os.environ, "PYTHONPATH": str(ROOT), **(env or {})}
        with tempfile.TemporaryDirectory() as place:
            out, err = Path(place, "stdout"), Path(place, "stderr")
            job = {"module": f"sft.{name}", "arguments": list(arguments), "cwd": str(cwd), "env": environment}
            code = self._run({**job, "stdout": str(out), "stderr": str(err)})
            return subprocess.CompletedProcess([name, *arguments], code, out.read_text(), err.read_text())

    def _run(self, job: dict[str, Any]) -> int:
        if self._server is None:
            line = [sys.executable, __file__]
            self._server = subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._server.stdin and self._server.stdout
        self._server.stdin.write(json.dumps(job) + "\n")
        self._server.stdin.flush()
        answer = self._server.stdout.readline()
        assert answer, "the process that starts commands has ended"
        return int(answer)

    def close(self) -> None:
        if self._server is not None:
            self._server.communicate()  # which ends its input


def _serve() -> dict[str, Any] | None:
    """The next job, in the process that is to do it; None at the end of the input."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # some modules print when they are imported
    import datasets  # noqa: F401
    import peft  # noqa: F401
    import torch  # noqa: F401
    import transformers.trainer  # noqa: F401

    import sft.training.trainer.trainer  # noqa: F401

    sys.stdout.flush()  # or each child would print it again
    gc.freeze()  # imported modules are never garbage, and each command runs the collector
    for line in iter(sys.stdin.readline, ""):
        child = os.fork()
        if child == 0:
            return json.loads(line)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), file=answers, flush=True)
    return None


def _become(job: dict[str, Any]) -> None:
    """Take a job's arguments, directory, variables and outputs, and run its module as `python -m` does."""
    os.environ.clear()
    os.environ.update(job["env"])
    os.chdir(job["cwd"])
    sys.path[:1] = [job["cwd"], *job["env"]["PYTHONPATH"].split(os.pathsep)]
    sys.argv = [job["module"], *job["arguments"]]
    sys.orig_argv = [sys.executable, "-m", *sys.argv]
    for number, name in enumerate((os.devnull, job["stdout"], job["stderr"])):
        os.dup2(os.open(name, os.O_CREAT | os.O_RDWR), number)
    runpy.run_module(job["module"], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    sys.path.insert(1, str(ROOT))
    if (job := _serve()) is not None:
        _become(job)
