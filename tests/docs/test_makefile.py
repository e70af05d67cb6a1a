"""`make` alone says what there is to make."""

import re
import subprocess

from tests.tools.places import ROOT


def test_make_alone_lists_every_target_with_a_sentence():
    # A make that runs these tests tells the makes below it to print where they are.
    command = ["make", "--no-print-directory"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    (targets,) = re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    sentences = dict(line.split(maxsplit=1) for line in listed.splitlines())
    assert list(sentences) == targets.split()
