"""What fits, how fast it can be, what it costs: on this machine, and on devices of a table.

from pagoda.plan import plan

found = plan("llama-3-8b", on="a100-80gb,this", ttft=500, tpot=50)
for target in found.targets:
    print(target.device.name, target.memory.max_requests, target.users, target.ttft_s, target.tpot_s)
found.to_json()  # everything, with reasons
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pagoda.plan.devices import Device, device, devices
    from pagoda.plan.planner import Plan, make_plan, plan
    from pagoda.plan.settings import PlanSettings

__all__ = ["Device", "Plan", "PlanSettings", "device", "devices", "make_plan", "plan"]

_PLACES = {
    **dict.fromkeys(("Device", "device", "devices"), "pagoda.plan.devices"),
    **dict.fromkeys(("Plan", "make_plan", "plan"), "pagoda.plan.planner"),
    "PlanSettings": "pagoda.plan.settings",
}


def __getattr__(name: str) -> Any:  # imported on first use: the floors below need only the machine's facts
    if name in _PLACES:
        import importlib

        return getattr(importlib.import_module(_PLACES[name]), name)
    raise AttributeError(f"module 'pagoda.plan' has no attribute {name!r}")
