"""`python -m fdmoe_ops.worker --settings FILE --device D --weights MANIFEST --name NAME --generation N`: one worker
generation. With `--spare` instead of the last three it imports everything, and reads them from its standard input.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NoReturn

import structlog

from fdmoe_ops import log, spare
from fdmoe_ops import settings as tree
from fdmoe_ops.failure import fail
from fdmoe_ops.weights.errors import WeightsError
from fdmoe_ops.worker.errors import BaselineBroken, DeviceBroken
from fdmoe_watchdog import messages, stacks
from fdmoe_watchdog.channel import Channel, ChannelClosed, Listener
from fdmoe_watchdog.child import die_with_parent
from fdmoe_watchdog.page import Host, Identity, Line, Page, Stage

if TYPE_CHECKING:
    from fdmoe_ops.worker.engine import Engine

_DTYPES: dict[str, Literal["FP32", "BF16", "FP16"]] = {"float32": "FP32", "bfloat16": "BF16", "float16": "FP16"}


def main(arguments: list[str] | None = None) -> int:
    die_with_parent()
    parser = argparse.ArgumentParser(prog="python -m fdmoe_ops.worker", description=__doc__)
    parser.add_argument("--settings", type=Path, required=True)
    parser.add_argument("--device", required=True)
    spare.add_option(parser)
    parser.add_argument("--weights", type=Path, help="the manifest of the holder of weights")
    parser.add_argument("--name")
    parser.add_argument("--generation", type=int)
    given = sys.argv[1:] if arguments is None else arguments
    options = parser.parse_args(given)
    if options.spare is not None:
        _import_all()
        rest = spare.wait(options.spare)
        if rest is None:
            return 0
        options = parser.parse_args([*given, *rest])
    if None in (options.weights, options.name, options.generation):
        parser.error("--weights, --name and --generation are needed")
    settings = tree.read(options.settings)
    log.configure(settings.log, f"worker-{options.name}-g{options.generation}")
    assert settings.run_dir is not None, "a resolved tree has a run_dir"
    stem = settings.run_dir / f"worker-{options.name}-g{options.generation}"
    page = Page.open(stem.with_suffix(".page"))
    page.write(Line.IDENTITY, Identity.PID, os.getpid())
    stacks.register(stem.with_suffix(".stacks"))
    hello = messages.Hello(messages.PROTOCOL, "worker", options.name, options.generation, os.getpid())
    control = Channel.connect(settings.run_dir / "watchdog.sock", hello)
    try:
        _serve(settings, page, control, stem.with_suffix(".sock"), options)
    except ChannelClosed as error:
        # the watchdog is gone or wants nothing more of this process
        structlog.get_logger("fdmoe.worker").info("worker_ends", reason=str(error))
        return 0
    except DeviceBroken as error:
        _fail(page, control, str(error), "device")
    except BaselineBroken as error:
        _fail(page, control, str(error), "weights")
    except WeightsError as error:
        _fail(page, control, str(error), "unknown")
    except Exception as error:  # noqa: BLE001
        # the outermost loop: whatever it is, the watchdog is told in words, and it starts a new generation
        structlog.get_logger("fdmoe.worker").exception("worker_broken")
        _fail(page, control, f"{type(error).__name__}: {error}", "unknown")
    return 0


def _fail(page: Page, control: Channel, reason: str, blame: messages.Blame) -> NoReturn:
    # its last lines may have to wait for whoever reads them: it is no worker that sleeps over a batch
    page.begin_wait()
    fail(control, reason, blame)


def _import_all() -> None:
    """What takes seconds. Nothing of it may touch the device."""
    importlib.import_module("fdmoe_ops.worker.loop")
    importlib.import_module("fdmoe_ops.worker.trial")
    importlib.import_module("fdmoe_ops.weights.borrower")


def _serve(
    settings: tree.Settings, page: Page, control: Channel, socket_path: Path, options: argparse.Namespace
) -> None:
    # only now: a child's first milliseconds belong to the lines above, and torch takes seconds to import
    import torch

    from fdmoe_ops.weights.borrower import open_layers
    from fdmoe_ops.worker.choice import Choice
    from fdmoe_ops.worker.engine import Engine
    from fdmoe_ops.worker.loop import Loop
    from fdmoe_ops.worker.pace import Pace
    from fdmoe_ops.worker.trial import run_trial

    page.write(Line.HOST, Host.STAGE, Stage.TRIAL)
    device = torch.device(options.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    run_trial(device)
    page.write(Line.HOST, Host.STAGE, Stage.LOADING)
    layers = open_layers(options.weights, device)
    page.write(Line.HOST, Host.STAGE, Stage.COMPILING)
    engine = Engine(
        layers,
        page=page,
        arena=socket_path.parent / "arena",
        max_batch_tokens=settings.worker.max_batch_tokens,
        programs=settings.worker.programs,
    )
    with torch.inference_mode():
        fused = _prove(engine, faults=settings.chaos)
        # the garbage collector's pauses would be the device's: what is here now stays
        gc.collect()
        gc.freeze()
        listener = Listener(socket_path)
        page.write(Line.HOST, Host.STAGE, Stage.SERVING)
        datatype = _DTYPES[settings.model.dtype]
        infos = tuple(
            messages.LayerInfo(name, layer.hidden_size, datatype, layer.experts, layer.routing.top_k)
            for name, layer in layers.items()
        )
        ready = messages.WorkerReady(options.generation, infos, settings.worker.max_batch_tokens, fused, engine.abort_s)
        choice = Choice(settings.recovery.compare_ratio, settings.recovery.compare_interval_s)
        pace = Pace(settings.recovery.slow_factor, settings.recovery.slow_checks)
        loop = Loop(
            engine, choice, pace, page, control, listener, ready,
            name=options.name, chaos=settings.chaos, compare_first=settings.recovery.compare_before_answer,
            idle_proof_s=settings.recovery.compare_interval_s,
        )  # fmt: skip
        loop.run()


def _prove(engine: Engine, *, faults: bool) -> bool:
    """Warm up; whether the fused path can be trusted here. Without it a worker is still a good baseline."""
    from triton.errors import TritonError

    from fdmoe_kernels import BuildError, ProofError

    log = structlog.get_logger("fdmoe.worker")
    try:
        log.info("warm", layers=len(engine.layers), difference=engine.warm_up(faults=faults), abort_s=engine.abort_s)
    except (BuildError, ProofError, TritonError) as error:
        log.error("fused_path_unproven", reason=f"{type(error).__name__}: {error}")
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
