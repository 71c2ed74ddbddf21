"""Install Detectron2 where there is none: `balms-det install-detectron2`."""

import runpy
from pathlib import Path

# By its path: it needs nothing of the package, which may not be installed yet.
COMMAND = Path(__file__).parents[1] / "balms_det" / "commands" / "install_detectron2.py"

if __name__ == "__main__":
    runpy.run_path(str(COMMAND))["main"]()
