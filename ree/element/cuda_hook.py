"""Element program -> a function of CUDA C that a hand-written kernel calls in the midst of its work."""

from __future__ import annotations

from collections.abc import Collection

from ree.element.cuda import Text, _Printer
from ree.element.llvm import Layout
from ree.element.program import Program

HEADER = '#include "ree.cuh"\n#include "values.cuh"\n#include "folds.cuh"\n'


def print_function(name: str, program: Program, layout: Layout, own: Collection[int]) -> Text:
    """`name(a, i0, i1, .., value)`: the element at these coordinates, before it is stored; a: a `name_args`.

    own: the ports whose element there is `value` (a float32). The program has one result. HEADER must stand before it.
    """
    return _FunctionPrinter(program, layout, own).function(name)


class _FunctionPrinter(_Printer):
    def function(self, name: str) -> Text:
        self.index = [f"i{axis}" for axis in range(self.program.rank)]
        self._run(self.program.body, self.program.results)
        (result,) = self.program.results
        self._line(f"return {self._value(result)};")
        coordinates = "".join(f"i64 {index}, " for index in self.index)
        head = f"REE_INLINE {self._types()[result]} {name}(const {name}_args &a, {coordinates}f32 value)"
        text = f"{self._struct(f'{name}_args')}\n\n{head}\n{{\n" + "\n".join(self.lines) + "\n}\n"
        return Text(text, list(self.fields.values()))
