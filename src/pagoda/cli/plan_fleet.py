"""`pagoda plan --fleet LOG`: a fleet of replicas, simulated from a request log."""

from __future__ import annotations

import json

import typer
from rich.console import Console
from rich.table import Table

from pagoda.cli.progress import download_progress
from pagoda.errors import ConfigError
from pagoda.plan.fleet.calibration import Calibration, calibrated
from pagoda.plan.fleet.questions import MOST_REPLICAS, FleetReport, Objectives, answer, limits_of
from pagoda.plan.fleet.simulate import Fleet, Outcome, remembered
from pagoda.plan.fleet.traffic import Arrival, read_traffic
from pagoda.plan.planner import make_plan
from pagoda.plan.settings import PlanSettings
from pagoda.plan.target import Target

MOSTLY_IDLE = 0.5  # of a fleet that more replicas do not help: what is late is not the waiting
LINK_BYTES_S = 12.5e9  # between machines, where a device names no link of its own: 100 Gbit/s


def plan_fleet(settings: PlanSettings) -> None:
    """Simulate, and print."""
    assert settings.fleet is not None
    traffic = read_traffic(settings.fleet)
    if settings.ttft is None and settings.tpot is None:
        raise ConfigError("--fleet asks how many replicas hold objectives: give --ttft or --tpot, in ms, or both")
    console = Console(stderr=True)
    with download_progress() as progress, console.status("") as status:
        (target, *more) = make_plan(settings, progress=progress, say=lambda line: status.update(line)).targets
        if more:
            raise ConfigError("--fleet simulates one kind of replica: name one device, and one format")
        status.update(f"simulating {len(traffic)} requests")
        objectives = Objectives(*(None if ms is None else ms / 1000 for ms in (settings.ttft, settings.tpot)))
        one = Fleet(1, limits_of(target, settings.fleet_kv_tokens), settings.fleet_routing)
        planned, calibration = remembered(target.costs), None
        if settings.fleet_calibration:
            status.update("simulating the calibration again and again")
            calibration = calibrated([read_traffic(path) for path in settings.fleet_calibration], one, planned)
        report = answer(
            traffic,
            one,
            planned,
            objectives,
            transfer_s=target.memory.kv_token_bytes / (target.device.interconnect_bytes_s or LINK_BYTES_S),
            logged_by=settings.fleet_replicas,
            calibration=calibration,
        )
    if settings.json:
        typer.echo(json.dumps(report.to_json(), indent=2, allow_nan=False))
    else:
        _print(report, traffic, target, settings, Console(highlight=False))


def _print(
    report: FleetReport, traffic: list[Arrival], target: Target, settings: PlanSettings, console: Console
) -> None:
    shape, format, device = target.shape.name, target.weights.format, target.device.name
    console.print(f"{len(traffic)} requests in {traffic[-1].at:,.0f} s; {shape} in {format} on {device}", markup=False)
    if report.calibration is not None:
        _print_calibration(report.calibration, console)
    wanted = [f"{name} {ms:g} ms" for name, ms in (("TTFT", settings.ttft), ("TPOT", settings.tpot)) if ms is not None]
    goal = " and ".join(wanted) + ", each at p95"
    if report.needed is None:
        console.print(f"\nNot even {MOST_REPLICAS} replicas, the most that are simulated, hold {goal}.")
        console.print(_why_none(report.sizes[-1][1]))
    else:
        console.print(f"\n{_count(report.needed)} {'holds' if report.needed == 1 else 'hold'} {goal}")
    shown = [(size, found) for size, found in report.sizes if report.needed is not None or size & (size - 1) == 0]
    console.print("Times in ms; cached: of the prompts; most : least, of the replicas' work.", style="dim")
    _table(console, "replicas", [(str(size), outcome) for size, outcome in shown])
    console.print(f"\nRouting over {report.at} replicas; at random, {_count(report.needed_random)} would be needed")
    _table(console, "routing", list(report.routings.items()))
    console.print("\nOne replica dies halfway")
    rows = [(f"of {report.at}", report.failure), (f"of {report.at + 1}", report.spare)]
    _table(console, "", [(name, outcome) for name, outcome in rows if outcome is not None])
    console.print("\nPrefill and decode apart")
    for times, together, apart in report.apart:
        pays = together is not None and apart is not None and apart < together
        line = f"  {times} × this traffic: {_count(together)} together, {_count(apart)} apart"
        console.print(line + (": apart pays" if pays else ""))
    if report.comparisons:
        console.print(f"\nThe log itself, of {report.at} replicas")
        for one in report.comparisons:
            line = f"  {one.figure}: predicted {1000 * one.predicted:,.1f} ms, logged {1000 * one.logged:,.1f} ms"
            console.print(f"{line}, error {one.error:+.1%}")


def _why_none(most: Outcome) -> str:
    """What to do, by what so many replicas still miss."""
    if most.utilization < MOSTLY_IDLE:
        return f"They are {most.utilization:.0%} busy: single requests take so long, which no replica more helps."
    return "Take a faster device, fewer bits, or other bounds."


def _print_calibration(calibration: Calibration, console: Console) -> None:
    found = calibration.overheads
    step, row, request = (1000 * seconds for seconds in (found.step_s, found.row_s, found.request_s))
    console.print(
        f"by the calibration, missed by {calibration.error:.0%} at the mean, steps take {found.pace:.2f} times the "
        f"plan, {step:.2f} ms and {row:.2f} ms a token; requests {request:.0f} ms"
    )


def _count(replicas: int | None) -> str:
    return f"more than {MOST_REPLICAS} replicas" if replicas is None else f"{replicas} replica{'s' * (replicas != 1)}"


def _table(console: Console, first: str, rows: list[tuple[str, Outcome]]) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    titles = (first, "TTFT p50", "p95", "TPOT p50", "p95", "cached", "busy", "most : least", "broken")
    for title in titles:
        table.add_column(title, justify="left" if title == first else "right", no_wrap=True)
    for name, found in rows:
        times = [_ms(seconds) for seconds in (*found.ttft, *found.tpot)]
        shares = [f"{found.prefix_hits:.0%}", f"{found.utilization:.0%}", f"{found.balance:.2f}"]
        table.add_row(name, *times, *shares, str(found.num_broken))
    console.print(table)


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:,.0f}" if seconds >= 0.1 else f"{1000 * seconds:,.1f}"
