"""`pagoda plan`: what fits where, how fast it can be, and what it costs."""

from __future__ import annotations

import json

import typer
from rich.console import Console

from pagoda.cli.options import with_settings
from pagoda.cli.plan_tables import print_plan
from pagoda.cli.progress import download_progress
from pagoda.plan.output.helm import as_yaml, helm_values
from pagoda.plan.output.picture import picture_of
from pagoda.plan.output.plot import check_path, draw
from pagoda.plan.planner import make_plan
from pagoda.plan.settings import PlanSettings


@with_settings
def plan(plan: PlanSettings) -> None:
    """Say before anything is rented whether a model fits, how many users it serves at what latency, what a million
    tokens cost, and which limit binds.

    MODEL is a GGUF file, a folder with config.json, hf:owner/repo, or a name such as llama-3-8b, qwen2.5-7b,
    mixtral-8x7b, deepseek-v3. Devices: this (measured), a100-80gb, h100, l4, rtx4090, apple-m3-max and more; a wrong
    name lists those near it.

    With --ttft and --tpot the answer is the largest concurrency that keeps them, and the flags of `pagoda serve`
    that give it. With --verify the engine runs here and its times stand beside the predicted ones.

    With --fleet traffic.jsonl, a log that `pagoda serve --request-log` or `pagoda gateway` has written, the answer is
    how many replicas keep them, what routing by prefix saves, what a failed replica costs, and whether prefill and
    decode apart would pay.
    """
    if plan.verify:
        from pagoda.cli.plan_verify import verify_and_print

        verify_and_print(plan)
        return
    if plan.fleet is not None:
        from pagoda.cli.plan_fleet import plan_fleet

        plan_fleet(plan)
        return
    if plan.plot is not None:
        check_path(plan.plot)
    console = Console(stderr=True)
    with download_progress() as progress, console.status("") as status:
        found = make_plan(plan, progress=progress, say=lambda line: status.update(line))
    if plan.plot is not None:
        draw([picture_of(target) for target in found.targets], plan.plot)
        console.print(f"drawn: {plan.plot}", markup=False, highlight=False)
    if plan.helm_values:
        first = found.targets[0]
        about = f"pagoda plan: {first.shape.name} in {first.weights.format} on {first.device.name}, {first.users} users"
        typer.echo(as_yaml(helm_values(first), about))
    elif plan.json:
        typer.echo(json.dumps(found.to_json(), indent=2, allow_nan=False))
    else:
        print_plan(found, Console())
