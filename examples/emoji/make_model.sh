#!/bin/sh
# Trains var-emoji-64 from nothing and puts it into the package: `make emoji-model`, hours on two CPU cores.
# Every step goes on where it was cut off, and one that is done is not repeated.
#   LAUNCH="accelerate launch" sh examples/emoji/make_model.sh    on the machine's own accelerators instead
set -eu
cd "$(dirname "$0")/../.."
here=examples/emoji
out=outputs/emoji
asset=var_hf/assets/var-emoji-64

if [ -z "${LAUNCH:-}" ]; then
    # Two processes of one thread learn faster than one of two. On a CPU it is --multi_gpu that starts several.
    export ACCELERATE_USE_CPU=true OMP_NUM_THREADS=1
    LAUNCH="accelerate launch --multi_gpu --num_processes 2 --num_machines 1"
fi
data="--data $out/data --split train --validation $out/data --validation-split validation"

[ -d $out/data ] || python $here/draw.py $out/data
$LAUNCH "$(command -v var-hf)" train-tokenizer --recipe $here/tokenizer.json $data --output $out/tokenizer
python $here/ship.py $out/tokenizer/vqvae $out/vqvae
$LAUNCH "$(command -v var-hf)" train --recipe $here/transformer.json $data --tokenizer $out/vqvae --output $out/transformer
[ -f $out/classifier.safetensors ] || python $here/train_classifier.py $out/data $out/classifier.safetensors
python $here/ship.py $out/transformer/pipeline $asset
python $here/measure.py $asset $out/classifier.safetensors $out/data --output $here
python $here/ship.py $out/transformer/pipeline $asset --results $here/results.json
python $here/plot_curves.py $out/tokenizer $here/tokenizer-curves.png
python $here/plot_transformer_curves.py $out/transformer $here/transformer-curves.png
