#!/usr/bin/env bash
# jax 0.10.2: fold_in(key, i) is split(key)[i], so client 0 draws the same noise as the server.
#
# Both are documented to derive new keys, fold_in those that are "statistically safe for producing a stream of
# new pseudo-random values". So one expects to fold each client's number into a key and to split it for the
# server. But with jax_threefry_partitionable, the default since 0.5, the keys of clients 0 and 1 are those
# that split returns, and what they draw is the same. jax_debug_key_reuse, which reports a key that is used
# after split, says nothing here. Split first, and fold the numbers into one of the new keys.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check jax==0.10.2 numpy==2.4.6

cat > "$folder/finding.py" <<'PYTHON'
import jax

jax.config.update("jax_debug_key_reuse", True)  # reports nothing
for partitionable in (False, True):
    jax.config.update("jax_threefry_partitionable", partitionable)
    print(f"jax_threefry_partitionable={partitionable}")
    root = jax.random.key(0)
    keys = {f"client {client}": jax.random.fold_in(root, client) for client in range(3)}
    keys["server's noise"], keys["server's sampling"] = jax.random.split(root)
    for name, key in keys.items():
        print(f"  {name}: {jax.random.normal(key):.4f}")
PYTHON

cat > "$folder/seen" <<'SEEN'
jax_threefry_partitionable=False
  client 0: 1.8800
  client 1: -1.4009
  client 2: 0.3905
  server's noise: 0.1439
  server's sampling: -1.2515
jax_threefry_partitionable=True
  client 0: 1.0040
  client 1: -2.4425
  client 2: 1.2956
  server's noise: 1.0040
  server's sampling: -2.4425
SEEN

(cd "$folder" && venv/bin/python finding.py) > "$folder/printed"
diff "$folder/seen" "$folder/printed"
