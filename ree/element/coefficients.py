"""Polynomial coefficients of the elementary functions, constant term first.

Written by tools/minimax.py; each comment says what is approximated, on which range, and the error.
"""


def _floats(text: str) -> tuple[float, ...]:
    return tuple(float.fromhex(word) for word in text.split())


# (e**r - 1 - r) / r**2
# on [-0.34692, 0.34692], degree 9, error < 2**-52 of the largest value
EXP = _floats("""
    0x1.0000000000001p-1
    0x1.5555555555556p-3
    0x1.5555555553d37p-5
    0x1.11111111109a6p-7
    0x1.6c16c1789d1d7p-10
    0x1.a01a01a7cebcdp-13
    0x1.a019b8ca26fcfp-16
    0x1.71de0d85293b8p-19
    0x1.2891d4ffbb0f9p-22
    0x1.af390ba7e6f47p-26
""")

# (2**r - 1) / r
# on [-0.5, 0.5], degree 10, error < 2**-54 of the largest value
EXP2 = _floats("""
    0x1.62e42fefa39efp-1
    0x1.ebfbdff82c598p-3
    0x1.c6b08d704a0c2p-5
    0x1.3b2ab6fba1ddap-7
    0x1.5d87fe78a5276p-10
    0x1.430913096fd9fp-13
    0x1.ffcbfc670dcd3p-17
    0x1.62bfd47773353p-20
    0x1.b524fae6278abp-24
    0x1.e6063f7217bc6p-28
    0x1.e9d3fe3947472p-32
""")

# (sinh(r) - r) / r**3 in r**2
# on [1.0e-30, 0.12035], degree 4, error < 2**-53 of the largest value
SINH = _floats("""
    0x1.5555555555556p-3
    0x1.11111111109a6p-7
    0x1.a01a01a7cebcdp-13
    0x1.71de0d85293b8p-19
    0x1.af390ba7e6f47p-26
""")

# (cosh(r) - 1) / r**2 in r**2
# on [1.0e-30, 0.12035], degree 5, error < 2**-61 of the largest value
COSH = _floats("""
    0x1.0000000000000p-1
    0x1.5555555555557p-5
    0x1.6c16c16c15a48p-10
    0x1.a01a01a9f72adp-16
    0x1.27e4d3f50d87fp-22
    0x1.1f7f6aa421dd8p-29
""")

# (2 atanh(s) - 2 s) / s**3 in s**2
# on [1.0e-30, 0.029998], degree 7, error < 2**-54 of the largest value
LOG = _floats("""
    0x1.5555555555555p-1
    0x1.9999999999a4ep-2
    0x1.249249247370bp-2
    0x1.c71c72073dd65p-3
    0x1.745cf694ca0bcp-3
    0x1.3b1cb8a0268a6p-3
    0x1.0fb0fb89e1befp-3
    0x1.0c908637ec8ffp-3
""")

# (atan(t) - t) / t**3 in t**2
# on [1.0e-30, 0.17164], degree 11, error < 2**-53 of the largest value
ATAN = _floats("""
    -0x1.5555555555555p-2
    0x1.9999999999953p-3
    -0x1.249249248d7a3p-3
    0x1.c71c71c301242p-4
    -0x1.745d165d42469p-4
    0x1.3b1392c5d6c1fp-4
    -0x1.110e86a228a04p-4
    0x1.e199f35dd1917p-5
    -0x1.ac79a54276a46p-5
    0x1.74d9955076661p-5
    -0x1.1b28cee495a7dp-5
    0x1.0abb3a3829b06p-6
""")

# (asin(t) - t) / t**3 in t**2
# on [1.0e-30, 0.2501], degree 13, error < 2**-54 of the largest value
ASIN = _floats("""
    0x1.5555555555555p-3
    0x1.3333333333389p-4
    0x1.6db6db6dac0eap-5
    0x1.f1c71c7a5e151p-6
    0x1.6e8ba121b9d5fp-6
    0x1.1c4efd20ebb99p-6
    0x1.c990a42b32b03p-7
    0x1.7b02ef007d23ep-7
    0x1.3b462d121c5d2p-7
    0x1.31777489dfd29p-7
    0x1.8dcdf11997e0fp-9
    0x1.40c91fa8deb7ep-6
    -0x1.3bd7e353ddbc2p-6
    0x1.e58a4f278e007p-6
""")

# (asinh(t) - t) / t**3 in t**2
# on [1.0e-30, 0.2501], degree 12, error < 2**-54 of the largest value
ASINH = _floats("""
    -0x1.5555555555555p-3
    0x1.33333333332f9p-4
    -0x1.6db6db6db0809p-5
    0x1.f1c71c6d62262p-6
    -0x1.6e8ba21e03fc4p-6
    0x1.1c4eaf1a1de1ep-6
    -0x1.c99691ca9fc62p-7
    0x1.7a632dc637467p-7
    -0x1.3eb0c11b2c3e9p-7
    0x1.0c1ca27481720p-7
    -0x1.a84678634fc2ep-8
    0x1.0f2429a14149ap-8
    -0x1.88b74c9b63e18p-10
""")

# (sin(pi/2 f) - pi/2 f) / f**3 in f**2
# on [1.0e-30, 0.2501], degree 6, error < 2**-54 of the largest value
SIN = _floats("""
    -0x1.4abbce625be53p-1
    0x1.466bc6775aae1p-4
    -0x1.32d2cce62b870p-8
    0x1.50783486fa66fp-13
    -0x1.e3074d253f118p-19
    0x1.e8f035ebfe7b1p-25
    -0x1.6cc52bef4fa10p-31
""")

# (cos(pi/2 f) - 1) / f**2 in f**2
# on [1.0e-30, 0.2501], degree 7, error < 2**-53 of the largest value
COS = _floats("""
    -0x1.3bd3cc9be45dep+0
    0x1.03c1f081b5ac4p-2
    -0x1.55d3c7e3cbff7p-6
    0x1.e1f506891ae8fp-11
    -0x1.a6d1f2a0862ccp-16
    0x1.f9d3870777202p-22
    -0x1.b6de8ac9b4afap-28
    0x1.1e7421cbcbf8dp-34
""")

# erf(x) / x in x**2 - 7.75
# on [-7.75, 7.75], degree 26, error < 2**-51 of the largest value
ERF = _floats("""
    0x1.6fcd22af732c4p-2
    -0x1.7b26f08c9b361p-6
    0x1.237b69152a765p-9
    -0x1.ea83a9276f2a0p-13
    0x1.a51fecdf5a411p-16
    -0x1.642a6adcbe801p-19
    0x1.2240dad81c80cp-22
    -0x1.c18ac05252a3cp-26
    0x1.4826fb8925b66p-29
    -0x1.c1d07af4cd3a9p-33
    0x1.2116da947160ap-36
    -0x1.5c9507ef9d434p-40
    0x1.8ad7e68288c6cp-44
    -0x1.a4f3056a624fap-48
    0x1.a7512c775da14p-52
    -0x1.9270db5d178f6p-56
    0x1.6a92d1398e772p-60
    -0x1.366bda0af5f86p-64
    0x1.f96c38d18324ep-69
    -0x1.862ee9672292ep-73
    0x1.21edd30304ad6p-77
    -0x1.acdbffcd831dep-82
    0x1.21ad1ce0bc911p-86
    -0x1.27b66b24dce90p-91
    0x1.81a802bf0696fp-96
    -0x1.d5de9d80416d4p-100
    0x1.092f43c7703a3p-104
""")

# (Phi(x) - 1/2) / x in x**2 - 10.125
# on [-10.125, 10.125], degree 20, error < 2**-48 of the largest value
GELU = _floats("""
    0x1.41576825481fcp-3
    -0x1.f3a05ccfd4313p-8
    0x1.17bae9d78f98ep-11
    -0x1.44c86630003a5p-15
    0x1.69e904c052ddbp-19
    -0x1.773dc534a9895p-23
    0x1.6597939a4d4d7p-27
    -0x1.382fc72d27375p-31
    0x1.f3ede4392a4dbp-36
    -0x1.704885c03b8f5p-40
    0x1.f538128f559f7p-45
    -0x1.3c63c345ab85dp-49
    0x1.740ad723c5e05p-54
    -0x1.98edcce4897d5p-59
    0x1.a6127061b2f07p-64
    -0x1.9c5f7ab2a0448p-69
    0x1.7a092803f310dp-74
    -0x1.373f619f905d5p-79
    0x1.037468e2c78f7p-84
    -0x1.19a9af956e129p-89
    0x1.9cc4959abcf6dp-95
""")

# erfc(x) e**(x**2) (x + 4) in u = (x - 4) / (x + 4)
# on [-1.0, 0.44], degree 24, error < 2**-52 of the largest value
ERFC = _floats("""
    0x1.18932bf08e157p+0
    -0x1.f3fe31ecb49bfp-1
    0x1.8be202d26c706p-1
    -0x1.14eacb1ad0349p-1
    0x1.52cac2371014cp-2
    -0x1.645fd8a4bb8a7p-3
    0x1.38dbd2c8e34f4p-4
    -0x1.b00c052c8408dp-6
    0x1.908f472230f59p-8
    -0x1.269b515944297p-12
    -0x1.dd2843705d744p-12
    0x1.72cd9da0e81a2p-13
    -0x1.e7efcf19f3887p-19
    -0x1.3c6d7d1494ca4p-16
    0x1.3b1879d4d9a83p-18
    0x1.7e10110c3a1f0p-20
    -0x1.c76cf918e8426p-21
    -0x1.3c84711e43969p-24
    0x1.1232bc94c8634p-23
    -0x1.f9d276bad470dp-30
    -0x1.5b627c96bc3f1p-26
    0x1.d34a370c55570p-30
    0x1.67835d0d100e5p-28
    0x1.da0957e8a9980p-30
    0x1.ab19ecc46ef87p-33
""")
