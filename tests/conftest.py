"""Tests marked `gpu` need a CUDA device; elsewhere they are skipped."""

from __future__ import annotations

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    from ree_kernels.cuda_driver import device_count

    if not device_count():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
