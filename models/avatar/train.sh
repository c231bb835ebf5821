#!/bin/sh
# Retrain everything, in under 4 hours on 2 cores:  sh models/avatar/train.sh [WORK] [OUT]
# Needs Python 3.11 with requirements.txt, torch 2.15.0 (see install_torch.py), node, npm and gcc.
# Finished stages are skipped when their file is already in WORK.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
work=${1:-target/avatar}
out=${2:-$work/export}
mkdir -p "$work"
export OMP_NUM_THREADS=1

done_with() { [ -e "$work/$1" ]; }

if ! done_with parts.json; then
    npm install --prefix "$work/npm" --no-audit --no-fund @dicebear/core@9.4.3 @dicebear/collection@9.4.3
    node "$here/data/dump_parts.mjs" "$work/npm" >"$work/parts.json"
    cmp "$work/parts.json" "$here/data/parts.json"
fi
done_with rendered || { python "$here/data/render.py" --work "$work" && touch "$work/rendered"; }            # 5 min
done_with text.pt || python "$here/text.py" --work "$work" --minutes 5
done_with vq.pt || python "$here/vq.py" --work "$work" --minutes 25
done_with encoded || { python "$here/vq.py" --work "$work" --encode && touch "$work/encoded"; }              # 6 min
done_with classifier.pt || python "$here/classifier.py" --work "$work" --minutes 8 --procs 2
python "$here/classifier.py" --work "$work" --test
done_with model.pt || python "$here/transformer.py" --work "$work" --minutes 120
python "$here/sample.py" --work "$work" --n 512 --cfg 3                                                       # 2 min
done_with self_tokens.npy || python "$here/heads.py" --work "$work" --collect --n 1280 --cfg 3                # 5 min
done_with heads.pt || python "$here/heads.py" --work "$work" --minutes 15 --kl 1 --l1 .02 --muon --lr .02
python "$here/heads.py" --work "$work" --test --cfg 3
python "$here/export.py" --work "$work" --out "$out" --fixtures "$out"
