"""Polynomial coefficients of the float-float functions, constant term first: a number or the sum of two.

Written by tools/minimax_narrow.py; each comment says what is approximated, on which range, and the error.
"""

Coefficients = tuple[tuple[float, ...], ...]


def _sums(text: str) -> Coefficients:
    return tuple(tuple(float.fromhex(word) for word in line.split()) for line in text.strip().splitlines())


# e**r
# on [-0.34661, 0.34661], degree 9, relative error < 2**-40
EXP = _sums("""
    0x1.0000000000000p+0 0x0.0p+0
    0x1.0000000000000p+0 0x0.0p+0
    0x1.0000000000000p-1 0x0.0p+0
    0x1.5555560000000p-3 -0x1.5555560000000p-28
    0x1.5555560000000p-5 -0x1.4e38c80000000p-30
    0x1.1111120000000p-7 -0x1.d66fde0000000p-32
    0x1.6c16960000000p-10
    0x1.a019d20000000p-13
    0x1.a0ef840000000p-16
    0x1.7293600000000p-19
""")

# 2 atanh(t / 2) / t in t**2
# on [1.0e-30, 0.11999], degree 5, relative error < 2**-41
LOG = _sums("""
    0x1.0000000000000p+0 0x0.0p+0
    0x1.5555560000000p-4 -0x1.54c50a0000000p-29
    0x1.9999980000000p-7 0x1.42ddba0000000p-33
    0x1.24934e0000000p-9
    0x1.c66f8c0000000p-12
    0x1.8d07300000000p-14
""")

# sin(r) / r in r**2
# on [1.0e-30, 0.62925], degree 6, relative error < 2**-50
SIN = _sums("""
    0x1.0000000000000p+0 0x0.0p+0
    -0x1.5555560000000p-3 0x1.5555520000000p-28
    0x1.1111120000000p-7 -0x1.ddd96e0000000p-32
    -0x1.a01a020000000p-13 0x1.7bfd380000000p-39
    0x1.71de380000000p-19
    -0x1.ae5fca0000000p-26
    0x1.5dfb3a0000000p-33
""")

# cos(r) in r**2
# on [1.0e-30, 0.62925], degree 6, relative error < 2**-45
COS = _sums("""
    0x1.0000000000000p+0 0x0.0p+0
    -0x1.0000000000000p-1 0x0.0p+0
    0x1.5555560000000p-5 -0x1.5558c40000000p-30
    -0x1.6c16c20000000p-10 0x1.2e829a0000000p-35
    0x1.a019fe0000000p-16
    -0x1.27e2300000000p-22
    0x1.1c755c0000000p-29
""")

# erf(x) / x in x**2 - 8
# on [1.0e-30, 15.406] before the shift, degree 22, relative error < 2**-39
ERF = _sums("""
    0x1.6a04080000000p-2 -0x1.f96e420000000p-28
    -0x1.69a0d00000000p-6 0x1.92ddb80000000p-29
    0x1.0dabb00000000p-9 -0x1.f333100000000p-34
    -0x1.b92e900000000p-13 -0x1.6f8a900000000p-35
    0x1.717f000000000p-16 -0x1.d2d9640000000p-39
    -0x1.3215d80000000p-19 -0x1.0ad52c0000000p-43
    0x1.ea97f80000000p-23 -0x1.1e62fa0000000p-46
    -0x1.76e8600000000p-26 0x1.e7b8ae0000000p-49
    0x1.0ed5000000000p-29 -0x1.1375540000000p-54
    -0x1.7035780000000p-33 -0x1.9edea40000000p-57
    0x1.d639380000000p-37 0x1.defcaa0000000p-60
    -0x1.19fd800000000p-40 0x1.16fff80000000p-64
    0x1.3df7480000000p-44 0x1.dd88500000000p-69
    -0x1.5228c80000000p-48 -0x1.bb944c0000000p-73
    0x1.53f2f00000000p-52 -0x1.3ee82e0000000p-78
    -0x1.3f89260000000p-56 0x1.0ec9b00000000p-84
    0x1.1a32220000000p-60 -0x1.5e8ef20000000p-86
    -0x1.006dcc0000000p-64 0x1.f91b040000000p-90
    0x1.c5b9b80000000p-69 -0x1.65f2960000000p-94
    -0x1.f0a0fa0000000p-74
    0x1.b45d1c0000000p-79
    -0x1.13cfa20000000p-81
    0x1.fac6660000000p-86
""")

# Phi(-a) e**(a**2 / 2) (a + 4) in (a - 4) / (a + 4) - centre
# on [-1.0, 0.38462] before the shift, degree 14, relative error < 2**-40
BELL = _sums("""
    0x1.e38a800000000p-1 -0x1.9b1f8a0000000p-26
    -0x1.b4d5280000000p-1 -0x1.b4d5660000000p-29
    0x1.1e65780000000p-1 0x1.2d28ec0000000p-26
    -0x1.0375520000000p-2 -0x1.0bf7380000000p-27
    0x1.0d49340000000p-4 0x1.192e6c0000000p-29
    0x0.0p+0 0x0.0p+0
    -0x1.8197580000000p-8 0x1.b74de80000000p-33
    0x1.b6fc740000000p-11 -0x1.55dc1c0000000p-37
    0x1.2ed5540000000p-11
    -0x1.dcdbac0000000p-14
    -0x1.3b2ed40000000p-14
    0x1.5abdba0000000p-17
    0x1.7670fe0000000p-17
    -0x1.1b42860000000p-22
    -0x1.50cd100000000p-20
""")
