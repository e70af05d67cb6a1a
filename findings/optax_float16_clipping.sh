#!/usr/bin/env bash
# optax 0.2.8: clip_by_global_norm turns long float16 updates into zeros.
#
# One expects an update longer than max_norm to be scaled down to it. In float32 and bfloat16 it is. For
# float16 leaves the squares are added up in float16, which ends at 65504. So a norm above 256 counts as
# infinite, and the update is divided by it: none is left, and the model does not move. A million values of
# 0.5 are enough. PyTorch's clip_grad_norm_ of the same values is right. There is no warning. Convert
# gradients to float32 before they are clipped.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check optax==0.2.8 jax==0.10.2 numpy==2.4.6

cat > "$folder/finding.py" <<'PYTHON'
import jax.numpy as jnp
import optax

MAX_NORM = 100.0
clip = optax.clip_by_global_norm(MAX_NORM)

for size in (100_000, 1_000_000):
    for dtype in (jnp.float32, jnp.bfloat16, jnp.float16):
        update = {"layer": jnp.full(size, 0.5, dtype)}
        clipped, _ = clip.update(update, clip.init(update))
        before, after = (
            jnp.linalg.norm(tree["layer"].astype(jnp.float32)) for tree in (update, clipped)
        )
        print(
            f"{size} values, {dtype.__name__}: optax.tree.norm {optax.tree.norm(update):.0f}, "
            f"norm {before:.0f}, clipped to {after:.0f}"
        )
PYTHON

cat > "$folder/seen" <<'SEEN'
100000 values, float32: optax.tree.norm 158, norm 158, clipped to 100
100000 values, bfloat16: optax.tree.norm 158, norm 158, clipped to 100
100000 values, float16: optax.tree.norm 158, norm 158, clipped to 100
1000000 values, float32: optax.tree.norm 500, norm 500, clipped to 100
1000000 values, bfloat16: optax.tree.norm 500, norm 500, clipped to 100
1000000 values, float16: optax.tree.norm inf, norm 500, clipped to 0
SEEN

(cd "$folder" && venv/bin/python finding.py) > "$folder/printed"
diff "$folder/seen" "$folder/printed"
