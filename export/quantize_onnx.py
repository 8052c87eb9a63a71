"""Quantize an ONNX detector: `python export/quantize_onnx.py detector.onnx --calibration images/`.

The options are those of `carafe-deploy quantize`; see --help.
"""

from __future__ import annotations

import sys

from carafe_deploy import termination
from carafe_deploy.cli import main

if __name__ == "__main__":
    termination.guard()
    sys.exit(main(["quantize", *sys.argv[1:]]))
