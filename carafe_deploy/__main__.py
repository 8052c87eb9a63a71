"""``python -m carafe_deploy`` is ``carafe-deploy``."""

from __future__ import annotations

import sys

from carafe_deploy.cli import main

if __name__ == "__main__":
    sys.exit(main())
