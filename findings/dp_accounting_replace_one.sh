#!/usr/bin/env bash
# dp-accounting 0.6.0: the two accountants read "replace one record" differently.
#
# Replacing a record moves a sum of clipped values twice as far as adding one, so one expects a larger
# ε from either accountant. RdpAccountant returns the ε of adding one. PLDAccountant doubles the
# distance. Whoever calibrates a Gaussian mechanism by RDP for the replace-one relation has to give it
# half of the noise multiplier.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check dp-accounting==0.6.0

cat > "$folder/finding.py" <<'PYTHON'
from dp_accounting import GaussianDpEvent, NeighboringRelation
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant

for accountant in (RdpAccountant, PLDAccountant):
    for relation in (NeighboringRelation.ADD_OR_REMOVE_ONE, NeighboringRelation.REPLACE_ONE):
        one = accountant(neighboring_relation=relation)
        one.compose(GaussianDpEvent(2.0))
        print(accountant.__name__, relation.name, f"{one.get_epsilon(1e-5):.2f}")
PYTHON

cat > "$folder/seen" <<'SEEN'
RdpAccountant ADD_OR_REMOVE_ONE 2.17
RdpAccountant REPLACE_ONE 2.17
PLDAccountant ADD_OR_REMOVE_ONE 1.99
PLDAccountant REPLACE_ONE 4.38
SEEN

(cd "$folder" && venv/bin/python finding.py) > "$folder/printed"
diff "$folder/seen" "$folder/printed"
