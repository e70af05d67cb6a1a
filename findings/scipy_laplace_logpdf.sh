#!/usr/bin/env bash
# scipy 1.17.1: laplace.logpdf takes the logarithm of pdf, so one client's outlier makes it -inf.
#
# The logarithm of the Laplace density is linear, and logpdf is documented to use "a more numerically accurate
# calculation if available". gennorm and laplace_asymmetric, which include the same distribution, have it, and
# laplace does not: at 740 scales its second digit behind the point is wrong, and from 745 on it is -inf. One
# client that far away hides which center suits the others, and differences of such values, as for a privacy
# loss, are NaN. There is no warning. Call gennorm(1.0).logpdf.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check scipy==1.17.1 numpy==2.4.6

cat > "$folder/finding.py" <<'PYTHON'
import warnings

from scipy import stats

warnings.simplefilter("error")  # there is none
VALUES = (1.0, 740.0, 800.0)
SAME = {
    "laplace(loc)": lambda loc: stats.laplace(loc),
    "gennorm(1, loc)": lambda loc: stats.gennorm(1.0, loc),
    "laplace_asymmetric(1, loc)": lambda loc: stats.laplace_asymmetric(1.0, loc),
}

for name, distribution in SAME.items():
    logs = [f"{distribution(0).logpdf(value):.3f}" for value in VALUES]
    print(f"{name}.logpdf of {VALUES}: {', '.join(logs)}")
    for loc in (0, 1):
        total = distribution(loc).logpdf([-1.0, 1.0, 1.0, 1.0, 800.0]).sum()
        print(f"  log-likelihood of five clients' values, loc={loc}: {total:.3f}")
PYTHON

cat > "$folder/seen" <<'SEEN'
laplace(loc).logpdf of (1.0, 740.0, 800.0): -1.693, -740.702, -inf
  log-likelihood of five clients' values, loc=0: -inf
  log-likelihood of five clients' values, loc=1: -inf
gennorm(1, loc).logpdf of (1.0, 740.0, 800.0): -1.693, -740.693, -800.693
  log-likelihood of five clients' values, loc=0: -807.466
  log-likelihood of five clients' values, loc=1: -804.466
laplace_asymmetric(1, loc).logpdf of (1.0, 740.0, 800.0): -1.693, -740.693, -800.693
  log-likelihood of five clients' values, loc=0: -807.466
  log-likelihood of five clients' values, loc=1: -804.466
SEEN

(cd "$folder" && venv/bin/python finding.py) > "$folder/printed"
diff "$folder/seen" "$folder/printed"
