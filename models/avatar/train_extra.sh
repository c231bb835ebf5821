#!/bin/sh
# Train the extra models beside the shipped one, after train.sh:  sh models/avatar/train_extra.sh [WORK] [OUT]
# Minutes are of processor time on one core, so a shared machine only takes longer. Finished stages are skipped.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
work=${1:-target/avatar}
out=${2:-$here/extra}
mkdir -p "$out"
export OMP_NUM_THREADS=1

done_with() { [ -e "$work/$1" ]; }

# EAGLE drafter
done_with self_tokens.npy || python "$here/heads.py" --work "$work" --collect --n 1280 --cfg 3
done_with eagle.pt || python "$here/eagle.py" --work "$work" --minutes 11
python "$here/eagle.py" --work "$work" --test
python "$here/eagle.py" --work "$work" --export "$out/eagle.safetensors"
python "$here/eagle.py" --work "$work" --fixture "$here/../../tests/data"

# Low-resolution model and latent up-sampler
done_with low/prepared || { python "$here/low.py" --work "$work" --prepare && touch "$work/low/prepared"; }
done_with low/tuned || { python "$here/vq.py" --work "$work/low" --half --resume --procs 1 --cpu --minutes 6 --lr 1e-3 --batch 24 && touch "$work/low/tuned"; }
done_with low/encoded || { python "$here/vq.py" --work "$work/low" --half --encode --procs 1 && touch "$work/low/encoded"; }
done_with low/model.pt || python "$here/transformer.py" --work "$work/low" --init "$work/low/start.safetensors" \
    --grid 12 --layers 5 --batch 32 --procs 1 --cpu --minutes 20
python "$here/low.py" --work "$work" --sample --n 512 --cfg 3
python "$here/low.py" --work "$work" --export "$out/low"
done_with upsampler.pt || {
    python "$here/upsample.py" --work "$work" --minutes 2 --latent
    python "$here/upsample.py" --work "$work" --minutes 8 --resume
}
python "$here/upsample.py" --work "$work" --test --samples "$work/low/samples.npy"
python "$here/upsample.py" --work "$work" --export "$out/upsampler.safetensors"

# Continuous pair: tokenizer, target, draft
python "$here/continuous.py" --check
done_with latents_held.npy || {
    python "$here/continuous.py" --work "$work" --kl --minutes 12
    python "$here/continuous.py" --work "$work" --encode
}
python "$here/continuous.py" --work "$work" --test --n 512
done_with mar_target.pt || python "$here/continuous.py" --work "$work" --minutes 27
done_with mar_draft.pt || python "$here/continuous.py" --work "$work" --size draft --minutes 14
python "$here/continuous.py" --work "$work" --sample --n 256
python "$here/continuous.py" --work "$work" --sample --n 256 --size draft
python "$here/continuous.py" --work "$work" --export "$out/continuous" --fixture "$here/../../tests/data"
