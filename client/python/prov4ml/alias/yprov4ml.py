"""Found as `yprov4ml` when this folder is on PYTHONPATH: stands in for the original's newest package."""

import sys

import prov4ml.yprov4ml

sys.modules[__name__] = prov4ml.yprov4ml
