"""Run findings, each in a new environment with its pinned packages, and compare their output."""

import re
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
_PACKAGES = re.compile(r"^# packages: (.*)$", re.MULTILINE)


def main() -> None:
    """Run the findings whose names contain the argument, or all."""
    word = sys.argv[1] if len(sys.argv) > 1 else ""
    files = [
        one for one in sorted(FOLDER.glob("*.py")) if one.name != "run.py" and word in one.name
    ]
    changed = [file.name for file in files if not is_as_seen(file)]
    sys.exit(f"changed: {', '.join(changed)}" if changed or not files else 0)


def is_as_seen(file: Path) -> bool:
    """Run a finding, and return whether it prints what it says at its end."""
    text = file.read_text(encoding="utf-8")
    (packages,) = _PACKAGES.findall(text)
    seen = "\n".join(re.findall(r"^# prints: (.*)$", text, re.MULTILINE))
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = Path(folder) / ("Scripts" if sys.platform == "win32" else "bin") / "python"
        install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([python, *install, *packages.split()], check=True)
        command = [python, "-E", "-s", file]
        printed = subprocess.run(command, cwd=folder, check=True, stdout=subprocess.PIPE, text=True)
    is_same = printed.stdout.strip() == seen
    print(
        f"{file.name}: {'as seen' if is_same else f'changed, prints {printed.stdout!r}'}",
        flush=True,
    )
    return is_same


if __name__ == "__main__":
    main()
