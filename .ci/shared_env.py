"""Make .tox/shared, the one environment that quickstart, test and lint use: PyTorch with CUDA takes 5.5 GB.

tox itself makes an environment anew whenever another name uses its folder. Nothing is done while the project's
requirements are those that the environment was made from.
"""

import hashlib
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT / ".tox" / "shared"
STAMP = SHARED / "made-from"


def main() -> None:
    """Create or update the environment if the requirements, the Python or the place of the project changed."""
    sources = [(ROOT / name).read_bytes() for name in ("setup.cfg", "pyproject.toml")]
    wanted = hashlib.sha256(b"\0".join([*sources, sys.version.encode(), str(ROOT).encode()])).hexdigest()
    if STAMP.is_file() and STAMP.read_text() == wanted:
        return
    STAMP.unlink(missing_ok=True)
    venv.create(SHARED, with_pip=True, clear=False)
    install = [str(SHARED / "bin" / "python"), "-m", "pip", "install", "--disable-pip-version-check"]
    subprocess.run([*install, "-e", f"{ROOT}[dev]"], check=True)
    STAMP.write_text(wanted)


if __name__ == "__main__":
    main()
