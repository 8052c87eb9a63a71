"""Write a checkpoint as ONNX: `python export/export_onnx.py epoch_12.pth -o detector.onnx`.

The options are those of `carafe-deploy export`; see --help.
"""

from __future__ import annotations

import sys

from carafe_deploy import termination
from carafe_deploy.cli import main

if __name__ == "__main__":
    termination.guard()
    # Last, so that it has the last word.
    sys.exit(main(["export", *sys.argv[1:], "--format", "onnx"]))
