#!/bin/sh
# Trains var-emoji-64 or var-emoji-128 from nothing and puts it into the package: `make emoji-model` or
# `make emoji-128-model`, hours on two CPU cores. Every step goes on where it was cut off, and one that is done is not
# repeated.
#   sh examples/emoji/make_model.sh 128                           var-emoji-128
#   LAUNCH="accelerate launch" sh examples/emoji/make_model.sh    on the machine's own accelerators instead
#   OUT=/big/disk sh examples/emoji/make_model.sh                 data and checkpoints elsewhere
set -eu
cd "$(dirname "$0")/../.."
here=examples/emoji
size=${1:-64}
asset=var_hf/assets/var-emoji-$size
case $size in
64)
    recipes=$here out=${OUT:-outputs/emoji}
    images="--train 600 --validation 20 --test 50" start=
    judge= measured="--per-class 50"
    ;;
128)
    recipes=$here/128 out=${OUT:-outputs/emoji-128}
    images="--train 960 --validation 9 --test 21" start=$out/start
    judge="--steps 5000" measured="--per-class 20 --classified-per-class 1"
    ;;
*)
    echo "There is no var-emoji-$size: give 64 or 128." >&2
    exit 1
    ;;
esac

faster=
if [ -z "${LAUNCH:-}" ]; then
    # Two processes of one thread learn faster than one of two. On a CPU it is --multi_gpu that starts several.
    LAUNCH="env ACCELERATE_USE_CPU=true OMP_NUM_THREADS=1 accelerate launch --multi_gpu --num_processes 2 --num_machines 1"
    # Faster on a CPU; on a GPU, sdpa is faster than eager.
    if command -v c++ > /dev/null; then faster="--set attn_implementation=eager --set torch_compile=true"; fi
fi
data="--data $out/data --split train --validation $out/data --validation-split validation"
var_hf="$LAUNCH $(command -v var-hf)"

mkdir -p "$out"
python $here/draw.py "$out/data" --drawing $recipes/drawing.json $images
if [ ! -d "$out/vqvae" ]; then
    if [ -n "$start" ] && [ ! -d "$start" ]; then
        python $here/enlarge.py var_hf/assets/var-emoji-64/vqvae "$start" --like $recipes/start.json
    fi
    $var_hf train-tokenizer $data --recipe $recipes/tokenizer.json ${start:+--model "$start"} --output "$out/tokenizer"
    tokenizer=$out/tokenizer
    if [ -f $recipes/decoder.json ]; then
        # The decoder alone learns to draw sharply; tokens stay what they are.
        eyes=$out/eyes.safetensors
        [ -f "$eyes" ] || python $here/train_classifier.py "$out/data" "$eyes" --seed 1
        $var_hf train-tokenizer $data --recipe $recipes/decoder.json --model "$out/tokenizer/vqvae" \
            --set perceptual="$eyes" --output "$out/decoder"
        tokenizer=$out/decoder
    fi
    python $here/ship.py "$tokenizer/vqvae" "$out/vqvae"
fi
# One cache of tokens serves all trainings.
tokens="$data --tokenizer $out/vqvae --set token_cache=$out/tokens --set validation_cache=$out/tokens-validation $faster"
coarse=
if [ -f $recipes/coarse.json ]; then
    # The coarsest scales alone first: most of the layout for a third of the time.
    coarse=$out/coarse-pipeline
    if [ ! -d "$coarse" ]; then
        $var_hf train $tokens --recipe $recipes/coarse.json --output "$out/coarse"
        python $here/ship.py "$out/coarse/pipeline" "$coarse"
    fi
fi
$var_hf train $tokens --recipe $recipes/transformer.json ${coarse:+--model "$coarse"} --output "$out/transformer"
[ -f "$out/classifier.safetensors" ] || python $here/train_classifier.py "$out/data" "$out/classifier.safetensors" $judge
python $here/ship.py "$out/transformer/pipeline" $asset --data "$out/data"
python $here/measure.py $asset "$out/classifier.safetensors" "$out/data" $measured --output $recipes
python $here/ship.py "$out/transformer/pipeline" $asset --data "$out/data" --results $recipes/results.json
[ ! -d "$out/tokenizer" ] || python $here/plot_curves.py "$out/tokenizer" $recipes/tokenizer-curves.png
if [ -n "$coarse" ] && [ ! -f "$coarse/log.jsonl" ]; then cp "$out/coarse/log.jsonl" "$coarse/"; fi
python $here/plot_transformer_curves.py ${coarse:+"$coarse"} "$out/transformer" $recipes/transformer-curves.png
