#!/usr/bin/env bash
# Compresses with every setting of a grid, and leaves out what is finished.
set -euo pipefail

usage() {
  cat <<'END'
usage: NAME=VALUE ... scripts/sweep.sh [--list] [-- ARGUMENT OF run_glue.py ...]

Compresses a predecessor into a successor with every setting of a grid, one run at a time on each GPU of
CUDA_VISIBLE_DEVICES, or on each that nvidia-smi lists. Variables say what to run; lists are separated by spaces:

  GLUE_DIR        folder with the tasks' data: $GLUE_DIR/MRPC/train.tsv and so on
  PREDECESSORS    folder with one fine-tuned model for each task: $PREDECESSORS/MRPC and so on
  OUTPUT_DIR      where the runs go: $OUTPUT_DIR/MRPC/linear-rate0.3-k0.0006-lr2e-5-seed42 and so on
  TASKS           the tasks, named as those folders are: "MRPC RTE"
  TRAIN_FILE, VALIDATION_FILE, PREDECESSOR
                  data of your own and the model fine-tuned on them, in place of GLUE_DIR, TASKS and PREDECESSORS; of
                  reviews/train.csv the runs go to $OUTPUT_DIR/reviews-train; names of columns come after --
  LEARNING_RATES  default: "2e-5", which is for a BERT-base; small models need higher ones
  REPLACING_RATES default: "0.3"; the constant rate, or the one that the linear schedule starts from
  KS              linear schedule: what the rate gains each step; it is 1 after (1 - rate) / k steps
  STEPS           constant rate: steps at this rate, before it becomes 1. Where neither KS nor STEPS is set, the
                  schedule is linear, and the rate is 1 after half of the steps
  SEEDS           default: "42"; all settings are run with the first seed, then with the next
  PYTHON          default: python

What follows -- is handed to run_glue.py after the sweep's own arguments. It is not part of a folder's name, so other
arguments need another OUTPUT_DIR.

Ctrl-C and SIGTERM stop the runs. The same command again skips finished runs, which have a run.json, and resumes the
others. What a run prints goes to FOLDER.log beside its folder. A failed run does not stop the others: the failed ones
are named at the end, and the exit status is 1.

  --list   run nothing: print the command of each unfinished run, for this folder, one a line and quoted for bash; it
           takes one GPU, the first, or those of CUDA_VISIBLE_DEVICES where the job has set that:
             scripts/sweep.sh --list > jobs && parallel -j 1 < jobs           (GNU parallel)
             bash -c "$(sed -n "${SLURM_ARRAY_TASK_ID}p" jobs)"               (SLURM array of `wc -l < jobs`)
  --help   print this
END
}

die() {
  echo "sweep.sh: error: $* (--help explains)" >&2
  exit 2
}

list=
while [ $# -gt 0 ]; do
  case $1 in
    --list) list=1 ;;
    -h | --help) usage && exit ;;
    --) shift && break ;;
    *) die "unknown argument $1; those of run_glue.py come after --" ;;
  esac
  shift
done
extra=("$@")

set -f  # the lists are words, not patterns of file names
: "${LEARNING_RATES:=2e-5}" "${REPLACING_RATES:=0.3}" "${KS:=}" "${STEPS:=}" "${SEEDS:=42}" "${PYTHON:=python}"
if [ -n "${TRAIN_FILE-}" ]; then
  [ -f "$TRAIN_FILE" ] || die "TRAIN_FILE: there is no file $TRAIN_FILE"
  [ -z "${GLUE_DIR-}${TASKS-}${PREDECESSORS-}" ] || die "TRAIN_FILE is for your own data: unset GLUE_DIR, TASKS, PREDECESSORS"
  TASKS=$(basename "$(cd "$(dirname "$TRAIN_FILE")" && pwd)")-$(basename "${TRAIN_FILE%.*}")
  TASKS=${TASKS//[[:space:]]/_}  # one word
  needed="TRAIN_FILE VALIDATION_FILE PREDECESSOR OUTPUT_DIR"
else
  needed="GLUE_DIR PREDECESSORS OUTPUT_DIR TASKS"
fi
for name in $needed; do
  [ -n "${!name-}" ] || die "$name is not set"
done
for name in LEARNING_RATES REPLACING_RATES KS STEPS SEEDS; do
  for value in ${!name}; do
    [[ $value =~ ^[0-9.eE+-]+$ ]] || die "$name: $value is not a number"
  done
done
for task in $TASKS; do
  if [ -n "${TRAIN_FILE-}" ]; then
    [ -f "$VALIDATION_FILE" ] || die "VALIDATION_FILE: there is no file $VALIDATION_FILE"
    [ -e "$PREDECESSOR/config.json" ] || die "PREDECESSOR: there is no model in $PREDECESSOR"
  else
    [ -d "$GLUE_DIR/$task" ] || die "GLUE_DIR: there is no folder $GLUE_DIR/$task"
    [ -e "$PREDECESSORS/$task/config.json" ] || die "PREDECESSORS: there is no model in $PREDECESSORS/$task"
  fi
done
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
for task in $TASKS; do
  [ "$list" ] || mkdir -p "$OUTPUT_DIR/$task" 2> /dev/null || die "OUTPUT_DIR: $OUTPUT_DIR/$task cannot be made"
done

runs=()  # of each, TASK/SETTING and the arguments of the setting
for seed in $SEEDS; do
  for task in $TASKS; do
    for lr in $LEARNING_RATES; do
      for rate in $REPLACING_RATES; do
        common="--learning_rate $lr --seed $seed --replacing_rate $rate"
        [ -n "$KS$STEPS" ] || runs+=("$task/linear-rate$rate-lr$lr-seed$seed $common --scheduler_type linear")
        for k in $KS; do
          runs+=("$task/linear-rate$rate-k$k-lr$lr-seed$seed $common --scheduler_type linear --scheduler_linear_k $k")
        done
        for steps in $STEPS; do
          runs+=("$task/constant-rate$rate-steps$steps-lr$lr-seed$seed $common --steps_for_replacing $steps")
        done
      done
    done
  done
done

prepare() {  # RUN: set `name`, `folder`, and `line` to the words of the command; false where it is finished
  name=${1%% *} folder=$OUTPUT_DIR/${1%% *}
  local task=${1%%/*} data
  if [ -n "${TRAIN_FILE-}" ]; then
    data=(--train_file "$TRAIN_FILE" --validation_file "$VALIDATION_FILE" --model_name_or_path "$PREDECESSOR")
  else
    data=(--task_name "$task" --data_dir "$GLUE_DIR/$task" --model_name_or_path "$PREDECESSORS/$task")
  fi
  line=("$PYTHON" "$root/run_glue.py" "${data[@]}" --output_dir "$folder" --do_train --do_eval
    --evaluate_during_training --save_steps 0 --resume ${1#* } ${extra[@]+"${extra[@]}"})
  [ ! -e "$folder/run.json" ]
}

if [ "$list" ]; then
  for run in "${runs[@]}"; do
    ! prepare "$run" || { printf '%s ' 'CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES-0}' && printf '%q ' "${line[@]}" && echo; }
  done
  exit
fi

work() {  # DEVICE: make the runs that no other device has taken
  local i start
  trap 'exit 143' TERM  # bash acts on it when the run, which gets the same signal, has ended
  [ "$1" = none ] || export CUDA_VISIBLE_DEVICES=$1
  for i in "${!runs[@]}"; do
    prepare "${runs[i]}" && mkdir "$taken/$i" 2> /dev/null || continue
    echo "$name: started"
    start=$SECONDS
    # The braces: what bash itself says of a killed run goes to the log too.
    if { "${line[@]}" < /dev/null; } >> "$folder.log" 2>&1; then
      echo "$name: finished after $((SECONDS - start)) s"
    else
      echo "$name: failed after $((SECONDS - start)) s"
    fi
  done
}

stop() {
  trap '' INT TERM HUP
  for worker in "${workers[@]}"; do
    kill -TERM -- "-$worker" 2> /dev/null || true
  done
  wait
  echo "sweep.sh: stopped; the same command resumes" >&2
  exit 130
}

if [ -n "${CUDA_VISIBLE_DEVICES+set}" ]; then
  devices=${CUDA_VISIBLE_DEVICES//,/ }
else
  devices=$(nvidia-smi -L 2> /dev/null | sed -n 's/^GPU \([0-9]*\):.*/\1/p') || true
fi
workers=() taken=$(mktemp -d)
trap 'rm -rf "$taken"' EXIT
trap stop INT TERM HUP
set -m  # a process group for each worker, so that a signal reaches its run as well
for device in ${devices:-none}; do
  work "$device" &
  workers+=($!)
done
wait

failed=()
for run in "${runs[@]}"; do
  prepare "$run" || continue
  failed+=("  $folder.log: $(tail -n 1 "$folder.log" 2> /dev/null || echo "cannot be written")")
done
if [ ${#failed[@]} -eq 0 ]; then
  echo "all ${#runs[@]} runs are finished; their tables: $PYTHON $root/scripts/summarize.py $OUTPUT_DIR"
else
  echo "sweep.sh: ${#failed[@]} of ${#runs[@]} runs failed; their logs end in:" >&2
  printf '%s\n' "${failed[@]}" >&2
  exit 1
fi
