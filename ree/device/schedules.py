"""Operators with kernels of their own on a device: from a node to the launches that compute it.

A schedule gets the planner, the node's value and the epilogue, if a group is to be run on its results. It gives None
where it has no kernel for these shapes or dtypes: then the definition is run, a thread for each result, which is slow
and gives the same bits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ree.device.schedule_attention import attention
from ree.device.schedule_conv import conv
from ree.device.schedule_experts import experts
from ree.device.schedule_matmul import matmul
from ree.device.schedule_scan import scan
from ree.device.schedule_scatter import scatter
from ree.device.schedule_sort import sort
from ree.device.step import Epilogue, Step

if TYPE_CHECKING:
    from ree.device.planner import DevicePlanner

Schedule = Callable[[Any, int, Epilogue | None], "list[Step] | None"]

SCHEDULES: dict[str, Schedule] = {
    "attention": attention,
    "matmul": matmul,
    "conv": conv,
    "conv_transpose": conv,
    "expert_matmul": experts,
    "argsort": sort,
    "argtopk": sort,
    "cumsum": scan,
    "cumprod": scan,
    "cummax_index": scan,
    "cummin_index": scan,
    "scatter": scatter,
    "scatter_rows": scatter,
}


def scheduled(p: DevicePlanner, value: int, epilogue: Epilogue | None) -> list[Step]:
    """The steps that compute a scheduled operator and, on its results, the epilogue."""
    schedule = SCHEDULES.get(p.node(value).op)
    steps = schedule(p, value, epilogue) if schedule else None
    if steps is not None:
        return steps
    steps = [p.from_definition(value)]
    if epilogue is not None:
        steps.append(p.jit_step(epilogue.kernel, epilogue.value))
    return steps
