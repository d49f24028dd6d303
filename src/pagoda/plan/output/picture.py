"""From a plan's target to the data of its picture."""

from __future__ import annotations

from pagoda.plan.cost.work import decode_step
from pagoda.plan.output.plot import Picture, RooflinePoint, Served
from pagoda.plan.target import Target


def picture_of(target: Target) -> Picture:
    """What `plot.draw` draws of one plan: the ceilings of all its devices together, work as predicted on them."""
    settings, device = target.settings, target.device
    num = target.num_devices
    point = target.at(target.users) if target.meets else None
    served = [_served(target, batch) for batch in sorted({*settings.batch, *((target.users,) if point else ())})]
    count = f"{num} × " if num > 1 else ""
    return Picture(
        title=f"{target.shape.name} in {target.weights.format} on {count}{device.name}",
        bandwidth_bytes_s=num * device.bandwidth_bytes_s,
        peaks={kind: num * peak for kind, peak in device.flops.items()},
        compute_type=target.compute_type,
        prefill=RooflinePoint(
            f"prefill of {settings.prompt:,}", target.prefill_intensity, target.prefill_flops / target.ttft_s
        ),
        decode=[_decode(target, one.users) for one in served],
        served=served,
        chosen=_served(target, target.users) if point else None,
        tpot_bound_s=settings.tpot / 1000 if settings.tpot else None,
    )


def _served(target: Target, users: int) -> Served:
    found = target.at(users)
    return Served(users, found.output_tok_s, found.tpot_s, users <= target.memory.max_requests)


def _decode(target: Target, users: int) -> RooflinePoint:
    step = decode_step(users, target.settings.prompt + target.settings.output / 2)
    work = target.workload.of(step)
    label = "decode, 1 user" if users == 1 else f"{users:,} users"
    return RooflinePoint(label, work.intensity, work.flops / target.costs.step(step).seconds)
