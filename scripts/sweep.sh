#!/usr/bin/env bash
# Compresses with every setting of a grid; what is finished is not run again.
set -euo pipefail

usage() {
  cat <<'END'
usage: NAME=VALUE ... scripts/sweep.sh [--list] [-- ARGUMENT OF run_glue.py ...]

Compresses a predecessor into a successor with every setting of a grid, one run at a time on each GPU. Variables of
the environment say what to run; lists are parted by spaces:

  GLUE_DIR        folder with the tasks' data: $GLUE_DIR/MRPC/train.tsv and so on
  PREDECESSORS    folder with one fine-tuned model a task: $PREDECESSORS/MRPC and so on
  OUTPUT_DIR      where the runs go, a folder each: $OUTPUT_DIR/MRPC/linear-rate0.3-k0.0006-lr2e-5-seed42
  TASKS           the tasks, named as those folders are: "MRPC RTE"
  LEARNING_RATES  default: "2e-5"
  REPLACING_RATES default: "0.3"; the constant rate, or the one that the linear schedule starts from
  KS              linear schedule: what the rate gains each step; it is 1 after (1 - rate) / k steps
  STEPS           constant rate: steps at this rate, before it becomes 1
  SEEDS           default: "42"; all settings are run with the first seed, then with the next

With KS and STEPS both schedules are run; one of them is needed. What follows -- is handed to run_glue.py after the
sweep's own arguments, so that it wins. The sweep's own are the setting, --do_train --do_eval
--evaluate_during_training --save_steps 0 --resume and --overwrite_output_dir.

  GLUE_DIR=glue PREDECESSORS=predecessors OUTPUT_DIR=runs TASKS="MRPC RTE" LEARNING_RATES="1e-5 2e-5" \
    REPLACING_RATES="0.3 0.5" KS="0.0006 0.002" SEEDS="42 43 44" \
    scripts/sweep.sh -- --num_train_epochs 15 --per_gpu_train_batch_size 32

A run is finished when its folder has a run.json, and is then left out: give the same command again to go on after
Ctrl-C or a failure. Arguments after -- are not part of a folder's name, so other ones need another OUTPUT_DIR. A run
that was stopped goes on where it was; one that was killed starts again, or goes on from its newest checkpoint where
there is a --save_steps after --. What a run prints goes to sweep.log in its folder. A failed run does not stop the
others; all of them are named at the end, and the exit status is 1.

GPUs are those of CUDA_VISIBLE_DEVICES or, where it is not set, all that nvidia-smi lists; without any, runs are made
one at a time. Several sweeps may share an OUTPUT_DIR: no run is made twice at once (where there is the command flock).
PYTHON names the interpreter (default: python).

  --list   run nothing: print the command of each unfinished run, one a line and quoted for bash, as for
             scripts/sweep.sh --list > jobs && parallel -j 1 < jobs           (GNU parallel)
             bash -c "$(sed -n "${SLURM_ARRAY_TASK_ID}p" jobs)"               (SLURM array of `wc -l < jobs`)
  --help   print this
END
}

die() {
  echo "sweep.sh: error: $* (--help explains)" >&2
  exit 2
}

# ---------------------------------------------------------------------------------------- arguments

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
for argument in "$@"; do
  [[ $argument != --output_dir* ]] || die "--output_dir after --: name the runs' folder in OUTPUT_DIR"
done

check() {  # NAME PATTERN WHAT: every value of a list must match
  local value
  for value in ${!1}; do
    [[ $value =~ ^($2)$ ]] || die "$1: $value is not $3"
  done
}

for name in GLUE_DIR PREDECESSORS OUTPUT_DIR TASKS; do
  [[ ${!name-} = *[![:space:]]* ]] || die "$name is not set"
done
: "${LEARNING_RATES:=2e-5}" "${REPLACING_RATES:=0.3}" "${KS:=}" "${STEPS:=}" "${SEEDS:=42}"
[[ "$KS$STEPS" = *[![:space:]]* ]] || die "neither KS (linear schedule) nor STEPS (constant rate) is set"
number='([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?'
check TASKS '[A-Za-z0-9-]+' "a task"
check LEARNING_RATES "$number" "a number"
check REPLACING_RATES '0?\.[0-9]*[1-9][0-9]*|1|1\.0*' "a decimal above 0 and not above 1"
check KS "$number" "a number"
check STEPS '[1-9][0-9]*' "a whole number above 0"
check SEEDS '[0-9]+' "a whole number"
for name in GLUE_DIR PREDECESSORS OUTPUT_DIR; do
  [[ ${!name} = /* ]] || printf -v "$name" %s "$PWD/${!name}"  # a listed command runs from any folder
done
for task in $TASKS; do
  [ -d "$GLUE_DIR/$task" ] || die "GLUE_DIR: there is no folder $GLUE_DIR/$task"
  [ -e "$PREDECESSORS/$task/config.json" ] || die "PREDECESSORS: there is no model in $PREDECESSORS/$task"
done
python=$(command -v "${PYTHON:-python}") || die "PYTHON: there is no command ${PYTHON:-python}"
[[ $python = /* ]] || python=$PWD/$python
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# --------------------------------------------------------------------------------------------- grid

names=() settings=() n_finished=0
add() {  # NAME SETTING: a run, unless it is finished
  [[ " ${names[*]-} " != *" $1 "* ]] || return 0  # a value that is listed twice
  if [ -e "$OUTPUT_DIR/$1/run.json" ]; then
    n_finished=$((n_finished + 1))
  else
    names+=("$1") settings+=("$2")
  fi
}

for seed in $SEEDS; do
  for task in $TASKS; do
    for lr in $LEARNING_RATES; do
      for rate in $REPLACING_RATES; do
        common="--learning_rate $lr --seed $seed --replacing_rate $rate"
        for k in $KS; do
          add "$task/linear-rate$rate-k$k-lr$lr-seed$seed" "$common --scheduler_type linear --scheduler_linear_k $k"
        done
        for steps in $STEPS; do
          add "$task/constant-rate$rate-steps$steps-lr$lr-seed$seed" "$common --steps_for_replacing $steps"
        done
      done
    done
  done
done

command_of() {  # INDEX: set `line` to the words of the run's command
  local task=${names[$1]%%/*} words
  read -ra words <<< "${settings[$1]}"
  line=("$python" "$root/run_glue.py" --task_name "$task" --model_name_or_path "$PREDECESSORS/$task"
    --data_dir "$GLUE_DIR/$task" --output_dir "$OUTPUT_DIR/${names[$1]}" --overwrite_output_dir --resume
    --do_train --do_eval --evaluate_during_training --save_steps 0 "${words[@]}" ${extra[@]+"${extra[@]}"})
}

if [ "$list" ]; then
  for i in ${names[@]+"${!names[@]}"}; do
    command_of "$i"
    printf '%q ' "${line[@]}" && echo
  done
  exit
fi

# --------------------------------------------------------------------------------------------- runs

mkdir -p "$OUTPUT_DIR" 2> /dev/null && [ -w "$OUTPUT_DIR" ] || die "OUTPUT_DIR: cannot write to $OUTPUT_DIR"
devices=()
if [ -n "${CUDA_VISIBLE_DEVICES+set}" ]; then
  IFS=', ' read -ra devices <<< "$CUDA_VISIBLE_DEVICES"
elif gpus=$(nvidia-smi --query-gpu=index --format=csv,noheader 2> /dev/null); then
  for gpu in $gpus; do
    [[ $gpu =~ ^[0-9]+$ ]] && devices+=("$gpu")  # not the words "No devices were found"
  done
fi
[ ${#devices[@]} -gt 0 ] || devices=("")

run() {  # INDEX DEVICE
  local name=${names[$1]} folder=$OUTPUT_DIR/${names[$1]} say="$(($1 + 1)) of ${#names[@]}: ${names[$1]}:"
  local start=$SECONDS status=0 claim=0 line verb
  mkdir -p "$folder" || true
  {
    # The lock is on the open log, which the run inherits: it ends with the run, however that and the sweep end.
    flock -n 9 2> /dev/null || claim=$?
    if [ $claim = 1 ] || [ -e "$folder/run.json" ]; then
      echo "$say left to another sweep"
      return
    fi
    [ -e "$folder/unfinished_run.json" ] && verb="goes on" || verb=started
    echo "$say $verb${2:+ on GPU $2}"
    command_of "$1"
    { "${line[@]}" < /dev/null >&9; } 2>&9 || status=$?  # the braces: bash's own word on a killed run goes there too
  } 9>> "$folder/sweep.log" || status=$?
  if [ $status = 0 ] && [ -e "$folder/run.json" ]; then
    echo "$say $(main_metric "$folder/run.json") after $((SECONDS - start)) s"
  else
    echo "$say failed with status $status after $((SECONDS - start)) s"
    echo "  $folder/sweep.log: $(tail -n 1 "$folder/sweep.log" 2> /dev/null)" >> "$scratch/failed"
  fi
}

main_metric() {
  local code='import json, sys; r = json.load(open(sys.argv[1])); print(r["main_metric"], round(r["last"]["main"], 4))'
  "$python" -c "$code" "$1" 2> /dev/null || echo finished
}

work() {  # DEVICE: make the runs that no other device of this sweep has taken
  local i
  trap 'exit 143' TERM  # once the run, which the same signal has reached, is gone
  [ -z "$1" ] || export CUDA_VISIBLE_DEVICES=$1
  for i in ${names[@]+"${!names[@]}"}; do
    mkdir "$scratch/$i" 2> /dev/null && run "$i" "$1"
  done
}

stop() {
  trap '' INT TERM HUP
  for worker in ${workers[@]+"${workers[@]}"}; do
    kill -TERM -- "-$worker" 2> /dev/null || true
  done
  wait
  echo "sweep.sh: stopped; the same command goes on" >&2
  exit 130
}

echo "runs to make: ${#names[@]}, ${#devices[@]} at a time; finished already: $n_finished"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
workers=()
trap stop INT TERM HUP
set -m  # a process group for each worker, so that a signal reaches its run as well
for device in "${devices[@]}"; do
  work "$device" &
  workers+=($!)
done
wait

if [ -e "$scratch/failed" ]; then
  echo "sweep.sh: $(wc -l < "$scratch/failed") of ${#names[@]} runs failed; their logs and the last lines of these:" >&2
  cat "$scratch/failed" >&2
  exit 1
fi
