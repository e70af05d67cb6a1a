#!/usr/bin/env bash
# datasets 4.8.5: class_encode_column renumbers integer labels, for each client in another way.
#
# train_test_split(stratify_by_column=...) needs a ClassLabel. class_encode_column makes one, and one expects
# it to leave integers from 0 on as they are. But it sorts them as strings: 10 comes before 2, and label 2
# means 10. It counts only the labels that it finds: a client with the digits 3, 5 and 7 and one with 4, 6
# and 8 both train on 0, 1 and 2. There is no warning. Use cast_column("label", ClassLabel(num_classes=12)).
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check datasets==4.8.5 numpy==2.4.6

cat > "$folder/finding.py" <<'PYTHON'
from datasets import ClassLabel, Dataset, disable_progress_bars

disable_progress_bars()


def encoded(labels: list[int]) -> list[int]:
    """Return labels as class_encode_column leaves them."""
    return Dataset.from_dict({"label": labels}).class_encode_column("label")["label"][:]


def cast(labels: list[int]) -> list[int]:
    """Return labels as cast_column leaves them."""
    data = Dataset.from_dict({"label": labels})
    return data.cast_column("label", ClassLabel(num_classes=12))["label"][:]


for labels in ([*range(12)], [3, 5, 7], [4, 6, 8]):
    for method in (cast, encoded):
        print(f"{labels} {method.__name__}: {method(labels)}")
PYTHON

cat > "$folder/seen" <<'SEEN'
[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11] cast: [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]
[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11] encoded: [0, 1, 4, 5, 6, 7, 8, 9, 10, 11, 2, 3]
[3, 5, 7] cast: [3, 5, 7]
[3, 5, 7] encoded: [0, 1, 2]
[4, 6, 8] cast: [4, 6, 8]
[4, 6, 8] encoded: [0, 1, 2]
SEEN

(cd "$folder" && venv/bin/python finding.py) > "$folder/printed"
diff "$folder/seen" "$folder/printed"
