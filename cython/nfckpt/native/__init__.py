"""The hot path, in Cython: one noun per module. In a checkout they are built in place, and this says so when they are not."""

import os

_files = os.listdir(os.path.dirname(__file__))
_missing = {f[:-4] for f in _files if f.endswith(".pyx")} - {f.split(".")[0] for f in _files if f.endswith(".so")}
if _missing:
    raise ImportError(f"nfckpt.native is not built: {', '.join(sorted(_missing))} (in the checkout, type `make ext`; or"
                      " python -c 'from setuptools import setup; setup()' build_ext --inplace)")
