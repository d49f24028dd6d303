"""What fits, how fast it can be, what it costs: on this machine, and on devices of a table.

from pagoda.plan import plan

found = plan("llama-3-8b", on="a100-80gb,this", ttft=500, tpot=50)
for target in found.targets:
    print(target.device.name, target.memory.max_requests, target.users, target.ttft_s, target.tpot_s)
found.to_json()  # everything, with reasons
"""

from __future__ import annotations

from pagoda.hardware.device import Device
from pagoda.hardware.devices import device, devices
from pagoda.plan.planner import Plan, make_plan, plan
from pagoda.plan.settings import PlanSettings

__all__ = ["Device", "Plan", "PlanSettings", "device", "devices", "make_plan", "plan"]
