"""Build an engine of an ONNX file: `python export/build_engine.py detector.onnx`.

The options are those of `carafe-deploy build`; see --help.
"""

from __future__ import annotations

import sys

from carafe_deploy import termination
from carafe_deploy.cli import main

if __name__ == "__main__":
    termination.guard()
    sys.exit(main(["build", *sys.argv[1:]]))
