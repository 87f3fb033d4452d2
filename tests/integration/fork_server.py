"""Runs trainings in forked children and kills them at named moments; driven by test_kill.py.

One JSON request a line on standard input, one JSON answer a line on standard output. The server
itself never trains: autograd does not survive a fork.
"""

import json
import os
import shutil
import signal
import sys
import time
import types
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # seconds; every child would pay them again

import gemmule.data.prepare as preparing
import gemmule.runs.carbon
import gemmule.train.run as running
from gemmule import files
from gemmule.errors import GemmuleError
from gemmule.model.tokenizer import Tokenizer
from gemmule.runs import metrics
from gemmule.runs.ledger import activity
from gemmule.runs.run_dir import RunDir
from gemmule.teachers import logit_store as stores
from gemmule.teachers import record, record_config, record_session
from gemmule.train import loop, state
from gemmule.train.config import RunConfig


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def no_tracker(*_: object) -> None:
    raise RuntimeError("left out by the test")


def replace(owner: Any, name: str, at: int, *, before: Any = None, after: Any = None) -> None:
    """Makes the at-th call of owner.name end in a kill, before or after its work."""
    plain, calls = getattr(owner, name), 0

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == at and before:
            before(*args)
            die()
        result = plain(*args, **kwargs)
        if calls == at and after:
            after(*args)
            die()
        return result

    setattr(owner, name, wrapped)


def nothing(*_: object) -> None:
    pass


def half_a_file(tensors: Any, path: Path) -> None:
    path.write_bytes(b"\x10\x00\x00\x00")


def half_a_line(path: Path, values: Any) -> None:
    with path.open("a") as f:
        f.write('{"step": 7, "tok')


def half_a_folder(path: Path) -> None:
    (path / "state.safetensors").unlink()


MOMENTS: dict[str, tuple[Any, str, dict[str, Any]]] = {
    "config": (Path, "replace", {"before": nothing}),
    "manifest": (RunDir, "write_manifest", {"before": nothing}),
    "step": (loop, "learning_rate_factor", {"before": nothing}),
    "metrics": (metrics, "append", {"before": half_a_line}),
    "writing tensors": (state, "save_file", {"before": half_a_file}),
    "before the rename": (Path, "rename", {"before": nothing}),
    "after the rename": (Path, "rename", {"after": nothing}),
    "dropping old ones": (shutil, "rmtree", {"before": half_a_folder}),
    "carbon": (files, "write_json", {"before": nothing}),
    "model": (running, "_save", {"before": nothing}),
    "result": (running, "_save", {"after": nothing}),
    "line": (activity.Activity, "_write", {"before": nothing}),
    "recording": (record_session, "batch_of", {"before": nothing}),
    "before a shard": (stores, "write_shard", {"before": nothing}),
    "after a shard": (stores, "write_shard", {"after": nothing}),
    "before a shard's rename": (Path, "replace", {"before": nothing}),
    "tokenising": (preparing, "make_shard", {"before": nothing}),
}


def arrange(where: str, at: int) -> None:
    """Sets up the kill."""
    # A copy of the name that this module uses, so that atomic_dir's rmtree stays as it is.
    state.shutil = types.SimpleNamespace(rmtree=shutil.rmtree)  # type: ignore[attr-defined]
    owner, name, hooks = MOMENTS[where]
    replace(state.shutil if owner is shutil else owner, name, at, **hooks)


def replace_batches(at: int) -> None:
    """SIGTERM as the at-th batch of windows is read for recording."""
    plain, count = record_session.batch_of, 0

    def batch_of(*args: Any) -> Any:
        nonlocal count
        count += 1
        if count == at:
            os.kill(os.getpid(), signal.SIGTERM)
        return plain(*args)

    record_session.batch_of = batch_of  # type: ignore[attr-defined]


def child(request: dict[str, Any]) -> int:
    if "where" in request:
        arrange(request["where"], request["at"])
    if request.get("sigterm_at"):
        # A real signal, delivered in the middle of a step.
        count = 0
        plain = loop.clip_gradients

        def clip(*args: Any) -> Any:
            nonlocal count
            count += 1
            if count == request["sigterm_at"]:
                os.kill(os.getpid(), signal.SIGTERM)
            return plain(*args)

        loop.clip_gradients = clip  # type: ignore[attr-defined]
        replace_batches(request["sigterm_at"])
    out = Path(request["out"])
    if "source" in request:
        preparing.prepare(
            Path(request["source"]), Tokenizer.load(Path(request["tokenizer"])), out, workers=1
        )
        return 0
    if "record" in request:
        try:
            record.record(record_config.RecordConfig.parse(request["record"]), out)
        except GemmuleError as e:
            sys.stderr.write(f"{e}\n")
            return e.exit_code
        return 0
    try:
        running.run_training(RunConfig.parse(request["settings"]), out, resume=request["resume"])
    except GemmuleError as e:
        sys.stderr.write(f"{e}\n")
        return e.exit_code
    return 0


def serve() -> None:
    torch.set_num_threads(1)
    gemmule.runs.carbon.start_tracker = no_tracker
    for line in sys.stdin:
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                os.dup2(2, 1)  # standard output is for answers only
                code = child(request)
            except BaseException:
                import traceback

                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)
        if "kill_after" in request:
            time.sleep(request["kill_after"])
            os.kill(pid, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        print(json.dumps({"code": code}), flush=True)


if __name__ == "__main__":
    serve()
