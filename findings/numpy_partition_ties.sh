#!/usr/bin/env bash
# numpy 2.4.6: np.partition takes several times as long as np.sort where many values are equal.
#
# One expects selecting a middle value to cost less than sorting all, as it does for values that are
# all different. Where three of five are equal, as in sparse data, it takes four to six times as long
# as a sort. Seen with AVX-512 and with AVX2; the scalar code of processors without them is not slower.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check numpy==2.4.6

cat > "$folder/finding.py" <<'PYTHON'
from timeit import repeat

import numpy as np

rng = np.random.default_rng(0)
distinct = rng.random((200, 1001))
tied = np.where(rng.random(distinct.shape) < 0.6, 0.5, distinct)


def seconds(function, *arguments):
    return min(repeat(lambda: function(*arguments, axis=1), number=3, repeat=7))


for name, values in {"all different": distinct, "three of five equal": tied}.items():
    whole = seconds(np.sort, values)
    part = seconds(np.partition, values, 500)
    relation = "more than three times" if part > 3 * whole else "less than twice"
    assert not 2 * whole <= part <= 3 * whole
    print(f"{name}: to partition takes {relation} the time of a sort")
PYTHON

cat > "$folder/seen" <<'SEEN'
all different: to partition takes less than twice the time of a sort
three of five equal: to partition takes more than three times the time of a sort
SEEN

(cd "$folder" && venv/bin/python finding.py) > "$folder/printed"
diff "$folder/seen" "$folder/printed"
