"""How many of the operators that torch tags `core` have a lowering rule."""

from __future__ import annotations

import torch

from ree.ops.spec import lowerings


def core_operators() -> list[str]:
    """Names such as "aten.add.Tensor" of the ATen operators with `torch.Tag.core`, without symbolic-shape queries."""
    names = []
    for full_name in torch._C._dispatch_get_all_op_names():
        namespace, _, rest = full_name.partition("::")
        base, _, overload = rest.partition(".")
        if namespace != "aten" or base.startswith("sym_"):
            continue
        found = getattr(getattr(torch.ops.aten, base, None), overload or "default", None)
        if found is not None and torch.Tag.core in found.tags:
            names.append(f"aten.{base}.{overload or 'default'}")
    return sorted(names)


def test_most_core_operators_are_lowered() -> None:
    core, known = core_operators(), set(lowerings())
    missing = [name for name in core if name not in known]
    print(f"{len(core) - len(missing)} of {len(core)} core operators have a rule; missing: {' '.join(missing)}")
    assert len(core) - len(missing) >= 150, missing


def test_the_table_of_operators_is_current() -> None:
    """docs/OPERATORS.md follows from the definitions."""
    from tools.operators import TARGET, text

    assert TARGET.read_text() == text(), "run python -m tools.operators"
